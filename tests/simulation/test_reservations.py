"""Persistent reservations through every kind of end: what was answered is there, wherever the volume attaches next."""

from collections import Counter

import pytest

from blockdev.extents import history
from blockdev.extents.history import History
from tests.simulation.episodes import EpisodeFailed, run
from tests.simulation.model import Violation
from tests.simulation.reserved import Reserved


def test_a_few_episodes() -> None:
    happened = run(range(500, 512), reservations=True)
    assert happened["reservations kept"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("index", range(4))
def test_more_episodes(index: int) -> None:
    happened: Counter[str] = run(range(2000 + 50 * index, 2050 + 50 * index), reservations=True)
    for event in ("reservations kept", "taken over", "rolled back", "crash: host", "crash: power", "loss accepted"):
        assert happened[event], f"no episode of this block had: {event}"


def test_forgetting_them_in_roots_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    document = History.document

    def forgetful(self: History) -> dict[str, object]:
        return {name: value for name, value in document(self).items() if name != history.RESERVATIONS}

    monkeypatch.setattr(History, "document", forgetful)
    with pytest.raises(EpisodeFailed, match="reservations"):
        run(range(500, 560), reservations=True)


def test_oracle() -> None:
    reserved = Reserved()
    reserved.found(None)
    first, second = reserved.ask(), reserved.ask()
    reserved.answered(first)
    reserved.found({"number": second})
    with pytest.raises(Violation):
        reserved.found({"number": first})
