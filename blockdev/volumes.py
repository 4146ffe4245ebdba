"""Volumes as things in a store: making, finding, describing and removing them.

One rule: `vol.json` is the volume. Its conditional PUT makes one, its removal ends one; what lies below a volume's prefix
without it is the remains of a deletion or an import that did not finish, or an import that is going on.
"""

import contextlib
import os
import random as random_module
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import UUID

from blockdev import references
from blockdev.engine.ancestry import Ancestry, with_ancestors
from blockdev.engine.state_directory import DirectoryJournal, StateDirectory
from blockdev.errors import CorruptFormat, CorruptJournal, Refused
from blockdev.offline import read_volume_file
from blockdev.place import volume_store
from blockdev.references import Reference
from blockdev.segments import paths, record, root, volume_file
from blockdev.segments.record import NO_DIGEST, Parsed, Record, RecordKind
from blockdev.segments.volume_file import Origin, VolumeFile, compression_level
from blockdev.units import BLOCK_BYTES, MIB, Geometry
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed, StoreError
from s3core.probe import ProbeResult, race_conditional_put
from s3core.store import ObjectInfo, ObjectStore
from s3core.wrapper import batches

SIZE_BYTES_MIN = MIB
PROBE_PREFIX = "bucketworks-probe/"
DELETION = "deletion"
"""`purpose` in the note of the record that a deletion begins with."""
_READERS = 16


def check_geometry(size_bytes: int, sector_bytes: int, frame_bytes: int, extent_bytes: int) -> Geometry:
    """The geometry of a new volume. ValueError says what is wrong with it."""
    if size_bytes < SIZE_BYTES_MIN:
        raise ValueError(f"a volume has at least 1 MiB, not {size_bytes} bytes")
    return Geometry(size_bytes, sector_bytes, frame_bytes, extent_bytes)


def check_compression(text: str) -> str:
    """Returns `text`; ValueError when no writer knows it."""
    compression_level(text)
    return text


def fence_test(store: ObjectStore, random: random_module.Random) -> ProbeResult:
    """Whether two hosts can be kept apart in this store: a race of conditional writes. Leaves nothing behind."""
    return race_conditional_put(store, PROBE_PREFIX, random)


def require_free(store: ObjectStore, name: str) -> None:
    """Raises Refused when the name is taken, by a volume or by what is left of one."""
    own = volume_store(store, name)
    first = next(iter(own.list()), None)
    if first is None:
        return
    if _volume_file(own) is not None:
        raise Refused(
            f"volume {name} exists already at {store.url}",
            hint="choose another name; `s3block info` shows it, `s3block delete` removes it",
        )
    raise Refused(
        f"{own.url} holds remains of a deletion, a creation or an import that did not finish ({first.key} and perhaps more)",
        hint="remove them with `s3block delete`, or choose another name",
    )


def create_volume(store: ObjectStore, volume: VolumeFile) -> None:
    """Make the volume: one conditional PUT. On return it exists durably and is ours. Raises Refused when somebody else
    was faster, OutcomeUnknown when nobody can say."""
    own = volume_store(store, volume.name)
    blob = volume_file.encode(volume)
    try:
        own.put_if_absent(paths.volume_file(), blob)
        return
    except (PreconditionFailed, OutcomeUnknown) as error:
        # An answer may have been lost: what is there now tells whose write it was.
        there = _volume_file(own)
        if there == blob:
            return
        if there is None:
            raise OutcomeUnknown(
                f"whether volume {volume.name} was created is not known: {error}",
                hint="look with `s3block info` before trying again",
            ) from error
        raise Refused(f"volume {volume.name} was created by somebody else at the same moment") from error


@dataclass(frozen=True, slots=True)
class Listed:
    """A volume in a list. `state` is `ok`, or says why there is no more to tell; `error` is what stood in the way."""

    name: str
    store_url: str
    state: str
    volume: VolumeFile | None = None
    error: Exception | None = None


