"""Rows about objects, as columns: what a source had, and what the mirror was given for it.

One rule: rows are in ascending order of key, each key once; every list of one `Rows` has the same length. Columns and
not objects per row, since a run goes through a billion of them: lists are compared, sliced and joined in C.
Keys are UTF-8 bytes relative to the mirror's source prefix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import itemgetter
from typing import Any, NamedTuple

REMOVED = -1
"""`gone` of a row in a layer of the base that takes the key away: it is no longer on the mirror, or no longer ours."""


class Row(NamedTuple):
    """One object. `etag` and `version_id` as the source gave them; `modified` is the source's ISO 8601 text;
    `storage_class` as listed ("" when not). The last three are empty in a scan and tell in a base what the mirror holds:
    its ETag and version id after the copy, and `gone`, the number of the run that first missed the key (0: present;
    REMOVED)."""

    key: bytes
    size: int
    etag: bytes
    modified: bytes
    version_id: bytes = b""
    storage_class: bytes = b""
    mirror_etag: bytes = b""
    mirror_version: bytes = b""
    gone: int = 0


@dataclass(slots=True)
class Rows:
    """Many `Row`s as columns of the same names."""

    keys: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    etags: list[bytes] = field(default_factory=list)
    modified: list[bytes] = field(default_factory=list)
    version_ids: list[bytes] = field(default_factory=list)
    storage_classes: list[bytes] = field(default_factory=list)
    mirror_etags: list[bytes] = field(default_factory=list)
    mirror_versions: list[bytes] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Row]:
        return map(Row, *self.columns())

    def __getitem__(self, place: int) -> Row:
        return Row(*[column[place] for column in self.columns()])

    def columns(self) -> tuple[list[Any], ...]:
        """The lists themselves, in the order of the fields, so that `Rows(*columns)` is the same rows."""
        return (
            self.keys,
            self.sizes,
            self.etags,
            self.modified,
            self.version_ids,
            self.storage_classes,
            self.mirror_etags,
            self.mirror_versions,
            self.gone,
        )

    def append(self, row: Row) -> None:
        self.keys.append(row.key)
        self.sizes.append(row.size)
        self.etags.append(row.etag)
        self.modified.append(row.modified)
        self.version_ids.append(row.version_id)
        self.storage_classes.append(row.storage_class)
        self.mirror_etags.append(row.mirror_etag)
        self.mirror_versions.append(row.mirror_version)
        self.gone.append(row.gone)

    def extend(self, other: "Rows") -> None:
        for mine, more in zip(self.columns(), other.columns(), strict=True):
            mine += more

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(*[column[start:stop] for column in self.columns()])

    def take(self, places: Sequence[int]) -> "Rows":
        """The rows at `places`, in that order."""
        if len(places) < 2:
            return Rows(*[[column[place] for place in places] for column in self.columns()])
        chosen = itemgetter(*places)
        return Rows(*[list(chosen(column)) for column in self.columns()])

    def without_removed(self) -> "Rows":
        """Itself, when none is REMOVED."""
        if REMOVED not in self.gone:
            return self
        kept = [mark != REMOVED for mark in self.gone]
        return Rows(*[list(compress(column, kept)) for column in self.columns()])
