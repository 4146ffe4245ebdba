"""The key-value store on LMDB: the only module that imports lmdb.

One rule: MDB_NOSYNC. The map is a cache of bucket and journal: a killed process loses nothing, and after an unclean stop
of the *host* the file is thrown away (`open_map_store` compares the boot id it left behind) and rebuilt from the bucket.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from blockdev.errors import LocalDiskFailed
from blockdev.extents.extent_map import TABLES, Transaction

MAP_BYTES_MAX = 1 << 40
"""Address space reserved for the memory map; the file itself grows as needed."""


class _LmdbTransaction:
    def __init__(self, txn: Any, databases: dict[str, Any]) -> None:
        self._txn = txn
        self._databases = databases

    def get(self, table: str, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, db=self._databases[table])
        return value

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._databases[table])

    def delete(self, table: str, key: bytes) -> None:
        self._txn.delete(key, db=self._databases[table])

    def scan(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(self._databases[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            yield from cursor.iternext(keys=True, values=True)


class LmdbKeyValueStore:
    """Raises LocalDiskFailed when the disk is full or the file is damaged."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(
                str(path),
                map_size=MAP_BYTES_MAX,
                max_dbs=len(TABLES),
                sync=False,
                metasync=False,
                max_readers=64,
                max_spare_txns=8,
            )
            self._databases = {table: self._env.open_db(table.encode()) for table in TABLES}
        except lmdb.Error as error:
            raise LocalDiskFailed(f"{path}: the extent map cannot be opened: {error}") from error
        self.path = path

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        try:
            with self._env.begin(write=write) as txn:
                yield _LmdbTransaction(txn, self._databases)
        except lmdb.Error as error:
            raise LocalDiskFailed(f"{self.path}: extent map: {error}") from error

    def clear(self) -> None:
        with self._env.begin(write=True) as txn:
            for database in self._databases.values():
                txn.drop(database, delete=False)

    def close(self) -> None:
        self._env.close()


def open_map_store(path: Path, boot_id: str) -> LmdbKeyValueStore:
    """Open the map under `path`, or an empty one when it was last used before the host's latest boot without having
    been closed cleanly. `boot_id` is the host's (/proc/sys/kernel/random/boot_id)."""
    marker = path / "boot-id"
    if path.exists() and (not marker.exists() or marker.read_text() not in (boot_id, "clean")):
        shutil.rmtree(path)
    store = LmdbKeyValueStore(path)
    marker.write_text(boot_id)
    return store


def close_map_store(store: LmdbKeyValueStore) -> None:
    """Sync and close; the next start may trust the file after a reboot too."""
    store._env.sync(True)
    store.close()
    (store.path / "boot-id").write_text("clean")
