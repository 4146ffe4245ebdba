"""The parsers of backups and of their indexes: both lie in a bucket, where others may write."""

import contextlib
import hashlib
import random
import struct
import zlib
from itertools import islice
from unittest import mock

import crc32c
import zstandard

from plugin.archive import compression, lzo, tar, vma, zstd_frames
from plugin.archive.errors import BadArchive, IndexDamaged, NoIndex, NotInArchive
from plugin.archive.index import ArchiveIndex
from plugin.archive.indexer import Indexer
from plugin.archive.streams import BytesRanges
from plugin.archive.view import ArchiveView, PlainReader, read_head, seek_points
from tests.formats.test_golden_archive import container, entered, machine
from tests.plugin.archive import writers
from tests.plugin.archive.disks import disk
from tests.plugin.archive.test_containers import entry
from tests.plugin.archive.test_hostile import TAR

BYTES_MAX = 1 << 20
"""Of what one part of an archive may give here."""


def archive(data: bytes) -> None:
    """Any bytes as an upload; then everything a view can be asked for, with the index that was made, and without."""
    indexer = Indexer(deep=True)
    step = 1 + len(data) % 977
    for at in range(0, len(data), step):
        indexer.feed(data[at : at + step])
    index = ArchiveIndex(BytesRanges(indexer.finish("e")))
    assert index.facts.size == len(data)
    ranges = BytesRanges(data)
    read_head(ranges)
    for view in (ArchiveView(ranges, index, etag="e"), ArchiveView(ranges)):
        _look(view)
        with contextlib.suppress(NoIndex):
            assert view.check().bad == ()


def _look(view: ArchiveView) -> None:
    refusals = (BadArchive, NotInArchive, NoIndex, IndexDamaged)
    with contextlib.suppress(*refusals):
        assert isinstance(view.guest_config(), str)
    with contextlib.suppress(*refusals):
        for member in islice(view.ls(deep=True), 20):
            with contextlib.suppress(*refusals):
                for offset, piece in islice(view.extract(view.member(member.path)), 20):
                    assert offset >= 0
                    assert 0 < len(piece) <= 4 << 20
    with contextlib.suppress(*refusals):
        sum(len(piece) for piece in islice(view.subtree(""), 20))
    for each in view.disks():
        with contextlib.suppress(*refusals):
            reader = view.disk(each.name)
            for _, offset, piece in islice(reader.pieces(), 20):
                assert offset + len(piece) <= reader.size
            assert len(reader.read(5, 70_000)) == max(0, min(70_000, reader.size - 5))
    assert view.plain.cost(0, 1) >= 0


def machine_header(data: bytes) -> None:
    """A good header with bytes overwritten (where in three bytes, what in one), its MD5 right."""
    header = bytearray(_HEADER)
    for at in range(0, len(data) - 3, 4):
        header[int.from_bytes(data[at : at + 3], "big") % len(header)] = data[at + 3]
    header[32:48] = bytes(16)
    header[32:48] = hashlib.md5(header).digest()
    with contextlib.suppress(BadArchive):
        found = vma.decode_header(bytes(header))
        assert len(found.devices) < 256
    archive(bytes(header) + _EXTENT)


def machine_extents(data: bytes) -> None:
    """Headers of extents, MD5 and block count right, each with the data that it counts."""
    out = [_HEADER]
    for at in range(0, len(data) - 471, 472):
        infos = struct.unpack_from(">59Q", data, at)
        blocks = sum((info >> 48).bit_count() for info in infos if info >> 32 & 0xFF)
        head = bytearray(struct.pack(">4sHH16s16s", b"VMAE", 0, blocks, writers.UUID, bytes(16)) + data[at : at + 472])
        head[24:40] = hashlib.md5(head).digest()
        out.append(bytes(head) + b"x" * (blocks * 4096))
    archive(b"".join(out))


