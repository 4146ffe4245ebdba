"""The qcow2 writer: QEMU finds nothing to say against it, and the same content in it."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.qcow2.format import Compression
from blockdev.qcow2.writer import Qcow2Writer
from blockdev.units import GIB, MIB, TIB
from tests.blockdev.qcow2.images import MemoryImage, Runs, content, flat, qemu_img, raw_file, whole, written

CHECKED = "No errors were found on the image."


@pytest.mark.initiator
@pytest.mark.parametrize("compression", [None, *Compression])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16, 18, 21])
def test_qemu_agrees(tmp_path: Path, bits: int, compression: Compression | None) -> None:
    size = 9 * MIB + 512 * 77
    runs = content(bits, size)
    image = tmp_path / "image"
    image.write_bytes(written(runs, size, bits=bits, compression=compression).data)
    assert CHECKED in qemu_img("check", "-f", "qcow2", image)
    raw = raw_file(tmp_path / "raw", runs, size)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)
    assert whole(MemoryImage(image.read_bytes()).reader()) == flat(runs, size)


@pytest.mark.initiator
@pytest.mark.parametrize("compression", [None, Compression.ZSTD])
def test_many_blocks_of_reference_counts(tmp_path: Path, compression: Compression | None) -> None:
    """With 512-byte clusters a block counts 256 of them, so 9 MiB need many, and a table of several clusters."""
    size = 40 * MIB
    data = content(5, size, runs=300)
    image = tmp_path / "image"
    image.write_bytes(written(data, size, bits=9, compression=compression).data)
    assert CHECKED in qemu_img("check", "-f", "qcow2", image)
    raw = raw_file(tmp_path / "raw", data, size)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)


@pytest.mark.initiator
def test_empty_and_enormous(tmp_path: Path) -> None:
    for size in (MIB, 16 * TIB, 1024 * TIB):
        image = tmp_path / str(size)
        runs: Runs = (
            []
            if size == MIB
            else [
                (size - 4096, b"end" * 1365 + b"."),
            ]
        )
        image.write_bytes(written(runs, size).data)
        assert CHECKED in qemu_img("check", "-f", "qcow2", image)
        reader = MemoryImage(image.read_bytes()).reader()
        assert reader.size_bytes == size
        for at, data in runs:
            assert reader.read(at, len(data)) == data


def test_the_header_comes_last() -> None:
    seen: list[bytes] = []
    image = written(content(2, 4 * MIB), 4 * MIB, before_finish=lambda image: seen.append(bytes(image.data)))
    assert len(seen[0]) > MIB
    with pytest.raises(CorruptFormat, match="not a qcow2 image"):
        MemoryImage(seen[0]).reader()
    assert image.reader().size_bytes == 4 * MIB


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image() -> None:
    """32 GiB of disk, 4 GiB of it written: tables of one stretch and counts of 4 GiB are held, never all."""
    written_bytes = 0

    def pwrite(offset: int, data: bytes | bytearray | memoryview) -> None:
        nonlocal written_bytes
        written_bytes += len(data)

    writer = Qcow2Writer(pwrite, 32 * GIB)
    block = b"x" * 65536
    tracemalloc.start()
    for number in range(65536):
        writer.write(number * 8 * 65536, block)
    writer.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert written_bytes > 4 * GIB
    assert peak < 2 * MIB


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30), st.integers(0, 255)), max_size=30),
    st.sampled_from([9, 10, 12]),
    st.sampled_from([None, *Compression]),
)
def test_what_is_written_is_read(steps: list[tuple[int, int, int]], bits: int, compression: Compression | None) -> None:
    runs: Runs = []
    at = 0
    for gap, sectors, fill in steps:
        at += gap * 512
        runs.append((at, bytes([fill]) * (sectors * 512)))
        at += sectors * 512
    size = max(at, 512)
    assert whole(written(runs, size, bits=bits, compression=compression).reader()) == flat(runs, size)