def look(store: ObjectStore, name: str) -> Listed:
    """One request. Never raises for what is wrong with the volume or the store."""
    try:
        volume = read_volume_file(volume_store(store, name), name)
    except NotFound as error:
        return Listed(name, store.url, "no such volume", error=error)
    except CorruptFormat as error:
        return Listed(name, store.url, "damaged", error=error)
    except StoreError as error:
        return Listed(name, store.url, "unreachable", error=error)
    return Listed(name, store.url, "ok", volume)


def list_volumes(store: ObjectStore) -> list[Listed]:
    """Every volume in the store, by name. Raises store errors of the listing."""
    names = [group.removeprefix(paths.ROOT_PREFIX).strip("/") for group in store.list_prefixes(paths.ROOT_PREFIX)]
    with ThreadPoolExecutor(_READERS, "list") as pool:
        found = list(pool.map(lambda name: look(store, name), names))
    return [
        # Keys are there, the volume is not: somebody began to delete it, or to import it.
        replace(item, state="deletion or import unfinished", error=None) if isinstance(item.error, NotFound) else item
        for item in found
    ]


def newest_record(own: ObjectStore, identity: UUID | None) -> Parsed | None:
    """The log's last record (of whatever volume, for None), found by listing from the newest root on; None when nothing
    was ever committed. Raises CorruptFormat, store errors."""
    after = ""
    for info in own.list(paths.root_prefix()):
        number = info.key.removeprefix(paths.root_prefix()).partition("-")[0]
        if len(number) == 16:
            after = paths.log_prefix() + number
    last = _last(own.list(paths.log_prefix(), start_after=after))
    if last is None and after:
        # A root is written after its record, so that one is the newest.
        last = _last(own.list(after))
    if last is None:
        last = _last(own.list(paths.log_prefix()))
    if last is None:
        return None
    return record.decode(own.get(last.key).data, what=f"{own.url}/{last.key}", volume=identity)


def _last(items: Iterator[ObjectInfo]) -> ObjectInfo | None:
    """The last of a listing, which comes in order."""
    kept = deque(items, maxlen=1)
    return kept[0] if kept else None


def _volume_file(own: ObjectStore) -> bytes | None:
    try:
        return own.get(paths.volume_file()).data
    except NotFound as error:
        if not error.key:
            raise
        return None


# --- cloning ---------------------------------------------------------------------------------------------------------


