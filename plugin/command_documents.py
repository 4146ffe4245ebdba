"""docs/plugin/commands.md: every command of the plugin, drawn from the commands themselves.

One rule: pure; a test compares the document with what is drawn here.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Final

import typer
from typer.main import get_command

from plugin import backup_command, cli, maintenance_command, restore_command

PROGRAMS: Final[dict[str, typer.Typer]] = {
    "pve-s3": cli.app,
    "pve-s3-backup": backup_command.app,
    "pve-s3-restore": restore_command.app,
    "pve-s3-maintenance": maintenance_command.app,
}
_SHARED: Final = frozenset({"--help", "--version", "--install-completion", "--show-completion"})
_HEAD: Final = """# Commands on a node

<!-- Drawn from plugin/command_documents.py by `make docs`; a test compares. -->

Proxmox VE needs none of these: they are for people, and for units. They read `/etc/pve/storage.cfg` and
`/etc/pve/priv/storage`; where there is none, the environment names one storage: `S3_ENDPOINT`, `S3_BUCKET`, `S3_REGION`,
`S3_PREFIX`, `S3_ACCESS_KEY`, `S3_SECRET_KEY`, or an INI file (`--credentials`; `/etc/bucketworks/pve-credentials.ini`) in the
form of AWS's credentials file, with `bucket`, `endpoint` and the others beside the keys. `PVE_S3_LOG_LEVEL` (debug, info,
warning, error) says what they log; `PVE_S3_DEBUG=1` is debug and shows where an error came from. Exit codes:
[exit-codes.md](../exit-codes.md).

What sends and fetches shows its progress, goes on after a crash when it is called again, and says so when there is nothing
left to do. `--json` makes the answer one JSON document.
"""


def commands_markdown() -> str:
    """The whole of docs/plugin/commands.md."""
    lines = [_HEAD]
    for name, app in PROGRAMS.items():
        lines += _program(name, get_command(app))
    return "\n".join(lines).rstrip() + "\n"


def _program(name: str, command: Any, level: int = 2) -> Iterator[str]:
    if getattr(command, "hidden", False):
        return
    yield f"{'#' * level} {name}"
    yield ""
    yield " ".join(inspect.cleandoc(command.help or "").split())
    yield ""
    inner = getattr(command, "commands", None)
    if inner:
        for word, one in inner.items():
            yield from _program(f"{name} {word}", one, 3)
        return
    arguments = [
        one for one in command.params if one.param_type_name == "argument" and not getattr(one, "hidden", False)
    ]
    options = [
        one
        for one in command.params
        if one.param_type_name == "option" and not one.hidden and not _SHARED.intersection(one.opts)
    ]
    context = command.make_context(name, [], resilient_parsing=True)
    usage = [name, *(_shown(one) for one in arguments)]
    usage += [f"{one.opts[0]} {_value(one, context)}" for one in options if one.required]
    yield f"`{' '.join(usage)}`"
    yield ""
    if arguments or options:
        yield "| argument | what it is |"
        yield "| --- | --- |"
    for one in (*arguments, *options):
        yield f"| {_cell(one, context)} | {' '.join((one.help or '').split())}{_default(one)} |"
    yield ""


def _shown(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return str(name)


def _value(option: Any, context: Any) -> str:
    text = str(option.metavar or option.display_type(context)).replace("|", ", ").strip("[]<>")
    return "FILE" if text == "path" else text


def _cell(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_shown(parameter)}`"
    flags = ", ".join(f"`{one}`" for one in parameter.opts)
    if parameter.is_flag:
        return flags
    return f"{flags} {_value(parameter, context)}"


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.param_type_name == "argument" or parameter.required or parameter.is_flag or callable(default):
        return ""
    if default in (None, "", 0, 0.0, ()):
        return ""
    return f" (`{getattr(default, 'value', default)}`)"
