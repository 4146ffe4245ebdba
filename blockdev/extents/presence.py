"""What the local map must hold, one byte an item, in memory: so that an item that LMDB loses is missed.

One rule: a key that is not found proves nothing by itself. One flipped bit in a page that LMDB has read again hides a key, and
an extent that is not found reads as zeros. Here every key that was put has a tag, made of its checksum: none for a key
that is found, or another one than was put last (an old page come back), is damage as well.

At an orderly close the tags of the extents are written beside the seal and name its checksum: the next start reads them
instead of every item. Without them, or where they do not hold, it reads the items. Format: docs/formats/extent-map.md.
"""

import struct
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat

CHUNK = 1024
MAGIC = b"BWMAPTAG"
VERSION = 1
_HEAD = struct.Struct("<8sIIQII")
_CRC = struct.Struct("<I")


def tag_of(crc: int) -> int:
    """1 to 255; 0 stands for an absent key."""
    return 1 + crc % 255


class Tags(Protocol):
    def get(self, key: bytes) -> int: ...

    def set(self, key: bytes, tag: int) -> None:
        """0 removes it."""
        ...

    def put_many(self, keys: Sequence[bytes], tags: Sequence[int]) -> Callable[[], None]:
        """`set` of each; returns what takes all of it back."""
        ...


def _give_back(tags: Tags, before: Sequence[tuple[bytes, int]]) -> None:
    for key, tag in reversed(before):
        tags.set(key, tag)


class NamedTags:
    """For keys of any kind, in tables of moderate size."""

    def __init__(self) -> None:
        self._tags: dict[bytes, int] = {}

    def get(self, key: bytes) -> int:
        return self._tags.get(key, 0)

    def set(self, key: bytes, tag: int) -> None:
        if tag:
            self._tags[key] = tag
        else:
            self._tags.pop(key, None)

    def put_many(self, keys: Sequence[bytes], tags: Sequence[int]) -> Callable[[], None]:
        before = [(key, self.get(key)) for key in keys]
        for key, tag in zip(keys, tags, strict=True):
            self.set(key, tag)
        return partial(_give_back, self, before)

    def __len__(self) -> int:
        return len(self._tags)


class NumberedTags:
    """For keys that are numbers of 8 bytes, most of them neighbours: one byte each, in chunks of `CHUNK` that have (or had)
    a key. So it takes at most a byte for each number that there can be, and about 100 more a chunk."""

    def __init__(self, chunks: dict[int, bytearray] | None = None) -> None:
        self._chunks: dict[int, bytearray] = {} if chunks is None else chunks
        self._order: list[int] = sorted(self._chunks)

    def get(self, key: bytes) -> int:
        number = int.from_bytes(key, "big")
        chunk = self._chunks.get(number // CHUNK)
        return chunk[number % CHUNK] if chunk is not None else 0

    def set(self, key: bytes, tag: int) -> None:
        number = int.from_bytes(key, "big")
        at = number // CHUNK
        chunk = self._chunks.get(at)
        if chunk is None:
            chunk = self._chunks[at] = bytearray(CHUNK)
            insort(self._order, at)
        chunk[number % CHUNK] = tag

    def put_many(self, keys: Sequence[bytes], tags: Sequence[int]) -> Callable[[], None]:
        numbers = struct.unpack(f">{len(keys)}Q", b"".join(keys))
        before: dict[int, bytes] = {}
        at = 0
        while at < len(numbers):
            place, within = divmod(numbers[at], CHUNK)
            chunk = self._chunks.get(place)
            if chunk is None:
                chunk = self._chunks[place] = bytearray(CHUNK)
                insort(self._order, place)
            before.setdefault(place, bytes(chunk))
            # As far as they are neighbours in this chunk, in one step: a page of extents mostly is.
            length = min(CHUNK - within, len(numbers) - at)
            if numbers[at : at + length] == tuple(range(numbers[at], numbers[at] + length)):
                chunk[within : within + length] = bytes(tags[at : at + length])
                at += length
            else:
                while at < len(numbers) and numbers[at] // CHUNK == place:
                    chunk[numbers[at] % CHUNK] = tags[at]
                    at += 1
        return partial(self._put_back, before)

    def _put_back(self, before: dict[int, bytes]) -> None:
        for place, content in before.items():
            self._chunks[place][:] = content

    def following(self, number: int) -> int:
        """The first present key from `number` on, -1 if there is none."""
        at, within = divmod(number, CHUNK)
        chunk = self._chunks.get(at)
        if chunk is not None:
            if chunk[within]:
                return number
            rest = chunk[within:].lstrip(b"\0")
            if rest:
                return (at + 1) * CHUNK - len(rest)
        for index in range(bisect_right(self._order, at), len(self._order)):
            other = self._order[index]
            rest = self._chunks[other].lstrip(b"\0")
            if rest:
                return (other + 1) * CHUNK - len(rest)
        return -1

    def chunks(self) -> list[tuple[int, bytes]]:
        """(number, tags) of the chunks that have a key, ascending."""
        return [(place, bytes(self._chunks[place])) for place in self._order if any(self._chunks[place])]


class StoredTags(NamedTuple):
    """Tags beside a map, and the checksum of the seal they belong to."""

    seal_crc: int
    chunks: list[tuple[int, bytes]]


def encode(stored: StoredTags) -> bytes:
    places = [place for place, _ in stored.chunks]
    head = _HEAD.pack(MAGIC, VERSION, CHUNK, len(places), stored.seal_crc, 0)
    body = b"".join([head, struct.pack(f"<{len(places)}Q", *places), *(content for _, content in stored.chunks)])
    return body + _CRC.pack(crc32c(body))


def decode(blob: bytes) -> StoredTags:
    """Raises CorruptFormat."""
    what = "tags of the extent map"
    if len(blob) < _HEAD.size + _CRC.size:
        raise CorruptFormat("cut short", what=what)
    body = memoryview(blob)[: -_CRC.size]
    if _CRC.unpack_from(blob, len(body))[0] != crc32c(body):
        raise CorruptFormat("checksum does not hold", what=what)
    magic, version, chunk, count, seal_crc, zero = _HEAD.unpack_from(body)
    if magic != MAGIC or version != VERSION or chunk != CHUNK or zero:
        raise CorruptFormat(f"are not tags of version {VERSION}", what=what)
    begin = _HEAD.size + 8 * count
    if len(body) != begin + CHUNK * count:
        raise CorruptFormat("has the wrong length", what=what)
    places = struct.unpack_from(f"<{count}Q", body, _HEAD.size)
    if any(one >= other for one, other in pairwise(places)):
        raise CorruptFormat("chunks out of order", what=what)
    contents = range(begin, len(body), CHUNK)
    return StoredTags(
        seal_crc, [(place, bytes(body[at : at + CHUNK])) for place, at in zip(places, contents, strict=True)]
    )
