"""The volume's front: takes writes into the journal, answers reads, acknowledges. The `BlockTarget` of the engine.

One rule: nothing is acknowledged before it is in the journal, and nothing leaves the index before the bucket has it.
One thread, no waiting: what cannot be answered from journal, index or cache is asked of the worker (`misses`), and an
fdatasync runs on the flush thread (`syncer`) or, for one lone connection, inline.

Where a block is, newest first: pieces and blocks in the journal (`local_index`), zero ranges, read cache, bucket.

    write    -> stage record + index                     commit -> one pwritev, then the door may acknowledge
    flush    -> fdatasync of everything committed        worker -> Durable: the bucket has it
    reclaim  -> index entries of durable records dropped, stale cache blocks forgotten, then their place is free

A door's buffers are never reused: every read returns bytes of its own, since nobody can tell when a door has sent them.
`journal.file.keep_freed_memory` makes that as fast as a ring of reused buffers.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from uuid import UUID

from blockdev import errors as block_errors
from blockdev.checksum import block_checksums, crc32c
from blockdev.engine.allocation import AllocatedDone, Allocation
from blockdev.engine.cache import ReadCache
from blockdev.engine.lease import clock as lease_clock
from blockdev.engine.link import (
    Allocated,
    Appended,
    CommitNow,
    Detach,
    Detached,
    Durable,
    Failed,
    Fetched,
    Happened,
    Lease,
    Operate,
    Operated,
    Ready,
    Resized,
    Status,
    Stop,
    Stopped,
    ToFront,
    WorkerLink,
)
from blockdev.engine.local_index import CHECKSUM_MASK, LocalIndex
from blockdev.engine.local_read import ZEROS, LocalReader
from blockdev.engine.misses import GUESSES_MAX, Misses, ReadDone, Waiting, Want
from blockdev.engine.operations import RESERVATIONS
from blockdev.engine.pacing import PACED_FILL, Pacer
from blockdev.engine.readahead import ReadAhead
from blockdev.engine.reclaim import Reclaimer
from blockdev.engine.syncer import Post, Syncer
from blockdev.errors import (
    BlockError,
    Fenced,
    JournalFull,
    LeaseExpired,
    LocalDiskFailed,
    MediumError,
    NotReady,
    Refused,
)
from blockdev.journal.format import MORE, Kind
from blockdev.journal.journal import Journal
from blockdev.target import Buffer
from blockdev.units import BLOCK_BYTES, MIB, Geometry
from s3core import errors as store_errors

log = logging.getLogger(__name__)

_Piece = tuple[int, int, int, list[Buffer], list[int]]
"""(lba, sectors, bytes, buffers, checksums) of one WRITE record."""

FlushDone = Callable[[Exception | None], None]
OperateDone = Callable[[dict[str, Any] | Exception], None]

READ_AHEAD_BYTES = 1 * MIB
"""As far ahead of a stream that is no longer. More only fetches bytes nobody wants: boot traces got slower beyond it."""
READ_AHEAD_BYTES_MAX = 4 * MIB
STREAM_AHEAD_BYTES = 32 * MIB
"""As far ahead of all long streams together: 50 ms at 600 MiB/s."""
STREAM_AHEAD_SHARE = 16
"""And at most this part of the cache. New frames live in a tenth of it until they are used again: what was fetched ahead must
not push itself out."""
READ_AHEAD_PIECE_BYTES = 1 * MIB
"""Fetched ahead by one request, of one extent."""
TELL_BYTES = 1 * MIB
"""New bytes after which the worker is told without waiting for the next tick."""
URGENT_FILL = 0.5
RECLAIM_TICK_BYTES = 256 * 1024
RECLAIM_ROOM_BYTES = 4 * MIB
"""Most one write that finds the journal full gives back itself, before its initiator is told BUSY."""
SAMPLES_MAX = 4096
EARLY_BYTES_MAX = 256 * 1024
"""Most that is sent to the disk ahead of a flush; more at once would hold up this thread."""
_NEVER = 1 << 62


class Front:
    """A volume as front doors see it. Everything it uses is injected; see `start`.

    `flush_to` "s3" makes a flush wait until the bucket has everything. `post` runs a callable on this thread soon, and may be
    called by any; `soon` does the same for who is on this thread, after what is under way is answered. Without it nothing is
    written ahead of a flush.
    `requests_ahead_max` bounds the requests under way for what nobody has asked for yet.
    `on_ready` and `on_stopped` are called when the volume starts to serve and when it stops for good."""

    def __init__(
        self,
        *,
        name: str,
        identity: UUID,
        geometry: Geometry,
        journal: Journal,
        cache: ReadCache,
        link: WorkerLink,
        syncer: Syncer,
        post: Post,
        soon: Post | None = None,
        read_only: bool = False,
        flush_to: Literal["local", "s3"] = "local",
        read_ahead_bytes: int = READ_AHEAD_BYTES,
        requests_ahead_max: int = GUESSES_MAX,
        clock: Callable[[], float] = lease_clock,
    ) -> None:
        if journal.superblock.sector_bytes != geometry.sector_bytes:
            raise ValueError("journal and volume differ in sector size")
        if cache.layout.frame_bytes != geometry.frame_bytes:
            raise ValueError("cache and volume differ in frame size")
        if not 0 <= read_ahead_bytes <= READ_AHEAD_BYTES_MAX:
            raise ValueError(f"read-ahead must be 0 to {READ_AHEAD_BYTES_MAX} bytes, not {read_ahead_bytes}")
        self.name = name
        self.identity = identity
        self.geometry = geometry
        self.sector_bytes = geometry.sector_bytes
        self.sector_count = geometry.sector_count
        self.read_only = read_only
        self.inline_flush = False
        """Set by the daemon while one connection alone is busy: saves the hand-over to the flush thread."""
        self.on_ready: Callable[[], None] = _nothing
        self.on_stopped: Callable[[Exception], None] = _ignore
        self.on_happened: Callable[[Happened], None] = _unheard
        self.sequence = 0
        self.kept_reservations: dict[str, Any] | None = None
        self.allocated_bytes = 0

        self._sectors_per_block = geometry.sectors_per_block
        self._sectors_per_frame = geometry.sectors_per_frame
        self._blocks_per_frame = geometry.blocks_per_frame
        self._journal = journal
        self._cache = cache
        self._link = link
        self._syncer = syncer
        self._post = post
        self._soon = soon
        self._early_at = _NEVER
        """The journal position at which a flush is to be expected, going by the last one."""
        self._flush_to = flush_to
        self._index = LocalIndex(geometry.sector_bytes)
        self._dirty = self._index.dirty
        self._partial = self._index.partial
        self._local = LocalReader(name, geometry, journal, self._index, cache)
        piece_frames = max(1, min(READ_AHEAD_PIECE_BYTES, geometry.extent_bytes) // geometry.frame_bytes)
        self._misses = Misses(
            cache,
            link.send,
            self._local.read_part,
            self._read_frames,
            frame_count=self._frame_count(),
            piece_frames=piece_frames,
            guesses_max=requests_ahead_max,
        )
        self._local.given_up = self._misses.given_up
        self._reclaimer = Reclaimer(geometry, journal, self._index, cache, self._misses.given_up)
        self._allocation = Allocation(self._index, link.send, geometry)
        self._readahead = ReadAhead(
            read_ahead_bytes // geometry.frame_bytes,
            min(STREAM_AHEAD_BYTES // geometry.frame_bytes, cache.layout.slots // STREAM_AHEAD_SHARE),
            piece_frames=piece_frames,
        )
        self._reading_refused: BlockError | None = NotReady(f"volume {name} is still attaching")
        self._writing_refused: BlockError | None = self._reading_refused
        self._ring_bytes = journal.superblock.ring_bytes
        self._margin = self._ring_bytes // 8
        self._paced_bytes = int(PACED_FILL * self._ring_bytes)
        self._pacer = Pacer(self._ring_bytes)
        self._clock = clock
        self._tell_bytes = min(TELL_BYTES, self._ring_bytes // 16)
        self._stopped = False
        self._stopped_by: BlockError | None = None
        self._lease_until = math.inf
        self._lapsed = False
        """Whether the lease was out at the last tick: then writes are not even taken, since they could not be answered."""
        self._operating: dict[int, OperateDone] = {}
        self._next_operation = 1
        self._told = 0
        self._told_urgent = False
        self._starved = False
        self._flushes: dict[int, FlushDone] = {}
        self._next_flush = 1
        self._durable_flushes: deque[tuple[int, FlushDone]] = deque()
        self._detach_done: FlushDone | None = None
        self._samples: deque[tuple[int, float]] = deque()
        self._now = 0.0

        self.reads = self.read_bytes = self.missed_reads = 0
        self.writes = self.write_bytes = self.discards = self.flushes = self.refused_full = 0
        self.worker_counters: dict[str, float] = {}
        link.on_message = self.on_message

    def _frame_count(self) -> int:
        return -(-self.sector_count // self._sectors_per_frame)

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self, ready: Ready) -> None:
        """Recover the journal from where the bucket ends, rebuild the index, serve. Raises CorruptJournal,
        LocalDiskFailed; then the volume stays not ready."""
        journal = self._journal
        journal.take_up(ready.position, ready.epoch, self._index.replay)
        self._local.durable = self._told = ready.position
        self.sequence = ready.sequence
        self.kept_reservations = ready.reservations
        self._lease_until = ready.lease_until
        self.resized(ready.size_bytes)
        self._reading_refused = None
        self._writing_refused = NotReady(f"volume {self.name} is read-only") if self.read_only else None
        self._tell()
        self.on_ready()

    def resized(self, size_bytes: int) -> None:
        """The volume has this size from now on; doors see it in `sector_count`. What was read or fetched before stays
        right: the part of a last frame that lay beyond the old end is zeros."""
        self.geometry = replace(self.geometry, size_bytes=size_bytes)
        self.sector_count = self.geometry.sector_count
        self._misses.frame_count = self._frame_count()

    def stop(self, error: BlockError) -> None:
        """Acknowledge nothing from now on: every waiting call gets `error`, every later one its like. Idempotent."""
        if self._stopped:
            if self._stopped_by is None:
                return
            error, self._stopped_by = self._stopped_by, None
            self.on_stopped(error)
            return
        log.error("volume %s stops: %s", self.name, error)
        self._end(error)
        self.on_stopped(error)

    def _end(self, error: BlockError) -> None:
        self._stopped = True
        self._reading_refused = self._writing_refused = error
        self._misses.fail_all(error)
        flushes, self._flushes = self._flushes, {}
        for done in flushes.values():
            done(error)
        waiting, self._durable_flushes = self._durable_flushes, deque()
        for _, done in waiting:
            done(error)
        self._allocation.fail_all(error)
        operating, self._operating = self._operating, {}
        for operated in operating.values():
            operated(error)
        if self._detach_done is not None:
            self._detach_done(error)

    def _stop_for(self, error: BlockError) -> None:
        """Another writer has the volume: stop, then say so, so that it need not wait for our lease. The worker ends by
        itself afterwards."""
        log.error("volume %s stops: %s", self.name, error)
        self._end(error)
        self._stopped_by = error
        self._link.send(Stopped())

    # --- the lease -----------------------------------------------------------------------------------------------

    def _lease_is_out(self) -> bool:
        """Whether somebody else may have the volume by now. Asked right before anything is acknowledged."""
        return self._clock() >= self._lease_until

    def _out_of_lease(self) -> LeaseExpired:
        return LeaseExpired(
            f"volume {self.name}: the store has not been heard from for the time of a lease, so another host may have "
            "the volume by now",
            hint="it goes on by itself when the store answers and nobody took over",
        )

    # --- operations ----------------------------------------------------------------------------------------------

    def operate(self, name: str, arguments: dict[str, Any], done: OperateDone) -> None:
        """Have the worker do something to the volume as a whole, after everything acknowledged so far is in the bucket:
        see `engine.operations`. `done` gets the result, or what was raised."""
        try:
            self._append()
        except BlockError as error:
            done(error)
            return
        if self._reading_refused is not None:
            done(_again(self._reading_refused))
            return
        if name == "rollback" or (name == "resize" and arguments.get("shrink")):
            done(Refused(f"{name} changes what initiators have read; the volume is being served", hint="stop it first"))
            return
        self._tell()
        self._ask(name, arguments, done)

    def _ask(self, name: str, arguments: dict[str, Any], done: OperateDone) -> None:
        number = self._next_operation
        self._next_operation += 1
        self._operating[number] = done
        self._link.send(Operate(number, name, arguments))

    def keep_reservations(self, state: dict[str, Any] | None, done: FlushDone) -> None:
        if self._reading_refused is not None:
            done(_again(self._reading_refused))
            return

        def kept(result: dict[str, Any] | Exception) -> None:
            if isinstance(result, Exception):
                done(result if isinstance(result, BlockError) else NotReady(str(result)))
                return
            self.kept_reservations = state
            done(self._out_of_lease() if self._lease_is_out() else None)

        self._ask(RESERVATIONS, {"state": state}, kept)

    def _operated(self, message: Operated) -> None:
        done = self._operating.pop(message.id, None)
        if done is not None:
            done(_rebuilt(message) if message.kind else message.result)

    def detach(self, done: FlushDone) -> None:
        """Stop taking writes, let the worker carry everything to the bucket, then call `done(None)`, or `done(error)`
        if the volume fails before."""
        try:
            self._append()
        except BlockError as error:
            done(error)
            return
        if self._stopped or self._detach_done is not None:
            done(NotReady(f"volume {self.name} is stopping already"))
            return
        self._detach_done = done
        self._writing_refused = NotReady(f"volume {self.name} is being detached")
        self._tell()
        self._link.send(Detach())

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, lba: int, count: int, done: ReadDone) -> list[Buffer] | None:
        if self._reading_refused is not None:
            self._fail_later(done, _again(self._reading_refused))
            return None
        if self._clock() >= self._lease_until:
            self._fail_later(done, self._out_of_lease())
            return None
        journal = self._journal
        if journal.tail != journal.head:
            try:
                self._append()
            except BlockError as error:
                self._fail_later(done, error)
                return None
        self.reads += 1
        per_block = self._sectors_per_block
        if count == per_block and not lba % per_block:
            # One block, the case that must be fast: one lookup, one pread, one checksum.
            block = lba // per_block
            self.read_bytes += BLOCK_BYTES
            entry = self._dirty.get(block)
            data: bytes | None
            if entry is not None:
                if not self._partial or block not in self._partial:
                    try:
                        data = journal.read(entry >> 32, BLOCK_BYTES)
                    except LocalDiskFailed:
                        data = b""  # the general read tries again and says what is wrong
                    if crc32c(data) == entry & CHECKSUM_MASK:
                        return [data]
            elif (not self._partial or block not in self._partial) and not self._index.zeros.covers(block):
                frame, index = divmod(block, self._blocks_per_frame)
                data = self._cache.read_block(frame, index)
                if data is not None:
                    if index == self._blocks_per_frame - 1:
                        self._look_ahead(frame, frame)
                    return [data]
        else:
            self.read_bytes += count * self.sector_bytes
        return self._read_frames(lba, count, done)

    def _read_frames(self, lba: int, count: int, done: ReadDone) -> list[Buffer] | None:
        """The general read, by runs of whole frames where it can be, else frame by frame; what is missing is fetched with one
        message."""
        per_frame = self._sectors_per_frame
        end = lba + count
        waiting = Waiting(done, lba, end)
        first = lba
        try:
            while first < end:
                frame, within = divmod(first, per_frame)
                if not within and end - first >= per_frame:
                    run = self._local.read_frames(frame, end // per_frame)
                    if run is not None:
                        waiting.parts.append([run])
                        first += len(run) // self.sector_bytes
                        continue
                stop = min(end, (frame + 1) * per_frame)
                buffers = self._local.read_part(frame, first, stop)
                if buffers is None:
                    self._misses.wait(frame, Want(waiting, len(waiting.parts), first, stop))
                waiting.parts.append(buffers)
                first = stop
        except BlockError as error:
            waiting.over = True
            self._misses.send()
            self._fail_later(done, error)
            return None
        if waiting.missing:
            self.missed_reads += 1
            self._misses.send()
        if not end % per_frame:
            self._look_ahead(lba // per_frame, end // per_frame - 1)
        if waiting.missing:
            return None
        return [buffer for part in waiting.parts for buffer in part or ()]

    def _look_ahead(self, first: int, last: int) -> None:
        wanted = self._readahead.finished(first, last, self._misses.room_ahead)
        if wanted is not None:
            self._misses.read_ahead(*wanted)

    def _fail_later(self, done: Callable[[BlockError], None], error: BlockError) -> None:
        """`read` promises that `done` is not called before it returns."""
        self._post(lambda: done(error))

    # --- writing ------------------------------------------------------------------------------------------------

    def write(self, lba: int, data: Sequence[Buffer]) -> None:
        if self._writing_refused is not None:
            raise _again(self._writing_refused)
        if self._lapsed:
            raise self._out_of_lease()
        per_block = self._sectors_per_block
        if len(data) == 1 and len(data[0]) == BLOCK_BYTES and not lba % per_block:
            checksum = crc32c(data[0])
            try:
                position = self._journal.stage_write(lba, per_block, data, BLOCK_BYTES, (checksum,))
            except JournalFull:
                self._make_room([BLOCK_BYTES + 80])
                position = self._journal.stage_write(lba, per_block, data, BLOCK_BYTES, (checksum,))
            block = lba // per_block
            self._dirty[block] = position << 32 | checksum
            if self._partial:
                self._partial.pop(block, None)
            self.write_bytes += BLOCK_BYTES
        else:
            self.write_bytes += self._write_run(lba, data)
        self.writes += 1

    def write_atomic(self, lba: int, data: Sequence[Buffer]) -> None:
        # The records of one command are recovered, and committed to the bucket, all or none (MORE). What is left are reads that
        # have a part of the range in hand and wait for another.
        self.write(lba, data)
        self._misses.disturb(lba, lba + sum(map(len, data)) // self.sector_bytes)

    def _write_run(self, lba: int, data: Sequence[Buffer]) -> int:
        """A write of any shape, as one record (more only if it is larger than the journal takes). Its size."""
        size = sum(map(len, data))
        sectors, rest = divmod(size, self.sector_bytes)
        if rest or not sectors:
            raise ValueError(f"a write of {size} bytes is not whole sectors")
        pieces = self._pieces(lba, sectors, list(data))
        self._make_room([self._journal.record_bytes(len(sums), length) for _, _, length, _, sums in pieces])
        self._stage(pieces)
        return size

    def _pieces(self, lba: int, sectors: int, buffers: list[Buffer]) -> list[_Piece]:
        """The records of one write. Appends what is staged where it has to look at it."""
        first, count = lba, sectors
        before, after = lba % self._sectors_per_block, -(lba + sectors) % self._sectors_per_block
        if before or after:
            # Where the rest of a cut block is at hand the whole block is journalled, so reads stay simple.
            if before and (head := self._local_block(lba)) is not None:
                buffers.insert(0, memoryview(head)[: before * self.sector_bytes])
                first, count = lba - before, count + before
            if after and (tail := self._local_block(lba + sectors)) is not None:
                buffers.append(memoryview(tail)[BLOCK_BYTES - after * self.sector_bytes :])
                count += after
        return self._split(first, count, buffers, block_checksums(buffers, first * self.sector_bytes))

    def _stage(self, pieces: list[_Piece], *, more: bool = False) -> None:
        """Stage the records of one command, or of a part of it that is followed by `more`."""
        for left, (start, run, length, parts, sums) in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
            position = self._journal.stage_write(start, run, parts, length, sums, MORE if left or more else 0)
            self._index.write(start, run, position, sums)

    def _split(self, lba: int, sectors: int, buffers: list[Buffer], checksums: list[int]) -> list[_Piece]:
        """The records for one write, cut at block boundaries."""
        most = self._journal.data_bytes_max
        length = sectors * self.sector_bytes
        if length <= most:
            return [(lba, sectors, length, buffers, checksums)]
        pieces: list[_Piece] = []
        whole = memoryview(b"".join(buffers))
        step = most - BLOCK_BYTES  # leaves room for a cut first block
        begin = 0
        while begin < length:
            first_byte = lba * self.sector_bytes + begin
            end = min(length, begin + step - first_byte % BLOCK_BYTES)
            start_block = first_byte // BLOCK_BYTES - lba * self.sector_bytes // BLOCK_BYTES
            count = -(-(first_byte + end - begin) // BLOCK_BYTES) - first_byte // BLOCK_BYTES
            pieces.append(
                (
                    first_byte // self.sector_bytes,
                    (end - begin) // self.sector_bytes,
                    end - begin,
                    [whole[begin:end]],
                    checksums[start_block : start_block + count],
                )
            )
            begin = end
        return pieces

    def _local_block(self, lba: int) -> Buffer | None:
        """The whole block around a sector if all of it is here and sound."""
        self._append()  # what is staged cannot be read back yet
        block = lba // self._sectors_per_block
        try:
            buffers = self._local.read_blocks(block // self._blocks_per_frame, block, block + 1)
        except MediumError:
            return None  # already counted; the write itself goes on as a piece over it
        return None if buffers is None else buffers[0]

    def write_zeroes(self, lba: int, count: int, *, may_unmap: bool = True) -> None:
        self._zero([(lba, count)], Kind.UNMAP if may_unmap else Kind.ZERO)

    def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._zero(ranges, Kind.UNMAP)

    def _zero(self, ranges: Sequence[tuple[int, int]], kind: Kind) -> None:
        if self._writing_refused is not None:
            raise _again(self._writing_refused)
        if self._lapsed:
            raise self._out_of_lease()
        per_block = self._sectors_per_block
        steps: list[tuple[list[tuple[int, int]], int, int]] = []
        sizes: list[int] = []
        for lba, count in ranges:
            end = lba + count
            first, last = -(-lba // per_block) * per_block, end // per_block * per_block
            # Blocks that are only partly inside are written with zeros, as the format takes whole blocks alone.
            edges = [(lba, first), (last, end)] if first <= last else [(lba, end)]
            edges = [(start, stop) for start, stop in edges if start < stop]
            steps.append((edges, first, max(first, last)))
            sizes += [self._journal.record_bytes(1, BLOCK_BYTES)] * len(edges)
            sizes += [self._journal.record_bytes(0, 0)] * (first < last)
        self._make_room(sizes)
        for edges, first, last in steps:
            # All of a range before its first record is staged: looking at cut blocks appends what is.
            pieces = [
                self._pieces(start, stop - start, [ZEROS[: (stop - start) * self.sector_bytes]])[0]
                for start, stop in edges
            ]
            self._stage(pieces, more=first < last)
            if first < last:
                position = self._journal.stage_range(kind, first, last - first)
                self._index.discard(first // per_block, last // per_block, position)
        self.discards += len(ranges)

    def _make_room(self, sizes: list[int]) -> None:
        """Room for records of these sizes, from what the bucket has already. Raises JournalFull; the worker is told to
        hurry then."""
        journal = self._journal
        budget = RECLAIM_ROOM_BYTES
        while True:
            try:
                journal.require(sizes)
                return
            except JournalFull:
                if budget <= 0 or journal.reclaimed >= self._local.durable:
                    self._starved = True
                    self.refused_full += 1
                    raise
                self._reclaimer.step(self._local.durable, RECLAIM_TICK_BYTES)
                budget -= RECLAIM_TICK_BYTES

    def commit(self) -> None:
        self._append()
        # After the append: a process that was stopped in it must not acknowledge what it wrote.
        if self._clock() >= self._lease_until:
            raise self._out_of_lease()

    def _append(self) -> None:
        """`commit` without the question whether it may be acknowledged: for whoever only has to see what is staged."""
        journal = self._journal
        if self._stopped:
            raise _again(self._reading_refused)
        appended = journal.tail - journal.head
        if not appended:
            return
        try:
            journal.append()
        except LocalDiskFailed as error:
            self.stop(error)
            raise
        if journal.head >= self._early_at and self._soon is not None:
            self._early_at = _NEVER
            self._soon(self._write_early)
        if journal.head - self._told >= self._tell_bytes:
            self._tell()
        if journal.room < self._margin:
            # Twice what was taken, so that the margin is won back as fast as it is used, whatever the load.
            self._reclaimer.step(self._local.durable, 2 * appended)

    def hold_back(self, bytes: int) -> float:
        backlog = self._journal.head - self._local.durable
        if backlog < self._paced_bytes:
            return 0.0
        return self._pacer.hold(bytes, backlog / self._ring_bytes, self._clock())

    # --- durability ---------------------------------------------------------------------------------------------

    def flush(self, done: FlushDone) -> None:
        self.flushes += 1
        try:
            self.commit()
        except BlockError as error:
            done(error)
            return
        if self._reading_refused is not None:
            done(_again(self._reading_refused))
            return
        journal = self._journal
        if self._flush_to == "s3":
            if self._local.durable >= journal.head:
                self._answer_flush(done)
                return
            # The worker carries all there is to the bucket with one commit after the other: whoever asks for what was
            # asked for already, or while a commit is under way, shares one.
            asked = self._durable_flushes[-1][0] if self._durable_flushes else 0
            self._durable_flushes.append((journal.head, done))
            if asked < journal.head:
                self._tell()
                self._link.send(CommitNow(journal.head))
            return
        size = journal.head - journal.synced
        if not size:
            self._answer_flush(done)
            return
        self._early_at = journal.head + size if size <= EARLY_BYTES_MAX else _NEVER
        if self.inline_flush and not self._syncer.busy:
            try:
                journal.sync()
            except LocalDiskFailed as error:
                self.stop(error)
                done(error)
            else:
                self._answer_flush(done)
        else:
            token = self._next_flush
            self._next_flush += 1
            self._flushes[token] = done
            self._syncer.sync(partial(self._flushed, token))

    def _write_early(self) -> None:
        """As much was appended as the last flush had to sync, so the next one is likely on its way. The disk begins before it
        comes: of the two things an fdatasync waits for, data and the disk's own cache, the first is then done."""
        size = self._journal.head - self._journal.synced
        if not self._stopped and 0 < size <= EARLY_BYTES_MAX:
            self._journal.begin_writing()

    def _flushed(self, token: int, position: int, failure: LocalDiskFailed | None) -> None:
        if failure is not None:
            self.stop(failure)  # answers this flush and all the others
            return
        self._journal.mark_synced(position)
        done = self._flushes.pop(token, None)
        if done is not None:
            self._answer_flush(done)

    def _answer_flush(self, done: FlushDone) -> None:
        done(self._out_of_lease() if self._lease_is_out() else None)

    def _durable(self, message: Durable) -> None:
        journal = self._journal
        if not self._local.durable <= message.position <= journal.head:
            raise ValueError(
                f"the worker says {message.position} is in the bucket; "
                f"{self._local.durable} was, {journal.head} is the journal's head"
            )
        self._local.durable = message.position
        self._pacer.drain.note(self._clock(), message.position)
        self.sequence = message.sequence
        if self._told_urgent and journal.head - message.position < URGENT_FILL * self._ring_bytes:
            # Nobody may write for long after a burst: without a word the worker would hurry, and not collect, until then.
            self._tell()
        samples = self._samples
        while samples and samples[0][0] <= message.position:
            samples.popleft()
        while self._durable_flushes and self._durable_flushes[0][0] <= message.position:
            self._answer_flush(self._durable_flushes.popleft()[1])

    # --- the worker ---------------------------------------------------------------------------------------------

    def on_message(self, message: ToFront) -> None:
        """Called by the link for everything the worker says, on this thread."""
        if isinstance(message, Happened):
            self.on_happened(message)
            return
        if self._stopped:
            if isinstance(message, Failed) and self._stopped_by is not None:
                self.stop(self._stopped_by)
            return
        match message:
            case Fetched():
                self._fetched(message)
            case Durable():
                self._durable(message)
            case Status():
                self.worker_counters = message.counters
                mapped = int(message.counters.get("extents_mapped", 0))
                self.allocated_bytes = mapped * self.geometry.extent_bytes
            case Allocated():
                self._allocation.answered(message)
            case Ready():
                try:
                    self.start(message)
                except BlockError as error:
                    self.stop(error)
            case Lease(until):
                self._lease_until = until
                self._lapsed = self._lease_is_out()
            case Resized(size_bytes):
                self.resized(size_bytes)
            case Operated():
                self._operated(message)
            case Stop(said):
                self._stop_for(_taken_over(self.name, said))
            case Failed():
                self.stop(_worker_failure(self.name, message))
            case Detached():
                done, self._detach_done = self._detach_done, None
                detached = NotReady(f"volume {self.name} is detached")
                self._end(detached)
                self.on_stopped(detached)
                if done is not None:
                    done(None)

    def _fetched(self, message: Fetched) -> None:
        try:
            self._append()  # the reads that are answered now see what is staged, which is not in the file yet
        except BlockError:
            return  # the volume has stopped and every read was told
        self._misses.fetched(message, self._out_of_lease() if self._lease_is_out() else None)

    def _tell(self) -> None:
        """Let the worker know how far the journal goes."""
        head = self._journal.head
        self._told = head
        self._told_urgent = urgent = self._starved or head - self._local.durable >= URGENT_FILL * self._ring_bytes
        self._starved = False
        self._link.send(Appended(head, urgent))

    def tick(self, now: float) -> None:
        """Housekeeping, from the daemon every 50 to 100 ms; `now` is any clock in seconds that only goes forward."""
        self._now = now
        self._lapsed = self._lease_is_out()
        if self._reading_refused is not None:
            return
        journal = self._journal
        if journal.head != self._told or self._starved:
            self._tell()
        samples = self._samples
        if journal.head > max(self._local.durable, samples[-1][0] if samples else 0):
            if not samples:
                self._pacer.drain.begin(self._clock(), self._local.durable)
            elif len(samples) == SAMPLES_MAX:
                # An outage of minutes: half the resolution is enough from here. Each pair keeps its older time, so that
                # what is told is never younger than what is true.
                pairs = list(samples)
                times, positions = pairs[::2], pairs[1::2]
                self._samples = samples = deque(
                    (at, since) for (at, _), (_, since) in zip(positions, times, strict=True)
                )
            samples.append((journal.head, now))
        if journal.room < self._margin:
            self._reclaimer.step(self._local.durable, RECLAIM_TICK_BYTES)
        if journal.synced > self._local.durable:
            try:
                journal.note_synced()
            except LocalDiskFailed as error:
                self.stop(error)
                return
        self._misses.send()

    def allocated(self, lba: int, count: int, done: AllocatedDone) -> None:
        try:
            self.commit()
        except BlockError as error:
            done(error)
            return
        if self._reading_refused is not None:
            done(_again(self._reading_refused))
            return
        self._allocation.ask(lba, count, self._journal.head, done)

    # --- for people ---------------------------------------------------------------------------------------------

    @property
    def durable(self) -> int:
        """The bucket has everything before this journal position."""
        return self._local.durable

    @property
    def journal_fill(self) -> float:
        """Share of the journal that the bucket does not have yet, 0 to 1."""
        return (self._journal.tail - self._local.durable) / self._ring_bytes

    def snapshot(self) -> dict[str, float]:
        """Counters and gauges since start, by name; bytes and seconds."""
        cache, misses, journal = self._cache, self._misses, self._journal
        return {
            "reads": self.reads,
            "read_bytes": self.read_bytes,
            "read_hits": self.reads - self.missed_reads,
            "read_misses": self.missed_reads,
            "writes": self.writes,
            "write_bytes": self.write_bytes,
            "discards": self.discards,
            "flushes": self.flushes,
            "writes_refused_full": self.refused_full,
            "writes_held_seconds": self._pacer.held_s,
            "journal_fill": self.journal_fill,
            "journal_head": journal.head,
            "journal_reclaimed": journal.reclaimed,
            "rpo_bytes": journal.head - self._local.durable,
            "rpo_seconds": self._now - self._samples[0][1] if self._samples else 0.0,
            "lease_seconds_left": max(0.0, min(self._lease_until - self._clock(), 1e9)),
            "dirty_blocks": len(self._index.dirty),
            "zero_ranges": len(self._index.zeros),
            "corrupt_journal_blocks": self._local.corrupt_blocks,
            "damaged_cache_blocks": cache.damaged_blocks,
            "cache_evictions": cache.evictions,
            "fetches_under_way": len(misses),
            "fetched_frames": misses.fetched_frames,
            "refetched_frames": misses.refetched_frames,
            "readahead_frames": misses.readahead_frames,
            "corrupt_frames": misses.corrupt_frames,
        }


def _again(error: BlockError | None) -> BlockError:
    """The same error anew: an exception that is raised twice keeps growing its traceback."""
    if error is None:
        raise AssertionError("nothing is refused")
    return type(error)(Exception.__str__(error), hint=error.hint)


def _worker_failure(name: str, message: Failed) -> BlockError:
    if message.kind == "fenced":
        return _taken_over(name, message.message)
    return NotReady(f"volume {name} cannot go on ({message.kind}): {message.message}", hint="see the worker's log")


def _taken_over(name: str, said: str) -> Fenced:
    return Fenced(
        f"volume {name} was taken over: {said}", hint="stop here; if this host should have it back, attach again"
    )


def _rebuilt(message: Operated) -> Exception:
    """What the worker raised, or as near as can be told."""
    for module in (block_errors, store_errors):
        found = getattr(module, message.kind, None)
        if isinstance(found, type) and issubclass(found, BlockError | store_errors.StoreError):
            return found(message.error)
    return NotReady(f"{message.kind}: {message.error}")


def _nothing() -> None:
    """Default of `on_ready`."""


def _ignore(error: Exception) -> None:
    """Default of `on_stopped`."""


def _unheard(message: Happened) -> None:
    """Default of `on_happened`."""
