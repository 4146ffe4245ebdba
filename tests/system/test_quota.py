"""A quota over a real bucket: the warning, the refusal, and what goes on beyond it."""

import time
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import Server, create
from tests.system.raw_initiator import CHECK_CONDITION, GOOD, RawInitiator

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

THRESHOLD_REACHED = (0x06, 0x38, 0x07)
SPACE_ALLOCATION_FAILED = (0x07, 0x27, 0x07)
PIECE = 256 * 1024
SECTORS = PIECE // 512
PIECES = 4
"""Of an extent, which is what counts."""


def test_quota(file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume, size="64M")
    options = ("--quota", "8M", "--quota-warning", "0.5", "--commit-interval", "100ms")
    with Server(tmp_path, file_place.volume, *options) as server:
        server.start()
        disk = RawInitiator(server.url)
        data = b"q" * PIECE

        def write(number: int) -> tuple[int, tuple[int, int, int]]:
            answer = disk.wait(disk.write(number * SECTORS, data))
            return answer.status, answer.sense

        told, refused, written = False, False, 0
        until = time.monotonic() + 30
        while not refused and time.monotonic() < until:
            status, sense = write(written)
            if status == GOOD:
                written += 1
            elif sense == THRESHOLD_REACHED:
                assert not told, "once for each crossing"
                assert written > 3 * PIECES, "half of the quota: the fourth of eight extents has begun"
                told = True
            else:
                assert (status, sense) == (CHECK_CONDITION, SPACE_ALLOCATION_FAILED)
                refused = True
            time.sleep(0.02)
        assert told
        assert refused
        assert written > 7 * PIECES, "the eighth extent has begun; what it lacks is refused"
        assert write(0) == (GOOD, (0, 0, 0)), "what is allocated"
        assert disk.wait(disk.read(0, SECTORS)).data == data
        assert disk.wait(disk.flush()).status == GOOD
        assert disk.wait(disk.unmap(0, written * SECTORS)).status == GOOD
        while write(written)[0] != GOOD:
            assert time.monotonic() < until + 30, "the discard was not noticed"
            time.sleep(0.1)
        assert server.stop() == 0
