"""What was gathered from a feed: the keys to look at, each once, and counts of the rest.

One rule: bounded. Keys beyond the limit are a flood: nothing more is gathered, and a listing is cheaper than asking.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from cowsync.feed.message import message_of
from s3core.log_file import LINE_BYTES_MAX

__all__ = ["COMPLAINTS_MAX", "LINE_BYTES_MAX", "Counts", "Gathered", "Scope"]
COMPLAINTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Scope:
    """Which hints count: those of `bucket` with a key that begins with `prefix` and, without it, is one of the mirror's
    (`belongs`, told in UTF-8). `keys_max` distinct keys at most."""

    bucket: str
    prefix: str
    belongs: Callable[[bytes], bool]
    keys_max: int


@dataclass(slots=True)
class Counts:
    """Of lines, those that were wrong (`malformed`), hints that were taken, those of other buckets (`foreign`), of keys
    that do not belong (`outside`). `lost`: times that the place in the feed was not found again, so that it was read
    from its beginning. `floods`: times that a listing was begun in its stead."""

    lines: int = 0
    malformed: int = 0
    hints: int = 0
    foreign: int = 0
    outside: int = 0
    lost: int = 0
    floods: int = 0

    def add(self, other: "Counts") -> None:
        for name in Counts.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in Counts.__slots__}


@dataclass(slots=True)
class Gathered:
    """`keys` are below the scope's prefix. `complaints` say of the first wrong lines where they are. `oldest` is when the
    oldest hint was sent, in Unix seconds. `flooded`: there are more keys than the scope takes."""

    scope: Scope
    keys: set[str] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)
    complaints: list[str] = field(default_factory=list)
    oldest: float | None = None
    flooded: bool = False

    def add(self, line: bytes, where: str) -> None:
        """One line without its end. `where` names file and line."""
        self.counts.lines += 1
        if not line.strip():
            return
        message = message_of(line)
        if message.wrong:
            self.complain(f"{where}: {message.wrong}")
        for hint in message.hints:
            if hint.bucket != self.scope.bucket:
                self.counts.foreign += 1
                continue
            taken = [key for key in map(self._relative, hint.keys) if key]
            if not taken:
                self.counts.outside += 1
                continue
            self.counts.hints += 1
            self.keys.update(taken)
            if hint.sent is not None and (self.oldest is None or hint.sent < self.oldest):
                self.oldest = hint.sent
        if len(self.keys) > self.scope.keys_max:
            self.flooded = True

    def complain(self, what: str) -> None:
        """A line that cannot be understood is counted, and skipped."""
        self.counts.malformed += 1
        if len(self.complaints) < COMPLAINTS_MAX:
            self.complaints.append(what)

    def _relative(self, key: str) -> str:
        if not key.startswith(self.scope.prefix):
            return ""
        rest = key[len(self.scope.prefix) :]
        return rest if rest and self.scope.belongs(rest.encode()) else ""
