"""How the configured endpoints are: whether they answer, how fast, whether their clock is ours, what failed last.

One rule: it needs no keys and costs nothing: one unsigned HEAD of the service itself, whose answer, whatever its status
below 500, says that a server of S3 is there. Whether keys and buckets are right is for `bucketworks endpoint test`; that they
were wrong shows as the last failure of those who used them.
"""

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial

from s3core.endpoint import REGION_AUTO, Endpoint
from s3core.errors import Misconfigured, StoreError
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration
from s3core.s3_http import Answer, Transport
from s3core.settings import Config, settings_to_endpoint
from s3core.spending import Spent, month_of
from s3core.spending_book import directory_of, read_month
from s3core.status import Fact, Health, Item
from s3core.status_collector import Look

UNREACHABLE = "runbook/store-unreachable.md"
RECENT_S = 300.0
"""A failure so long ago is told as a warning."""
SKEW_WARNING_S = 60.0
SKEW_REFUSED_S = 900.0
"""From here on servers refuse signatures (RequestTimeTooSkewed)."""
SLOW_S = 2.0


def endpoint_looks(config: Config) -> Iterable[Look]:
    """One for each `[endpoint.NAME]`."""
    return [Look("endpoint", name, partial(look_at, config, name)) for name in sorted(config.endpoints)]


def look_at(config: Config, name: str) -> Item:
    """Ask the server, within the report's deadline."""
    endpoint = settings_to_endpoint(name, config.endpoints[name], path=config.path)
    # A little less than the report waits, so that what it was about is told.
    wait_s = 0.8 * config.status.deadline_s
    hasty = replace(
        endpoint,
        connect_timeout_s=min(endpoint.connect_timeout_s, wait_s),
        read_timeout_s=min(endpoint.read_timeout_s, wait_s),
    )
    past, unread = _spent(config, name)
    began = time.monotonic()
    try:
        with closing(Transport(hasty)) as transport:
            # What is told is how long the server takes, not how long this host reads certificates.
            began = time.monotonic()
            region = "us-east-1" if hasty.region == REGION_AUTO else hasty.region
            headers = {"accept-encoding": "identity", "user-agent": "bucketworks"}
            answer: Answer | StoreError = transport.send(
                "HEAD", hasty.address("", region), "/", headers, mutating=False
            )
    except StoreError as error:
        answer = error
    return judge(endpoint, answer, time.monotonic() - began, time.time(), past, unread)


def judge(
    endpoint: Endpoint, answer: Answer | StoreError, took_s: float, now: float, past: Spent, unread: str = ""
) -> Item:
    """What an answer, or none, means. `past` is what this host spent there this month, `unread` why that is not known. Pure."""
    facts: dict[str, Fact] = {
        "url": endpoint.url,
        "reachable": isinstance(answer, Answer),
        "errors_this_month": past.errors,
    }
    if past.failed_at:
        facts |= {"last_error": past.failure, "last_error_at": past.failed_at}
    if isinstance(answer, StoreError):
        code = ExitCode.CONFIGURATION if isinstance(answer, Misconfigured) else ExitCode.UNAVAILABLE
        return Item("endpoint", endpoint.name, "critical", "does not answer", str(answer), UNREACHABLE, code, facts)
    facts |= {"latency_seconds": round(took_s, 4), "http_status": answer.status}
    summary = f"answers in {shown_duration(took_s)}"
    skew = _skew(answer, now)
    if skew is not None:
        facts["clock_skew_seconds"] = round(skew, 1)
    if answer.status >= 500:
        reason = f"the server answers with HTTP status {answer.status}"
        return Item("endpoint", endpoint.name, "critical", summary, reason, UNREACHABLE, facts=facts)
    if skew is not None and abs(skew) >= SKEW_WARNING_S:
        refused = abs(skew) >= SKEW_REFUSED_S
        reason = f"this host's clock is {shown_duration(abs(skew))} {'behind' if skew > 0 else 'ahead of'} the server's"
        reason += "; requests are refused" if refused else "; from 15 min on requests are refused"
        health: Health = "critical" if refused else "warning"
        return Item("endpoint", endpoint.name, health, summary, reason, UNREACHABLE, ExitCode.CONFIGURATION, facts)
    if past.failed_at and now - past.failed_at < RECENT_S:
        reason = f"last error {shown_duration(max(0.0, round(now - past.failed_at)))} ago: {past.failure}"
        return Item("endpoint", endpoint.name, "warning", summary, reason, UNREACHABLE, facts=facts)
    if took_s >= SLOW_S:
        return Item("endpoint", endpoint.name, "warning", summary, "it is slow", UNREACHABLE, facts=facts)
    if unread:
        return Item("endpoint", endpoint.name, "ok", f"{summary}; {unread}", facts=facts)
    return Item("endpoint", endpoint.name, "ok", summary, facts=facts)


def _spent(config: Config, name: str) -> tuple[Spent, str]:
    directory = directory_of(config)
    try:
        month = read_month(directory, month_of(time.time())) if directory is not None else {}
    except (OSError, ValueError) as error:
        return Spent(), f"what failed there is not known: {error}"
    return month.get(name, Spent()), ""


def _skew(answer: Answer, now: float) -> float | None:
    """By how many seconds the server's clock is ahead of ours; None where it tells no time. Known to a second."""
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - now
    except (KeyError, ValueError, TypeError):
        return None
