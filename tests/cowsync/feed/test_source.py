"""Feeds as a service meets them: what is noted and when, a folder that is emptied, a pipe whose writer comes and goes."""

import json
import os
from pathlib import Path

import pytest

from cowsync.feed.gathered import LINE_BYTES_MAX, Counts, Gathered, Scope
from cowsync.feed.source import Feed, FileFeed, PipeFeed, gather_once, kind_of, open_feed, read_note, status_of
from tests.cowsync.feed.notices import notice


def gathered_from(feed: Feed) -> tuple[set[str], object, Gathered]:
    gathered = Gathered(Scope("source", "", lambda key: True, 1000))
    mark = feed.gather(gathered, lambda: True)
    return gathered.keys, mark, gathered


def test_a_place_is_noted_when_it_is_handled_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(notice("a") + b"nonsense\n")
    feed = FileFeed(path, tmp_path)
    keys, mark, gathered = gathered_from(feed)
    assert keys == {"a"}
    assert gathered_from(FileFeed(path, tmp_path))[0] == {"a"}, "as after a crash"
    feed.handled(mark, gathered.counts, 50.0)
    again = FileFeed(path, tmp_path)
    assert not again.waiting()
    assert gathered_from(again)[0] == set()
    path.open("ab").write(notice("b"))
    assert again.waiting()
    assert again.lag(1767225600.0 + 7) == 7
    _, mark, gathered = gathered_from(again)
    again.handled(mark, gathered.counts, 60.0)
    note = read_note(tmp_path, str(path))
    assert (note.handled, note.counts.lines, note.counts.malformed, note.counts.hints) == (60.0, 3, 1, 2)
    assert again.lag(1e12) == 0.0
    told = status_of(str(path), tmp_path, 1e12)
    assert (told["lag_seconds"], told["handled"], told["malformed"]) == (0.0, 60.0, 1)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version":2}', b'{"version":1,"feed":"other"}'])
def test_a_note_that_cannot_be_read_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "events"
    path.write_bytes(notice("a"))
    (tmp_path / "feed.json").write_bytes(damage)
    assert gathered_from(FileFeed(path, tmp_path))[0] == {"a"}


def test_the_golden_note_is_read_and_written_alike(tmp_path: Path) -> None:
    document = {
        "version": 1,
        "feed": "/var/spool/events.jsonl",
        "position": {"inode": 7, "offset": 40, "line": 2, "tail": "ab"},
        "handled": 50.5,
        "counts": Counts(lines=2, malformed=1).to_json(),
    }
    (tmp_path / "feed.json").write_text(json.dumps(document))
    note = read_note(tmp_path, "/var/spool/events.jsonl")
    assert note.position is not None
    assert (note.position.offset, note.position.line, note.counts.malformed) == (40, 2, 1)
    feed = FileFeed(Path("/var/spool/events.jsonl"), tmp_path)
    feed.handled(note.position, Counts(), 50.5)
    assert json.loads((tmp_path / "feed.json").read_text()) == document


def test_a_folder_is_emptied_once_its_files_are_handled(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    for number, name in enumerate(["2.json", "1.json"]):
        (spool / name).write_bytes(notice(name).rstrip(b"\n"))
        os.utime(spool / name, (number, number))
    (spool / ".half").write_bytes(b"x")
    (spool / "half.tmp").write_bytes(b"x")
    (spool / "folder").mkdir()
    with open_feed(str(spool), tmp_path) as feed:
        assert feed.waiting()
        assert feed.lag(5.0) == 5.0
        keys, mark, gathered = gathered_from(feed)
        assert (keys, gathered.counts.malformed) == ({"2.json", "1.json"}, 0)
        (spool / "3.json").write_bytes(notice("late"))
        (spool / "1.json").write_bytes(notice("rewritten"))
        feed.handled(mark, gathered.counts, 9.0)
        assert sorted(path.name for path in spool.iterdir()) == [".half", "1.json", "3.json", "folder", "half.tmp"]
        end = feed.end()
        feed.handled(end, Counts(floods=1), 10.0)
        assert not feed.waiting()
        assert feed.lag(1e12) == 0.0
    note = read_note(tmp_path, str(spool))
    assert (note.counts.floods, note.counts.lines) == (1, 2)


def test_a_pipe_whose_writer_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    assert kind_of(str(path)) == "pipe"
    with open_feed(str(path), tmp_path) as feed:
        assert not feed.waiting()
        for keys in (["a", "b"], ["c"]):
            with path.open("wb") as writer:
                writer.write(b"".join(map(notice, keys)))
            assert feed.waiting()
            assert feed.lag(0.0) is None
            found, mark, gathered = gathered_from(feed)
            assert found == set(keys)
            feed.handled(mark, gathered.counts, 1.0)
    assert read_note(tmp_path, str(path)).counts.hints == 3


def test_a_pipe_in_pieces_with_a_line_without_end(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    feed = PipeFeed(reading, "standard input", tmp_path)
    line = notice("whole")
    os.write(writing, line[:20])
    assert gathered_from(feed)[0] == set()
    os.write(writing, line[20:] + b"bad\n")
    keys, _, gathered = gathered_from(feed)
    assert (keys, gathered.complaints) == ({"whole"}, ["standard input:2: is no JSON"])
    for _ in range(LINE_BYTES_MAX // 50_000 + 2):
        os.write(writing, b"x" * 50_000)
        assert gathered_from(feed)[0] == set()
    os.write(writing, b"end of the long one\n" + notice("next") + notice("last").rstrip(b"\n"))
    os.close(writing)
    keys, _, _ = gathered_from(feed)
    assert keys == {"next", "last"}
    assert feed.ended
    assert not feed.waiting()
    os.close(reading)


def test_all_at_once_for_one_command(tmp_path: Path) -> None:
    spool, file, fifo = tmp_path / "spool", tmp_path / "events", tmp_path / "fifo"
    spool.mkdir()
    (spool / "1").write_bytes(notice("s"))
    file.write_bytes(notice("f") + notice("g").rstrip(b"\n"))
    os.mkfifo(fifo)
    scope = Scope("source", "", lambda key: True, 1000)
    gathered = Gathered(scope)
    for name in (spool, file):
        gather_once(str(name), gathered)
    assert gathered.keys == {"s", "f", "g"}
    assert (spool / "1").exists()
    child = os.fork()
    if child == 0:
        with fifo.open("wb") as writer:
            writer.write(notice("p"))
        os._exit(0)
    gather_once(str(fifo), gathered)
    os.waitpid(child, 0)
    assert "p" in gathered.keys
    with pytest.raises(FileNotFoundError):
        gather_once(str(tmp_path / "none"), gathered)
