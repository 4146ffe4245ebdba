"""What a run of everything says at its end about what failed."""

import subprocess
import sys
from pathlib import Path

from tests.lanes import TOLD_LINES, TOLD_TESTS, digest

TESTS = """
import pytest

def test_good():
    pass

def test_bad():
    assert 1 == 2, "one is not two"

@pytest.fixture
def broken():
    raise OSError("no store")

def test_without_its_fixture(broken):
    pass
"""


def test_the_digest_names_what_failed_and_what_could_not_begin(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    report = tmp_path / "shown.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, f"--junitxml={report}"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    told = digest([report, tmp_path / "never.xml"], (1, 2)).splitlines()
    assert "what failed:" in told
    end = told[-5:]
    assert end[0] == "shown lane: exit status 1"
    assert end[1].startswith("  test_some.test_bad: AssertionError: one is not two")
    assert end[2].startswith("  test_some.test_without_its_fixture: ")
    assert "no store" in end[2]
    assert end[3:4] == ["never lane: exit status 2"]
    assert "never.xml" in end[4]
    assert "---- test_some.test_bad" in told
    assert any("1 == 2" in line for line in told)
    assert not any("test_good" in line for line in told)


def test_many_failures_do_not_push_their_names_out_of_sight(tmp_path: Path) -> None:
    case = '<testcase classname="a" name="t{}"><failure message="m{}">' + "line\n" * 50 + "</failure></testcase>"
    cases = "".join(case.format(number, number) for number in range(30))
    report = tmp_path / "hidden.xml"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    told = digest([report], [1]).splitlines()
    assert sum(line == "line" for line in told) == TOLD_TESTS * TOLD_LINES
    assert [line for line in told if line.startswith("  a.t")] == [f"  a.t{number}: m{number}" for number in range(30)]
