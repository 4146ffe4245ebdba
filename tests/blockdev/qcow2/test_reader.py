"""The qcow2 reader: what QEMU writes, what it must refuse, what damage may do."""

import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat, ImageRefused
from blockdev.qcow2 import format as qcow2
from blockdev.qcow2.format import Compression
from blockdev.qcow2.reader import Qcow2Reader
from blockdev.units import MIB
from tests.blockdev.qcow2.images import MemoryImage, content, flat, qemu_img, raw_file, whole, written

VARIANTS = [
    (bits, options)
    for bits in range(9, 22)
    for options in ("compat=0.10", "compat=1.1", "compat=1.1,zlib", "compat=1.1,zstd")
    if not (bits < 12 and options.endswith("zstd"))
]


def opened(path: Path) -> Qcow2Reader:
    return MemoryImage(path.read_bytes()).reader()


@pytest.mark.initiator
@pytest.mark.parametrize(("bits", "options"), VARIANTS)
def test_reads_what_qemu_writes(tmp_path: Path, bits: int, options: str) -> None:
    size = 9 * MIB + 512 * (bits * 37)
    runs = content(bits, size)
    compat, _, packing = options.partition(",")
    command = ["convert", "-f", "raw", "-O", "qcow2"]
    command += ["-c"] if packing else []
    packed = f",compression_type={packing}" if packing else ""
    command += ["-o", f"{compat},cluster_size={1 << bits}{packed}"]
    qemu_img(*command, raw_file(tmp_path / "raw", runs, size), tmp_path / "image")
    reader = opened(tmp_path / "image")
    assert reader.size_bytes == size
    assert whole(reader, step=300_000) == flat(runs, size)
    assert reader.read(size - 100, 300) == flat(runs, size)[-100:] + bytes(200)
    ranges = list(reader.ranges())
    assert all(begin < end for begin, end in ranges)
    assert all(end < begin for (_, end), (begin, _) in pairwise(ranges))
    assert sum(end - begin for begin, end in ranges) < size, "holes are left out"


@pytest.mark.initiator
def test_zero_clusters_overwrites_and_snapshots(tmp_path: Path) -> None:
    """An image that was in use: clusters zeroed, discarded, written over, out of order, with a snapshot inside."""
    image = tmp_path / "image"
    qemu_img("create", "-f", "qcow2", image, "8M")
    script = ["write -P 1 0 3M", "write -P 2 5M 1M", "write -P 3 4M 100k", "write -z 1M 640k", "discard 5M 128k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *(w for line in script for w in ("-c", line)), image], check=True)
    qemu_img("snapshot", "-c", "before", image)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 64k 1k", "-c", "write -P 7 7M 1M", image], check=True)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "raw")
    assert whole(opened(image)) == (tmp_path / "raw").read_bytes()


@pytest.mark.initiator
def test_preallocated(tmp_path: Path) -> None:
    for how in ("metadata", "falloc"):
        qemu_img("create", "-f", "qcow2", "-o", f"preallocation={how}", tmp_path / how, "5M")
        assert whole(opened(tmp_path / how)) == bytes(5 * MIB)


@pytest.mark.initiator
@pytest.mark.parametrize(
    ("options", "said", "cure"),
    [
        (["-o", "extended_l2=on"], "subclusters", "qemu-img convert"),
        (["-o", "data_file=DIR/data"], "keeps its data in another file", "qemu-img convert"),
        (["-b", "DIR/base", "-F", "raw"], "over a backing file", "qemu-img convert"),
    ],
)
def test_refuses_what_it_cannot_read(tmp_path: Path, options: list[str], said: str, cure: str) -> None:
    (tmp_path / "base").write_bytes(bytes(MIB))
    options = [option.replace("DIR", str(tmp_path)) for option in options]
    qemu_img("create", "-q", "-f", "qcow2", *options, tmp_path / "image", "1M")
    with pytest.raises(ImageRefused, match=said) as caught:
        opened(tmp_path / "image")
    assert cure in caught.value.hint


@pytest.mark.parametrize(
    ("bit", "said"),
    [(0, "marked as in use"), (1, "marked as corrupt"), (4, "subclusters"), (17, "does not know \\(0x20000\\)")],
)
def test_refuses_what_the_features_forbid(bit: int, said: str) -> None:
    image = written([(0, b"x" * 4096)], MIB)
    struct.pack_into(">Q", image.data, 72, 1 << bit)
    with pytest.raises(ImageRefused, match=said):
        image.reader()


@pytest.mark.parametrize(
    ("layout", "offset", "value", "error", "said"),
    [
        (">I", 4, 1, ImageRefused, "version 1"),
        (">I", 4, 9, ImageRefused, "version 9"),
        (">Q", 8, 1 << 20, ImageRefused, "backing file"),
        (">I", 20, 8, CorruptFormat, "2\\^8"),
        (">I", 20, 63, CorruptFormat, "2\\^63"),
        (">I", 20, 9, ImageRefused, "too small for a disk|makes no sense|entries"),
        (">Q", 24, 0, ImageRefused, "0 bytes"),
        (">Q", 24, 1 << 63, ImageRefused, "up to 1 PiB"),
        (">I", 32, 2, ImageRefused, "encrypted"),
        (">I", 36, 0, CorruptFormat, "table of 0 entries"),
        (">Q", 40, 0, CorruptFormat, "cannot be at 0"),
        (">Q", 40, 1 << 40, CorruptFormat, "outside the file"),
        (">Q", 40, 65536 + 512, CorruptFormat, "cannot be at"),
        (">I", 100, 50, CorruptFormat, "header of 50 bytes"),
        (">B", 104, 1, CorruptFormat, "contradict"),
    ],
)
def test_headers_that_lie(layout: str, offset: int, value: int, error: type[Exception], said: str) -> None:
    image = written([(0, b"x" * 4096)], 3 << 40)
    struct.pack_into(layout, image.data, offset, value)
    with pytest.raises(error, match=said):
        image.reader()


def first_entry(image: MemoryImage) -> int:
    """Where the entry of the disk's first cluster is."""
    (l1,) = struct.unpack_from(">Q", image.data, 40)
    (entry,) = struct.unpack_from(">Q", image.data, l1)
    return int(entry & ~qcow2.COPIED)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (1 << 50, "outside the file"),
        (0x10200, "makes no sense"),
        (1 << 60, "makes no sense"),
        (1 << 62 | 1 << 45, "outside the file"),
    ],
)
def test_entries_that_lie(entry: int, said: str) -> None:
    image = written([(0, b"x" * 65536)], MIB)
    struct.pack_into(">Q", image.data, first_entry(image), entry)
    reader = image.reader()
    with pytest.raises(CorruptFormat, match=said):
        list(reader.ranges())
    with pytest.raises(CorruptFormat, match=said):
        reader.read(0, 10)


