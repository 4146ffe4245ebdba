"""What commands print: answers on standard output, all else on standard error, and every failure with its code."""

import io
import json
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer

from s3core.console import (
    Column,
    JsonOption,
    new_app,
    print_error,
    progress,
    run,
    size_column,
    write_record,
    write_records,
)
from s3core.errors import Denied
from s3core.exit_codes import ExitCode

COLUMNS = (Column("name", "NAME"), size_column("size_bytes", "SIZE"))
RECORDS: list[dict[str, object]] = [
    {"name": "mail", "size_bytes": 1024**3},
    {"name": "[red]x\x1b[31m", "size_bytes": None},
]


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def app_that_raises(error: BaseException | None) -> typer.Typer:
    app = new_app("tool", "A tool.")

    @app.command()
    def act(count: Annotated[int, typer.Option()] = 1, as_json: JsonOption = False) -> None:
        """Do it."""
        if error:
            raise error

    @app.command()
    def other() -> None:
        """Do the other."""

    return app


def test_a_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_records(RECORDS, COLUMNS, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE"]
    assert lines[1].split() == ["mail", "1", "GiB"]
    assert lines[2].strip() == r"[red]x\x1b[31m"


def test_json_keeps_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    write_records(RECORDS, COLUMNS, as_json=True)
    assert json.loads(capsys.readouterr().out) == RECORDS
    write_record(RECORDS[0], COLUMNS, as_json=True)
    assert json.loads(capsys.readouterr().out) == RECORDS[0]


def test_a_record_is_a_line_for_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    write_record(RECORDS[0], COLUMNS, as_json=False)
    assert capsys.readouterr().out == "NAME  mail\nSIZE  1 GiB\n"


def test_progress_in_plain_lines() -> None:
    out, clock = io.StringIO(), Clock()
    with progress("export", 4 * 1024**2, unit="bytes", stream=out, now=clock) as shown:
        shown.advance(1024**2)
        clock.at = 6.0
        shown.advance(1024**2)
        shown.advance(2 * 1024**2)
    assert out.getvalue().splitlines() == [
        "export: started",
        "export: 2 MiB of 4 MiB (50 %)",
        "export: done, 4 MiB",
    ]


def test_progress_that_fails_does_not_say_done() -> None:
    out = io.StringIO()
    with pytest.raises(OSError, match="torn"), progress("export", None, stream=out):
        raise OSError("torn")
    assert out.getvalue() == "export: started\n"


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("export", 10, quiet=True) as shown:
        shown.advance()
    assert capsys.readouterr() == ("", "")


def test_an_error_says_what_to_what_and_what_to_do() -> None:
    out = io.StringIO()
    error = Denied("403 AccessDenied", key="a\x07b", hint="needs s3:PutObject on its objects")
    assert print_error(error, stream=out) is ExitCode.DENIED
    assert out.getvalue() == "error: a\\x07b: 403 AccessDenied\n  needs s3:PutObject on its objects\n"
    out = io.StringIO()
    print_error(error, as_json=True, stream=out)
    assert json.loads(out.getvalue())["error"] == {
        "code": 5,
        "name": "denied",
        "message": "a\x07b: 403 AccessDenied",
        "hint": "needs s3:PutObject on its objects",
    }


def test_an_operating_system_error_names_the_file() -> None:
    out = io.StringIO()
    assert print_error(FileNotFoundError(2, "No such file or directory", "/x/y"), stream=out) is ExitCode.NOT_FOUND
    assert out.getvalue() == "error: /x/y: No such file or directory\n"


def test_a_bug_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that_raises(RuntimeError("oops")), "tool", ["act"]) == ExitCode.BUG
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: RuntimeError: oops\n" in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (typer.Exit(ExitCode.FINDING), 1),
        (Denied("no"), 5),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (MemoryError(), 9),
    ],
)
def test_a_command_ends_with_the_code_of_its_failure(error: BaseException | None, code: int) -> None:
    assert run(app_that_raises(error), "tool", ["act"]) == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["act", "--cuont", "1"], "error: No such option: --cuont"),
        (["act", "--count", "many"], "Invalid value for '--count'"),
        (["atc"], "No such command 'atc'"),
        ([], "Usage: tool"),
    ],
)
def test_a_command_line_nobody_understands(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that_raises(None), "tool", arguments) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_usage_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that_raises(None), "tool", ["act", "--json", "--cuont"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().err)["error"]["name"] == "usage"


ANSWERS = """
import sys
import typer
from s3core.console import Column, new_app, run, write_line, write_records
app = new_app("t", "t")
@app.command()
def table() -> None:
    write_records([{"n": "x" * 200}] * 100, [Column("n", "N")], as_json=False)
@app.command()
def line() -> None:
    write_line("done")
sys.exit(int(run(app, "t", sys.argv[1:])))
"""


def test_whoever_stops_reading_a_table_is_no_finding() -> None:
    """1 would say that a check has found something."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", ANSWERS, "table"]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert done.returncode == ExitCode.BROKEN_PIPE
    assert done.stderr == b""


def test_a_command_without_standard_output_does_its_work() -> None:
    command = ["sh", "-c", 'exec "$0" -c "$1" line >&- 2>&-', sys.executable, ANSWERS]
    assert subprocess.run(command, check=False, timeout=60).returncode == ExitCode.OK
