"""Every command of the console scripts as plain values: what the manuals and the completions are made of.

One rule: read off the programs themselves, in the order in which their help shows them. What a parameter's value is (a file, a
volume of the configuration, one of some words) is told by `KINDS` where the program does not say it; `unused_kinds` finds
rows that no parameter has any more.
"""

import importlib
import inspect
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from typer.main import get_command

from s3core.endpoint import PRESETS

ROOT: Final = Path(__file__).resolve().parents[1]

FILE, DIRECTORY, ENDPOINT, VOLUME, MIRROR, LEDGER, STORAGE, URL = (
    "file",
    "directory",
    "endpoint",
    "volume",
    "mirror",
    "ledger",
    "storage",
    "url",
)
"""What a value is, for completion; "" is anything. Other kinds are `words`: the value is one of some."""

_KEY_SOURCES: Final = ("file:", "systemd:", "passphrase-file:", "passphrase")
KINDS: Final[tuple[tuple[str, str, str, str | tuple[str, ...]], ...]] = (
    # beginning of the command, parameter (flag, or metavar of an argument), beginning of its help, kind or words
    ("", "--config", "", FILE),
    ("", "--preset", "", tuple(PRESETS)),
    ("", "--addressing", "", ("auto", "path", "virtual")),
    ("bucketworks", "--credentials", "", ("environment", "file:", "profile:", "systemd:", "none")),
    ("", "--ca-file", "", FILE),
    ("", "--secret-file", "", FILE),
    ("", "--endpoint", "", ENDPOINT),
    ("", "NAME", "The endpoint's name", ENDPOINT),
    ("", "NAME", "The ledger, as in [ledger.NAME]", LEDGER),
    ("", "LEDGER", "", LEDGER),
    ("s3integrity", "--ledger", "", LEDGER),
    ("", "MIRROR", "", MIRROR),
    ("", "VOLUME", "A volume of the configuration file", VOLUME),
    ("", "VOLUME", "Volumes, by name or URL", VOLUME),
    ("", "URL", "", URL),
    ("s3block", "STORE-URL", "", URL),
    ("cowsync", "TARGET", "", URL),
    ("cowsync", "--to", "", URL),
    ("", "STORAGE", "", STORAGE),
    ("pve-s3", "--storage", "", STORAGE),
    ("", "SOURCE", "", _KEY_SOURCES),
    ("s3block", "--key", "", _KEY_SOURCES),
    ("", "--chap-secret-file", "", FILE),
    ("", "--chap-mutual-secret-file", "", FILE),
    ("", "FILE", "", FILE),
    ("cowsync", "MANIFEST [FILE", "", FILE),
    ("cowsync", "REPORT", "", FILE),
    ("cowsync", "--events", "", FILE),
    ("", "DIR", "", DIRECTORY),
    ("s3block", "DIRECTORY", "", DIRECTORY),
    ("", "--state-dir", "", DIRECTORY),
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument (no flags) or an option of a command."""

    flags: tuple[str, ...]
    value: str
    """What stands for its value in a synopsis; "" for a switch."""
    help: str
    required: bool
    repeated: bool
    default: str
    """As people write it; "" where there is none worth telling."""
    kind: str = ""
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.flags[0] if self.flags else self.value


@dataclass(frozen=True, slots=True)
class Command:
    """A program, a group of commands or a command. `path` is what people type: `s3block snapshot create`."""

    path: str
    help: str
    """Whole text, paragraphs separated by an empty line; `code` stands in backticks."""
    arguments: tuple[Parameter, ...] = ()
    options: tuple[Parameter, ...] = ()
    commands: tuple["Command", ...] = field(default=())

    @property
    def summary(self) -> str:
        """The first sentence, without the full stop."""
        text = " ".join(self.help.split())
        ends = (text.find(end) for end in (". ", ": ") if text.find(end) > 0)
        return text[: min(ends, default=len(text))].rstrip(".")

    def walk(self) -> Iterator["Command"]:
        """This one and all below it, depth first."""
        yield self
        for one in self.commands:
            yield from one.walk()


def programs() -> tuple[Command, ...]:
    """Every console script of pyproject.toml, in its order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(
        _command(name, get_command(importlib.import_module(target.partition(":")[0]).app))
        for name, target in project["scripts"].items()
    )


def unused_kinds(tree: tuple[Command, ...]) -> list[tuple[str, str, str]]:
    """Rows of `KINDS` that fit no parameter: something was renamed."""
    everywhere = [
        (one.path, parameter) for top in tree for one in top.walk() for parameter in (*one.arguments, *one.options)
    ]
    return [
        (within, name, about)
        for within, name, about, _ in KINDS
        if not any(_fits(within, name, about, path, parameter) for path, parameter in everywhere)
    ]


def _command(path: str, command: Any) -> Command:
    context = command.make_context(path, [], resilient_parsing=True)
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    shown = [one for one in shown if not {"--install-completion", "--show-completion"}.intersection(one.opts)]
    arguments = [_parameter(path, one, context) for one in shown if one.param_type_name == "argument"]
    options = [_parameter(path, one, context) for one in shown if one.param_type_name == "option"]
    inner = getattr(command, "commands", None) or {}
    options.append(Parameter(("--help", "-h"), "", "Show what there is to say and stop.", False, False, ""))
    return Command(
        path,
        inspect.cleandoc(command.help or "").partition("\f")[0].strip(),
        tuple(arguments),
        tuple(options),
        tuple(_command(f"{path} {word}", one) for word, one in inner.items() if not getattr(one, "hidden", False)),
    )


def _parameter(path: str, one: Any, context: Any) -> Parameter:
    descriptor = one.type_descriptor
    words = tuple(str(getattr(choice, "value", choice)) for choice in descriptor.choices or ())
    is_option = one.param_type_name == "option"
    value = "" if is_option and (one.is_flag or one.count) else _value(one, context, words)
    plain = value.split("|")
    if not words and len(plain) > 1 and not any(set(word) & set(". []<>") for word in plain):
        words = tuple(plain)
    made = Parameter(
        flags=(*one.opts, *one.secondary_opts) if is_option else (),
        value=value,
        help=" ".join((one.help or "").split()),
        required=bool(one.required),
        repeated=bool(one.multiple or one.nargs == -1),
        default=_default(one) if is_option else "",
        kind={"file": FILE, "path": FILE, "directory": DIRECTORY}.get(getattr(descriptor, "path_type", ""), "")
        if descriptor.is_path
        else "",
        words=words,
    )
    if made.words or not value:
        return made
    for within, name, about, kind in KINDS:
        if _fits(within, name, about, path, made):
            told = {"words": kind} if isinstance(kind, tuple) else {"kind": kind}
            return Parameter(**{key: getattr(made, key) for key in made.__slots__} | told)
    return made


def _fits(within: str, name: str, about: str, path: str, parameter: Parameter) -> bool:
    # As its own word (`--state-dir`), or as what stands for its value (`FILE`).
    named = (*parameter.flags, parameter.value) if parameter.flags else (parameter.value,)
    return name in named and path.startswith(within) and parameter.help.startswith(about)


def _value(one: Any, context: Any, words: tuple[str, ...]) -> str:
    if words:
        return "|".join(words)
    if one.metavar:
        return str(one.metavar).strip("[]<>").removesuffix("...")
    if one.param_type_name == "argument":
        return str(one.name).upper()
    text = str(one.display_type(context)).strip("[]<>").removeprefix("list[").removesuffix("]")
    return {"str": "TEXT", "int": "N", "float": "NUMBER", "path": "FILE", "file": "FILE"}.get(
        text.removesuffix(" range"), text.upper()
    )


def _default(one: Any) -> str:
    default = getattr(one.default, "value", one.default)
    if one.required or one.is_flag or callable(default) or default in (None, "", (), []):
        return ""
    if isinstance(default, (list, tuple)):
        return ", ".join(str(getattr(entry, "value", entry)) for entry in default)
    text = f"{default:g}" if isinstance(default, float) else str(default)
    return "" if f"[{text}]" in (one.help or "") else text
