"""The text of a configuration file made into that of another version, with its comments, its order and every other byte kept.

One rule: the tables of what comes out are compared with what `config_versions` makes of the tables that went in. Where they
differ, nothing is written: the file has a form that cannot be edited here.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3core.config_file import as_lines, header_of, written
from s3core.config_versions import (
    HISTORY,
    KEY,
    Change,
    History,
    Moved,
    NewDefault,
    Removed,
    Table,
    Tables,
    VersionError,
    at_version,
    renamed_place,
    tables_at,
    version_of,
)
from s3core.settings import ConfigError


@dataclass(frozen=True, slots=True)
class Migrated:
    """`done` are the changes that had something to change, in words."""

    text: str
    before: int
    after: int
    done: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Statement:
    """Lines `begin` to `end` are a header (`key` is "") or a setting of `table`."""

    begin: int
    end: int
    table: Table
    key: str


def migrated(text: str, to: int | None = None, *, history: History = HISTORY, path: Path | None = None) -> Migrated:
    """`text` as a file of version `to` (the newest). Unchanged where it is of that version. ConfigError where the versions are
    not known, where settings contradict each other, and where the text cannot be edited."""
    where = f"{path}: " if path else ""
    target = history.current if to is None else to
    try:
        tables = tomllib.loads(text)
        before = version_of(tables)
        if max(before, target) > history.current or target < 1:
            raise VersionError(f"versions from 1 to {history.current} are known here, not {max(before, target)}")
        if before == target:
            return Migrated(text, before, target, ())
        wanted = at_version(tables, target, history)
        lines, done = as_lines(text), []
        for change, forward in history.steps(before, target):
            edited = _edited(lines, change, forward)
            if edited != lines:
                done.append(change.said)
            lines = edited
        made = "\n".join(_with_version(lines, target)) + "\n"
        good = tomllib.loads(made) == wanted
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}is not TOML: {error}") from error
    except VersionError as error:
        raise ConfigError(f"{where}{error}") from error
    if not good:
        raise ConfigError(
            f"{where}the file is written in a form that cannot be edited here",
            hint="write tables with a header of their own, not as {...} or with dots in a key, and try again",
        )
    return Migrated(made, before, target, tuple(done))


def _edited(lines: list[str], change: Change, forward: bool) -> list[str]:
    if isinstance(change, Moved):
        ends = (change.table, change.name), (change.to_table, change.to_name)
        (table, name), (to_table, to_name) = ends if forward else ends[::-1]
        for place, _ in list(tables_at(_parsed(lines), table)):
            lines = _moved(lines, place, name, renamed_place(place, table, to_table), to_name)
    elif isinstance(change, Removed) and forward:
        for place, _ in list(tables_at(_parsed(lines), change.table)):
            lines = _commented_out(lines, place, change)
    elif isinstance(change, NewDefault) and forward:
        places = [place for place, found in tables_at(_parsed(lines), change.table) if change.name not in found]
        if not places and not list(tables_at(_parsed(lines), change.table)):
            places = [change.table] if "NAME" not in change.table else []
        for place in places:
            lines = _added(lines, place, [f"{change.name} = {written(change.before)}"])
    return lines


def _moved(lines: list[str], place: Table, name: str, target: Table, to_name: str) -> list[str]:
    found = _setting(lines, place, name)
    if found is None:
        return lines
    first = re.sub(rf"""^(\s*)(?:"{name}"|'{name}'|{name})(\s*=)""", rf"\g<1>{to_name}\g<2>", lines[found.begin])
    block = [first, *lines[found.begin + 1 : found.end]]
    if place == target:
        return [*lines[: found.begin], *block, *lines[found.end :]]
    begin = found.begin
    while begin > 0 and lines[begin - 1].lstrip().startswith("#"):
        begin -= 1
    before, after = lines[:begin], lines[found.end :]
    if before and not before[-1].strip() and after and not after[0].strip():
        after = after[1:]
    return _added([*before, *after], target, [*lines[begin : found.begin], *block])


def _commented_out(lines: list[str], place: Table, change: Removed) -> list[str]:
    found = _setting(lines, place, change.name)
    if found is None:
        return lines
    kept = [f"# {line}" for line in lines[found.begin : found.end]]
    after = lines[found.end :]
    # Comments right above a setting are taken for its own.
    gap = [""] if after and after[0].strip() else []
    return [*lines[: found.begin], f"# No longer a setting: {change.why}", *kept, *gap, *after]


def _added(lines: list[str], place: Table, block: list[str]) -> list[str]:
    """`block` at the end of the table's own settings; the table is made at the end of the file if it is not there."""
    ours = [one for one in _statements(lines) if one.table == place]
    if ours:
        end = max(one.end for one in ours)
        return [*lines[:end], *block, *lines[end:]]
    gap = [""] if lines and lines[-1].strip() else []
    return [*lines, *gap, f"[{'.'.join(_named(name) for name in place)}]", *block]


def _with_version(lines: list[str], number: int) -> list[str]:
    found = _setting(lines, (), KEY)
    if found is None:
        return [f"{KEY} = {number}", *([""] if lines and lines[0].strip() else []), *lines]
    line = re.sub(rf"^(\s*{KEY}\s*=\s*)\d+", rf"\g<1>{number}", lines[found.begin])
    return [*lines[: found.begin], line, *lines[found.end :]]


def _setting(lines: list[str], place: Table, name: str) -> _Statement | None:
    return next((one for one in _statements(lines) if one.table == place and one.key == name), None)


def _statements(lines: list[str]) -> Iterator[_Statement]:
    """Headers and settings, in order. A value may take several lines."""
    table: Table = ()
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            number += 1
            continue
        header = header_of(line.rstrip("\r"))
        if header:
            table = tuple(header)
            yield _Statement(number, number + 1, table, "")
            number += 1
            continue
        end, found = number + 1, None
        while found is None:
            try:
                found = tomllib.loads("\n".join(lines[number:end]) + "\n")
            except tomllib.TOMLDecodeError:
                if end == len(lines):
                    raise
                end += 1
        yield _Statement(number, end, table, next(iter(found)))
        number = end


def _parsed(lines: list[str]) -> Tables:
    return tomllib.loads("\n".join(lines) + "\n")


def _named(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else written(name)
