"""What the daemon tells the service manager: that it has begun to serve, that it lives, what it is doing, that it ends.

One rule: a store that is away is no reason to be killed, a process that hangs is. While volumes attach nobody knows how long it
takes (another host's lease, the journal's replay, a store that does not answer), so a thread of its own says that the process
lives; from then on the loop that serves says so itself, and only while the loops of all workers turn too.
"""

import logging
import threading
from collections.abc import Collection, Mapping

from s3core.service_manager import ServiceManager

log = logging.getLogger(__name__)

READY_PATIENCE_S = 90.0
"""Units that come after this one, the host's remote mounts among them, wait so long at most for volumes that attach."""

TURN_S = 1.0
WORKER_SILENCE_S = 60.0
"""A worker says each second that its loop turns. One that was silent for so long, or for half of WatchdogSec= where that is
less, hangs: the daemon stops saying that it lives."""

STOP_EXTENSION_S = 120.0
"""What is asked for each second of an orderly stop, which ends by itself when nothing moves any more. As TimeoutStopSec=."""


class Supervision:
    """One daemon's. `begin` and what follows are called on one thread."""

    def __init__(self, manager: ServiceManager, names: Collection[str]) -> None:
        self._manager = manager
        self._names = ", ".join(names)
        self._served = threading.Event()
        self._thread: threading.Thread | None = None
        self._ready = threading.Lock()
        self._said_ready = False
        self._told = ""
        self._missed: frozenset[str] = frozenset()
        self._silence_s = min(manager.watchdog_s / 2 or WORKER_SILENCE_S, WORKER_SILENCE_S)

    def begin(self) -> None:
        """Attaching begins."""
        self._manager.status(f"attaching {self._names}")
        self._thread = threading.Thread(target=self._while_attaching, name="attaching", daemon=True)
        self._thread.start()

    def serving(self) -> None:
        """The doors are open. Idempotent, as `end` is."""
        self._end_attaching()
        self._say_ready()

    def turn(self, text: str, silent_s: Mapping[str, float]) -> None:
        """The loop that serves turns: `text` is what there is to see, `silent_s` how long each volume's worker was silent."""
        missed = frozenset(name for name, seconds in silent_s.items() if seconds > self._silence_s)
        for name in sorted(missed - self._missed):
            log.error(
                "volume %s: its worker has not been heard of for %.0f s; a service manager that watches will start this anew",
                name,
                silent_s[name],
            )
        for name in sorted(self._missed - missed):
            log.warning("volume %s: its worker is heard of again", name)
        self._missed = missed
        if not missed:
            self._manager.alive()
        if text != self._told:
            self._told = text
            self._manager.status(text)

    def stopping(self) -> None:
        self._end_attaching()
        self._manager.stopping()

    def stop_goes_on(self, text: str) -> None:
        """An orderly stop still carries something, or waits for the store within its bound."""
        self._manager.alive()
        self._manager.more_time(STOP_EXTENSION_S)
        self._manager.status(text)

    def end(self) -> None:
        self._end_attaching()

    def _end_attaching(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._served.set()
            thread.join()

    def _say_ready(self) -> None:
        with self._ready:
            if not self._said_ready:
                self._said_ready = True
                self._manager.ready()

    def _while_attaching(self) -> None:
        beat = min(self._manager.watchdog_s / 3 or READY_PATIENCE_S, READY_PATIENCE_S)
        waited = 0.0
        while not self._served.wait(beat):
            waited += beat
            if waited >= READY_PATIENCE_S:
                self._manager.status(f"still attaching {self._names}; initiators cannot log in yet")
                self._say_ready()
            self._manager.alive()


def told(names: Collection[str], sessions: int, behind_bytes: float, *, store_is_away: bool) -> str:
    """A line for people: `serving vm1, 3 sessions, 12 MiB behind`."""
    mib = behind_bytes / 1024**2
    behind = f"{mib:,.0f} MiB behind" if mib >= 1 else "less than 1 MiB behind" if mib else "the bucket has everything"
    line = f"serving {', '.join(names)}, {sessions} session{'' if sessions == 1 else 's'}, {behind}"
    return line + (", the store does not answer" if store_is_away else "")
