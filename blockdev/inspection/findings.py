"""What an inspection says: counts, defects, and remarks on what is no defect.

One rule: a defect names the object, the place in it, and the bytes of the disk that cannot be read because of it.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from blockdev.errors import CorruptFormat
from blockdev.segments import paths
from s3core.errors import Corrupt, NotFound, StoreError

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is done now, how many steps) -> to be told of steps done."""

LIVE = "volume"
"""In `Defect.hits`: the volume as it is now."""


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that is not as it must be. `key` is the object's, within the volume; `offset` the place in it.

    `start` and `length`: bytes of the disk that cannot be read; `hits`: where not, the volume and snapshots by name. Both
    are empty for what hurts no content."""

    key: str
    said: str
    offset: int | None = None
    extent: int | None = None
    start: int | None = None
    length: int = 0
    hits: tuple[str, ...] = ()


@dataclass(slots=True)
class Inspection:
    """What was looked at, and what was found. Sizes in bytes."""

    deep: bool
    encrypted: bool = False
    decrypted: bool = False
    """Whether the content of encrypted frames was looked at, not just their checksums."""
    sector_bytes: int = 512
    commit: int = 0
    records: int = 0
    log_from: int = 0
    """The first commit from which on the log is whole: older records go once no root needs them."""
    roots: int = 0
    snapshots: list[str] = field(default_factory=list)
    """Names, oldest first."""
    extents: int = 0
    frames_read: int = 0
    objects: int = 0
    object_bytes: int = 0
    waiting: int = 0
    """Objects that no commit needs any more and that will be deleted."""
    waiting_bytes: int = 0
    orphans: int = 0
    """Objects that nothing ever named: left by a crash, or on their way to the next commit. They cost money only."""
    orphan_bytes: int = 0
    defects: list[Defect] = field(default_factory=list)
    remarks: list[Defect] = field(default_factory=list)
    """What is not as one might expect and hurts nothing."""


_VOLUME_PREFIX = re.compile(rf"^{re.escape(paths.ROOT_PREFIX)}[^/]+/")


def as_defect(key: str, error: CorruptFormat | StoreError, extent: int | None = None) -> Defect:
    """An error as a finding: about the object it names, else `key`."""
    named = (error.what if isinstance(error, CorruptFormat) else error.key) or key
    # Stores name the whole key; here it is told as seen from the volume.
    own = _VOLUME_PREFIX.sub("", named)
    if isinstance(error, NotFound):
        return Defect(own, "is missing", extent=extent)
    offset = error.offset if isinstance(error, CorruptFormat | Corrupt) else None
    said = str(error).removeprefix(f"{named}: ").removesuffix(f" at offset {offset}")
    return Defect(own, said, offset, extent)
