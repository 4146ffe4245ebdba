"""How the console on this host is: environments by state, homes not saved, the oldest backup.

One rule: the running console is asked for its own figures, at `/metrics`; where it does not answer, or wants a token that this
user may not read, its database is read, and nothing else is done to it: whoever asks may be root, and the file is the
console's. No bucket and no hypervisor is asked. A user who may not read the database is told what answered.
"""

import http.client
import os
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from envctl.database.access import Database, sqlite_url
from envctl.errors import EnvctlError
from envctl.web.metrics import FIGURES, PREFIX, Samples, figures
from s3core.credentials import CredentialsError, read_secret, secret_path
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration
from s3core.settings import EnvctlSettings
from s3core.status import Fact, Item, unknown

NAME = "envctl"
PAGE = "runbook/envctl.md"
METRICS_BYTES_MAX = 64 << 20
LATE_INTERVALS = 3
"""As the alert on late backups has it (deploy/prometheus-alerts.yml)."""


def look_at(settings: EnvctlSettings, patience_s: float) -> Item:
    """Ask the process, else read the database."""
    try:
        return judge(_scraped(settings, patience_s), settings.backup_interval_s, "")
    except (OSError, ValueError, http.client.HTTPException, CredentialsError) as error:
        # Its database tells of the environments all the same, where this user may read it.
        refused = isinstance(error, _Refused | CredentialsError)
        silent = "" if refused else f"the console does not answer at {settings.listen}: {error}"
        why = str(error)
    url = settings.database or sqlite_url(Path(settings.state_dir))
    try:
        with closing(Database(url, wait_s=patience_s, read_only=True)) as database:
            database.check()
            with database.read() as session:
                return judge(
                    figures(session, time.time(), settings.backup_interval_s), settings.backup_interval_s, silent
                )
    except EnvctlError as error:
        if silent:
            return Item("console", NAME, "critical", "", f"{silent}; and its database: {error}", PAGE)
        return unknown("console", NAME, f"{why}; and its database: {error}", PAGE)


class _Refused(ValueError):
    """It answers, and not to us."""


def _scraped(settings: EnvctlSettings, patience_s: float) -> dict[str, Samples]:
    """The figures of the running console. OSError, ValueError, HTTPException, CredentialsError."""
    host, _, port = settings.listen.rpartition(":")
    bare = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    connection: http.client.HTTPConnection
    headers = {}
    if settings.metrics_token:
        token = read_secret(secret_path(settings.metrics_token.removeprefix("file:"), os.environ))
        headers["Authorization"] = f"Bearer {token}"
    if settings.certificate:
        # Its certificate is for the name that browsers use; the token goes no further than this host's address.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(bare, int(port), timeout=patience_s, context=context)
    else:
        connection = http.client.HTTPConnection(bare, int(port), timeout=patience_s)
    try:
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        text = answer.read(METRICS_BYTES_MAX).decode()
    finally:
        connection.close()
    if answer.status in (401, 403):
        raise _Refused(f"the console keeps its figures from this user (HTTP status {answer.status})")
    if answer.status != 200:
        raise ValueError(f"it answers with HTTP status {answer.status}")
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        figure = next((one for one in FIGURES if PREFIX + one.name.removesuffix("_total") == family.name), None)
        if figure is not None:
            found[figure.name] = {
                tuple(sample.labels.get(label, "") for label in figure.labels): sample.value
                for sample in family.samples
            }
    if "environments" not in found:
        raise ValueError("what listens there is no console of ours")
    return found


def judge(found: Mapping[str, Samples], interval_s: float, silent: str) -> Item:
    """What the figures mean. Pure."""
    states = {labels[0]: int(count) for labels, count in found["environments"].items() if count}
    ages = found.get("backup_age_seconds", {}).values()
    oldest, late = max(ages, default=0.0), sum(age > LATE_INTERVALS * interval_s for age in ages)
    failing, jobs_failed = int(_one(found, "backup_failing")), int(_one(found, "jobs_failed_recently"))
    facts: dict[str, Fact] = {f"environments_{state}": count for state, count in states.items()}
    facts |= {
        "environments": sum(states.values()),
        "unsaved_homes": late,
        "backups_failing": failing,
        "oldest_backup_seconds": round(oldest, 1),
        "backup_interval_seconds": interval_s,
        "orphans": int(sum(found.get("orphans", {}).values())),
        "jobs_failed_recently": jobs_failed,
        "homes_stored_bytes": int(sum(found.get("stored_bytes", {}).values())),
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
        *([f"{failing} {'backup fails' if failing == 1 else 'backups fail'}"] if failing else []),
        *(
            [f"{states['failed']} {'environment has' if states['failed'] == 1 else 'environments have'} failed"]
            if states.get("failed")
            else []
        ),
        *([f"{jobs_failed} {'job' if jobs_failed == 1 else 'jobs'} failed within the hour"] if jobs_failed else []),
        *(
            [f"{facts['orphans']} {'machine has' if facts['orphans'] == 1 else 'machines have'} no environment"]
            if facts["orphans"]
            else []
        ),
        *(["the reconciler found machines that are not as they should be"] if _one(found, "findings") else []),
    ]
    if problems:
        return Item("console", NAME, "warning", summary, "; ".join(problems), PAGE, facts=facts)
    return Item("console", NAME, "ok", summary, facts=facts)


def _one(found: Mapping[str, Samples], name: str) -> float:
    return found.get(name, {}).get((), 0.0)
