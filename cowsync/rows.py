"""Rows about objects, as columns: what a source had, and what the mirror was given for it.

One rule: rows are in ascending order of key, each key once; every list of one `Rows` has the same length. Columns and
not objects per row, since a run goes through a billion of them: lists are compared, sliced and joined in C.
Keys are UTF-8 bytes relative to the mirror's source prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One object. `etag` and `version_id` as the source gave them; `modified` is the source's ISO 8601 text;
    `storage_class` as listed ("" when not). The last three are empty in a scan and tell in a base what the mirror holds:
    its ETag and version id after the copy, and `gone`, the number of the run that first missed the key (0: present)."""

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
        return map(
            Row,
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

    def __getitem__(self, place: int) -> Row:
        return Row(
            self.keys[place],
            self.sizes[place],
            self.etags[place],
            self.modified[place],
            self.version_ids[place],
            self.storage_classes[place],
            self.mirror_etags[place],
            self.mirror_versions[place],
            self.gone[place],
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
        self.keys += other.keys
        self.sizes += other.sizes
        self.etags += other.etags
        self.modified += other.modified
        self.version_ids += other.version_ids
        self.storage_classes += other.storage_classes
        self.mirror_etags += other.mirror_etags
        self.mirror_versions += other.mirror_versions
        self.gone += other.gone

    def columns(self) -> tuple[list[Any], ...]:
        """In the order of the fields, so that `Rows(*columns)` is the same rows."""
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

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(
            self.keys[start:stop],
            self.sizes[start:stop],
            self.etags[start:stop],
            self.modified[start:stop],
            self.version_ids[start:stop],
            self.storage_classes[start:stop],
            self.mirror_etags[start:stop],
            self.mirror_versions[start:stop],
            self.gone[start:stop],
        )
