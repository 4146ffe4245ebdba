"""Where notifications come from: a file that grows, a folder of files, a pipe; and the note of how far they were handled.

One rule: effects before the cursor. `gather` and `end` give a mark; `handled` makes it durable, and is called when what was
gathered before it is in the mirror's published state. Whatever is read after a crash is read again, which does no harm.

| a crash in | leaves | repaired by |
| --- | --- | --- |
| `handled` of a file, before the note has its name | a note `.new`, the old one | the next `handled`: all is read again |
| `handled` of a folder | files that were handled | read again, and removed then |
| between `gather` and `handled` of a pipe | nothing: what was read is lost | the next listing |
"""

import heapq
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cowsync.errors import Refused
from cowsync.feed.gathered import LINE_BYTES_MAX, Counts, Gathered
from cowsync.feed.log_file import LogFile, Position, gather_file, position_from_json

NOTE_NAME = "feed.json"
VERSION = 1
STANDARD_INPUT = "-"
SPOOL_FILES_MAX = 10_000
"""Files of a folder that are taken at a time, the oldest first."""
HALF_WRITTEN = (".tmp", ".part", ".new")
"""Ends of names that writers give to files they are not done with; so is a dot at the beginning."""
_CHUNK = 64 << 10

More = Callable[[], bool]
Mark = object
"""A place in a feed; only the feed that gave it can read it."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a feed. `handled` is when it last was handled to a mark, in Unix seconds, 0.0 for never;
    `counts` since the note was begun."""

    feed: str
    position: Position | None = None
    handled: float = 0.0
    counts: Counts = field(default_factory=Counts)


def read_note(folder: Path, feed: str) -> Note:
    """The note on that feed; an empty one where there is none, or one that cannot be read: then it is read anew."""
    try:
        document = json.loads((folder / NOTE_NAME).read_bytes())
        if document["version"] != VERSION or document["feed"] != feed:
            return Note(feed)
        counts = Counts(**{name: int(document["counts"][name]) for name in Counts.__slots__})
        return Note(feed, position_from_json(document["position"]), float(document["handled"]), counts)
    except (OSError, ValueError, KeyError, TypeError):
        return Note(feed)


def write_note(folder: Path, note: Note) -> None:
    """Durable on return. A crash before leaves the old one, and perhaps a file `.new`."""
    document = {
        "version": VERSION,
        "feed": note.feed,
        "position": note.position.to_json() if note.position else None,
        "handled": note.handled,
        "counts": note.counts.to_json(),
    }
    path = folder / NOTE_NAME
    staged = path.with_suffix(".new")
    with staged.open("w") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Feed(Protocol):
    def waiting(self) -> bool:
        """Whether there is anything to gather. Cheap."""
        ...

    def gather(self, gathered: Gathered, more: More) -> Mark:
        """Read what was not handled, to its end as it is now, to a flood, or until `more` says no. OSError."""
        ...

    def end(self) -> Mark:
        """The end as it is now: for a listing that begins after this call and sees what was notified before."""
        ...

    def handled(self, mark: Mark, counts: Counts, now: float) -> None:
        """What lies before `mark` needs no handling any more. Durable on return, where the feed can be read again."""
        ...

    def lag(self, now: float) -> float | None:
        """Seconds since the oldest notification that is not handled was sent; 0.0 where there is none, None where it
        cannot be known."""
        ...


class FileFeed:
    """Of a file that grows. The note lies in `folder`."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._log = LogFile(path)
        self._folder = folder
        self._name = str(path)

    @property
    def note(self) -> Note:
        return read_note(self._folder, self._name)

    def waiting(self) -> bool:
        return self._log.waiting(self.note.position)

    def gather(self, gathered: Gathered, more: More) -> Mark:
        return self._log.read(self.note.position, gathered, more)

    def end(self) -> Mark:
        return self._log.end(self.note.position)

    def handled(self, mark: Mark, counts: Counts, now: float) -> None:
        assert mark is None or isinstance(mark, Position)
        note = self.note
        note.counts.add(counts)
        write_note(self._folder, Note(self._name, mark, now, note.counts))

    def lag(self, now: float) -> float | None:
        sent = self._log.oldest_sent(self.note.position)
        return 0.0 if sent is None else max(0.0, now - sent)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    inode: int
    size: int
    modified_ns: int


class SpoolFeed:
    """Of files that appear in a folder, whole, and are removed once they are handled."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path = path
        self._folder = folder

    def waiting(self) -> bool:
        return next(self._there(), None) is not None

    def gather(self, gathered: Gathered, more: More) -> Mark:
        taken: list[_File] = []
        for file in self._oldest():
            if gathered.flooded or not more():
                break
            gather_file(file.path, gathered)
            taken.append(file)
        return tuple(taken)

    def end(self) -> Mark:
        return tuple(self._oldest())

    def handled(self, mark: Mark, counts: Counts, now: float) -> None:
        """Removes the files of the mark, those excepted that were written since."""
        assert isinstance(mark, tuple)
        note = read_note(self._folder, str(self._path))
        note.counts.add(counts)
        write_note(self._folder, Note(str(self._path), None, now, note.counts))
        for file in mark:
            if _file(file.path) == file:
                file.path.unlink(missing_ok=True)

    def lag(self, now: float) -> float | None:
        oldest = min((file.modified_ns for file in self._there()), default=None)
        return 0.0 if oldest is None else max(0.0, now - oldest / 1e9)

    def _there(self) -> Iterator[_File]:
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and not entry.name.endswith(HALF_WRITTEN):
                        file = _file(Path(entry.path))
                        if file is not None:
                            yield file
        except FileNotFoundError:
            return

    def _oldest(self) -> list[_File]:
        return heapq.nsmallest(SPOOL_FILES_MAX, self._there(), key=lambda file: (file.modified_ns, file.path.name))


