"""docs/envctl/verbs.md: every verb, drawn from the table.

One rule: pure; a test compares the document with what is drawn here.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from envctl.verb_commands import NOUNS
from envctl.verbs.table import VERBS
from envctl.verbs.verb import Stream, Verb

_HEAD: Final = """# Verbs of the console

<!-- Drawn from envctl/verbs/table.py by `make docs`; a test compares. -->

What can be asked of the console. Each verb is a command (`s3-envctl`), a request to the REST API below `/api/v1`, and what a
button of a page does: the same function, the same checks, the same row in the audit.

The command finds the console by `ENVCTL_URL` and `ENVCTL_TOKEN`, or by `~/.config/s3-envctl.toml` (mode 0600: `url`, `token`,
`ca_file`). The API wants `Authorization: Bearer TOKEN`; a token is made on the profile page and has scopes. Fields in the path
are arguments of the command; others are options, the query of a GET or DELETE, or members of a JSON body. Errors are
`{"error": {"code", "message", "hint", "details"}}`; [exit codes](../exit-codes.md) are those of all tools. The same as OpenAPI:
`/api/openapi.json`.
"""


def verbs_markdown() -> str:
    """The whole of docs/envctl/verbs.md."""
    lines = [_HEAD]
    for noun, about in NOUNS.items():
        verbs = [verb for verb in VERBS if verb.name.partition(".")[0] == noun]
        if not verbs:
            continue
        lines += [f"## {noun}", "", about, ""]
        for verb in verbs:
            lines += _one(verb)
    return "\n".join(lines).rstrip() + "\n"


def command_of(verb: Verb) -> str:
    """As somebody types it: `s3-envctl env start ENVIRONMENT`."""
    noun, _, name = verb.name.partition(".")
    words = ["s3-envctl", noun, name.replace("_", "-")]
    words += [field.upper() for field in in_path(verb)]
    words += [
        f"--{field.replace('_', '-')} ..."
        for field, info in verb.request.model_fields.items()
        if info.is_required() and field not in in_path(verb)
    ]
    return " ".join(words)


def in_path(verb: Verb) -> list[str]:
    return [part[1:-1].partition(":")[0] for part in verb.path.split("/") if part.startswith("{")]


def _one(verb: Verb) -> Iterator[str]:
    yield f"### {verb.name}"
    yield ""
    yield f"{verb.summary}."
    yield ""
    yield f"- `{command_of(verb)}`" + ("; it asks before, unless `--yes`" if verb.destructive else "")
    yield f"- `{verb.method} /api/v1{verb.path}`; scope `{verb.scope}`; role `{verb.role}`; answer: {_answer(verb.answer)}"
    rows = []
    for name, info in verb.request.model_fields.items():
        needed = "required" if info.is_required() else "optional"
        rows.append(f"| `{name}` | {_kind(info.annotation)} | {needed} | {info.description or ''} |")
    if rows:
        yield ""
        yield "| field | type | | meaning |"
        yield "| --- | --- | --- | --- |"
        yield from rows
    yield ""


def _answer(answer: Any) -> str:
    if answer is Stream:
        return "a file"
    if get_origin(answer) is list:
        return f"a list of {_answer(get_args(answer)[0])}"
    if isinstance(answer, type) and issubclass(answer, BaseModel):
        names = list(answer.model_fields)
        return ", ".join(f"`{name}`" for name in names) if names else "nothing"
    return str(answer)


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    if origin is list:
        return f"list of {_kind(get_args(annotation)[0])}"
    if origin is dict:
        return "object"
    inner = [one for one in get_args(annotation) if one is not type(None)]
    if inner:
        return " or ".join(dict.fromkeys(_kind(one) for one in inner))
    names = {str: "text", int: "whole number", float: "number", bool: "yes or no"}
    if annotation in names:
        return names[annotation]
    values = getattr(annotation, "__members__", None)
    if values:
        return ", ".join(f"`{one.value}`" for one in values.values())
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object: " + ", ".join(f"`{name}`" for name in annotation.model_fields)
    return str(annotation)
