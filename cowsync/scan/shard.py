"""One piece of a scan: a range of keys listed, compared with the base, and answered with what differs.

One rule: the answer is small and whole. It goes back over a pipe or a network; what the piece read stays where it was
read. Running a piece twice gives the same answer or a newer one; nothing is written anywhere.
"""

import pickle
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import zstandard

from cowsync.base.difference import Kind, differences, each
from cowsync.changes import Op, PlanLine
from cowsync.rows import Row, Rows
from cowsync.scan.filters import Belongs
from cowsync.scan.listing import Listed, pages
from cowsync.scan.ranges import KeyRange
from s3core.bucket import Bucket

HOT_S = 300.0
"""An object modified this shortly before its range was listed, or since, is marked hot: clocks differ, and a store may
list it late."""
PREFIXES_MAX = 10_000
OTHER_PREFIXES = "..."
"""Stands for all top prefixes after the first PREFIXES_MAX."""

ReadBase = Callable[[KeyRange], Iterator[Rows]]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """`run` is the number of this run. `remove_upto`: rows that have been gone since that run or an earlier one are due
    for removal (0: none). `keys_max`: give the rest of the range back after about so many keys. `versions`: all versions are
    listed, not only the current ones. `where` tells the rim which mirror this is and where its base lies; nothing here
    reads it."""

    within: KeyRange
    run: int
    remove_upto: int = 0
    keys_max: int = 50_000
    page_keys: int = 1000
    versions: bool = False
    where: Mapping[str, str] = field(default_factory=dict)

    def over(self, within: KeyRange) -> "ShardTask":
        return replace(self, within=within)


@dataclass(frozen=True, slots=True)
class ShardResult:
    """`done` was listed to its end, `rest` was not begun. `lines` are the plan's lines of `done`, packed (`lines_of`)."""

    done: KeyRange
    rest: KeyRange | None
    keys: int
    bytes_listed: int
    left_out: int
    reserved: int
    requests: int
    changes: int
    lines: bytes
    prefixes: Mapping[str, tuple[int, int]]
    versions: int = 0


def scan_shard(
    task: ShardTask,
    bucket: Bucket,
    prefix: str,
    read_base: ReadBase,
    belongs: Belongs | None,
    *,
    now: Callable[[], float] = time.time,
) -> ShardResult:
    """List `task.within` and compare. Errors of the store, Unordered and Refused are raised; nothing is half answered."""
    listed = Listed(task.within.after)
    prefixes: dict[str, tuple[int, int]] = {}
    began = now()
    rows = pages(bucket, prefix, task.within, listed, belongs=belongs, keys_max=task.keys_max, page_keys=task.page_keys)
    return shard_result(task, listed, list(compared(task, rows, listed, prefixes, read_base, began)), prefixes)


def shard_result(
    task: ShardTask, listed: Listed, lines: list[PlanLine], prefixes: dict[str, tuple[int, int]]
) -> ShardResult:
    """What a listing that ended with `listed` did of `task`; where it ended early, the rest is given back."""
    done, rest = task.within, None
    if not listed.complete:
        done, rest = KeyRange(task.within.after, listed.reached), KeyRange(listed.reached, task.within.upto)
    return ShardResult(
        done,
        rest,
        listed.keys,
        listed.bytes_listed,
        listed.left_out,
        listed.reserved,
        listed.requests,
        len(lines),
        packed(lines),
        prefixes,
        listed.versions,
    )


def scan_together(tasks: Sequence[ShardTask], scan_one: Callable[[ShardTask], ShardResult]) -> list[ShardResult]:
    """Several pieces in threads of this process: while one waits for the store, another parses. In the order of
    `tasks`; where one fails, its error is raised after all have ended."""
    if len(tasks) == 1:
        return [scan_one(tasks[0])]
    with ThreadPoolExecutor(len(tasks), thread_name_prefix="scan") as pool:
        return list(pool.map(scan_one, tasks))


