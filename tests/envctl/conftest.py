"""Databases and worlds that tests of the console share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envctl.database.access import sqlite_url
from tests.envctl.world import World, make_world
from tests.servers.postgresql import Postgresql, binaries


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    if binaries() is None:
        pytest.skip("needs postgresql: apt-get install --no-install-recommends postgresql")
    server = Postgresql()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind: what holds for one must hold for the other."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds that are closed at the end; arguments as `make_world`."""
    made: list[World] = []

    def make(**arguments: Any) -> World:
        made.append(make_world(tmp_path / f"world{len(made)}", **arguments))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    return new_world()


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """The agent's `main` sets one for its process; here that is everybody's."""
    mask = os.umask(0)
    os.umask(mask)
    yield
    os.umask(mask)
