"""`kill -9` again and again under stamped writes with flushes: what was flushed is there, and no block is torn."""

import random
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import BLOCK, MIB, Server, Stamps, Write, Writer, create, read_back

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

ROUNDS = 5
REGION_BYTES = 32 * MIB
WRITES = 3000
FLUSH_EVERY = 8


def stamped_writes(source: random.Random, count: int) -> list[Write]:
    writes = []
    for number in range(count):
        blocks = source.choice((1, 1, 1, 2, 5, 16, 33))
        first = source.randrange(REGION_BYTES // BLOCK - blocks)
        writes.append(Write(first * BLOCK, blocks * BLOCK, 1 + number % 255))
    return writes


def test_no_flushed_write_is_lost(file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume, size="32M")
    source = random.Random(20)
    stamps = Stamps(REGION_BYTES)
    # Commits every few writes, so that kills fall into all of their stages.
    with Server(tmp_path, file_place.volume, "--commit-bytes", "1M", "--commit-interval", "200ms") as server:
        server.start()
        for round_number in range(ROUNDS):
            writes = stamped_writes(source, WRITES)
            with Writer(server.url, writes, tmp_path, flush_every=FLUSH_EVERY) as writer:
                writer.wait_for(source.randrange(50, WRITES // 2))
                server.kill()
                writer.kill()
            assert writer.flushed > 0
            assert writer.acknowledged < WRITES, "the kill came too late to prove anything"
            for write in writes[: writer.flushed]:
                stamps.settle(write)
            # The one after the last acknowledged may have arrived as well.
            for write in writes[writer.flushed : writer.acknowledged + 1]:
                stamps.attempt(write)
            server.start()
            stamps.check(read_back(server.url, tmp_path / "back.raw"))
            print(f"round {round_number}: {writer.acknowledged} writes acknowledged, {writer.flushed} flushed")
        assert server.stop() == 0
        server.start()
        stamps.check(read_back(server.url, tmp_path / "back.raw"))
