"""What `cowsync watch` answers to monitors: `/healthz` and `/metrics`.

One rule: health is read off the catalogue when it is asked for, so that runs by hand count, approvals too; the service adds
only what the catalogue cannot know. `METRICS` is the table that the exposition, docs/metrics.md and the tests are made from.

Health is about the service: that it lists when it should, that what it plans may move, that what may move is copied. An object
that somebody else wrote on the mirror is left alone by design, and stays so until a person has looked; were that ill health,
one key would have `/healthz` say 503 for weeks, and nobody would see the day the runs really stop. So drift is told, in the
body of a 200 and as a metric with an alert of its own.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cowsync.catalogue import Phase, Run
from cowsync.changes import Outcome
from cowsync.errors import Refused, StateDamaged
from cowsync.plan.plan_file import SHOWN_DIGEST
from cowsync.watch import End
from s3core.gauges import GaugeCollector, gauge_rows, gauges, new_registry
from s3core.quantities import shown_duration

LATE_PERIODS = 3
"""A mirror is healthy while its last complete run is younger than so many times `every_s`."""
LOOK_BACK = 200
"""Runs that are looked through for one that is complete."""
PATIENCE_S = 10.0
"""For a client that sends no request."""

FAILED = (Outcome.FAILED, Outcome.SKIPPED)
_ENDED = (Phase.HELD, Phase.DONE, Phase.CLEAN, Phase.PARTIAL, Phase.FAILED, Phase.INTERRUPTED)


@dataclass(slots=True)
class Doing:
    """What the service itself knows: what it does now, in a line; when the next round is due (Unix seconds, 0.0 while
    one goes on); how the last ended, in a line and as a word, "" before the first."""

    stage: str = "starting"
    next_at: float = 0.0
    last: str = ""
    end: End | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Past:
    """Of the runs in the catalogue: the newest that ended; the newest whose listing did; the newest that is complete,
    so that the mirror was as the source; the newest that made a plan, if the guard holds that; the newest that carried one
    out. Runs of events list nothing, so they are none of the second, third and fifth kind."""

    last: Run | None = None
    listed: Run | None = None
    complete: Run | None = None
    held: Run | None = None
    applied: Run | None = None


def past_of(runs: Sequence[Run]) -> Past:
    """From runs with the newest first."""
    planned = next((run for run in runs if run.plan), None)
    return Past(
        next((run for run in runs if run.phase in _ENDED), None),
        next((run for run in runs if "keys" in run.facts and not run.of_events), None),
        next((run for run in runs if is_complete(run) and not run.of_events), None),
        planned if planned is not None and planned.phase is Phase.HELD else None,
        next((run for run in runs if "applied" in run.facts and not run.of_events), None),
    )


def is_complete(run: Run) -> bool:
    """Whether everything that was planned is on the mirror, but for what the source changed meanwhile and for what others
    wrote on the mirror."""
    return run.phase in (Phase.DONE, Phase.CLEAN) or (run.phase is Phase.PARTIAL and failed_lines(run) == 0)


def failed_lines(run: Run) -> int:
    """Lines of the run that could not be done, or were not tried."""
    return _count(run, *FAILED)


def drifted_lines(run: Run) -> int:
    """Lines of the run that were left alone, since the mirror holds what we did not put there."""
    return _count(run, Outcome.DRIFTED)


def _count(run: Run, *outcomes: Outcome) -> int:
    counts = run.facts.get("applied", {}).get("counts", {})
    return sum(of.get(outcome, 0) for of in counts.values() for outcome in outcomes)


def drift(mirror: str, past: Past) -> str:
    """What is to be told of objects that others wrote on the mirror, and what to do; "" where there are none."""
    run = past.applied
    if run is None or not (lines := drifted_lines(run)):
        return ""
    failures = run.facts["applied"].get("failures", [])
    key = next((one["key"] for one in failures if one["outcome"] == Outcome.DRIFTED), "")
    such = f", such as {key}" if key else ""
    look = f"; cowsync explain {mirror} KEY tells which" if key else ""
    return f"{lines:,} objects on the mirror are not what was put there{such}, and were left alone{look}"


def why_not(mirror: str, past: Past, every_s: float, now: float) -> list[str]:
    """What is wrong, and what to do about it; nothing: healthy."""
    found: list[str] = []
    if past.held is not None:
        digest = past.held.plan[:SHOWN_DIGEST]
        found.append(
            f"the guard holds plan {digest}: {past.held.message}; after a look: cowsync apply {mirror} --approve {digest}"
        )
    if past.complete is None:
        found.append("no complete run is known")
    elif now - past.complete.ended >= LATE_PERIODS * every_s:
        age, period = shown_duration(round(now - past.complete.ended)), shown_duration(every_s)
        found.append(f"the last complete run ended {age} ago, and one is due every {period}")
    last = past.last
    if found and last is not None and last is not past.complete and last.phase is not Phase.HELD:
        failed = failed_lines(last)
        why = last.message or (f"{failed:,} lines failed" if failed else "")
        found.append(f"the last run is {last.phase}" + (f": {why}" if why else ""))
    return found


class Health:
    """`runs` gives the newest runs of the catalogue, `feed` what `feed.source.status_of` tells at a moment. Safe to ask from
    several threads."""

    def __init__(
        self,
        mirror: str,
        every_s: float,
        runs: Callable[[int], Sequence[Run]],
        doing: Doing,
        now: Callable[[], float],
        *,
        feed: Callable[[float], Mapping[str, object]] | None = None,
    ) -> None:
        self.mirror = mirror
        self._every_s = every_s
        self._runs = runs
        self._doing = doing
        self._now = now
        self._feed = feed
        self._complete: Run | None = None

    def past(self) -> Past:
        """StateDamaged. A complete run that was seen once is not forgotten when many that failed come after it."""
        past = past_of(self._runs(LOOK_BACK))
        self._complete = past.complete or self._complete
        return replace(past, complete=self._complete)

    def answer(self) -> tuple[int, dict[str, object]]:
        """The status of `/healthz` and its JSON object."""
        now = self._now()
        try:
            past = self.past()
            why = why_not(self.mirror, past, self._every_s, now)
        except StateDamaged as error:
            past, why = Past(), [str(error)]
        doing = self._doing
        # A round that never came as far as the catalogue.
        if why and doing.last:
            why.append(f"the last round here: {doing.last}")
        return 503 if why else 200, {
            "mirror": self.mirror,
            "healthy": not why,
            "why": "; ".join(why),
            "held": past.held.plan if past.held else "",
            "drifted": drifted_lines(past.applied) if past.applied else 0,
            "drift": drift(self.mirror, past),
            "last_complete": past.complete.ended if past.complete else None,
            "age_seconds": round(now - past.complete.ended, 3) if past.complete else None,
            "every_seconds": self._every_s,
            "doing": doing.stage,
            "next_at": doing.next_at or None,
        } | ({"events": self._events(now)} if self._feed else {})

    def _events(self, now: float) -> Mapping[str, object]:
        try:
            return self._feed(now) if self._feed else {}
        except OSError as error:
            return {"error": str(error)}

    def told(self) -> Mapping[str, float]:
        """`figures`, for monitors: without a state that can be read it is not healthy, and `/healthz` has the words."""
        try:
            return self.figures()
        except StateDamaged:
            return {"healthy": 0.0}

    def figures(self) -> dict[str, float]:
        """Numbers by the names that METRICS has; those that are not known are not there. StateDamaged."""
        now, past = self._now(), self.past()
        found: dict[str, float] = {
            "healthy": float(not why_not(self.mirror, past, self._every_s, now)),
            "held": float(past.held is not None),
            "every_seconds": self._every_s,
            "lock_held": float(self._doing.end == End.BUSY),
        }
        if past.last is not None:
            found["last_run_timestamp_seconds"] = past.last.started
            found["last_run_duration_seconds"] = past.last.ended - past.last.started
            found["failed_lines"] = failed_lines(past.last)
        failed = past.last is not None and (past.last.phase is Phase.FAILED or failed_lines(past.last) > 0)
        found["last_run_failed"] = float(failed or self._doing.end == End.FAILED)
        if past.applied is not None:
            found["drifted_lines"] = drifted_lines(past.applied)
        if past.complete is not None:
            found["last_complete_run_timestamp_seconds"] = past.complete.started
            found["lag_seconds"] = now - past.complete.started
        if past.listed is not None:
            facts = past.listed.facts
            found |= {"keys": facts["keys"], "bytes": facts["bytes"], "changes": facts["lines"]}
        events = self._events(now)
        for figure, name in EVENT_FIGURES.items():
            value = events.get(name)
            if isinstance(value, int | float):
                found[figure] = value
        return found


# --- metrics ---------------------------------------------------------------------------------------------------------


METRICS = gauges(
    "mirror",
    ("healthy", "0 or 1", "What `/healthz` says"),
    ("held", "0 or 1", "Whether the guard holds the newest plan, which waits for an approval"),
    ("lag_seconds", "seconds", "Since the beginning of the last complete run: what is newer may not be mirrored"),
    ("last_run_timestamp_seconds", "seconds", "When the last run that ended began, in Unix time"),
    ("last_run_duration_seconds", "seconds", "How long that took, from its listing to its publishing"),
    ("last_complete_run_timestamp_seconds", "seconds", "When the last complete run began, in Unix time"),
    ("keys", "objects", "Objects that the last complete listing of the source found"),
    ("bytes", "bytes", "Their size"),
    ("changes", "lines", "Lines of the plan that came of it"),
    ("failed_lines", "lines", "Lines of the last run that failed or were not tried"),
    ("drifted_lines", "lines", "Lines of the last plan carried out that were left alone: others wrote on the mirror"),
    ("last_run_failed", "0 or 1", "Whether the last run did not come to its end, or left lines that failed"),
    ("lock_held", "0 or 1", "Whether the service found another process at work on the mirror when its run was due"),
    ("every_seconds", "seconds", "Time from one run to the next, as configured"),
    ("events_lag_seconds", "seconds", "Since the oldest event was sent that is not handled; 0 where there is none"),
    ("events_handled_timestamp_seconds", "seconds", "When events were handled last, in Unix time"),
    ("events_lines", "lines", "Lines of the feed of events that were handled, since the place in it was first noted"),
    ("events_malformed_lines", "lines", "Those of them that could not be understood, and were skipped"),
    ("events_floods", "times", "That there were so many keys that the source was listed instead"),
    ("events_lost", "times", "That the place in the feed was not found again: what was missed waited for a listing"),
)
"""All have the label `mirror`; one without a figure is left out."""
EVENT_FIGURES = {
    "events_lag_seconds": "lag_seconds",
    "events_handled_timestamp_seconds": "handled",
    "events_lines": "lines",
    "events_malformed_lines": "malformed",
    "events_floods": "floods",
    "events_lost": "lost",
}
"""By their names in what is told of a feed; without a feed there are none."""


_HEAD = """
## Mirrors

