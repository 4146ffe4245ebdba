"""Which storages of ours this node has, each looked after by a keeper; configuration reread when it changes.

One rule: no call reads /etc/pve: the cluster's file system may hang. One thread reads it each REREAD_S, and calls take what
that thread found last; a file that cannot be read leaves what was known.

A storage whose configuration changes gets a new place and keeper at once; the old ones end when calls under way had time to.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from plugin.configuration import Storage, read_storages
from plugin.errors import NoSuchVolume, PluginError
from plugin.place import Opener, Place, open_place
from plugin.service.keeper import Keeper
from plugin.service.lanes import Lane
from s3core.clock import Clock, SystemClock
from s3core.credentials import CredentialsError
from s3core.errors import StoreError
from s3core.settings import Config, ConfigError

log = logging.getLogger(__name__)

REREAD_S = 2.0
NUMBERS_S = 1.0
UNKNOWN_WAIT_S = 1.5
"""For another look at the configuration when a storage is asked for that nobody knows."""
LEAVE_S = 120.0
"""How long calls under way may go on with a configuration that was replaced."""
SHORT_AT_ONCE, FETCHES_AT_ONCE = 16, 4


@dataclass(slots=True)
class Attached:
    """A storage and what works for it. `short` carries single requests, `fetches` downloads."""

    storage: Storage
    place: Place
    keeper: Keeper
    short: Lane
    fetches: Lane


class Storages:
    """`load` gives the node's configuration (`[pve]` and endpoints) each time it is asked. `after` is called on a keeper's
    thread when a refresh of its storage changed something."""

    def __init__(
        self,
        load: Callable[[], Config],
        root: Path,
        *,
        node: str = "",
        clock: Clock | None = None,
        opener: Opener = open_place,
        after: Callable[[Attached], None] = lambda attached: None,
    ) -> None:
        self._load = load
        self._root = root
        self._node = node or os.uname().nodename.partition(".")[0]
        self._clock = clock or SystemClock()
        self.opener = opener
        self._after = after
        self._lock = threading.Lock()
        self._known: dict[str, Attached | Exception] = {}
        self._config = Config()
        self._reread = threading.Condition()
        self._wanted = False
        self._round = 0
        self._stop = threading.Event()

    @property
    def config(self) -> Config:
        return self._config

    def start(self) -> None:
        """Read the configuration; ConfigError where config.toml is wrong at the start (later it leaves what was known)."""
        self._config = self._load()
        self._read()
        threading.Thread(target=self._reread_for_ever, name="configuration", daemon=True).start()
        threading.Thread(target=self._numbers_for_ever, name="numbers", daemon=True).start()

    def stop(self) -> None:
        """Counts are kept; calls under way may fail."""
        self._stop.set()
        self.poke()
        for attached in self.all():
            attached.keeper.stop()
        for attached in self.all():
            attached.place.close()

    def poke(self) -> None:
        """Read the configuration again now."""
        with self._reread:
            self._wanted = True
            self._reread.notify_all()

    def all(self) -> list[Attached]:
        with self._lock:
            return [one for one in self._known.values() if isinstance(one, Attached)]

    def troubles(self) -> dict[str, str]:
        """Storages that cannot be used, and why."""
        with self._lock:
            return {id: str(one) for id, one in self._known.items() if not isinstance(one, Attached)}

    def named(self, id: str) -> Attached:
        """NoSuchVolume, or what is wrong with the storage. Waits UNKNOWN_WAIT_S at most, and only for one that nobody knows or
        that could not be used."""
        for attempt in (1, 2):
            with self._lock:
                found = self._known.get(id)
            if isinstance(found, Attached):
                return found
            if attempt == 1:
                self._read_again()
        if isinstance(found, Exception):
            raise found
        raise NoSuchVolume(
            f"the core knows no storage {id}", hint="is it in storage.cfg, of type bucketfiles or bucketdisks?"
        )

    # --- inside

    def _read_again(self) -> None:
        with self._reread:
            # The round that is under way may have read the file before it changed.
            wanted = self._round + 2
            self._wanted = True
            self._reread.notify_all()
            until = time.monotonic() + UNKNOWN_WAIT_S
            while self._round < wanted and (left := until - time.monotonic()) > 0:
                self._wanted = True
                self._reread.notify_all()
                self._reread.wait(min(left, 0.05))

    def _reread_for_ever(self) -> None:
        while not self._stop.is_set():
            with self._reread:
                if not self._wanted:
                    self._reread.wait(REREAD_S)
                self._wanted = False
            if self._stop.is_set():
                return
            try:
                self._config = self._load()
            except (ConfigError, OSError) as error:
                log.error("the configuration stays as it was: %s", error)
            self._read()
            with self._reread:
                self._round += 1
                self._reread.notify_all()

    def _read(self) -> None:
        try:
            told = read_storages(self._root)
        except (OSError, ValueError) as error:
            log.error("storage.cfg cannot be read, the storages stay as they were: %s", error)
            return
        for id, wanted in told.items():
            self._take(id, wanted)
        with self._lock:
            gone = [id for id in self._known if id not in told]
            left = [self._known.pop(id) for id in gone]
        for id, one in zip(gone, left, strict=True):
            log.info("storage %s is not configured any more", id)
            self._leave(one)

    def _take(self, id: str, wanted: Storage | ConfigError) -> None:
        with self._lock:
            known = self._known.get(id)
        if isinstance(wanted, ConfigError):
            if str(known) != str(wanted):
                log.error("%s", wanted)
            fresh: Attached | Exception = wanted
        elif isinstance(known, Attached) and known.storage == wanted and known.place.config == self._config:
            return
        else:
            try:
                fresh = self._attach(wanted)
            except (ConfigError, CredentialsError, PluginError, StoreError, OSError) as error:
                if str(known) != str(error):
                    log.error("storage %s cannot be used: %s", id, error)
                fresh = error
            else:
                log.info("storage %s: %s", id, wanted.url)
        with self._lock:
            self._known[id] = fresh
        if known is not None:
            self._leave(known)

    def _attach(self, storage: Storage) -> Attached:
        settings = self._config.pve
        place = Place(storage, self._config, clock=self._clock, opener=self.opener)
        attached: list[Attached] = []
        keeper = Keeper(
            place,
            probe_s=settings.probe_s,
            refresh_s=settings.refresh_s,
            after=lambda: self._after(attached[0]),
        )
        what = f"storage {storage.id}"
        made = Attached(storage, place, keeper, Lane(what, SHORT_AT_ONCE), Lane(what, FETCHES_AT_ONCE))
        attached.append(made)
        if self._is_used_here(storage):
            keeper.start()
        return made

    def _is_used_here(self, storage: Storage) -> bool:
        return not storage.disabled and (not storage.nodes or self._node in storage.nodes)

    def _leave(self, known: Attached | Exception) -> None:
        if not isinstance(known, Attached):
            return
        known.keeper.stop()
        timer = threading.Timer(LEAVE_S, known.place.close)
        timer.daemon = True
        timer.start()

    def _numbers_for_ever(self) -> None:
        while not self._stop.wait(NUMBERS_S):
            for attached in self.all():
                attached.keeper.read_numbers()
