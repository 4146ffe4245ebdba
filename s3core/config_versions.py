"""Versions of the configuration file: what changed between them, and how an older file is read as one of today.

One rule: a change is declared once, in CHANGES, and has two ways to be applied: to tables that were read, so that an older
file works as it is, and to the text of the file (`s3core.config_migration`). Both must come to the same; migration checks it.

A file says its version in its first line, `version = 2`; one that does not say it is of version 1. A version is raised only
when a setting is renamed, moved or removed, or when a default changes what a program does. New settings raise nothing.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

Tables = dict[str, Any]
Table = tuple[str, ...]
"""Names of a table from the outermost in; NAME stands for any (as in `settings.TABLES`)."""
ANY = "NAME"
KEY = "version"


class VersionError(ValueError):
    """The file's version is none, or two of its settings contradict each other."""


class Change(Protocol):
    """One difference between a version and the one before it."""

    @property
    def said(self) -> str:
        """For people, without a full stop."""

    def forward(self, tables: Tables) -> None:
        """Make tables of the version before into those of this version. VersionError."""

    def backward(self, tables: Tables) -> None:
        """The other way. VersionError where it cannot be."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A setting has another name, or is in another table. `NAME` in both tables is the same name."""

    table: Table
    name: str
    to_table: Table
    to_name: str

    @property
    def said(self) -> str:
        if self.table == self.to_table:
            return f"{shown(self.table)}: {self.name} is called {self.to_name}"
        return f"{shown(self.table)}: {self.name} is {self.to_name} of {shown(self.to_table)}"

    def forward(self, tables: Tables) -> None:
        _move(tables, self.table, self.name, self.to_table, self.to_name)

    def backward(self, tables: Tables) -> None:
        _move(tables, self.to_table, self.to_name, self.table, self.name)


@dataclass(frozen=True, slots=True)
class Removed:
    """A setting is gone; `why` says what does its work now."""

    table: Table
    name: str
    why: str

    @property
    def said(self) -> str:
        return f"{shown(self.table)}: {self.name} is gone: {self.why}"

    def forward(self, tables: Tables) -> None:
        for _, found in tables_at(tables, self.table):
            found.pop(self.name, None)

    def backward(self, tables: Tables) -> None:
        """What it was is not known any more; without it the older program does what it does by default."""


@dataclass(frozen=True, slots=True)
class NewDefault:
    """Another default, with which a program does something else. A file that relied on the old one gets it written out."""

    table: Table
    name: str
    before: str | int | float | bool
    why: str

    @property
    def said(self) -> str:
        return f"{shown(self.table)}: {self.name} was {self.before!r} where it was not set; {self.why}"

    def forward(self, tables: Tables) -> None:
        if ANY not in self.table:
            made_table(tables, self.table)
        for _, found in tables_at(tables, self.table):
            found.setdefault(self.name, self.before)

    def backward(self, tables: Tables) -> None:
        """Nothing: what is written out means the same to the older program."""


@dataclass(frozen=True, slots=True)
class Version:
    """What came with `number`."""

    number: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class History:
    """All versions after the first, in order."""

    versions: tuple[Version, ...] = ()

    @property
    def current(self) -> int:
        return self.versions[-1].number if self.versions else 1

    def steps(self, begin: int, end: int) -> Iterator[tuple[Change, bool]]:
        """Changes from version `begin` to `end`, each with whether it is applied forward."""
        if begin <= end:
            for version in self.versions:
                if begin < version.number <= end:
                    yield from ((change, True) for change in version.changes)
        else:
            for version in reversed(self.versions):
                if end < version.number <= begin:
                    yield from ((change, False) for change in reversed(version.changes))


HISTORY = History()
"""Version 1 is the first. The next one is added here, with a file of version 1 under tests/s3core/configurations that stays
readable for ever."""


def version_of(tables: Mapping[str, Any]) -> int:
    """VersionError for one that is no whole number above 0."""
    found = tables.get(KEY, 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise VersionError(f"{KEY} must be a whole number from 1 on, not {found!r}")
    return found


def at_version(tables: Tables, number: int, history: History = HISTORY) -> Tables:
    """A copy of `tables` as a file of that version has them, `version` included. VersionError."""
    made = deepcopy(tables)
    for change, forward in history.steps(version_of(tables), number):
        (change.forward if forward else change.backward)(made)
    made[KEY] = number
    return made


def tables_at(tables: Tables, where: Table) -> Iterator[tuple[Table, Tables]]:
    """The tables that `where` names, each with its own names in place of NAME."""
    found: list[tuple[Table, Tables]] = [((), tables)]
    for part in where:
        found = [
            ((*place, name), inner)
            for place, table in found
            for name, inner in list(table.items())
            if (part in (ANY, name)) and isinstance(inner, dict)
        ]
    yield from found


def made_table(tables: Tables, where: Table) -> Tables:
    """The table called so, made where it is not there."""
    for name in where:
        tables = tables.setdefault(name, {})
    return tables


def renamed_place(place: Table, where: Table, target: Table) -> Table:
    """`target` with the names that `place` has where `where` says NAME."""
    names = [name for name, part in zip(place, where, strict=True) if part == ANY]
    return tuple(names.pop(0) if part == ANY else part for part in target)


def shown(where: Table) -> str:
    return f"[{'.'.join(where)}]"


def _move(tables: Tables, table: Table, name: str, to_table: Table, to_name: str) -> None:
    for place, found in tables_at(tables, table):
        if name not in found:
            continue
        target = renamed_place(place, table, to_table)
        other = made_table(tables, target)
        if to_name in other:
            raise VersionError(f"{shown(place)} {name} and {shown(target)} {to_name} are the same setting; keep one")
        other[to_name] = found.pop(name)
