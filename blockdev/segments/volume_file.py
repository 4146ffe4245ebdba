"""vol.json: what a volume is. Written once, by put_if_absent, and never changed. Format: docs/formats/volume.md.

One rule: everything else in the bucket is read by what this file says, so it carries a checksum over its meaning
(not over its spelling: white space may change, a value may not).
"""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from crc32c import crc32c

from blockdev.errors import CorruptFormat, KeyRefused
from blockdev.segments.cipher import CIPHER, KEY_CHECK_BYTES, Cipher, FrameCipher, Random, key_check
from blockdev.units import Geometry

FORMAT = 1
CLONE = "clone"
"""The feature of a volume with an origin: a program that does not know it would take the volume for empty."""
ENCRYPTION = "encryption"
KNOWN_FEATURES: frozenset[str] = frozenset({CLONE, ENCRYPTION})
"""Features this program understands. A volume that names another one is refused, never half understood."""
CHECKSUM = "crc32c"
ZSTD_LEVEL_DEFAULT = 1
ZSTD_LEVEL_MAX = 19


@dataclass(frozen=True, slots=True)
class Encryption:
    """How a volume's frames are sealed. `key_check` tells the data key from any other (`cipher.key_check`)."""

    cipher: str
    key_check: str


@dataclass(frozen=True, slots=True)
class Origin:
    """A commit of an ancestor that a clone goes on from: its snapshot there. `root` is the key of the checkpoint of that
    commit in the ancestor's part, `digest` the commit's record's (SHA-256), `lineage` the ancestor's at that commit."""

    name: str
    identity: UUID
    seq: int
    epoch: int
    root: str
    digest: bytes
    lineage: UUID


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """`origin`: the ancestors of a clone, the oldest first, by ascending `seq`; the log goes on after the last one's.
    `geometry.size_bytes` is the size at creation; the size of now is in the log's newest record."""

    name: str
    identity: UUID
    lineage: UUID
    geometry: Geometry
    compression: str
    created: float
    creator: str
    features: frozenset[str] = frozenset()
    origin: tuple[Origin, ...] = ()
    encryption: Encryption | None = None

    def __post_init__(self) -> None:
        if (ENCRYPTION in self.features) != (self.encryption is not None):
            raise ValueError(f'the feature "{ENCRYPTION}" and the member "{ENCRYPTION}" belong together')
        if bool(self.origin) != (CLONE in self.features):
            raise ValueError(f'an origin and the feature "{CLONE}" belong together; one is missing')
        numbers = [origin.seq for origin in self.origin]
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] < 1):
            raise ValueError(f"the commits of the origin do not ascend: {numbers}")


def compression_level(compression: str) -> int | None:
    """The zstd level that the text of vol.json means, None for "none". ValueError for what no writer knows."""
    if compression == "none":
        return None
    if compression == "zstd":
        return ZSTD_LEVEL_DEFAULT
    for level in range(1, ZSTD_LEVEL_MAX + 1):
        if compression == f"zstd-{level}":
            return level
    raise ValueError(f"compression is zstd, zstd-1 to zstd-{ZSTD_LEVEL_MAX} or none, not {compression!r}")


def encryption_of(data_key: bytes, identity: UUID) -> Encryption:
    """What the vol.json of volume `identity` says of its data key. A clone has its ancestor's key and words of its own."""
    return Encryption(CIPHER, key_check(data_key, identity.bytes))


def is_data_key(volume: VolumeFile, data_key: bytes) -> bool:
    """Whether `data_key` is the volume's."""
    return volume.encryption is not None and key_check(data_key, volume.identity.bytes) == volume.encryption.key_check


def cipher_of(volume: VolumeFile, data_key: bytes, random: Random) -> Cipher | None:
    """What opens and seals the volume's frames; None for a volume that is not encrypted, whose `data_key` is empty.
    Raises KeyRefused for any other key than the volume's."""
    if volume.encryption is None and not data_key:
        return None
    if not is_data_key(volume, data_key):
        raise KeyRefused(f"volume {volume.name} was given a data key that is not its own")
    return FrameCipher(data_key, random)


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
    if volume.origin:
        document["origin"] = [_origin_document(origin) for origin in volume.origin]
    if volume.encryption is not None:
        document[ENCRYPTION] = {"cipher": volume.encryption.cipher, "key_check": volume.encryption.key_check}
    document[CHECKSUM] = checksum(document)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _origin_document(origin: Origin) -> dict[str, Any]:
    return {
        "name": origin.name,
        "uuid": str(origin.identity),
        "seq": origin.seq,
        "epoch": origin.epoch,
        "root": origin.root,
        "digest": origin.digest.hex(),
        "lineage": str(origin.lineage),
    }


def _origin(document: object, what: str) -> Origin:
    if not isinstance(document, dict):
        raise _wrong("origin", "a list of objects", document, what)
    return Origin(
        name=_text(document, "name", what),
        identity=UUID(_text(document, "uuid", what)),
        seq=_whole(document, "seq", what),
        epoch=_whole(document, "epoch", what),
        root=_text(document, "root", what),
        digest=bytes.fromhex(_text(document, "digest", what)),
        lineage=UUID(_text(document, "lineage", what)),
    )


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
            origin=tuple(_origin(item, what) for item in _list(document, "origin", what)),
            encryption=_encryption(document, what),
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


def _list(document: dict[str, Any], key: str, what: str) -> list[Any]:
    value = document.get(key, [])
    if not isinstance(value, list):
        raise _wrong(key, "a list", value, what)
    return value


def _encryption(document: dict[str, Any], what: str) -> Encryption | None:
    value = document.get(ENCRYPTION)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong(ENCRYPTION, "an object", value, what)
    cipher, check = _text(value, "cipher", what), _text(value, "key_check", what)
    if cipher != CIPHER:
        raise CorruptFormat(
            f"the volume is encrypted with {cipher}, which this program does not know",
            what=what,
            hint="use a newer version of the program",
        )
    if len(check) != 2 * KEY_CHECK_BYTES:
        raise _wrong("key_check", f"{2 * KEY_CHECK_BYTES} hexadecimal digits", check, what)
    return Encryption(cipher, check)


def _texts(document: dict[str, Any], key: str, what: str) -> frozenset[str]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(key, "a list of strings", value, what)
    return frozenset(value)
