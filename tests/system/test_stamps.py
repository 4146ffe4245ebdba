"""The judge of the torture runs must itself be right: what is a prefix passes, what is not is named."""

import pytest

from tests.system.stamps import UNIT, Judge, Sent, Violated, stamp

UNITS = 64


class Disk:
    """What a disk would hold, and the judge beside it."""

    def __init__(self) -> None:
        self.judge = Judge(UNITS * UNIT)
        self.now = bytearray(UNITS * UNIT)

    def write(self, first: int, units: int, *, zeros: bool = False, ack: bool = True) -> Sent:
        write = self.judge.sent(first, units, zeros=zeros)
        self.put(write, range(first, first + units))
        if ack:
            self.judge.acked(write)
        return write

    def put(self, write: Sent, units: range) -> None:
        for unit in units:
            self.now[unit * UNIT : (unit + 1) * UNIT] = stamp(write.content, unit, 1)


def test_all_that_was_acknowledged() -> None:
    disk = Disk()
    disk.write(0, 8)
    disk.write(4, 8)
    disk.write(6, 2, zeros=True)
    verdict = disk.judge.check(bytes(disk.now), 3)
    assert (verdict.acknowledged, verdict.lost) == (3, 0)
    assert disk.judge.expected(0, UNITS) == disk.now


def test_a_prefix_is_legal_down_to_the_floor() -> None:
    disk = Disk()
    disk.write(0, 8)
    before = bytes(disk.now)
    disk.write(16, 8)
    disk.write(0, 4)
    assert disk.judge.check(before, 1).lost == 2
    with pytest.raises(Violated, match=r"write 2 is missing.*2 acknowledged writes must be there"):
        disk.judge.check(before, 2)


def test_something_younger_than_what_is_lost() -> None:
    disk = Disk()
    disk.write(0, 8)
    disk.write(16, 8)
    disk.now[: 8 * UNIT] = bytes(8 * UNIT)
    with pytest.raises(Violated, match=r"write 1 is missing.*write 2 is there"):
        disk.judge.check(bytes(disk.now), 0)


def test_an_older_version_of_a_place() -> None:
    disk = Disk()
    first = disk.write(0, 8)
    disk.write(0, 8)
    disk.write(32, 1)
    disk.put(first, range(8))
    with pytest.raises(Violated, match="write 2 is missing"):
        disk.judge.check(bytes(disk.now), 0)


def test_writes_in_flight_together_have_no_order() -> None:
    disk = Disk()
    one = disk.judge.sent(0, 8)
    two = disk.judge.sent(8, 8)
    disk.judge.acked(one)
    disk.judge.acked(two)
    disk.put(two, range(8, 16))
    assert disk.judge.check(bytes(disk.now), 0).lost == 1


@pytest.mark.parametrize("ack", [True, False])
def test_torn(ack: bool) -> None:
    disk = Disk()
    disk.write(0, 16, ack=ack)
    disk.now[12 * UNIT : 16 * UNIT] = bytes(4 * UNIT)
    with pytest.raises(Violated, match="torn"):
        disk.judge.check(bytes(disk.now), 0)


def test_what_was_never_answered_may_end_at_a_block() -> None:
    disk = Disk()
    disk.write(0, 16, ack=False)
    disk.now[8 * UNIT : 16 * UNIT] = bytes(8 * UNIT)
    disk.judge.check(bytes(disk.now), 0)
    disk.judge.kept(bytes(disk.now))
    assert disk.judge.expected(0, UNITS) == disk.now
    assert disk.judge.acknowledged == 1


def test_content_of_another_place_or_nobody() -> None:
    disk = Disk()
    write = disk.write(0, 8)
    disk.now[UNIT : 2 * UNIT] = stamp(write.number, 2, 1)
    with pytest.raises(Violated, match="at unit 2"):
        disk.judge.check(bytes(disk.now), 0)
    disk.now[UNIT : 2 * UNIT] = b"\7" * UNIT
    with pytest.raises(Violated, match="no write put there"):
        disk.judge.check(bytes(disk.now), 0)
    disk.now[UNIT : 2 * UNIT] = stamp(99, 1, 1)
    with pytest.raises(Violated, match="holds write 99"):
        disk.judge.check(bytes(disk.now), 0)


def test_what_was_lost_never_comes_back() -> None:
    disk = Disk()
    disk.write(0, 8)
    later = bytes(disk.now)
    disk.judge.check(bytes(UNITS * UNIT), 0)
    disk.judge.settled(bytes(UNITS * UNIT))
    with pytest.raises(Violated, match="holds write 1"):
        disk.judge.check(later, 0)


def test_a_refused_write_left_nothing() -> None:
    disk = Disk()
    write = disk.write(0, 8, ack=False)
    disk.judge.refused(write)
    with pytest.raises(Violated, match="holds write 1"):
        disk.judge.check(bytes(disk.now), 0)
