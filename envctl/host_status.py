"""What `bucketworks status` is told of the console on this host: environments by state, homes not saved, the oldest backup.

One rule: the console's database is read, with the figures that `/metrics` has; whether its process answers is asked at
`/readyz`. No bucket and no hypervisor is asked."""

import http.client
import ssl
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from envctl.database.access import Database, sqlite_url
from envctl.errors import EnvctlError
from envctl.web.metrics import Samples, figures
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration
from s3core.settings import Config, EnvctlSettings
from s3core.status import Fact, Item
from s3core.status_collector import Look, readable_directory

NAME = "envctl"
PAGE = "runbook/envctl.md"
LATE_INTERVALS = 3
"""As the alert on late backups has it (deploy/prometheus-alerts.yml)."""


def report(config: Config) -> Iterable[Look]:
    """One, where a console has its database here or is configured to have it elsewhere."""
    settings = config.envctl
    there = bool(settings.database)
    if not there and readable_directory(Path(settings.state_dir)):
        there = (Path(settings.state_dir) / "envctl.sqlite3").exists()
    return [Look("console", NAME, partial(look_at, settings, config.status.deadline_s))] if there else []


def look_at(settings: EnvctlSettings, patience_s: float) -> Item:
    """Read the database, and ask the process."""
    silent = ""
    try:
        _ask(settings, patience_s)
    except (OSError, ValueError, http.client.HTTPException) as error:
        silent = f"the console does not answer at {settings.listen}: {error}"
    url = settings.database or sqlite_url(Path(settings.state_dir))
    try:
        with closing(Database(url, wait_s=patience_s)) as database:
            database.check()
            with database.read() as session:
                found = figures(session, time.time(), settings.backup_interval_s)
    except EnvctlError as error:
        return Item("console", NAME, "critical", "", str(error), PAGE, ExitCode.UNAVAILABLE)
    return judge(found, settings.backup_interval_s, silent)


def _ask(settings: EnvctlSettings, patience_s: float) -> None:
    """That its process answers with 200. OSError, ValueError, HTTPException."""
    host, _, port = settings.listen.rpartition(":")
    bare = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    connection: http.client.HTTPConnection
    if settings.certificate:
        # Nothing secret is sent, and its certificate is for the name that browsers use.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(bare, int(port), timeout=patience_s, context=context)
    else:
        connection = http.client.HTTPConnection(bare, int(port), timeout=patience_s)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        answer.read(4096)
        if answer.status != 200:
            raise ValueError(f"it is not ready (HTTP status {answer.status})")
    finally:
        connection.close()


def judge(found: Mapping[str, Samples], interval_s: float, silent: str) -> Item:
    """What the figures mean. Pure."""
    states = {labels[0]: int(count) for labels, count in found["environments"].items() if count}
    ages = found["backup_age_seconds"].values()
    oldest, late = max(ages, default=0.0), sum(age > LATE_INTERVALS * interval_s for age in ages)
    failing, jobs_failed = int(_one(found, "backup_failing")), int(_one(found, "jobs_failed_recently"))
    facts: dict[str, Fact] = {f"environments_{state}": count for state, count in states.items()}
    facts |= {
        "environments": sum(states.values()),
        "unsaved_homes": late,
        "backups_failing": failing,
        "oldest_backup_seconds": round(oldest, 1),
        "backup_interval_seconds": interval_s,
        "orphans": int(sum(found["orphans"].values())),
        "jobs_failed_recently": jobs_failed,
        "homes_stored_bytes": int(sum(found["stored_bytes"].values())),
    }
    parts = [", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no environments"]
    if ages:
        parts.append(f"oldest backup {shown_duration(round(oldest))} ago")
    summary = "; ".join(parts)
    if silent:
        return Item("console", NAME, "critical", summary, silent, PAGE, ExitCode.UNAVAILABLE, facts)
    if late:
        reason = (
            f"{late} {'home was' if late == 1 else 'homes were'} not saved for more than {LATE_INTERVALS} intervals"
        )
        return Item("console", NAME, "critical", summary, reason, PAGE, ExitCode.UNAVAILABLE, facts)
    problems = [
        *([f"{failing} backups fail"] if failing else []),
        *([f"{states['failed']} environments have failed"] if states.get("failed") else []),
        *([f"{jobs_failed} jobs failed within the hour"] if jobs_failed else []),
        *([f"{facts['orphans']} machines have no environment"] if facts["orphans"] else []),
        *(["the reconciler found machines that are not as they should be"] if _one(found, "findings") else []),
    ]
    if problems:
        return Item("console", NAME, "warning", summary, "; ".join(problems), PAGE, facts=facts)
    return Item("console", NAME, "ok", summary, facts=facts)


def _one(found: Mapping[str, Samples], name: str) -> float:
    return found[name].get((), 0.0)
