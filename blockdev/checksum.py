"""CRC32C (Castagnoli; RFC 3385) of blocks. One rule: a checksum never spans two 4 KiB blocks of the volume.

So the checksum the front computes when it takes a write in is the one every later reader of that block verifies,
whichever run of blocks it happens to read.
"""

from collections.abc import Sequence

from crc32c import crc32c as crc32c

from blockdev.units import BLOCK_BYTES

__all__ = ["block_checksums", "crc32c", "first_bad_block"]

Buffer = bytes | bytearray | memoryview


def block_checksums(buffers: Sequence[Buffer], first_byte: int = 0) -> list[int]:
    """CRC32C of each 4 KiB block that the buffers, laid end to end from byte `first_byte` of the volume, touch.

    The first and the last checksum cover only the part of their block that is present."""
    checksums: list[int] = []
    add = checksums.append
    room = BLOCK_BYTES - first_byte % BLOCK_BYTES  # bytes still missing to the end of the open block
    running = 0
    open_bytes = 0
    for buffer in buffers:
        length = len(buffer)
        if length == room == BLOCK_BYTES:  # the common case, without a slice
            add(crc32c(buffer))
            continue
        view = memoryview(buffer)
        start = 0
        if room == BLOCK_BYTES:
            start = length - length % BLOCK_BYTES
            checksums += [crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, start, BLOCK_BYTES)]
        while length - start >= room:
            add(crc32c(view[start : start + room], running))
            start += room
            room = BLOCK_BYTES
            running = open_bytes = 0
        if start < length:
            running = crc32c(view[start:], running)
            open_bytes += length - start
            room -= length - start
    if open_bytes:
        add(running)
    return checksums


def first_bad_block(view: memoryview, expected: Sequence[int]) -> int:
    """Index of the first whole 4 KiB block of `view` whose CRC32C is not the expected one; -1 if all hold."""
    start = 0
    for index, checksum in enumerate(expected):
        if crc32c(view[start : start + BLOCK_BYTES]) != checksum:
            return index
        start += BLOCK_BYTES
    return -1
