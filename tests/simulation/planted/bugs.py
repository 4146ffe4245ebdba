"""The planted bugs: each replaces one function of the engine (or of a port) for as long as it is planted."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from blockdev.engine import cache, lease, link, orphans, plan, sweep
from blockdev.engine.attach import Attacher
from blockdev.engine.cache import ReadCache
from blockdev.engine.destager import Destager
from blockdev.engine.front import Front
from blockdev.engine.log import CommitLog
from blockdev.engine.misses import Misses
from blockdev.engine.reclaim import Reclaimer
from blockdev.engine.worker import Worker
from blockdev.errors import BlockError, Fenced
from blockdev.extents import extent_map
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.format import KEY
from blockdev.extents.history import History, Snapshot
from blockdev.journal import reader
from blockdev.journal.format import ALIGNMENT, BadRecord, Kind, Record
from blockdev.journal.journal import Journal
from blockdev.journal.reader import READ_BYTES, RecordScanner
from blockdev.segments import frames, paths, record
from blockdev.segments.record import NO_DIGEST
from blockdev.segments.root import PAGE_EXTENTS
from s3core.errors import PreconditionFailed, StoreError
from tests.simulation.process import SimSyncer


@dataclass(frozen=True, slots=True)
class Bug:
    """`where.attribute` becomes `replacement`; `story` says what goes wrong then."""

    name: str
    story: str
    where: Any
    attribute: str
    replacement: Any

    @contextmanager
    def planted(self) -> Iterator[None]:
        with mock.patch.object(self.where, self.attribute, self.replacement):
            yield


# --- the front ---------------------------------------------------------------------------------------------------


def _flush_without_sync(front: Front, done: Callable[[Exception | None], None]) -> None:
    try:
        front.commit()
    except BlockError as error:
        done(error)
        return
    done(None)


_commit = Front.commit


def _acknowledge_while_staged(front: Front) -> None:
    """Collects a few kilobytes before it appends."""
    if front._journal.tail - front._journal.head > 6000:
        _commit(front)


_step = Reclaimer.step


def _reclaim_before_durable(reclaimer: Reclaimer, limit: int, budget: int) -> None:
    _step(reclaimer, reclaimer._journal.head, budget)


def _forget_nothing(found: object, *where: int) -> None:
    """Leaves the cache, or the fetches under way, as they are."""


_finish = SimSyncer._finish


def _sync_counts_at_its_end(syncer: SimSyncer, batch: list[Any], position: int, covered: int) -> None:
    _finish(syncer, batch, syncer._journal.head, covered)


# --- the journal -------------------------------------------------------------------------------------------------


def _read_past_a_hole(found: Journal, from_position: int, visit: Callable[[Record], None]) -> int:
    scanner = RecordScanner(found.file, found.superblock, READ_BYTES)
    position = end = from_position
    limit = from_position + found.superblock.ring_bytes
    while position < limit:
        try:
            record = scanner.head(position, limit)
            scanner.data(record, limit)
        except BadRecord:
            position += ALIGNMENT
            continue
        if record.kind != Kind.PAD:
            visit(record)
        position = end = record.end
    found.file.fdatasync()
    found.reclaimed = from_position
    found.head = found.tail = found.synced = end
    return end


_start = Front.start


def _start_without_sync(front: Front, ready: link.Ready) -> None:
    with mock.patch.object(front._journal.file, "fdatasync"):
        _start(front, ready)


def _no_fault(*checked: object) -> int:
    """Every checksum holds, whatever the bytes."""
    return -1


# --- commits -----------------------------------------------------------------------------------------------------


async def _unknown_as_not_done(log: CommitLog, seq: int, parts: Sequence[Any], nonce: bytes) -> None:
    """What is there after a lost answer must be somebody else's, since ours failed."""
    while True:
        try:
            await log._execution.run(log._store.put_if_absent, paths.log(seq), parts)
        except PreconditionFailed as error:
            raise Fenced("another writer's record") from error
        except StoreError:
            await log._execution.sleep(0.1)
        else:
            return


