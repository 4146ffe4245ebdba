"""The planted bugs: each replaces one function of the engine (or of a port) for as long as it is planted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from blockdev.engine import cache, destager, link, plan
from blockdev.engine.attach import Attacher
from blockdev.engine.cache import ReadCache
from blockdev.engine.destager import Destager
from blockdev.engine.front import Front
from blockdev.engine.log import CommitLog
from blockdev.engine.misses import Misses
from blockdev.engine.reclaim import Reclaimer
from blockdev.engine.worker import Worker
from blockdev.errors import BlockError, Fenced
from blockdev.journal import reader
from blockdev.journal.format import ALIGNMENT, BadRecord, Kind, Record
from blockdev.journal.journal import Journal
from blockdev.journal.reader import READ_BYTES, RecordScanner
from blockdev.segments import frames, paths
from blockdev.segments.record import NO_DIGEST
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


async def _map_before_record(found: Destager, made: Any, inline: Sequence[Any], sizes: dict[Any, int]) -> None:
    parts, digest, inline_offset = destager.record.encode(made, inline)
    found._map.apply(made, digest, inline_offset, sizes)
    await found._log.append(made.seq, parts, made.nonce)
    found.last_record_bytes = sum(len(part) for part in parts)


_turn = Worker._turn


async def _durable_before_record(worker: Worker) -> bool:
    state = worker._map.state
    if state is not None and worker._head > state.end and not worker._detaching:
        worker._send(link.Durable(worker._head, state.seq, 0.0))
    return await _turn(worker)


async def _record_before_objects(found: Destager, key: str, parts: Sequence[Any], *, keep: bool = True) -> None:
    """Sends the upload and does not wait for it."""
    found._background = getattr(found, "_background", [])  # type: ignore[attr-defined]  # held, so that it runs
    found._background.append(  # type: ignore[attr-defined]
        destager.asyncio.ensure_future(_upload(found, key, parts, keep=keep))
    )


_upload = Destager.upload
_encode_record = destager.record.encode


def _wrong_parent(made: Any, inline: Sequence[Any] = ()) -> Any:
    return _encode_record(replace(made, parent=NO_DIGEST), inline)


_pieces = plan._pieces


def _zeros_left_out(extent: int, overlay: Any, geometry: Any, *, skip_zeros: bool) -> Any:
    return _pieces(extent, overlay, geometry, skip_zeros=True)


_may_attach = Attacher.may_attach


def _loss_not_asked(attacher: Attacher, *arguments: Any, **options: Any) -> bool:
    """Starts a new journal wherever the old one is not."""
    return _may_attach(attacher, *arguments, **(options | {"accept_loss": True}))


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
    Bug("wrong parent", "records do not form a chain", destager.record, "encode", _wrong_parent),
    Bug("zeros left out", "zeros over an extent object are not committed", plan, "_pieces", _zeros_left_out),
    Bug(
        "loss not asked",
        "a lost journal is replaced and nobody is told",
        Attacher,
        "may_attach",
        _loss_not_asked,
    ),
]
FLIP_BUGS = [
    Bug("frame checksum ignored", "a flipped bit in an object is returned", frames, "crc32c", _no_checksum),
]
"""These need a store that flips bits."""
