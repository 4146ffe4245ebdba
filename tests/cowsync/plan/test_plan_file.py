"""A plan on disk: what is written is read, from any line on; damage is named; a crash leaves nothing that has a name."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings

from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused, StateDamaged
from cowsync.plan import plan_file
from cowsync.plan.format import PlanHead, decode_index, decode_line, encode_head, encode_line
from cowsync.plan.plan_file import INDEX_NAME, LINES_NAME, SUMMARY_NAME, digests, find_plan, open_plan, write_plan
from tests.cowsync.plan.lines import HEAD, add, modify, plans, vanish

MANY = [add(f"k{number:05}", number) for number in range(57)]


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_file, "FRAME_LINES_MAX", 10)


def text(lines: list[PlanLine], head: PlanHead = HEAD) -> bytes:
    return encode_head(head) + b"".join(map(encode_line, lines))


@settings(max_examples=60, deadline=None)
@given(plans())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[PlanLine]) -> None:
    """And the digest is that of the text."""
    plan = write_plan(tmp_path_factory.mktemp("p"), HEAD, lines)
    again = open_plan(plan.folder)
    assert list(again) == lines
    assert (len(again), again.head) == (len(lines), HEAD)
    assert again.digest == plan.digest == hashlib.sha256(text(lines)).hexdigest() == plan.folder.name
    again.verify()
    shutil.rmtree(plan.folder)


@given(plans())
def test_a_line_is_plain_json_without_its_defaults(lines: list[PlanLine]) -> None:
    for one in lines:
        given_values = {
            field.name: getattr(one, field.name) for field in fields(one) if getattr(one, field.name) != field.default
        }
        generic = json.dumps(given_values, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        assert encode_line(one) == generic.encode() + b"\n"
        assert decode_line(encode_line(one)[:-1], 0) == one


@pytest.mark.usefixtures("small_frames")
def test_any_range_any_key_any_piece(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, MANY)
    numbered = list(enumerate(MANY))
    for start in range(0, 60, 7):
        for stop in (start, start + 1, start + 13, None):
            assert list(plan.read(start, stop)) == numbered[start:stop]
    assert [plan.find(one.key) for one in MANY] == numbered
    assert [plan.find(key) for key in ("", "a", "k00010x", "z")] == [None] * 4
    wanted = ["", "a", "k00003", "k00004", "k00009", "k00010", "k00010x", "k00056", "z"]
    assert [number for number, _ in plan.find_all(wanted)] == [3, 4, 9, 10, 56]
    assert [number for number, _ in plan.find_all([one.key for one in MANY])] == list(range(57))
    assert list(write_plan(tmp_path, HEAD, []).find_all(wanted)) == []
    assert list(plan.pieces(1)) == [(start, min(start + 10, 57)) for start in range(0, 57, 10)]
    assert list(plan.pieces(25)) == [(0, 30), (30, 57)]
    assert list(write_plan(tmp_path, HEAD, []).pieces()) == []


def test_only_the_frames_of_a_range_are_read(tmp_path: Path, small_frames: None) -> None:
    plan = write_plan(tmp_path, HEAD, MANY)
    index = decode_index((plan.folder / INDEX_NAME).read_bytes())
    data = bytearray((plan.folder / LINES_NAME).read_bytes())
    data[index.frames[3].at + 8] ^= 1
    (plan.folder / LINES_NAME).write_bytes(data)
    assert [number for number, _ in plan.read(30, 40)] == list(range(30, 40))
    with pytest.raises(StateDamaged, match=f"plan {plan.digest[:12]}: lines 20 to 29: not what was written"):
        list(plan.read(25, 26))


def test_the_digest_is_that_of_facts_and_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_plan(tmp_path / "1", HEAD, MANY, summary=lambda: {"a": 1})
    monkeypatch.setattr(plan_file, "FRAME_LINES_MAX", 5)
    monkeypatch.setattr(plan_file, "_LEVEL", 19)
    other = write_plan(tmp_path / "2", HEAD, iter(MANY), summary=lambda: {"b": 2})
    assert one.digest == other.digest
    assert (one.folder / LINES_NAME).read_bytes() != (other.folder / LINES_NAME).read_bytes()
    differing = [
        write_plan(tmp_path / "3", head, MANY).digest
        for head in (
            replace(HEAD, mirror="x"),
            replace(HEAD, source="x"),
            replace(HEAD, target="x"),
            replace(HEAD, base=""),
            replace(HEAD, run=8),
        )
    ]
    lines = [*MANY[:-1], replace(MANY[-1], hot=True)]
    assert len({one.digest, *differing, write_plan(tmp_path / "3", HEAD, lines).digest}) == 7


def test_zstdcat_and_sha256sum_give_the_digest(tmp_path: Path, small_frames: None) -> None:
    plan = write_plan(tmp_path, HEAD, MANY)
    packed = (plan.folder / LINES_NAME).read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True)
    assert reader.read() == text(MANY)
    if shutil.which("zstdcat"):
        shown = subprocess.run(["zstdcat", plan.folder / LINES_NAME], capture_output=True, check=True).stdout
        assert hashlib.sha256(shown).hexdigest() == plan.digest


@pytest.mark.parametrize("keys", [["b", "a"], ["a", "a"], ["\U0001f600", "\uffff"], [""]])
def test_keys_that_do_not_rise_are_refused_and_leave_nothing(tmp_path: Path, keys: list[str]) -> None:
    with pytest.raises(ValueError, match="is not greater than"):
        write_plan(tmp_path, HEAD, [add(key) for key in keys])
    assert os.listdir(tmp_path) == []


def test_order_is_that_of_utf_8(tmp_path: Path) -> None:
    keys = ["\x01", " ", "/", "a", "a/", "a\x7f", "\x80", "é", "\uffff", "\U0001f600"]
    assert keys == sorted(keys, key=str.encode)
    assert [one.key for one in write_plan(tmp_path, HEAD, map(add, keys))] == keys


def test_a_crash_while_writing_leaves_no_plan_and_the_next_run_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at every step before the rename: what is left has no digest for a name, and goes with the next plan."""

    class Crash(BaseException):
        pass

    real, left = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Crash
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **more: None)
    for limit in (1, 2, 3, 4):
        left = limit
        with pytest.raises(Crash):
            write_plan(tmp_path, HEAD, MANY)
        assert digests(tmp_path) == []
        assert len(list(tmp_path.glob(".new-*"))) == limit
    monkeypatch.undo()
    plan = write_plan(tmp_path, HEAD, MANY)
    assert os.listdir(tmp_path) == [plan.digest]
    plan.verify()


