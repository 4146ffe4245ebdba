"""A whole scan: ranges given out, answers gathered, and the proof that they cover every key.

One rule: a scan that returns is complete: the ranges that were listed to their end tile all keys, exactly. Anything else
is an error, and nothing of it may be used. The answers of the pieces lie in a spool of files, a file each, until the plan
is written; a crash leaves the spool, and the next scan removes it.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from cowsync.changes import PlanLine
from cowsync.errors import Refused
from cowsync.scan.engine import Engine, Pieces
from cowsync.scan.listing import Listed, Unordered
from cowsync.scan.ranges import HIGHEST, WHOLE, KeyRange, cut, gaps, steps, with_character
from cowsync.scan.shard import ShardResult, ShardTask, lines_of, packed, scan_together
from s3core.bucket import Bucket

UNORDERED_LINES = 50_000


@dataclass(slots=True)
class ScanFacts:
    """What a scan came to. `bytes_listed` are those of the keys that belong; `left_out` keys a filter excluded, `reserved` such
    below cowsync's own prefix. `tiling` covers every key. `seconds` is wall-clock time. `inventory` is when the inventory
    was begun that stood for a listing, in ISO 8601, "" where the source was listed. `versions` are counted where all are
    listed, delete markers too. `events` are counts of the events that
    named the keys which were looked at, with `heads` requests, where they stood for a listing: then nothing is said of
    other keys, and `tiling` is empty."""

    keys: int = 0
    versions: int = 0
    bytes_listed: int = 0
    left_out: int = 0
    reserved: int = 0
    changes: int = 0
    requests: int = 0
    probes: int = 0
    heads: int = 0
    shards: int = 0
    workers_lost: int = 0
    seconds: float = 0.0
    started: float = 0.0
    unordered: str = ""
    inventory: str = ""
    events: dict[str, int] = field(default_factory=dict)
    tiling: list[KeyRange] = field(default_factory=list)
    prefixes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scan:
    """A complete scan: its facts, and its lines in ascending order of key, which may be read any number of times."""

    facts: ScanFacts
    spool: Sequence[Path]

    def lines(self) -> Iterator[PlanLine]:
        for path in self.spool:
            yield from lines_of(path.read_bytes())

    def remove(self) -> None:
        """Remove the spool; `lines` must not be called afterwards."""
        for path in self.spool:
            path.unlink(missing_ok=True)


def split(bucket: Bucket, prefix: str, rest: KeyRange) -> tuple[list[KeyRange], int]:
    """`rest` cut in two about where half of its keys are likely to lie, and the requests it took (some ten). A range in
    which nothing leads to such a place comes back whole.

    Where the keys end is searched for with questions of one key each: at which place of `rest.after` they still differ,
    then with which character there. Keys are taken to be spread evenly over that character."""
    stem = prefix.encode()
    probes = 0

    def more_after(point: bytes) -> bool:
        nonlocal probes
        probes += 1
        page = bucket.list_page(prefix=prefix, start_after=(stem + point).decode(), max_keys=1)
        return bool(page.keys) and (rest.upto is None or page.keys[0][len(stem) :] <= rest.upto)

    points = steps(rest)
    reached = _last_true(len(points), lambda at: more_after(points[at]))
    if reached < 0:
        return [rest], probes
    place = len(points[reached]) - 1
    first = rest.after[place]

    def usable(character: int) -> bool:
        point = with_character(rest.after, place, character)
        return (rest.upto is None or point < rest.upto) and more_after(point)

    last = first + 1 + _last_true(HIGHEST - first, lambda at: usable(first + 1 + at))
    middle = with_character(rest.after, place, max(first + 1, (first + last + 1) // 2))
    return [KeyRange(rest.after, middle), KeyRange(middle, rest.upto)], probes


def cut_for(bucket: Bucket, prefix: str, rests: Sequence[KeyRange], wanted: int) -> tuple[list[KeyRange], int]:
    """`rests` cut into about `wanted` pieces, ascending, and the requests it took. Fewer where they cannot be cut."""
    whole: list[KeyRange] = []
    open_ = list(rests)
    probes = 0
    while open_ and len(whole) + len(open_) < wanted:
        parts, asked = split(bucket, prefix, open_.pop(0))
        probes += asked
        (open_ if len(parts) > 1 else whole).extend(parts)
    return sorted(whole + open_, key=lambda piece: piece.after), probes


def _last_true(count: int, holds: Callable[[int], bool]) -> int:
    """The greatest number below `count` for which `holds`, -1 for none; what holds for one holds for all below it."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


ListAnew = Callable[[Listed, dict[str, tuple[int, int]], Path], Iterator[PlanLine]]
"""The lines of the whole source by way of a sort on disk: given what to keep up to date and a folder for the sort."""


