"""The values between a front door and a logical unit.

Life of a command: the door calls `LogicalUnit.begin(cdb, nexus)`, which answers with a `Response` (finished),
a `NeedData` (the door fetches that many bytes of data-out and calls `NeedData.then(data)`, which answers again),
or an `Operation`, which `perform.perform(operation, target, done)` carries out. READ and WRITE are
recognised by the door's fast path through `commands.decode_read_write` and never build more than one object.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from blockdev.target import BlockTarget

Buffer = bytes | bytearray | memoryview


class Status(IntEnum):
    """SAM-5 status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


@dataclass(frozen=True, slots=True)
class Response:
    """A finished command. `data` is data-in (not yet cut to the allocation length the door negotiated);
    `sense` is fixed-format sense data (SPC-4 4.5.3), empty unless CHECK CONDITION."""

    status: Status = Status.GOOD
    data: Sequence[Buffer] = ()
    sense: bytes = b""


@dataclass(frozen=True, slots=True)
class NeedData:
    """The command needs `length` bytes of data-out (with `exact` perhaps none) before it can go on.

    The initiator may have offered another length than the CDB implies (iSCSI: Expected Data Transfer Length). With
    more, the door passes the first `length` bytes and reports the residual; with less, it passes what there is: a
    write then covers the whole sectors that came. With `exact`, neither will do: the door fetches nothing
    and answers `sense.TRANSFER_LENGTH_MISMATCH`."""

    length: int
    then: "Callable[[Buffer], Operation | Response]"
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    lba: int
    count: int


@dataclass(frozen=True, slots=True)
class Write:
    """`data` is whole sectors; `fua` asks for durability before the status; `atomic`: nobody ever sees a part of it."""

    lba: int
    count: int
    data: Sequence[Buffer]
    fua: bool = False
    atomic: bool = False


@dataclass(frozen=True, slots=True)
class Flush:
    pass


@dataclass(frozen=True, slots=True)
class Unmap:
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class WriteSame:
    """`pattern` is one sector, or None for zeros; `unmap` says the initiator asked for deallocation."""

    lba: int
    count: int
    pattern: Buffer | None
    unmap: bool


@dataclass(frozen=True, slots=True)
class CompareAndWrite:
    """Atomic against every other command of the volume: compare `expected`, then write `data`."""

    lba: int
    count: int
    expected: Buffer
    data: Buffer
    fua: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    """`expected` None: medium check only (the range must be readable); else compare byte by byte."""

    lba: int
    count: int
    expected: Buffer | None


@dataclass(frozen=True, slots=True)
class LbaStatus:
    lba: int
    count: int
    allocation_length: int


@dataclass(frozen=True, slots=True)
class OrWrite:
    """Atomic like CompareAndWrite: the new content is the old one OR `data`, bit by bit."""

    lba: int
    count: int
    data: Buffer
    fua: bool = False


@dataclass(frozen=True, slots=True)
class WriteAndVerify:
    """Write, make durable, read back; with `compare`, what is read must equal `data`."""

    lba: int
    count: int
    data: Buffer
    compare: bool


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring the range near. `immediate`: answer before it has come."""

    lba: int
    count: int
    immediate: bool


Later = Callable[[float, Callable[[], None]], object]
"""Call something in so many seconds, on the same thread and never within the call itself."""


@dataclass(slots=True)
class CopyProgress:
    """How far a copy is; RECEIVE COPY RESULTS tells. A door that ends the command calls `cancel`, and the copy ends after the
    piece it is at."""

    segments: int = 0
    bytes: int = 0
    answer: Response | None = None
    """How it ended; None while it is under way."""
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class CopySegment:
    """`length` bytes from one place to another, perhaps of the same volume. `refused` says whether a reservation forbids
    it just now."""

    source: BlockTarget
    source_lba: int
    destination: BlockTarget
    destination_lba: int
    length: int
    refused: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Copy:
    """EXTENDED COPY: the segments, one after the other. `target` is the volume the command came to, `later` None where nobody
    can wait: then the copy runs in one go."""

    segments: tuple[CopySegment, ...]
    target: BlockTarget
    progress: CopyProgress = field(default_factory=CopyProgress)
    later: Later | None = None


@dataclass(frozen=True, slots=True)
class Allocating:
    """`write` of a volume that has used its quota up: carried out where nothing new has to be allocated."""

    write: Write | WriteSame | CompareAndWrite | OrWrite | WriteAndVerify


@dataclass(frozen=True, slots=True)
class ReserveOut:
    """PERSISTENT RESERVE OUT: `carry_out(done)` answers when what it changes is kept as long as was asked for."""

    carry_out: Callable[[Callable[[Response], None]], None]


Operation = (
    Read
    | Write
    | Flush
    | Unmap
    | WriteSame
    | CompareAndWrite
    | Verify
    | LbaStatus
    | OrWrite
    | WriteAndVerify
    | Prefetch
    | Copy
    | Allocating
    | ReserveOut
)
