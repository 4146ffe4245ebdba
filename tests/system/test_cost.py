"""What scattered writes cost in requests, through the real daemon, counted at a store: no figure here is a time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import cost, volume
from bench.initiator import BLOCK_BYTES, MIB
from bench.processes import end, start, wait_for_line
from bench.store import READY, Client, Stats

VOLUME_BYTES = 512 * MIB
HOST_BYTES = 64 * MIB
COUNT = HOST_BYTES // BLOCK_BYTES
QUIET_S = 6.0
"""Longer than the age that makes a commit."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Client]:
    log = tmp_path / "store.log"
    server = start([sys.executable, "-m", "bench.store"], log)
    try:
        yield Client(int(wait_for_line(log, READY, server).split()[-1]))
    finally:
        end(server)


def test_scattered_writes_need_less_than_a_fiftieth_of_one_put_each(store: Client, tmp_path: Path) -> None:
    config = volume.create(tmp_path, "v", store.port, VOLUME_BYTES, 192 * MIB, 256 * MIB)
    with volume.Served(config, "v", state="state") as served:
        thin, _, _ = cost.counted(served.url, store, cost.scattered(VOLUME_BYTES, COUNT, 1), QUIET_S)
        # 64 MiB over 32 MiB: each extent's patches outgrow its map value, so it is folded, and segments lose their data.
        hot, _, _ = cost.counted(served.url, store, cost.scattered(HOST_BYTES // 2, COUNT, 2), QUIET_S)
    check(thin)
    # A commit of 8 MiB is a record and a segment; an age may make one more at the end, and another for a slow machine.
    assert thin.puts_of["log"] <= HOST_BYTES // (8 * MIB) + 4
    assert thin.puts_of.get("ext", 0) == 0
    assert thin.gets_of.get("ext", 0) == thin.gets_of.get("seg", 0) == 0
    check(hot)
    assert hot.puts_of["ext"] >= 32
    # Folds are made from what is here, but for what the small cache has let go.
    assert hot.gets_of.get("ext", 0) + hot.gets_of.get("seg", 0) <= 64


def check(stats: Stats) -> None:
    assert stats.puts * cost.RATIO_AIM <= COUNT, stats.puts_of
    assert stats.bytes_in < 3 * HOST_BYTES, stats.bytes_of
    assert stats.lists == 0
