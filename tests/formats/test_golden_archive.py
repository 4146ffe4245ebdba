"""Golden bytes of archive indexes: of a machine's archive, and of a container's that is compressed in frames.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_archive` writes missing ones.
What is packed by zstd is compared by what it decodes to.
"""

from pathlib import Path

import pytest
import zstandard

from plugin.archive.compression import Entrance
from plugin.archive.index import ArchiveIndex, Disk, Facts, encode, members_table, runs_table
from plugin.archive.streams import BytesRanges
from plugin.archive.tar import Member
from plugin.archive.vma import FULL, Run

GOLDEN = Path(__file__).parent / "golden"
MACHINE = Facts(
    kind="vma",
    compression="",
    size=(16 << 20) + 7_000,
    plain_size=(16 << 20) + 7_000,
    etag="9e107d9d372bb6826bd81d3542a419d6-2",
    complete=True,
    note="",
    uuid="6f1c2a5e-7f5b-4c57-9d0c-1c6d3f2b8a90",
    ctime=1_750_000_000,
    configs=(("qemu-server.conf", b"memory: 2048\n"), ("qemu-server.fw", b"[OPTIONS]\n\xff")),
    disks=(Disk(1, "drive-scsi0", 1 << 40, 1 << 24), Disk(2, "drive-efidisk0", 540_672, 9)),
    members=0,
    piece_bytes=16 << 20,
)
RUNS = [
    Run(1, 0, 40, FULL, 13_312),
    Run(2, 3, 1, 0x00F1, 13_312 + 40 * 65536),
    Run(1, 40, 18, FULL, 13_312 + 40 * 65536 + 5 * 4096),
    Run(1, (1 << 24) - 2, 2, 0x8000, 13_312 + 58 * 65536 + 5 * 4096 + 512),
    Run(2, 0, 1, FULL, 13_312 + 58 * 65536 + 7 * 4096 + 512),
]
CONTAINER = Facts(
    kind="tar",
    compression="zstd",
    size=900_000,
    plain_size=5 << 20,
    etag="",
    complete=True,
    note="",
    uuid="",
    ctime=0,
    configs=(("etc/vzdump/pct.conf", b"arch: amd64\n"),),
    disks=(),
    members=4,
    piece_bytes=16 << 20,
)
POINTS = [(0, 0), (400_000, 4 << 20)]
MEMBERS = [
    Member("./etc/vzdump/pct.conf", "file", 12, 0o644, 0, 0, 1_750_000_000, "", 0, 512, 12, 1024),
    Member("./", "dir", 0, 0o755, 0, 0, 1_700_000_000, "", 1024, 2560, 0, 2560),
    Member("./a\udcff", "file", 1 << 40, 0o600, 100_000, 100_000, -5, "", 2560, 5120, 70_000, 75_264, ()),
    Member("./b", "symlink", 0, 0o777, 0, 0, 1_750_000_001, "a\udcff", 75_264, 76_800, 0, 76_800),
]


ENTRANCES = [Entrance(200_000, 1 << 20, 3 << 20, 0x58), Entrance(500_000, (2 << 20) + 77, 5 << 20, 0x58)]
HISTORIES = [b"what came before " * 10_000, b"\0" * 300_000]


def machine() -> bytes:
    table = runs_table()
    for run in RUNS:
        table.add(run)
    return encode(MACHINE, [bytes(range(32)), bytes(range(32, 64))], [], [table])


def container() -> bytes:
    table = members_table()
    for member in MEMBERS:
        table.add(member)
    return encode(CONTAINER, [bytes(range(32))], POINTS, [table])


def entered() -> bytes:
    """One zstd frame, of which two places can be entered."""
    table = members_table()
    for member in MEMBERS:
        table.add(member)
    packed = [zstandard.ZstdCompressor(write_content_size=True).compress(history) for history in HISTORIES]
    return encode(CONTAINER, [bytes(32)], [(0, 0)], [table], zip(ENTRANCES, packed, strict=True))


OBJECTS = {
    "archive-index-vma.v1.bin": machine,
    "archive-index-tar.v1.bin": container,
    "archive-index-entrances.v1.bin": entered,
}


def _all(data: bytes) -> tuple[object, ...]:
    index = ArchiveIndex(BytesRanges(data))
    tables = (index.pieces(), index.points(), index.runs(), index.members(), index.entrances())
    histories = [index.history(number) for number, _ in enumerate(index.entrances())]
    return index.facts, *(list(each) for each in tables), histories


@pytest.mark.parametrize("name", OBJECTS)
def test_todays_code_reads_and_writes_the_golden_indexes(name: str) -> None:
    golden = _all((GOLDEN / name).read_bytes())
    assert golden == _all(OBJECTS[name]())
    if name.startswith("archive-index-vma"):
        assert golden == (MACHINE, [bytes(range(32)), bytes(range(32, 64))], [], RUNS, [], [], [])
    elif name.startswith("archive-index-tar"):
        assert golden == (CONTAINER, [bytes(range(32))], POINTS, [], MEMBERS, [], [])
    else:
        assert golden == (CONTAINER, [bytes(32)], [(0, 0)], [], MEMBERS, ENTRANCES, HISTORIES)


def write_missing() -> None:
    for name, make in OBJECTS.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(make())


if __name__ == "__main__":
    write_missing()
