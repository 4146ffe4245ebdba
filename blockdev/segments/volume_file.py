"""vol.json: what a volume is. Written once, by put_if_absent, and never changed. Format: docs/formats/volume.md.

One rule: everything else in the bucket is read by what this file says, so it carries a checksum over its meaning
(not over its spelling: white space may change, a value may not).
"""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.units import Geometry

FORMAT = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
"""Features this program understands. A volume that names another one is refused, never half understood."""
CHECKSUM = "crc32c"


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """`geometry.size_bytes` is the size at creation; the size of now is in the log's newest record."""

    name: str
    identity: UUID
    lineage: UUID
    geometry: Geometry
    compression: str
    created: float
    creator: str
    features: frozenset[str] = frozenset()


def checksum(document: dict[str, Any]) -> str:
    """CRC32C, as eight hex digits, of the document without its checksum in canonical JSON."""
    meaning = {key: value for key, value in document.items() if key != CHECKSUM}
    return f"{crc32c(json.dumps(meaning, sort_keys=True, separators=(',', ':')).encode()):08x}"


def encode(volume: VolumeFile) -> bytes:
    geometry = volume.geometry
    document: dict[str, Any] = {
        "format": FORMAT,
        "name": volume.name,
        "uuid": str(volume.identity),
        "lineage": str(volume.lineage),
        "size_bytes": geometry.size_bytes,
        "sector_bytes": geometry.sector_bytes,
        "frame_bytes": geometry.frame_bytes,
        "extent_bytes": geometry.extent_bytes,
        "compression": volume.compression,
        "created": volume.created,
        "creator": volume.creator,
        "features": sorted(volume.features),
    }
    document[CHECKSUM] = checksum(document)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def decode(blob: bytes, *, what: str) -> VolumeFile:
    """Raises CorruptFormat: not JSON, missing fields, a checksum that does not hold, a newer format or an unknown
    feature."""
    try:
        document = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise CorruptFormat(f"is not JSON: {error}", what=what) from error
    if not isinstance(document, dict):
        raise CorruptFormat("is not a JSON object", what=what)
    # The format number first: a later format may keep its checksum elsewhere.
    if document.get("format") != FORMAT:
        raise CorruptFormat(
            f"volume format {document.get('format')!r} is not known to this program (it knows {FORMAT})",
            what=what,
            hint="use a newer version of the program",
        )
    if document.get(CHECKSUM) != checksum(document):
        raise CorruptFormat(
            "the checksum does not hold: the file was changed after the volume was created",
            what=what,
            hint="restore the file as it was; nothing in it can be changed by hand",
        )
    features = _texts(document, "features", what)
    if features - KNOWN_FEATURES:
        raise CorruptFormat(
            f"the volume uses {', '.join(sorted(features - KNOWN_FEATURES))}, which this program does not know",
            what=what,
            hint="use a newer version of the program",
        )
    try:
        return VolumeFile(
            name=_text(document, "name", what),
            identity=UUID(_text(document, "uuid", what)),
            lineage=UUID(_text(document, "lineage", what)),
            geometry=Geometry(
                size_bytes=_whole(document, "size_bytes", what),
                sector_bytes=_whole(document, "sector_bytes", what),
                frame_bytes=_whole(document, "frame_bytes", what),
                extent_bytes=_whole(document, "extent_bytes", what),
            ),
            compression=_text(document, "compression", what),
            created=_seconds(document, "created", what),
            creator=_text(document, "creator", what),
            features=features,
        )
    except ValueError as error:
        raise CorruptFormat(f"makes no sense: {error}", what=what) from error


def _wrong(key: str, kind: str, value: object, what: str) -> CorruptFormat:
    return CorruptFormat(f'"{key}" should be {kind}, not {value!r}', what=what)


def _text(document: dict[str, Any], key: str, what: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise _wrong(key, "a string", value, what)
    return value


def _whole(document: dict[str, Any], key: str, what: str) -> int:
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(key, "a whole number", value, what)
    return value


def _seconds(document: dict[str, Any], key: str, what: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(key, "a number of seconds", value, what)
    return float(value)


def _texts(document: dict[str, Any], key: str, what: str) -> frozenset[str]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(key, "a list of strings", value, what)
    return frozenset(value)
