"""Golden bytes of a plan: its text, which is what the digest is over, the packed file and its index.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_plan` writes missing ones.
The packed file is compared by what it decodes to: another zstd may pack the same bytes otherwise.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest

from cowsync.changes import Op, PlanLine
from cowsync.plan import plan_file
from cowsync.plan.format import PlanHead, decode_head, decode_line, encode_head, encode_line
from cowsync.plan.plan_file import INDEX_NAME, LINES_NAME, Plan, open_plan, write_plan

GOLDEN = Path(__file__).parent / "golden"
DIGEST = "5cd9f091196d6a6f732005576762470a5ca2eff9b8595bc318ef3af1f4c79ba0"
HEAD = PlanHead("photos", "s3://aws/photos/2026/", "s3://minio/mirror/", "5c" * 32, 12)
_MODIFIED = "2026-11-21T08:15:30.000Z"
LINES = [
    PlanLine(Op.ADD, "a/new \U0001f600.jpg", 43, "9e107d9d372bb6826bd81d3542a419d6", _MODIFIED, reason="new"),
    PlanLine(
        Op.MODIFY,
        "b/changed",
        1 << 40,
        "d41d8cd98f00b204e9800998ecf8427e-9000",
        _MODIFIED,
        version_id="v2",
        storage_class="STANDARD_IA",
        was_size=7,
        was_etag="0cc175b9c0f1b6a831c399e269772661",
        was_version="v1",
        mirror_etag="92eb5ffee6ae2fec3ad71c777531578f",
        mirror_version="m1",
        hot=True,
        reason="etag",
    ),
    PlanLine(Op.RETURN, "c\\back\n", 1, "e1", _MODIFIED, mirror_etag="e1"),
    PlanLine(Op.REMOVE, "d", 2, "e2", _MODIFIED, mirror_etag="m2", gone=4, reason="absent 8 runs, 9 days"),
    PlanLine(Op.VANISH, "e", 0, "", "", gone=12),
]


VERSIONS_HEAD = PlanHead("photos", "s3://aws/photos/2026/", "s3://minio/mirror/", "5c" * 32, 12, "all")
VERSIONS_LINES = [
    PlanLine(Op.VANISH, "a", 4, "e0", _MODIFIED, "v0", mirror_etag="m0", mirror_version="w0", gone=12, ordinal=1),
    PlanLine(Op.MODIFY, "a", 5, "e1", _MODIFIED, "v1", "", 3, "e9", "v9", "m9", "w9", reason="new version", ordinal=3),
    PlanLine(Op.REMOVE, "a", 0, "", _MODIFIED, "v2", "", 5, "e1", "v1", "m9", "w9", reason="delete marker", ordinal=4),
    PlanLine(Op.ADD, "a\0b", 6, "e2", _MODIFIED, "null", hot=True, reason="new version", ordinal=1),
    PlanLine(Op.RETURN, "a\x01", 7, "e3", _MODIFIED, "v4", "", 7, "e3", "v4", "m4", "w4", 3, ordinal=0xFFFF_FFFF),
]


def text() -> bytes:
    return encode_head(HEAD) + b"".join(map(encode_line, LINES))


def golden_plan(folder: Path) -> Plan:
    place = folder / hashlib.sha256((GOLDEN / "plan.v1.jsonl").read_bytes()).hexdigest()
    place.mkdir()
    (place / LINES_NAME).write_bytes((GOLDEN / "plan.v1.jsonl.zst").read_bytes())
    (place / INDEX_NAME).write_bytes((GOLDEN / "plan-index.v1.json").read_bytes())
    return open_plan(place)


def test_todays_code_reads_the_golden_plan(tmp_path: Path) -> None:
    plan = golden_plan(tmp_path)
    plan.verify()
    assert plan.head == HEAD
    assert list(plan.read()) == list(enumerate(LINES))
    assert plan.find("d") == (3, LINES[3])
    assert list(plan.pieces(1)) == [(0, 2), (2, 4), (4, 5)]


def test_todays_code_writes_the_golden_text(tmp_path: Path) -> None:
    golden = (GOLDEN / "plan.v1.jsonl").read_bytes()
    assert text() == golden
    head, *lines = golden.split(b"\n")[:-1]
    assert decode_head(head + b"\n") == HEAD
    assert [decode_line(line, number) for number, line in enumerate(lines)] == LINES
    assert write_plan(tmp_path, HEAD, LINES).digest == hashlib.sha256(golden).hexdigest() == DIGEST


def test_the_golden_plan_of_versions(tmp_path: Path) -> None:
    """Text and index; the packed file differs from that of version 1 in nothing but its text."""
    golden = (GOLDEN / "plan.v2.jsonl").read_bytes()
    assert encode_head(VERSIONS_HEAD) + b"".join(map(encode_line, VERSIONS_LINES)) == golden
    head, *lines = golden.split(b"\n")[:-1]
    assert decode_head(head + b"\n") == VERSIONS_HEAD
    assert [decode_line(line, number) for number, line in enumerate(lines)] == VERSIONS_LINES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_file, "FRAME_LINES_MAX", 2)
        plan = write_plan(tmp_path, VERSIONS_HEAD, VERSIONS_LINES)
    plan.verify()
    first_keys = [row[5] for row in json.loads((GOLDEN / "plan-index.v2.json").read_bytes())["frames"]]
    assert first_keys == [row[5] for row in json.loads((plan.folder / INDEX_NAME).read_bytes())["frames"]]
    assert list(open_plan(plan.folder).read()) == list(enumerate(VERSIONS_LINES))
    assert [number for number, _ in plan.find_every("a")] == [0, 1, 2]
    assert plan.find("a\0b") == (3, VERSIONS_LINES[3])
    assert plan.find("b") is None


def write_missing() -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_file, "FRAME_LINES_MAX", 2)
        folder = write_plan(Path(name), HEAD, LINES).folder
        versions = write_plan(Path(name), VERSIONS_HEAD, VERSIONS_LINES).folder
        for golden, data in (
            ("plan.v1.jsonl", text()),
            ("plan.v1.jsonl.zst", (folder / LINES_NAME).read_bytes()),
            ("plan-index.v1.json", (folder / INDEX_NAME).read_bytes()),
            ("plan.v2.jsonl", encode_head(VERSIONS_HEAD) + b"".join(map(encode_line, VERSIONS_LINES))),
            ("plan-index.v2.json", (versions / INDEX_NAME).read_bytes()),
        ):
            if not (GOLDEN / golden).exists():
                (GOLDEN / golden).write_bytes(data)


if __name__ == "__main__":
    write_missing()
