"""The loads of files: the tree is the same each time, doors are named as QEMU wants them, and one real run of ours."""

import io
import sqlite3
import sys
import tarfile
import zlib
from pathlib import Path

import pytest

from bench.peers import disk_file, files, source_tree, wal_loop
from bench.peers.context import Context
from bench.peers.names import OURS
from bench.processes import end, start, wait_for_line
from bench.store import READY, Client


def test_same_seed_same_tree(tmp_path: Path) -> None:
    first, second, other = tmp_path / "1.tar", tmp_path / "2.tar", tmp_path / "3.tar"
    total = source_tree.write_archive(first, 50, 7)
    assert source_tree.write_archive(second, 50, 7) == total
    source_tree.write_archive(other, 50, 8)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    with tarfile.open(first) as archive:
        members = archive.getmembers()
    assert len({member.name for member in members}) == 50
    assert sum(member.size for member in members) == total


def test_half_of_the_tree_compresses() -> None:
    content = b"".join(data for _, data in source_tree.files(200, 1))
    assert 0.45 < len(zlib.compress(content)) / len(content) < 0.62
    assert 4_000 < len(content) / 200 < 16_000


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "iscsi://127.0.0.1:3260/iqn.2025-01.a:b/1",
            "driver=iscsi,transport=tcp,portal=127.0.0.1:3260,target=iqn.2025-01.a:b,lun=1",
        ),
        ("nbd+unix:///?socket=/x/nbd", "driver=nbd,server.type=unix,server.path=/x/nbd"),
        ("nbd://127.0.0.1:10810/v", "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=10810,export=v"),
        ("/x/disk.raw", "driver=file,filename=/x/disk.raw"),
    ],
)
def test_doors(url: str, words: str) -> None:
    assert disk_file.block_device(url) == f"{words},node-name=disk,discard=unmap"


def test_no_such_door() -> None:
    with pytest.raises(ValueError, match="no door"):
        disk_file.block_device("ftp://127.0.0.1/x")


def test_a_missing_program_is_named_with_its_package() -> None:
    assert "fuse2fs" in disk_file.PACKAGES
    with pytest.raises(KeyError):
        disk_file.missing("no-such-program")


def test_transactions_are_there(tmp_path: Path) -> None:
    said = wal_loop.run(str(tmp_path / "x.db"), 0.2)
    rows = sqlite3.connect(tmp_path / "x.db").execute("SELECT count(*) FROM entry").fetchone()[0]
    assert rows == said["transactions"] > 0


def test_a_rate_counts_lines_and_the_flush() -> None:
    ran = files.Ran(3.0, False, "a\nb\nc\nd\n")
    assert files.rate(ran, 1.0, 10) == (1.0, "4 files until its time was over")


@pytest.mark.slow
def test_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours from mkfs to discard: two starts, and two commits that each wait for their interval."""
    if why := disk_file.missing(*files.PROGRAMS):
        pytest.skip(why)
    monkeypatch.setattr(source_tree, "FILES", 30)
    monkeypatch.setattr(files, "QUICK", files.Limits(60.0, 0.2, 60.0, 60.0, 60.0, 600.0, 600.0))
    log = tmp_path / "store.log"
    store = start([sys.executable, "-m", "bench.store"], log)
    said = io.StringIO()
    try:
        client = Client(int(wait_for_line(log, READY, store).split()[-1]))
        context = Context(tmp_path, client, store.pid, True, (0,), (OURS,), 1, 0.2, lambda text: print(text, file=said))
        part = files.run(context)
    finally:
        end(store)
    assert part.missing == []
    found = {figure.load: figure for figure in part.figures}
    assert set(found) == {
        files.MKFS_PLAIN, files.UNTAR, files.SQLITE, files.COLD_TREE, files.RM, files.TRIM, files.DISCARD
    }  # fmt: skip
    assert all(figure.value > 0 and figure.system == OURS for figure in part.figures)
    assert found[files.UNTAR].facts[files.PUTS] > 0
    assert found[files.UNTAR].facts[files.MIB_LEFT] > 0
    assert found[files.COLD_TREE].facts[files.GETS] > 0
    assert found[files.DISCARD].note == "", "the disk is empty after its discard"
    assert not any(str(tmp_path) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    assert not (tmp_path / "files").exists()
