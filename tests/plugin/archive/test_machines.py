"""Backups of virtual machines: VMA as it is, and through the compressors that vzdump uses."""

import random
from collections.abc import Callable

import pytest

from plugin.archive import compression, vma
from plugin.archive.errors import BadArchive, NoIndex, NotInArchive
from plugin.archive.index import ArchiveIndex
from plugin.archive.indexer import Indexer
from plugin.archive.streams import BytesRanges
from plugin.archive.view import ArchiveView, DiskReader, read_head
from plugin.archive.zstd_frames import SeekableWriter
from tests.plugin.archive import writers
from tests.plugin.archive.disks import CLUSTER, disk

DISKS = {"drive-scsi0": disk(150, 1, 5000), "drive-efidisk0": disk(3, 2), "drive-scsi1": bytes(40 * CLUSTER)}
FIREWALL = b"[OPTIONS]\nenable: 1\n"
CONFIGS = {"qemu-server.conf": writers.CONFIG, "qemu-server.fw": FIREWALL}
ARCHIVE = writers.vma(DISKS, CONFIGS)


def seekable(data: bytes) -> bytes:
    writer = SeekableWriter(frame_bytes=1 << 20)
    return b"".join([*(writer.feed(data[at : at + 300_000]) for at in range(0, len(data), 300_000)), writer.finish()])


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "zstd": lambda data: writers.tool("zstd", "-c", data=data),
    "zstd-threads": lambda data: writers.tool("zstd", "--rsyncable", "--threads=2", "-c", data=data),
    "zstd-frames": seekable,
    "gzip": lambda data: writers.tool("gzip", "--rsyncable", "-c", data=data),
    "lzop": lambda data: writers.tool("lzop", "-c", data=data),
    "lzop-literals": writers.lzop,
}
COMPRESSIONS = {"plain": "", "gzip": "gzip", "lzop": "lzo", "lzop-literals": "lzo"}
each_form = pytest.mark.parametrize("form", FORMS)


def index_of(data: bytes, step: int = 70_001, **options: bool) -> ArchiveIndex:
    indexer = Indexer(**options)
    for at in range(0, len(data), step):
        indexer.feed(data[at : at + step])
    return ArchiveIndex(BytesRanges(indexer.finish("etag")))


def image(reader: DiskReader, start: int = 0, into: bytearray | None = None) -> bytearray:
    out = bytearray(reader.size) if into is None else into
    for _, offset, data in reader.pieces(start):
        out[offset : offset + len(data)] = data
    return out


