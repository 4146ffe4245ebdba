"""The settings as a table for people: docs/settings.md and the help texts are drawn from here.

One rule: nothing is written down twice. Every row is read off the models in `settings`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr

from s3core.quantities import written_size
from s3core.settings import DEFAULT_PATH, PATH_VARIABLE, TABLES

_NOT_LITERAL = ("unset", "empty", "required")

_HEAD = """\
# Settings

<!-- Drawn from s3core/settings.py by `make docs`; a test compares. -->

Every tool reads `{path}`, or the file that `--config` or `{variable}` names.
The file is TOML; one that is not there counts as empty. A key or table nobody knows is an error that names the nearest
one.

- **Sizes** (`bytes`) are whole numbers or text: `10G`, `64MiB` (powers of 1024), `500MB` (powers of 1000).
- **Durations** (`seconds`) are numbers or text: `5s`, `500ms`, `2min`, `1h`.
- **Lists** may be written as their only member.
- **Secrets** never stand on a command line and are never printed. A file that holds one must have mode 0600, the
  configuration file too if `secret_key` is in it.
- An **endpoint's keys** are looked for where `credentials` says:
  - `environment`: the variables `BUCKETWORKS_NAME_ACCESS_KEY` and `BUCKETWORKS_NAME_SECRET_KEY` (NAME in capitals, with
    `_` for anything but letters and digits), then `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`;
  - `file:PATH`: a file with the lines `access_key = "..."` and `secret_key = "..."`;
  - `systemd:NAME`: the same lines in a credential of that name (`LoadCredential=NAME:/path`);
  - `profile:NAME`: the keys of an AWS profile in `~/.aws/credentials` or `~/.aws/config`;
  - `none`: requests are sent unsigned.

An example that uses most of them is `deploy/config.example.toml`. `bucketworks config check` examines a file, `config show
--resolved` prints what the tools make of it; a first line `version = 1` may say which version it is of
([configuration](configuration.md)).
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row, each column as people read it. `default` is "required" where there is none."""

    table: str
    name: str
    type: str
    unit: str
    default: str
    reason: str


def settings_table() -> Iterator[Setting]:
    """Every setting there is, in the order of the documentation."""
    for table, model in TABLES:
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                continue
            unit = _unit(name)
            default = "required" if field.is_required() else _shown(field.default, unit)
            yield Setting(table, name, _shown_type(field.annotation, unit), unit, default, field.description or "")


def reason(table: str, name: str) -> str:
    """What a setting is for, with its default, for `--help`. KeyError for one that does not exist."""
    for row in settings_table():
        if (row.table, row.name) == (table, name):
            return row.reason if row.default in _NOT_LITERAL else f"{row.reason} [{row.default}]"
    raise KeyError(f"[{table}] {name}")


def settings_markdown() -> str:
    """The whole of docs/settings.md."""
    lines = [_HEAD.format(path=DEFAULT_PATH, variable=PATH_VARIABLE).rstrip()]
    for table, model in TABLES:
        about = (model.__doc__ or "").strip().removeprefix(f"`[{table}]`: ")
        lines += ["", f"## `[{table}]`", "", about[:1].upper() + about[1:], ""]
        lines += ["| setting | type | unit | default | what for |", "| --- | --- | --- | --- | --- |"]
        for row in settings_table():
            if row.table == table:
                default = row.default if row.default in _NOT_LITERAL else f"`{row.default}`"
                lines.append(f"| `{row.name}` | {row.type} | {row.unit} | {default} | {row.reason} |")
    return "\n".join(lines) + "\n"


def _unit(name: str) -> str:
    rates = {"requests_per_s": "requests/s", "bytes_per_s": "bytes/s"}
    endings = {"_bytes": "bytes", "_s": "seconds", "_percent": "%"}
    return rates.get(name) or next((unit for end, unit in endings.items() if name.endswith(end)), "")


def _shown(default: object, unit: str) -> str:
    if default is None:
        return "unset"
    if isinstance(default, tuple):
        return "[" + ", ".join(f'"{one}"' for one in default) + "]" if default else "empty"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int):
        return written_size(default) if unit.startswith("bytes") else str(default)
    if isinstance(default, float):
        return f"{default:g}s" if unit == "seconds" else f"{default:g}"
    return str(default) or "empty"


def _shown_type(annotation: Any, unit: str) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _shown_type(arguments[0], unit)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return "list of text"
    if arguments:
        return _shown_type(next(one for one in arguments if one is not type(None)), unit)
    if annotation in (int, float) and unit in ("bytes", "bytes/s", "seconds"):
        return "duration" if unit == "seconds" else "size"
    return {bool: "true or false", int: "whole number", float: "number", SecretStr: "secret"}.get(annotation, "text")
