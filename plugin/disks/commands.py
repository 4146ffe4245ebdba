"""Running `s3block`: one command, one process, one deadline.

One rule: a command that is not done when its time is over is ended (SIGTERM, which lets it detach in order, then SIGKILL)
and is told as `deadline`: what it was doing may be done or not. Every command may be ended anywhere: a volume it had attached
counts as attached on this node then, with its journal in the state directory, and the next command or `s3block serve` here
goes on from it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from plugin.errors import DeadlineOver, PluginError
from s3core.exit_codes import ExitCode

TERM_PATIENCE_S: Final = 2.0
_CODES: Final = {
    ExitCode.USAGE: "configuration",
    ExitCode.CONFIGURATION: "configuration",
    ExitCode.NOT_FOUND: "not-found",
    ExitCode.DENIED: "denied",
    ExitCode.UNAVAILABLE: "unavailable",
    ExitCode.REFUSED: "refused",
    ExitCode.CORRUPT: "corrupt",
    ExitCode.LOCAL: "refused",
    ExitCode.UNKNOWN_OUTCOME: "deadline",
    ExitCode.PARTIAL: "unavailable",
    ExitCode.TERMINATED: "deadline",
}
"""Exit codes as words of the protocol (docs/exit-codes.md); any other is a bug."""


class CommandFailed(PluginError):
    """`s3block` said no; `code` is the protocol's word."""

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.retryable = code in ("unavailable", "busy", "deadline")


def program() -> list[str]:
    """`s3block` of this very installation."""
    return [sys.executable, "-c", "from blockdev.cli import main; main()"]


def run(config: Path, words: Sequence[str], *, until: float) -> Any:
    """The answer (JSON) of `s3block WORDS`. `until`: on the monotonic clock. Raises CommandFailed, DeadlineOver."""
    patience = until - time.monotonic()
    if patience <= 0:
        raise DeadlineOver(f"no time was left to {words[0]}; nothing was done")
    process = subprocess.Popen(
        [*program(), *words, "--json", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        _end(process)
        raise DeadlineOver(
            f"`s3block {' '.join(words[:2])}` was not done within {patience:.0f} s",
            hint="is the store reachable? Look at the disk before doing it again",
        ) from None
    except BaseException:
        _end(process)
        raise
    if process.returncode == 0:
        return json.loads(out) if out.strip() else {}
    raise _failure(process.returncode, err, words)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.communicate(timeout=TERM_PATIENCE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _failure(status: int, err: bytes, words: Sequence[str]) -> CommandFailed:
    message, hint = "", ""
    lines = err.decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            told = json.loads(line)["error"]
            message, hint = str(told["message"]), str(told["hint"])
            break
        except (ValueError, KeyError, TypeError):
            continue
    message = message or (lines[-1] if lines else "") or f"`s3block {words[0]}` ended with {status}"
    try:
        code = _CODES.get(ExitCode(status), "bug")
    except ValueError:
        code = "unavailable" if status < 0 else "bug"  # by a signal
    return CommandFailed(message, code=code, hint=hint)
