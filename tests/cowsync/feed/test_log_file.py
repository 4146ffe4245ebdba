"""A file that grows, is rotated, truncated, or written badly: what is read, once, and from where reading goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.feed.gathered import COMPLAINTS_MAX, LINE_BYTES_MAX, Gathered, Scope
from cowsync.feed.log_file import LogFile, Position, position_from_json
from tests.cowsync.feed.notices import notice


def gathering(keys_max: int = 1000, prefix: str = "") -> Gathered:
    return Gathered(Scope("source", prefix, lambda key: not key.startswith(b"no/"), keys_max))


def read(path: Path, start: Position | None) -> tuple[set[str], Position | None, Gathered]:
    gathered = gathering()
    reached = LogFile(path).read(start, gathered)
    return gathered.keys, reached, gathered


def append(path: Path, *keys: str) -> None:
    with path.open("ab") as file:
        file.write(b"".join(notice(key) for key in keys))


def test_a_file_that_is_not_there_yet_and_then_grows(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert read(path, None)[:2] == (set(), None)
    assert not LogFile(path).waiting(None)
    append(path, "a", "b")
    assert LogFile(path).waiting(None)
    keys, place, _ = read(path, None)
    assert keys == {"a", "b"}
    assert not LogFile(path).waiting(place)
    assert read(path, place)[0] == set()
    append(path, "c")
    with path.open("ab") as file:
        file.write(notice("d")[:-10])
    keys, place, _ = read(path, place)
    assert keys == {"c"}, "a line that is being written is left"
    with path.open("ab") as file:
        file.write(notice("d")[-10:])
    keys, place, gathered = read(path, place)
    assert (keys, gathered.counts.malformed) == ({"d"}, 0)
    assert place is not None
    assert place.line == 4
    assert position_from_json(place.to_json()) == place
    assert position_from_json({"inode": "x"}) is None


@pytest.mark.parametrize("suffixes", [[".1"], [".1", ".2"], ["-20260101", "-20260102"]])
def test_rotated_files_are_read_to_their_end(tmp_path: Path, suffixes: list[str]) -> None:
    """As logrotate does it with `create`, once or twice between two looks."""
    path = tmp_path / "events"
    append(path, "a")
    _, place, _ = read(path, None)
    moment = 1_000_000_000
    for number, suffix in enumerate(suffixes):
        append(path, f"late{number}")
        os.utime(path, (moment + number, moment + number))
        path.rename(tmp_path / f"events{suffix}")
    path.touch()
    append(path, "new")
    (tmp_path / "events.9.gz").write_bytes(b"packed")
    (tmp_path / "eventsother").write_bytes(notice("other"))
    keys, place, gathered = read(path, place)
    assert keys == {"new"} | {f"late{number}" for number in range(len(suffixes))}
    assert gathered.counts.lost == 0
    append(path, "newer")
    assert read(path, place)[0] == {"newer"}


def test_a_writer_may_go_on_with_a_file_that_was_renamed(tmp_path: Path) -> None:
    path, old = tmp_path / "events", tmp_path / "events.1"
    append(path, "a")
    _, place, _ = read(path, None)
    path.rename(old)
    path.touch()
    append(old, "b")
    keys, place, _ = read(path, place)
    assert keys == {"b"}
    append(old, "c")
    keys, place, _ = read(path, place)
    assert keys == {"c"}, "the new one is empty: the writer has not changed over"
    append(old, "d")
    append(path, "e")
    keys, place, _ = read(path, place)
    assert keys == {"d", "e"}
    assert not LogFile(path).waiting(place)


@pytest.mark.parametrize("regrown", [False, True])
def test_copied_and_truncated(tmp_path: Path, regrown: bool) -> None:
    path = tmp_path / "events"
    append(path, "a", "b")
    _, place, _ = read(path, None)
    append(path, "unread")
    shutil.copy(path, tmp_path / "events.1")
    os.truncate(path, 0)
    append(path, "c")
    if regrown:
        append(path, *[f"more{number}" for number in range(20)])
    keys, place, gathered = read(path, place)
    assert {"unread", "c"} <= keys
    assert gathered.counts.lost == 0
    assert not LogFile(path).waiting(place)


def test_a_place_that_is_gone_is_told_and_reading_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events"
    append(path, "a", "b", "c")
    _, place, _ = read(path, None)
    os.truncate(path, 0)
    append(path, "d")
    assert LogFile(path).waiting(place)
    keys, place, gathered = read(path, place)
    assert (keys, gathered.counts.lost) == ({"d"}, 1)
    assert read(path, place)[2].counts.lost == 0


def test_wrong_lines_are_counted_and_named_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(
        notice("a") + b"\xff\xfe\n" + b"{}\n" + b"\n" + b"x" * (3 * LINE_BYTES_MAX) + b"\n" + notice("b") + b"[]\n" * 9
    )
    keys, place, gathered = read(path, None)
    assert keys == {"a", "b"}
    assert gathered.counts.malformed == 12
    assert len(gathered.complaints) == COMPLAINTS_MAX
    assert gathered.complaints[0] == f"{path}:2: is no JSON"
    assert gathered.complaints[2] == f"{path}:5: is longer than 1,048,576 bytes"
    assert place is not None
    assert place.offset == path.stat().st_size
    path.write_bytes(b"y" * (2 * LINE_BYTES_MAX))
    assert read(path, None)[1] == Position(path.stat().st_ino), "nobody knows whether it goes on"


def test_what_does_not_belong_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(notice("p/a", "p/no/b", "q/c", "p/") + notice("p/d", bucket="other") + notice("p/a"))
    gathered = gathering(prefix="p/")
    LogFile(path).read(None, gathered)
    assert gathered.keys == {"a"}
    assert (gathered.counts.foreign, gathered.counts.outside, gathered.counts.hints) == (1, 3, 2)


def test_a_flood_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "events"
    append(path, *[f"{number}" for number in range(100)])
    gathered = gathering(keys_max=10)
    LogFile(path).read(None, gathered)
    assert gathered.flooded
    assert len(gathered.keys) == 11
    end = LogFile(path).end(None)
    assert end is not None
    assert (end.line, LogFile(path).waiting(end)) == (100, False)


def test_when_the_oldest_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert LogFile(path).oldest_sent(None) is None
    append(path, "a")
    assert LogFile(path).oldest_sent(None) == 1767225600.0
    _, place, _ = read(path, None)
    assert LogFile(path).oldest_sent(place) is None
    with path.open("ab") as file:
        file.write(b"{}\n")
    os.utime(path, (77, 77))
    assert LogFile(path).oldest_sent(place) == 77


def write(path: Path, number: int) -> None:
    append(path, f"k{number}")


def rotate(path: Path, number: int) -> None:
    if path.exists():
        os.utime(path, (number, number))
        path.rename(path.with_name(f"events.{number}"))
        path.touch()


def copytruncate(path: Path, number: int) -> None:
    if path.exists():
        shutil.copy(path, path.with_name(f"events.{number}"))
        os.utime(path.with_name(f"events.{number}"), (number, number))
        os.truncate(path, 0)


ACTS: list[Callable[[Path, int], None] | None] = [write, write, rotate, copytruncate, None]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTS), max_size=25))
def test_whatever_happens_to_the_file_no_line_is_missed(
    tmp_path_factory: pytest.TempPathFactory, acts: list[Callable[[Path, int], None] | None]
) -> None:
    """None is a look. Lines may be missed where nothing had been read before them that tells the file from another."""
    path = tmp_path_factory.mktemp("log") / "events"
    place: Position | None = None
    seen: set[str] = set()
    written: set[str] = set()
    hidden: set[str] = set()
    for number, act in enumerate([*acts, None], 1):
        if act is None:
            keys, place, gathered = read(path, place)
            assert gathered.counts.lost == 0
            assert keys <= written
            seen |= keys
        else:
            act(path, number)
            if act is write:
                written.add(f"k{number}")
                os.utime(path, (number, number))
            elif place is None or place.offset == 0:
                hidden |= written - seen
    assert written - seen <= hidden