_append = CommitLog.append


async def _any_record_is_ours(log: CommitLog, seq: int, parts: Sequence[Any], nonce: bytes) -> None:
    """A number that is taken was taken by us."""
    try:
        await _append(log, seq, parts, nonce)
    except Fenced:
        return


async def _map_before_record(
    found: Destager, made: Any, inline: Sequence[Any], sizes: dict[Any, int], rolled: Any = None
) -> None:
    parts, digest, inline_offset = record.encode(made, inline)
    found._map.apply(made, digest, inline_offset, sizes, rolled)
    await found._log.append(made.seq, parts, made.nonce)
    found.last_record_bytes = sum(len(part) for part in parts)


_turn = Worker._turn


async def _durable_before_record(worker: Worker) -> bool:
    state = worker._map.state
    if state is not None and worker._head > state.end and not worker.detaching:
        worker._send(link.Durable(worker._head, state.seq, 0.0))
    return await _turn(worker)


async def _record_before_objects(found: Destager, key: str, parts: Sequence[Any], *, keep: bool = True) -> None:
    """Sends the upload and does not wait for it."""
    found._background = getattr(found, "_background", [])  # type: ignore[attr-defined]  # held, so that it runs
    found._background.append(  # type: ignore[attr-defined]
        asyncio.ensure_future(_upload(found, key, parts, keep=keep))
    )


_upload = Destager.upload
_encode_record = record.encode


def _wrong_parent(made: Any, inline: Sequence[Any] = ()) -> Any:
    return _encode_record(replace(made, parent=NO_DIGEST), inline)


_pieces = plan._pieces


def _zeros_left_out(extent: int, overlay: Any, geometry: Any, *, skip_zeros: bool) -> Any:
    return _pieces(extent, overlay, geometry, skip_zeros=True)


def _loss_not_asked(attacher: Attacher, *arguments: Any, **options: Any) -> None:
    """Starts a new journal wherever the old one is not."""


# --- the lease ---------------------------------------------------------------------------------------------------


def _lease_not_asked(front: Front) -> None:
    """Acknowledges what it appended, whenever that was."""
    front._clock, clock = (lambda: 0.0), front._clock
    try:
        _commit(front)
    finally:
        front._clock = clock


def _renewed_at_its_end(found: lease.Lease, started: float) -> None:
    until = asyncio.get_running_loop().time() + found.seconds
    if until > found.until:
        found.until = until
        found._granted(until)


async def _not_waited(worker: Worker, *arguments: Any) -> None:
    """Serves right after its fence."""


async def _word_too_early(worker: Worker) -> None:
    """Says that it has stopped, then tells the front."""
    state = worker._map.state
    assert state is not None
    with suppress(StoreError):
        await worker._execution.run(worker._store.put, paths.released(state.epoch), b"{}")
    worker._send(link.Stop(str(worker.failure)))


def _flush_note_at_once(found: Destager, end: int) -> dict[str, Any]:
    """What is in the journal from before counts as if no flush had promised it."""
    if found.flushed_from is None:
        return {}
    found.flushed_from = None
    return {"flush": "s3"}


async def _free_number_is_ours(log: CommitLog, *arguments: Any) -> bool:
    """Whoever finds the number free has it."""
    return True


# --- snapshots, trimming, clones ---------------------------------------------------------------------------------


def _no_live_map(found: sweep.Sweeper, first: int, end: int) -> dict[int, tuple[int, int]]:
    return {}


def _no_neighbours(found: History, chosen: Snapshot) -> list[Snapshot]:
    return []


def _pins_off_by_one(found: History, birth: int, death: int, sweeping: int = 0) -> bool:
    return any(birth < snapshot.seq < death for snapshot in found.snapshots)


def _pins_nothing(found: History, birth: int, death: int, sweeping: int = 0) -> bool:
    return False


