"""The feeds by name.

One rule: a feed is a parser and how its files are cut into pieces for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from integrity.ingest import access_logs, batch_reports, cloudtrail, minio_audit, notifications, rgw_ops_log
from integrity.ingest.events import Options, Parsed


@dataclass(frozen=True, slots=True)
class Feed:
    """`whole`: a file is one piece; else each line is. `pushed`: servers can send it to the webhook."""

    name: str
    source: str
    parse: Callable[[bytes, Options], Parsed]
    whole: bool = False
    pushed: bool = False


FEEDS: Final[Mapping[str, Feed]] = {
    feed.name: feed
    for feed in (
        Feed("notifications", notifications.SOURCE, notifications.parse, pushed=True),
        Feed("minio-audit", minio_audit.SOURCE, minio_audit.parse, pushed=True),
        Feed("rgw-ops-log", rgw_ops_log.SOURCE, rgw_ops_log.parse),
        Feed("access-logs", access_logs.SOURCE, access_logs.parse),
        Feed("cloudtrail", cloudtrail.SOURCE, cloudtrail.parse, whole=True, pushed=True),
        Feed("batch-report", batch_reports.SOURCE, batch_reports.parse),
    )
}
