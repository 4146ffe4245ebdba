"""The torture run in short: real servers killed at random, both stores, both initiators; `make torture` is the long form."""

import json
from pathlib import Path

import pytest

from tests.system import torture

pytestmark = [pytest.mark.slow, pytest.mark.initiator]


def test_a_few_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = torture.EPISODE_RUNS + 2
    arguments = ["--runs", str(runs), "--lanes", "2", "--seed", "7", "--directory", str(tmp_path)]
    assert torture.main(arguments) == 0, capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "seed-7" / "finished.jsonl").read_text().splitlines()]
    figures = {name: sum(line["figures"].get(name, 0) for line in lines) for line in lines for name in line["figures"]}
    assert figures["runs"] == runs
    assert figures["writes"] > runs
    assert sum(figures[name] for name in figures if name.startswith("kill during")) > runs // 2
    assert figures["snapshot answered"] > 0
    assert figures["snapshots compared"] > 0
    assert not list((tmp_path / "seed-7").glob("episode-*")), "what passed leaves nothing behind"
