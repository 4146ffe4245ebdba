"""What of a damaged volume can be put right without guessing, and what cannot.

One rule: nothing is made up and nothing is deleted that the engine itself would keep. What describes the content (roots, map
pages, the head) is written anew from the log; the content itself has no second copy here, so its damage is named.

| step | what a crash leaves |
| --- | --- |
| map | the local map built anew, or none: the next attachment builds it from the bucket |
| checkpoint | a root more, or none; the volume counts as attached here, and the next start goes on |
| references | those removed are gone, the others stay |
| orphans | as many deleted as were; the next run deletes the rest |
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from blockdev import references
from blockdev.control import ControlClient, NotServed
from blockdev.engine.ancestry import with_ancestors
from blockdev.engine.attach import Attacher
from blockdev.engine.log import CommitLog
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.state_directory import StateDirectory
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.lmdb_map import close_map_store, discard_map_store, open_map_store
from blockdev.inspection.findings import LIVE, Defect, Inspection
from blockdev.offline import Once, ReadingStore, read_volume_file, temporary_map
from blockdev.place import VolumePlace, volume_store
from blockdev.segments import paths
from blockdev.segments.volume_file import VolumeFile
from blockdev.session import reach
from s3core.errors import Corrupt, NotFound
from s3core.settings import Config
from s3core.store import Body, ObjectInfo, ObjectStore
from s3core.wrapper import StoreWrapper

THREADS = 16
_DESCRIBING = (paths.root_prefix(), paths.page_prefix(), paths.head())


class Step(Enum):
    """In the order in which they are done."""

    MAP = "build this host's map anew, from the log and the roots that are whole"
    CHECKPOINT = "attach the volume here for a moment, and write a fresh root, its pages and the head"
    SERVED = "let the daemon that serves the volume write a fresh root and the head"
    REFERENCES = "remove references to clones that are not there"
    ORPHANS = "delete objects that no commit names"


@dataclass(frozen=True, slots=True)
class Plan:
    """`hidden`: roots that MAP must do without. `beyond`: defects that no step cures. `refused`: why what could be cured is
    not, or empty."""

    steps: tuple[Step, ...]
    hidden: tuple[str, ...] = ()
    beyond: tuple[Defect, ...] = ()
    refused: str = ""


class WithoutRoots(StoreWrapper):
    """A volume's store as if these roots were not there."""

    def __init__(self, inner: ObjectStore, hidden: tuple[str, ...]) -> None:
        super().__init__(inner)
        self._hidden = hidden

    def get(self, key: str) -> Body:
        if key in self._hidden:
            raise NotFound("is not to be used", key=key)
        return super().get(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        return (info for info in super().list(prefix, start_after=start_after) if info.key not in self._hidden)


def make_plan(store: ObjectStore, place: VolumePlace, state_dir: Path, found: Inspection) -> Plan:
    """What would be done about these findings. Reads roots, pages and log once more; changes nothing. `store` holds the
    volume. Raises store errors."""
    own = volume_store(store, place.name)
    newest = max((info.key for info in own.list(paths.root_prefix())), default="")
    # An older root that is damaged, or lacks pages, hurts nobody any more: it goes with the orphans.
    describing = [
        defect
        for defect in found.defects
        if _describes(defect) and (defect.hits or defect.key in (newest, paths.head()))
    ]
    beyond = [defect for defect in found.defects if not _describes(defect)]
    log_damaged = any(defect.key.startswith(paths.log_prefix()) and not defect.start for defect in beyond)
    served = is_served(state_dir)
    steps: list[Step] = []
    hidden: tuple[str, ...] = ()
    refused = ""
    if describing:
        lost = [defect for defect in describing if LIVE in defect.hits]
        if served:
            steps.append(Step.SERVED)
            if lost:
                steps.clear()
                refused = (
                    "pages of the newest root are written anew only while nobody serves the volume: stop that first"
                )
        elif lost:
            good = whole_without(own, place.name)
            if good is None:
                refused = "neither the log nor an older root tells what the damaged pages said"
            else:
                hidden = good
                steps += [Step.MAP, Step.CHECKPOINT]
        else:
            steps.append(Step.CHECKPOINT)
        if refused:
            beyond = [*beyond, *describing]
        # A snapshot has one root, and nothing but that root names its pages.
        beyond += [defect for defect in describing if set(defect.hits) - {LIVE} and defect not in beyond]
    if any(remark.key.startswith(paths.ref_prefix()) for remark in found.remarks):
        steps.append(Step.REFERENCES)
    if found.orphans and not log_damaged and not describing:
        steps.append(Step.ORPHANS)
    return Plan(tuple(steps), hidden, tuple(beyond), refused)


def _describes(defect: Defect) -> bool:
    return defect.key.startswith(_DESCRIBING)


def is_served(state_dir: Path) -> bool:
    """Whether a daemon on this host serves the volume. Raises Refused when it is another user's."""
    try:
        ControlClient(state_dir, timeout_s=10.0).close()
    except NotServed:
        return False
    return True


def whole_without(own: ObjectStore, name: str) -> tuple[str, ...] | None:
    """The newest roots to pass over, so that the rest and the log make a whole map; None when there is no way."""
    volume = read_volume_file(ReadingStore(own), name)
    reading = ReadingStore(with_ancestors(own, volume))
    roots = sorted((info.key for info in reading.list(paths.root_prefix())), reverse=True)
    for count in range(len(roots) + 1):
        hidden = tuple(roots[:count])
        with temporary_map(volume.geometry) as extent_map:
            try:
                _build(extent_map, volume, reading, hidden)
            except (CorruptFormat, NotFound, Corrupt):
                continue
        return hidden
    return None


def _build(extent_map: ExtentMap, volume: VolumeFile, reading: ObjectStore, hidden: tuple[str, ...]) -> None:
    """The map at the log's end, with every page here."""
    execution = ThreadExecution(THREADS)
    seen = WithoutRoots(reading, hidden)
    try:
        persistence = Once(execution)
        log = CommitLog(seen, volume.identity, execution, persistence)
        state = asyncio.run(Attacher(volume, seen, extent_map, log, persistence).catch_up())
        if state is None:
            raise CorruptFormat("holds no commit", what=paths.log_prefix())
        newest = max(hidden, default=paths.root(0, 0)).removeprefix(paths.root_prefix())
        seq, _, epoch = newest.partition("-")
        # Whoever attaches with this map has to take it for younger than the roots it does without.
        extent_map.forget_places(int(seq, 16), int(epoch, 16))
    finally:
        execution.close()


def carry_out(
    store: ObjectStore,
    place: VolumePlace,
    config: Config,
    state_dir: Path,
    plan: Plan,
    *,
    told: Callable[[str], None],
) -> None:
    """Do it. `told` hears of each step that is done. Raises AttachRefused, Refused, and what attaching raises; what was done
    by then stays done."""
    own = volume_store(store, place.name)
    for step in plan.steps:
        match step:
            case Step.MAP:
                _rebuild_local_map(own, place.name, state_dir, plan.hidden)
                told("this host's map was built anew")
            case Step.CHECKPOINT | Step.SERVED:
                with reach(place, config, state_dir=state_dir) as volume:
                    at = volume.operate("checkpoint")
                told(f"a root of commit {at['seq']} was written")
            case Step.REFERENCES:
                gone = references.remove_dead(store, place.name, time.time())
                told(f"references removed: {len(gone)}; those of the last day stay, their clones may be being made")
            case Step.ORPHANS:
                with reach(place, config, state_dir=state_dir) as volume:
                    answer = volume.operate("gc", orphans=True)
                told(f"orphans deleted: {answer['orphans']}; not clear, and kept: {answer['unclear']}")


def _rebuild_local_map(own: ObjectStore, name: str, state_dir: Path, hidden: tuple[str, ...]) -> None:
    """On return the map in the state directory stands at the log's end and relies on no root."""
    volume = read_volume_file(ReadingStore(own), name)
    directory = StateDirectory(state_dir.absolute())
    directory.prepare()
    lock = directory.lock()
    try:
        map_store = open_map_store(directory.map_path, str(volume.identity))
        try:
            extent_map = ExtentMap(map_store, volume.geometry)
            extent_map.clear()
            _build(extent_map, volume, ReadingStore(with_ancestors(own, volume)), hidden)
        except BaseException:
            discard_map_store(map_store)
            raise
        close_map_store(map_store)
    finally:
        os.close(lock)


def advice(found: Inspection, plan: Plan) -> list[str]:
    """What to do about damaged content, one line for each stretch of the disk."""
    lines: dict[str, None] = {}
    for defect in plan.beyond:
        if defect.start is None or not defect.length:
            continue
        first, last = (at // found.sector_bytes for at in (defect.start, defect.start + defect.length - 1))
        whole = [name for name in found.snapshots if f"snapshot {name}" not in defect.hits]
        place = f"sectors {first} to {last} (bytes {defect.start} to {defect.start + defect.length - 1})"
        if LIVE in defect.hits:
            other = f"; an older content is in snapshot {whole[-1]}" if whole else ""
            lines[f"{place} cannot be read: put {defect.key} back from a copy, or write them anew{other}"] = None
        else:
            told = ", ".join(defect.hits)
            lines[f"{place} of {told} cannot be read: put {defect.key} back from a copy, or delete the snapshot"] = None
    return list(lines)
