"""Block commands (SBC-3): from a CDB whose bits are in order to the operation it asks for.

One rule: a function here judges (range, limits, write protection) and never touches the volume; what it returns is
carried out by `perform.py`. Each is named in the handler column of `commands.COMMANDS`.
"""

from collections.abc import Hashable
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from blockdev.scsi import commands
from blockdev.scsi.operation import (
    Buffer,
    CompareAndWrite,
    Flush,
    LbaStatus,
    NeedData,
    Operation,
    OrWrite,
    Prefetch,
    Read,
    Response,
    Unmap,
    Verify,
    Write,
    WriteAndVerify,
    WriteSame,
)
from blockdev.scsi.sense import GOOD, TRANSFER_LENGTH_MISMATCH, Condition, check, invalid_field, invalid_parameter
from blockdev.units import BLOCK_BYTES

if TYPE_CHECKING:
    from blockdev.scsi.device import LogicalUnit

Outcome = Operation | Response | NeedData

_COUNT_AT = {0: 4, 1: 7, 2: 7, 4: 10, 5: 6}
"""Group code of the operation code -> first byte of the TRANSFER LENGTH field, for the field pointer."""
_FUA = 0x08


def _judge(
    unit: "LogicalUnit", cdb: Buffer, lba: int, count: int, limit: int, *, writes: bool = False
) -> Response | None:
    """What stands against touching `count` sectors from `lba`; None if nothing does."""
    if count > limit // unit.target.sector_bytes:
        return invalid_field(_COUNT_AT[cdb[0] >> 5])
    if not commands.in_range(lba, count, unit.target.sector_count):
        return check(Condition.LBA_OUT_OF_RANGE)
    if writes and unit.target.read_only:
        return check(Condition.WRITE_PROTECTED)
    return None


def _whole_sectors(data: Buffer, count: int, sector_bytes: int) -> tuple[Buffer, int]:
    """The part of `data` that fills whole sectors, and how many; fewer than `count` if the initiator sent less."""
    whole = min(len(data) // sector_bytes, count)
    if whole * sector_bytes == len(data):
        return data, whole
    return memoryview(data)[: whole * sector_bytes], whole


def read(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """READ. FUA asks for what is on the medium; every read shows what was committed, and there is no other state."""
    lba, count = commands.lba_and_count(cdb)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes)
    if refusal is not None:
        return refusal
    return Read(lba, count) if count else GOOD


def write(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    lba, count = commands.lba_and_count(cdb)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes, writes=True)
    if refusal is not None:
        return refusal
    if not count:
        return GOOD
    size = unit.target.sector_bytes
    # In the six-byte CDB byte 1 is part of the address.
    fua = cdb[0] != 0x0A and bool(cdb[1] & _FUA)

    def then(data: Buffer) -> Operation | Response:
        given, whole = _whole_sectors(data, count, size)
        return Write(lba, whole, (given,), fua) if whole else GOOD

    return NeedData(count * size, then)


def write_atomic(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """WRITE ATOMIC(16) (SBC-4): as WRITE, with all of its data or not at all. There is no atomic boundary."""
    lba, count = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[12:14], "big")
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes, writes=True)
    if refusal is not None:
        return refusal
    size = unit.target.sector_bytes
    if count * size > unit.limits.atomic_write_bytes:
        return invalid_field(12)
    if not count:
        return GOOD
    fua = bool(cdb[1] & _FUA)

    def then(data: Buffer) -> Operation | Response:
        return Write(lba, count, (data,), fua, atomic=True) if len(data) == count * size else TRANSFER_LENGTH_MISMATCH

    return NeedData(count * size, then, exact=True)


def write_and_verify(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    lba, count = commands.lba_and_count(cdb)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes, writes=True)
    if refusal is not None:
        return refusal
    if not count:
        return GOOD
    size = unit.target.sector_bytes
    compare = bool(cdb[1] & 0x02)

    def then(data: Buffer) -> Operation | Response:
        given, whole = _whole_sectors(data, count, size)
        return WriteAndVerify(lba, whole, given, compare) if whole else GOOD

    return NeedData(count * size, then)


def orwrite(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    lba, count = commands.lba_and_count(cdb)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes, writes=True)
    if refusal is not None:
        return refusal
    if not count:
        return GOOD
    size = unit.target.sector_bytes
    fua = bool(cdb[1] & _FUA)

    def then(data: Buffer) -> Operation | Response:
        given, whole = _whole_sectors(data, count, size)
        return OrWrite(lba, whole, given, fua) if whole else GOOD

    return NeedData(count * size, then)


def compare_and_write(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """COMPARE AND WRITE: data-out is what is expected, then what to write (SBC-3). A count of zero does nothing, but
    not when data comes with it: an initiator that meant 256 sectors, which the field cannot say, must be told."""
    lba, count = int.from_bytes(cdb[2:10], "big"), cdb[13]
    size = unit.target.sector_bytes
    if count > unit.limits.sectors(unit.limits.compare_and_write_bytes, size, 0xFF):
        return invalid_field(13)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes, writes=True)
    if refusal is not None:
        return refusal
    half = count * size
    fua = bool(cdb[1] & _FUA)

    def then(data: Buffer) -> Operation | Response:
        if len(data) != 2 * half:
            return TRANSFER_LENGTH_MISMATCH
        if not count:
            return GOOD
        view = memoryview(data)
        return CompareAndWrite(lba, count, view[:half], view[half:], fua)

    return NeedData(2 * half, then, exact=True)


