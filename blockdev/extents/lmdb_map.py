"""The key-value store on LMDB: the only module that imports lmdb.

One rule: the file is a cache, and is trusted only while nothing speaks against it. Every item carries a CRC32C over
table, key and value. The pages between, which LMDB believes, are covered by a seal (`extents.seal`) that is written
at an orderly close and verified before the next open. Without one (the process was killed, died of a signal, met damage;
the host went down) the map is thrown away and rebuilt from the bucket. So MDB_NOSYNC costs nothing.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat, LocalDiskFailed
from blockdev.extents.extent_map import TABLES, Transaction
from blockdev.extents.seal import seal_file, verify_file

log = logging.getLogger(__name__)

MAP_BYTES_MAX = 1 << 40
"""Address space reserved for the memory map; the file itself grows as needed."""
DATA, LOCK, SEAL = "data.mdb", "lock.mdb", "seal"
_CRC_BYTES = 4
_SEEDS = {table: crc32c(table.encode()) for table in TABLES}


class _LmdbTransaction:
    def __init__(self, txn: Any, store: "LmdbKeyValueStore") -> None:
        self._txn = txn
        self._store = store
        self._databases = store.databases

    def get(self, table: str, key: bytes) -> bytes | None:
        item: bytes | None = self._txn.get(key, db=self._databases[table])
        return None if item is None else self._store.opened(table, key, item)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        crc = crc32c(value, crc32c(key, _SEEDS[table]))
        self._txn.put(key, crc.to_bytes(_CRC_BYTES, "little") + value, db=self._databases[table])

    def delete(self, table: str, key: bytes) -> None:
        self._txn.delete(key, db=self._databases[table])

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        seed = _SEEDS[table]
        sealed = [
            (key, crc32c(value, crc32c(key, seed)).to_bytes(_CRC_BYTES, "little") + value) for key, value in items
        ]
        with self._txn.cursor(self._databases[table]) as cursor:
            cursor.putmulti(sealed)

    def drop(self, table: str) -> None:
        self._txn.drop(self._databases[table], delete=False)

    def scan(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(self._databases[table]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for key, item in cursor.iternext(keys=True, values=True):
                yield key, self._store.opened(table, key, item)


class LmdbKeyValueStore:
    """Raises LocalDiskFailed when the disk is full or LMDB finds its file damaged, CorruptFormat for a damaged item."""

    def __init__(self, path: Path, owner: str = "") -> None:
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
            self.databases = {table: self._env.open_db(table.encode()) for table in TABLES}
        except lmdb.Error as error:
            raise LocalDiskFailed(f"{path}: the extent map cannot be opened: {error}") from error
        self.path = path
        self.owner = owner
        self.damaged = False
        """Something in it did not hold, or LMDB failed: it will not be sealed."""

    def opened(self, table: str, key: bytes, item: bytes) -> bytes:
        """The value of a stored item. Raises CorruptFormat."""
        value = item[_CRC_BYTES:]
        if crc32c(value, crc32c(key, _SEEDS[table])) != int.from_bytes(item[:_CRC_BYTES], "little"):
            self.damaged = True
            raise CorruptFormat("the checksum of an item does not hold", what=f"extent map, {table} {key.hex()}")
        return value

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        try:
            with self._env.begin(write=write) as txn:
                yield _LmdbTransaction(txn, self)
        except lmdb.Error as error:
            self.damaged = True
            raise LocalDiskFailed(f"{self.path}: extent map: {error}") from error

    def clear(self) -> None:
        with self._env.begin(write=True) as txn:
            for database in self.databases.values():
                txn.drop(database, delete=False)

    def sync(self) -> None:
        """All that was committed is durable."""
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            self.damaged = True
            raise LocalDiskFailed(f"{self.path}: extent map: {error}") from error

    def close(self) -> None:
        self._env.close()


def open_map_store(path: Path, owner: str) -> LmdbKeyValueStore:
    """The map of `owner` under `path`, as it was closed in order, or an empty one. Reads the whole file first.

    The seal goes before LMDB may write. A crash in between costs a rebuild; a seal that comes back after a power loss
    holds only if the file came back as it was too, and that is an older map, which the log brings forward."""
    if path.exists():
        try:
            verify_file(path / DATA, path / SEAL, owner)
        except FileNotFoundError:
            log.info("the local extent map was not closed in order; it is built anew from the bucket")
            shutil.rmtree(path)
        except (CorruptFormat, OSError) as error:
            log.warning("the local extent map is damaged (%s); it is built anew from the bucket", error)
            shutil.rmtree(path)
        else:
            (path / SEAL).unlink()
            (path / LOCK).unlink(missing_ok=True)  # readers of a process that has gone
    return LmdbKeyValueStore(path, owner)


def close_map_store(store: LmdbKeyValueStore) -> None:
    """Sync, close and seal, so that the next start may trust the file. A store that met damage is thrown away."""
    if store.damaged:
        discard_map_store(store)
        return
    store.sync()
    store.close()
    seal_file(store.path / DATA, store.path / SEAL, store.owner)


def discard_map_store(store: LmdbKeyValueStore) -> None:
    """Close, and leave nothing for the next start to trust."""
    store.close()
    shutil.rmtree(store.path)
