"""What the console shows of hosts: those that publish how they are, and this one.

One rule: a page never waits for a store: an answer is at most `[status] deadline_s` away, and one that was made moments ago
serves everybody who asks meanwhile. The console's user may see little of what others run on its host; so where this host
publishes (bucketworks-status.timer, as root), what it published counts, and the console looks by itself only where nothing
fresh is there.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from s3core.settings import Config, ConfigError
from s3core.status import Item, Published, published
from s3core.status import encode as encode_status
from s3core.status_collector import Collector, Look, Provider
from s3core.status_publishing import opened_place, read_all
from s3core.status_report import own_status

FRESH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`hosts` in order of names. `problem`: why what others published is not among them, "" where it is, or where nothing is
    published."""

    at: float
    hosts: tuple[Published, ...]
    problem: str = ""
    published: bool = False


class Fleet:
    """Threads share it. `providers`: what this host is asked for."""

    def __init__(self, config: Config, providers: Mapping[str, Provider]) -> None:
        self._config = config
        self._collector = Collector(providers)
        self._turn = threading.Lock()
        self._seen: Seen | None = None
        self._asked = 0.0

    @property
    def manual(self) -> str:
        """Where the documentation is served, without a slash at its end; "" where nobody said."""
        return self._config.status.manual.rstrip("/")

    def look(self) -> Seen:
        """How all hosts are. Never raises for what is wrong with a host or the place."""
        with self._turn:
            if self._seen is None or time.monotonic() - self._asked > FRESH_S:
                self._seen = self._look()
                self._asked = time.monotonic()
            return self._seen

    def _look(self) -> Seen:
        hosts: dict[str, Published] = {}
        problem = ""
        if self._config.status.publish:
            problem = self._others(hosts)
        own = own_status(self._config, self._collector)
        known = hosts.get(own.host)
        if known is None or known.status is None or known.stale:
            # Through the same door as those of others: bounded and cleaned.
            hosts[own.host] = published(own.host, encode_status(own), now=own.at, stale_s=self._config.status.stale_s)
        return Seen(
            time.time(), tuple(hosts[name] for name in sorted(hosts)), problem, bool(self._config.status.publish)
        )

    def _others(self, hosts: dict[str, Published]) -> str:
        found: list[Published] = []

        def ask() -> Item:
            with opened_place(self._config) as store:
                found.extend(read_all(store, now=time.time(), stale_s=self._config.status.stale_s))
            return Item("status", "published", "ok")

        try:
            told = self._collector.ask(Look("status", "published", ask), self._config.status.deadline_s)
        except ConfigError as error:
            return str(error)
        if told.health == "ok":
            hosts |= {one.host: one for one in found}
        return told.reason
