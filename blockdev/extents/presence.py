"""What the local map must hold, one byte an item, in memory: so that an item that LMDB loses is missed.

One rule: a key that is not found proves nothing by itself. One flipped bit in a page that LMDB has read again hides a key, and
an extent that is not found reads as zeros. Here every key that was put has a tag, made of its checksum: none for a key
that is found, or another one than was put last (an old page come back), is damage as well.
"""

from bisect import bisect_right, insort
from typing import Protocol

CHUNK = 4096


def tag_of(crc: int) -> int:
    """1 to 255; 0 stands for an absent key."""
    return 1 + crc % 255


class Tags(Protocol):
    def get(self, key: bytes) -> int: ...

    def set(self, key: bytes, tag: int) -> None:
        """0 removes it."""
        ...


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

    def __len__(self) -> int:
        return len(self._tags)


class NumberedTags:
    """For keys that are numbers of 8 bytes, most of them neighbours: one byte each, in chunks of `CHUNK`."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._order: list[int] = []

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
        for other in self._order[bisect_right(self._order, at) :]:
            rest = self._chunks[other].lstrip(b"\0")
            if rest:
                return (other + 1) * CHUNK - len(rest)
        return -1