`listen` in `[mirror.NAME]` has `cowsync watch` answer at `/metrics`, and at `/healthz` ([watch](cowsync/watch.md)). It is
off by default, and there is neither TLS nor a password: listen on loopback, or where only your monitors reach.

Every metric has the label `mirror` and is read off the catalogue of runs of this host when it is asked for, so that runs by
hand count and a restart forgets nothing; `lock_held` and `last_run_failed` also tell how the service's own last round ended.
One that nothing is known of yet is absent. Alerts to begin with:
[deploy/prometheus-alerts.yml](../deploy/prometheus-alerts.yml).

| metric | type | unit | meaning |
| --- | --- | --- | --- |
"""


def mirror_metrics_markdown() -> str:
    """The part of docs/metrics.md on mirrors."""
    return _HEAD + gauge_rows(METRICS)


# --- server ----------------------------------------------------------------------------------------------------------


class HealthServer:
    """Answers GET and HEAD over HTTP, from threads of its own."""

    def __init__(self, listen: str, health: Health) -> None:
        """`listen` is HOST:PORT; port 0 takes any. Listens from now on. Refused when it cannot."""
        registry = new_registry("cowsync", GaugeCollector(METRICS, health.mirror, health.told))
        host, _, port = listen.rpartition(":")
        bare = host.strip("[]")

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = AF_INET6 if ":" in bare else AF_INET

        class Handler(BaseHTTPRequestHandler):
            timeout = PATIENCE_S
            server_version, sys_version = "cowsync", ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/healthz":
                    status, document = health.answer()
                    self._reply(status, "application/json", json.dumps(document).encode() + b"\n")
                elif path == "/metrics":
                    self._reply(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._reply(404, "text/plain", b"there are /healthz and /metrics\n")

            do_HEAD = do_GET

            def _reply(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Monitors ask all day; that is no news."""

        try:
            self._server = Server((bare, int(port)), Handler)
        except OSError as error:
            raise Refused(
                f"cannot listen on {listen}: {error.strerror or error}",
                hint=f"another program uses that port, or the address is not of this machine; change listen of "
                f"[mirror.{health.mirror}]",
            ) from error
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits for the listening thread, not for answers under way."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
