"""A sealed object: any object's bytes and facts as they lie on an encrypted mirror. Format: docs/formats/sealed-object.md.

    header (64)   magic, version, frame size, length of the facts, plain size, data key, salt
    facts         sealed: the key it was put under, the source's ETag and version, headers, metadata, tags; padded
    frames        sealed: the bytes, a frame at a time

One rule: pure, and one object, one key. The key of an object is drawn from the data key and the whole header, whose salt is 32
random bytes, so a nonce can be a number: facts are number 0, frames count from 1, and the last one says so (the STREAM
construction: Hoang, Reyhanitabar, Rogaway, Vizar, CRYPTO 2015). Whatever is changed, cut off, put in another order or taken
from another object does not open. A salt is never used for two contents: whoever seals again begins with a new `Sealer`.
A stream, whose size nobody knows at its beginning, is version 2: its size follows from the object's length, and holds once the
last frame opened as the last one.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from s3core.bucket import NO_ATTRIBUTES, Attributes
from s3core.errors import Corrupt

Buffer = bytes | bytearray | memoryview
Random = Callable[[int], bytes]
"""So many random bytes; os.urandom in production."""

MAGIC = b"BWSO"
VERSION = 1
STREAMED = 2
"""The version whose header does not tell the size."""
UNTOLD = -1
"""The size in the header of a stream until the object's length is known."""
HEADER = struct.Struct("<4sBBHQ16s32s")
SALT_BYTES = 32
KEY_BYTES = 32
TAG_BYTES = 16
FRAME_SHIFT = 20
FRAME_SHIFT_MIN, FRAME_SHIFT_MAX = 16, 24
FACTS_UNIT = 256
FACTS_UNITS_MAX = 256

_KEY_INFO = b"bucketworks sealed object 1"
_FACTS, _FRAME, _LAST = 0, 1, 2


class NotOpened(Corrupt):
    """These bytes are not what was sealed, or not with this key."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """What all objects of a mirror are sealed with. `id` is no secret: it names the key in headers and slots."""

    id: UUID
    material: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.material) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes, not {len(self.material)}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an object was when it was sealed: its `key` relative to the mirror's prefix, the source's `etag` and
    `version_id`, how it was uploaded there (`first_part` bytes in the first of `parts`; 0: in one piece), and what it had
    beside its bytes."""

    key: str
    etag: str = ""
    version_id: str = ""
    first_part: int = 0
    parts: int = 0
    attributes: Attributes = NO_ATTRIBUTES


