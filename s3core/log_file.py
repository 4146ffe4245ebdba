"""Lines of a file that grows, is rotated, and is truncated.

One rule: a place in the file is believed only where the bytes before it are those that were read: file numbers are given
anew and truncated files grow again. A place that is not found is told, and reading begins at the file's beginning.

| the file was | and then |
| --- | --- |
| renamed, a new one made (logrotate `create`) | the old one is read to its end, then those between, then the new one |
| copied and truncated (`copytruncate`) | the copy is found by its bytes and read to its end, then the file |
| rotated and compressed before it was read | told |

Rotated files are looked for beside the file: those whose names begin with its own. The old one is left when the next has
something in it: the writer has changed over.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

LINE_BYTES_MAX = 1 << 20
"""SQS and SNS carry 256 KiB. A longer line is skipped, never held."""
TAIL_BYTES = 256
PACKED = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z")
LOOK_EVERY = 256
"""Lines between two looks at whether to go on."""

Take = Callable[[bytes | None, Path, int], bool]
"""Is given a line with its end, or None for one that is too long, its file and number; says whether to go on behind it."""


@dataclass(frozen=True, slots=True)
class Position:
    """`offset` bytes and `line` lines of the file with the number `inode` were read; `tail` is the SHA-256 of the last
    TAIL_BYTES of them, "" at the beginning."""

    inode: int
    offset: int = 0
    line: int = 0
    tail: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def position_from_json(document: Any) -> Position | None:
    """None for anything but what `to_json` gave."""
    fields: list[Any] = [document.get(name) for name in Position.__slots__] if isinstance(document, dict) else []
    return Position(*fields) if [type(one) for one in fields] == [int, int, int, str] else None


class LogFile:
    """`path` need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(
        self,
        start: Position | None,
        take: Take,
        more: Callable[[], bool] = lambda: True,
        lost: Callable[[], None] = lambda: None,
    ) -> Position | None:
        """Give whole lines from `start` on (None: from the beginning) to `take`, up to the end, or until `take` or `more`
        says no. `lost` is called where the place was not found, and reading begins anew. Returns how far it came."""
        return self._go(start, take, more, lost)

    def end(self, start: Position | None) -> Position | None:
        """The place behind the last whole line, without a look at what lies between."""
        return self._go(start, None, lambda: True, lambda: None)

    def waiting(self, start: Position | None) -> bool:
        """Whether something was written that is not read."""
        chain, _, offset = self._chain(start)
        return any(_size(path) > (offset if at == 0 else 0) for at, path in enumerate(chain))

    def first_waiting(self, start: Position | None) -> tuple[bytes, float] | None:
        """The first line that was not read, and when its file was last written, in Unix seconds."""
        chain, _, offset = self._chain(start)
        for at, path in enumerate(chain):
            try:
                with path.open("rb") as file:
                    file.seek(offset if at == 0 else 0)
                    line = file.readline(LINE_BYTES_MAX)
                    if line:
                        return line, os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:
                continue
        return None

    def _go(
        self, start: Position | None, take: Take | None, more: Callable[[], bool], lost: Callable[[], None]
    ) -> Position | None:
        chain, found, offset = self._chain(start)
        if not found:
            lost()
        reached = start if found else None
        for at, path in enumerate(chain):
            last = at == len(chain) - 1
            line = reached.line if at == 0 and reached is not None else 0
            try:
                file = path.open("rb")
            except FileNotFoundError:
                # Not there yet, or rotated at this moment: the next look finds it.
                break
            with file:
                file.seek(offset if at == 0 else 0)
                done = True
                for number, data in _lines(file, line, whole=last):
                    line = number
                    if take is not None and (not take(data, path, number) or (number % LOOK_EVERY == 0 and not more())):
                        done = False
                        break
                reached = _position(file, line)
            # The writer may go on with a file that was renamed until the next has something in it.
            if not done or (not last and not any(map(_size, chain[at + 1 :]))):
                break
        return reached

    def _chain(self, start: Position | None) -> tuple[list[Path], bool, int]:
        """The files to read, the oldest first; whether the first is that of `start`; where to begin in it."""
        if start is None:
            return [self.path], True, 0
        files = [*_rotated(self.path), self.path]
        for same_file in (True, False):
            for at in range(len(files) - 1, -1, -1):
                if (same_file or start.offset) and _fits(files[at], start, same_file=same_file):
                    return files[at:], True, start.offset
        return [self.path], start.offset == 0, 0


def read_whole(path: Path, take: Take) -> None:
    """Give all lines of a file that nobody writes any more to `take`, or until it says no; the last needs no end. OSError."""
    with path.open("rb") as file:
        for number, data in _lines(file, 0, whole=False):
            if not take(data, path, number):
                return


def _rotated(path: Path) -> list[Path]:
    """Those beside it that were once it, in the order in which they were last written."""
    found: list[tuple[int, str]] = []
    try:
        with os.scandir(path.parent) as entries:
            for entry in entries:
                rest = entry.name.removeprefix(path.name)
                if rest != entry.name and rest[:1] in (".", "-", "_") and not rest.endswith(PACKED) and entry.is_file():
                    found.append((entry.stat().st_mtime_ns, entry.name))
    except FileNotFoundError:
        return []
    return [path.parent / name for _, name in sorted(found)]


def _fits(path: Path, start: Position, *, same_file: bool) -> bool:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size < start.offset or (same_file and facts.st_ino != start.inode):
                return False
            return _tail(file, start.offset) == start.tail
    except FileNotFoundError:
        return False


def _tail(file: BinaryIO, offset: int) -> str:
    length = min(TAIL_BYTES, offset)
    return hashlib.sha256(os.pread(file.fileno(), length, offset - length)).hexdigest() if length else ""


def _position(file: BinaryIO, line: int) -> Position:
    offset = file.tell()
    return Position(os.fstat(file.fileno()).st_ino, offset, line, _tail(file, offset))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _lines(file: BinaryIO, before: int, *, whole: bool) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, the first of which is `before` + 1; None for one that is too long. When it ends, the file
    stands behind the last line that was given. `whole`: a line without an end is not given, since it is being written."""
    while True:
        at = file.tell()
        data = file.readline(LINE_BYTES_MAX)
        ended = data.endswith(b"\n")
        long = len(data) == LINE_BYTES_MAX and not ended
        while long and not ended:
            more = file.readline(LINE_BYTES_MAX)
            if not more:
                break
            ended = more.endswith(b"\n")
        if not data or (whole and not ended):
            file.seek(at)
            return
        before += 1
        yield before, None if long else data
