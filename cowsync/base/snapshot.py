"""A snapshot: which rows were known to be on the mirror after a run, as a manifest that names segments.
Format: docs/formats/base-snapshot.md.

One rule: a manifest is named by the SHA-256 of its bytes, and its bytes by its content: canonical JSON. What does not
have the digest it is named by is StateDamaged.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from cowsync.base.layers import Layer, Layers, SegmentRef
from cowsync.errors import StateDamaged

VERSION = 1
FORMAT = "cowsync snapshot"
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Totals:
    """`rows`: keys that the mirror holds for us; `gone`: those of them that the source has no more; `bytes`: the sum of the
    sizes of all of them. Also a difference of two such."""

    rows: int = 0
    gone: int = 0
    bytes: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.rows + other.rows, self.gone + other.gone, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a run. `time` is ISO 8601 in UTC; `source` and `mirror` are URLs without secrets. `tiling` has the
    ranges that the scan finished, joined: the proof that it was complete when it is ((b"", None),). `notes` is a JSON
    object of whoever published it: nothing of this package reads it."""

    run: int
    time: str
    source: str
    mirror: str
    tiling: tuple[tuple[bytes, bytes | None], ...]
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`parent` is the name of the one before, "" of the first. `salt` tells manifests apart that would be the same; 0."""

    facts: Facts
    parent: str
    totals: Totals
    layers: Layers
    salt: int = 0


def totals_of(layer: Layer) -> Totals:
    """Exact for a bottom, which holds no removed row."""
    return Totals(sum(r.rows for r in layer), sum(r.gone for r in layer), sum(r.byte_sum for r in layer))


def name_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def encode(snapshot: Snapshot) -> bytes:
    facts, totals = snapshot.facts, snapshot.totals
    fields: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "run": facts.run,
        "time": facts.time,
        "source": facts.source,
        "mirror": facts.mirror,
        "tiling": [[_text(after), None if upto is None else _text(upto)] for after, upto in facts.tiling],
        "parent": snapshot.parent,
        "salt": snapshot.salt,
        "rows": totals.rows,
        "gone": totals.gone,
        "bytes": totals.bytes,
        "layers": [
            [[r.name, _text(r.first), _text(r.last), r.rows, r.gone, r.byte_sum, r.stored] for r in layer]
            for layer in snapshot.layers
        ],
    }
    if facts.notes:
        # Left out where there are none: manifests of the time before there were notes are the same bytes.
        fields["notes"] = dict(facts.notes)
    return canonical(fields)


def decode(manifest: bytes, name: str) -> Snapshot:
    """The snapshot of that name. StateDamaged when the bytes are not what the name says, or of a newer format."""
    if name_of(manifest) != name:
        raise StateDamaged(f"snapshot {name} is damaged: its digest is {name_of(manifest)}")
    return parse(manifest, f"snapshot {name}")


def parse(manifest: bytes, what: str) -> Snapshot:
    """As `decode`, whatever its name."""
    fields = json_fields(manifest, what, FORMAT, VERSION)
    try:
        run = _number(fields["run"])
        time, source, mirror, parent = (_string(fields[name]) for name in ("time", "source", "mirror", "parent"))
        facts = Facts(
            run,
            time,
            source,
            mirror,
            tuple(_range(entry) for entry in _list(fields["tiling"])),
            _object(fields.get("notes", {})),
        )
        totals = Totals(*(_number(fields[name]) for name in ("rows", "gone", "bytes")))
        layers = tuple(tuple(_segment(entry) for entry in _list(layer)) for layer in _list(fields["layers"]))
        salt = _number(fields["salt"])
        _check(layers, parent)
    except (KeyError, TypeError, ValueError) as error:
        raise StateDamaged(f"{what} is damaged: {error!r}") from error
    return Snapshot(facts, parent, totals, layers, salt)


def canonical(fields: dict[str, Any]) -> bytes:
    """JSON with sorted names, no blanks, ASCII only, a newline at the end. ValueError for what JSON cannot say."""
    return (
        json.dumps(fields, sort_keys=True, allow_nan=False, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
    )


def json_fields(data: bytes, what: str, form: str, version: int) -> dict[str, Any]:
    """A JSON object that says that it is of this format, in a version up to this one; else StateDamaged."""
    try:
        fields = json.loads(data, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise StateDamaged(f"{what} is damaged: not JSON") from error
    if not isinstance(fields, dict) or fields.get("format") != form:
        raise StateDamaged(f"{what} is damaged: it is no {form}")
    told = fields.get("version")
    if type(told) is not int or not 1 <= told <= version:
        raise StateDamaged(f"{what}: format version {told!r} is not one that this program knows (1 to {version})")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def _object(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    return entry


def _range(entry: Any) -> tuple[bytes, bytes | None]:
    after, upto = _list(entry)
    return _key(after), None if upto is None else _key(upto)


def _segment(entry: Any) -> SegmentRef:
    name, first, last, *numbers = _list(entry)
    rows, gone, byte_sum, stored = map(_number, numbers)
    return SegmentRef(_string(name), _key(first), _key(last), rows, gone, byte_sum, stored)


def _check(layers: Layers, parent: str) -> None:
    for name in (parent, *(ref.name for layer in layers for ref in layer)):
        if name and not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no digest")
    for layer in layers:
        before = None
        for ref in layer:
            if ref.last < ref.first or (before is not None and ref.first <= before) or not ref.name:
                raise ValueError(f"segments are out of order at {ref.name}")
            before = ref.last


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number")
    return value


def _string(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is no text")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError("something is no list")
    return value


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def _key(text: Any) -> bytes:
    return _string(text).encode("utf-8", "surrogateescape")
