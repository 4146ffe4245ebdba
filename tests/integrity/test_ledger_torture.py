"""Ten writers, killed at random: see `ledger_torture`."""

from pathlib import Path

import pytest

from tests.integrity.ledger_torture import torture


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_writers_killed_at_random(tmp_path: Path, seed: int) -> None:
    outcome = torture(tmp_path, seconds=8, seed=seed)
    assert outcome.problems == []
    assert outcome.kills >= 10
    assert outcome.looks > 0
    assert outcome.unknown > 0
    assert outcome.named == outcome.unknown
    assert outcome.acknowledged > 100
