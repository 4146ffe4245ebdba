"""What a restart reads is a beginning of what was written, and never less than what had been synced."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.journal import Journals, NumberSet, Ranges, WorkerJournal, journal_path, read_journal
from cowsync.apply.journal_format import HEADER_BYTES, Begun, Entry, Upload
from cowsync.changes import LineResult, Op, Outcome
from cowsync.errors import StateDamaged

DIGEST = bytes(range(32))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = st.integers(0, 1 << 40)
entries = st.one_of(
    st.builds(
        LineResult, numbers, st.sampled_from(Outcome), texts, texts, numbers, numbers, st.integers(0, 1 << 30), texts
    ),
    st.builds(lambda op, first, more: Begun(op, first, first + more), st.sampled_from(Op), numbers, st.integers(1, 99)),
    st.builds(Upload, texts, texts, st.booleans()),
)


def all_of(path: Path) -> list[Entry]:
    return [entry for entry, _ in read_journal(path, DIGEST)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(entries, min_size=1, max_size=5), max_size=8))
def test_what_was_written_is_read(groups: list[list[Entry]]) -> None:
    with TemporaryDirectory() as folder:
        for group in groups:  # each by another start
            journal = WorkerJournal(Path(folder), 3, DIGEST)
            journal.append(*group)
            journal.close()
        written = [entry for group in groups for entry in group]
        path = journal_path(Path(folder), 3)
        assert (all_of(path) if groups else []) == written


@settings(max_examples=80, deadline=None)
@given(st.lists(entries, min_size=2, max_size=8), st.data())
def test_a_crash_at_any_byte_leaves_a_beginning(written: list[Entry], data: st.DataObject) -> None:
    """Everything behind the last sync may be cut anywhere, or hold other bytes. What was synced is all there, and a
    worker carries on behind it."""
    with TemporaryDirectory() as folder:
        synced = data.draw(st.integers(0, len(written)))
        journal = WorkerJournal(Path(folder), 0, DIGEST)
        for entry in written[:synced]:
            journal.append(entry)
        journal.sync()
        safe = os.path.getsize(journal.path)
        for entry in written[synced:]:
            journal.append(entry)
        whole = journal.path.read_bytes()
        cut = data.draw(st.integers(safe, len(whole)))
        left = bytearray(whole[:cut])
        if data.draw(st.booleans()) and cut > safe:
            # A page of the tail that never reached the disk, though later ones did.
            at = data.draw(st.integers(safe, cut - 1))
            left[at : at + data.draw(st.integers(1, 64))] = bytes(min(64, cut - at))
        journal.path.write_bytes(left)
        found = all_of(journal.path)
        assert found == written[: len(found)]
        assert len(found) >= synced
        again = WorkerJournal(Path(folder), 0, DIGEST)
        again.append(Begun(Op.ADD, 5, 6))
        again.close()
        assert all_of(journal.path) == [*found, Begun(Op.ADD, 5, 6)]


@settings(max_examples=80, deadline=None)
@given(st.lists(entries, min_size=3, max_size=8), st.data())
def test_damage_before_a_sync_is_named_and_nothing_made_up(written: list[Entry], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        journal = WorkerJournal(Path(folder), 0, DIGEST)
        ends = [HEADER_BYTES]
        for entry in written:
            journal.append(entry)
            journal.sync()
            ends.append(os.path.getsize(journal.path))
        journal.close()
        content = bytearray(journal.path.read_bytes())
        at = data.draw(st.integers(HEADER_BYTES, ends[-2] - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        journal.path.write_bytes(content)
        with pytest.raises(StateDamaged, match="had been synced") as raised:
            all_of(journal.path)
        assert str(journal.path) in str(raised.value)
        assert "move the file away" in raised.value.hint


def test_another_plans_journal_is_refused(tmp_path: Path) -> None:
    WorkerJournal(tmp_path, 0, DIGEST).close()
    with pytest.raises(StateDamaged, match="belongs to plan"):
        Journals.read(tmp_path, bytes(32))
    journal_path(tmp_path, 0).write_bytes(b"something else, of more bytes than a header has, from somewhere")
    with pytest.raises(StateDamaged, match="magic"):
        WorkerJournal(tmp_path, 0, DIGEST)


def test_a_file_cut_in_its_header_is_begun_again(tmp_path: Path) -> None:
    journal_path(tmp_path, 0).write_bytes(b"BWAPP")
    journal = WorkerJournal(tmp_path, 0, DIGEST)
    journal.append(LineResult(1, Outcome.DONE))
    journal.close()
    assert all_of(journal.path) == [LineResult(1, Outcome.DONE)]


def test_all_journals_together(tmp_path: Path) -> None:
    first, second = WorkerJournal(tmp_path, 0, DIGEST), WorkerJournal(tmp_path, 1, DIGEST)
    first.begin(Op.ADD, 0, 4)
    second.begin(Op.ADD, 4, 8)
    second.begin(Op.MODIFY, 20, 30)
    first.append(LineResult(0, Outcome.DONE, "e"), LineResult(1, Outcome.FAILED), LineResult(2, Outcome.MOVED))
    second.append(LineResult(1, Outcome.DONE))
    first.upload_over("k", "2")  # the end of it stands in the file that is read first
    second.upload_begun("k", "1")
    second.upload_begun("k", "2")
    first.close()
    second.close()
    found = Journals.read(tmp_path, DIGEST)
    assert [number for number in range(9) if number in found.done] == [0, 1]
    assert [number for number in range(40) if found.maybe_ours(Op.ADD, number)] == list(range(8))
    assert [number for number in range(40) if found.maybe_ours(Op.MODIFY, number)] == list(range(20, 30))
    assert found.uploads == {("k", "1")}


def test_after_a_failed_sync_nothing_is_appended(tmp_path: Path) -> None:
    failing = False

    def sync(fd: int) -> None:
        if failing:
            raise OSError(errno.EIO, "the disk is gone")
        os.fdatasync(fd)

    journal = WorkerJournal(tmp_path, 0, DIGEST, sync=sync)
    journal.append(LineResult(0, Outcome.DONE))
    failing = True
    with pytest.raises(OSError, match="disk is gone"):
        journal.sync()
    failing = False
    with pytest.raises(OSError, match="earlier write failed"):
        journal.append(LineResult(1, Outcome.DONE))
    with pytest.raises(OSError, match="earlier write failed"):
        journal.sync()
    journal.close()


def test_begin_syncs_what_came_before(tmp_path: Path) -> None:
    synced: list[int] = []
    journal = WorkerJournal(tmp_path, 0, DIGEST, sync=lambda fd: synced.append(os.fstat(fd).st_size))
    journal.append(LineResult(0, Outcome.DONE))
    journal.append(LineResult(1, Outcome.DONE))
    journal.begin(Op.ADD, 2, 66)
    assert synced[1:] == [os.path.getsize(journal.path)]
    journal.sync()
    assert len(synced) == 2
    journal.close()


def test_long_texts_are_cut_and_whole_keys_are_not(tmp_path: Path) -> None:
    journal = WorkerJournal(tmp_path, 0, DIGEST)
    key = "ü" * 512
    journal.append(LineResult(0, Outcome.FAILED, message="é" * 4000), Upload(key, "u" * 1500, over=False))
    journal.close()
    result, upload = all_of(journal.path)
    assert isinstance(result, LineResult)
    assert result.message == "é" * 500
    assert upload == Upload(key, "u" * 1500, over=False)


def test_a_long_journal_is_read_in_pieces(tmp_path: Path) -> None:
    journal = WorkerJournal(tmp_path, 0, DIGEST)
    results = [LineResult(number, Outcome.DONE, f"{number:032x}", message="x" * 900) for number in range(3000)]
    journal.append(*results)
    journal.close()
    assert os.path.getsize(journal.path) > 2 << 20
    assert all_of(journal.path) == results


@given(st.sets(st.integers(0, 5000)))
def test_a_set_of_numbers(numbers: set[int]) -> None:
    found = NumberSet()
    for number in numbers:
        found.add(number)
        found.add(number)
    assert {number for number in range(5001) if number in found} == numbers
    assert len(found) == len(numbers)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9))))
def test_ranges_join(parts: list[tuple[int, int]]) -> None:
    ranges = Ranges()
    wanted: set[int] = set()
    for first, count in parts:
        ranges.add(first, first + count)
        wanted |= set(range(first, first + count))
    assert {number for number in range(80) if number in ranges} == wanted
