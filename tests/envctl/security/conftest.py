"""The application, with passwords that cost little."""

from collections.abc import Callable

import pytest

from envctl.accounts import passwords
from tests.envctl.security.site import Site
from tests.envctl.world import CHEAP, World


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "HASHER", CHEAP)
    passwords._nobody.cache_clear()


@pytest.fixture
def site(world: World) -> Site:
    return Site(world)


@pytest.fixture
def new_site(new_world: Callable[..., World]) -> Callable[..., Site]:
    """With settings of `[envctl]`."""
    return lambda **settings: Site(new_world(**settings))
