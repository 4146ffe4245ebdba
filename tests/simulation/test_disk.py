"""The simulated disk: it may lose exactly what its fault model says, and it must lose it sometimes."""

import random

import pytest

from tests.simulation.disk import SECTOR, SimDisk
from tests.simulation.loop import Crash

A, B = b"a" * SECTOR, b"b" * SECTOR


def disk(seed: int = 1) -> SimDisk:
    return SimDisk(random.Random(seed))


def content(found: SimDisk, name: str = "f") -> bytes:
    handle = found.open(name)
    return handle.pread(handle.size(), 0)


def test_a_killed_process_loses_nothing_and_its_handles_die() -> None:
    found = disk()
    handle = found.create("f", 2 * SECTOR)
    handle.pwritev([A, B], 0)
    found.kill_process()
    assert content(found) == A + B
    with pytest.raises(OSError, match="dead"):
        handle.pwritev([A], 0)
    with pytest.raises(OSError, match="dead"):
        handle.fdatasync()


def outcomes(synced: bool) -> set[bytes]:
    seen = set()
    for seed in range(200):
        found = disk(seed)
        handle = found.create("f", 2 * SECTOR)
        handle.pwritev([A, B], 0)
        if synced:
            handle.fdatasync()
        found.lose_power()
        seen.add(content(found))
    return seen


def test_a_power_loss_keeps_what_was_synced() -> None:
    assert outcomes(synced=True) == {A + B}


def test_a_power_loss_keeps_loses_or_tears_what_was_not() -> None:
    zeros = bytes(SECTOR)
    assert outcomes(synced=False) == {A + B, zeros + zeros, A + zeros, zeros + B}


def test_writes_are_lost_each_on_its_own() -> None:
    seen = set()
    for seed in range(100):
        found = disk(seed)
        handle = found.create("f", 2 * SECTOR)
        handle.pwritev([A], 0)
        handle.pwritev([B], SECTOR)
        found.lose_power()
        seen.add(content(found))
    assert bytes(SECTOR) + B in seen, "a later write may outlive an earlier one"


def test_tearing_follows_the_disk_s_sectors_not_the_write_s_beginning() -> None:
    for seed in range(100):
        found = disk(seed)
        handle = found.create("f", 4 * SECTOR)
        handle.pwritev([b"x" * (2 * SECTOR)], 100)
        found.lose_power()
        data = content(found)
        for start in range(0, 4 * SECTOR, SECTOR):
            inside = data[max(start, 100) : min(start + SECTOR, 100 + 2 * SECTOR)]
            assert set(inside) in ({0}, {ord("x")}, set())


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    lost = 0
    for seed in range(50):
        found = disk(seed)
        handle = found.create("f", 2 * SECTOR)
        handle.pwritev([A], 0)
        covered = handle.begin_sync()
        handle.pwritev([B], SECTOR)
        handle.finish_sync(covered)
        found.lose_power()
        data = content(found)
        assert data[:SECTOR] == A
        lost += data[SECTOR:] != B
    assert lost


def test_a_failed_sync_drops_what_it_should_have_covered() -> None:
    found = disk()
    handle = found.create("f", SECTOR)
    handle.pwritev([A], 0)
    found.files["f"].fail_next_sync = True
    with pytest.raises(OSError, match="simulated fdatasync"):
        handle.fdatasync()
    handle.fdatasync()
    assert content(found) == A, "the page cache still has it"
    found.lose_power()
    assert content(found) == bytes(SECTOR), "and the platter never will"


def test_a_crash_within_a_write_leaves_its_beginning() -> None:
    def crash(what: str) -> None:
        raise Crash(what)

    lengths = set()
    for seed in range(60):
        found = disk(seed)
        handle = found.create("f", SECTOR)
        found.point = crash
        with pytest.raises(Crash):
            handle.pwritev([A], 0)
        found.kill_process()
        data = content(found)
        assert data == data.rstrip(b"\0").ljust(SECTOR, b"\0")
        lengths.add(len(data.rstrip(b"\0")))
    assert len(lengths) > 10


def test_a_flipped_bit_is_there_for_good() -> None:
    found = disk()
    handle = found.create("f", SECTOR)
    handle.pwritev([A], 0)
    handle.fdatasync()
    found.files["f"].flip(8)
    found.lose_power()
    assert content(found) == b"a" + bytes([ord("a") ^ 1]) + A[2:]


def test_reads_end_at_the_file_s_end() -> None:
    handle = disk().create("f", SECTOR)
    first, second = bytearray(SECTOR), bytearray(b"keep")
    assert handle.preadv([first, second], 0) == SECTOR
    assert second == b"keep"
    assert handle.pread(100, SECTOR - 10) == bytes(10)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        disk().open("f")
