"""`/metrics`: what Prometheus is told of the console, and who may ask.

One rule: a figure is declared once, in FIGURES; it is counted from the database at each scrape, so every process of an
installation tells the same. What nothing is known of is absent, which is not 0.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cryptography.x509 import load_pem_x509_certificate
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envctl.calling import Context
from envctl.database.models import Backup, Environment, Guest, Job, Node, Orphan, User
from envctl.states import EnvironmentState, JobState
from envctl.web.health import Monitor, Word
from envctl.web.scraping import check
from s3core.gauges import new_registry

log = logging.getLogger(__name__)

PREFIX: Final = "bucketworks_envctl_"
GUEST_SILENT_S: Final = 300.0
DAY_S: Final = 86400.0

Samples = dict[tuple[str, ...], float]
"""Values by their labels."""


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    labels: tuple[str, ...]
    unit: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"


FIGURES: Final[tuple[Figure, ...]] = (
    Figure("environments", ("state",), "number", "environments in each state; purged ones are not counted"),
    Figure("running", (), "number", "machines that run"),
    Figure("findings", (), "number", "environments whose machine is missing, changed by others, or there twice"),
    Figure("backup_interval_seconds", (), "seconds", "how often a home is to be saved"),
    Figure(
        "backup_age_seconds",
        ("environment", "owner"),
        "seconds",
        "since the home in the bucket last was that of the machine; of ready environments. "
        "Counted from READY where nothing was ever saved",
    ),
    Figure("backup_oldest_seconds", (), "seconds", "the highest of these"),
    Figure("backup_failing", (), "number", "ready environments whose last attempt failed"),
    Figure(
        "stored_bytes", ("environment", "owner"), "bytes", "what the home takes in the bucket, all backups together"
    ),
    Figure(
        "mass_changes",
        (),
        "number",
        "backups of the last 24 hours that changed or removed so much that the guard spoke",
    ),
    Figure("jobs", ("state",), "number", "jobs that wait (`queued`) or are under way (`running`)"),
    Figure("job_oldest_seconds", (), "seconds", "age of the oldest of them"),
    Figure("jobs_ended_total", ("kind", "state"), "number", "jobs that are over, by how they ended", "counter"),
    Figure("jobs_failed_recently", (), "number", "jobs that failed in the last hour"),
    Figure("guests_seen", (), "number", f"agents of running machines heard of in the last {GUEST_SILENT_S:.0f} s"),
    Figure("guests_silent", (), "number", "agents of ready machines not heard of for longer"),
    Figure(
        "guest_requests_total",
        ("status",),
        "number",
        "requests of agents that this process answered, by HTTP status; 412: fenced, another machine has the home",
        "counter",
    ),
    Figure(
        "orphans", ("driver",), "number", "machines with our mark that no environment has, but those kept on purpose"
    ),
    Figure("nodes_online", ("driver",), "number", "nodes that are up, at the last look"),
    Figure("driver_up", ("driver",), "0 or 1", "the hypervisor answers"),
    Figure("store_up", (), "0 or 1", "the homes' store answers"),
    Figure(
        "certificate_expiry_timestamp_seconds",
        (),
        "seconds",
        "when the certificate that the console serves TLS with ends, in Unix time; absent where a proxy has TLS",
    ),
    Figure("consoles_open", (), "number", "screens and terminals open through this process"),
    Figure(
        "audit_lost_total", (), "number", "outcomes that the ledger could not take; the database has them", "counter"
    ),
)


class GuestAnswers:
    """Middleware that counts what agents were answered. One for each process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def around(self, app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    with self._lock:
                        self._counts[str(message["status"])] += 1
                await send(message)

            guest = scope["type"] == "http" and scope["path"].startswith("/guest/")
            await app(scope, receive, sending if guest else send)

        return counted

    def samples(self) -> Samples:
        with self._lock:
            return {(status,): float(count) for status, count in sorted(self._counts.items())}


class ConsoleCollector(Collector):
    """`consoles`: how many are open."""

    def __init__(
        self, get_context: Callable[[], Context], monitor: Monitor, consoles: Callable[[], int], guests: GuestAnswers
    ) -> None:
        self._context, self._monitor, self._consoles, self._guests = get_context, monitor, consoles, guests

    def describe(self) -> Iterable[Family]:
        """Nothing is asked when the collector is registered."""
        return []

    def collect(self) -> Iterator[Family]:
        context = self._context()
        with context.database.read() as session:
            found = figures(session, context.now(), context.settings.backup_interval_s)
        found["audit_lost_total"] = {(): context.audit.lost}
        found["consoles_open"] = {(): self._consoles()}
        found["guest_requests_total"] = self._guests.samples()
        found["certificate_expiry_timestamp_seconds"] = certificate_expiry(context.settings.certificate)
        found["store_up"] = _up((), self._monitor.seen.store)
        found["driver_up"] = {}
        for name, word in self._monitor.seen.drivers.items():
            found["driver_up"] |= _up((name,), word)
        for figure in FIGURES:
            shape = GaugeMetricFamily if figure.kind == "gauge" else CounterMetricFamily
            family = shape(PREFIX + figure.name.removesuffix("_total"), figure.help, labels=figure.labels)
            for labels, value in found.get(figure.name, {}).items():
                family.add_metric(labels, value)
            yield family


def figures(session: Session, now: float, interval_s: float) -> dict[str, Samples]:
    """What the database tells, by names of FIGURES."""
    found: dict[str, Samples] = {"backup_interval_seconds": {(): interval_s}}
    states = session.execute(
        select(Environment.state, func.count())
        .where(Environment.state != EnvironmentState.PURGED)
        .group_by(Environment.state)
    )
    kept = [state for state in EnvironmentState if state is not EnvironmentState.PURGED]
    found["environments"] = _by_label(states, kept)
    found["running"] = {(): _count(session, select(func.count()).where(Environment.running))}
    living = (
        Environment.state.not_in((EnvironmentState.DELETED, EnvironmentState.PURGED)),
        Environment.finding.is_not(None),
    )
    found["findings"] = {(): _count(session, select(func.count()).where(*living))}
    rows = session.execute(
        select(
            Environment.id,
            User.name,
            Environment.state,
            Environment.ready_at,
            Environment.created_at,
            Environment.last_backup_at,
            Environment.last_backup_error,
            Environment.stored_bytes,
        )
        .join(User, User.id == Environment.owner_id)
        .where(Environment.state != EnvironmentState.PURGED)
    ).all()
    ready = [row for row in rows if row.state == EnvironmentState.READY]
    ages: Samples = {
        (row.id, row.name): max(0.0, now - (row.last_backup_at or row.ready_at or row.created_at)) for row in ready
    }
    found["backup_age_seconds"] = ages
    found["backup_oldest_seconds"] = {(): max(ages.values())} if ages else {}
    found["backup_failing"] = {(): sum(row.last_backup_error is not None for row in ready)}
    found["stored_bytes"] = {(row.id, row.name): row.stored_bytes for row in rows}
    found["mass_changes"] = {
        (): _count(session, select(func.count()).where(Backup.alert.is_not(None), Backup.at > now - DAY_S))
    }
    found |= _jobs(session, now)
    found |= _guests(session, now)
    orphans = session.execute(select(Orphan.driver, func.count()).where(~Orphan.kept).group_by(Orphan.driver))
    found["orphans"] = {(driver,): count for driver, count in orphans}
    nodes = session.execute(select(Node.driver, func.count()).where(Node.online).group_by(Node.driver))
    found["nodes_online"] = {(driver,): count for driver, count in nodes}
    return found


def _jobs(session: Session, now: float) -> dict[str, Samples]:
    under_way = (JobState.QUEUED, JobState.RUNNING)
    counts = session.execute(select(Job.state, func.count()).where(Job.state.in_(under_way)).group_by(Job.state))
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state.in_(under_way)))
    ended = session.execute(
        select(Job.kind, Job.state, func.count()).where(Job.state.not_in(under_way)).group_by(Job.kind, Job.state)
    )
    failed = select(func.count()).where(Job.state == JobState.FAILED, Job.ended_at > now - 3600.0)
    return {
        "jobs": _by_label(counts, under_way),
        "job_oldest_seconds": {(): max(0.0, now - oldest)} if oldest is not None else {},
        "jobs_ended_total": {(kind, state): count for kind, state, count in ended},
        "jobs_failed_recently": {(): _count(session, failed)},
    }