def run_scan(
    engine: Engine,
    function: Callable[[ShardTask], ShardResult],
    list_anew: ListAnew,
    bucket: Bucket,
    prefix: str,
    template: ShardTask,
    points: Sequence[bytes],
    spool: Path,
    *,
    together: int = 1,
    now: Callable[[], float] = time.time,
    progress: Callable[[ScanFacts], None] = lambda facts: None,
) -> Scan:
    """List the whole source and compare it. `function` runs one piece (`shard.scan_shard` with its rim), `template` is
    a piece's task but for its range, `points` are where the key space is cut to begin with (quantiles of the base; none
    where nothing is known of it), `bucket` and `prefix` the source, for probing. A lane of the engine lists `together`
    pieces at once, in threads. A store that lists out of order is listed again, in one piece, by `list_anew`. Refused
    when the pieces do not tile all keys."""
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    facts = ScanFacts(started=now())
    try:
        paths = _in_pieces(engine, function, bucket, prefix, template, points, spool, together, facts, progress)
    except Unordered as seen:
        shutil.rmtree(spool)
        spool.mkdir()
        facts = ScanFacts(started=facts.started, requests=facts.requests, probes=facts.probes)
        facts.unordered = f"{bucket.url} {seen}"
        paths = _in_one(list_anew, spool, facts, progress)
    facts.seconds = now() - facts.started
    return Scan(facts, paths)


def scan_in_one(
    list_anew: ListAnew,
    spool: Path,
    *,
    now: Callable[[], float] = time.time,
    progress: Callable[[ScanFacts], None] = lambda facts: None,
) -> Scan:
    """A scan of one piece that covers all keys and needs no listing by ranges: an inventory. Refused where it did not come
    to its end."""
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    facts = ScanFacts(started=now())
    paths = _in_one(list_anew, spool, facts, progress)
    facts.seconds = now() - facts.started
    return Scan(facts, paths)


def _in_pieces(
    engine: Engine,
    function: Callable[[ShardTask], ShardResult],
    bucket: Bucket,
    prefix: str,
    template: ShardTask,
    points: Sequence[bytes],
    spool: Path,
    together: int,
    facts: ScanFacts,
    progress: Callable[[ScanFacts], None],
) -> list[Path]:
    ranges = cut(WHOLE, points)
    # One piece may well be all there is: it is not worth starting processes for.
    groups: Pieces[tuple[ShardTask, ...], list[ShardResult]] = Pieces(
        engine, partial(scan_together, scan_one=function), first_here=len(ranges) == 1
    )

    def give_out(parts: Sequence[KeyRange]) -> None:
        for start in reversed(range(0, len(parts), together)):
            groups.add(tuple(map(template.over, parts[start : start + together])))

    give_out(ranges)
    written: list[tuple[bytes, Path]] = []
    done: list[KeyRange] = []
    for _, answers in groups:
        rests: list[KeyRange] = []
        for answer in answers:
            _count(facts, answer)
            done.append(answer.done)
            if answer.changes:
                path = spool / f"{len(written):08}"
                path.write_bytes(answer.lines)
                written.append((answer.done.after, path))
            if answer.rest is not None:
                rests.append(answer.rest)
        if rests and groups.idle:
            # Somebody has nothing to do: what is left is cut until there is a piece for every thread of theirs.
            rests, probes = cut_for(bucket, prefix, rests, groups.idle * together)
            facts.probes += probes
        give_out(rests)
        progress(facts)
    missing = gaps(done)
    if missing:
        raise Refused(f"the listing of {bucket.url} is incomplete: nobody listed {missing[0]}")
    facts.tiling = sorted(done, key=lambda piece: piece.after)
    facts.workers_lost = groups.lost
    return [path for _, path in sorted(written)]


def _in_one(list_anew: ListAnew, spool: Path, facts: ScanFacts, progress: Callable[[ScanFacts], None]) -> list[Path]:
    folder = spool / "sort"
    folder.mkdir()
    listed = Listed(b"")
    lines = list_anew(listed, facts.prefixes, folder)
    paths: list[Path] = []
    while batch := list(islice(lines, UNORDERED_LINES)):
        path = spool / f"{len(paths):08}"
        path.write_bytes(packed(batch))
        paths.append(path)
        facts.changes += len(batch)
        facts.keys = listed.keys
        progress(facts)
    if not listed.complete:
        raise Refused("the listing ended before the server said that nothing follows")
    facts.keys, facts.bytes_listed = listed.keys, listed.bytes_listed
    facts.left_out, facts.reserved = listed.left_out, listed.reserved
    facts.requests += listed.requests
    facts.shards, facts.tiling = 1, [WHOLE]
    return paths


def _count(facts: ScanFacts, answer: ShardResult) -> None:
    facts.shards += 1
    facts.keys += answer.keys
    facts.versions += answer.versions
    facts.bytes_listed += answer.bytes_listed
    facts.left_out += answer.left_out
    facts.reserved += answer.reserved
    facts.changes += answer.changes
    facts.requests += answer.requests
    for prefix, (keys, size) in answer.prefixes.items():
        had = facts.prefixes.get(prefix, (0, 0))
        facts.prefixes[prefix] = (had[0] + keys, had[1] + size)
