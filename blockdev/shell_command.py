"""`s3block shell`: stores, volumes, snapshots and LUNs as a tree, as users of targetcli know it (configshell).

One rule: it does nothing itself. Every command is an `s3block` command line, run as if it had been typed; what the tree
shows is what those commands answer with `--json`, asked at most once for each line that is entered.

    /stores/PLACE/VOLUME            volumes in places of stores: those of the configuration, and those opened here
    /volumes/VOLUME/SNAPSHOT        volumes of the configuration
    /lio/VOLUME/PORTAL              volumes behind the kernel's target
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockdev.errors import Refused
from s3core.console import write_note
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode, shown_name
from s3core.quantities import shown_size

if TYPE_CHECKING:
    from blockdev.shell_tree import Root

Run = Callable[[Sequence[str]], int]
"""Runs a command line of `s3block` (without its name), prints what it prints; its exit code."""

MISSING = "install it: `pip install bucketworks[lio]`, or the Debian package python3-configshell-fb"
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATH] [COMMAND] [ARGUMENT...]",
        help="One line to run, such as: /volumes ls. Without it, lines are read from standard input.",
        show_default=False,
    ),
]


class Commands:
    """The program's commands, as the tree asks for them."""

    def __init__(self, run: Run, config_path: Path | None) -> None:
        self._run = run
        self._more = ["--config", str(config_path)] if config_path is not None else []
        self._answers: dict[tuple[str, ...], Any] = {}
        self.code = 0
        """Of the last one that was run."""
        self.stores: dict[str, None] = {}
        """Places that were opened in this shell."""

    def new_line(self) -> None:
        """What was answered for the last line counts no more."""
        self._answers.clear()

    def perform(self, *words: str, options: Mapping[str, str] | None = None) -> int:
        """Run it in the open; its exit code."""
        self._answers.clear()
        sys.stdout.flush()
        self.code = int(self._run([*words, *flags(options or {}), *self._more]))
        sys.stdout.flush()
        return self.code

    def ask(self, *words: str) -> Any:
        """What it answers with --json; None if it failed. Its messages are not shown."""
        if words not in self._answers:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                code = self._run([*words, "--json", *self._more])
            # 1 and what `list` ends with when one of many cannot be reached are answers, too.
            try:
                self._answers[words] = json.loads(said.getvalue())
            except ValueError:
                self._answers[words] = None
                self.code = code
        return self._answers[words]


def flags(options: Mapping[str, str]) -> list[str]:
    """`name=value` as options of a command line; true and false as those without a value."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value in ("true", "yes"):
            words.append(f"--{flag}")
        elif value in ("false", "no"):
            words.append(f"--no-{flag}")
        else:
            words += [f"--{flag}", value]
    return words


def command(run: Run) -> Callable[..., None]:
    """The command itself; `run` runs all the others."""

    def shell(words: WordsArgument = None, config_path: ConfigOption = None) -> None:
        """A shell with stores, volumes, snapshots and LUNs as a tree: ls, cd, help, and the commands of each place.

        Options are written NAME=VALUE, such as: /volumes create vm1 size=10G. Needs configshell-fb."""
        commands = Commands(run, config_path)
        root = _tree(commands)
        if words:
            lines: Iterable[str] = [" ".join(words)]
        elif sys.stdin.isatty():
            _interact(root)
            return
        else:
            lines = sys.stdin
        code = _run_lines(root, lines)
        if code:
            raise typer.Exit(code)

    return shell


def _tree(commands: Commands) -> "Root":
    try:
        from blockdev.shell_tree import plant
    except ImportError as error:
        raise Refused(f"the shell needs configshell-fb: {error}", hint=MISSING) from error
    return plant(commands)


def _run_lines(root: "Root", lines: Iterable[str]) -> int:
    """Run them one after the other until one fails; its exit code. FINDING is an answer and stops nothing."""
    finding = 0
    for line in lines:
        text = re.sub(r"^\s*#.*", "", line).strip()
        if not text:
            continue
        failed = root.run(text)
        sys.stdout.flush()
        if failed:
            write_note(f"error: {text}: {failed}")
            return root.commands.code or int(ExitCode.USAGE)
        if root.commands.code == ExitCode.FINDING:
            finding = int(ExitCode.FINDING)
        if root.left:
            break
    return finding


def _interact(root: "Root") -> None:
    write_note("s3block shell: `ls` shows the tree, `cd` goes through it, `help` lists commands, `exit` leaves")
    root.interact()


def ended(code: int) -> str:
    """What to say of a command that failed; it has said more itself."""
    name = shown_name(ExitCode(code)) if code in list(ExitCode) else "unknown"
    return f"ended with {code} ({name})"


def size_and(size: object, *more: object) -> str:
    """A summary: a size as people read it, and words; what is empty is left out."""
    words = [shown_size(size)] if isinstance(size, int) else []
    return ", ".join([*words, *(str(word) for word in more if word)])
