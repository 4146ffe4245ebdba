"""A command for each verb, made from the table: `env.start` becomes `s3-envctl env start ENVIRONMENT`.

Fields of a request that stand in the path are arguments, all others options, with the help that the field's description is. The
answer is a table or lines; `--json` prints it as the API gave it. What is destructive asks, unless `--yes`.
"""

import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from urllib.parse import quote

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from envctl.errors import Refused
from envctl.remote import Remote, find_console
from envctl.verbs.verb import Stream, Verb
from s3core.console import Column, JsonOption, new_app, write_json, write_line, write_note, write_record, write_records

NOUNS: Final = {
    "env": "Environments: machines whose homes are kept.",
    "backup": "Backups of a home: look, compare, restore.",
    "template": "Templates that environments are cloned from.",
    "user": "Users.",
    "group": "Groups of users.",
    "quota": "Limits of users, groups and templates.",
    "token": "API tokens.",
    "profile": "Your own account.",
    "job": "What the console does to environments.",
    "admin": "What keeps the installation in order.",
    "settings": "Settings that are kept in the console.",
    "console": "Screens and terminals of machines.",
}
SHOWN_COLUMNS: Final = 8
MOMENTS: Final = ("_at", "delete_after", "destroyed_after")
"""How the names of fields end that hold a moment; `at` alone is one, too."""


def add_verbs(program: typer.Typer, verbs: tuple[Verb, ...]) -> None:
    groups: dict[str, typer.Typer] = {}
    for verb in verbs:
        noun, _, name = verb.name.partition(".")
        if noun not in groups:
            groups[noun] = new_app(noun, NOUNS[noun])
            program.add_typer(groups[noun])
        groups[noun].command(name.replace("_", "-"), help=verb.summary + ".")(_command(verb))


def _command(verb: Verb) -> Callable[..., None]:
    in_path = [part[1:-1].partition(":")[0] for part in verb.path.split("/") if part.startswith("{")]
    fields = verb.request.model_fields
    parameters = [_argument(name, fields[name]) for name in in_path]
    parameters += [_option(name, field) for name, field in fields.items() if name not in in_path]
    if verb.destructive:
        parameters.append(_plain("yes", Annotated[bool, typer.Option("--yes", help="Do not ask.")], False))
    if verb.answer is Stream:
        output = Annotated[Path | None, typer.Option("--output", "-o", help="Write here; `-` is standard output.")]
        parameters.append(_plain("output", output, None))
    else:
        parameters.append(_plain("as_json", JsonOption, False))

    def command(**given: Any) -> None:
        as_json = bool(given.pop("as_json", False))
        output: Path | None = given.pop("output", None)
        if verb.destructive and not given.pop("yes") and not _agreed(verb, given, in_path):
            raise Refused(f"{verb.name} was not agreed to", hint="--yes does it without asking")
        path = verb.path
        for name in in_path:
            # A name with `?`, `#` or `/` in it is a name still, and no other address.
            path = path.replace("{" + name + ":path}", quote(str(given[name]), safe="/"))
            path = path.replace("{" + name + "}", quote(str(given[name]), safe=""))
        told = {name: value for name, value in given.items() if name not in in_path and value not in (None, [], ())}
        with Remote(find_console(os.environ)) as remote:
            if verb.answer is Stream:
                _save(remote, verb, path, told, output)
                return
            answer = remote.call(verb.method, path, told)
        _show(verb, answer, as_json=as_json)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it, mypy has no word for it
    command.__name__ = verb.name.replace(".", "_")
    return command


def _plain(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _argument(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = int if _bare(field.annotation) is int else str
    shown = typer.Argument(help=field.description, metavar=name.upper(), show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, shown])


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Nothing that was not given is sent: the console's own default counts."""
    bare = _bare(field.annotation)
    flag = "--" + name.replace("_", "-")
    if bare is bool:
        kind: Any = bool | None
        shown = typer.Option(f"{flag}/--no-{flag[2:]}", help=field.description, show_default=False)
        default: Any = None
    elif name.endswith("_password"):
        # Asked for: what stands on the command line everybody on the host may read.
        kind, default = str, ""
        asked = name.replace("_", " ").capitalize()
        shown = typer.Option(
            flag, help=f"{field.description}; asked for", prompt=asked, hide_input=True, show_default=False
        )
    elif get_origin(bare) in (list, tuple, frozenset, set):
        kind, default = list[str] | None, None
        shown = typer.Option(flag, help=f"{field.description} (may be given more than once)", show_default=False)
    elif get_origin(bare) is dict:
        kind, default = list[str] | None, None
        shown = typer.Option(flag, help=f"{field.description} (KEY=VALUE)", callback=_pairs, show_default=False)
    else:
        kind = (bare if bare in (int, float) else str) | None
        default = None
        choices = f" ({', '.join(map(str, get_args(bare)))})" if get_origin(bare) is Literal else ""
        shown = typer.Option(flag, help=f"{field.description}{choices}", show_default=False)
    if field.is_required():
        default = inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])


