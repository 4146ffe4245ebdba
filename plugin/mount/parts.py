"""From a storage of storage.cfg to the file system that its mount serves."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from plugin.archive.tap import IndexTap
from plugin.archive_source import put_index
from plugin.bucket import StorageBucket
from plugin.cache import Cache
from plugin.configuration import Storage
from plugin.counters import Counters
from plugin.layout import DIRECTORIES, sidecars, volume_of_key
from plugin.mount.filesystem import Filesystem, World
from plugin.mount.freshness import RETRY_S, Freshness
from plugin.mount.handles import Finished, Sink, Tap, clean_local
from plugin.mount.naming import Place as NamedPlace
from plugin.mount.naming import predict
from plugin.place import Place, is_text
from plugin.protection import delete_volume, locks
from plugin.range_reader import ReadPool
from plugin.refresh import refresh
from plugin.upload.stream import KeyChoice, Uploaded
from plugin.upload.uploader import Uploader, UploadSettings
from s3core.settings import Config

log = logging.getLogger(__name__)

REFRESH_S: Final = 30.0
"""What a refresh that somebody on the mount began may take."""
MEMORY_BYTES: Final = 80 << 20
"""What four parts of 16 MiB on their way and one that fills take: then the disk is for a store that stalls."""
READ_CACHE_BYTES: Final = 64 << 20
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


@contextmanager
def opened_filesystem(storage: Storage, config: Config) -> Iterator[tuple[Filesystem, Uploader]]:
    """The storage's file system; afterwards what was not finished is aborted. What a dead predecessor left on this host is
    removed. Asks the store nothing, but for the key slots where the storage encrypts. ConfigError, CredentialsError,
    StoreError, OSError."""
    with ExitStack() as stack:
        place = Place(storage, config)
        stack.callback(place.close)
        keyring = place.keyring()
        uploader = Uploader(
            place.steady,
            place.directory / "uploads",
            UploadSettings(
                part_bytes=storage.part_bytes,
                uploads=storage.uploads,
                memory_bytes=MEMORY_BYTES,
                spool_bytes=max(config.pve.spool_bytes, 2 * storage.part_bytes),
                patience_s=config.pve.upload_wait_s,
                equal_parts=storage.preset == "r2",
            ),
            keyring=keyring,
            prefix=storage.prefix,
        )
        stack.callback(uploader.close)
        pool = ReadPool(
            place.plain(place.steady),
            threads=storage.uploads,
            cache_bytes=READ_CACHE_BYTES,
            wait_s=config.pve.read_wait_s,
        )
        stack.callback(pool.close)
        scratch, incoming = place.directory / "scratch", place.directory / "incoming"
        if removed := clean_local(scratch) + clean_local(incoming):
            log.warning("removed %d files and directories that a dead mount left in %s", removed, place.directory)
        world = World(
            prefix=storage.prefix,
            bucket=place.hasty,
            catalogue=place.catalogue,
            sender=Budgeted(uploader, place.counters, storage.part_bytes),
            readers=pool,
            fresh=Freshness(
                place.catalogue,
                partial(_refresh, place),
                config.pve.refresh_s,
                retry_s=min(RETRY_S, config.pve.refresh_s),
            ),
            scratch=scratch,
            incoming=incoming,
            quota=storage.quota_bytes,
            delete=partial(_delete, place),
            written=partial(_after_writing, place),
            deleted=partial(_after_deleting, place),
            tap=tap_of,
            locked=locks(storage),
        )
        yield Filesystem(world), uploader


class Budgeted:
    """A sender that asks the storage's budgets before it begins. Deletes ask nobody."""

    def __init__(self, sender: Uploader, counters: Counters, part_bytes: int) -> None:
        self._sender, self._counters, self._part_bytes = sender, counters, part_bytes

    def stream(self, key: KeyChoice) -> Sink:
        """Refused beyond a budget that refuses; of a stream only its beginning is known: three requests."""
        self._counters.admit("an upload", requests=3)
        return self._sender.stream(key)

    def file(self, path: Path, key: str) -> Uploaded:
        self._counters.admit(f"uploading {key}", requests=3 + path.stat().st_size // self._part_bytes)
        return self._sender.file(path, key)


def tap_of(place: NamedPlace) -> Tap | None:
    """What makes the index of a backup on its way; None for other files."""
    likely = volume_of_key(predict(place.path, _ZSTD))
    return IndexTap() if likely is not None and likely.content == "backup" else None


def keep_copy(cache: Cache, path: str, finished: Finished) -> None:
    """A download that was kept whole on this host becomes the cached copy of its object; a copy of what was there before
    goes."""
    told, local = finished.uploaded, finished.local
    if path.startswith(f"{DIRECTORIES['backup']}/"):
        return
    if local is None:
        cache.drop(path)
    else:
        cache.fetch(path, told.etag, told.plain_bytes, partial(_moved, local))


def _moved(local: Path, target: Path) -> None:
    """Durable first: the note beside a cached copy says that it is whole, after a loss of power too."""
    handle = os.open(local, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(local, target)


def _refresh(place: Place) -> None:
    refresh(
        place.catalogue,
        place.hasty,
        place.prefix,
        deadline=time.monotonic() + REFRESH_S,
        opened=place.opened if place.storage.encryption else None,
        is_text=is_text,
        read=lambda entry: place.read_small(entry.key),
    )


def _after_writing(place: Place, path: str, finished: Finished) -> None:
    keep_copy(place.cache, path, finished)
    volume = volume_of_key(path)
    if volume is not None and finished.index is not None:
        put_index(place.steady, place.keyring(), place.storage, volume, finished.index)


def _delete(place: Place, path: str) -> tuple[str, ...]:
    """A backup goes with what lies beside it, as Proxmox VE deletes it, and stays while something locks it."""
    key = place.key(path)
    if volume_of_key(path) is None or not isinstance(place.hasty, StorageBucket):
        place.hasty.delete(key)
        return ()
    delete_volume(place.hasty, key, now=place.clock.time())
    return sidecars(path)


def _after_deleting(place: Place, path: str) -> None:
    if not path.startswith(f"{DIRECTORIES['backup']}/"):
        place.cache.drop(path)
