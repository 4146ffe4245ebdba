"""A memory store that counts what is asked of it, by kind of object: for tests of what things cost.

One rule: it counts calls, not time, so that a slow machine changes nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from s3core.memory import MemoryStore
from s3core.store import Body, Buffer, ObjectInfo, joined


def kind_of(key: str) -> str:
    """`log`, `ext`, `seg`, `page`, `root`, `head`, ..."""
    return key.partition("/")[0]


@dataclass(slots=True)
class Counts:
    """Requests by kind, and their bytes."""

    gets: Counter[str] = field(default_factory=Counter)
    puts: Counter[str] = field(default_factory=Counter)
    bytes_up: Counter[str] = field(default_factory=Counter)
    bytes_down: Counter[str] = field(default_factory=Counter)
    lists: int = 0


class CountingStore(MemoryStore):
    """`counted` may be replaced at any time to begin anew."""

    counted = Counts()

    def begin(self) -> None:
        self.counted = Counts()

    def _down(self, key: str, body: Body) -> Body:
        self.counted.bytes_down[kind_of(key)] += len(body.data)
        return body

    def _up(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        self.counted.puts[kind_of(key)] += 1
        self.counted.bytes_up[kind_of(key)] += len(joined(data))

    def get(self, key: str) -> Body:
        self.counted.gets[kind_of(key)] += 1
        return self._down(key, super().get(key))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        self.counted.gets[kind_of(key)] += 1
        return self._down(key, super().get_range(key, offset, length))

    def head(self, key: str) -> ObjectInfo:
        self.counted.gets[kind_of(key)] += 1
        return super().head(key)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        self._up(key, data)
        return super().put(key, data, metadata=metadata)

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        self._up(key, data)
        return super().put_if_absent(key, data, metadata=metadata)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        self.counted.lists += 1
        return super().list(prefix, start_after=start_after)
