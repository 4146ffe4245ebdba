"""Whole scans of buckets in memory: any shape of bucket, any size of piece, workers that die, stores out of order."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cowsync.changes import Op
from cowsync.errors import Refused
from cowsync.rows import Row, Rows
from cowsync.scan.engine import TRIES, InlineEngine, WorkerLost
from cowsync.scan.listing import Listed
from cowsync.scan.ranges import WHOLE, KeyRange, gaps
from cowsync.scan.run import Scan, cut_for, run_scan, split
from cowsync.scan.shard import ShardResult, ShardTask, compared, scan_shard
from cowsync.scan.unordered import sorted_rows
from s3core.bucket import ListedPage
from s3core.errors import Unavailable
from s3core.memory_bucket import MemoryBucket


def filled(objects: dict[str, bytes]) -> MemoryBucket:
    bucket = MemoryBucket()
    for key, data in objects.items():
        bucket.put(key, data)
    return bucket


def base_of(bucket: MemoryBucket) -> list[Row]:
    page = bucket.list_page()
    assert not page.truncated
    return [Row(*fields) for fields in zip(page.keys, page.sizes, page.etags, page.modified, strict=True)]


def reader(base: list[Row]) -> Callable[[KeyRange], Iterator[Rows]]:
    def read(within: KeyRange) -> Iterator[Rows]:
        rows = Rows()
        for row in base:
            if row.key > within.after and (within.upto is None or row.key <= within.upto):
                rows.append(row)
        yield rows

    return read


def scan(
    bucket: Any,
    base: list[Row],
    folder: Path,
    *,
    keys_max: int = 0,
    engine: Any = None,
    points: list[bytes] | None = None,
    together: int = 1,
) -> Scan:
    task = ShardTask(WHOLE, run=2, keys_max=keys_max, page_keys=3)

    def piece(task: ShardTask) -> ShardResult:
        return scan_shard(task, bucket, "", reader(base), None)

    def anew(listed: Listed, prefixes: dict[str, tuple[int, int]], sort: Path) -> Iterator[Any]:
        rows = sorted_rows(bucket, "", listed, sort, page_keys=3, rows_max=4)
        return compared(task, rows, listed, prefixes, reader(base), 0.0)

    return run_scan(
        engine or InlineEngine(), piece, anew, bucket, "", task, points or [], folder / "spool", together=together
    )


KEYS = st.text("ab/.é", min_size=1, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(KEYS, st.binary(max_size=2)),
    st.dictionaries(KEYS, st.binary(max_size=2)),
    st.integers(0, 5),
    st.lists(KEYS.map(str.encode), max_size=4),
    st.integers(1, 3),
)
def test_a_scan_finds_what_differs(
    tmp_path: Path, was: dict[str, bytes], now: dict[str, bytes], keys_max: int, points: list[bytes], together: int
) -> None:
    base = base_of(filled(was))
    found = scan(filled(now), base, tmp_path, keys_max=keys_max, points=points, together=together)
    expected = {key: Op.ADD if key not in was else Op.MODIFY for key in now if was.get(key) != now[key]}
    expected |= dict.fromkeys(was.keys() - now.keys(), Op.VANISH)
    lines = list(found.lines())
    assert {line.key: line.op for line in lines} == expected
    assert [line.key for line in lines] == sorted(expected)
    assert (found.facts.keys, found.facts.bytes_listed) == (len(now), sum(map(len, now.values())))
    assert gaps(found.facts.tiling) == []
    assert not found.facts.unordered


class Dying(InlineEngine):
    """Loses a piece now and then, after it has run."""

    def __init__(self, seed: int, share: float) -> None:
        self._random = random.Random(seed)
        self._share = share
        self.lost = 0

    def submit(self, function: Callable[[Any], Any], task: Any) -> "Future[Any]":
        future = super().submit(function, task)
        if self._random.random() >= self._share:
            return future
        self.lost += 1
        dead: Future[Any] = Future()
        dead.set_exception(WorkerLost("killed"))
        return dead


def test_workers_that_die_change_nothing(tmp_path: Path) -> None:
    bucket = filled({f"{letter}/{number:03}": b"x" for letter in "abc" for number in range(40)})
    engine = Dying(1, 0.2)
    found = scan(bucket, [], tmp_path, keys_max=10, engine=engine)
    assert engine.lost == found.facts.workers_lost > 0
    assert [line.key for line in found.lines()] == sorted(bucket.contents())


def test_a_piece_nobody_survives_ends_the_scan(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost):
        scan(filled({"a": b""}), [], tmp_path, engine=Dying(1, 1.0), points=[b"m"])
    assert TRIES > 1


class OutOfOrder(MemoryBucket):
    """Lists what is below `foo/` before `foo.conda`, as stores with real folders do; its token is a place."""

    twice = False

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        if delimiter:
            return super().list_page(prefix=prefix, start_after=start_after, delimiter=delimiter, max_keys=max_keys)
        order = sorted(self.contents(), key=lambda key: key.split("/"))
        order += order[:1] if self.twice else []
        at = int(token) if token else sum(key <= start_after for key in order)
        chosen = order[at : at + max_keys]
        facts = [self.head(key) for key in chosen]
        more = at + max_keys < len(order)
        return ListedPage(
            [key.encode() for key in chosen],
            [fact.size for fact in facts],
            [fact.etag.encode() for fact in facts],
            [b"2026-01-01T00:00:00.000Z"] * len(chosen),
            [b""] * len(chosen),
            [],
            more,
            str(at + max_keys) if more else "",
        )


def out_of_order() -> OutOfOrder:
    bucket = OutOfOrder()
    for key in ["bar", *(f"foo/{number}" for number in range(9)), "foo.conda", "foo0", "zoo"]:
        bucket.put(key, key.encode())
    return bucket


def test_a_store_out_of_order_is_sorted_and_said_so(tmp_path: Path) -> None:
    bucket = out_of_order()
    found = scan(bucket, [], tmp_path)
    assert [line.key for line in found.lines()] == sorted(bucket.contents())
    assert "out of the order" in found.facts.unordered
    assert found.facts.tiling == [WHOLE]
    assert list((tmp_path / "spool" / "sort").iterdir()) == []


def test_a_key_listed_twice_is_refused(tmp_path: Path) -> None:
    bucket = out_of_order()
    bucket.twice = True
    with pytest.raises(Refused, match="twice"):
        scan(bucket, [], tmp_path)


def test_an_error_of_one_of_several_listings_ends_the_scan(tmp_path: Path) -> None:
    class Away(MemoryBucket):
        def list_page(self, **options: Any) -> ListedPage:
            if options.get("start_after", "").startswith("m"):
                raise Unavailable("away")
            return super().list_page(**options)

    bucket = Away()
    for letter in "abcmz":
        bucket.put(letter, b"")
    with pytest.raises(Unavailable, match="away"):
        scan(bucket, [], tmp_path, points=[b"b", b"m", b"n"], together=3)


def test_what_is_left_is_cut_for_all_who_wait() -> None:
    bucket = filled({f"data/2026/{number:05}": b"" for number in range(500)})
    parts, probes = cut_for(bucket, "", [KeyRange(b"data/2026/00010", None)], 8)
    assert len(parts) == 8
    assert gaps(parts, KeyRange(b"data/2026/00010", None)) == []
    assert probes <= 7 * 14
    assert cut_for(filled({"a": b""}), "", [KeyRange(b"a", None)], 8)[0] == [KeyRange(b"a", None)]


def test_a_split_has_keys_on_both_sides() -> None:
    bucket = filled({f"data/2026/{number:05}": b"" for number in range(500)})
    parts, probes = split(bucket, "", KeyRange(b"data/2026/00100", None))
    assert len(parts) == 2
    assert probes <= 12
    keys = [key.encode() for key in bucket.contents()]
    shares = [sum(key > part.after and (part.upto is None or key <= part.upto) for key in keys) for part in parts]
    assert sum(shares) == 399
    assert min(shares) >= 99


def test_a_range_without_a_middle_stays_whole() -> None:
    assert split(filled({"a": b""}), "", KeyRange(b"a", None))[0] == [KeyRange(b"a", None)]
