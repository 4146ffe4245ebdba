"""Keeping what is shown on the mount close to the bucket, without anybody waiting long for it.

One rule: one refresh at a time, in a thread of its own; whoever looks waits a short moment for it, then is shown what is
known. A store that hangs costs that moment once in RETRY_S, not at each look.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from plugin.catalogue import Catalogue
from s3core.errors import StoreError

log = logging.getLogger(__name__)

RETRY_S: Final = 10.0
WAIT_S: Final = 2.0
WAIT_FIRST_S: Final = 10.0
"""Where nothing at all is known yet."""


class Freshness:
    """`refresh` brings the catalogue up to date or raises StoreError or OSError. `age_s`: older than this is old."""

    def __init__(
        self,
        catalogue: Catalogue,
        refresh: Callable[[], object],
        age_s: float,
        *,
        wait_s: float = WAIT_S,
        wait_first_s: float = WAIT_FIRST_S,
        retry_s: float = RETRY_S,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue = catalogue
        self._refresh = refresh
        self._age_s = age_s
        self._wait_s = wait_s
        self._wait_first_s = wait_first_s
        self._retry_s = retry_s
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._begun = float("-inf")
        self._done = threading.Event()
        self._done.set()

    @property
    def known(self) -> bool:
        return self._catalogue.usage().listed_at > 0

    def ensure(self) -> None:
        """Have it no older than `age_s`, or waited a moment for that."""
        listed_at = self._catalogue.usage().listed_at
        if 0 <= self._now() - listed_at <= self._age_s:
            return
        with self._lock:
            if self._done.is_set():
                if self._monotonic() - self._begun < self._retry_s:
                    return
                self._begun = self._monotonic()
                self._done = threading.Event()
                threading.Thread(target=self._work, args=(self._done,), name="refresh", daemon=True).start()
            elif self._monotonic() - self._begun > self._wait_first_s:
                return  # it hangs: who came first has waited
            done = self._done
        done.wait(self._wait_s if listed_at > 0 else self._wait_first_s)

    def _work(self, done: threading.Event) -> None:
        try:
            self._refresh()
        except (StoreError, OSError) as error:
            log.warning("the bucket cannot be listed, what is shown is what was known: %s", error)
        finally:
            done.set()
