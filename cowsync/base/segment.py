"""A segment: an immutable file of rows in ascending order of key, in columns, in frames that are read on their own.
Format: docs/formats/base-segment.md.

One rule: bytes become rows only after their checksum held, and whatever is wrong is StateDamaged with the name of the
file and the number of the frame, never other rows. What is done per row is done by C on a whole column.
"""

import hashlib
import struct
import sys
from array import array
from binascii import hexlify
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import compress, count
from operator import lt, ne
from typing import Any

import zstandard
from crc32c import crc32c

from cowsync.errors import StateDamaged
from cowsync.rows import REMOVED, Row, Rows

VERSION = 1
FRAME_ROWS = 16_384
FRAME_ROWS_MAX = 65_536
"""What a reader takes; a writer makes frames of FRAME_ROWS."""
COLUMN_BYTES_MAX = 64 << 20
LEVEL = 3

MAGIC = b"BWSYNSEG"
HEADER = struct.Struct("<8sII")
"""magic, version, salt."""
TRAILER = struct.Struct("<QQQQIIII8s")
"""rows, removed, gone, bytes; frames, length of the footer, version, CRC32C; magic."""
ENTRY = struct.Struct("<QIIIHH")
"""offset, stored, rows, CRC32C, length of the first key, of the last key."""
COLUMN = struct.Struct("<BBHIII")
"""encoding, codec, argument, exceptions, raw, stored."""
assert HEADER.size == 16
assert TRAILER.size == 56
assert ENTRY.size == 24
assert COLUMN.size == 16
_CRC_AT = TRAILER.size - 12

SEPARATOR = b"\xff"
"""Between texts; no UTF-8 holds it."""


class Encoding(IntEnum):
    CONSTANT = 1
    TEXT = 2
    PLANES = 3
    HEX = 4
    SAME = 5
    INTEGERS = 6


RAW, ZSTD = 0, 1
_TYPES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ETAGS, _MODIFIED, _MIRROR_ETAGS = 2, 3, 6
_NUMBERS = (1, 8)
"""Places of the columns of integers: sizes, gone."""
_OFFSETS = {1: 0, 8: 1}
"""What is added to an integer so that it is not negative."""
_COLUMNS = 9
_HEX_DIGITS = 32
_DIGITS = b"0123456789abcdef"
_PLANES_MAX = 64
"""The longest text that is turned into planes."""


@dataclass(frozen=True, slots=True)
class Frame:
    offset: int
    stored: int
    rows: int
    crc: int
    first: bytes
    last: bytes


@dataclass(frozen=True, slots=True)
class Footer:
    """What a segment says of itself. `rows` counts all of them, of which `removed` are REMOVED and `gone` are not at the
    source any more; `byte_sum` is the sum of the sizes of all but the removed ones."""

    rows: int
    removed: int
    gone: int
    byte_sum: int
    frames: tuple[Frame, ...]

    @property
    def first(self) -> bytes:
        return self.frames[0].first

    @property
    def last(self) -> bytes:
        return self.frames[-1].last


