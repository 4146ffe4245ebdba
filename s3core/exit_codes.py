"""Exit codes: one table for all tools, and which failure ends in which.

One rule: a code says who must act, and means the same in every tool. docs/exit-codes.md is drawn from the table.
Packages above this one bring the mapping of their own errors with `register`; the nearest class in an error's ancestry
wins.
"""

import errno
from enum import IntEnum

from s3core.credentials import CredentialsError
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.settings import ConfigError


class ExitCode(IntEnum):
    """What the shell sees. 1 is an answer, not a failure of the tool; from 2 on nothing more was done."""

    OK = 0
    FINDING = 1
    USAGE = 2
    CONFIGURATION = 3
    NOT_FOUND = 4
    DENIED = 5
    UNAVAILABLE = 6
    REFUSED = 7
    CORRUPT = 8
    LOCAL = 9
    UNKNOWN_OUTCOME = 10
    PARTIAL = 11
    TAMPERED = 12
    BUG = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


MEANINGS: dict[ExitCode, tuple[str, str]] = {
    ExitCode.OK: ("what was asked is done", "nothing"),
    ExitCode.FINDING: ("a check ran to its end and its answer is no, or it found something", "read the findings"),
    ExitCode.USAGE: ("the command line cannot be understood", "see `--help`"),
    ExitCode.CONFIGURATION: (
        "the configuration file, credentials or an endpoint's settings cannot work as they are",
        "change what the message names, then run it again",
    ),
    ExitCode.NOT_FOUND: ("the bucket, object, volume or file is not there", "check the name; create it"),
    ExitCode.DENIED: ("the store or this host refused permission", "grant what the message names"),
    ExitCode.UNAVAILABLE: ("the store cannot be reached or is overloaded", "run it again later; nothing was lost"),
    ExitCode.REFUSED: (
        "things as they are forbid it: in use, fenced, exists already, or the store cannot do what is needed",
        "decide; the message names the choice",
    ),
    ExitCode.CORRUPT: (
        "stored data is damaged; key and offset are in the message",
        "keep everything; repair or restore",
    ),
    ExitCode.LOCAL: (
        "this host's disk, memory or another local resource failed or is full",
        "make room; check the disk",
    ),
    ExitCode.UNKNOWN_OUTCOME: (
        "a request was sent and its answer lost: it may have been applied",
        "look before doing it again",
    ),
    ExitCode.PARTIAL: (
        "part of it is done; the rest failed, was left alone or was not tried",
        "read what was not done; the same command goes on with it",
    ),
    ExitCode.TAMPERED: (
        "evidence contradicts itself: what a ledger signed or chained is missing, changed or cut off",
        "keep everything as it is; the message names the object, the time window and the last good state",
    ),
    ExitCode.BUG: ("the tool itself is wrong", "report it with the text above the message"),
    ExitCode.INTERRUPTED: ("stopped with Ctrl-C (128 + SIGINT)", "the same command goes on or starts anew"),
    ExitCode.BROKEN_PIPE: ("whoever read the output went away (128 + SIGPIPE)", "nothing"),
    ExitCode.TERMINATED: ("stopped by SIGTERM before it was done (128 + SIGTERM)", "as after Ctrl-C"),
}

_CODES: dict[type[BaseException], ExitCode] = {
    NotFound: ExitCode.NOT_FOUND,
    PreconditionFailed: ExitCode.REFUSED,
    Denied: ExitCode.DENIED,
    Misconfigured: ExitCode.CONFIGURATION,
    Unsupported: ExitCode.REFUSED,
    Unavailable: ExitCode.UNAVAILABLE,
    Corrupt: ExitCode.CORRUPT,
    OutcomeUnknown: ExitCode.UNKNOWN_OUTCOME,
    StoreError: ExitCode.UNAVAILABLE,
    ConfigError: ExitCode.CONFIGURATION,
    CredentialsError: ExitCode.CONFIGURATION,
    FileNotFoundError: ExitCode.NOT_FOUND,
    PermissionError: ExitCode.DENIED,
    FileExistsError: ExitCode.REFUSED,
    BrokenPipeError: ExitCode.BROKEN_PIPE,
    ConnectionError: ExitCode.UNAVAILABLE,
    TimeoutError: ExitCode.UNAVAILABLE,
    OSError: ExitCode.LOCAL,
    MemoryError: ExitCode.LOCAL,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
}


def register(kind: type[Exception], code: ExitCode) -> None:
    """Map an error type of a package above to a code. Saying the same twice is fine; ValueError on a change of mind."""
    if _CODES.setdefault(kind, code) is not code:
        raise ValueError(f"{kind.__name__} already ends in exit code {_CODES[kind]}, not {code}")


def exit_code_of(error: BaseException) -> ExitCode:
    """The code for an error: of the nearest registered class, BUG where there is none."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ExitCode.REFUSED
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return ExitCode.BUG


def exit_codes_markdown() -> str:
    """The whole of docs/exit-codes.md."""
    lines = [
        "# Exit codes",
        "",
        "<!-- Drawn from s3core/exit_codes.py by `make docs`; a test compares. -->",
        "",
        "One table for all tools. A code says who must act; the message on standard error says what happened, to what,",
        "and what to do. With `--json` it is one JSON object: `error`, with `code`, `name`, `message` and `hint`.",
        "",
        "| code | name | meaning | what to do |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {code.value} | `{shown_name(code)}` | {MEANINGS[code][0]} | {MEANINGS[code][1]} |" for code in ExitCode
    ]
    return "\n".join(lines) + "\n"


def shown_name(code: ExitCode) -> str:
    """The name as messages and documents write it: `not-found`."""
    return code.name.lower().replace("_", "-")
