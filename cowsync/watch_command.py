"""`cowsync watch`: from the configuration and signals to the service.

One rule: the lock is held for a round, not for the service's life, so that what a person does by hand fits in between.
"""

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from cowsync.apply.run import stop_on_signals
from cowsync.arguments import EventsOption, MirrorArgument, engine_for, mirror_of
from cowsync.errors import StateDamaged
from cowsync.feed.source import Feed, open_feed, status_of
from cowsync.follow import Followed, follow, follow_once, listed_round
from cowsync.mirror import Mirror, check_current
from cowsync.watch import End, Ended, run_round
from cowsync.watch import watch as watch_mirror
from cowsync.watch_health import LOOK_BACK, Doing, Health, HealthServer, past_of
from s3core.console import JsonOption, write_json, write_line
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.logs import configure_logging
from s3core.service_manager import ServiceManager

SLICE_S = 0.5
"""A stop is noticed so late while nothing goes on."""
OVERSLEPT_S = 30.0
"""A service that has not begun its round so long after it was due is not alive."""
LOGGED_S = 60.0
"""What goes on is logged so often; the service manager is told of it once a second."""

log = logging.getLogger(__name__)


def watch(
    name: MirrorArgument,
    once: Annotated[
        bool, typer.Option("--once", help="One round, tidying included, and no service: what a timer calls.")
    ] = False,
    events: EventsOption = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a mirror up to date: plan and apply every `every_s`, until SIGTERM or Ctrl-C.

    What the guard holds is told and not applied; a store that is away is tried again next time. Between these rounds
    what events name is mirrored, where the mirror has a feed of them. With --json one line of JSON for each round."""
    with mirror_of(config_path, name) as mirror, ExitStack() as stack:
        events = events or mirror.settings.events
        settings = mirror.settings
        configure_logging(settings.log_level, settings.log_format)
        stop = threading.Event()
        stack.enter_context(stop_on_signals(stop))
        if once:
            _once(run_round(mirror, engine_for, now=time.time, stop=stop), as_json=as_json)
        if events:
            check_current(mirror, "a feed of events")
        feed = stack.enter_context(open_feed(events, mirror.folder)) if events else None
        service = _Service(mirror, stop, ServiceManager(os.environ), feed, as_json=as_json)
        if settings.listen:
            told = partial(status_of, events, mirror.folder) if events else None
            health = Health(name, settings.every_s, mirror.catalogue().recent, service.doing, time.time, feed=told)
            server = HealthServer(settings.listen, health)
            stack.callback(server.close)
            log.info("mirror %s: health at %s/healthz, metrics at %s/metrics", name, server.url, server.url)
        service.run()


class _Service:
    def __init__(
        self, mirror: Mirror, stop: threading.Event, manager: ServiceManager, feed: Feed | None, *, as_json: bool
    ) -> None:
        self.doing = Doing()
        self._feed = feed
        self._flooded = False
        self._mirror = mirror
        self._stop = stop
        self._manager = manager
        self._as_json = as_json
        self._told = self._logged = 0.0
        self._due: float | None = None

    def run(self) -> None:
        name, every_s = self._mirror.name, self._mirror.settings.every_s
        log.info("mirror %s: watching %s, every %g s", name, self._mirror.settings.source, every_s)
        with _keeping_alive(self._manager, self._well):
            self._manager.ready()
            watch_mirror(
                self._round,
                every_s=every_s,
                monotonic=time.monotonic,
                wait=self._between,
                spread=random.random,
                ended=self._ended,
            )
            self._manager.stopping()
        log.info("mirror %s: stopped", name)

    def _round(self) -> Ended:
        self._due, self.doing.next_at = None, 0.0
        self._logged = time.monotonic()

        def round_() -> Ended:
            return run_round(self._mirror, engine_for, now=time.time, stop=self._stop, told=self._stage)

        if self._feed is None:
            return round_()
        flooded, self._flooded = self._flooded, False
        return listed_round(round_, self._feed, time.time, flooded=flooded)

    def _between(self, seconds: float) -> bool:
        """Wait for the next listing, and do what events ask for until then. True to stop."""
        if self._feed is None:
            return self._wait(seconds)
        feed, settings = self._feed, self._mirror.settings
        due = time.monotonic() + seconds

        def once(until: threading.Event) -> Followed:
            # When the listing is due a round ends its lines in flight, which may take as long as those of a run.
            self._due = None
            told = follow_once(self._mirror, feed, now=time.time, stop=until, told=self._stage)
            self._due = due
            return told

        last = follow(
            once,
            due=due,
            every_s=settings.events_every_s,
            stop=self._stop,
            monotonic=time.monotonic,
            wait=self._wait,
            held=self._held,
            ended=self._followed,
        )
        self._flooded = last is not None and last.flooded
        return self._stop.is_set()

    def _held(self) -> bool:
        try:
            return past_of(self._mirror.catalogue().runs(LOOK_BACK)).held is not None
        except StateDamaged:
            # A round of events begins with the catalogue too, and tells what is wrong with it.
            return False

    def _followed(self, told: Followed) -> None:
        self.doing.stage = "waiting for events"
        ended = told.ended
        well = ended.end in (End.DONE, End.CLEAN, End.STOPPED) and not told.flooded
        if not well or told.gathered is None or told.gathered.complaints:
            level = logging.WARNING
        else:
            level = logging.INFO if ended.lines else logging.DEBUG
        log.log(level, "mirror %s: %s", self._mirror.name, told.text())
        self._manager.status(told.text())
        if self._as_json and (ended.lines or level == logging.WARNING):
            write_line(json.dumps(record(ended) | {"events": told.to_json()}))

    def _stage(self, text: str) -> None:
        self.doing.stage = text
        now = time.monotonic()
        if now - self._told >= 1.0:
            self._told = now
            self._manager.status(text)
        if now - self._logged >= LOGGED_S:
            self._logged = now
            log.info("mirror %s: %s", self._mirror.name, text)

    def _ended(self, ended: Ended, pause: float) -> None:
        self.doing.last, self.doing.end = ended.text(), ended.end
        self._due, self.doing.next_at = time.monotonic() + pause, time.time() + pause
        self.doing.stage = "waiting"
        due = datetime.fromtimestamp(self.doing.next_at, UTC).strftime("%H:%M:%S UTC")
        well = ended.end in (End.DONE, End.CLEAN, End.STOPPED) and not ended.untidy
        log.log(logging.INFO if well else logging.WARNING, "mirror %s: %s", self._mirror.name, ended.text())
        self._manager.status(f"{ended.text()}; next run at {due}")
        if self._as_json:
            write_line(json.dumps(record(ended)))

    def _well(self) -> bool:
        due = self._due
        return due is None or time.monotonic() < due + OVERSLEPT_S

    def _wait(self, seconds: float) -> bool:
        # Not `stop.wait`: the signal's handler sets the event in this thread, which would hold the event's own lock.
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(SLICE_S, left))
        return self._stop.is_set()


@contextmanager
def _keeping_alive(manager: ServiceManager, well: Callable[[], bool]) -> Iterator[None]:
    """Tell the service manager that this process lives, as long as it does: it runs threads, and begins its rounds when
    they are due. How long a round may take nobody can know; `/healthz` tells of one that takes too long."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(manager.watchdog_s / 3):
            if well():
                manager.alive()

    if not manager.watchdog_s:
        yield
        return
    thread = threading.Thread(target=tell, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def record(ended: Ended) -> dict[str, object]:
    return {
        "ended": str(ended.end),
        "message": ended.message,
        "plan": ended.plan,
        "lines": ended.lines,
        "done": ended.done,
        "failed": ended.failed,
        "untidy": ended.untidy,
    }


def _once(ended: Ended, *, as_json: bool) -> None:
    """Ends the command as `cowsync run` would."""
    if as_json:
        write_json(record(ended))
    else:
        write_line(ended.text())
    if ended.error is not None and ended.end is not End.STOPPED:
        raise ended.error
    raise typer.Exit(ExitCode.OK if ended.end in (End.DONE, End.CLEAN) else ExitCode.PARTIAL)
