"""The bash that pages are run in: one for all blocks, stopped at the first that fails, and nothing survives it."""

from pathlib import Path

from tests.tutorials.page import parse
from tests.tutorials.session import Outcome, run


def run_text(text: str, directory: Path, *, limit_s: float = 120.0) -> Outcome:
    return run("page.md", parse(text).run, directory, environment={"GIVEN": "here"}, limit_s=limit_s)


def test_blocks_share_one_shell_and_an_empty_home(tmp_path: Path) -> None:
    outcome = run_text(
        '```sh\nls -A "$HOME"\nname=vm1\n```\n\n```sh\necho "$name $GIVEN"; cat\n```\n', tmp_path / "run"
    )
    assert outcome == Outcome(["", "vm1 here\n"], 0, [])


def test_a_failure_stops_the_page_and_names_its_line(tmp_path: Path) -> None:
    outcome = run_text(
        "```sh\ntrue\n```\ntext\n```sh\necho before\nno-such-command\n```\n```sh\necho after\n```\n", tmp_path / "run"
    )
    assert outcome.status == 127
    assert len(outcome.outputs) == 2
    assert outcome.outputs[1].startswith("before\n")
    assert "page.md: line 7: no-such-command" in outcome.outputs[1]


def test_a_failure_within_a_pipe_and_an_unset_name_are_failures(tmp_path: Path) -> None:
    assert run_text("```sh\nfalse | true\n```\n", tmp_path / "pipe").status == 1
    assert not run_text('```sh\necho "$nothing"\n```\n', tmp_path / "unset").complete


def test_what_is_left_running_is_ended_and_told(tmp_path: Path) -> None:
    # The second leaves the process group, as a daemon does.
    outcome = run_text("```sh\nsleep 10007 &\nsetsid sleep 20011 &\nsleep 0.2\n```\n", tmp_path / "run")
    assert outcome.status == 0
    assert sorted(outcome.left) == ["sleep 10007", "sleep 20011"]
    words = [file.read_bytes().split(b"\0")[:2] for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert [b"sleep", b"10007"] not in words
    assert [b"sleep", b"20011"] not in words


def test_a_page_that_hangs_is_ended(tmp_path: Path) -> None:
    outcome = run_text("```sh\necho begun\nsleep 1000\n```\n", tmp_path / "run", limit_s=2.0)
    assert outcome.status is None
    assert outcome.outputs == ["begun\n"]


def test_the_commands_are_those_of_this_tree(tmp_path: Path) -> None:
    outcome = run_text(
        "```sh\ncommand -v s3block cowsync bucketworks s3integrity pve-s3 s3-envctl\ns3block --version\n```\n",
        tmp_path / "run",
    )
    assert outcome.complete
    assert outcome.outputs[0].splitlines()[0] == str(tmp_path / "run/bin/s3block")
