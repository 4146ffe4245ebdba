"""Changing one table of the configuration file and leaving every other byte of it alone.

One rule: an edit is made on the lines of the text, then both texts are parsed and compared; one that would have changed
anything but that table is refused. The file is replaced whole or not at all and has mode 0600 afterwards, because it
may hold a secret. Comments before a table's header belong to that table and stay with it.
"""

import fcntl
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3core.settings import ConfigError, check_name, parse_config, require_current

Values = Mapping[str, str | int | float | bool | list[str]]


def with_table(text: str, kind: str, name: str, values: Values) -> str:
    """`text` with the table `[kind.name]` holding exactly `values`: in place of one that was there, else at the end.
    ConfigError where `text` is not TOML or is written in a way this cannot edit, and for a name that cannot be."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{name!r}: {error}") from error
    wanted = _parse(text)
    wanted.setdefault(kind, {})[name] = dict(values)
    table = [f"[{kind}.{name}]", *(f"{key} = {written(value)}" for key, value in values.items())]
    lines = as_lines(text)
    begin, end = _place(lines, kind, name)
    if begin == len(lines) and lines and lines[-1].strip():
        table.insert(0, "")
    return _checked([*lines[:begin], *table, *lines[end:]], wanted, f"[{kind}.{name}]")


def with_settings(text: str, kind: str, name: str, values: Values) -> str:
    """`text` with `values` in the table `[kind.name]`, which is made at the end if it is not there. What the table has stays,
    comments too. ConfigError as in `with_table`, and for a setting that is there with another value."""
    known = _parse(text).get(kind, {}).get(name)
    if known is None:
        return with_table(text, kind, name, values)
    for key, value in values.items():
        if key in known and known[key] != value:
            raise ConfigError(f"[{kind}.{name}] has another {key} already")
    missing = {key: value for key, value in values.items() if key not in known}
    if not missing:
        return text
    wanted = _parse(text)
    wanted[kind][name] |= missing
    lines = as_lines(text)
    begin, _ = _place(lines, kind, name)
    added = [f"{key} = {written(value)}" for key, value in missing.items()]
    return _checked([*lines[: begin + 1], *added, *lines[begin + 1 :]], wanted, f"[{kind}.{name}]")


def without_settings(text: str, kind: str, name: str, keys: Collection[str]) -> str:
    """`text` without these settings of the table `[kind.name]`, each of which is on a line of its own; those that are not
    there do not matter. ConfigError as in `with_table`."""
    wanted = _parse(text)
    table = wanted.get(kind, {}).get(name, {})
    doomed = [key for key in keys if key in table]
    if not doomed:
        return text
    for key in doomed:
        del table[key]
    lines = as_lines(text)
    begin, end = _place(lines, kind, name)
    kept = [line for line in lines[begin:end] if line.partition("=")[0].strip() not in doomed]
    return _checked([*lines[:begin], *kept, *lines[end:]], wanted, f"[{kind}.{name}]")


def without_table(text: str, kind: str, name: str) -> str:
    """`text` without the table `[kind.name]` and what is below it. KeyError where there is none, ConfigError as in
    `with_table`."""
    wanted = _parse(text)
    if name not in wanted.get(kind, {}):
        raise KeyError(f"[{kind}.{name}]")
    del wanted[kind][name]
    lines = as_lines(text)
    begin, end = _place(lines, kind, name)
    while begin > 0 and lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    while end < len(lines) and not lines[end].strip() and (begin == 0 or not lines[begin - 1].strip()):
        end += 1
    rest = [*lines[:begin], *lines[end:]]
    while rest and not rest[-1].strip():
        rest.pop()
    if not any(line.strip() for line in rest):
        rest = []
    # A table named only to hold others may vanish with its last member.
    return _checked(rest, wanted if wanted[kind] else {key: wanted[key] for key in wanted if key != kind}, f"[{kind}]")


def change_file(path: Path, change: Callable[[str], str]) -> None:
    """Replace the file by `change` of its text (of nothing if it is absent), atomically and durably, with mode 0600 and
    its owner kept. Two tools that change it at once take turns. ConfigError if the outcome would not be a valid
    configuration; then, and on any other error, the file is as it was. A file of an older version is refused: what is put
    into it would be read as that version has it."""

    def of_today(before: str) -> str:
        require_current(before, path)
        return change(before)

    replace_file(path, of_today)


def replace_file(path: Path, change: Callable[[str], str]) -> None:
    """`change_file` for files of any version."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _turn(target.parent):
        try:
            before = target.read_text(encoding="utf-8")
            owner = target.stat()
        except FileNotFoundError:
            before, owner = "", None
        after = change(before)
        parse_config(after, path=path)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # made with mode 0600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(after)
                file.flush()
                if owner is not None and os.geteuid() == 0:
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_directory(target.parent)


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration is not TOML: {error}") from None


def as_lines(text: str) -> list[str]:
    """Lines as TOML has them, without their ends."""
    # Not splitlines: it also splits where TOML does not, and a line end of two bytes must stay one.
    return text.removesuffix("\n").split("\n") if text else []


def written(value: str | int | float | bool | list[str]) -> str:
    """A value as TOML writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        # A TOML basic string is a JSON string in which DEL is escaped too (TOML 1.0, "String").
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _place(lines: list[str], kind: str, name: str) -> tuple[int, int]:
    """The lines of `[kind.name]` and of the tables below it, without the blank lines and comments before the next
    header; an empty range at the end where it is not there."""
    begin = end = len(lines)
    inside = False
    for number, line in enumerate(lines):
        header = header_of(line)
        if header:
            ours = header[:2] == [kind, name]
            if ours and begin == len(lines):
                begin = number
            inside = ours
        if inside and (header or (line.strip() and not line.lstrip().startswith("#"))):
            end = number + 1
    return begin, end


def header_of(line: str) -> list[str]:
    """The names in a line such as `[endpoint."a"]`, empty for any other line."""
    if not line.lstrip().startswith("["):
        return []
    try:
        found: object = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return []
    names = []
    while isinstance(found, dict) and len(found) == 1:
        name, found = next(iter(found.items()))
        names.append(name)
    return names


def _checked(lines: list[str], wanted: dict[str, Any], what: str) -> str:
    text = "\n".join(lines) + "\n" if lines else ""
    try:
        good = tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        good = False
    if not good:
        raise ConfigError(f"{what} is written in a form that cannot be edited here", hint="change it with an editor")
    return text


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    # The lock is on the directory, because the file itself is replaced.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
