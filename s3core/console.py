"""What the tools print: tables, JSON, progress and errors, alike in every command.

One rule: standard output carries the answer and nothing else; progress, notes and errors go to standard error. `--json`
makes the answer one JSON document and an error one JSON object. Text that came from elsewhere (names, keys, messages)
is never taken for markup, and control characters in it are shown, not sent to the terminal.

Rich is imported when a table or a bar is drawn: it takes longer than many a command.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer

from s3core.exit_codes import ExitCode, exit_code_of, shown_name
from s3core.quantities import shown_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

DEBUG_VARIABLE = "BUCKETWORKS_DEBUG"
PLAIN_INTERVAL_S = 5.0

JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the record's key, its heading, and how its values are written."""

    key: str
    heading: str
    shown: Callable[[Any], str] = field(default=lambda value: "" if value is None else str(value))
    justify: Literal["left", "right"] = "left"


def size_column(key: str, heading: str) -> Column:
    """A column of byte counts, written as people read them; JSON keeps the number."""
    return Column(key, heading, lambda size: "" if size is None else shown_size(size), "right")


def new_app(name: str, about: str) -> typer.Typer:
    """A command group that behaves like every other of ours: help without arguments, plain tracebacks, no markup."""
    return typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        write_line(f"{context.info_name} {program_version()}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
]
"""Of a command without commands below it; `new_program` brings it to the others."""


def new_program(name: str, about: str) -> typer.Typer:
    """The top of a command: a group with `--version` beside its commands."""
    app = new_app(name, about)

    @app.callback(help=about)
    def top(show_version: VersionOption = False) -> None:
        """What holds for every command."""

    return app


def program_version() -> str:
    """The version of what is installed, which all commands share."""
    try:
        return version("bucketworks")
    except PackageNotFoundError:  # run from a source tree that nobody installed
        return "0"


def clean(text: str) -> str:
    """`text` with control characters made visible, so that a key from a bucket cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def write_records(records: Sequence[Mapping[str, object]], columns: Sequence[Column], *, as_json: bool) -> None:
    """The answer of a list command: a table of `columns`, or a JSON list with everything the records hold."""
    if as_json:
        write_json(list(records))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=False, overflow="fold")
    for record in records:
        table.add_row(*(clean(column.shown(record.get(column.key))) for column in columns))
    _stdout().print(table)


def write_record(record: Mapping[str, object], lines: Sequence[Column], *, as_json: bool) -> None:
    """The answer about one thing: a line for each of `lines`, or a JSON object with everything."""
    if as_json:
        write_json(record)
        return
    width = max((len(line.heading) for line in lines), default=0)
    for line in lines:
        write_line(f"{line.heading:<{width}}  {line.shown(record.get(line.key))}")


def write_json(answer: object) -> None:
    json.dump(answer, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def write_line(text: str = "") -> None:
    """One line of the answer, as it is: never folded, coloured or taken for markup."""
    sys.stdout.write(clean(text) + "\n")


def write_note(text: str) -> None:
    """One line beside the answer, on standard error."""
    sys.stderr.write(clean(text) + "\n")
    sys.stderr.flush()


class Progress:
    """How far a long act has come. `advance` may be called from any thread and as often as one likes."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report

    def advance(self, amount: float = 1) -> None:
        self._report(amount)


