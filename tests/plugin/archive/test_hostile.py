"""Bytes from somebody who means harm, and cuts at every place: the same answer however bytes come, and bounded memory."""

import contextlib
import random
import struct
import tracemalloc
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.archive import lzo, tar, vma, zstd_frames
from plugin.archive.compression import OUT_BYTES_MAX, decoder
from plugin.archive.errors import BadArchive
from plugin.archive.index import ArchiveIndex
from plugin.archive.indexer import Indexer
from plugin.archive.streams import BytesRanges
from tests.plugin.archive import writers
from tests.plugin.archive.disks import CLUSTER, disk
from tests.plugin.archive.test_containers import entry
from tests.plugin.archive.test_machines import index_of, seekable

SMALL = writers.vma({"drive-scsi0": disk(8, 1, 700), "drive-scsi1": disk(3, 2)})
TAR = (
    entry(b"0", 5, b"etc/vzdump/pct.conf")
    + b"a: b\n".ljust(512, b"\0")
    + entry(b"x", 20)
    + b"20 path=a name of b\n".ljust(512, b"\0")
    + entry(b"0", 700)
    + bytes(1024)
    + entry(b"5", 0, b"dir/")
    + bytes(1024)
)
cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[low:high] for low, high in pairwise(edges)]


@settings(max_examples=40, deadline=None)
@given(cuts, st.sampled_from(["plain", "tar", "zstd", "frames", "gzip", "lzop"]))
def test_however_bytes_are_cut_the_index_is_the_same(places: list[int], form: str) -> None:
    data = FORMS[form]
    indexer = Indexer(deep=True)
    for piece in pieces(data, places):
        indexer.feed(piece)
    index = ArchiveIndex(BytesRanges(indexer.finish("etag")))
    assert index.facts.complete
    assert (index.facts, list(index.runs()), list(index.members()), list(index.points())) == KNOWN[form]


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]) + bytes(700)


FORMS = {
    "plain": SMALL,
    "tar": TAR,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(SMALL),
    "frames": seekable(SMALL) + b"\x50\x2a\x4d\x18\0\0\0\0",
    "gzip": _gzip(SMALL),
    "lzop": writers.lzop(SMALL, 40_000),
}
KNOWN = {
    form: (index.facts, list(index.runs()), list(index.members()), list(index.points()))
    for form, index in ((form, index_of(data, 1 << 30, deep=True)) for form, data in FORMS.items())
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FORMS)), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6), cuts
)
def test_changed_bytes_never_fail_an_upload(form: str, changes: list[tuple[int, int]], places: list[int]) -> None:
    data = bytearray(FORMS[form])
    for place, value in changes:
        data[place % len(data)] = value
    indexer = Indexer(deep=True)
    for piece in pieces(bytes(data), places):
        indexer.feed(piece)
    index = ArchiveIndex(BytesRanges(indexer.finish()))
    assert index.facts.size == len(data)
    assert sum(1 for _ in index.pieces()) == 1
    for run in index.runs():
        assert run.at + run.stored <= len(SMALL)


def test_a_bomb_comes_out_in_small_pieces() -> None:
    """128 KiB of zeros for each 4 bytes: 30,000 times as much."""
    block = (0 | 1 << 1 | zstd_frames.BLOCK_BYTES_MAX << 3).to_bytes(3, "little") + b"\0"
    bomb = zstd_frames.MAGIC + b"\x00\x58" + block * 20_000
    engine = decoder("zstd")
    tracemalloc.start()
    total = 0
    for plain in engine.feed(bomb):
        assert len(plain) <= OUT_BYTES_MAX + zstd_frames.BLOCK_BYTES_MAX
        total += len(plain)
        if total > 300 << 20:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert "neither" in index_of(bomb).facts.note


def test_a_bomb_of_gzip_too() -> None:
    bomb = _gzip(bytes(64 << 20))
    assert all(len(plain) <= OUT_BYTES_MAX for plain in decoder("gzip").feed(bomb))


def test_a_window_that_is_too_large_is_refused() -> None:
    with pytest.raises(BadArchive, match="window"):
        list(decoder("zstd").feed(zstd_frames.MAGIC + b"\x00\xf0" + bytes(9)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zstd_frames.MAGIC + b"\x08" + bytes(9), "reserved bit"),
        (zstd_frames.MAGIC + b"\x01\x00\x07" + bytes(9), "dictionary"),
        (zstd_frames.MAGIC + b"\x00\x58\x07\x00\x00", "reserved kind"),
        (zstd_frames.MAGIC + b"\x00\x58\xfc\xff\xff", "block of"),
        (zstd_frames.MAGIC + b"\x00\x58\x05\x00\x00x" + b"garbage", "no zstd frame"),
        (zstd_frames.MAGIC + b"\x00\x58\x2d\x00\x00abcde", "zstd:"),
    ],
)
def test_zstd_that_is_none_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        list(decoder("zstd").feed(data))


def test_lzo_of_the_real_tool_opens() -> None:
    dice = random.Random(5)
    words = [dice.randbytes(dice.randrange(1, 40)) for _ in range(200)]
    data = b"".join(dice.choice(words) for _ in range(30_000)) + bytes(100_000) + dice.randbytes(70_000)
    for level in ("-1", "-3", "-9"):
        packed = writers.tool("lzop", level, "-c", data=data)
        assert len(packed) < len(data)
        assert b"".join(decoder("lzo").feed(packed)) == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5000))
def test_lzo_that_is_none_is_refused(data: bytes, size: int) -> None:
    with contextlib.suppress(BadArchive):
        assert len(lzo.decompress(data, size)) == size


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600))
def test_seek_tables(data: bytes) -> None:
    rows = [(place, place * 2) for place in data]
    table = zstd_frames.seek_table(rows)
    assert zstd_frames.seek_table_size(table[-9:]) == len(table)
    assert zstd_frames.decode_seek_table(table) == rows
    broken = bytearray(table)
    broken[len(data) % len(table)] ^= 0x55
    with contextlib.suppress(BadArchive):
        zstd_frames.decode_seek_table(bytes(broken))


def test_a_header_of_vma_that_lies_is_refused() -> None:
    good = writers.header({"a": b"b"}, {"drive-scsi0": CLUSTER})
    for at, value in ((4, 2), (48, 1 << 31), (52, 1 << 31), (56, 12288), (56, 1 << 31), (56, 12800 + 7)):
        bad = bytearray(good)
        struct.pack_into(">I", bad, at, value)
        with pytest.raises(BadArchive):
            list(vma.Scanner().feed(bytes(bad) + bytes(20 << 20)))


def test_a_configuration_that_is_not_there_is_refused() -> None:
    import hashlib

    bad = bytearray(writers.header({"a": b"b"}, {}))
    struct.pack_into(">I", bad, 3068, 77)
    bad[32:48] = bytes(16)
    bad[32:48] = hashlib.md5(bad).digest()
    with pytest.raises(BadArchive, match="not there"):
        vma.decode_header(bytes(bad))


def test_a_scanner_may_begin_at_any_member() -> None:
    members = list(tar.Scanner().feed(TAR))
    assert [each.path for each in members] == ["etc/vzdump/pct.conf", "a name of b", "dir/"]
    for each in members:
        assert next(tar.Scanner(each.start).feed(TAR[each.start :])) == each
