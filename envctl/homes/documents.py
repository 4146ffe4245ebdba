"""The documents of a home: head, snapshot, pin and the collector's list, as values and as JSON. Pure.

One rule: a document is read strictly; what does not fit is HomeDamaged with its key, never guessed. docs/formats/home.md.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal

from envctl.errors import HomeDamaged

FORMAT: Final = 1
Kind = Literal["timer", "asked", "final", "safety"]
KINDS: Final[tuple[Kind, ...]] = ("timer", "asked", "final", "safety")


@dataclass(frozen=True, slots=True)
class Stats:
    """What the agent counted. `new_bytes`: uploaded for this snapshot. `fuzzy`: files that changed while they were read."""

    files: int = 0
    bytes: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    new_bytes: int = 0
    fuzzy: int = 0
    changed_files_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Commit:
    """What a guest asks for. `parent`: number of the snapshot it is made from, None for the first. `packs`: every pack that
    was not known before. `at`: Unix seconds by the guest's clock."""

    parent: int | None
    trees: tuple[str, ...]
    packs: tuple[str, ...]
    kind: Kind
    at: float
    stats: Stats = Stats()
    fuzzy_paths: tuple[str, ...] = ()
    """Base64, at most 100."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A home at a moment. Numbers go up by one; `parent` 0: it is the first. `at` is the console's clock."""

    number: int
    parent: int
    generation: int
    at: float
    kind: Kind
    trees: tuple[str, ...]
    """SHA-256 of its tree segments, in the order of their paths."""
    stats: Stats = Stats()
    guest_at: float = 0.0
    """When the guest began its scan, by its own clock."""
    fuzzy_paths: tuple[str, ...] = ()
    alert: str = ""
    """What the mass-change guard said; "" for nothing."""
    pinned: bool = field(default=False, compare=False)
    note: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Head:
    """The one object of a home that is replaced, always by If-Match. Whoever holds `generation` may commit. It holds the newest
    snapshot itself, so that a commit is one PUT."""

    environment: str
    generation: int
    newest: Snapshot | None = None
    seen_at: float = 0.0
    """When the home last was known to be that of `newest`, by the console's clock."""
    swept: str = ""
    """The list that a collector began to delete last; naming it changes the ETag (`envctl.homes.collecting`)."""

    @property
    def number(self) -> int:
        """Of the newest snapshot; 0: there is none."""
        return self.newest.number if self.newest else 0


@dataclass(frozen=True, slots=True)
class Pin:
    """Keeps a snapshot for ever. It holds the snapshot itself, so that no pruning can take it away while it is pinned."""

    snapshot: Snapshot
    note: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class Doomed:
    """Objects that no snapshot referred to. `marked`: they can still be spared. `sweeping`: they are as good as deleted."""

    at: float
    state: Literal["marked", "sweeping"]
    names: tuple[str, ...]
    claimed_at: float = 0.0


def snapshot_document(one: Snapshot) -> dict[str, object]:
    stats = {entry.name: getattr(one.stats, entry.name) for entry in fields(Stats)}
    return {
        "format": FORMAT,
        "number": one.number,
        "parent": one.parent,
        "generation": one.generation,
        "at": one.at,
        "kind": one.kind,
        "trees": list(one.trees),
        "stats": stats,
        "guest_at": one.guest_at,
        "fuzzy_paths": list(one.fuzzy_paths),
        "alert": one.alert,
    }


def write_snapshot(one: Snapshot) -> bytes:
    return _written(snapshot_document(one))


def write_head(one: Head) -> bytes:
    return _written(
        {
            "format": FORMAT,
            "environment": one.environment,
            "generation": one.generation,
            "number": one.number,
            "newest": snapshot_document(one.newest) if one.newest else None,
            "seen_at": one.seen_at,
            "swept": one.swept,
        }
    )


def write_pin(one: Pin) -> bytes:
    return _written(
        {"format": FORMAT, "snapshot": snapshot_document(one.snapshot), "note": one.note, "by": one.by, "at": one.at}
    )


def write_doomed(one: Doomed) -> bytes:
    return _written(
        {
            "format": FORMAT,
            "at": one.at,
            "state": one.state,
            "claimed_at": one.claimed_at,
            "names": list(one.names),
        }
    )


def read_head(data: bytes, key: str) -> Head:
    found = _read(data, key)
    with _Reading(key):
        newest = _snapshot(found["newest"]) if found["newest"] is not None else None
        if found["number"] != (newest.number if newest else 0):
            raise ValueError("the number is not the newest snapshot's")
        return Head(
            _text(found["environment"]),
            _count(found["generation"]),
            newest,
            float(found["seen_at"]),
            _text(found.get("swept", "")),
        )


def read_snapshot(data: bytes, key: str) -> Snapshot:
    found = _read(data, key)
    with _Reading(key):
        return _snapshot(found)


def read_pin(data: bytes, key: str) -> Pin:
    found = _read(data, key)
    with _Reading(key):
        note = _text(found["note"])
        kept = replace(_snapshot(found["snapshot"]), pinned=True, note=note)
        return Pin(kept, note, _text(found["by"]), float(found["at"]))


def read_doomed(data: bytes, key: str) -> Doomed:
    found = _read(data, key)
    with _Reading(key):
        if found["state"] not in ("marked", "sweeping"):
            raise ValueError(f"unknown state {found['state']!r}")
        names = tuple(_text(name) for name in _list(found["names"]))
        return Doomed(float(found["at"]), found["state"], names, float(found["claimed_at"]))


class _Reading:
    """Whatever does not fit within the block is damage of `key`."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
            raise HomeDamaged(f"{self._key} cannot be read: {type(error).__name__}: {error}") from error


def _read(data: bytes, key: str) -> dict[str, Any]:
    with _Reading(key):
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        if found.get("format") != FORMAT or isinstance(found["format"], bool):
            raise HomeDamaged(
                f"{key} has format {found.get('format')!r}; this program reads {FORMAT}", hint="use a newer release"
            )
        return found
    raise AssertionError("unreachable: the block returns or raises")


def _snapshot(found: Mapping[str, Any]) -> Snapshot:
    if found["kind"] not in KINDS:
        raise ValueError(f"unknown kind {found['kind']!r}")
    known = {entry.name for entry in fields(Stats)}
    return Snapshot(
        number=_count(found["number"]),
        parent=_count(found["parent"]),
        generation=_count(found["generation"]),
        at=float(found["at"]),
        kind=found["kind"],
        trees=tuple(_sha256(name) for name in _list(found["trees"])),
        stats=Stats(**{name: value for name, value in found["stats"].items() if name in known}),
        guest_at=float(found["guest_at"]),
        fuzzy_paths=tuple(_text(path) for path in _list(found["fuzzy_paths"])),
        alert=_text(found["alert"]),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _sha256(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or any(c not in "0123456789abcdef" for c in value):
        raise ValueError(f"{value!r} is not a SHA-256")
    return value


def _written(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
