"""The local log by itself: what any cut leaves, what damage does, and trimming that a crash cut off."""

from pathlib import Path

import pytest

from integrity.record import START, encode
from integrity.tlog.tree import leaf_hash
from integrity.wal import Wal, WalDamaged, encode_file

AT = "2026-01-31T12:00:00.000001Z"


def chained(count: int) -> list[bytes]:
    after, made = START, []
    for n in range(count):
        event = {"op": "note", "phase": "done", "source": "client", "detail": {"text": "x" * (n % 50)}}
        made.append(encode(event, writer="h.1", n=n, at=AT, after=after))
        after = leaf_hash(made[-1])
    return made


RECORDS = chained(12)
FRAMES = [RECORDS[0:1], RECORDS[1:4], RECORDS[4:9], RECORDS[9:12]]
FILE = encode_file(0, FRAMES)
ENDS = [len(encode_file(0, FRAMES[:count])) for count in range(len(FRAMES) + 1)]


def opened(folder: Path, data: bytes) -> Wal:
    for path in folder.glob("*.wal"):
        path.unlink()
    (folder / f"{0:016d}.wal").write_bytes(data)
    return Wal.open(folder)


def test_what_is_appended_is_what_the_format_says(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "wal")
    for frame in FRAMES:
        wal.append(frame)
    wal.close()
    (path,) = (tmp_path / "wal").iterdir()
    assert path.read_bytes() == FILE
    assert list(Wal.open(tmp_path / "wal").records(2, 10)) == RECORDS[2:10]


def test_a_cut_anywhere_leaves_whole_frames(tmp_path: Path) -> None:
    for size in range(0, len(FILE), 3):
        wal = opened(tmp_path, FILE[:size])
        whole = max((count for count, end in enumerate(ENDS) if end <= size), default=0)
        assert list(wal.records(0, wal.end)) == [one for frame in FRAMES[:whole] for one in frame]
        wal.append(RECORDS[wal.end : wal.end + 1])
        wal.close()
        assert Wal.open(tmp_path).end == wal.end


def test_a_flipped_bit_before_the_last_frame_is_refused_and_left(tmp_path: Path) -> None:
    for place in range(0, ENDS[-2], 5):
        data = bytearray(FILE)
        data[place] ^= 0x10
        with pytest.raises(WalDamaged):
            opened(tmp_path, bytes(data))
        assert (tmp_path / f"{0:016d}.wal").read_bytes() == data


def test_files_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.wal.FILE_BYTES", 500)
    wal = Wal.open(tmp_path)
    for record in RECORDS:
        wal.append([record])
    paths = sorted(tmp_path.iterdir())
    assert len(paths) > 3
    wal.trim(5)
    wal.close()
    assert wal.first <= 5
    # Trimming that a crash cut off: files are there that are not needed.
    assert list(Wal.open(tmp_path, 5).records(5, 12)) == RECORDS[5:]
    assert list(Wal.open(tmp_path, 9).records(9, 12)) == RECORDS[9:]
    with pytest.raises(WalDamaged, match="missing"):
        Wal.open(tmp_path, 0)
    left = sorted(tmp_path.iterdir())
    left[1].unlink()
    with pytest.raises(WalDamaged, match="missing"):
        Wal.open(tmp_path, 5)


def test_a_file_that_was_just_begun_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.wal.FILE_BYTES", 500)
    wal = Wal.open(tmp_path)
    for record in RECORDS[:4]:
        wal.append([record])
    wal.close()
    for data in (b"", b"BWLED", bytes(32)):
        begun = tmp_path / f"{4:016d}.wal"
        begun.write_bytes(data)
        looked = Wal.open(tmp_path, cut=False)
        assert looked.end == 4
        assert begun.exists()
        assert Wal.open(tmp_path).end == 4
        assert not begun.exists()