def container_archive(data: bytes) -> None:
    """Blocks of tar, whose checksums are made right."""
    blocks = bytearray(data.ljust(-(-len(data) // 512) * 512, b"\0"))
    for at in range(0, len(blocks), 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b"        "
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    with contextlib.suppress(BadArchive):
        end = 0
        for member in tar.Scanner().feed(bytes(blocks)):
            assert end <= member.start < member.data_at <= member.end
            end = member.end
    archive(bytes(blocks))


def entrances(data: bytes) -> None:
    """zstd, each block of which may be an entrance: what is found gives the bytes that the frame gives."""
    with mock.patch.multiple(compression, ENTRANCE_SPACING=0, PROBE_BYTES=1 << 17):
        found = compression.Entrances(1 << 25)
        plain, made = bytearray(), compression.decoder("zstd", entrances=found)
        try:
            for at in range(0, len(data), 211):
                for piece in made.feed(data[at : at + 211]):
                    plain += piece
                if len(plain) > 8 * BYTES_MAX:
                    return
        except BadArchive:
            return
    histories = [zstandard.ZstdDecompressor().decompress(packed) for _, packed in found.found]
    doors = [entrance for entrance, _ in found.found]
    reader = PlainReader(BytesRanges(data), "zstd", made.points.rows, doors, histories.__getitem__)
    for door in doors:
        assert reader.read(door.plain, door.until - door.plain) == plain[door.plain : door.until]
    assert reader.read(0, len(plain) + 1) == plain


def lzo_stream(data: bytes) -> None:
    """LZO1X, and an lzop file with a checksum that fits nothing."""
    with contextlib.suppress(BadArchive):
        assert len(lzo.decompress(data[2:], int.from_bytes(data[:2], "big"))) == int.from_bytes(data[:2], "big")
    with contextlib.suppress(BadArchive):
        lzo.decode_header(data)


def seek_table(data: bytes) -> None:
    """The end of an object in the seekable format, the size in it right."""
    for table in (data, b"\x5e\x2a\x4d\x18" + struct.pack("<I", len(data)) + data):
        seek_points(BytesRanges(table))
        with contextlib.suppress(BadArchive):
            zstd_frames.decode_seek_table(table)


def archive_index(data: bytes) -> None:
    """An index object as it is, and with its checksums made right."""
    fixed = bytearray(data)
    if len(data) >= 16:
        count = int.from_bytes(data[8:12], "little")
        for at in range(16, min(16 + 32 * count, len(data) - 31), 32):
            place, stored = struct.unpack_from("<QI", fixed, at + 8)
            if place + stored <= len(fixed):
                struct.pack_into("<I", fixed, at + 24, crc32c.crc32c(bytes(fixed[place : place + stored])))
        fixed[12:16] = bytes(4)
        struct.pack_into("<I", fixed, 12, crc32c.crc32c(bytes(fixed[: 16 + 32 * count])))
    for each in (data, bytes(fixed)):
        try:
            index = ArchiveIndex(BytesRanges(each))
        except IndexDamaged:
            continue
        for rows in (index.pieces(), index.points(), index.runs(), index.members(), index.entrances()):
            with contextlib.suppress(IndexDamaged):
                for _ in rows:
                    pass
        view = ArchiveView(BytesRanges(bytes(min(index.facts.size, BYTES_MAX))), index)
        with contextlib.suppress(IndexDamaged):
            _look(view)


def index_rows(data: bytes) -> None:
    """Rows of a table: a byte says of which, one how many."""
    kind, rows, plain = 3 + data[0] % 4 if data else 3, data[1] if len(data) > 1 else 0, data[2:]
    facts = _FACTS_OF[kind]
    chunks = [(1, 1, facts), (kind, rows, plain)]
    at, entries = 16 + 64, []
    for number, count, body in chunks:
        entries.append(struct.pack("<BB2xIQIII4x", number, 0, count, at, len(body), len(body), crc32c.crc32c(body)))
        at += len(body)
    directory = b"".join(entries)
    head = struct.pack("<4sB3xII", b"BWAI", 1, 2, 0)
    crc = crc32c.crc32c(head + directory)
    index = ArchiveIndex(BytesRanges(head[:12] + struct.pack("<I", crc) + directory + facts + plain))
    for found in (index.points(), index.runs(), index.members(), index.entrances()):
        with contextlib.suppress(IndexDamaged):
            for row in found:
                assert row is not None


def _facts(data: bytes) -> bytes:
    place, stored = struct.unpack_from("<QI", data, 24)
    return zstandard.ZstdDecompressor().decompress(data[place : place + stored])


_FACTS_OF = {3: _facts(container()), 4: _facts(machine()), 5: _facts(container()), 6: _facts(container())}
_HEADER = writers.header({"qemu-server.conf": writers.CONFIG}, {"drive-scsi0": 1 << 20, "drive-scsi1": 70_000})
_EXTENT = writers.extent([(1, 0, b"x" * 65536), (2, 1, bytes(65536)), (1, 3, b"y" * 4096 + bytes(61440))])
_SMALL = writers.vma({"drive-scsi0": disk(2)})
_PACKED = zstandard.ZstdCompressor(write_checksum=True).compress(_SMALL)
_WRITER = zstd_frames.SeekableWriter(frame_bytes=4096)
_FRAMES = _WRITER.feed(TAR) + _WRITER.finish()


def _gzip(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=31)
    return engine.compress(data) + engine.flush()


_LZO = b"\x01\x04" + bytes((17 + 4,)) + b"abcd" + bytes((0x20 | 20,)) + b"\x0c\0" + b"\x11\0\0"
_GOOD_LZO = bytes((0, 4)) + bytes((21,)) + b"abcd" + b"\x11\0\0"


def _blocks() -> bytes:
    dice = random.Random(2)
    words = [dice.randbytes(8) for _ in range(20)]
    return b"".join(b"".join(dice.choices(words, k=9)) * 1800 for _ in range(6))


ENTRANCE_SEEDS = (
    zstandard.ZstdCompressor(level=1, write_checksum=True).compress(_blocks()),
    zstandard.ZstdCompressor(level=3).compress(_blocks()) * 2,
)
ARCHIVE_SEEDS = (_PACKED, _gzip(TAR), writers.lzop(TAR), _FRAMES, TAR, b"\x52\x2a\x4d\x18\1\0\0\0x" + _PACKED, b"")
HEADER_SEEDS = (b"", bytes((0, 0x10, 0x20, 1)), bytes((0, 0, 50, 9)), bytes((0, 0x0B, 0xFF, 3)))
EXTENT_SEEDS = (_EXTENT[40:512], _EXTENT[40:512] * 2, random.Random(1).randbytes(472))
_OLD_SPARSE = (
    entry(b"S", 1024, at386=b"%011o\0%011o\0" % (512, 512), at482=b"\1", at483=b"00000010000\0")
    + (b"%011o\0%011o\0" % (2048, 512)).ljust(512, b"\0")
    + b"s" * 1024
)
_RECORDS = b"22 GNU.sparse.major=1\n28 GNU.sparse.realsize=9999\n22 mtime=1750000000.5\n"
_NEW_SPARSE = (
    entry(b"x", len(_RECORDS))
    + _RECORDS.ljust(512, b"\0")
    + entry(b"0", 1024)
    + b"1\n9000\n512\n".ljust(512, b"\0")
    + b"s" * 512
)
_MAP = b"29 GNU.sparse.map=0,99,200,5\n27 GNU.sparse.size=1000000\n"
_MAPPED = entry(b"x", len(_MAP)) + _MAP.ljust(512, b"\0") + entry(b"0", 104) + bytes(512)
_LONG = entry(b"L", 200) + (b"n" * 200).ljust(512, b"\0") + entry(b"K", 9) + b"n".ljust(512, b"\0") + entry(b"1", 0)
TAR_SEEDS = (TAR, _OLD_SPARSE, _NEW_SPARSE, _MAPPED, _LONG, TAR[1024:])
LZO_SEEDS = (_LZO, _GOOD_LZO, b"\0\0" + writers.lzop(b"abc"), writers.lzop(b"abc"))
SEEK_SEEDS = (_FRAMES[-200:], zstd_frames.seek_table([(4, 9)] * 3), b"", zstd_frames.seek_table([])[8:])
INDEX_SEEDS = (machine(), container(), entered(), machine()[:100], b"")
ROW_SEEDS = (
    b"\3\1\5\6\1\x58",
    b"\0\2\0\0\5\6",
    b"\1\1\1\0\5\7\0",
    b"\2\1\0\4\0\x80\5\0\0\0\0\1a\0",
    b"\2\2\0\4\0\1\0\0\0\0\1a\0",
    b"",
)
