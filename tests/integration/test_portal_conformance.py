"""libiscsi's conformance tool against the portal: no crash, no hang, no failure that is not the tool's own."""

from pathlib import Path

import pytest

from tests.protocol.conformance_run import DATA_FAMILIES, PAGE, missing, render, run_all, save


@pytest.mark.slow
@pytest.mark.initiator
@pytest.mark.timeout(1800)
def test_iscsi_test_cu(tmp_path: Path) -> None:
    if missing():
        pytest.skip(missing())
    results, said = run_all(tmp_path)
    save(results)
    assert [line for family in results for line in family.unexpected] == []
    assert said == "", "the portal logged something"
    by_name = {family.name: family for family in results}
    for name in DATA_FAMILIES:
        assert by_name[name].count("passed") > 0, f"{name}: nothing passed"
        assert by_name[name].count("failed", "hung", "crashed") == 0
    assert PAGE.read_text(encoding="utf-8") == render(results), (
        "out of date: python -m tests.protocol.conformance_run --write"
    )
