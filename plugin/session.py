"""A storage opened for one command of an operator: its bucket, what reads it in plain, the node's catalogue, an uploader.

One rule: a command asks the bucket itself and needs no core; what it changed it tells the catalogue, which mount and core of
this node share.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cowsync.sealing.format import NotOpened
from cowsync.sealing.keys import Keyring
from plugin.bucket import StorageBucket, open_bucket, readable
from plugin.catalogue import Catalogue, Entry
from plugin.configuration import Storage
from plugin.counters import NAME as COUNTERS
from plugin.counters import Counters
from plugin.errors import BadVolume
from plugin.keys import open_keyring
from plugin.layout import DIRECTORIES, NOTES, OWN, Volume, owner_of, parse_volname, volume_of_key
from plugin.refresh import entry_of, refresh
from plugin.upload.sealing import plain_bytes
from plugin.upload.uploader import Uploader, UploadSettings
from s3core.bucket import Bucket
from s3core.clock import SystemClock
from s3core.errors import NotFound
from s3core.settings import Config, ConfigError, load_config

LISTING_S = 300.0
"""A bucket of any size that a node works with is listed in that time: 1,000 objects a request."""


@dataclass(frozen=True, slots=True)
class Session:
    """`bucket` writes, `plain` reads; `directory` is what the node keeps of the storage."""

    storage: Storage
    config: Config
    bucket: StorageBucket
    plain: Bucket
    keyring: Keyring | None
    directory: Path
    catalogue: Catalogue

    def key(self, volume: Volume) -> str:
        return self.storage.prefix + volume.key

    def listed(self) -> list[Entry]:
        """Everything below the prefix, from a listing made now; the catalogue has it then too. StoreErrors."""
        prefix = self.storage.prefix
        refresh(
            self.catalogue,
            self.bucket,
            prefix,
            deadline=time.monotonic() + LISTING_S,
            opened=self._opened if self.keyring is not None else None,
            is_text=lambda key: owner_of(key.removeprefix(prefix)) is not None and key.endswith(NOTES),
            read=self._read,
        )
        return self.catalogue.entries(prefix)

    def volumes(self, *, content: str = "", vmid: int = 0) -> list[tuple[Volume, Entry]]:
        """Those that are there now, by key."""
        found = [(volume_of_key(one.key.removeprefix(self.storage.prefix)), one) for one in self.listed()]
        return [
            (volume, entry)
            for volume, entry in found
            if volume is not None and (not content or volume.content == content) and (not vmid or volume.vmid == vmid)
        ]

    def there(self, key: str) -> bool:
        """One HEAD. StoreErrors."""
        try:
            self.bucket.head(key)
        except NotFound:
            return False
        return True

    def written(self, key: str) -> Entry:
        """Tell the catalogue of an object that was put, as the store shows it. StoreErrors, OSError."""
        entry = entry_of(self.bucket, key)
        entry = self._opened(entry) if self.keyring is not None else entry
        self.catalogue.written(entry)
        return entry

    @contextmanager
    def uploader(self) -> Iterator[Uploader]:
        try:
            settings = upload_settings(self.storage, self.config)
        except ValueError as error:
            raise ConfigError(f"storage {self.storage.id}: {error}") from error
        uploader = Uploader(
            self.bucket,
            self.directory / "uploads",
            settings,
            keyring=self.keyring,
            prefix=self.storage.prefix,
        )
        try:
            yield uploader
        finally:
            uploader.close()

    def _read(self, entry: Entry) -> bytes:
        try:
            return self.plain.get(entry.key)
        except NotOpened:
            return self.bucket.get(entry.key)

    def _opened(self, entry: Entry) -> Entry:
        name = entry.key.removeprefix(self.storage.prefix)
        size = None if name.startswith(f"{OWN}/keys/") else plain_bytes(name, entry.stored)
        return entry if size is None else replace(entry, size=size, sealed=True)


def upload_settings(storage: Storage, config: Config) -> UploadSettings:
    """ValueError where the node's spool does not hold two parts."""
    return UploadSettings(
        part_bytes=storage.part_bytes,
        uploads=storage.uploads,
        spool_bytes=config.pve.spool_bytes,
        patience_s=config.pve.upload_wait_s,
        equal_parts=storage.preset == "r2",
    )


@contextmanager
def opened(storage: Storage, config_path: Path | None = None, *, begin: bool = False) -> Iterator[Session]:
    """`begin`: a storage that seals gets its data key where it has none. ConfigError, CredentialsError, Refused, StoreErrors;
    OSError where the state directory cannot be written."""
    config = load_config(config_path)
    directory = Path(config.pve.state_dir) / storage.id
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    counters = Counters(directory / COUNTERS)
    try:
        bucket = open_bucket(storage, config, around=counters.wrap)
        try:
            keyring = open_keyring(bucket, storage, clock=SystemClock(), random=os.urandom, begin=begin)
            catalogue = Catalogue(directory / "catalogue.sqlite")
            try:
                yield Session(
                    storage, config, bucket, readable(bucket, storage, keyring), keyring, directory, catalogue
                )
            finally:
                catalogue.close()
        finally:
            bucket.close()
    finally:
        counters.close()


def volume_named(text: str, content: str = "backup") -> Volume:
    """`STORAGE:CONTENT/NAME`, `CONTENT/NAME`, or the bare name of a volume of `content`. BadVolume."""
    name = text.partition(":")[2] if ":" in text.partition("/")[0] else text
    try:
        return parse_volname(name if name.partition("/")[0] in DIRECTORIES and "/" in name else f"{content}/{name}")
    except ValueError as error:
        raise BadVolume(str(error)) from None
