"""What looks after one storage while the core runs: probes, refreshes, numbers for `status`.

One rule: `status` reads what this wrote down, and never waits for it. The thread that probes may hang in the store for as
long as the store's client bears it; that it hangs is seen by the clock.

A refresh is what a listing for Proxmox VE is too (`fresh`): calls that come while one is under way share it.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from plugin.catalogue import Usage
from plugin.configuration import Storage
from plugin.errors import DeadlineOver, PluginError
from plugin.layout import DIRECTORIES, volume_of_key
from plugin.place import Place, is_text
from plugin.properties import FILES
from plugin.refresh import Refreshed, refresh
from plugin.service.health import Health, active, begun, has_failed, was_well
from plugin.service.lanes import Lane, Outcome
from s3core.credentials import CredentialsError
from s3core.errors import Denied, Misconfigured, NotFound, StoreError
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

PIB = 1 << 50
LIST_AGE_S = 10.0
"""How old a listing may be that Proxmox VE is told."""
REFRESH_S_MAX = 120.0
"""What a refresh may take."""
LISTINGS_AT_ONCE = 3
FIRST_WAIT_S = 1.0
"""How long a `status` waits for the first probe after a start."""
_FOR_GOOD = (Denied, Misconfigured, NotFound, ConfigError, CredentialsError, PluginError)
_FACT = "health"


@dataclass(frozen=True, slots=True)
class Status:
    """What Proxmox VE is told: bytes, and whether the storage works. `total` is bw-quota, or what is used and 1 PiB."""

    total: int
    avail: int
    used: int
    active: bool
    reason: str
    checked_at: float


class Keeper:
    """`probe_s`, `refresh_s` as in `[pve]`. `after` is called when a refresh changed something, on the keeper's own thread;
    what it raises is told in the log."""

    def __init__(
        self, place: Place, *, probe_s: float, refresh_s: float, after: Callable[[], None] = lambda: None
    ) -> None:
        self.place = place
        self._probe_s = probe_s
        self._refresh_s = refresh_s
        self._after = after
        self._lane = Lane(f"storage {place.storage.id}", LISTINGS_AT_ONCE)
        self._lock = threading.Lock()
        self._health = self._remembered()
        self._usage = Usage(0, 0, 0, 0, 0.0)
        self._newest_backup = 0.0
        self._good = self._floor = -math.inf
        self._running: tuple[float, Outcome[None]] | None = None
        self._first = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._changed = True
        self.refreshes = 0
        self.failures = 0
        self.refresh_seconds = 0.0
        self.read_numbers()

    @property
    def storage(self) -> Storage:
        return self.place.storage

    @property
    def health(self) -> Health:
        with self._lock:
            return self._health

    @property
    def usage(self) -> Usage:
        """As last read off the catalogue."""
        return self._usage

    @property
    def newest_backup(self) -> float:
        """When the newest backup in the catalogue came to the bucket, in Unix seconds; 0.0: there is none."""
        return self._newest_backup

    def start(self) -> None:
        threading.Thread(target=self._look_after, name=f"keeper {self.storage.id}", daemon=True).start()

    def stop(self) -> None:
        """Nothing new is begun. Does not wait."""
        self._stopping = True
        self._wake.set()

    def poke(self) -> None:
        """Probe now."""
        self._wake.set()

    # --- numbers

    def status(self) -> Status:
        """Within milliseconds, but for the first FIRST_WAIT_S after a start."""
        if not self.health.answered:
            self._first.wait(FIRST_WAIT_S)
        health, used = self.health, self._usage.stored
        works, reason = active(health, self.place.clock.time(), self._probe_s)
        total = self.storage.quota_bytes or used + PIB
        return Status(total, max(total - used, 0), used, works, reason, health.answered)

    def read_numbers(self) -> None:
        """Read the sums off the catalogue. OSError of the local disk is told in the log; the old ones stay."""
        try:
            self._usage = self.place.catalogue.usage()
            self._newest_backup = max(
                (
                    entry.modified
                    for entry in self.place.catalogue.entries(f"{self.place.prefix}{DIRECTORIES['backup']}/")
                    if volume_of_key(entry.key.removeprefix(self.place.prefix)) is not None
                ),
                default=0.0,
            )
        except OSError as error:
            log.warning("storage %s: %s", self.storage.id, error)

    # --- listings

    def fresh(self, deadline: float, age_s: float = LIST_AGE_S) -> None:
        """The catalogue holds a listing that began at most `age_s` ago. DeadlineOver, Busy, StoreErrors: it does not."""
        with self._lock:
            wanted = max(time.monotonic() - age_s, self._floor)
            if self._good >= wanted:
                return
            running = self._running
        if running is None or running[0] < wanted or running[1].wait(0):
            running = self._begin(deadline)
        if not running[1].wait(deadline - time.monotonic()):
            raise DeadlineOver(f"storage {self.storage.id}: the store did not end its listing in time")
        running[1].result()

    def forget(self) -> None:
        """No listing that began before now is fresh: what the bucket holds is not known any more."""
        with self._lock:
            self._floor = time.monotonic()

    def _begin(self, deadline: float) -> tuple[float, Outcome[None]]:
        began = time.monotonic()
        running = began, self._lane.begin(lambda: self._refresh(began), deadline)
        with self._lock:
            self._running = running
        return running

    def _refresh(self, began: float) -> None:
        place = self.place
        try:
            told: Refreshed = refresh(
                place.catalogue,
                place.hasty,
                place.prefix,
                deadline=began + REFRESH_S_MAX,
                opened=place.opened if self.storage.encryption else None,
                is_text=is_text,
                read=lambda entry: place.read_small(entry.key),
            )
        except BaseException:
            self.failures += 1
            raise
        with self._lock:
            self._good = max(self._good, began)
            self._health = was_well(place.clock.time())
        self.refreshes += 1
        self.refresh_seconds = time.monotonic() - began
        self.read_numbers()
        if told.changes:
            self._changed = True
            self._wake.set()
        for key, why in told.unread.items():
            log.warning("storage %s: %s could not be read: %s", self.storage.id, key, why)

    # --- the thread

    def _look_after(self) -> None:
        refreshed = -math.inf
        while not self._stopping:
            self._wake.clear()
            now = time.monotonic()
            with self._lock:
                self._health = begun(self._health, self.place.clock.time())
            try:
                if self.storage.type == FILES and (now - max(refreshed, self._good) >= self._refresh_s):
                    refreshed = now
                    self.fresh(now + REFRESH_S_MAX, age_s=0.0)
                else:
                    self.place.hasty.list_page(prefix=self.place.prefix, max_keys=1)
                self._found_well()
            except (StoreError, PluginError, ConfigError, CredentialsError, OSError) as error:
                self._found_ill(error)
            except Exception as error:
                # The last fence: a storage whose keeper dies would never come back.
                log.exception("storage %s: a probe ended by an error of ours", self.storage.id)
                self._found_ill(error)
            self._first.set()
            self._tidy()
            works = active(self.health, self.place.clock.time(), self._probe_s)[0]
            self._wake.wait(self._probe_s if works else self._probe_s / 3)

    def _found_well(self) -> None:
        with self._lock:
            before, self._health = self._health, was_well(self.place.clock.time())
        if before.misses or before.refused:
            log.info("storage %s: the store answers again", self.storage.id)
        self._remember()

    def _found_ill(self, error: BaseException) -> None:
        for_good = isinstance(error, _FOR_GOOD) and not getattr(error, "retryable", False)
        with self._lock:
            before = self._health
            self._health = has_failed(before, self.place.clock.time(), str(error), for_good=for_good)
        if before.reason != str(error):
            log.warning("storage %s: %s", self.storage.id, error)
        self._remember()

    def _tidy(self) -> None:
        if not self._changed or self._stopping or not self.health.well:
            return
        self._changed = False
        try:
            self._after()
        except (StoreError, PluginError, OSError) as error:
            self._changed = True  # again with the next probe
            log.warning("storage %s: %s", self.storage.id, error)
        except Exception:
            log.exception("storage %s: looking after the cache ended by an error of ours", self.storage.id)

    def _remember(self) -> None:
        try:
            self.place.catalogue.keep_fact(_FACT, asdict(self.health))
        except (OSError, ValueError) as error:
            log.debug("storage %s: its state is not kept: %s", self.storage.id, error)

    def _remembered(self) -> Health:
        try:
            told = self.place.catalogue.fact(_FACT)
            return Health(**told) if told else Health()
        except (OSError, TypeError) as error:
            log.debug("storage %s: its state is not known: %s", self.place.storage.id, error)
            return Health()