def verify(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """VERIFY by BYTCHK (SBC-3): 00b medium only, 01b compare with as much data, 11b compare with one sector."""
    lba, count = commands.lba_and_count(cdb)
    bytchk = cdb[1] >> 1 & 3
    if bytchk == 2:
        return invalid_field(1, 2)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes)
    if refusal is not None:
        return refusal
    if not count:
        return GOOD
    if bytchk == 0:
        return Verify(lba, count, None)
    size = unit.target.sector_bytes
    length = size if bytchk == 3 else count * size

    def then(data: Buffer) -> Operation | Response:
        return Verify(lba, count, data) if len(data) == length else TRANSFER_LENGTH_MISMATCH

    return NeedData(length, then, exact=True)


def write_same(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """WRITE SAME. A pattern of zeros becomes a range, whatever its length. A pattern other than zero is written even
    with UNMAP, since discarded space reads as zeros here (SBC-3, LBPRZ)."""
    lba, count = commands.lba_and_count(cdb)
    unmap_asked = bool(cdb[1] & 0x08)
    no_data_out = cdb[0] == 0x93 and bool(cdb[1] & 0x01)
    if count == 0:  # WSNZ
        return invalid_field(_COUNT_AT[cdb[0] >> 5])
    refusal = _judge(unit, cdb, lba, count, unit.limits.write_same_bytes, writes=True)
    if refusal is not None:
        return refusal
    if no_data_out:
        return WriteSame(lba, count, None, unmap_asked)
    size = unit.target.sector_bytes

    def then(data: Buffer) -> Operation | Response:
        if len(data) != size:
            return TRANSFER_LENGTH_MISMATCH
        pattern = bytes(data)
        return WriteSame(lba, count, pattern if any(pattern) else None, unmap_asked)

    return NeedData(size, then, exact=True)


def unmap(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    length = int.from_bytes(cdb[7:9], "big")
    if unit.target.read_only:
        return check(Condition.WRITE_PROTECTED)
    if length == 0:
        return GOOD
    if length < 8:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    sector_count = unit.target.sector_count

    def then(data: Buffer) -> Operation | Response:
        if len(data) < 8:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        (described,) = unpack_from(">H", data, 2)
        # A last descriptor that is not whole is ignored (SBC-3).
        descriptors = min(described, len(data) - 8) // 16
        if descriptors > unit.limits.unmap_descriptors:
            return invalid_parameter(2)
        ranges = []
        for index in range(descriptors):
            lba, count = unpack_from(">QI", data, 8 + 16 * index)
            if not commands.in_range(lba, count, sector_count):
                return check(Condition.LBA_OUT_OF_RANGE)
            if count:
                ranges.append((lba, count))
        return Unmap(tuple(ranges)) if ranges else GOOD

    return NeedData(length, then)


def synchronize_cache(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """SYNCHRONIZE CACHE. The whole cache is flushed, whatever the range; with IMMED the status comes no earlier, as
    an early GOOD would let an initiator believe more than is so."""
    lba, count = commands.lba_and_count(cdb)
    if not commands.in_range(lba, count, unit.target.sector_count):
        return check(Condition.LBA_OUT_OF_RANGE)
    return Flush()


def prefetch(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """PRE-FETCH. A count of zero means "to the end" (SBC-3); as much of that as one command may read is fetched."""
    lba, count = commands.lba_and_count(cdb)
    refusal = _judge(unit, cdb, lba, count, unit.limits.transfer_bytes)
    if refusal is not None:
        return refusal
    target = unit.target
    if not count:
        count = min(target.sector_count - lba, unit.limits.transfer_bytes // target.sector_bytes)
    return Prefetch(lba, count, bool(cdb[1] & 0x02)) if count else GOOD


def get_lba_status(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    lba, allocation = unpack_from(">QI", cdb, 2)
    if lba >= unit.target.sector_count:
        return check(Condition.LBA_OUT_OF_RANGE)
    return LbaStatus(lba, unit.target.sector_count - lba, allocation)


def read_capacity_10(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """FFFFFFFFh sends the initiator to READ CAPACITY(16) (SBC-3)."""
    last = min(unit.target.sector_count - 1, 0xFFFFFFFF)
    return Response(data=(pack(">II", last, unit.target.sector_bytes),))


def read_capacity_16(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """32 bytes: no protection information; the physical block is 4096 bytes; LBPME and LBPRZ (SBC-3)."""
    size = unit.target.sector_bytes
    exponent = (BLOCK_BYTES // size).bit_length() - 1
    data = pack(">QIBBH", unit.target.sector_count - 1, size, 0, exponent, 0xC000) + bytes(16)
    return unit.data_in(data, int.from_bytes(cdb[10:14], "big"))


def read_defect_data_10(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """There are no defects: an empty list in the format that was asked for."""
    return unit.data_in(pack(">BBH", 0, cdb[2] & 0x1F, 0), int.from_bytes(cdb[7:9], "big"))


def read_defect_data_12(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    return unit.data_in(pack(">BBHI", 0, cdb[1] & 0x1F, 0, 0), int.from_bytes(cdb[6:10], "big"))


def start_stop(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """START STOP UNIT. Nothing to load or eject; a power condition is taken note of and changes nothing;
    a stop makes the cache durable and the unit stays ready, as others may be using it."""
    power_condition, no_flush = cdb[4] >> 4, cdb[4] & 0x04
    load_eject, start = cdb[4] & 0x02, cdb[4] & 0x01
    if power_condition:
        return GOOD
    if load_eject:
        return invalid_field(4, 1)
    return GOOD if start or no_flush else Flush()