def name_of(data: bytes) -> str:
    """SHA-256 of the whole file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def salted(data: bytes, salt: int) -> bytes:
    """The same segment with another digest, for the case that its name cannot be used."""
    return HEADER.pack(MAGIC, VERSION, salt) + data[HEADER.size :]


# --- writing ----------------------------------------------------------------------------------------------------------


class SegmentWriter:
    """Takes rows, gives a file. Memory: what is stored so far and one frame of rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._removed = self._gone = self._bytes = 0
        self._waiting = Rows()
        self._parts = [HEADER.pack(MAGIC, VERSION, 0)]
        self._stored = HEADER.size
        self._frames: list[Frame] = []
        self._last = b""
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)

    def add(self, rows: Rows) -> None:
        """ValueError where keys do not rise strictly, or a value cannot be stored."""
        if not rows.keys:
            return
        if (self.rows and rows.keys[0] <= self._last) or not all(map(lt, rows.keys, rows.keys[1:])):
            raise ValueError(f"keys of a segment must rise strictly; they do not near {rows.keys[0]!r}")
        self._last = rows.keys[-1]
        self.rows += len(rows)
        at = 0
        while len(rows) - at + len(self._waiting) >= FRAME_ROWS:
            taken = FRAME_ROWS - len(self._waiting)
            if self._waiting.keys:
                self._waiting.extend(rows.slice(at, at + taken))
            else:
                self._waiting = rows.slice(at, at + taken)
            at += taken
            self._write()
        self._waiting.extend(rows.slice(at, len(rows)))

    def finish(self) -> tuple[bytes, Footer]:
        """The whole file. There must be a row in it."""
        if self._waiting.keys:
            self._write()
        if not self._frames:
            raise ValueError("a segment holds at least one row")
        if self._bytes >= 1 << 64:
            raise ValueError(f"objects of {self._bytes} bytes together are more than a segment can say")
        footer = Footer(self.rows, self._removed, self._gone, self._bytes, tuple(self._frames))
        self._parts.append(_pack_footer(footer))
        return b"".join(self._parts), footer

    def _write(self) -> None:
        rows, self._waiting = self._waiting, Rows()
        data = encode_frame(rows, self._compressor)
        self._frames.append(Frame(self._stored, len(data), len(rows), crc32c(data), rows.keys[0], rows.keys[-1]))
        self._parts.append(data)
        self._stored += len(data)
        if any(rows.gone):
            removed = rows.gone.count(REMOVED)
            self._removed += removed
            self._gone += len(rows) - rows.gone.count(0) - removed
            self._bytes += sum(rows.without_removed().sizes)
        else:
            self._bytes += sum(rows.sizes)


def write(rows: Rows) -> bytes:
    """A segment of these rows."""
    writer = SegmentWriter()
    writer.add(rows)
    return writer.finish()[0]


def _pack_footer(footer: Footer) -> bytes:
    entries = b"".join(
        ENTRY.pack(f.offset, f.stored, f.rows, f.crc, len(f.first), len(f.last)) + f.first + f.last
        for f in footer.frames
    )
    totals = (footer.rows, footer.removed, footer.gone, footer.byte_sum, len(footer.frames), len(entries), VERSION)
    body = entries + TRAILER.pack(*totals, 0, MAGIC)[:_CRC_AT]
    return body + struct.pack("<I", crc32c(body)) + MAGIC


def encode_frame(rows: Rows, compressor: zstandard.ZstdCompressor) -> bytes:
    """Heads of the nine columns, then what is stored of each. ValueError for a value that cannot be stored."""
    heads, bodies = [], []
    for place, column in enumerate(rows.columns()):
        encoding, argument, exceptions, raw = _encoded(place, column, rows)
        if len(raw) > COLUMN_BYTES_MAX:
            raise ValueError(f"a column of {len(raw)} bytes is more than a frame takes")
        stored, codec = raw, RAW
        if len(raw) > 32:
            squeezed = compressor.compress(raw)
            if len(squeezed) < len(raw) - (len(raw) >> 4):
                stored, codec = squeezed, ZSTD
        heads.append(COLUMN.pack(encoding, codec, argument, exceptions, len(raw), len(stored)))
        bodies.append(stored)
    return b"".join((*heads, *bodies))


def _encoded(place: int, column: list[Any], rows: Rows) -> tuple[int, int, int, bytes]:
    """encoding, argument, number of exceptions, bytes."""
    if place in _NUMBERS:
        return _encoded_integers(column, _OFFSETS[place])
    if column[0] == column[-1] and column.count(column[0]) == len(column):
        return Encoding.CONSTANT, 0, 0, column[0]
    few = len(column) // 4
    if place == _MIRROR_ETAGS:
        others = [] if column == rows.etags else list(compress(count(), map(ne, column, rows.etags)))
        if len(others) <= few:
            return Encoding.SAME, _ETAGS, len(others), _exceptions(column, others)
    if place in (_ETAGS, _MIRROR_ETAGS):
        others = _no_digests(column)
        if len(others) <= few:
            plain = list(column)
            for at in others:
                plain[at] = b"0" * _HEX_DIGITS
            digests = bytes.fromhex(b"".join(plain).decode())
            return Encoding.HEX, 0, len(others), digests + _exceptions(column, others)
    width = len(column[0])
    if place == _MODIFIED and 0 < width <= _PLANES_MAX and set(map(len, column)) == {width}:
        joined = b"".join(column)
        return Encoding.PLANES, width, 0, b"".join([joined[at::width] for at in range(width)])
    return Encoding.TEXT, 0, 0, _joined(column)


