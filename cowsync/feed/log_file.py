"""A feed in a file that grows: what its lines name, gathered.

One rule: where reading goes on is `s3core.log_file`'s. A place that is not found is told, and what was missed is the next
listing's.
"""

from collections.abc import Callable
from pathlib import Path

from cowsync.feed.gathered import LINE_BYTES_MAX, Gathered
from cowsync.feed.message import message_of
from s3core import log_file
from s3core.log_file import Position, position_from_json

__all__ = ["LogFile", "Position", "gather_file", "position_from_json"]


class LogFile:
    """`path` need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._lines = log_file.LogFile(path)

    def read(
        self, start: Position | None, gathered: Gathered, more: Callable[[], bool] = lambda: True
    ) -> Position | None:
        """Gather whole lines from `start` on (None: from the beginning) to the end, to a flood, or until `more` says no.
        Returns how far it came."""

        def lost() -> None:
            gathered.counts.lost += 1

        return self._lines.read(start, _into(gathered), more, lost)

    def end(self, start: Position | None) -> Position | None:
        """The place behind the last whole line, without a look at what lies between."""
        return self._lines.end(start)

    def waiting(self, start: Position | None) -> bool:
        """Whether something was written that is not read."""
        return self._lines.waiting(start)

    def oldest_sent(self, start: Position | None) -> float | None:
        """When the first notification that is not read was sent, or written where it does not tell."""
        found = self._lines.first_waiting(start)
        if found is None:
            return None
        line, written = found
        return min((hint.sent for hint in message_of(line).hints if hint.sent is not None), default=written)


def gather_file(path: Path, gathered: Gathered) -> None:
    """All lines of a file that nobody writes any more, or those up to a flood; the last needs no end. OSError."""
    log_file.read_whole(path, _into(gathered))


def _into(gathered: Gathered) -> log_file.Take:
    def take(data: bytes | None, path: Path, number: int) -> bool:
        if data is None:
            gathered.counts.lines += 1
            gathered.complain(f"{path}:{number}: is longer than {LINE_BYTES_MAX:,} bytes")
        else:
            gathered.add(data, f"{path}:{number}")
        return not gathered.flooded

    return take
