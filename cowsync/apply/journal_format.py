"""Bytes of an apply journal: header and records. Pure; laid out in docs/formats/apply-journal.md.

One rule: nothing is trusted before its checksum held, and a checksum covers the plan's digest and the record's own
offset: a record of another plan, or one that lies elsewhere, is none.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

from cowsync.changes import LineResult, Op, Outcome

VERSION = 1
MAGIC = b"BWAPPLY\0"
HEADER_BYTES = 48
RECORD_MAGIC = b"\xa7J"
HEAD_BYTES = 16
PAYLOAD_BYTES_MAX = 8192
MESSAGE_BYTES_MAX = 1000
_TEXT_BYTES_MAX = 3000

_HEADER = struct.Struct("<8sI32s")
_HEAD = struct.Struct("<2sHIQ")
_RESULT = struct.Struct("<BBIQQQ")
_BEGUN = struct.Struct("<BBQQ")
_CHECKSUM = struct.Struct("<I")
_OFFSET = struct.Struct("<Q")
assert _HEADER.size + _CHECKSUM.size == HEADER_BYTES
assert _HEAD.size == HEAD_BYTES

_OUTCOMES = {Outcome.DONE: 0, Outcome.MOVED: 1, Outcome.DRIFTED: 2, Outcome.FAILED: 3, Outcome.SKIPPED: 4}
_OPS = {Op.ADD: 0, Op.MODIFY: 1, Op.VANISH: 2, Op.REMOVE: 3, Op.RETURN: 4}
_OUTCOME_OF = {number: outcome for outcome, number in _OUTCOMES.items()}
_OP_OF = {number: op for op, number in _OPS.items()}


class Kind(IntEnum):
    RESULT = 1
    """What became of a line."""
    BEGUN = 2
    """Lines of one kind in a range of numbers may have been carried out from here on. Durable before the first is."""
    UPLOAD_BEGUN = 3
    UPLOAD_OVER = 4


@dataclass(frozen=True, slots=True)
class Begun:
    """Lines `first` to `end` (exclusive), of kind `op`."""

    op: Op
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload on the mirror, of the full key there. `over`: completed or aborted."""

    key: str
    upload_id: str
    over: bool


Entry = LineResult | Begun | Upload


class BadRecord(Exception):
    """No valid record here."""


class Decoded(NamedTuple):
    """`end` is where the next record begins; before `synced` everything was durable when this one was appended."""

    entry: Entry
    end: int
    synced: int


def encode_header(digest: bytes) -> bytes:
    """`digest` is the SHA-256 that names the plan."""
    body = _HEADER.pack(MAGIC, VERSION, digest)
    return body + _CHECKSUM.pack(crc32c(body))


def decode_header(data: bytes) -> bytes:
    """The plan's digest. Raises BadRecord."""
    if len(data) < HEADER_BYTES:
        raise BadRecord(f"{len(data)} bytes are no header")
    magic, version, digest = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise BadRecord("not an apply journal (magic is missing)")
    if crc32c(data[: _HEADER.size]) != _CHECKSUM.unpack_from(data, _HEADER.size)[0]:
        raise BadRecord("the header's checksum does not hold")
    if version != VERSION:
        raise BadRecord(f"version {version} is not known here; use the release that wrote it, or a later one")
    return bytes(digest)


def encode(entry: Entry, offset: int, synced: int, digest: bytes) -> bytes:
    """The record of `entry` for this offset of the file. Long texts are cut; keys and ids S3 allows never are."""
    match entry:
        case LineResult():
            payload = _RESULT.pack(
                Kind.RESULT,
                _OUTCOMES[entry.outcome],
                min(entry.milliseconds, 0xFFFFFFFF),
                entry.number,
                entry.bytes_moved,
                entry.bytes_copied,
            )
            payload += _text(entry.mirror_etag) + _text(entry.mirror_version)
            payload += _text(entry.message, MESSAGE_BYTES_MAX)
        case Begun():
            payload = _BEGUN.pack(Kind.BEGUN, _OPS[entry.op], entry.first, entry.end)
        case Upload():
            kind = Kind.UPLOAD_OVER if entry.over else Kind.UPLOAD_BEGUN
            payload = bytes((kind,)) + _text(entry.key) + _text(entry.upload_id)
    rest = struct.pack("<Q", synced) + payload
    return struct.pack("<2sHI", RECORD_MAGIC, len(payload), _checksum(rest, offset, digest)) + rest


def decode(data: bytes | bytearray | memoryview, at: int, offset: int, digest: bytes) -> Decoded:
    """The record at data[at:], which lies at `offset` of its file. Raises BadRecord; never reads past `data`."""
    if len(data) - at < HEAD_BYTES:
        raise BadRecord("the record's head is cut short")
    magic, length, checksum, synced = _HEAD.unpack_from(data, at)
    if magic != RECORD_MAGIC:
        raise BadRecord("no record begins here")
    end = at + HEAD_BYTES + length
    if length > PAYLOAD_BYTES_MAX or end > len(data):
        raise BadRecord("the record is cut short")
    if _checksum(data[at + 8 : end], offset, digest) != checksum:
        raise BadRecord("the record's checksum does not hold")
    try:
        entry = _entry(bytes(data[at + HEAD_BYTES : end]))
    except (struct.error, UnicodeDecodeError, KeyError, IndexError) as error:
        # The writer meant what it wrote: a newer version, or a bug.
        raise BadRecord(f"the record is of a kind not known here: {error}") from error
    return Decoded(entry, offset + HEAD_BYTES + length, synced)


def _entry(payload: bytes) -> Entry:
    kind = payload[0]
    if kind == Kind.RESULT:
        _, outcome, milliseconds, number, moved, copied = _RESULT.unpack_from(payload)
        etag, at = _take(payload, _RESULT.size)
        version, at = _take(payload, at)
        message, at = _take(payload, at)
        _whole(payload, at)
        return LineResult(number, _OUTCOME_OF[outcome], etag, version, moved, copied, milliseconds, message)
    if kind == Kind.BEGUN:
        _, op, first, end = _BEGUN.unpack_from(payload)
        _whole(payload, _BEGUN.size)
        return Begun(_OP_OF[op], first, end)
    over = {int(Kind.UPLOAD_BEGUN): False, int(Kind.UPLOAD_OVER): True}[kind]
    key, at = _take(payload, 1)
    upload_id, at = _take(payload, at)
    _whole(payload, at)
    return Upload(key, upload_id, over)


def _whole(payload: bytes, end: int) -> None:
    if end != len(payload):
        raise IndexError(f"{len(payload)} bytes where {end} are expected")


def _text(text: str, most: int = _TEXT_BYTES_MAX) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) > most:
        data = data[:most].decode("utf-8", "ignore").encode()
    return struct.pack("<H", len(data)) + data


def _take(payload: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<H", payload, at)
    end = at + 2 + length
    if end > len(payload):
        raise IndexError("a text is cut short")
    return payload[at + 2 : end].decode(), end


def _checksum(rest: bytes | bytearray | memoryview, offset: int, digest: bytes) -> int:
    return crc32c(bytes(rest), crc32c(_OFFSET.pack(offset), crc32c(digest)))