def test_a_plan_that_is_there_is_kept_and_a_damaged_one_written_anew(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, MANY, summary=lambda: {"a": 1})
    (plan.folder / "journal").write_bytes(b"somebody else's")
    before = (plan.folder / LINES_NAME).stat().st_ino
    assert write_plan(tmp_path, HEAD, MANY, summary=lambda: {"a": 2}).summary() == {"a": 2}
    assert (plan.folder / LINES_NAME).stat().st_ino == before
    for name in (LINES_NAME, INDEX_NAME):
        (plan.folder / name).write_bytes(b"?")
        with pytest.raises(StateDamaged):
            open_plan(plan.folder).verify()
        again = write_plan(tmp_path, HEAD, MANY)
        again.verify()
        assert list(again) == MANY
    (plan.folder / LINES_NAME).unlink()
    write_plan(tmp_path, HEAD, MANY).verify()
    assert sorted(os.listdir(plan.folder)) == [INDEX_NAME, "journal", LINES_NAME, SUMMARY_NAME]


@pytest.mark.usefixtures("small_frames")
def test_no_flipped_bit_is_read_as_a_plan(tmp_path: Path) -> None:
    plan, found = write_plan(tmp_path, HEAD, MANY), list[str]()
    for name in (LINES_NAME, INDEX_NAME):
        path = plan.folder / name
        good = path.read_bytes()
        for place in range(0, len(good), 3):
            path.write_bytes(good[:place] + bytes((good[place] ^ (1 << place % 8),)) + good[place + 1 :])
            try:
                again = open_plan(plan.folder)
                again.verify()
            except StateDamaged as error:
                found.append(str(error))
                continue
            # zstd has bits that mean nothing; whatever is read is what was written.
            assert (list(again), again.head) == (MANY, HEAD)
        for cut in (0, 1, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:cut])
            with pytest.raises(StateDamaged):
                open_plan(plan.folder).verify()
        path.write_bytes(good)
    assert len(found) > 500
    assert all(plan.digest[:12] in one for one in found)


def test_a_line_that_was_exchanged_is_named(tmp_path: Path) -> None:
    """Index and frame are made to fit by somebody; the digest is not."""
    plan = write_plan(tmp_path / "1", HEAD, [add("a"), vanish("b"), modify("c")])
    forged = write_plan(tmp_path / "2", HEAD, [add("a"), modify("b"), modify("c")])
    for name in (LINES_NAME, INDEX_NAME):
        data = (forged.folder / name).read_bytes().replace(forged.digest.encode(), plan.digest.encode())
        (plan.folder / name).write_bytes(data)
    with pytest.raises(StateDamaged, match="the digest differs"):
        open_plan(plan.folder).verify()


def test_plans_are_found_by_the_beginning_of_their_digest(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, HEAD, MANY)
    assert find_plan(tmp_path, plan.digest[:12].upper()).digest == plan.digest
    for wrong in ("", plan.digest[:3], "0123456789", "../x", plan.digest + "0"):
        with pytest.raises(Refused):
            find_plan(tmp_path, wrong)
    (tmp_path / (plan.digest[:20] + "0" * 44)).mkdir()
    with pytest.raises(Refused, match="2 plans begin with"):
        find_plan(tmp_path, plan.digest[:12])
    with pytest.raises(StateDamaged, match=r"index\.json is missing"):
        find_plan(tmp_path, plan.digest[:20] + "0")
    with pytest.raises(Refused):
        open_plan(tmp_path / "none")


def test_memory_does_not_grow_with_the_plan(tmp_path: Path) -> None:
    """In a process of its own: what is traced is what all threads of a process take."""
    command = [sys.executable, "-m", "tests.cowsync.plan.test_plan_file", str(tmp_path)]
    peaks = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=250).stdout)
    assert peaks[1] < peaks[0] * 1.2, peaks


def peaks_of(folder: Path) -> list[int]:
    """Bytes at most, while plans of 12,000 and 36,000 lines are written and read."""

    def lines(count: int) -> Iterator[PlanLine]:
        return (PlanLine(Op.ADD, f"some/prefix/{number:012}", number, "e" * 32, "now") for number in range(count))

    peaks = []
    for count in (12_000, 36_000):
        tracemalloc.start()
        plan = write_plan(folder, HEAD, lines(count))
        assert sum(1 for _ in plan) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks


if __name__ == "__main__":
    print(json.dumps(peaks_of(Path(sys.argv[1]))))
