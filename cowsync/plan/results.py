"""What S3 Batch Operations did of a plan: their completion reports, read back as results of lines.

One rule: a report says what a job believes it did; done is what is on the mirror. Every line that a report calls
succeeded is looked at there, which also tells the ETag and version that the base must know. Lines that no report names
have no result and are done again.

Rows (S3 User Guide, "Completion reports"): bucket, key, version id, status, error code, HTTP code, message, as CSV without
header. The guide's own examples have error code and HTTP code the other way round, so both are read. Keys are as in the
manifest, `quote_plus`; a key that is none that way is tried as it stands.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from urllib.parse import unquote_plus

from cowsync.changes import LineResult, Op, Outcome, PlanLine
from cowsync.errors import Refused
from cowsync.plan.plan_file import Plan
from s3core.bucket import ObjectFacts
from s3core.build import parse_store_url

CHUNK_ROWS = 200_000
"""Rows held at once: they are sorted, so that each piece of the plan is unpacked once for all of them."""
_MOVED = {"404", "412"}


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One task. `key` as the report has it."""

    bucket: str
    key: str
    version_id: str
    succeeded: bool
    error: str
    http: str
    message: str


@dataclass(slots=True)
class ReportCount:
    """What a report came to. `strangers` are rows that no copying line of the plan is behind."""

    rows: int = 0
    done: int = 0
    moved: int = 0
    drifted: int = 0
    failed: int = 0
    strangers: int = 0


def read_report(lines: Iterable[str]) -> Iterator[ReportRow]:
    """The rows of one CSV file, opened with `newline=""`. Refused names the first row that is none."""
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != 7 or row[3].lower() not in ("succeeded", "failed"):
                raise Refused(
                    f"line {reader.line_num} is not a row of a completion report: {','.join(row)[:100]!r}",
                    hint="give the CSV files below results/, not manifest.json",
                )
            bucket, key, version_id, status, error, http, message = row
            if error.isdecimal() and not http.isdecimal():
                error, http = http, error
            yield ReportRow(bucket, key, version_id, status.lower() == "succeeded", error, http, message)
    except csv.Error as error:
        raise Refused(f"line {reader.line_num} is not CSV: {error}") from error


def line_results(
    plan: Plan,
    rows: Iterable[ReportRow],
    look: Callable[[PlanLine], ObjectFacts | None],
    count: ReportCount,
    *,
    chunk_rows: int = CHUNK_ROWS,
    pool: Executor | None = None,
) -> Iterator[LineResult]:
    """Results of the plan's lines that `rows` name, in no order; a line named twice has the result of its last row last.
    `look` is a HEAD of the line's object on the mirror, None where nothing is there; it is called on `pool`, where there is
    one. `count` is kept as they come.
    Refused where a row is of another bucket than the plan's source."""
    source = parse_store_url(plan.head.source)
    prefix = f"{source.path}/" if source.path else ""
    held: list[ReportRow] = []
    for row in rows:
        if row.bucket.rpartition(":")[2] != source.bucket:
            raise Refused(
                f"the report is of bucket {row.bucket}, the plan of {source.bucket}",
                hint="give the report of the job that had this plan's manifest",
            )
        held.append(row)
        if len(held) == chunk_rows:
            yield from _chunk(plan, held, prefix, look, count, pool)
            held = []
    yield from _chunk(plan, held, prefix, look, count, pool)


def _chunk(
    plan: Plan,
    rows: list[ReportRow],
    prefix: str,
    look: Callable[[PlanLine], ObjectFacts | None],
    count: ReportCount,
    pool: Executor | None,
) -> Iterator[LineResult]:
    keys = {key for row in rows for key in _readings(row.key, prefix)}
    lines = {line.key: (number, line) for number, line in plan.find_all(sorted(keys)) if line.op in (Op.ADD, Op.MODIFY)}
    named: list[tuple[int, PlanLine, ReportRow]] = []
    for row in rows:
        count.rows += 1
        found = next((lines[key] for key in _readings(row.key, prefix) if key in lines), None)
        if found is None:
            count.strangers += 1
            continue
        named.append((*found, row))
    each = pool.map if pool is not None else map
    for result in each(lambda one: _result(one[0], one[1], one[2], look), named):
        count.done += result.outcome is Outcome.DONE
        count.moved += result.outcome is Outcome.MOVED
        count.drifted += result.outcome is Outcome.DRIFTED
        count.failed += result.outcome is Outcome.FAILED
        yield result


def _readings(key: str, prefix: str) -> list[str]:
    whole = (unquote_plus(key, errors="surrogateescape"), key)
    return [one.removeprefix(prefix) for one in whole if one.startswith(prefix)]


def _result(number: int, line: PlanLine, row: ReportRow, look: Callable[[PlanLine], ObjectFacts | None]) -> LineResult:
    if row.version_id and line.version_id and row.version_id != line.version_id:
        return LineResult(number, Outcome.MOVED, message=f"the report is of version {row.version_id}, not the plan's")
    if not row.succeeded:
        told = " ".join(one for one in (row.http, row.error, row.message) if one) or "no reason given"
        return LineResult(number, Outcome.MOVED if row.http in _MOVED else Outcome.FAILED, message=told)
    held = look(line)
    if held is None:
        return LineResult(number, Outcome.FAILED, message="reported as copied, but it is not on the mirror")
    if held.size != line.size:
        # A job copies what is there by then. One of the same size does no harm: the base says of which ETag of the source
        # the mirror has a copy, and the next scan sees another.
        return LineResult(
            number, Outcome.DRIFTED, message=f"the mirror holds {held.size} bytes, the plan says {line.size}"
        )
    return LineResult(
        number, Outcome.DONE, held.etag, held.version_id, bytes_copied=line.size, message="S3 Batch Operations"
    )
