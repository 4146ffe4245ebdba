"""What a front door (iSCSI portal, TCMU) may ask of a volume, and what it is promised.

One rule: a front door runs on one thread, the volume's front thread, and never waits. A call either
finishes at once or takes a `done` callback that is called later *on the same thread*.

Writes are staged by `write`, `write_zeroes` and `unmap` and become acknowledgeable when `commit` returns; a door
calls `commit` once for everything one receive brought, then sends its replies. A read or a flush
issued after staged writes sees them (it commits first where it must).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

Buffer = bytes | bytearray | memoryview


class BlockTarget(Protocol):
    @property
    def name(self) -> str:
        """The volume's name, for logs and the SCSI product or IQN."""
        ...

    @property
    def identity(self) -> UUID:
        """Stable over fail-over and restore; source of the NAA identifier and serial number."""
        ...

    @property
    def sector_bytes(self) -> int: ...

    @property
    def sector_count(self) -> int:
        """Grows online, never shrinks."""
        ...

    @property
    def read_only(self) -> bool: ...

    @property
    def allocated_bytes(self) -> int:
        """What of the volume holds data, in whole extents, as of the newest commit that is known here: late by seconds."""
        ...

    def read(self, lba: int, count: int, done: Callable[[list[Buffer] | Exception], None]) -> list[Buffer] | None:
        """`count` sectors from `lba`, as buffers whose lengths add up to count * sector_bytes.

        Local data is returned at once and `done` is never called; otherwise None is returned and `done` gets
        the buffers or a BlockError (MediumError, StoreUnreachable, NotReady) later. Buffers stay valid until the
        next call into the target after the door has handed them to the kernel or copied them: a door
        sends or copies within the same turn. The caller checks the range against `sector_count`."""
        ...

    def write(self, lba: int, data: Sequence[Buffer]) -> None:
        """Stage a write of whole sectors. The buffers must stay unchanged until `commit` returns.
        Raises JournalFull (nothing staged by this call), NotReady, Fenced."""
        ...

    def write_atomic(self, lba: int, data: Sequence[Buffer]) -> None:
        """As `write`, and every read sees all of it or nothing of it. (After a crash or on another host any write is there
        as a whole or not at all.)"""
        ...

    def write_zeroes(self, lba: int, count: int, *, may_unmap: bool = True) -> None:
        """Stage zeros over a range, at a cost that does not grow with `count`. Raises like `write`."""
        ...

    def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Stage discards of (lba, count); they read as zeros afterwards (LBPRZ). Raises like `write`."""
        ...

    def commit(self) -> None:
        """Append all that is staged to the journal with one system call. On return it survives the death of this
        process, reads see it, and it may be acknowledged now. A door that holds answers back asks once more before it gives
        them. Raises LocalDiskFailed, Fenced, LeaseExpired: then none of it may be acknowledged."""
        ...

    def hold_back(self, bytes: int) -> float:
        """How many seconds the door should hold the answers to committed writes of so many bytes back, because the volume
        takes more than it can pass on; 0 nearly always, at most about 1. Only asked once for each commit. A door that does
        not hold them back breaks nothing: it hears JournalFull earlier."""
        ...

    def flush(self, done: Callable[[Exception | None], None]) -> None:
        """Make every committed write durable as the volume's flush promise says (fdatasync of the journal),
        then call `done(None)`, or `done(error)`. May call back before returning."""
        ...

    def allocated(self, lba: int, count: int, done: Callable[[list[tuple[int, int, bool]] | Exception], None]) -> None:
        """GET LBA STATUS: (lba, count, mapped) runs that cover the range from `lba`, at least the first run."""
        ...

    @property
    def kept_reservations(self) -> dict[str, Any] | None:
        """The persistent reservations that `keep_reservations` kept last, on this host or another one; None for none."""
        ...

    def keep_reservations(self, state: dict[str, Any] | None, done: Callable[[Exception | None], None]) -> None:
        """Keep this state (plain values for JSON) in the bucket in place of the one before, then call `done(None)`. With
        `done(error)` nobody knows which of the two is kept. Waits for as long as the store is away; one call at a time.
        May call back before returning."""
        ...
