"""Golden bytes of an apply journal, which lies on the local disk while a plan is carried out.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_apply` writes it if missing.
"""

from pathlib import Path

from cowsync.apply.journal import journal_path, read_journal
from cowsync.apply.journal_format import HEADER_BYTES, Begun, Entry, Upload, encode, encode_header
from cowsync.changes import LineResult, Op, Outcome

GOLDEN = Path(__file__).parent / "golden" / "apply-journal.v1.bin"
DIGEST = bytes(range(32))
ENTRIES: list[Entry] = [
    Begun(Op.ADD, 0, 64),
    LineResult(7, Outcome.DONE, "9e107d9d372bb6826bd81d3542a419d6", "", 43, 0, 12),
    Upload("backup/big", "2~upload", over=False),
    LineResult(8, Outcome.MOVED, message="the source has it no longer"),
    Upload("backup/big", "2~upload", over=True),
    LineResult(9, Outcome.DONE, "d41d8cd98f00b204e9800998ecf8427e-3", "v2", 0, 1 << 33, 4294967295),
    Begun(Op.REMOVE, 64, 1 << 40),
]


def written() -> bytes:
    data = encode_header(DIGEST)
    for entry in ENTRIES:
        data += encode(entry, len(data), HEADER_BYTES, DIGEST)
    return data


def test_todays_code_reads_it(tmp_path: Path) -> None:
    path = journal_path(tmp_path, 0)
    path.write_bytes(GOLDEN.read_bytes())
    assert [entry for entry, _ in read_journal(path, DIGEST)] == ENTRIES


def test_todays_code_writes_the_same() -> None:
    assert written() == GOLDEN.read_bytes()


if __name__ == "__main__":
    if not GOLDEN.exists():
        GOLDEN.write_bytes(written())