class Snapshot(Protocol):
    """What a clone needs to know of a snapshot. `digest`: of the commit's record, hexadecimal."""

    @property
    def name(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


def origin_of(store: ObjectStore, name: str, parent: VolumeFile, snapshot: Snapshot) -> tuple[Origin, ...]:
    """The chain of ancestors of a clone of that snapshot of `parent`, which is called `name`. Reads the snapshot's
    checkpoint, without which nothing could be read of it. Raises CorruptFormat, store errors."""
    own = with_ancestors(volume_store(store, name), parent)
    key = paths.root(snapshot.seq, snapshot.epoch)
    try:
        made = root.decode(own.get(key).data, what=key, volume=Ancestry(parent).identity_of(snapshot.seq))
    except NotFound as error:
        raise CorruptFormat(
            f"snapshot {snapshot.name} of volume {name} has no checkpoint", what=f"{own.url}/{key}"
        ) from error
    if made.digest.hex() != snapshot.digest:
        raise CorruptFormat(f"is the checkpoint of another commit than snapshot {snapshot.name}'s", what=key)
    last = Origin(name, parent.identity, snapshot.seq, snapshot.epoch, key, made.digest, made.lineage)
    return (*parent.origin, last)


def clone_volume(
    store: ObjectStore,
    name: str,
    parent: VolumeFile,
    snapshot: Snapshot,
    child: VolumeFile,
    *,
    look_again: Callable[[], Snapshot | None],
    around: Callable[[ObjectStore], AbstractContextManager[None]] = lambda own: contextlib.nullcontext(),
) -> None:
    """Make `child`, whose last origin is that snapshot of `parent`, which is called `name`. O(1): nothing is copied. On
    return it exists durably. `look_again` reads the parent's newest state and returns the snapshot of that name;
    `around` puts what the clone needs besides vol.json into its own part (its key slot), and vol.json is written
    within it. Raises Refused,
    OutcomeUnknown, store errors.

    The order, and what a crash leaves:
    1. the reference in the parent (a crash: a snapshot that cannot be deleted for a day, then `remove_dead` tidies up);
    2. the parent is read again: a snapshot that was deleted before the reference was there is not cloned. One that is
       deleted later finds the reference, and stays;
    3. what `around` does (a crash: as 1, and remains in the clone's part, which `delete` removes);
    4. vol.json, conditionally (a crash: the clone is there, whole)."""
    if (child.encryption is None) != (parent.encryption is None):
        raise ValueError("a clone is encrypted if its parent is, and with the same key")
    own = volume_store(store, name)
    references.put(own, Reference(child.name, str(child.identity), snapshot.name, snapshot.seq))
    try:
        found = look_again()
        if found is None or found.seq != snapshot.seq:
            raise Refused(f"snapshot {snapshot.name} of volume {name} was deleted at this very moment")
        last = newest_record(own, parent.identity)
        if last is not None and last.record.note.get("purpose") == DELETION:
            raise Refused(
                f"somebody has begun to delete volume {name}",
                hint="finish that with `s3block delete`; or serve the volume once, and clone it then",
            )
        with around(volume_store(store, child.name)):
            create_volume(store, child)
    except OutcomeUnknown:
        raise  # the clone may be there
    except BaseException:
        references.remove(own, child.identity)
        raise


# --- deleting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Doomed:
    """What `delete_volume` will remove. `volume` is None for remains without vol.json, or one that does not parse."""

    name: str
    volume: VolumeFile | None
    last: Parsed | None


def require_unreferenced(store: ObjectStore, name: str, now: float) -> None:
    """Raises Refused, naming them, when clones read the volume's objects. `now`: Unix seconds."""
    alive = [reference for reference in references.references(store, name, now) if reference.alive]
    if alive:
        children = ", ".join(f"{reference.child} (of snapshot {reference.snapshot})" for reference in alive)
        raise Refused(
            f"volume {name} has clones that read its objects: {children}",
            hint="delete them first, if nobody needs them",
        )


def prepare_deletion(store: ObjectStore, name: str, *, force: bool, now: float) -> Doomed:
    """Look at what is there. Raises NotFound when there is nothing, Refused when clones need the volume, and, unless
    `force`, when somebody may be using it (its last record is not a DETACH) or its state cannot be read.
    `now`: Unix seconds."""
    own = volume_store(store, name)
    if next(iter(own.list()), None) is None:
        raise NotFound(f"there is no volume {name} at {store.url}", hint="`s3block list` shows what is there")
    require_unreferenced(store, name, now)
    try:
        volume = read_volume_file(own, name)
        last = newest_record(own, volume.identity)
    except NotFound:
        return Doomed(name, None, _newest_of_remains(own))
    except CorruptFormat as error:
        if force:
            return Doomed(name, None, None)
        raise Refused(
            f"whether volume {name} is in use cannot be told: {error}", hint="--force deletes it nevertheless"
        ) from error
    if last is not None and last.record.kind != RecordKind.DETACH and not force:
        raise Refused(
            f"volume {name} is attached, or its host stopped without detaching (epoch {last.record.epoch}, "
            f"commit {last.record.seq})",
            hint="stop its `s3block serve` in order, or delete it nevertheless with --force",
        )
    return Doomed(name, volume, last)


def _newest_of_remains(own: ObjectStore) -> Parsed | None:
    """The last record of a log without vol.json; None when there is none that can be read."""
    try:
        return newest_record(own, None)
    except (CorruptFormat, NotFound):
        return None


def delete_volume(
    store: ObjectStore, doomed: Doomed, *, nonce: bytes, time_us: int, removed: Callable[[int], None]
) -> dict[str, StoreError]:
    """Remove the volume; returns the keys that could not be removed. Running it again finishes what was begun.

    The order, and what a crash leaves:
    1. a record of a new epoch (a crash leaves the volume whole, its writer fenced off; an import that is going on ends),
       then another look for clones: whoever makes one now sees that record and gives up;
    2. vol.json (a crash leaves remains, which nobody can attach, `create` refuses and `delete` goes on with);
    3. everything else, the log last and in order, so that a writer that was cut off finds the fence to the end;
    4. vol.json once more: an import that was about to end may have written it after step 2 (it looks for the fence after
       that, and removes it as well);
    5. a clone's reference in its parent (a crash before: the parent's snapshot is pinned for a day and until its next gc).
    """
    own = volume_store(store, doomed.name)
    _fence_off(own, doomed, nonce, time_us)
    if doomed.volume is not None:
        require_unreferenced(store, doomed.name, time_us / 1e6)
    own.delete(paths.volume_file())
    removed(1)
    failed: dict[str, StoreError] = {}

    def remove(keys: Iterator[str]) -> None:
        for batch in batches(keys):
            refused = own.delete_many(batch)
            failed.update(refused)
            removed(len(batch) - len(refused))

    remove(info.key for info in own.list() if not info.key.startswith(paths.log_prefix()))
    if not failed:
        remove(info.key for info in own.list(paths.log_prefix()))
    if doomed.volume is None:
        own.delete(paths.volume_file())
    elif doomed.volume.origin and not failed:
        references.remove(volume_store(store, doomed.volume.origin[-1].name), doomed.volume.identity)
    return failed


def _fence_off(own: ObjectStore, doomed: Doomed, nonce: bytes, time_us: int) -> None:
    """Take the next number in the log, as an attachment would: whoever attaches now, or still writes, is stopped."""
    volume, last = doomed.volume, doomed.last
    before = last.record if last is not None else None
    if before is not None:
        identity, lineage, size_bytes = before.volume, before.lineage, before.size_bytes
    elif volume is not None:
        identity, lineage, size_bytes = volume.identity, volume.lineage, volume.geometry.size_bytes
    else:
        return
    origin = volume.origin[-1] if volume is not None and volume.origin else None
    clean = before is None or before.kind == RecordKind.DETACH
    begin = before.end if before is not None else BLOCK_BYTES
    fence = Record(
        seq=1 + (before.seq if before is not None else origin.seq if origin is not None else 0),
        epoch=1 + (before.epoch if before is not None else origin.epoch if origin is not None else 0),
        # Should the deletion end here, what could be attached before still can: a clean volume anywhere, another one
        # where its journal is.
        kind=RecordKind.DETACH if clean else RecordKind.FENCE,
        nonce=nonce,
        parent=last.digest if last is not None else origin.digest if origin is not None else NO_DIGEST,
        volume=identity,
        lineage=lineage,
        journal=before.journal if before is not None else UUID(int=0),
        begin=begin,
        end=begin,
        time_us=time_us,
        size_bytes=size_bytes,
        note={"purpose": DELETION},
    )
    parts, _, _ = record.encode(fence)
    try:
        own.put_if_absent(paths.log(fence.seq), parts)
    except PreconditionFailed as error:
        raise Refused(
            f"volume {doomed.name} was attached or written to at this very moment", hint="look with `s3block info`"
        ) from error


class LocalState:
    """A volume's state directory on this host, held (as a context) so that nothing serves the volume from it.
    Entering raises AttachRefused when something does, or when the journal in it is another volume's."""

    def __init__(self, path: Path, volume: VolumeFile | None) -> None:
        self._directory = StateDirectory(path)
        self._volume = volume
        self._lock = -1

    def __enter__(self) -> "LocalState":
        if not self._directory.path.is_dir():
            return self
        self._lock = self._directory.lock()
        if self._volume is None:
            return self
        try:
            DirectoryJournal(self._directory, self._volume.identity, 0, self._volume.geometry.sector_bytes).identity()
        except CorruptJournal:
            pass  # nothing can be lost with it that this deletion is not about to remove
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> bool:
        """Remove what a volume keeps there, and nothing else. False: nothing was there, or nobody can tell any more
        whose journal it is."""
        directory = self._directory
        if self._lock < 0 or (self._volume is None and directory.journal_path.exists()):
            return False
        for path in (directory.cache_path, directory.map_path, directory.objects_path):
            shutil.rmtree(path, ignore_errors=True)
        asides = directory.path.glob("journal.*.aside")
        small = (directory.path / name for name in ("journal.epoch", "control", "lock"))
        for file in (directory.journal_path, *asides, *small):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody keeps other things there
            directory.path.rmdir()
        return True
