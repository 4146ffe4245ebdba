"""Bytes of version 1 of trees and packs, kept for ever: they stand for homes that exist. docs/formats/home.md shows them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from envctl.agent import codec, pack
from envctl.agent.tree import DIRECTORY, FILE, SYMLINK, Chunk, Row, TreeReader, TreeWriter, hole

GOLDEN = Path(__file__).parent / "golden"
CONTENT = b"hello, home\n"
DIGEST = hashlib.sha256(CONTENT).digest()


def packed() -> tuple[bytes, pack.Packed]:
    writer = pack.PackWriter(codec.STORED)
    chunk = writer.add(CONTENT, DIGEST)
    return writer.finish(), chunk


def rows() -> list[Row]:
    data, chunk = packed()
    name = hashlib.sha256(data).digest()
    at = 1_700_000_000_123_456_789
    return [
        Row(b"home", DIRECTORY, 0o755, 0, 0, b"root", b"root", at, 0),
        Row(
            b"home/ann/a",
            FILE,
            0o4750,
            1000,
            1000,
            b"ann",
            b"ann",
            at,
            12 + 4096,
            xattrs=((b"user.note", b"\0\xff"),),
            chunks=(Chunk(name, DIGEST, chunk.offset, chunk.stored, chunk.raw), hole(4096)),
            fuzzy=True,
        ),
        Row(b"home/ann/b", FILE, 0o4750, 1000, 1000, b"ann", b"ann", at, 12 + 4096, link=b"home/ann/a"),
        Row(b"home/ann/to", SYMLINK, 0o777, 1000, 1000, b"ann", b"", at, 0, target=b"\xff/away"),
    ]


def segment() -> bytes:
    writer = TreeWriter(codec.STORED)
    for row in rows():
        writer.add(row)
    return writer.finish()


def test_the_golden_pack_is_written_and_read() -> None:
    data, chunk = packed()
    golden = (GOLDEN / "home-pack.v1.bin").read_bytes()
    assert data == golden
    assert pack.index_of(golden) == [chunk]
    assert pack.read_chunk(golden[chunk.offset : chunk.offset + chunk.stored], DIGEST) == CONTENT


def test_the_golden_tree_is_written_and_read() -> None:
    golden = (GOLDEN / "home-tree.v1.bin").read_bytes()
    assert segment() == golden
    assert list(TreeReader(golden).rows()) == rows()