def compared(
    task: ShardTask,
    rows: Iterator[Rows],
    listed: Listed,
    prefixes: dict[str, tuple[int, int]],
    read_base: ReadBase,
    began: float,
    *,
    lagging: bool = False,
) -> Iterator[PlanLine]:
    """The lines of a listing of `task.within` that began at `began`, ascending. `rows` keeps `listed` up to date;
    where it ends before the range does, the lines end there too. `prefixes` is counted up.
    `lagging`: `rows` may be behind what is known, so an object that is older than the known one is no change."""
    hot_from = datetime.fromtimestamp(began - HOT_S, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()

    def counted() -> Iterator[Rows]:
        for page in rows:
            count_prefixes(page, prefixes)
            yield page

    # The end of what will be listed is not known before it has been: the base is read to the end of the range, and what
    # lies behind the last listed key belongs to the rest.
    for kind, known, seen in each(differences(read_base(task.within), counted())):
        if seen is None and not listed.complete and known is not None and known.key > listed.reached:
            return
        if (
            lagging
            and kind is Kind.MODIFIED
            and known is not None
            and seen is not None
            and seen.modified < known.modified
        ):
            continue
        line = line_for(kind, known, seen, task, hot_from)
        if line is not None:
            yield line


def line_for(kind: Kind, known: Row | None, seen: Row | None, task: ShardTask, hot_from: bytes) -> PlanLine | None:
    """What the plan says of one key that the base has as `known` and the source as `seen`; None where there is nothing
    to do (it is gone, that is known, and it is not to be removed yet)."""
    if kind is Kind.ADDED:
        assert seen is not None
        return _line(Op.ADD, seen, None, hot_from, "new")
    assert known is not None
    if kind is Kind.VANISHED:
        return _line(Op.VANISH, known, known, b"", "absent now", gone=task.run)
    if kind is Kind.ABSENT:
        if known.gone > task.remove_upto:
            return None
        return _line(Op.REMOVE, known, known, b"", f"absent since run {known.gone}", gone=known.gone)
    assert seen is not None
    if kind is Kind.RETURNED:
        return _line(Op.RETURN, seen, known, hot_from, "back, unchanged", gone=known.gone)
    reason = why_modified(known, seen)
    reason = f"{reason}, and back" if known.gone else reason
    return _line(Op.MODIFY, seen, known, hot_from, reason, gone=known.gone)


def why_modified(known: Row, seen: Row) -> str:
    """In which parts of its identity an object differs, "" for none. The time alone is none: a copy onto itself moves
    it and nothing else."""
    parts = []
    if known.etag != seen.etag:
        parts.append("etag")
    if known.size != seen.size:
        parts.append("size")
    if known.version_id and seen.version_id and known.version_id != seen.version_id:
        parts.append("version")
    return ", ".join(parts)


def _line(op: Op, row: Row, known: Row | None, hot_from: bytes, reason: str, *, gone: int = 0) -> PlanLine:
    return PlanLine(
        op,
        row.key.decode(),
        row.size,
        row.etag.decode(),
        row.modified.decode(),
        row.version_id.decode(),
        row.storage_class.decode(),
        known.size if known else 0,
        known.etag.decode() if known else "",
        known.version_id.decode() if known else "",
        known.mirror_etag.decode() if known else "",
        known.mirror_version.decode() if known else "",
        gone,
        bool(hot_from) and row.modified >= hot_from,
        reason,
    )


def count_prefixes(rows: Rows, into: dict[str, tuple[int, int]]) -> None:
    """Keys and bytes by top prefix (up to the first slash; "" for keys without one). Sorted rows lie together by
    prefix, so a page costs a search for each prefix in it, not a look at each key."""
    keys, start = rows.keys, 0
    while start < len(keys):
        top, slash, _ = keys[start].partition(b"/")
        if slash:
            end = bisect_left(keys, top + b"0", start)  # "0" comes right after "/"
            name = (top + slash).decode()
        else:
            end = start + 1
            name = ""
        if name not in into and len(into) >= PREFIXES_MAX:
            name = OTHER_PREFIXES
        had = into.get(name, (0, 0))
        into[name] = (had[0] + end - start, had[1] + sum(rows.sizes[start:end]))
        start = end


def packed(lines: list[PlanLine]) -> bytes:
    """Between processes of one version of this program only: nothing that is kept has this form."""
    if not lines:
        return b""
    fields = [tuple(getattr(line, name) for name in PlanLine.__slots__) for line in lines]
    return zstandard.ZstdCompressor(level=1).compress(pickle.dumps(fields, protocol=5))


def lines_of(data: bytes) -> Iterator[PlanLine]:
    if data:
        for fields in pickle.loads(zstandard.ZstdDecompressor().decompress(data)):
            yield PlanLine(*fields)
