"""HEAD: the snapshots that are kept, newest first; the one object of the state that changes.
Format: docs/formats/base-snapshot.md.

One rule: what HEAD names is published and whole, and nothing else is. It moves by a conditional PUT from the version that
was read, so of two hosts one moves it.
"""

import hashlib
from dataclasses import dataclass

from cowsync.base.snapshot import canonical, json_fields
from cowsync.errors import StateDamaged

VERSION = 1
FORMAT = "cowsync head"


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept snapshot: its name, the number of its run, its time."""

    name: str
    run: int
    time: str


@dataclass(frozen=True, slots=True)
class Head:
    """HEAD as it was read; `etag` is "" where there is none yet."""

    etag: str = ""
    entries: tuple[Entry, ...] = ()

    @property
    def current(self) -> str:
        """The name of the newest snapshot, "" before the first."""
        return self.entries[0].name if self.entries else ""


def encode(entries: tuple[Entry, ...]) -> bytes:
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "snapshots": [[entry.name, entry.run, entry.time] for entry in entries],
    }
    return canonical(fields | {"check": hashlib.sha256(canonical(fields)).hexdigest()})


def decode(data: bytes) -> tuple[Entry, ...]:
    """StateDamaged for anything that `encode` did not make, to the last byte."""
    fields = json_fields(data, "HEAD", FORMAT, VERSION)
    listed = fields.get("snapshots")
    if not isinstance(listed, list) or not listed or not all(map(_is_entry, listed)):
        raise StateDamaged("HEAD is damaged: it names no snapshots")
    entries = tuple(Entry(*entry) for entry in listed)
    if encode(entries) != data:
        raise StateDamaged("HEAD is damaged: its check does not hold")
    return entries


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [str, int, str]
