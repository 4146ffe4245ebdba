"""The state of one I_T nexus: the command window, the tasks under way, and the buffers their data arrives in.

One rule: memory is bounded by numbers here. At most `WINDOW` commands are under way, unsolicited data is at
most FirstBurstLength each, and solicited data is asked for (R2T) only when all of a task's rest fits `SOLICITED_BYTES_MAX`.

    task            | in the table | ends by
    waiting for data| yes          | its last byte, an abort
    at the target   | yes          | the target's callback, an abort (the answer is then dropped)
    read answered at once, write complete in its command: never enters the table
"""

from collections.abc import Callable
from typing import Any

from blockdev.iscsi.errors import PeerError, SequenceError
from blockdev.iscsi.pdu import NO_TAG
from blockdev.latency import OTHER, READ, WRITE
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import Buffer, Response

WINDOW = 256
"""Commands an initiator may have under way. QEMU uses up to 128, Linux 128 by default, Windows 255."""

SOLICITED_BYTES_MAX = 64 * 1024 * 1024
"""Per connection; above the largest single transfer (16 MiB), or such a write could never start."""

READING_BYTES_MAX = 128 * 1024 * 1024
"""Per connection: reads that wait for the object store. Beyond it the initiator is told TASK SET FULL."""

POOLED_BYTES = 262144
POOL_SLACK = 8
"""Room for pad bytes and a data digest behind a segment that is received in place."""


class BufferPool:
    """Receive buffers of one burst that are used again: a fresh 256 KiB comes as untouched pages each time, whose
    faults halve the throughput of large writes. One per portal; keeps at most `keep` idle buffers."""

    def __init__(self, keep: int = 64) -> None:
        self._idle: list[bytearray] = []
        self._keep = keep

    def take(self, length: int) -> bytearray:
        """At least `length` + POOL_SLACK bytes, with whatever content."""
        if length > POOLED_BYTES or length < 65536:
            return bytearray(length + POOL_SLACK)
        return self._idle.pop() if self._idle else bytearray(POOLED_BYTES + POOL_SLACK)

    def give(self, buffer: bytearray) -> None:
        """The caller holds no view of it any more."""
        if len(buffer) == POOLED_BYTES + POOL_SLACK and len(self._idle) < self._keep:
            self._idle.append(buffer)


class Burst:
    """One run of data-out that is contiguous: the unsolicited part of a command, or what one R2T asked for."""

    __slots__ = ("buffer", "data_sn", "end", "next", "start", "ttt", "view")

    def __init__(self, start: int, end: int, ttt: int) -> None:
        self.start = start
        self.end = end
        self.next = start
        self.ttt = ttt
        self.data_sn = 0
        self.buffer: bytearray | None = None
        self.view: memoryview | None = None

    def room(self, pool: BufferPool, offset: int, length: int) -> memoryview:
        """Where `length` bytes at `offset` of the task go, with POOL_SLACK bytes behind them."""
        if self.view is None:
            self.buffer = pool.take(self.end - self.start)
            self.view = memoryview(self.buffer)
        at = offset - self.start
        return self.view[at : at + length + POOL_SLACK]


class AtTarget:
    """A command off the fast path, or a read that is waited for. `writes` and `reads` are the direction bits the initiator
    set, `expected` its Expected Data Transfer Length. Called by the target or by `perform` with the outcome."""

    __slots__ = (
        "answer",
        "began",
        "cancel",
        "counted",
        "done",
        "drained",
        "expected",
        "itt",
        "kind",
        "modifies",
        "place",
        "reads",
        "residual",
        "writes",
    )

    def __init__(
        self,
        place: "Place",
        itt: int,
        expected: int,
        *,
        reads: bool,
        writes: bool,
        counted: bool,
        answer: "Callable[[AtTarget, Any], None]",
        began: int = 0,
        kind: int = OTHER,
    ) -> None:
        self.place = place
        self.itt = itt
        self.expected = expected
        self.reads = reads
        self.writes = writes
        self.counted = counted
        """Holds a place in the command window (not an immediate command)."""
        self.answer = answer
        self.began = began
        """When the command came, in nanoseconds of the connection's clock."""
        self.kind = kind
        """What its latency is counted as, see `blockdev.latency`."""
        self.residual = expected if writes else 0
        """Of data-out: offered minus used; negative for an overflow."""
        self.modifies = False
        """What it does changes the medium: its answer waits for a commit."""
        self.done = False
        """Answered or aborted: whatever comes now is dropped."""
        self.cancel: Callable[[], None] | None = None
        """Makes something long end early."""
        self.drained: Callable[[], None] | None = None
        """Called once an aborted task has truly ended."""

    def __call__(self, outcome: Any) -> None:
        self.answer(self, outcome)