class Counting:
    """Ranges that count what is fetched."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.fetched = 0
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        data = self._data[offset : offset + length]
        self.fetched += len(data)
        return data


@each_form
def test_an_index_gives_configuration_disks_and_any_range(form: str) -> None:
    data = FORMS[form](ARCHIVE)
    index = index_of(data, deep=True)
    facts = index.facts
    assert (facts.kind, facts.compression) == ("vma", COMPRESSIONS.get(form, "zstd"))
    assert (facts.complete, facts.note, facts.size, facts.plain_size) == (True, "", len(data), len(ARCHIVE))
    assert facts.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert facts.ctime == 1_750_000_000
    view = ArchiveView(BytesRanges(data), index, etag="etag")
    assert view.guest_config().encode() == writers.CONFIG
    assert dict(view.configs()) == CONFIGS
    assert [(each.name, each.size) for each in view.disks()] == [(name, len(held)) for name, held in DISKS.items()]
    for name, held in DISKS.items():
        assert image(view.disk(name)) == held
    reader, held, dice = view.disk("scsi0"), DISKS["drive-scsi0"], random.Random(7)
    for _ in range(8):
        at = dice.randrange(len(held))
        assert reader.read(at, 200_000) == held[at : at + 200_000]
    assert reader.read(len(held) - 10, 100) == held[-10:]
    assert reader.read(len(held), 1) == b""


@each_form
def test_without_an_index_the_head_gives_the_configuration(form: str) -> None:
    data = FORMS[form](ARCHIVE)
    ranges = Counting(data)
    view = ArchiveView(ranges)
    assert view.guest_config().encode() == writers.CONFIG
    assert ranges.fetched <= 512 << 10
    assert [each.name for each in view.disks()] == list(DISKS)
    with pytest.raises(NoIndex, match="pve-s3 archive index"):
        view.disk("scsi0")


def test_a_part_of_a_seekable_archive_costs_about_itself() -> None:
    for data in (ARCHIVE, seekable(ARCHIVE)):
        ranges = Counting(data)
        view = ArchiveView(ranges, index_of(data))
        assert view.disk("efidisk0").read(0, CLUSTER) == DISKS["drive-efidisk0"][:CLUSTER]
        assert ranges.fetched < 2_300_000 < len(data) / 2


def test_an_extraction_goes_on_where_it_was() -> None:
    view = ArchiveView(BytesRanges(ARCHIVE), index_of(ARCHIVE))
    reader = view.disk("drive-scsi0")
    pieces = list(reader.pieces())
    for stop in (1, len(pieces) // 2, len(pieces) - 1):
        out = bytearray(reader.size)
        for _, offset, data in pieces[:stop]:
            out[offset : offset + len(data)] = data
        assert image(reader, pieces[stop - 1][0], out) == DISKS["drive-scsi0"]


def test_the_index_of_lzo_has_the_head_alone_unless_asked() -> None:
    data = writers.lzop(ARCHIVE)
    index = index_of(data)
    assert index.facts.configs[0][1] == writers.CONFIG
    assert (index.facts.plain_size, index.facts.complete) == (None, False)
    assert "only the head" in index.facts.note
    assert len(list(index.pieces())) == 1


def test_a_cut_archive_is_told() -> None:
    for cut in (len(ARCHIVE) - 1, len(ARCHIVE) // 2, 20_000, 12_300, 300, 3, 0):
        index = index_of(ARCHIVE[:cut])
        assert not index.facts.complete
        assert index.facts.note
    packed = writers.tool("zstd", "-c", data=ARCHIVE)
    index = index_of(packed[:-5])
    assert index.facts.note == "the zstd stream is cut short"
    assert index.facts.configs[0][1] == writers.CONFIG


def test_an_extent_that_is_missing_is_told() -> None:
    head = writers.header({}, {"drive-scsi0": 100 * CLUSTER})
    clusters = [(1, number, b"x" * CLUSTER) for number in range(59)]
    index = index_of(head + writers.extent(clusters))
    assert index.facts.note == "clusters of a disk are missing"


def test_damage_in_a_header_is_told_and_hashes_go_on() -> None:
    damaged = bytearray(ARCHIVE)
    second = vma.header_size(ARCHIVE[:60])
    damaged[second + 60] ^= 1
    index = index_of(bytes(damaged))
    assert "MD5" in index.facts.note
    assert f"{second:,}" in index.facts.note
    assert index.facts.configs[0][1] == writers.CONFIG
    assert ArchiveView(BytesRanges(bytes(damaged)), index).check().bad == ()
    damaged[100] ^= 1
    assert "MD5" in read_head(BytesRanges(bytes(damaged))).note


def test_a_check_finds_the_piece_that_is_not_what_was_uploaded() -> None:
    data = random.Random(3).randbytes(1 << 20) * 40
    index = index_of(data)
    assert index.facts.note == "neither a VMA nor a tar archive"
    damaged = bytearray(data)
    damaged[20 << 20] ^= 1
    found = ArchiveView(BytesRanges(bytes(damaged)), index).check()
    assert (found.pieces, found.looked_at, found.bytes) == (3, 3, len(data))
    assert found.bad == ((16 << 20, 16 << 20),)
    few = ArchiveView(BytesRanges(data), index).check(0.01, dice=random.Random(1))
    assert few.looked_at <= 3
    assert few.bad == ()


def test_an_index_of_another_object_is_not_used() -> None:
    index = index_of(ARCHIVE)
    for view in (
        ArchiveView(BytesRanges(ARCHIVE + b"x"), index),
        ArchiveView(BytesRanges(ARCHIVE), index, etag="other"),
    ):
        assert view.stale
        assert view.index is None
        with pytest.raises(NoIndex, match="another"):
            view.check()


def test_what_is_not_there_is_said() -> None:
    view = ArchiveView(BytesRanges(ARCHIVE), index_of(ARCHIVE))
    with pytest.raises(NotInArchive, match="drive-efidisk0"):
        view.disk("virtio0")
    with pytest.raises(NoIndex, match="no archive of a container"):
        list(view.ls())
    empty = writers.vma({"drive-scsi0": disk(1)}, {})
    with pytest.raises(NotInArchive, match="no guest configuration"):
        ArchiveView(BytesRanges(empty), index_of(empty)).guest_config()


def test_a_cluster_that_is_there_twice_is_refused() -> None:
    head = writers.header({}, {"drive-scsi0": 10 * CLUSTER})
    data = head + writers.extent([(1, 3, b"x" * CLUSTER), (1, 3, b"y" * CLUSTER)])
    with pytest.raises(BadArchive, match="twice"):
        ArchiveView(BytesRanges(data), index_of(data)).disk("scsi0").read(0, 10)


def test_a_cluster_beyond_its_disk_is_refused() -> None:
    head = writers.header({}, {"drive-scsi0": 10 * CLUSTER})
    assert "behind the end" in index_of(head + writers.extent([(1, 10, b"x" * CLUSTER)])).facts.note
    assert "does not name" in index_of(head + writers.extent([(2, 1, b"x" * CLUSTER)])).facts.note
    assert "another archive" in index_of(head + writers.extent([(1, 1, b"x" * CLUSTER)], bytes(16))).facts.note


def test_the_table_at_the_end_of_a_seekable_archive_is_enough() -> None:
    data = seekable(ARCHIVE)
    assert len(ArchiveView(BytesRanges(data)).plain._points) > 5
    # What other tools write between frames is passed over.
    odd = b"\x50\x2a\x4d\x18\x03\0\0\0abc" + data
    assert image(ArchiveView(BytesRanges(odd), index_of(odd)).disk("scsi0")) == DISKS["drive-scsi0"]
    assert writers.tool("zstd", "-dc", data=data) == ARCHIVE


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entrances lie near each other, so that small archives have some."""
    monkeypatch.setattr(compression, "ENTRANCE_SPACING", 1 << 20)
    monkeypatch.setattr(compression, "PROBE_BYTES", 1 << 18)


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("options", [("--threads=1", "--rsyncable"), ("--threads=2",), ("--threads=2", "-1")])
def test_a_single_frame_that_was_made_in_jobs_can_be_entered(options: tuple[str, ...]) -> None:
    dice = random.Random(4)
    words = [dice.randbytes(dice.randrange(2, 30)) for _ in range(2000)]
    held = {"drive-scsi0": b"".join(dice.choice(words) for _ in range(2_500_000))}
    archive = writers.vma(held)
    data = writers.tool("zstd", *options, "-c", data=archive)
    index = index_of(data)
    doors = list(index.entrances())
    assert len(list(index.points())) == 1
    assert len(doors) >= 3
    for door in doors:
        assert door.until - door.plain >= 1 << 18
    ranges = Counting(data)
    reader = ArchiveView(ranges, index).disk("scsi0")
    at = doors[-1].plain + 100_000
    assert reader.read(at, 50_000) == held["drive-scsi0"][at : at + 50_000]
    assert ranges.fetched < len(data) / 2
    assert image(reader) == held["drive-scsi0"]
    for number in range(5):
        at = number * 7_000_000
        assert reader.read(at, 300_000) == held["drive-scsi0"][at : at + 300_000]
