"""Worlds, made anew for each test and ended with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runbook.world import World
from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay


@pytest.fixture
def world(radosgw: Radosgw, tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path / "world", radosgw)
    yield made
    made.end()


@pytest.fixture
def served(world: World) -> World:
    """Volume vm1 of 64 MiB is served, and the bucket has 4 MiB of 0x41 at its beginning."""
    world.make_volume()
    world.serve()
    world.write("write -P 0x41 0 4M", "flush")
    world.carry()
    return world


@pytest.fixture
def relay(radosgw: Radosgw) -> Iterator[Relay]:
    made = Relay(radosgw.http_port)
    yield made
    made.stop()
