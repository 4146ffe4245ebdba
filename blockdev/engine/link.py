"""The messages between a volume's front and its worker, and the port that carries them.

Front and worker are two processes joined by a socket pair; in the simulation they are two objects on one loop. Order is
kept in each direction. Nothing here is durable: after a crash of either both are started anew.

Cache slots: the *front* owns the read cache's bookkeeping and hands out slots; the *worker* writes fetched frames into
the slots it was given and never anywhere else. A slot named in a `Fetch` belongs to the worker until `Fetched`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Appended:
    """front -> worker: journal records are complete in the file up to this position (not necessarily synced).
    `urgent`: the journal is filling; commit now and raise the priority."""

    position: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class FetchFrame:
    """One frame wanted. `slot` is where to write it. `as_of` >= 0: the slot already holds this frame as it was after
    commit number `as_of` (from before a restart); say whether that is still the committed content."""

    frame: int
    slot: int
    as_of: int = -1


@dataclass(frozen=True, slots=True)
class Fetch:
    """front -> worker: bring these frames (of any extents). `id` comes back in `Fetched`, possibly in several parts.
    `speculative`: no read wanted them when they were asked for, so nothing is tried for long. `awaited`: a host waits, for
    these or for others asked for before."""

    id: int
    frames: tuple[FetchFrame, ...]
    speculative: bool = False
    awaited: bool = True


@dataclass(frozen=True, slots=True)
class FetchedFrame:
    """The outcome for one frame.

    `state`: "data" (the slot holds it now), "kept" (the slot's old content is current), "zero" (unwritten or discarded;
    the slot was not touched), "corrupt" or "unreachable" (`error` says what; the slot was not touched).
    `crcs`: CRC32C of each 4 KiB block for "data". `as_of`: number of the commit the content is from."""

    frame: int
    slot: int
    state: str
    crcs: tuple[int, ...] = ()
    as_of: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """worker -> front. `covered`: the journal position the map stood at when the frames were looked up; writes at or
    after it are not in these frames and must still be in the front's index, else the front asks again."""

    id: int
    covered: int
    frames: tuple[FetchedFrame, ...]


@dataclass(frozen=True, slots=True)
class Durable:
    """worker -> front: everything before `position` is in the bucket, as commit `sequence`, written at Unix `time`."""

    position: int
    sequence: int
    time: float


@dataclass(frozen=True, slots=True)
class CommitNow:
    """front -> worker: carry everything up to `position` to the bucket without waiting for the trigger
    (orderly stop, flush to S3)."""

    position: int


@dataclass(frozen=True, slots=True)
class Detach:
    """front -> worker: nothing more will be appended; commit the rest, write a checkpoint and the detach record, stop."""


@dataclass(frozen=True, slots=True)
class Detached:
    """worker -> front: done; the volume is clean in the bucket."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """worker -> front: answer to `AskAllocated`: (first sector, count, mapped) runs."""

    id: int
    runs: tuple[tuple[int, int, bool], ...]


@dataclass(frozen=True, slots=True)
class AskAllocated:
    """front -> worker: which parts of the range does the committed map hold?"""

    id: int
    lba: int
    count: int


@dataclass(frozen=True, slots=True)
class Operate:
    """front -> worker: carry out an operation on the volume (a snapshot, a new size, ...), once the bucket has everything
    that was announced before. `id` comes back in `Operated`; `operations` has the names and their arguments."""

    id: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Operated:
    """worker -> front: the operation's result; or, with `kind` not empty, the name of the exception it ended with and
    what it said. The volume goes on either way."""

    id: int
    result: dict[str, Any]
    error: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """worker -> front: the volume is attached; replay what the journal holds from `position` on.
    Nothing before `position` may be reclaimed or acknowledged differently. `lease_until`: as in `Lease`. `reservations`: the
    persistent ones that are kept."""

    position: int
    sequence: int
    epoch: int
    size_bytes: int
    lease_until: float = math.inf
    reservations: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """worker -> front: nothing may be acknowledged, nor read, after `until` on `lease.clock`."""

    until: float


@dataclass(frozen=True, slots=True)
class Stop:
    """worker -> front: another writer has the volume; acknowledge nothing more, then say `Stopped`."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """front -> worker: nothing is acknowledged any more, whatever the lease says."""


@dataclass(frozen=True, slots=True)
class Resized:
    """worker -> front: the volume has this size from now on."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """worker -> front: the worker cannot go on. `kind` is "fenced", "corrupt", "local", "store" or "bug"."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Happened:
    """worker -> front: something was done to the volume as a whole, for a ledger where there is one. Nobody answers, and
    nothing waits for it. `detail` holds text, whole numbers, and lists and mappings of them."""

    event: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """worker -> front, about once a second: counters for people (`s3block info`, metrics)."""

    counters: dict[str, float]


@dataclass(frozen=True, slots=True)
class Alive:
    """worker -> daemon, every second from `Ready` on: its loop turns, whatever the store does. `progress` grows with every
    request that brought the worker on."""

    progress: int


ToWorker = Appended | Fetch | CommitNow | Detach | AskAllocated | Operate | Stopped
ToFront = (
    Fetched | Durable | Detached | Allocated | Ready | Failed | Status | Lease | Stop | Resized | Operated | Happened
)


class WorkerLink(Protocol):
    """The front's end. `send` never blocks (it queues); `on_message` is set by the front before the first turn and
    called on the front's thread."""

    on_message: Callable[[ToFront], None]

    def send(self, message: ToWorker) -> None: ...
