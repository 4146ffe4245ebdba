"""libiscsi's conformance tool against the portal: no crash, no hang, and each test does what the page says of it."""

from pathlib import Path

import pytest

from tests.protocol.conformance_run import (
    DATA_FAMILIES,
    RESULTS,
    SUBJECTS,
    Subject,
    families,
    listed_tests,
    missing,
    outcomes,
    ram,
    recorded,
    run_all,
    run_whole,
    save,
)

pytestmark = [pytest.mark.slow, pytest.mark.initiator, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("subject", [subject for subject in SUBJECTS if subject.ours], ids=lambda subject: subject.name)
def test_iscsi_test_cu(subject: Subject, tmp_path: Path) -> None:
    if missing():
        pytest.skip(missing())
    results, said = run_all(subject, tmp_path)
    told = outcomes(results)
    save(RESULTS.with_stem(f"{RESULTS.stem}-{subject.name}"), {subject.name: told})
    assert [line for family in results for line in family.unexpected] == []
    assert said == "", "the server logged something"
    for name in DATA_FAMILIES:
        assert "passed" in told[name].values(), f"{name}: nothing passed"
    assert recorded()[subject.name] == told, "out of date: python -m tests.protocol.conformance_run --write"


def test_everything_in_one_process(tmp_path: Path) -> None:
    """What one family leaves behind, the next ones meet."""
    if missing():
        pytest.skip(missing())
    with ram(tmp_path, False) as served:
        ran, failed = run_whole(served.url)
        assert served.said() == ""
    expected = recorded()["ram"]
    listed = [(family, test) for _, family, test in listed_tests()]
    assert {family: set(tests) for family, tests in families().items()} == {
        family: {test for name, test in listed if name == family} for family, _ in listed
    }, "ALL is no longer all of them"
    assert ran == len(listed)
    assert failed == sum(expected[family][test] == "failed" for family, test in listed if family != "Sanitize")
