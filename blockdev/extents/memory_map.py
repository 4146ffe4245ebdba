"""A key-value store in memory, for the offline reader, tests and the simulation.

Transactions are atomic in that a failed one is undone; a `snapshot` is the whole content, cheap enough for crash tests.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blockdev.extents.extent_map import TABLES, Transaction


class _MemoryTransaction:
    def __init__(self, store: "MemoryKeyValueStore") -> None:
        self._store = store
        self.undo: list[tuple[str, bytes, bytes | None]] = []

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._store.tables[table].get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        items, keys = self._store.tables[table], self._store.keys[table]
        self.undo.append((table, key, items.get(key)))
        if key not in items:
            insort(keys, key)
        items[key] = value

    def delete(self, table: str, key: bytes) -> None:
        items, keys = self._store.tables[table], self._store.keys[table]
        if key in items:
            self.undo.append((table, key, items.pop(key)))
            del keys[bisect_left(keys, key)]

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in items:
            self.put(table, key, value)

    def drop(self, table: str) -> None:
        for key in list(self._store.keys[table]):
            self.delete(table, key)

    def scan(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        items, keys = self._store.tables[table], self._store.keys[table]
        for key in keys[bisect_left(keys, start) :]:
            if key in items:
                yield key, items[key]

    def roll_back(self) -> None:
        for table, key, value in reversed(self.undo):
            if value is None:
                self.delete(table, key)
            else:
                self.put(table, key, value)


class MemoryKeyValueStore:
    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self.keys: dict[str, list[bytes]] = {table: [] for table in TABLES}

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        transaction = _MemoryTransaction(self)
        try:
            yield transaction
        except BaseException:
            transaction.roll_back()
            raise
        assert write or not transaction.undo, "a read transaction wrote"

    def clear(self) -> None:
        for table in TABLES:
            self.tables[table].clear()
            self.keys[table].clear()

    def close(self) -> None:
        """Nothing to give back; the content stays, as a file would."""
