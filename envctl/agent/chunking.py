"""Where a file is cut, by its content, so that an insertion changes one chunk and not all behind it. Pure.

A cut lies behind a pair of bytes (one of LEADING, then one of FOLLOWING) if the CRC-32 of the 48 bytes before it ends in
MASK zero bits. The pair is found by the regular expression engine and the sum by zlib, both in C: interpreted code runs once
for every few hundred bytes. The two sets are disjoint, so that a run of one byte holds no pair; both hold bytes that are
common in text, in digits and in binary data.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Final

CHUNK_BYTES_MIN: Final = 64 * 1024
CHUNK_BYTES_MAX: Final = 4 * 1024 * 1024
WINDOW_BYTES: Final = 48
MASK: Final = (1 << 11) - 1
LEADING: Final = rb"7e\x9d\xc3"
FOLLOWING: Final = rb"4vxz\xa0-\xba"
_PAIR: Final = re.compile(rb"[" + LEADING + rb"][" + FOLLOWING + rb"]")


def cut(view: memoryview, start: int, end: int) -> int:
    """Where the chunk that begins at `start` ends, not behind `end`. The answer depends on nothing before `start`; and on
    nothing behind `end` where `end - start` is CHUNK_BYTES_MAX or the data end there."""
    limit = min(end, start + CHUNK_BYTES_MAX)
    first = start + CHUNK_BYTES_MIN
    if first >= limit:
        return limit
    checksum = zlib.crc32
    for match in _PAIR.finditer(view, first, limit):
        place = match.end()
        if not checksum(view[place - WINDOW_BYTES : place]) & MASK:
            return place
    return limit


def boundaries(view: memoryview) -> Iterator[int]:
    """The ends of the chunks of `view`, the last of which is its length; none for no bytes."""
    start = 0
    while start < len(view):
        start = cut(view, start, len(view))
        yield start


def chunks_of(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The chunks of what `read(n)` gives until it gives b"". Holds at most two times CHUNK_BYTES_MAX. A `read` may give less
    than it was asked for; the cuts are the same."""
    held = b""
    while True:
        more = read(CHUNK_BYTES_MAX)
        held = held + more if held else more
        view = memoryview(held)
        start = 0
        while len(held) - start >= CHUNK_BYTES_MAX or (not more and start < len(held)):
            place = cut(view, start, len(held))
            yield held[start:place]
            start = place
        if start:
            view.release()
            held = held[start:]
        if not more:
            return