@contextmanager
def progress(
    label: str,
    total: float | None,
    *,
    unit: Literal["bytes", "items"] = "items",
    quiet: bool = False,
    stream: TextIO | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show an act's progress on standard error while the block runs: a bar on a terminal, otherwise a line at the
    start, one every few seconds and one at the end. `quiet` shows nothing."""
    out = stream or sys.stderr
    if quiet:
        yield Progress(lambda amount: None)
        return
    if out.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        counter: ProgressColumn = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), counter, TimeRemainingColumn())
        with RichProgress(*columns, console=Console(file=out, markup=False, highlight=False)) as bars:
            task = bars.add_task(clean(label), total=total)
            yield Progress(lambda amount: bars.advance(task, amount))
        return
    lines = _PlainProgress(clean(label), total, unit, out, now)
    yield Progress(lines.advance)
    lines.finish()


class _PlainProgress:
    def __init__(self, label: str, total: float | None, unit: str, out: TextIO, now: Callable[[], float]) -> None:
        self._label, self._total, self._unit, self._out, self._now = label, total, unit, out, now
        self._done = 0.0
        self._last = now()
        self._write("started")

    def advance(self, amount: float) -> None:
        self._done += amount
        if self._now() - self._last >= PLAIN_INTERVAL_S:
            self._last = self._now()
            self._write(self._state())

    def finish(self) -> None:
        self._write(f"done, {self._amount(self._done)}")

    def _state(self) -> str:
        if not self._total:
            return self._amount(self._done)
        return f"{self._amount(self._done)} of {self._amount(self._total)} ({100 * self._done / self._total:.0f} %)"

    def _amount(self, amount: float) -> str:
        return shown_size(int(amount)) if self._unit == "bytes" else f"{amount:.0f}"

    def _write(self, text: str) -> None:
        self._out.write(f"{self._label}: {text}\n")
        self._out.flush()


def print_error(error: BaseException, *, as_json: bool = False, stream: TextIO | None = None) -> ExitCode:
    """Say what happened, to what, and what to do; returns the exit code that goes with it. A bug prints its traceback
    first (without values of variables, so no secret can be in it)."""
    out = stream or sys.stderr
    code = exit_code_of(error)
    message, hint = _message(error)
    if code is ExitCode.BUG or os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error, file=out)
    if code is ExitCode.BUG:
        message = f"{type(error).__name__}: {message}"
        hint = hint or "this is a fault of the program; please report it with the lines above"
    if as_json:
        answer = {"code": int(code), "name": shown_name(code), "message": message, "hint": hint}
        out.write(json.dumps({"error": answer}) + "\n")
    else:
        out.write(f"error: {clean(message)}\n")
        if hint:
            out.write(f"  {clean(hint)}\n")
    out.flush()
    return code


_running = ""


def command_name() -> str:
    """What runs in this process, for records: the program and its command, such as `cowsync snapshot prune`; no arguments. ""
    where it was not `run` that began it."""
    return _running


def _command(app: typer.Typer, name: str, given: Sequence[str]) -> str:
    words = [name]
    for word in given:
        if word.startswith("-"):
            break
        words.append(word)
        group = next((one for one in app.registered_groups if _group_name(one) == word), None)
        if group is None or group.typer_instance is None:
            break
        app = group.typer_instance
    return " ".join(words)


def _group_name(group: "typer.models.TyperInfo") -> str:
    """As given with `add_typer`, or where the group was made."""
    named = (group.name, group.typer_instance.info.name if group.typer_instance is not None else None)
    return next((name for name in named if isinstance(name, str)), "")


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> ExitCode | int:
    """Run a command line (without the program's name; `sys.argv` by default) and return its exit code. Every failure
    is printed by `print_error`; nothing escapes. A command says no by raising `typer.Exit(ExitCode.FINDING)`."""
    global _running
    given = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in given
    _running = _command(app, name, given)
    for name_of_stream in ("stdout", "stderr"):
        if getattr(sys, name_of_stream) is None:  # closed by whoever started us, who wants nothing of it
            setattr(sys, name_of_stream, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process
    try:
        answer = app(given, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return answer if isinstance(answer, int) else ExitCode.OK
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        write_note("interrupted")
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        write_note("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more while it flushes at exit: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except typer.TyperException as error:
        return _print_usage(error, name, as_json)
    except Exception as error:  # noqa: BLE001 - the one place where everything must end in a message and a code
        return print_error(error, as_json=as_json)


def run_and_exit(app: typer.Typer, name: str) -> NoReturn:
    """The body of a console script. SIGTERM ends the command in order (its `finally` blocks run)."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(int(run(app, name)))


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))


def _print_usage(error: typer.TyperException, name: str, as_json: bool) -> ExitCode:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else name
    if as_json:
        answer = {"code": int(ExitCode.USAGE), "name": shown_name(ExitCode.USAGE), "message": text, "hint": ""}
        sys.stderr.write(json.dumps({"error": answer}) + "\n")
    elif text.startswith("Usage:"):
        write_note(text)  # a command group called without a command answers with its help
    elif text:
        write_note(f"error: {text}\n  see: {command} --help")
    return ExitCode.USAGE


def _message(error: BaseException) -> tuple[str, str]:
    hint = str(getattr(error, "hint", "") or "")
    message = str(error).removesuffix(f" ({hint})") if hint else str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return message or type(error).__name__, hint


def _stdout() -> "Console":
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            """Rich would end the program with 1, which says that something was found."""
            raise BrokenPipeError

    wide = None if sys.stdout.isatty() else 10_000
    return PipedConsole(file=sys.stdout, markup=False, highlight=False, emoji=False, width=wide)
