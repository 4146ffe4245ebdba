"""Unpacking zstd without trust: a stored size is believed only as far as the caller allows.

One rule: every zstd frame in the bucket states its content size, and nothing is allocated before that size has been
compared with the one expected. (The library allocates whatever a frame claims, its own limit notwithstanding.)
"""

import zstandard

Buffer = bytes | bytearray | memoryview


def unpack(blob: Buffer, size: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """Exactly `size` bytes out of one zstd frame. Raises ValueError for anything else."""
    try:
        claimed = zstandard.frame_content_size(blob)
        if claimed != size:
            raise ValueError(f"a packed part claims {claimed} bytes where {size} should be")
        return decompressor.decompress(blob, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a packed part does not unpack: {error}") from error


def unpack_within(blob: Buffer, size_max: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """What one zstd frame holds, at most `size_max` bytes. Raises ValueError."""
    try:
        claimed = zstandard.frame_content_size(blob)
    except zstandard.ZstdError as error:
        raise ValueError(f"a packed part does not unpack: {error}") from error
    if not 0 <= claimed <= size_max:
        raise ValueError(f"a packed part claims {claimed} bytes, more than {size_max} make no sense")
    return unpack(blob, claimed, decompressor)
