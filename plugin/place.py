"""One storage, opened: its bucket, and what this host keeps of it.

One rule: everything local lies in `state_dir/STORAGE`, which the mount shares: catalogue.sqlite, counters.sqlite, cache/,
uploads/. Opening asks no server; a storage with client-side encryption asks for its key slots when they are first needed.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cowsync.sealing.format import Facts, NotOpened
from cowsync.sealing.keys import Keyring
from plugin.bucket import StorageBucket, open_bucket, readable
from plugin.cache import Cache
from plugin.catalogue import NAME as CATALOGUE
from plugin.catalogue import Catalogue, Entry
from plugin.configuration import Storage
from plugin.counters import NAME as COUNTERS
from plugin.counters import Budget, Counters
from plugin.keys import open_keyring
from plugin.layout import KEYS_DIRECTORY, NOTES
from plugin.refresh import entry_of
from plugin.upload.sealing import plain_bytes
from s3core.bucket import Bucket, Written
from s3core.clock import Clock, SystemClock
from s3core.endpoint import Prices
from s3core.errors import OutcomeUnknown, Unavailable
from s3core.settings import Config

HASTY_S = 8.0
"""What a short request has, retries included."""


class Opener(Protocol):
    def __call__(
        self, storage: Storage, config: Config, *, deadline_s: float, around: Callable[[Bucket], Bucket]
    ) -> StorageBucket: ...


def open_place(
    storage: Storage, config: Config, *, deadline_s: float, around: Callable[[Bucket], Bucket]
) -> StorageBucket:
    return open_bucket(storage, config, deadline_s=deadline_s, around=around)


class Place:
    """`hasty` is for short requests (HASTY_S with retries), `steady` for transfers; both are counted. Safe for many threads.
    ConfigError, CredentialsError, OSError."""

    def __init__(
        self, storage: Storage, config: Config, *, clock: Clock | None = None, opener: Opener = open_place
    ) -> None:
        self.storage = storage
        self.config = config
        self.prefix = storage.prefix
        self.clock = clock or SystemClock()
        self.directory = Path(config.pve.state_dir) / storage.id
        joined = storage.join(config)
        self.prices = joined.endpoint(storage.endpoint_name).prices if storage.endpoint_name else Prices()
        budget = Budget(storage.budget_requests, storage.budget_egress_bytes, storage.budget_action == "refuse")
        self.counters = Counters(self.directory / COUNTERS, now=self.clock.time, budget=budget)
        self.cache = Cache(self.directory / "cache", bytes_max=config.pve.cache_bytes, now=self.clock.time)
        self._lock = threading.Lock()
        self._keyring: Keyring | None = None
        self._keys_known = not storage.encryption
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.catalogue = Catalogue(self.directory / CATALOGUE, now=self.clock.time)
        try:
            self.hasty = opener(storage, config, deadline_s=HASTY_S, around=self.counters.wrap)
            self.steady = opener(storage, config, deadline_s=0.0, around=self.counters.wrap)
        except BaseException:
            self.catalogue.close()
            raise
        self.counters.start()

    def close(self) -> None:
        """What was counted is kept. Calls under way may fail."""
        for bucket in (self.hasty, self.steady):
            bucket.close()
        self.counters.close()
        self.catalogue.close()

    def key(self, below: str) -> str:
        """The bucket's key of one below the prefix."""
        return self.prefix + below

    def below(self, key: str) -> str:
        """The key below the prefix."""
        return key.removeprefix(self.prefix)

    def keyring(self) -> Keyring | None:
        """What seals and opens; None where nothing is sealed. Asks the store the first time. As `open_keyring`."""
        with self._lock:
            if not self._keys_known:
                self._keyring = open_keyring(self.hasty, self.storage, clock=self.clock, random=os.urandom)
                self._keys_known = True
            return self._keyring

    def plain(self, bucket: Bucket) -> Bucket:
        """`bucket` (`hasty` or `steady`) as its objects read in plain."""
        return readable(bucket, self.storage, self.keyring())

    def opened(self, entry: Entry) -> Entry:
        """A listed entry with the size that its plain object has, which its sealed size tells. An object that cannot be
        a sealed one is what it is."""
        name = self.below(entry.key)
        if not self.storage.encryption or name.startswith(f"{KEYS_DIRECTORY}/"):
            return entry
        size = plain_bytes(name, entry.stored)
        return entry if size is None else replace(entry, size=size, sealed=True)

    def looked(self, key: str) -> Entry:
        """The object as it is now; the catalogue knows it afterwards. NotFound, of which the catalogue is told too."""
        entry = self.opened(entry_of(self.hasty, key))
        held = self.catalogue.entry(key)
        if held is None or (held.etag, held.stored) != (entry.etag, entry.stored):
            self.catalogue.written(entry)
        return entry

    def read_small(self, key: str) -> bytes:
        """All of a small object, in plain. NotFound."""
        try:
            return self.plain(self.hasty).get(key)
        except NotOpened:
            return self.hasty.get(key)

    def put_small(self, key: str, data: bytes) -> Entry:
        """A sidecar: it is in the bucket, and has been seen there, when this returns. One whose outcome is unknown is looked
        for; Unavailable where it is not there, or something else is."""
        keyring = self.keyring()
        body = data
        if keyring is not None:
            sealer = keyring.sealer(len(data), Facts(self.below(key)))
            body = sealer.head + sealer.frame(data)
        written: Written | None = None
        with suppress(OutcomeUnknown):  # what is there now tells
            written = self.hasty.put(key, body)
        entry = self.opened(entry_of(self.hasty, key))
        if entry.stored != len(body) or (written is not None and entry.etag != written.etag):
            raise Unavailable("the store shows another object than was put", key=key, hint="try again")
        if written is None and self.hasty.get(key) != body:
            raise Unavailable("the store did not take it", key=key, hint="try again")
        self.catalogue.written(entry)
        return entry


def is_text(key: str) -> bool:
    """Whether a key is a sidecar whose contents the catalogue keeps."""
    return key.endswith(NOTES)
