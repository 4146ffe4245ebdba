"""The key-value store on LMDB: the only module that imports lmdb.

One rule: the file is a cache, and is trusted only while nothing speaks against it. Every item carries a CRC32C over
table, key and value. The pages between, which LMDB believes, are covered by a seal (`extents.seal`) that is written
at an orderly close and verified before the next open. Without one (the process was killed, died of a signal, met damage;
the host went down) the map is thrown away and rebuilt from the bucket. So MDB_NOSYNC costs nothing. While it runs, an item
that LMDB no longer finds, or an old one that comes back, is told from what was put by `presence`.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lmdb

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat, LocalDiskFailed
from blockdev.extents import presence
from blockdev.extents.extent_map import EXTENTS, TABLES, Transaction
from blockdev.extents.presence import NamedTags, NumberedTags, StoredTags, Tags, tag_of
from blockdev.extents.seal import seal_file, verify_file

log = logging.getLogger(__name__)

MAP_BYTES_MAX = 1 << 40
"""Address space reserved for the memory map; the file itself grows as needed."""
DATA, LOCK, SEAL, TAGS = "data.mdb", "lock.mdb", "seal", "tags"
_CRC_BYTES = 4
_SEEDS = {table: crc32c(table.encode()) for table in TABLES}


def _no_tags(table: str) -> Tags:
    return NumberedTags() if table == EXTENTS else NamedTags()


class _LmdbTransaction:
    def __init__(self, txn: Any, store: "LmdbKeyValueStore", version: int) -> None:
        self._txn = txn
        self._store = store
        self._databases = store.databases
        self._version = version
        self.undo: list[Callable[[], None]] = []
        """What gives the tags back as they were before this transaction, newest last."""

    def get(self, table: str, key: bytes) -> bytes | None:
        item: bytes | None = self._txn.get(key, db=self._databases[table])
        tags = self._store.tags[table]
        if item is None:
            if tags.get(key):
                self._refuse("is not found", table, key)
            return None
        return self._opened(table, key, item, tags)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        crc = crc32c(value, crc32c(key, _SEEDS[table]))
        self._txn.put(key, crc.to_bytes(_CRC_BYTES, "little") + value, db=self._databases[table])
        self._tag(table, key, tag_of(crc))

    def delete(self, table: str, key: bytes) -> None:
        self._txn.delete(key, db=self._databases[table])
        self._tag(table, key, 0)

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        seed = _SEEDS[table]
        crcs = [crc32c(value, crc32c(key, seed)) for key, value in items]
        sealed = [
            (key, crc.to_bytes(_CRC_BYTES, "little") + value) for (key, value), crc in zip(items, crcs, strict=True)
        ]
        self.undo.append(self._store.tags[table].put_many([key for key, _ in items], [tag_of(crc) for crc in crcs]))
        with self._txn.cursor(self._databases[table]) as cursor:
            cursor.putmulti(sealed)

    def drop(self, table: str) -> None:
        self._txn.drop(self._databases[table], delete=False)
        tags = self._store.tags
        self.undo.append(partial(tags.__setitem__, table, tags[table]))
        tags[table] = _no_tags(table)

    def scan(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        tags = self._store.tags[table]
        numbered = tags if isinstance(tags, NumberedTags) else None
        changes = len(self.undo)
        at = int.from_bytes(start, "big") if numbered is not None else 0
        count, before = 0, b""
        with self._txn.cursor(self._databases[table]) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                for key, item in cursor.iternext(keys=True, values=True):
                    value = self._opened(table, key, item, tags)
                    if numbered is not None:
                        number = int.from_bytes(key, "big")
                        if numbered.following(at) != number and changes == len(self.undo):
                            self._refuse("is not found, or out of place", table, key)
                        at = number + 1
                    elif key <= before:
                        self._refuse("comes twice, or out of order", table, key)
                    count, before = count + 1, key
                    yield key, value
        if changes != len(self.undo):
            return  # changed while it was read
        if numbered is not None:
            if numbered.following(at) >= 0:
                self._refuse("is not found", table, at.to_bytes(8, "big"))
        elif isinstance(tags, NamedTags) and not start and count != len(tags):
            self._refuse(f"is not found ({count} of {len(tags)} are)", table, b"")

    def _tag(self, table: str, key: bytes, tag: int) -> None:
        tags = self._store.tags[table]
        self.undo.append(partial(tags.set, key, tags.get(key)))
        tags.set(key, tag)

    def _opened(self, table: str, key: bytes, item: bytes, tags: Tags) -> bytes:
        """The value of a stored item. Raises CorruptFormat."""
        value = item[_CRC_BYTES:]
        crc = crc32c(value, crc32c(key, _SEEDS[table]))
        if crc != int.from_bytes(item[:_CRC_BYTES], "little"):
            self._store.damaged = True
            raise CorruptFormat("the checksum of an item does not hold", what=f"extent map, {table} {key.hex()}")
        if tags.get(key) != tag_of(crc):
            self._refuse("is not the one that was put last", table, key)
        return value

    def _refuse(self, said: str, table: str, key: bytes) -> None:
        """Raise CorruptFormat, unless another transaction has changed tags since this one began: then they say nothing."""
        store = self._store
        mine = store.writer is self or (store.writer is None and store.version == self._version)
        if mine:
            store.damaged = True
            raise CorruptFormat(f"an item {said}", what=f"extent map, {table} {key.hex()}")


class LmdbKeyValueStore:
    """Raises LocalDiskFailed when the disk is full or LMDB finds its file damaged, CorruptFormat for a damaged item."""

    def __init__(self, path: Path, owner: str = "", tags: StoredTags | None = None) -> None:
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
            self.tags = {table: _no_tags(table) for table in TABLES}
            self._load_tags(tags)
        except lmdb.Error as error:
            raise LocalDiskFailed(f"{path}: the extent map cannot be opened: {error}") from error
        self.writer: _LmdbTransaction | None = None
        self.version = 0
        """Of the tags: another one after each write transaction."""
        self.path = path
        self.owner = owner
        self.damaged = False
        """Something in it did not hold, or LMDB failed: it will not be sealed."""

    def _load_tags(self, stored: StoredTags | None) -> None:
        """From a file that is empty or was just verified; those of the extents from what was stored with it."""
        if stored is not None:
            self.tags[EXTENTS] = NumberedTags({place: bytearray(content) for place, content in stored.chunks})
        with self._env.begin() as txn:
            for table, tags in self.tags.items():
                if table == EXTENTS and stored is not None:
                    continue
                for key, item in txn.cursor(self.databases[table]):
                    tags.set(key, tag_of(int.from_bytes(item[:_CRC_BYTES], "little")))

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[Transaction]:
        try:
            version = self.version  # before the transaction: a commit between the two shows as another version
            with self._env.begin(write=write) as txn:
                made = _LmdbTransaction(txn, self, version)
                if not write:
                    yield made
                    return
                self.writer = made
                try:
                    yield made
                    txn.commit()
                except BaseException:
                    for undo in reversed(made.undo):
                        undo()
                    raise
                finally:
                    self.version += 1
                    self.writer = None
        except lmdb.Error as error:
            self.damaged = True
            raise LocalDiskFailed(f"{self.path}: extent map: {error}") from error

    def clear(self) -> None:
        with self.begin(write=True) as txn:
            for table in TABLES:
                txn.drop(table)

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
    stored: StoredTags | None = None
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
            stored = _stored_tags(path)
            (path / SEAL).unlink()
            (path / TAGS).unlink(missing_ok=True)
            (path / LOCK).unlink(missing_ok=True)  # readers of a process that has gone
    return LmdbKeyValueStore(path, owner, stored)


def _stored_tags(path: Path) -> StoredTags | None:
    """The tags that were written with the seal that is there. None: there are none, or they are damaged, which costs
    the time of reading every item."""
    try:
        stored = presence.decode((path / TAGS).read_bytes())
        if stored.seal_crc != crc32c((path / SEAL).read_bytes()):
            raise CorruptFormat("belongs to another seal", what=str(path / TAGS))
    except FileNotFoundError:
        return None
    except (CorruptFormat, OSError) as error:
        log.warning("%s; every item of the extent map is read", error)
        return None
    return stored


def close_map_store(store: LmdbKeyValueStore) -> None:
    """Sync, close and seal, so that the next start may trust the file. A store that met damage is thrown away.

    A crash before the seal leaves a map that is built anew, one between seal and tags a start that reads every item."""
    if store.damaged:
        discard_map_store(store)
        return
    store.sync()
    store.close()
    seal = store.path / SEAL
    seal_file(store.path / DATA, seal, store.owner)
    tags = store.tags[EXTENTS]
    assert isinstance(tags, NumberedTags)
    (store.path / TAGS).write_bytes(presence.encode(StoredTags(crc32c(seal.read_bytes()), tags.chunks())))


def discard_map_store(store: LmdbKeyValueStore) -> None:
    """Close, and leave nothing for the next start to trust."""
    store.close()
    shutil.rmtree(store.path)
