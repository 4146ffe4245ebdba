"""What a base learns from an apply: rows of the new layer, out of the plan and the journals.

One rule: only what happened. A line that copies or removes counts when the journal says DONE; VANISH and RETURN count
always, since they say something about the source and move nothing.

    ADD, MODIFY   the source's row, with the ETag and version id that the mirror answered
    VANISH        the last known row, `gone` since that run
    RETURN        the row, present again; the mirror holds what it held
    REMOVE        the key, REMOVED; of all versions: the delete marker, a row as any other

Rows come in ascending order of key, as the plan's lines do. Memory is bounded: within one start of one worker the
results of one kind of lines ascend, so each journal is a few ascending runs, which are merged as they are read.
"""

import heapq
import os
from collections.abc import Iterator
from pathlib import Path

from cowsync.apply.journal import journal_files, records
from cowsync.apply.journal_format import HEADER_BYTES
from cowsync.apply.run import ORDER, Plan
from cowsync.changes import LineResult, Op, Outcome, PlanLine
from cowsync.rows import REMOVED, Row, Rows

_RUN_BYTES = 64 << 10
"""Read at once from each run of each journal."""
PIECE_ROWS = 10_000


def outcome_rows(plan: Plan, directory: Path, *, piece_rows: int = PIECE_ROWS) -> Iterator[Rows]:
    """Rows of the layer that the apply in `directory` adds, in pieces of up to `piece_rows`, never empty. Right for an
    apply that was stopped, too. Raises StateDamaged, OSError."""
    piece = Rows()
    for line, result in line_results(plan, directory):
        row = row_of(line, result)
        if row is None:
            continue
        piece.append(row)
        if len(piece) >= piece_rows:
            yield piece
            piece = Rows()
    if piece.keys:
        yield piece


def line_results(plan: Plan, directory: Path) -> Iterator[tuple[PlanLine, LineResult | None]]:
    """Every line of the plan with its DONE result, None where there is none."""
    done = done_results(directory, bytes.fromhex(plan.digest))
    upcoming = next(done, None)
    for number, line in plan.read():
        while upcoming is not None and upcoming.number < number:
            upcoming = next(done, None)  # a second result of the line before
        yield line, upcoming if upcoming is not None and upcoming.number == number else None


def row_of(line: PlanLine, result: LineResult | None) -> Row | None:
    """The row that the line leaves in the base; None: none."""
    if result is None and line.op in ORDER:
        return None
    mirror_etag, mirror_version, gone = line.mirror_etag, line.mirror_version, 0
    match line.op:
        case Op.REMOVE if result is not None and line.ordinal:
            mirror_etag, mirror_version = "", result.mirror_version
        case Op.ADD | Op.MODIFY if result is not None:
            mirror_etag, mirror_version = result.mirror_etag, result.mirror_version
        case Op.VANISH:
            gone = line.gone
        case Op.REMOVE:
            gone = REMOVED
    return Row(
        line.place.encode(),
        line.size,
        line.etag.encode(),
        line.modified.encode(),
        line.version_id.encode(),
        line.storage_class.encode(),
        mirror_etag.encode(),
        mirror_version.encode(),
        gone,
    )


def done_results(directory: Path, digest: bytes) -> Iterator[LineResult]:
    """All DONE results of all journals, in ascending order of line."""
    files = [(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) for path in journal_files(directory)]
    try:
        runs = [_run(path, fd, digest, start, stop) for path, fd in files for start, stop in _runs(path, fd, digest)]
        yield from heapq.merge(*runs, key=lambda result: result.number)
    finally:
        for _, fd in files:
            os.close(fd)


def _runs(path: Path, fd: int, digest: bytes) -> Iterator[tuple[int, int]]:
    """Where in the file results ascend, as offsets of first record and end."""
    start = before = -1
    begin = end = HEADER_BYTES
    for entry, end in records(path, fd, digest):
        if isinstance(entry, LineResult) and entry.outcome is Outcome.DONE:
            if start < 0:
                start = begin
            elif entry.number <= before:
                yield start, begin
                start = begin
            before = entry.number
        begin = end
    if start >= 0:
        yield start, end


def _run(path: Path, fd: int, digest: bytes, start: int, stop: int) -> Iterator[LineResult]:
    for entry, end in records(path, fd, digest, start, read_bytes=_RUN_BYTES):
        if isinstance(entry, LineResult) and entry.outcome is Outcome.DONE:
            yield entry
        if end >= stop:
            return
