"""What is on the mount: directories that are always there, the bucket's objects, and over them what is being written.

One rule: pure, and no answer needs the network: what is given to it are a catalogue's rows and what this process knows of
the files being written. A file that replaces another is seen as it grows; the bucket has the old one until it is finished.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from plugin.catalogue import Entry
from plugin.layout import DIRECTORIES
from plugin.mount.naming import DIRECTORY_PATHS

BLOCK_BYTES: Final = 4096
UNLIMITED_BYTES: Final = 1 << 50
"""What is shown as free where no quota says otherwise: S3 has no size."""
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
FILE_MODE: Final = stat.S_IFREG | 0o644
SNIPPET_MODE: Final = stat.S_IFREG | 0o755
"""Hook scripts are run; S3 keeps no mode."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) tells; times in seconds."""

    mode: int
    size: int
    modified: float

    @property
    def links(self) -> int:
        return 2 if stat.S_ISDIR(self.mode) else 1

    @property
    def blocks(self) -> int:
        """Of 512 bytes."""
        return -(-self.size // 512)


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system."""

    total: int
    free: int


def mode_of(path: str) -> int:
    return SNIPPET_MODE if path.startswith(f"{DIRECTORIES['snippets']}/") else FILE_MODE


def directory(since: float) -> Attributes:
    return Attributes(DIRECTORY_MODE, 0, since)


def file(path: str, size: int, modified: float) -> Attributes:
    return Attributes(mode_of(path), size, modified)


def folders(path: str) -> list[str]:
    """Names of the layout's directories directly below a directory of the layout ("": the mount point)."""
    above = f"{path}/" if path else ""
    return sorted({one.removeprefix(above).split("/")[0] for one in DIRECTORY_PATHS if one and one.startswith(above)})


def names(path: str, prefix: str, rows: Iterable[Entry], written: Iterable[str]) -> list[str]:
    """Names of the files directly in the directory `path`: objects (`rows`, with the storage's `prefix`) and files being
    written (paths)."""
    found = set()
    for key in (*(row.key.removeprefix(prefix) for row in rows), *written):
        above, _, name = key.rpartition("/")
        if above == path and name:
            found.add(name)
    return sorted(found)


def space(used: int, quota: int) -> Space:
    """What df shows: the quota, or where there is none what is used and `UNLIMITED_BYTES` more."""
    total = quota or used + UNLIMITED_BYTES
    return Space(total, max(0, total - used))
