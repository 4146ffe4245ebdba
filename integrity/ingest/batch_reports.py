"""Completion reports of S3 Batch Operations: CSV, a line for each object of a job.

One rule: a report tells of results, not of what the job did: `operation` of the options does, and where a copy went. Without
it an event is `control`, which claims nothing of an object.

Source: S3 User Guide, "Examples: S3 Batch Operations completion reports": Bucket, Key, VersionId, TaskStatus, ErrorCode,
HTTPStatusCode, ResultMessage. Keys are URL-encoded. Reports are seen with the code and the status in either order.
"""

import csv
from urllib.parse import unquote_plus

from integrity.ingest.events import Event, NotAnEvent, Options, Parsed, each, made, parsed, status_of, text

SOURCE = "batch-report"
OPERATIONS = ("copy", "acl", "tag", "restore", "retention", "put", "delete", "control")
_COLUMNS = 7


def parse(line: bytes, options: Options) -> Parsed:
    """The event of one line. `manifest.json`, which lies beside reports, has none."""
    if not line.strip():
        return Parsed()
    if line.startswith((b"{", b"Bucket,")):
        return Parsed((), (), 1)
    return parsed(each([line], _event, options))


def _event(line: bytes, options: Options) -> Event:
    try:
        row = next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise NotAnEvent("is no line of CSV") from error
    if len(row) != _COLUMNS:
        raise NotAnEvent(f"has {len(row)} columns, not {_COLUMNS}")
    bucket, logged, version, outcome, *codes, message = row
    status = next((status_of(code) for code in codes if status_of(code)), 0)
    code = next((code for code in codes if code and not status_of(code)), "")
    if outcome not in ("succeeded", "failed"):
        raise NotAnEvent(f"says neither succeeded nor failed: {text(outcome, 40)!r}")
    failed = outcome == "failed"
    try:
        key = unquote_plus(logged, errors="strict")
    except UnicodeDecodeError as error:
        raise NotAnEvent("names a key that is no text") from error
    op = options.operation or "control"
    elsewhere = bool(options.bucket)
    return made(
        SOURCE,
        op,
        options,
        bucket=options.bucket or bucket,
        key=options.prefix + key if elsewhere else key,
        version=None if op in ("copy", "put") else version,
        status=status if failed and status >= 400 else 0,
        code=(code or "failed") if failed else "",
        message=message if failed else "",
        detail={
            "api": "BatchOperation",
            "from_bucket": bucket if elsewhere else None,
            "from_key": key if elsewhere else None,
            "from_version": version if op in ("copy", "put") else None,
        },
    )