def _all_records_are_old(found: ExtentMap, before: int, time_us: int, most: int) -> list[int]:
    with found._kv.begin(write=False) as txn:
        first = next((KEY.unpack(key)[0] for key, _ in txn.scan("records")), before)
    return list(range(first, before))[:most]


def _records_of_any_age(found: ExtentMap, before: int, time_us: int, most: int) -> list[int]:
    """Asks how old the record is, not how long it has been of no use."""
    with found._kv.begin(write=False) as txn:
        return [seq for seq in (KEY.unpack(key)[0] for key, _ in txn.scan("records")) if seq < before][:most]


_named = orphans.OrphanSweeper._named


async def _orphans_of_the_live_map(found: orphans.OrphanSweeper, prefix: str, old: Any, snapshots: Any) -> set[str]:
    return await _named(found, prefix, old, [])


_delta_entries = ExtentMap.delta_entries


def _delta_without_deletions(found: ExtentMap, page: int, extents: Sequence[int]) -> list[tuple[int, bytes]]:
    return [(index, blob) for index, blob in _delta_entries(found, page, extents) if blob]


_lookup = ExtentMap.lookup


def _stale_page(found: ExtentMap, extents: Sequence[int]) -> Any:
    """A slow reader installs the page it has read, over what was changed since."""
    pages = sorted({extent // PAGE_EXTENTS for extent in extents})
    late = [page for page in pages if found.changed(page) and found.page_place(page)]
    for page in late:
        entries = extent_map.merged_page(found.page_place(page), found.read_page)
        with found._kv.begin(write=True) as txn:
            for index, blob in entries.items():
                txn.put("extents", KEY.pack(page * PAGE_EXTENTS + index), blob)
    return _lookup(found, extents)


_fill = ExtentMap._fill


def _rollback_without_containers(found: ExtentMap, txn: Any, root: Any) -> None:
    containers = dict(found.containers)
    _fill(found, txn, root)
    if containers:
        found.containers = containers


def _sectors_of_ancestors_die(found: ExtentMap, txn: Any, name: str, seq: int, time_us: int) -> None:
    """Buries whatever nobody needs here, whoever wrote it."""
    txn.put("dead", KEY.pack(seq) + name.encode(), b"")


async def _no_children(found: sweep.Sweeper, snapshot: Snapshot) -> list[str]:
    return []


class _AnyChecksum(int):
    """Equal to every checksum."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _no_checksum(*parts: object) -> int:
    return _AnyChecksum(0)


BUGS = [
    Bug("flush without sync", "a flush is answered and nothing was synced", Front, "flush", _flush_without_sync),
    Bug(
        "acknowledged while staged",
        "a write is acknowledged before it is in the journal",
        Front,
        "commit",
        _acknowledge_while_staged,
    ),
    Bug(
        "sync counts at its end",
        "what was written while fdatasync ran counts as synced",
        SimSyncer,
        "_finish",
        _sync_counts_at_its_end,
    ),
    Bug(
        "reclaim before durable",
        "journal space is given back before the bucket has what was in it",
        Reclaimer,
        "step",
        _reclaim_before_durable,
    ),
    Bug(
        "stale cache",
        "blocks in the read cache stay valid when the journal gives up newer ones",
        ReadCache,
        "forget",
        _forget_nothing,
    ),
    Bug(
        "stale answers",
        "a fetch that began before newer data left the journal is used",
        Misses,
        "given_up",
        _forget_nothing,
    ),
    Bug("journal checksum ignored", "torn data passes at recovery", reader, "data_fault", _no_fault),
    Bug("cache checksum ignored", "a flipped bit in the cache file is returned", cache, "first_bad_block", _no_fault),
    Bug(
        "reading past a hole",
        "recovery goes on behind a record that was lost",
        Journal,
        "recover",
        _read_past_a_hole,
    ),
    Bug(
        "recovery without sync",
        "what recovery found counts as synced and is not",
        Front,
        "start",
        _start_without_sync,
    ),
    Bug(
        "unknown put given up",
        "a record whose answer was lost is believed not to be there",
        CommitLog,
        "append",
        _unknown_as_not_done,
    ),
    Bug(
        "any record is ours",
        "another writer's record is taken for one's own",
        CommitLog,
        "append",
        _any_record_is_ours,
    ),
    Bug(
        "map before record",
        "the map holds what the log does not have yet",
        Destager,
        "append",
        _map_before_record,
    ),
    Bug(
        "durable before record",
        "the front is told too early that the bucket has it",
        Worker,
        "_turn",
        _durable_before_record,
    ),
    Bug(
        "record before objects",
        "a record names objects that are still on their way",
        Destager,
        "upload",
        _record_before_objects,
    ),
    Bug("wrong parent", "records do not form a chain", record, "encode", _wrong_parent),
    Bug("zeros left out", "zeros over an extent object are not committed", plan, "_pieces", _zeros_left_out),
    Bug(
        "loss not asked",
        "a lost journal is replaced and nobody is told",
        Attacher,
        "refuse_loss",
        _loss_not_asked,
    ),
]
OPERATION_BUGS = [
    Bug(
        "sweep forgets the live map", "what the volume needs goes with a snapshot", sweep.Sweeper, "_live", _no_live_map
    ),
    Bug("sweep forgets neighbours", "what another snapshot needs goes with one", History, "others", _no_neighbours),
    Bug("pins off by one", "a snapshot does not hold what its own commit wrote", History, "pins", _pins_off_by_one),
    Bug("snapshots hold nothing", "what was folded or moved dies under a snapshot", History, "pins", _pins_nothing),
    Bug(
        "trims what is needed", "records with live patches are deleted", ExtentMap, "old_records", _all_records_are_old
    ),
    Bug(
        "trims what the root before needs",
        "records of no use now are deleted while an older root names them",
        ExtentMap,
        "old_records",
        _records_of_any_age,
    ),
    Bug(
        "orphans without snapshots",
        "what only snapshots name counts as an orphan",
        orphans.OrphanSweeper,
        "_named",
        _orphans_of_the_live_map,
    ),
    Bug("delta without deletions", "discarded extents come back", ExtentMap, "delta_entries", _delta_without_deletions),
    Bug("stale page", "a page from the bucket is laid over a newer one", ExtentMap, "lookup", _stale_page),
    Bug("rollback keeps containers", "counters of another map", ExtentMap, "_fill", _rollback_without_containers),
]
"""Of what operators do."""
TAKEOVER_BUGS = [
    Bug("lease not asked", "a stopped host acknowledges what it wrote before", Front, "commit", _lease_not_asked),
    Bug(
        "lease from the answer",
        "the lease counts from the end of a request",
        lease.Lease,
        "renewed",
        _renewed_at_its_end,
    ),
    Bug("successor does not wait", "two hosts acknowledge at once", Worker, "_outwait", _not_waited),
    Bug("word too early", "a host says that it has stopped, and has not", Worker, "_say_stopped", _word_too_early),
    Bug("free number", "a trimmed number makes a writer", CommitLog, "_refuse_trimmed", _free_number_is_ours),
]
"""Of two hosts."""
FLUSH_BUGS = [
    Bug(
        "flush note at once", "a journal with local promises is given up", Destager, "_flush_note", _flush_note_at_once
    ),
]
"""Where the meaning of a flush changes from life to life."""
CLONE_BUGS = [
    Bug("ancestors die", "a clone deletes its parent's objects", ExtentMap, "_bury", _sectors_of_ancestors_die),
    Bug("references ignored", "a parent deletes what its clone needs", sweep.Sweeper, "children", _no_children),
]
"""Of families."""
FLIP_BUGS = [
    Bug("frame checksum ignored", "a flipped bit in an object is returned", frames, "crc32c", _no_checksum),
]
"""These need a store that flips bits."""