def _encoded_integers(column: list[int], offset: int) -> tuple[int, int, int, bytes]:
    least, most = min(column) + offset, max(column) + offset
    if least < 0 or most >= 1 << 64:
        raise ValueError(f"{min(column) if least < 0 else max(column)} is no size and no number of a run")
    if least == most:
        return Encoding.CONSTANT, 0, 0, least.to_bytes(8, "little")
    width = next(width for width in _TYPES if most < 1 << 8 * width)
    raw = _little(array(_TYPES[width], [value + offset for value in column] if offset else column)).tobytes()
    return Encoding.INTEGERS, width, 0, b"".join([raw[at::width] for at in range(width)])


def _no_digests(column: list[bytes]) -> list[int]:
    """Places of what is not 32 lower-case hexadecimal digits. (bytes.fromhex lets blanks pass and forgets upper case.)"""
    if set(map(len, column)) == {_HEX_DIGITS} and not b"".join(column).translate(None, _DIGITS):
        return []
    return [at for at, text in enumerate(column) if len(text) != _HEX_DIGITS or text.translate(None, _DIGITS)]


def _exceptions(column: list[bytes], places: list[int]) -> bytes:
    if not places:
        return b""
    return _little(array("I", places)).tobytes() + _joined([column[at] for at in places])


def _joined(texts: list[bytes]) -> bytes:
    joined = SEPARATOR.join(texts)
    if joined.count(SEPARATOR) != len(texts) - 1:
        wrong = next(text for text in texts if SEPARATOR in text)
        raise ValueError(f"{wrong!r} is not UTF-8")
    return joined