def _guests(session: Session, now: float) -> dict[str, Samples]:
    """Of each environment the guest of its generation counts."""
    current = (
        select(func.count())
        .select_from(Guest)
        .join(Environment, (Environment.id == Guest.environment_id) & (Environment.generation == Guest.generation))
        .where(Guest.revoked_at.is_(None), Guest.enrolled_at.is_not(None))
    )
    seen = Guest.seen_at > now - GUEST_SILENT_S
    silent = current.where(Environment.state == EnvironmentState.READY, Environment.running, ~seen)
    return {
        "guests_seen": {(): _count(session, current.where(Environment.running, seen))},
        "guests_silent": {(): _count(session, silent)},
    }


def _by_label(rows: Iterable[Any], all_labels: Sequence[str]) -> Samples:
    """Counts by their label; 0 for one that nothing was counted of."""
    found: Samples = {(str(label),): 0.0 for label in all_labels}
    for label, count in rows:
        found[(str(label),)] = float(count)
    return found


def _count(session: Session, query: Select[Any]) -> float:
    return float(session.scalar(query) or 0)


def certificate_expiry(path: str) -> Samples:
    """Of the first certificate in the PEM file, which is the console's own. What cannot be read is told in the log."""
    if not path:
        return {}
    try:
        expiry = load_pem_x509_certificate(Path(path).read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        log.warning("the end of certificate %s is not known: %s", path, error)
        return {}
    return {(): expiry.timestamp()}


def _up(labels: tuple[str, ...], word: Word) -> Samples:
    return {} if word == "unknown" else {labels: 1.0 if word == "ok" else 0.0}


def router(
    get_context: Callable[[], Context],
    monitor: Monitor,
    consoles: Callable[[], int] = lambda: 0,
    guests: GuestAnswers | None = None,
) -> APIRouter:
    """With `[envctl] metrics_token`: for who sends it as `Authorization: Bearer`; without: for this host alone."""
    made = APIRouter(include_in_schema=False)
    collector = ConsoleCollector(get_context, monitor, consoles, guests or GuestAnswers())
    registry = new_registry("s3-envctl", collector)

    @made.get("/metrics")
    def metrics(request: Request) -> Response:
        check(request, get_context().settings.metrics_token)
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return made


def envctl_metrics_markdown() -> str:
    """The console's part of docs/metrics.md."""
    rows = "".join(
        f"| `{PREFIX}{one.name}` | {one.kind} | {', '.join(one.labels) or '-'} | {one.unit} | {one.help} |\n"
        for one in FIGURES
    )
    return (
        "\n## The console: `s3-envctl serve`\n\n"
        "`/metrics` at the console's own address; for this host alone, or with the token of `metrics_token`.\n\n"
        "| metric | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |\n" + rows
    )
