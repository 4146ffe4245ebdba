"""Carry an operation out on a volume and say how it ended.

One rule: `done` is called exactly once, at once or later on the same thread.

**A GOOD for anything that writes only says "staged".** Unless FUA was asked for, the data is not in the journal when
`done` is called: the door must call `target.commit()`, once for all that one receive brought, and must not
let any of those responses out before it has returned. If it raises, every one of them becomes
`sense.response_for(error)`. With FUA, commit and flush have happened before `done`.

A commit made in here (FUA, a long WRITE SAME, also TEST UNIT READY) takes along what other commands have staged. Should
it fail, only this command is told; the others are safe because a failed commit is final for the volume (LocalDiskFailed,
Fenced), so the door's own commit fails too. A door that settles before each command off its fast path need not
rely on that.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from struct import pack

from blockdev.errors import BlockError
from blockdev.latency import FLUSH, READ, WRITE
from blockdev.scsi.copying import copy
from blockdev.scsi.operation import (
    Allocating,
    Buffer,
    CompareAndWrite,
    Copy,
    Flush,
    LbaStatus,
    Operation,
    OrWrite,
    Prefetch,
    Read,
    ReserveOut,
    Response,
    Unmap,
    Verify,
    Write,
    WriteAndVerify,
    WriteSame,
)
from blockdev.scsi.sense import BUSY, GOOD, Condition, check, response_for
from blockdev.target import BlockTarget
from blockdev.units import KIB, MIB

Done = Callable[[Response], None]

MODIFYING = (Write, Unmap, WriteSame, CompareAndWrite, OrWrite, WriteAndVerify, Copy, Allocating, ReserveOut)
"""Operations whose GOOD a door may only give after its commit, and that change something still after they were aborted: who
aborts waits for their end."""
KIND_OF: dict[type[object], int] = {
    Read: READ,
    Flush: FLUSH,
    **dict.fromkeys((Write, WriteSame, CompareAndWrite, OrWrite, WriteAndVerify, Allocating), WRITE),
}
"""What the latency of an operation is counted as; all others are `latency.OTHER`."""

_PATTERN_BUFFER = 64 * KIB
_PATTERN_COMMIT = 4 * MIB
"""WRITE SAME with a pattern: so much is staged before it is committed, which bounds one system call."""
_READ_ATTEMPTS = 64
"""COMPARE AND WRITE, ORWRITE: how often fetched data may be gone again before the initiator is told BUSY."""


def perform(operation: Operation, target: BlockTarget, done: Done) -> None:
    """Carry `operation` out. Failures of the volume (BlockError) become responses; any other exception is a bug
    and passes through."""
    match operation:
        case Read():
            _read(target, operation.lba, operation.count, done, lambda buffers: done(Response(data=buffers)))
        case Write():
            write = target.write_atomic if operation.atomic else target.write
            if _stage(lambda: write(operation.lba, operation.data), done):
                _finish_write(target, operation.fua, done)
        case Flush():
            _make_durable(target, done, lambda: done(GOOD))
        case Unmap():
            if _stage(lambda: target.unmap(operation.ranges), done):
                done(GOOD)
        case WriteSame():
            _write_same(operation, target, done)
        case CompareAndWrite():
            _compare_and_write(operation, target, done)
        case OrWrite():
            _orwrite(operation, target, done)
        case Verify():
            _verify(operation, target, done)
        case WriteAndVerify():
            _write_and_verify(operation, target, done)
        case LbaStatus():
            _lba_status(operation, target, done)
        case Prefetch():
            _prefetch(operation, target, done)
        case Copy():
            copy(operation, done)
        case Allocating():
            _allocating(operation, target, done)
        case ReserveOut():
            operation.carry_out(done)


def _read(target: BlockTarget, lba: int, count: int, done: Done, then: Callable[[Sequence[Buffer]], None]) -> None:
    """Read and go on with `then`, or end the command with the failure."""

    def arrived(result: list[Buffer] | Exception) -> None:
        if isinstance(result, Exception):
            done(response_for(result))
        else:
            then(result)

    try:
        buffers = target.read(lba, count, arrived)
    except BlockError as error:
        done(response_for(error))
        return
    if buffers is not None:
        then(buffers)


def _read_in_this_turn(target: BlockTarget, lba: int, count: int, done: Done, then: Callable[[bytes], None]) -> None:
    """Call `then` with the content in the very turn in which it was read, so that nothing can come between what `then`
    sees and what it stages. Data that had to be fetched is read again once it has come: only a read that
    is answered at once is sure to show every write staged by now."""
    attempts = 0

    def attempt(fetched: list[Buffer] | Exception | None = None) -> None:
        nonlocal attempts
        if isinstance(fetched, Exception):
            done(response_for(fetched))
            return
        attempts += 1
        if attempts > _READ_ATTEMPTS:
            done(BUSY)
            return
        try:
            buffers = target.read(lba, count, attempt)
        except BlockError as error:
            done(response_for(error))
            return
        if buffers is not None:
            then(b"".join(buffers))

    attempt()


def _stage(stage: Callable[[], None], done: Done) -> bool:
    """Whether staging succeeded; if not, the command has ended."""
    try:
        stage()
    except BlockError as error:
        done(response_for(error))
        return False
    return True


def _make_durable(target: BlockTarget, done: Done, then: Callable[[], None]) -> None:
    """Commit and flush, then go on."""

    def flushed(error: Exception | None) -> None:
        if error is None:
            then()
        else:
            done(response_for(error))

    if _stage(target.commit, done):
        target.flush(flushed)


def _finish_write(target: BlockTarget, fua: bool, done: Done) -> None:
    if fua:
        _make_durable(target, done, lambda: done(GOOD))
    else:
        done(GOOD)


def _write_same(operation: WriteSame, target: BlockTarget, done: Done) -> None:
    """Zeros are one range. A pattern is written out; should the journal fill up on the way, the first part is written
    and the status is BUSY, which WRITE SAME allows (it is not atomic) and a repetition puts right."""
    pattern = operation.pattern
    if pattern is None:
        if operation.unmap:
            staged = _stage(lambda: target.unmap(((operation.lba, operation.count),)), done)
        else:
            staged = _stage(lambda: target.write_zeroes(operation.lba, operation.count, may_unmap=False), done)
        if staged:
            done(GOOD)
        return
    size = target.sector_bytes
    per_buffer = _PATTERN_BUFFER // size
    buffer = bytes(pattern) * min(per_buffer, operation.count)

    def write_out() -> None:
        lba, left = operation.lba, operation.count
        while left:
            piece = min(left, _PATTERN_COMMIT // size)
            whole, rest = divmod(piece, per_buffer)
            target.write(lba, [*repeat(buffer, whole), *([buffer[: rest * size]] if rest else [])])
            lba, left = lba + piece, left - piece
            if left:
                target.commit()

    if _stage(write_out, done):
        done(GOOD)


def _miscompare(offset: int) -> Response:
    """MISCOMPARE with the offset of the first byte that differs (SBC-3)."""
    return check(Condition.MISCOMPARE_DURING_VERIFY, offset)


def first_difference(left: Buffer, right: Buffer) -> int | None:
    """Offset of the first byte at which two buffers of one length differ, or None. Compares halves, not bytes."""
    one, two = memoryview(left).cast("B"), memoryview(right).cast("B")
    if bytes(one) == bytes(two):
        return None
    low, high = 0, len(one)  # they are equal before `low` and differ before `high`
    while high - low > 1:
        middle = (low + high) // 2
        if bytes(one[low:middle]) == bytes(two[low:middle]):
            low = middle
        else:
            high = middle
    return low


def _compare_and_write(operation: CompareAndWrite, target: BlockTarget, done: Done) -> None:
    def judge(found: bytes) -> None:
        difference = first_difference(found, operation.expected)
        if difference is not None:
            done(_miscompare(difference))
        elif _stage(lambda: target.write(operation.lba, (operation.data,)), done):
            _finish_write(target, operation.fua, done)

    _read_in_this_turn(target, operation.lba, operation.count, done, judge)


def _orwrite(operation: OrWrite, target: BlockTarget, done: Done) -> None:
    def merge(found: bytes) -> None:
        merged = int.from_bytes(found, "little") | int.from_bytes(operation.data, "little")
        if _stage(lambda: target.write(operation.lba, (merged.to_bytes(len(found), "little"),)), done):
            _finish_write(target, operation.fua, done)

    _read_in_this_turn(target, operation.lba, operation.count, done, merge)


def _compare(buffers: Sequence[Buffer], expected: Buffer, done: Done) -> None:
    """End a command by comparison; `expected` is repeated if it is shorter than what was read."""
    wanted = memoryview(expected).cast("B")
    size, offset = len(wanted), 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        at = 0
        while at < len(view):
            start = offset % size
            step = min(len(view) - at, size - start)
            difference = first_difference(view[at : at + step], wanted[start : start + step])
            if difference is not None:
                done(_miscompare(offset + difference))
                return
            at, offset = at + step, offset + step
    done(GOOD)


def _verify(operation: Verify, target: BlockTarget, done: Done) -> None:
    expected = operation.expected

    def judge(buffers: Sequence[Buffer]) -> None:
        if expected is None:
            done(GOOD)
        else:
            _compare(buffers, expected, done)

    _read(target, operation.lba, operation.count, done, judge)


def _write_and_verify(operation: WriteAndVerify, target: BlockTarget, done: Done) -> None:
    """The data is durable before it is read back: verifying what a power loss may take away would verify nothing."""

    def judge(buffers: Sequence[Buffer]) -> None:
        if operation.compare:
            _compare(buffers, operation.data, done)
        else:
            done(GOOD)

    def read_back() -> None:
        _read(target, operation.lba, operation.count, done, judge)

    if _stage(lambda: target.write(operation.lba, (operation.data,)), done):
        _make_durable(target, done, read_back)


_MAPPED, _DEALLOCATED = 0, 1
_DESCRIPTOR_BYTES = 16


def _lba_status(operation: LbaStatus, target: BlockTarget, done: Done) -> None:
    """LBA status parameter data (SBC-3). Neighbours of one kind are joined; there is always one descriptor
    that starts at the address asked for, however small the allocation length."""

    def answer(result: list[tuple[int, int, bool]] | Exception) -> None:
        if isinstance(result, Exception):
            done(response_for(result))
            return
        most = max(1, (operation.allocation_length - 8) // _DESCRIPTOR_BYTES)
        descriptors: list[bytes] = []
        for lba, count, mapped in _joined(result, operation.lba, operation.count):
            # A run longer than the field can say is cut, and ends the list, which must have no holes.
            shown = min(count, 0xFFFFFFFF)
            descriptors.append(pack(">QIBxxx", lba, shown, _MAPPED if mapped else _DEALLOCATED))
            if len(descriptors) == most or shown < count:
                break
        body = b"".join(descriptors)
        data = pack(">II", 4 + len(body), 0) + body
        done(Response(data=(data[: operation.allocation_length],)))

    target.allocated(operation.lba, operation.count, answer)


def _joined(runs: Sequence[tuple[int, int, bool]], lba: int, count: int) -> list[tuple[int, int, bool]]:
    """The runs cut to [lba, lba+count), without holes, equal neighbours joined."""
    out: list[tuple[int, int, bool]] = []
    position, end = lba, lba + count
    for first, length, mapped in runs:
        start, stop = max(first, position), min(first + length, end)
        if stop <= start:
            continue
        if start > position:
            break
        if out and out[-1][2] == mapped:
            out[-1] = (out[-1][0], out[-1][1] + stop - start, mapped)
        else:
            out.append((start, stop - start, mapped))
        position = stop
    return out


def _allocating(operation: Allocating, target: BlockTarget, done: Done) -> None:
    """What is mapped when it is asked may be discarded before it is written: then a little more is allocated than may be."""
    write = operation.write
    end = write.lba + write.count

    def ask(lba: int) -> None:
        target.allocated(lba, end - lba, lambda result: judge(lba, result))

    def judge(lba: int, result: list[tuple[int, int, bool]] | Exception) -> None:
        if isinstance(result, Exception):
            done(response_for(result))
            return
        runs = _joined(result, lba, end - lba)
        if len(runs) != 1 or not runs[0][2]:
            done(check(Condition.SPACE_ALLOCATION_FAILED))
        elif lba + runs[0][1] < end:
            ask(lba + runs[0][1])  # an answer may end before the range does
        else:
            perform(write, target, done)

    ask(write.lba)


def _prefetch(operation: Prefetch, target: BlockTarget, done: Done) -> None:
    """GOOD, not CONDITION MET: nobody promises that the data stays near. A failure matters only to who waits."""
    if operation.immediate:
        _read(target, operation.lba, operation.count, lambda failure: None, lambda buffers: None)
        done(GOOD)
    else:
        _read(target, operation.lba, operation.count, done, lambda buffers: done(GOOD))
