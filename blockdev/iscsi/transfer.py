"""Data on its way: Data-In cut to what the initiator takes, Data-Out gathered by unsolicited bursts and R2Ts
(RFC 7143 4.2.5, 11.7, 11.8).

One rule: a task's data is asked for only once all that is still missing fits the connection's budget, first come first
served, so that waiting tasks can never block each other half-full.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from blockdev.iscsi.errors import PeerError, SequenceError
from blockdev.iscsi.login import Parameters
from blockdev.iscsi.nexus import POOL_SLACK, SOLICITED_BYTES_MAX, BufferPool, Burst, DataOut
from blockdev.iscsi.outbox import Cutter, Outbox
from blockdev.iscsi.pdu import (
    DATA_IN_STATUS,
    FINAL,
    HEADER,
    NO_TAG,
    OVERFLOW,
    UNDERFLOW,
    Opcode,
    lun_field,
    pack,
)
from blockdev.scsi.operation import Buffer


class Numbers(Protocol):
    """The sequence numbers every answer carries; the session is the real one."""

    stat_sn: int
    exp_cmd_sn: int
    max_cmd_sn: int

    def next_stat_sn(self) -> int: ...


def residual_flags(residual: int) -> tuple[int, int]:
    """(flag bits, count) for expected minus actual length (RFC 7143 11.4.1)."""
    if residual > 0:
        return UNDERFLOW, residual
    if residual < 0:
        return OVERFLOW, -residual
    return 0, 0


def put_data_in(
    outbox: Outbox,
    numbers: Numbers,
    parameters: Parameters,
    itt: int,
    buffers: Sequence[Buffer],
    length: int,
    expected: int,
    status: int | None,
) -> int:
    """Data-In PDUs for `length` bytes of `buffers`, at most `expected` of them; the last carries `status` and the residual
    count, unless `status` is None. Returns how many PDUs (the next DataSN)."""
    send = min(length, expected)
    cutter = Cutter(buffers)
    offset = data_sn = in_burst = 0
    while offset < send:
        size = min(parameters.send_segment_max, send - offset, parameters.max_burst - in_burst)
        in_burst += size
        last = offset + size == send
        flags = count = stat_sn = 0
        if last or in_burst == parameters.max_burst:
            flags, in_burst = FINAL, 0
        if last and status is not None:
            bits, count = residual_flags(expected - length)
            flags |= DATA_IN_STATUS | bits
            stat_sn = numbers.next_stat_sn()
        header = HEADER.pack(
            Opcode.DATA_IN,
            flags,
            0,
            status if last and status is not None else 0,
            size,
            0,
            itt,
            NO_TAG,
            stat_sn,
            numbers.exp_cmd_sn,
            numbers.max_cmd_sn,
            data_sn,
            offset,
            count,
        )
        outbox.put(header, cutter.take(size), size)
        offset += size
        data_sn += 1
    return data_sn


class Inbound:
    """Gathers data-out for one session. `start` and `receive` call `DataOut.then` when a task has all it wants."""

    def __init__(self, outbox: Outbox, numbers: Numbers, parameters: Parameters, pool: BufferPool) -> None:
        self._outbox = outbox
        self._numbers = numbers
        self._parameters = parameters
        self._pool = pool
        self._reserved = 0
        self._queue: deque[DataOut] = deque()
        self._last_tag = 0

    def start(self, out: DataOut, data: memoryview, owned: bytearray | None, *, final: bool) -> None:
        """Begin with the immediate data; without `final`, unsolicited Data-Out follow up to FirstBurstLength.
        `owned`: the buffer `data` lies at the start of, which is ours to keep."""
        limit = len(data) if final else min(self._parameters.first_burst, out.task.expected)
        if limit < len(data):
            raise PeerError(f"{len(data)} bytes of immediate data where {limit} are allowed")
        if limit:
            burst = Burst(0, limit, NO_TAG)
            out.bursts.append(burst)
            if owned is not None and len(owned) >= limit + POOL_SLACK:
                burst.buffer, burst.view = owned, memoryview(owned)
            elif data:
                burst.room(self._pool, 0, len(data))[: len(data)] = data
            burst.next = len(data)
            if not final:
                out.unsolicited = burst
        elif not final:
            raise PeerError("a command of no length announces unsolicited data")
        out.asked = limit
        self._go_on(out)

    def room(self, out: DataOut, ttt: int, offset: int, length: int) -> memoryview:
        """Where the segment of a Data-Out goes, POOL_SLACK bytes longer. Raises PeerError."""
        return out.burst_for(ttt, offset, length).room(self._pool, offset, length)

    def receive(
        self, out: DataOut, ttt: int, offset: int, data_sn: int, length: int, data: memoryview | None, *, final: bool
    ) -> None:
        """One Data-Out; `data` None: it lies in `room` already. Raises PeerError."""
        burst = out.burst_for(ttt, offset, length)
        if data_sn != burst.data_sn:
            raise SequenceError(f"Data-Out for task {out.task.itt:#x} numbered {data_sn}, due is {burst.data_sn}")
        burst.data_sn += 1
        if data is not None and length:
            burst.room(self._pool, offset, length)[:length] = data
        burst.next += length
        if burst is out.unsolicited:
            if not final:
                return
            burst.end = out.asked = burst.next
            out.unsolicited = None
            if not burst.next:
                out.bursts.remove(burst)
        elif burst.next == burst.end:
            del out.open_r2ts[ttt]
        elif final:
            raise SequenceError(f"Data-Out for task {out.task.itt:#x} ends at {burst.next}, asked for was {burst.end}")
        else:
            return
        self._go_on(out)

    def drop(self, out: DataOut) -> None:
        """The task is aborted; data still on its way for it is ignored by the session."""
        out.done = True
        self._release(out)

    def _go_on(self, out: DataOut) -> None:
        if out.unsolicited is not None:
            return
        missing = out.wanted - out.asked
        if missing > 0 and not out.reserved:
            if self._queue or not self._fits(missing):
                self._queue.append(out)
                return
            self._reserve(out, missing)
        self._ask(out)
        if out.complete:
            out.done = True
            self._release(out)
            out.then(out)

    def _fits(self, missing: int) -> bool:
        return not self._reserved or self._reserved + missing <= SOLICITED_BYTES_MAX

    def _reserve(self, out: DataOut, missing: int) -> None:
        out.reserved = missing
        self._reserved += missing

    def _release(self, out: DataOut) -> None:
        self._reserved -= out.reserved
        out.reserved = 0
        while self._queue:
            waiting = self._queue[0]
            missing = waiting.wanted - waiting.asked
            if not waiting.done:
                if not self._fits(missing):
                    return
                self._reserve(waiting, missing)
                self._ask(waiting)
            self._queue.popleft()

    def _ask(self, out: DataOut) -> None:
        """Ready To Transfer, as many as MaxOutstandingR2T allows (RFC 7143 11.8)."""
        numbers = self._numbers
        while out.asked < out.wanted and len(out.open_r2ts) < self._parameters.max_outstanding_r2t:
            size = min(self._parameters.max_burst, out.wanted - out.asked)
            self._last_tag = (self._last_tag + 1) % NO_TAG
            burst = Burst(out.asked, out.asked + size, self._last_tag)
            out.bursts.append(burst)
            out.open_r2ts[burst.ttt] = burst
            self._outbox.put(
                pack(
                    Opcode.R2T,
                    lun=lun_field(out.task.place.lun),
                    itt=out.task.itt,
                    ttt=burst.ttt,
                    # The number of the next status, which this does not use up (RFC 7143 11.8.4).
                    stat_sn=numbers.stat_sn,
                    exp_cmd_sn=numbers.exp_cmd_sn,
                    max_cmd_sn=numbers.max_cmd_sn,
                    r2t_sn=out.r2t_sn,
                    offset=burst.start,
                    desired=size,
                )
            )
            out.r2t_sn += 1
            out.asked += size