@dataclass(frozen=True, slots=True)
class Header:
    """`facts_units`: how many times FACTS_UNIT bytes the sealed facts take. `size` is that of the plain object; of a stream
    UNTOLD until `of_length` derives it."""

    size: int
    key_id: UUID
    salt: bytes
    facts_units: int
    frame_shift: int = FRAME_SHIFT
    streamed: bool = False

    def of_length(self, sealed: int) -> "Header":
        """The header of an object that lies there with `sealed` bytes. NotOpened where no object of this header can. The
        size of a stream is a claim of the store until the last frame was opened."""
        if self.streamed and self.size == UNTOLD:
            frames = -(-(sealed - HEADER.size - self.facts_bytes) // (self.frame_bytes + TAG_BYTES))
            size = sealed - HEADER.size - self.facts_bytes - TAG_BYTES * frames
            if size < 0 or sealed_bytes(size, self.facts_units, self.frame_shift) != sealed:
                raise NotOpened(f"has {sealed} bytes, which no stream has once it is sealed: it was cut off")
            return replace(self, size=size)
        if self.sealed_bytes != sealed:
            raise NotOpened(f"has {sealed} bytes; when it was sealed it had {self.sealed_bytes}")
        return self

    @property
    def frame_bytes(self) -> int:
        return 1 << self.frame_shift

    @property
    def facts_bytes(self) -> int:
        return self.facts_units * FACTS_UNIT

    @property
    def frames(self) -> int:
        return frame_count(self.size, self.frame_bytes)

    @property
    def sealed_bytes(self) -> int:
        return sealed_bytes(self.size, self.facts_units, self.frame_shift)

    def frame_length(self, number: int) -> int:
        """Plain bytes of frame `number` (from 1)."""
        return min(self.frame_bytes, self.size - (number - 1) * self.frame_bytes)

    def frame_offset(self, number: int) -> int:
        """Where frame `number` (from 1) begins in the sealed object."""
        return HEADER.size + self.facts_bytes + (number - 1) * (self.frame_bytes + TAG_BYTES)


def frame_count(size: int, frame_bytes: int) -> int:
    """An object without bytes has one frame without bytes: that it has none is sealed too."""
    return max(1, -(-size // frame_bytes))


def sealed_bytes(size: int, facts_units: int = 1, frame_shift: int = FRAME_SHIFT) -> int:
    """How long an object of `size` bytes is once it is sealed."""
    return HEADER.size + facts_units * FACTS_UNIT + size + TAG_BYTES * frame_count(size, 1 << frame_shift)


def may_be(sealed: int, size: int) -> bool:
    """Whether a sealed object of `sealed` bytes can hold `size` plain ones, however long its facts are."""
    units, rest = divmod(sealed - sealed_bytes(size, 0), FACTS_UNIT)
    return not rest and 1 <= units <= FACTS_UNITS_MAX


class _Object:
    """One object's key, and what both directions share."""

    def __init__(self, key: DataKey, header: Header) -> None:
        self.header = header
        self._packed = encode_header(header)
        self._cipher = AESGCM(HKDFExpand(SHA256(), KEY_BYTES, _KEY_INFO + self._packed).derive(key.material))


def _nonce(number: int, kind: int) -> bytes:
    return number.to_bytes(11, "big") + bytes([kind])


class _Sealing(_Object):
    """What sealers share: the head, and a frame's number."""

    def __init__(
        self, key: DataKey, size: int, facts: Facts, random: Random, frame_shift: int, *, streamed: bool
    ) -> None:
        plain = encode_facts(facts)
        units = facts_units(facts)
        super().__init__(key, Header(size, key.id, random(SALT_BYTES), units, frame_shift, streamed))
        padded = plain.ljust(self.header.facts_bytes - TAG_BYTES)
        self.head = self._packed + self._cipher.encrypt(_nonce(0, _FACTS), padded, None)
        """Header and facts: what a sealed object begins with."""
        self._next = 1


class Sealer(_Sealing):
    """Seals one object once. Frames are asked for in order, each once."""

    def __init__(self, key: DataKey, size: int, facts: Facts, random: Random, frame_shift: int = FRAME_SHIFT) -> None:
        """ValueError for facts that do not fit, which no object of S3 has."""
        super().__init__(key, size, facts, random, frame_shift, streamed=False)

    def frame(self, plain: Buffer) -> bytes:
        """The next frame. RuntimeError after the last: nothing is sealed twice. ValueError for another length."""
        number = self._next
        if number > self.header.frames:
            raise RuntimeError("all frames of this object are sealed")
        if len(plain) != self.header.frame_length(number):
            raise ValueError(f"frame {number} has {self.header.frame_length(number)} bytes, not {len(plain)}")
        self._next += 1
        return self._cipher.encrypt(_nonce(number, _LAST if number == self.header.frames else _FRAME), plain, None)


class StreamSealer(_Sealing):
    """As `Sealer`, of a size that nobody knows yet: whoever asks says which frame is the last."""

    def __init__(self, key: DataKey, facts: Facts, random: Random, frame_shift: int = FRAME_SHIFT) -> None:
        super().__init__(key, UNTOLD, facts, random, frame_shift, streamed=True)
        self._ended = False

    def frame(self, plain: Buffer, *, last: bool = False) -> bytes:
        """The next frame: a whole one but for the last, which has at least one byte unless it is the only one. RuntimeError
        after the last, ValueError for another length."""
        if self._ended:
            raise RuntimeError("all frames of this object are sealed")
        least = (0 if self._next == 1 else 1) if last else self.header.frame_bytes
        if not least <= len(plain) <= self.header.frame_bytes:
            raise ValueError(f"frame {self._next} has {least} to {self.header.frame_bytes} bytes, not {len(plain)}")
        number, self._next, self._ended = self._next, self._next + 1, last
        return self._cipher.encrypt(_nonce(number, _LAST if last else _FRAME), plain, None)


class Opener(_Object):
    """Opens one object; frames in any order. NotOpened for whatever was not sealed so."""

    def __init__(self, key: DataKey, header: Header) -> None:
        super().__init__(key, header)
        if header.key_id != key.id:
            raise NotOpened(f"it was sealed with data key {header.key_id}, and this is {key.id}")

    def facts(self, sealed: Buffer) -> Facts:
        """Of the `header.facts_bytes` bytes behind the header."""
        return decode_facts(self._open(0, sealed, "the facts"))

    def frame(self, number: int, sealed: Buffer) -> bytes:
        """The plain bytes of frame `number` (from 1). Of a stream the size must be known (`Header.of_length`)."""
        if self.header.size == UNTOLD:
            raise ValueError("the size of this stream is not known")
        plain = self._open(number, sealed, f"frame {number} of {self.header.frames}", number == self.header.frames)
        if len(plain) != self.header.frame_length(number):
            raise NotOpened(f"frame {number} has {len(plain)} bytes, not {self.header.frame_length(number)}")
        return plain

    def next_frame(self, number: int, sealed: Buffer, *, last: bool) -> bytes:
        """As `frame`, for who reads a stream from front to back and sees its end coming."""
        return self._open(number, sealed, f"frame {number}", last)

    def _open(self, number: int, sealed: Buffer, what: str, last: bool = False) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(number, _LAST if last else _FRAME if number else _FACTS), sealed, None)
        except (InvalidTag, ValueError) as error:
            raise NotOpened(f"{what}: is not what was sealed") from error


def encode_header(header: Header) -> bytes:
    version, size = (STREAMED, 0) if header.streamed else (VERSION, header.size)
    return HEADER.pack(MAGIC, version, header.frame_shift, header.facts_units, size, header.key_id.bytes, header.salt)


def decode_header(data: Buffer) -> Header:
    """NotOpened for what is no header, or one of a newer version."""
    if len(data) < HEADER.size or bytes(data[:4]) != MAGIC:
        raise NotOpened("is not a sealed object: it does not begin as one")
    _, version, shift, units, size, key_id, salt = HEADER.unpack_from(data)
    if version not in (VERSION, STREAMED):
        raise NotOpened(f"is sealed in format version {version}, and this program knows {VERSION} and {STREAMED}")
    if not FRAME_SHIFT_MIN <= shift <= FRAME_SHIFT_MAX or not 1 <= units <= FACTS_UNITS_MAX:
        raise NotOpened("the header of the sealed object makes no sense")
    if version == STREAMED and size:
        raise NotOpened("the header of a sealed stream tells no size, and this one does")
    streamed = version == STREAMED
    return Header(UNTOLD if streamed else size, UUID(bytes=key_id), salt, units, shift, streamed)


def facts_units(facts: Facts) -> int:
    """How many times FACTS_UNIT bytes `facts` take once they are sealed. ValueError where they do not fit."""
    units = -(-(len(encode_facts(facts)) + TAG_BYTES) // FACTS_UNIT)
    if units > FACTS_UNITS_MAX:
        raise ValueError(
            f"the facts of {facts.key!r} take {units * FACTS_UNIT} bytes, which is more than can be sealed"
        )
    return units


def encode_facts(facts: Facts) -> bytes:
    """Compact JSON with sorted names, without what is empty."""
    document: dict[str, Any] = {
        "key": facts.key,
        "etag": facts.etag,
        "version": facts.version_id,
        "parts": [facts.first_part, facts.parts] if facts.parts else [],
        "headers": dict(facts.attributes.headers),
        "metadata": dict(facts.attributes.metadata),
        "tags": dict(facts.attributes.tags),
    }
    meaning = {name: value for name, value in document.items() if value}
    return json.dumps(meaning, sort_keys=True, separators=(",", ":")).encode()


def decode_facts(plain: bytes) -> Facts:
    """Unknown names are passed over. NotOpened for anything else: it was sealed by another program."""
    try:
        document = json.loads(plain)
        first, parts = document.get("parts") or (0, 0)
        return Facts(
            _text(document["key"]),
            _text(document.get("etag", "")),
            _text(document.get("version", "")),
            int(first),
            int(parts),
            Attributes(*(_texts(document.get(name, {})) for name in ("headers", "metadata", "tags"))),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotOpened(f"the facts open and make no sense: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(text) for name, text in value.items()}