def _little(values: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        values.byteswap()
    return values


# --- reading ----------------------------------------------------------------------------------------------------------


class Segment:
    """A segment in memory. `what` is how messages name it. StateDamaged when it is not one."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        if len(data) < HEADER.size + TRAILER.size:
            raise StateDamaged(f"{what}: {len(data)} bytes are no segment")
        magic, version, _ = HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise StateDamaged(f"{what}: {_why_not(magic, version)}")
        self.footer = read_footer(data, len(data), what)

    def frame(self, number: int) -> Rows:
        """The rows of one frame."""
        frame = self.footer.frames[number]
        data = memoryview(self.data)[frame.offset : frame.offset + frame.stored]
        if crc32c(data) != frame.crc:
            raise StateDamaged(f"{self.what}: frame {number} is damaged (its checksum does not hold)")
        try:
            rows = decode_frame(data, frame.rows)
        except ValueError as error:
            raise StateDamaged(f"{self.what}: frame {number} is damaged ({error})") from error
        if rows.keys[0] != frame.first or rows.keys[-1] != frame.last:
            raise StateDamaged(f"{self.what}: frame {number} does not hold the keys that the footer names")
        return rows

    def read(self, after: bytes = b"", upto: bytes | None = None) -> Iterator[Rows]:
        """Rows with `after` < key <= `upto`, a frame or what is wanted of one at a time."""
        for number, frame in enumerate(self.footer.frames):
            if frame.last <= after:
                continue
            if upto is not None and frame.first > upto:
                return
            rows = self.frame(number)
            low = bisect_right(rows.keys, after) if frame.first <= after else 0
            high = bisect_right(rows.keys, upto) if upto is not None and frame.last > upto else len(rows)
            if high - low == len(rows):
                yield rows
            elif low < high:
                yield rows.slice(low, high)

    def around(self, key: bytes) -> Rows | None:
        """The frame that has the key if any has it."""
        frames = self.footer.frames
        number = bisect_left(frames, key, key=lambda frame: frame.last)
        return None if number == len(frames) or key < frames[number].first else self.frame(number)

    def find(self, key: bytes) -> Row | None:
        rows = self.around(key)
        if rows is None:
            return None
        at = bisect_left(rows.keys, key)
        return rows[at] if at < len(rows) and rows.keys[at] == key else None


def tail_length(trailer: bytes, what: str) -> int:
    """How many bytes at the end of a segment `read_footer` needs, from the last TRAILER.size of them."""
    if len(trailer) != TRAILER.size or trailer[-len(MAGIC) :] != MAGIC:
        raise StateDamaged(f"{what}: it does not end as a segment does; it is cut off or something else")
    return TRAILER.size + int(TRAILER.unpack(trailer)[5])


def read_footer(tail: bytes, size: int, what: str) -> Footer:
    """The footer out of the end of a file of `size` bytes, at least `tail_length` of it."""
    length = tail_length(tail[-TRAILER.size :], what)
    totals = TRAILER.unpack_from(tail, len(tail) - TRAILER.size)
    rows, removed, gone, byte_sum, frame_count, _, version, crc, magic = totals
    if length > len(tail) or length > size - HEADER.size:
        raise StateDamaged(f"{what}: the footer is longer than the file")
    if crc32c(memoryview(tail)[len(tail) - length : len(tail) - TRAILER.size + _CRC_AT]) != crc:
        raise StateDamaged(f"{what}: the footer is damaged (its checksum does not hold)")
    if version != VERSION:
        raise StateDamaged(f"{what}: {_why_not(magic, version)}")
    try:
        frames = _entries(memoryview(tail)[len(tail) - length : len(tail) - TRAILER.size], frame_count)
        _check_frames(frames, rows, size - length)
    except ValueError as error:
        raise StateDamaged(f"{what}: the footer is damaged ({error})") from error
    return Footer(rows, removed, gone, byte_sum, frames)


def _entries(entries: memoryview, frame_count: int) -> tuple[Frame, ...]:
    frames = []
    at = 0
    for _ in range(frame_count):
        if at + ENTRY.size > len(entries):
            raise ValueError("it ends early")
        offset, stored, rows, crc, first, last = ENTRY.unpack_from(entries, at)
        at += ENTRY.size
        if at + first + last > len(entries):
            raise ValueError("it ends early")
        keys = bytes(entries[at : at + first + last])
        at += first + last
        frames.append(Frame(offset, stored, rows, crc, keys[:first], keys[first:]))
    if at != len(entries):
        raise ValueError("there are bytes behind its end")
    return tuple(frames)


def _check_frames(frames: tuple[Frame, ...], rows: int, end: int) -> None:
    at, before = HEADER.size, None
    for frame in frames:
        if frame.offset != at or not 1 <= frame.rows <= FRAME_ROWS_MAX:
            raise ValueError("a frame is not where it should be")
        if (before is not None and frame.first <= before) or frame.last < frame.first:
            raise ValueError("its keys do not rise")
        at, before = at + frame.stored, frame.last
    if not frames or at != end or sum(frame.rows for frame in frames) != rows:
        raise ValueError("its totals are not those of its frames")


def decode_frame(data: memoryview, rows: int) -> Rows:
    """The columns of a frame of `rows` rows. ValueError for anything that is not one."""
    decompressor = zstandard.ZstdDecompressor()
    columns: list[list[Any]] = []
    at = COLUMN.size * _COLUMNS
    if len(data) < at:
        raise ValueError("it ends early")
    for place in range(_COLUMNS):
        encoding, codec, argument, exceptions, raw_bytes, stored = COLUMN.unpack_from(data, COLUMN.size * place)
        if at + stored > len(data) or raw_bytes > COLUMN_BYTES_MAX or exceptions > rows:
            raise ValueError(f"the lengths of column {place} do not fit")
        raw = _unpacked(data[at : at + stored], codec, raw_bytes, decompressor)
        at += stored
        if place in _NUMBERS:
            column: list[Any] = _decoded_integers(encoding, argument, raw, rows, _OFFSETS[place])
        else:
            column = _decoded(encoding, argument, exceptions, raw, rows, columns)
        if len(column) != rows:
            raise ValueError(f"column {place} holds {len(column)} values where {rows} should be")
        columns.append(column)
    if at != len(data):
        raise ValueError("there are bytes behind its end")
    return Rows(*columns)


def _unpacked(stored: memoryview, codec: int, size: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    if codec == RAW:
        if len(stored) != size:
            raise ValueError(f"{len(stored)} bytes lie where {size} should be")
        return bytes(stored)
    if codec != ZSTD:
        raise ValueError(f"there is no codec {codec}")
    try:
        # zstd allocates what the frame claims: the claim is compared first.
        if zstandard.frame_content_size(stored) != size:
            raise ValueError("a packed column claims another size than its head")
        return decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a packed column does not unpack: {error}") from error


def _decoded(
    encoding: int, argument: int, exceptions: int, raw: bytes, rows: int, columns: list[list[Any]]
) -> list[bytes]:
    match encoding:
        case Encoding.CONSTANT:
            return [raw] * rows
        case Encoding.TEXT:
            return _split(raw, rows)
        case Encoding.PLANES:
            if len(raw) != rows * argument or not argument:
                raise ValueError("planes of another length than rows")
            return bytes(_from_planes(raw, argument, rows, SEPARATOR)[:-1]).split(SEPARATOR)
        case Encoding.HEX:
            size = rows * _HEX_DIGITS // 2
            if len(raw) < size:
                raise ValueError("it holds fewer digests than rows")
            column = hexlify(raw[:size], b",", _HEX_DIGITS // 2).split(b",")
        case Encoding.SAME:
            if argument >= len(columns) or argument in _NUMBERS:
                raise ValueError(f"there is no column {argument} of texts to be the same as")
            size, column = 0, list(columns[argument])
        case _:
            raise ValueError(f"there is no encoding {encoding} of texts")
    _put_exceptions(column, raw[size:], exceptions)
    return column


def _split(raw: bytes, count: int) -> list[bytes]:
    """Exactly `count` texts; counted first, since a column of nothing but separators would make a list of millions."""
    if raw.count(SEPARATOR) != count - 1:
        raise ValueError(f"it does not hold {count} texts")
    return raw.split(SEPARATOR)


def _put_exceptions(column: list[bytes], raw: bytes, exceptions: int) -> None:
    if not exceptions:
        if raw:
            raise ValueError("there are bytes behind a column")
        return
    size = 4 * exceptions
    if len(raw) < size:
        raise ValueError("it holds fewer exceptions than it says")
    places = _little(array("I", raw[:size]))
    texts = _split(raw[size:], exceptions)
    if max(places) >= len(column):
        raise ValueError("exceptions that are no rows")
    for place, text in zip(places, texts, strict=True):
        column[place] = text


def _decoded_integers(encoding: int, width: int, raw: bytes, rows: int, offset: int) -> list[int]:
    if encoding == Encoding.CONSTANT and len(raw) == 8:
        return [int.from_bytes(raw, "little") - offset] * rows
    if encoding != Encoding.INTEGERS or width not in _TYPES or len(raw) != rows * width:
        raise ValueError("integers of another length than rows")
    values = _little(array(_TYPES[width], bytes(_from_planes(raw, width, rows, b"")))).tolist()
    return [value - offset for value in values] if offset else values


def _from_planes(raw: bytes, width: int, rows: int, behind: bytes) -> bytearray:
    """`width` bytes of each row, which lie plane after plane in `raw`, each row's followed by `behind`."""
    step = width + len(behind)
    woven = bytearray(behind or b"\0") * (step * rows)
    for at in range(width):
        woven[at::step] = raw[at * rows : (at + 1) * rows]
    return woven


def _why_not(magic: bytes, version: int) -> str:
    if magic != MAGIC:
        return "not a segment"
    return f"format version {version} is newer than this program knows" if version > VERSION else "damaged version"
