"""EXTENDED COPY between two volumes of one daemon, over real sockets: what was copied is the destination's like any write."""

import random
import re
import struct
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import MIB, Server, create
from tests.system.raw_initiator import CHECK_CONDITION, GOOD, RawInitiator

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

PIECE = 256 * 1024
NOT_REACHABLE = (0x0A, 0x0D, 0x02)


def target_of(disk: RawInitiator) -> bytes:
    """An identification CSCD descriptor with the disk's NAA designator (SPC-4 6.4.5)."""
    page = disk.do(bytes((0x12, 1, 0x83, 0, 255, 0)), expected=255).data
    assert page[4:8] == bytes((1, 3, 0, 16))
    return bytes((0xE4, 0, 0, 0)) + page[4:24].ljust(24, b"\0") + disk.sector_bytes.to_bytes(4, "big")


def segment(source: int, to: int, count: int, ends: tuple[int, int]) -> bytes:
    return struct.pack(">BBHHHxxHQQ", 0x02, 0, 24, *ends, count, source, to)


def copy(disk: RawInitiator, targets: list[bytes], segments: list[bytes]) -> tuple[int, tuple[int, int, int]]:
    body = b"".join(targets) + b"".join(segments)
    data = struct.pack(">BBH4xII", 1, 0, 32 * len(targets), 28 * len(segments), 0) + body
    answer = disk.wait(disk.send(struct.pack(">BB8xIBB", 0x83, 0, len(data), 0, 0), data))
    return answer.status, answer.sense


def test_from_volume_to_volume(file_place: Place, tmp_path: Path) -> None:
    one, two = file_place.volume, f"{file_place.volume}-two"
    create(one, size="64M")
    create(two, size="64M")
    content = random.Random(4).randbytes(4 * MIB)
    with Server(tmp_path, one, two) as server:
        server.start()
        urls = re.findall(r"^serving \S+ at (iscsi://\S+)$", (tmp_path / "serve-0.out").read_text(), re.MULTILINE)
        here = RawInitiator(urls[0])
        for at in range(0, len(content), PIECE):
            assert here.wait(here.write(at // 512, content[at : at + PIECE])).status == GOOD
        there = RawInitiator(urls[1])
        ends = [target_of(here), target_of(there)]
        steps = [segment(number * 4096, 20000 + number * 4096, 4096, (0, 1)) for number in range(2)]
        unwritten = segment(100000, 0, 16384, (0, 1))
        assert copy(here, ends, [*steps, unwritten]) == (GOOD, (0, 0, 0))
        assert there.wait(there.flush()).status == GOOD
        server.kill()
        server.start()
        urls = re.findall(r"^serving \S+ at (iscsi://\S+)$", (tmp_path / "serve-1.out").read_text(), re.MULTILINE)
        here = RawInitiator(urls[0])
        assert copy(here, ends, steps) == (CHECK_CONDITION, NOT_REACHABLE), "not logged in to the other target"
        there = RawInitiator(urls[1])
        data = there.read_all()
        assert data[20000 * 512 : 20000 * 512 + len(content)] == content
        assert not any(data[: 20000 * 512])
        assert server.stop() == 0
