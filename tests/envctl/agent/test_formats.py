"""Chunks, packs, trees: what is written is read; what is damaged is refused; what is unchanged keeps its name."""

from __future__ import annotations

import hashlib
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envctl.agent import codec, pack, tree
from envctl.agent.chunking import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, boundaries, chunks_of
from envctl.agent.errors import Corrupt
from envctl.agent.tree import DIRECTORY, FILE, SYMLINK, Chunk, Row, Tree, TreeReader, TreeWriter, sort_key


def sample(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def text(length: int) -> bytes:
    words = [b"every", b"value", b"exit", b"matrix", b"seven", b"next", b"74\n"]
    chosen = random.Random(3)
    return b" ".join(chosen.choice(words) for _ in range(length // 5))[:length]


@pytest.mark.parametrize("data", [sample(12_000_000), text(12_000_000)], ids=["random", "text"])
def test_an_insertion_moves_few_cuts(data: bytes) -> None:
    def names(of: bytes) -> set[bytes]:
        return {hashlib.sha256(chunk).digest() for chunk in chunks_of(reading(of, 1 << 30))}

    before = names(data)
    after = names(data[:5_000_000] + b"inserted" + data[5_000_000:])
    assert len(before) >= 6
    assert len(after - before) <= 3


def reading(data: bytes, most: int):  # type: ignore[no-untyped-def]  # a read function, as chunks_of takes it
    place = 0
    chosen = random.Random(5)

    def read(length: int) -> bytes:
        nonlocal place
        part = data[place : place + min(length, chosen.randint(1, most))]
        place += len(part)
        return part

    return read


@pytest.mark.parametrize("kind", ["zeros", "one pair", "random", "empty", "short"])
def test_cuts_depend_on_content_alone_and_chunks_have_their_limits(kind: str) -> None:
    data = {
        "zeros": bytes(9_000_000),
        "one pair": b"ev" * 2_500_000,
        "random": sample(9_000_000),
        "empty": b"",
        "short": b"e",
    }[kind]
    ends = list(boundaries(memoryview(data)))
    pieces = list(chunks_of(reading(data, 700_000)))
    assert b"".join(pieces) == data
    assert [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))] == ends
    assert all(CHUNK_BYTES_MIN <= len(piece) <= CHUNK_BYTES_MAX for piece in pieces[:-1])


@pytest.mark.parametrize("name", ["zlib", "zstd"])
@pytest.mark.parametrize("data", [b"", b"x", b"abc" * 100_000, os.urandom(300_000)], ids=["0", "1", "text", "random"])
def test_a_codec_gives_back_what_it_took_and_never_more_than_was_said(name: str, data: bytes) -> None:
    used, stored = codec.pack(codec.NAMES[name], data)
    assert codec.unpack(used, stored, len(data)) == data
    if len(data) > 1:
        with pytest.raises(Corrupt):
            codec.unpack(used, stored, len(data) - 1)


def test_a_pack_gives_its_chunks_and_refuses_any_flipped_byte() -> None:
    writer = pack.PackWriter()
    raws = [b"first" * 50, os.urandom(1000), b""]
    chunks = [writer.add(raw, hashlib.sha256(raw).digest()) for raw in raws]
    data = writer.finish()
    assert pack.index_of(data) == chunks
    for raw, chunk in zip(raws, chunks, strict=True):
        frame = data[chunk.offset : chunk.offset + chunk.stored]
        assert pack.read_chunk(frame, chunk.sha256) == raw
        for place in (0, 4, 8, len(frame) - 1):
            bad = bytearray(frame)
            bad[place] ^= 0x40
            with pytest.raises(Corrupt):
                pack.read_chunk(bytes(bad), chunk.sha256)
    for place in (*range(len(data) - 3 * 44 - 20, len(data)), 0):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(Corrupt):
            pack.index_of(bytes(bad))


names = st.binary(min_size=1, max_size=6).filter(lambda name: b"/" not in name and b"\0" not in name)
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
digests = st.integers(0, 5).map(lambda n: bytes([n]) * 32)
chunks = st.lists(
    st.one_of(
        st.builds(Chunk, digests, digests, st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1), st.integers(0, 2**40)),
        st.integers(1, 2**50).map(tree.hole),
    ),
    max_size=3,
).map(tuple)
rows = st.builds(
    Row,
    path=paths,
    type=st.sampled_from([DIRECTORY, FILE, SYMLINK]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    user=st.binary(max_size=8),
    group=st.binary(max_size=8),
    mtime_ns=st.integers(-(2**62), 2**62),
    size=st.integers(0, 2**62),
    target=st.just(b""),
    link=st.one_of(st.just(b""), paths),
    xattrs=st.lists(st.tuples(names, st.binary(max_size=40)), max_size=2).map(tuple),
    chunks=chunks,
    fuzzy=st.booleans(),
)


@given(st.dictionaries(paths, rows, max_size=40), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_tree_gives_back_its_rows_and_finds_and_lists_them(found: dict[bytes, Row], each: int) -> None:
    wanted = [found[path]._replace(path=path) for path in sorted(found, key=sort_key)]
    segments = {}
    for begin in range(0, len(wanted), each):
        writer = TreeWriter()
        for row in wanted[begin : begin + each]:
            writer.add(row)
        segments[str(begin)] = writer.finish()
    whole = Tree(list(segments), lambda name: TreeReader(segments[name]))
    assert list(whole.rows()) == wanted
    for row in wanted:
        assert whole.find(row.path) == row
        below = [other for other in wanted if other.path == row.path or other.path.startswith(row.path + b"/")]
        assert list(whole.subtree(row.path)) == below
    for folder in {b"", *(path.rpartition(b"/")[0] for path in found)}:
        prefix = folder + b"/" if folder else b""
        listed = [row.path for row in whole.children(folder)]
        inside = {
            prefix + path[len(prefix) :].split(b"/")[0] for path in found if path.startswith(prefix) and path != folder
        }
        assert listed == sorted(inside, key=sort_key)
        if len(listed) > 1:
            after = listed[0][len(prefix) :]
            assert [row.path for row in whole.children(folder, after)] == listed[1:]
    packs = {chunk.pack for row in wanted for chunk in row.chunks if not chunk.is_hole}
    assert {each for data in segments.values() for each in TreeReader(data).packs} == packs - {bytes(32)}


def test_a_long_listing_steps_over_deep_directories() -> None:
    writer = TreeWriter()
    for top in range(3):
        writer.add(Row(b"home/d%d" % top, DIRECTORY, 0o755, 0, 0, b"", b"", 0, 0))
        for deep in range(900):
            writer.add(Row(b"home/d%d/f%04d" % (top, deep), FILE, 0o644, 0, 0, b"", b"", 0, 0))
    data = writer.finish()
    whole = Tree(["only"], lambda name: TreeReader(data))
    assert [row.path for row in whole.children(b"home")] == [b"home/d0", b"home/d1", b"home/d2"]
    assert len(list(whole.children(b"home/d1", b"f0500"))) == 399
    assert [row.path for row in whole.children(b"")] == [b"home"]


def test_a_flipped_byte_in_a_segment_is_told() -> None:
    writer = TreeWriter()
    for number in range(50):
        writer.add(Row(b"home/%03d" % number, FILE, 0o644, 1, 2, b"u", b"g", number, 0))
    data = writer.finish()
    for place in range(len(data)):
        if 12 <= place < 16:
            continue  # zeros that nobody reads
        bad = bytearray(data)
        bad[place] ^= 0x10
        with pytest.raises(Corrupt):
            list(TreeReader(bytes(bad)).rows())
    for length in range(0, len(data), 7):
        with pytest.raises(Corrupt):
            list(TreeReader(data[:length]).rows())


def test_rows_out_of_order_are_a_mistake_of_the_caller() -> None:
    writer = TreeWriter()
    writer.add(Row(b"a/b", FILE, 0, 0, 0, b"", b"", 0, 0))
    writer.add(Row(b"a-b", FILE, 0, 0, 0, b"", b"", 0, 0))
    with pytest.raises(ValueError, match="does not come behind"):
        writer.add(Row(b"a", FILE, 0, 0, 0, b"", b"", 0, 0))
