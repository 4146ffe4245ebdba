"""How a `file://` store lays objects out: names of files from keys, and the trailer at each file's end. Pure.

One rule: a key alone decides its path, any key has one, and the entries of one folder, sorted by
`Entry.order`, give their keys in UTF-8 order without looking at any other folder.

Names. A key is cut at `/` into segments. Bytes outside `A-Z a-z 0-9 - _ . ~` and a leading `.` are written
`%XX`. What kind an entry is shows at its end, in characters that such a name cannot contain:

    name=    an object whose key ends in segment `name`     (`a`    -> objects/a=)
    name     a folder for keys that go on after `name/`     (`a/b`  -> objects/a/b=)
    %        the same for an empty segment                  (`a//b` -> objects/a/%/b=)
    name+    a folder for the rest of a segment of 80 bytes or more, 80 bytes at a time, so that no name is
             longer than the 255 bytes of Linux file systems (3 x 80 + 1). The rest may be empty.

File. The object's bytes, its metadata as JSON, and 44 bytes of trailer (big-endian):

    offset  bytes
         0      8  magic "BWOBJ\\0\\0\\1"; the last byte is the version
         8      8  length of the object's bytes
        16      4  length of the metadata, 0 for none
        20      4  number of parts it was uploaded in, 0 for one PUT (shown in the ETag)
        24     16  ETag, raw
        40      4  CRC-32 (zlib) of the metadata and the 40 bytes above

Everything of an object is in one file, so one rename publishes it whole, and a copy of the folder made with
any tool is a copy of the store.
"""

import json
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from s3core.content import ETAG_BYTES, etag_text

_CHUNK_BYTES = 80
_MAGIC = b"BWOBJ\0\0\1"
_TRAILER = struct.Struct(f">8sQII{ETAG_BYTES}sI")
TRAILER_BYTES = _TRAILER.size
assert TRAILER_BYTES == 44

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
_ENCODED = [chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in range(256)]
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*\Z")
_PLAIN_SEGMENT = re.compile(rb"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*\Z")
_WELL_FORMED = re.compile(r"(?:[A-Za-z0-9_~-]|%[0-9A-F]{2})(?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})*\Z")


class Kind(Enum):
    OBJECT = "="
    FOLDER = ""
    REST = "+"


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One directory entry. `order` is what it adds to the key: all of the rest for an object, and for a
    folder the beginning that all keys inside share, which no key outside has."""

    order: bytes
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Trailer:
    """What the end of an object's file tells."""

    data_bytes: int
    metadata_bytes: int
    parts: int
    digest: bytes

    @property
    def etag(self) -> str:
        return etag_text(self.digest, self.parts)


class BadTrailer(ValueError):
    """The file's end is not what was written there."""


def path_of(key: str) -> tuple[str, str]:
    """The folder of `key` below `objects/` (empty for the top, otherwise with `/` at its end) and the file's name."""
    if _PLAIN_NAME.match(key) and len(key) < _CHUNK_BYTES:
        return "", key + "="
    *folders, last = key.encode().split(b"/")
    names = [name for segment in folders for name in _folder_names(segment)]
    names += [_encoded(chunk) + "+" for chunk in _full_chunks(last)]
    folder = "/".join(names)
    return folder + "/" if folder else "", _encoded(last[_whole(last) :]) + "="


def folder_of(prefix: str) -> tuple[str, bytes]:
    """The deepest folder that holds every key starting with `prefix`, and the beginning of keys it stands for."""
    base = prefix.encode()[: prefix.encode().rfind(b"/") + 1]
    if not base:
        return "", b""
    names = [name for segment in base[:-1].split(b"/") for name in _folder_names(segment)]
    return "/".join(names) + "/", base


def parse_entry(name: str, directory: bool) -> Entry | None:
    """What a directory entry stands for; None for one that no key has made."""
    if not directory:
        return Entry(_decoded(name[:-1]), name, Kind.OBJECT) if name[-1] == "=" and _well_formed(name[:-1]) else None
    if name == "%":
        return Entry(b"/", name, Kind.FOLDER)
    if name[-1] == "+":
        return Entry(_decoded(name[:-1]), name, Kind.REST) if _WELL_FORMED.match(name[:-1]) else None
    return Entry(_decoded(name) + b"/", name, Kind.FOLDER) if _WELL_FORMED.match(name) else None


def encode_end(data_bytes: int, metadata: dict[str, str], parts: int, digest: bytes) -> bytes:
    """The bytes that follow an object's own: metadata and trailer."""
    text = json.dumps(metadata, separators=(",", ":"), sort_keys=True).encode() if metadata else b""
    head = _TRAILER.pack(_MAGIC, data_bytes, len(text), parts, digest, 0)[:-4]
    return text + head + zlib.crc32(head, zlib.crc32(text)).to_bytes(4, "big")


def decode_end(tail: bytes, file_bytes: int) -> Trailer:
    """The trailer in the last bytes of a file of `file_bytes`; BadTrailer when they do not add up."""
    if len(tail) < TRAILER_BYTES:
        raise BadTrailer(f"file of {file_bytes} bytes is too short for an object")
    magic, data_bytes, metadata_bytes, parts, digest, _ = _TRAILER.unpack_from(tail, len(tail) - TRAILER_BYTES)
    if magic != _MAGIC:
        raise BadTrailer("file does not end like an object of this store")
    if data_bytes + metadata_bytes + TRAILER_BYTES != file_bytes:
        raise BadTrailer(f"file of {file_bytes} bytes should have {data_bytes + metadata_bytes + TRAILER_BYTES}")
    return Trailer(data_bytes, metadata_bytes, parts, digest)


def decode_metadata(end: bytes) -> dict[str, str]:
    """The metadata out of `encode_end`'s bytes, with the checksum over both checked; BadTrailer."""
    if zlib.crc32(end[:-4]) != int.from_bytes(end[-4:], "big"):
        raise BadTrailer("checksum of metadata and trailer does not hold")
    text = end[:-TRAILER_BYTES]
    return {str(name): str(value) for name, value in json.loads(text).items()} if text else {}


def _whole(segment: bytes) -> int:
    """How many of the segment's bytes go into full chunks."""
    return len(segment) - len(segment) % _CHUNK_BYTES


def _full_chunks(segment: bytes) -> Iterator[bytes]:
    return (segment[at : at + _CHUNK_BYTES] for at in range(0, _whole(segment), _CHUNK_BYTES))


def _folder_names(segment: bytes) -> Iterator[str]:
    for chunk in _full_chunks(segment):
        yield _encoded(chunk) + "+"
    yield _encoded(segment[_whole(segment) :]) or "%"


def _encoded(segment: bytes) -> str:
    if _PLAIN_SEGMENT.match(segment):
        return segment.decode()
    text = "".join(map(_ENCODED.__getitem__, segment))
    return "%2E" + text[1:] if text[:1] == "." else text


def _well_formed(name: str) -> bool:
    return not name or _WELL_FORMED.match(name) is not None


def _decoded(name: str) -> bytes:
    if "%" not in name:
        return name.encode()
    first, *rest = name.split("%")
    return first.encode() + b"".join(bytes.fromhex(part[:2]) + part[2:].encode() for part in rest)
