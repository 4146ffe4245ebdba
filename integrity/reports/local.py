"""Records that this host has and the store has not yet: what lies in the local logs of its slots.

One rule: nothing is locked, cut or written here; a writer may be at work meanwhile. What is shown from here is this host's word
alone: no checkpoint covers it yet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integrity.errors import LedgerError, Malformed
from integrity.record import decode
from integrity.wal import Wal

LOCK_NAME = "lock"
WAL_NAME = "wal"


@dataclass(frozen=True, slots=True)
class LocalLog:
    """A slot's local log. `first` to `end` are the numbers of what is not published; `oldest_at` is the time of the first of
    them, "" where there is none; `said` is why it could not be read."""

    writer: str
    size_bytes: int
    first: int
    end: int
    oldest_at: str = ""
    said: str = ""


def slots_of(folder: Path) -> list[str]:
    """The writers that have a folder on this host. PermissionError where it may not be looked into."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def local_log(slots: Path, writer: str, published: int) -> LocalLog:
    """What a slot holds beyond its `published` records."""
    try:
        wal = Wal.open(slots / writer / WAL_NAME, published, cut=False)
        oldest = next(_records(wal, published, published + 1), None) if wal.end > published else None
        return LocalLog(writer, wal.size_bytes, published, wal.end, oldest["at"] if oldest else "")
    except (LedgerError, FileNotFoundError) as error:
        # Its writer gives files back, or writes a frame, while they are read: the next look sees it whole.
        return LocalLog(writer, 0, published, published, said=str(error))


def unpublished(slots: Path, published: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The records of all slots here that are not published, one slot after another."""
    for writer in slots_of(slots):
        size = published.get(writer, 0)
        try:
            wal = Wal.open(slots / writer / WAL_NAME, size, cut=False)
            yield from _records(wal, size, wal.end)
        except (LedgerError, FileNotFoundError):
            continue


def _records(wal: Wal, first: int, end: int) -> Iterator[dict[str, Any]]:
    for data in wal.records(first, end):
        try:
            yield decode(data)
        except Malformed:
            return