def _pairs(given: list[str] | None) -> Any:
    if given is None:
        return None
    for one in given:
        if "=" not in one:
            raise typer.BadParameter(f"{one!r} is not KEY=VALUE")
    return dict(one.split("=", 1) for one in given)


def _bare(annotation: Any) -> Any:
    """Without `| None` and Annotated."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        left = [one for one in get_args(annotation) if one is not type(None)]
        if len(left) == 1:
            return _bare(left[0])
    return annotation


def _agreed(verb: Verb, given: Mapping[str, object], in_path: list[str]) -> bool:
    if not sys.stdin.isatty():
        return False
    what = " ".join(str(given[name]) for name in in_path)
    return typer.confirm(f"{verb.summary}: {what}?", err=True)


def _save(remote: Remote, verb: Verb, path: str, fields: Mapping[str, object], output: Path | None) -> None:
    """A file appears under its name when it is whole."""
    with remote.stream(verb.method, path, fields) as found:
        if output == Path("-"):
            for piece in found.iter_bytes():
                sys.stdout.buffer.write(piece)
            return
        told = found.headers.get("Content-Disposition", "")
        name = told.partition('filename="')[2].partition('"')[0] or "download"
        target = output or Path(Path(name).name)
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as file:
                for piece in found.iter_bytes():
                    file.write(piece)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    write_note(f"wrote {target}")


def _show(verb: Verb, answer: Any, *, as_json: bool) -> None:
    if as_json:
        write_json(answer)
        return
    if isinstance(answer, list):
        _table(answer, _member(verb.answer))
        return
    if set(answer) == {"message"}:
        write_line(str(answer["message"]) or "done")
        return
    _record(answer, "")


def _record(answer: Mapping[str, Any], title: str) -> None:
    """What stands in a line first; then, each under its name, what has members of its own."""
    rows = {name: value for name, value in answer.items() if isinstance(value, list) and value and _is_rows(value)}
    parts = {name: value for name, value in answer.items() if isinstance(value, dict) and value}
    plain = {name: value for name, value in answer.items() if name not in rows and name not in parts}
    if plain:
        if title:
            write_line(f"\n{title}:")
        write_record(plain, [_column(name) for name in plain], as_json=False)
    for name, part in parts.items():
        _record(part, f"{title} {name}".strip().replace("_", " "))
    for name, found in rows.items():
        write_line(f"\n{f'{title} {name}'.strip().replace('_', ' ')}:")
        _table(found, None)


def _table(rows: list[Any], model: Any) -> None:
    if not rows:
        write_note("there are none")
        return
    if not isinstance(rows[0], dict):
        for row in rows:
            write_line(_shown(row))
        return
    names = list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else list(rows[0])
    simple = [name for name in names if not any(isinstance(row.get(name), (list, dict)) for row in rows)]
    filled = [name for name in simple if any(row.get(name) not in (None, "") for row in rows)]
    columns = [_column(name) for name in filled[:SHOWN_COLUMNS]]
    write_records(rows, columns, as_json=False)


def _column(name: str) -> Column:
    return Column(name, name.replace("_", " "), _moment if name == "at" or name.endswith(MOMENTS) else _shown)


def _moment(value: Any) -> str:
    """Seconds since 1970 as this host's clock and zone show them; JSON has the number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _shown(value)
    return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")


def _is_rows(value: list[Any]) -> bool:
    return all(isinstance(one, dict) for one in value)


def _member(answer: Any) -> Any:
    return get_args(answer)[0] if get_origin(answer) is list else None


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_shown(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(one)}" for name, one in value.items())
    return str(value)
