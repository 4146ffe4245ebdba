"""How the bytes of a frame are packed: as they are, zlib or zstd. Pure.

One rule: whatever a machine writes, a machine from another template must be able to read; so zlib, which every Python has, is
what is written unless the console's settings ask for zstd. Reading takes whichever zstd can be imported.
"""

from __future__ import annotations

import importlib
import zlib
from typing import Any, Final

from envctl.agent.errors import Corrupt

STORED: Final = 0
ZLIB: Final = 1
ZSTD: Final = 2
NAMES: Final = {"zlib": ZLIB, "zstd": ZSTD}

ZLIB_LEVEL: Final = 1
ZSTD_LEVEL: Final = 3
PROBE_BYTES: Final = 32 * 1024
"""Of a long frame this much is packed first: pictures and archives do not get smaller, and trying costs most of a backup."""
WORTH: Final = 0.95


def _zstd() -> Any:
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def choose(name: str) -> int:
    """The codec for writing: `name` of the settings where it can be had, else zlib."""
    if name == "zstd" and _zstd() is not None:
        return ZSTD
    return ZLIB


def _pack(codec: int, raw: bytes | memoryview) -> bytes:
    if codec == ZLIB:
        return zlib.compress(raw, ZLIB_LEVEL)
    module = _zstd()
    if module.__name__ == "zstandard":
        return bytes(module.ZstdCompressor(level=ZSTD_LEVEL).compress(raw))
    return bytes(module.compress(raw, ZSTD_LEVEL))


def pack(codec: int, raw: bytes | memoryview) -> tuple[int, bytes]:
    """(codec, stored bytes): STORED where packing does not pay. The same input always gives the same output."""
    if codec == STORED or not len(raw):
        return STORED, bytes(raw)
    if len(raw) > 4 * PROBE_BYTES and len(_pack(codec, raw[:PROBE_BYTES])) > PROBE_BYTES * WORTH:
        return STORED, bytes(raw)
    packed = _pack(codec, raw)
    if len(packed) >= len(raw) * WORTH:
        return STORED, bytes(raw)
    return codec, packed


def unpack(codec: int, stored: bytes | memoryview, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes that were packed; never makes more of them than that. Corrupt otherwise."""
    if codec == STORED:
        raw = bytes(stored)
    elif codec == ZLIB:
        unpacker = zlib.decompressobj()
        try:
            raw = unpacker.decompress(stored, raw_bytes + 1)
        except zlib.error as error:
            raise Corrupt(f"a frame does not unpack: {error}") from error
    elif codec == ZSTD:
        raw = _unpack_zstd(stored, raw_bytes)
    else:
        raise Corrupt(f"codec {codec} is not known: a newer agent wrote this")
    if len(raw) != raw_bytes:
        raise Corrupt(f"a frame unpacks to {len(raw)} bytes, not {raw_bytes}")
    return raw


def _unpack_zstd(stored: bytes | memoryview, raw_bytes: int) -> bytes:
    module = _zstd()
    if module is None:
        raise Corrupt(
            "a frame is packed with zstd: install python3-zstandard in the template, or set the codec to zlib"
        )
    try:
        if module.__name__ == "zstandard":
            reader = module.ZstdDecompressor().stream_reader(bytes(stored))
            return bytes(reader.read(raw_bytes + 1))
        return bytes(module.ZstdDecompressor().decompress(bytes(stored), raw_bytes + 1))
    except Exception as error:  # each of the two modules has an exception of its own
        raise Corrupt(f"a frame does not unpack: {error}") from error