class DataOut:
    """A command that waits for its data: `wanted` bytes of those the initiator offers. `then` gets it when they are here."""

    __slots__ = (
        "asked",
        "bursts",
        "done",
        "open_r2ts",
        "r2t_sn",
        "reserved",
        "task",
        "then",
        "unsolicited",
        "wanted",
    )

    def __init__(self, task: AtTarget, wanted: int, then: "Callable[[DataOut], None]") -> None:
        self.task = task
        self.wanted = wanted
        self.then = then
        self.bursts: list[Burst] = []
        self.unsolicited: Burst | None = None
        """Data-Out without R2T is still to come."""
        self.open_r2ts: dict[int, Burst] = {}
        self.asked = 0
        """Bytes that came, or will come, unsolicited or were asked for."""
        self.r2t_sn = 0
        self.reserved = 0
        """Bytes of the connection's budget for solicited data that this task holds."""
        self.done = False

    @property
    def complete(self) -> bool:
        return self.unsolicited is None and not self.open_r2ts and self.asked >= self.wanted

    def parts(self) -> list[Buffer]:
        """The data wanted, in order, as views of the burst buffers. Whole once `complete`."""
        found: list[Buffer] = []
        left = self.wanted
        for burst in self.bursts:
            length = min(burst.end - burst.start, left)
            if length:
                assert burst.view is not None
                found.append(burst.view[:length])
                left -= length
        return found

    def burst_for(self, ttt: int, offset: int, length: int) -> Burst:
        """The burst a Data-Out belongs to. Raises SequenceError if it is not the next piece (DataPDUInOrder=Yes),
        PeerError if nobody asked for it."""
        burst = self.unsolicited if ttt == NO_TAG else self.open_r2ts.get(ttt)
        if burst is None:
            raise PeerError(f"Data-Out for task {self.task.itt:#x} with transfer tag {ttt:#x}, which was not given")
        if offset != burst.next or offset + length > burst.end:
            raise SequenceError(
                f"Data-Out for task {self.task.itt:#x}: {length} bytes at {offset}, due is {burst.next} to {burst.end}"
            )
        return burst

    def buffers(self) -> list[bytearray]:
        """The burst buffers, for the pool once nobody reads the parts any more."""
        return [burst.buffer for burst in self.bursts if burst.buffer is not None]


Task = DataOut | AtTarget


class Place:
    """One LUN as one session sees it, with what the session has staged there and not yet answered."""

    __slots__ = (
        "admit",
        "intake",
        "late",
        "latency",
        "logical",
        "lun",
        "nanoseconds",
        "read_counts",
        "reads",
        "sector_bytes",
        "staged",
        "target",
        "write_counts",
        "writes",
    )

    def __init__(self, logical: LogicalUnit, lun: int) -> None:
        self.logical = logical
        self.lun = lun
        self.target = logical.target
        self.sector_bytes = logical.target.sector_bytes
        self.admit = logical.admit
        self.latency = latency = logical.latency
        self.read_counts, self.write_counts = latency.counts[READ], latency.counts[WRITE]
        self.nanoseconds = latency.nanoseconds
        self.reads = self.writes = 0
        """Answered on the fast path by the receive under way; their latency is one and the same."""
        self.staged: list[int] = []
        """Initiator task tags of writes whose data came with the command."""
        self.late: list[tuple[AtTarget, Response]] = []
        """Other commands that staged something, with their answers."""
        self.intake = 0
        """Bytes written since the target was last asked whether to hold answers back."""
