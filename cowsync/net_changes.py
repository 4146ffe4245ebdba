"""What lines come to since the last listing: a key that events named a hundred times has changed once, or not at all.

One rule: pure. The guard counts keys as a listing would have found them, whoever named them and how often.
"""

from collections.abc import Iterable, Mapping, Sequence

from cowsync.base.difference import differences, each
from cowsync.changes import Op, PlanLine
from cowsync.plan.carried import Carried
from cowsync.plan.census import suffix_of, top_prefix
from cowsync.rows import Row, Rows
from cowsync.scan.ranges import WHOLE
from cowsync.scan.shard import ShardTask, line_for


def net_changes(
    carried: Carried, lines: Sequence[PlanLine], then: Mapping[bytes, Row], since: Mapping[bytes, Row], run: int
) -> tuple[Carried, list[PlanLine]]:
    """`lines` (ascending) as they are to be counted, and what is `carried` without what it holds of their keys. `since` has the
    rows of those keys that events have changed since the last listing, as they are now; `then` the rows of these keys at
    that listing. The lines that are returned are for counting: they say nothing of what is to be done."""
    if not since:
        return carried, list(lines)
    was = [then[key] for key in sorted(since) if key in then]
    before = _lines(was, [since[key] for key in sorted(since) if not since[key].gone], run)
    again = [line for line in lines if line.key.encode() in since]
    keys = {line.key.encode() for line in again}
    after = _lines(
        [row for row in was if row.key in keys], [_row(line) for line in again if line.op is not Op.VANISH], run
    )
    counted = {line.key: line for line in after}
    net = [counted.get(line.key) if line.key.encode() in since else line for line in lines]
    return without(carried, before), [line for line in net if line is not None]


def without(carried: Carried, lines: Iterable[PlanLine]) -> Carried:
    """As if `lines` had not been among those that were carried out. Renames stay: they are of two keys."""
    counts = {op: list(count) for op, count in carried.counts.items()}
    revived = carried.revived
    prefixes, suffixes = dict(carried.prefixes), dict(carried.suffixes)
    for line in lines:
        count = counts.setdefault(line.op, [0, 0])
        count[0], count[1] = max(0, count[0] - 1), max(0, count[1] - line.size)
        revived -= line.op is Op.MODIFY and bool(line.gone)
        if line.op is Op.VANISH:
            _lower(prefixes, top_prefix(line.key))
        elif line.op is Op.ADD:
            _lower(suffixes, suffix_of(line.key))
    sums = {op: (count[0], count[1]) for op, count in counts.items()}
    return Carried(sums, max(0, revived), prefixes, suffixes, carried.renamed)


def _lower(counts: dict[str, int], name: str) -> None:
    if name in counts:
        counts[name] -= 1
        if not counts[name]:
            del counts[name]


def _lines(was: Sequence[Row], now: Sequence[Row], run: int) -> list[PlanLine]:
    task = ShardTask(WHOLE, run)
    found = (line_for(kind, old, new, task, b"") for kind, old, new in each(differences([rows(was)], [rows(now)])))
    return [line for line in found if line is not None]


def rows(of: Iterable[Row]) -> Rows:
    """Rows, which ascend, as columns."""
    made = Rows()
    for row in of:
        made.append(row)
    return made


def _row(line: PlanLine) -> Row:
    return Row(line.key.encode(), line.size, line.etag.encode(), line.modified.encode(), line.version_id.encode())