def test_more_clusters_than_the_file_has_room_for() -> None:
    """One cluster of data under every name there is: a few kilobytes that claim to be gigabytes."""
    image = written([(0, b"x" * 65536)], 64 << 30)
    at = first_entry(image)
    entry = image.data[at : at + 8]
    image.data[at : at + 65536] = entry * 8192
    with pytest.raises(CorruptFormat, match="more clusters than the file has room for"):
        list(image.reader().ranges())


def test_one_second_table_under_every_name() -> None:
    image = written([(0, b"x" * 65536)], 64 << 30)
    (l1,) = struct.unpack_from(">Q", image.data, 40)
    image.data[l1 : l1 + 128 * 8] = image.data[l1 : l1 + 8] * 128
    with pytest.raises(CorruptFormat, match="more clusters than the file has room for"):
        list(image.reader().ranges())


@pytest.mark.parametrize("compression", Compression)
def test_a_bomb_unpacks_to_one_cluster(compression: Compression) -> None:
    image = written([(0, b"y" * 65536)], MIB, compression=compression)
    at = first_entry(image)
    (entry,) = struct.unpack_from(">Q", image.data, at)
    place = entry & ((1 << 54) - 1)
    big = written([(0, b"z" * (2 << 20))], 2 << 20, bits=21, compression=compression)
    (packed,) = struct.unpack_from(">Q", big.data, first_entry(big))
    begin = packed & ((1 << 49) - 1)
    image.data[place : place + 4096] = big.data[begin : begin + 4096]
    assert image.reader().read(0, 65536) == b"z" * 65536


@pytest.mark.parametrize("compression", Compression)
def test_a_cluster_that_unpacks_to_too_little(compression: Compression) -> None:
    image = written([(0, b"y" * 65536)], MIB, compression=compression)
    (entry,) = struct.unpack_from(">Q", image.data, first_entry(image))
    small = written([(0, b"y" * 4096)], MIB, bits=12, compression=compression)
    (packed,) = struct.unpack_from(">Q", small.data, first_entry(small))
    image.data[entry & ((1 << 54) - 1) :][:512] = b""
    place, begin = entry & ((1 << 54) - 1), packed & ((1 << 58) - 1)
    image.data[place : place + 512] = small.data[begin : begin + 512].ljust(512, b"\0")
    with pytest.raises(CorruptFormat, match="unpacks to 4096 bytes"):
        image.reader().read(0, 65536)


def test_a_file_that_was_cut_off_is_not_believed() -> None:
    runs = content(3, 4 * MIB)
    image = written(runs, 4 * MIB)
    expected = flat(runs, 4 * MIB)
    for cut in range(0, len(image.data), 50_021):
        try:
            assert whole(MemoryImage(bytes(image.data[:cut])).reader()) == expected
        except CorruptFormat:
            continue


BASE = written(content(1, 2 * MIB), 2 * MIB, bits=12, compression=Compression.ZLIB)
"""Small clusters: most of its bytes are tables."""


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 112), st.integers(0, len(BASE.data) // 8 - 1).map(lambda n: n * 8)),
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), b"\x40" + bytes(7)])),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_damage_is_an_error_or_other_data_and_nothing_else(damage: list[tuple[int, bytes]]) -> None:
    image = MemoryImage(bytes(BASE.data))
    for at, data in damage:
        image.data[at : at + len(data)] = data
    said = "image"
    try:
        reader = image.reader()
        for begin, end in reader.ranges():
            assert begin < end <= reader.size_bytes
            assert len(reader.read(begin, MIB)) == MIB
    except (CorruptFormat, ImageRefused) as error:
        said = str(error)
    assert "image" in said


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_header(blob: bytes) -> None:
    for begin in (blob, qcow2.MAGIC + blob, qcow2.MAGIC + b"\0\0\0\3" + blob):
        with pytest.raises((CorruptFormat, ImageRefused)):
            MemoryImage(begin).reader()
