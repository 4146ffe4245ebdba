"""The `cowsync` command: a bucket and its mirror.

One rule: this is the outermost rim: commands are put together here, and cowsync's errors are given their exit codes.
"""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

import typer

from cowsync.errors import ClusterUnavailable, Held, Refused, StateDamaged
from cowsync.scan.engine import WorkerLost, collect_seldom
from s3core.console import new_program, run_and_exit
from s3core.exit_codes import ExitCode, register

for _kind, _code in (
    (Held, ExitCode.REFUSED),
    (Refused, ExitCode.REFUSED),
    (StateDamaged, ExitCode.CORRUPT),
    (WorkerLost, ExitCode.UNAVAILABLE),
    (ClusterUnavailable, ExitCode.UNAVAILABLE),
):
    register(_kind, _code)

ABOUT = "Keep a mirror of a bucket: what changed, the exact list to copy, the copy itself, restore points."

Command = Callable[..., object]


def _mirrors() -> dict[str, Command]:
    from cowsync import mirror_commands

    return {"init": mirror_commands.init, "list": mirror_commands.list_mirrors, "status": mirror_commands.status}


def _doctor() -> dict[str, Command]:
    from cowsync import doctor_command

    return {"doctor": doctor_command.doctor}


def _plans() -> dict[str, Command]:
    from cowsync import plan_commands as of

    return {"plan": of.plan, "plans": of.plans, "show": of.show, "explain": of.explain, "export": of.export}


def _imports() -> dict[str, Command]:
    from cowsync import import_commands as of

    return {"import-inventory": of.import_inventory, "import-results": of.import_results}


def _applies() -> dict[str, Command]:
    from cowsync import apply_commands

    return {"apply": apply_commands.apply, "run": apply_commands.run, "verify": apply_commands.verify}


def _watch() -> dict[str, Command]:
    from cowsync import watch_command

    return {"watch": watch_command.watch}


def _decrypt() -> dict[str, Command]:
    from cowsync import decrypt_command

    return {"decrypt": decrypt_command.decrypt}


def _snapshots() -> typer.Typer:
    from cowsync import snapshot_commands

    return snapshot_commands.app


def _keys() -> typer.Typer:
    from cowsync import key_commands

    return key_commands.app


_COMMANDS: Final[Mapping[str, Callable[[], dict[str, Command]]]] = MappingProxyType(
    {
        "init": _mirrors,
        "list": _mirrors,
        "status": _mirrors,
        "doctor": _doctor,
        "plan": _plans,
        "import-inventory": _imports,
        "import-results": _imports,
        "plans": _plans,
        "show": _plans,
        "explain": _plans,
        "export": _plans,
        "apply": _applies,
        "run": _applies,
        "watch": _watch,
        "verify": _applies,
        "decrypt": _decrypt,
    }
)
"""Where each command comes from, in the order of the help. What a command does not need is not imported for it: all of
them together take longer than a scan of a hundred thousand keys."""
_GROUPS: Final = (_snapshots, _keys)


def program(wanted: str = "") -> typer.Typer:
    """`cowsync` with the one command `wanted`, or with all of them where it is none that stands by itself."""
    app = new_program("cowsync", ABOUT)
    for name in (wanted,) if wanted in _COMMANDS else _COMMANDS:
        app.command(name)(_COMMANDS[name]()[name])
    if wanted not in _COMMANDS:
        for group in _GROUPS:
            app.add_typer(group())
    return app


def __getattr__(name: str) -> Any:
    """`app` is the whole program, put together when somebody asks for it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = program()
    return globals()["app"]


def main() -> NoReturn:
    app = program(sys.argv[1] if len(sys.argv) > 1 else "")
    collect_seldom()
    run_and_exit(app, "cowsync")