def _file(path: Path) -> _File | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return _File(path, facts.st_ino, facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


class PipeFeed:
    """Of what comes through `fd`. While nobody gathers the writer waits, once the pipe is full. `ended`: the other end was
    closed."""

    def __init__(self, fd: int, name: str, folder: Path) -> None:
        self._fd = fd
        self._name = name
        self._folder = folder
        self._rest = b""
        self._skipping = False
        self._line = 0
        self.ended = False

    def waiting(self) -> bool:
        return not self.ended and bool(select.select([self._fd], [], [], 0)[0])

    def gather(self, gathered: Gathered, more: More) -> Mark:
        while not gathered.flooded and more() and self.waiting():
            data = os.read(self._fd, _CHUNK)
            self.ended = not data
            lines = (self._rest + (data or b"\n" * bool(self._rest))).split(b"\n")
            self._rest = lines.pop()
            for line in lines:
                self._line += 1
                if not self._skipping:
                    gathered.add(line, f"{self._name}:{self._line}")
                self._skipping = False
            if len(self._rest) >= LINE_BYTES_MAX:
                if not self._skipping:
                    gathered.counts.lines += 1
                    gathered.complain(f"{self._name}:{self._line + 1}: is longer than {LINE_BYTES_MAX:,} bytes")
                self._rest, self._skipping = b"", True
        return None

    def end(self) -> Mark:
        return None

    def handled(self, mark: Mark, counts: Counts, now: float) -> None:
        note = read_note(self._folder, self._name)
        note.counts.add(counts)
        write_note(self._folder, Note(self._name, None, now, note.counts))

    def lag(self, now: float) -> float | None:
        return None if self.waiting() else 0.0


def kind_of(name: str) -> str:
    """`pipe`, `spool` or `file` (also where nothing is there yet)."""
    if name == STANDARD_INPUT:
        return "pipe"
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return "file"
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return "pipe"
    return "spool" if stat.S_ISDIR(mode) else "file"


@contextmanager
def open_feed(name: str, folder: Path) -> Iterator[Feed]:
    """The feed that a setting names, for the service; its note lies in `folder`. Refused where it cannot be opened."""
    kind = kind_of(name)
    if kind == "file":
        yield FileFeed(Path(name), folder)
    elif kind == "spool":
        yield SpoolFeed(Path(name), folder)
    elif name == STANDARD_INPUT:
        yield PipeFeed(sys.stdin.fileno(), "standard input", folder)
    else:
        try:
            # For writing, too: so it does not end when a writer goes away and another comes.
            fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"the feed {name} cannot be opened: {error.strerror}") from error
        try:
            yield PipeFeed(fd, name, folder)
        finally:
            os.close(fd)


def gather_once(name: str, gathered: Gathered) -> None:
    """All of a file, of the files of a folder, or of a pipe up to its end; or up to a flood. Nothing is noted or removed.
    OSError."""
    kind = kind_of(name)
    if kind == "spool":
        SpoolFeed(Path(name), Path(name)).gather(gathered, lambda: True)
    elif kind == "pipe":
        fd = sys.stdin.fileno() if name == STANDARD_INPUT else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        pipe = PipeFeed(fd, "standard input" if name == STANDARD_INPUT else name, Path())
        while not pipe.ended and not gathered.flooded:
            select.select([fd], [], [])
            pipe.gather(gathered, lambda: True)
        if name != STANDARD_INPUT:
            os.close(fd)
    else:
        gather_file(Path(name), gathered)


def lag_of(name: str, folder: Path, now: float) -> float | None:
    """As `Feed.lag`, for whoever does not follow the feed."""
    kind = kind_of(name)
    if kind == "pipe":
        return None
    return (FileFeed if kind == "file" else SpoolFeed)(Path(name), folder).lag(now)


def status_of(name: str, folder: Path, now: float) -> Mapping[str, object]:
    """What people and monitors are told of a feed."""
    note = read_note(folder, "standard input" if name == STANDARD_INPUT else name)
    return {
        "feed": name,
        "lag_seconds": lag_of(name, folder, now),
        "handled": note.handled or None,
        **note.counts.to_json(),
    }
