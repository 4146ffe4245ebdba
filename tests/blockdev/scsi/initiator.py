"""An initiator for tests: builds CDBs, and runs a command the way a door does, down to the commit before the status."""

from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import Buffer, NeedData, Operation, Response, Status
from blockdev.scsi.perform import perform
from blockdev.scsi.sense import TRANSFER_LENGTH_MISMATCH, Condition
from tests.blockdev.ram_target import RamTarget

ONE = "iqn.2026-01.test:one,i,0x000000000001"
TWO = "iqn.2026-01.test:two,i,0x000000000002"
THREE = "iqn.2026-01.test:three,i,0x000000000003"


def unit_over(target: RamTarget | None = None, *nexuses: str) -> LogicalUnit:
    """A logical unit whose nexuses (ONE if none is named) have already seen their first unit attention."""
    unit = LogicalUnit(target if target is not None else RamTarget(), lun=0)
    for nexus in nexuses or (ONE,):
        unit.nexus_opened(nexus)
        unit.take_attention(nexus)
    return unit


def run(unit: LogicalUnit, cdb: Buffer, data: bytes = b"", *, nexus: str = ONE) -> Response:
    """One command to its end; deferred answers of the RAM target are run."""
    outcome: Operation | Response | NeedData = unit.begin(cdb, nexus)
    if isinstance(outcome, NeedData):
        if outcome.exact and len(data) != outcome.length:
            return TRANSFER_LENGTH_MISMATCH
        outcome = outcome.then(data[: outcome.length])
        assert not isinstance(outcome, NeedData)
    if isinstance(outcome, Response):
        return outcome
    answers: list[Response] = []
    perform(outcome, unit.target, answers.append)
    assert isinstance(unit.target, RamTarget)
    unit.target.run_all()
    assert len(answers) == 1, "done is called exactly once"
    unit.target.commit()
    return answers[0]


def data_of(response: Response) -> bytes:
    """The data-in of a command that must have succeeded."""
    assert response.status is Status.GOOD, said(response)
    return b"".join(response.data)


def said(response: Response) -> Condition | Status:
    """What a response says: its condition if it carries sense, else its status."""
    if response.status is not Status.CHECK_CONDITION:
        return response.status
    code = (response.sense[2], response.sense[12], response.sense[13])
    return next(each for each in Condition if (each.key, each.asc, each.ascq) == code)


def pointed_at(response: Response) -> tuple[str, int, int | None]:
    """The field pointer: ("cdb" or "data", byte, bit)."""
    specific = response.sense[15]
    assert specific & 0x80, "no field pointer"
    return (
        "cdb" if specific & 0x40 else "data",
        int.from_bytes(response.sense[16:18], "big"),
        specific & 7 if specific & 8 else None,
    )


def information(response: Response) -> int | None:
    return int.from_bytes(response.sense[3:7], "big") if response.sense[0] & 0x80 else None


def six(opcode: int, lba: int, count: int) -> bytes:
    return bytes((opcode,)) + lba.to_bytes(3, "big") + bytes((count, 0))


def ten(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes((opcode, flags)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def twelve(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes((opcode, flags)) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + b"\0\0"


def sixteen(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes((opcode, flags)) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + b"\0\0"


BUILDERS = {1: ten, 2: ten, 4: sixteen, 5: twelve}


def medium_cdb(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    """A medium access CDB of the length its operation code says."""
    if opcode >> 5 == 0:
        assert flags == 0
        return six(opcode, lba, count)
    if opcode == 0x89:
        return bytes((opcode, flags)) + lba.to_bytes(8, "big") + bytes((0, 0, 0, count, 0, 0))
    return BUILDERS[opcode >> 5](opcode, lba, count, flags)


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges)
    return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body


def unmap_cdb(length: int) -> bytes:
    return bytes((0x42, 0, 0, 0, 0, 0, 0)) + length.to_bytes(2, "big") + b"\0"


def inquiry_cdb(page: int | None = None, allocation: int = 255) -> bytes:
    return bytes((0x12, 0 if page is None else 1, page or 0)) + allocation.to_bytes(2, "big") + b"\0"


def reserve_out(action: int, kind: int = 0) -> bytes:
    return bytes((0x5F, action, kind, 0, 0)) + (24).to_bytes(4, "big") + b"\0"


def reserve_out_data(key: int, new_key: int = 0, flags: int = 0) -> bytes:
    return key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes(4) + bytes((flags, 0, 0, 0))


def reserve_in(action: int, allocation: int = 4096) -> bytes:
    return bytes((0x5E, action, 0, 0, 0, 0, 0)) + allocation.to_bytes(2, "big") + b"\0"
