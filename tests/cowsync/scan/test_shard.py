"""A piece of a scan against a dictionary: whatever the pages, the limits and the cuts, the lines are the differences."""

from bisect import bisect_right
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.changes import Op
from cowsync.errors import Refused
from cowsync.rows import Row, Rows
from cowsync.scan.listing import Unordered
from cowsync.scan.ranges import WHOLE, KeyRange, cut
from cowsync.scan.shard import ShardResult, ShardTask, count_prefixes, lines_of, scan_shard
from s3core.bucket import ListedPage

NOW = 1_800_000_000.0
OLD, HOT = b"2020-01-01T00:00:00.000Z", b"2027-01-15T07:59:00.000Z"


class Listing:
    """The listing of a bucket that holds `objects`, by key: size and ETag. `order` is the order it lists in."""

    url = "memory:source"

    def __init__(self, objects: dict[str, tuple[int, str]], order: list[str] | None = None) -> None:
        self.objects = objects
        self.order = order
        self.times: dict[str, bytes] = {}

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000
    ) -> ListedPage:
        assert not delimiter
        if self.order is None:
            keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        else:
            keys = self.order[self.order.index(start_after) + 1 if start_after in self.order else 0 :]
        page = keys[:max_keys]
        return ListedPage(
            [key.encode() for key in page],
            [self.objects[key][0] for key in page],
            [self.objects[key][1].encode() for key in page],
            [self.times.get(key, OLD) for key in page],
            [b"STANDARD"] * len(page),
            [],
            len(keys) > len(page),
        )


def scan(
    source: Listing,
    base: list[Row],
    within: KeyRange = WHOLE,
    *,
    keys_max: int = 0,
    page_keys: int = 3,
    prefix: str = "",
) -> ShardResult:
    def read_base(wanted: KeyRange) -> Iterator[Rows]:
        rows = Rows()
        for row in base:
            if row.key > wanted.after and (wanted.upto is None or row.key <= wanted.upto):
                rows.append(row)
        yield rows

    task = ShardTask(within, run=7, remove_upto=2, keys_max=keys_max, page_keys=page_keys)
    return scan_shard(task, source, prefix, read_base, None, now=lambda: NOW)  # type: ignore[arg-type]


OBJECTS = st.dictionaries(
    st.text("ab/é", min_size=1, max_size=4), st.tuples(st.integers(0, 3), st.sampled_from(["e1", "e2"])), max_size=12
)


@given(OBJECTS, OBJECTS, st.integers(0, 4), st.integers(1, 4), st.lists(st.text("ab/é", min_size=1, max_size=4)))
def test_lines_are_the_differences(
    was: dict[str, tuple[int, str]],
    now: dict[str, tuple[int, str]],
    keys_max: int,
    page_keys: int,
    points: list[str],
) -> None:
    base = [Row(key.encode(), size, etag.encode(), OLD) for key, (size, etag) in sorted(was.items())]
    found, ranges = [], cut(WHOLE, [point.encode() for point in points])
    listed = 0
    while ranges:
        answer = scan(Listing(now), base, ranges.pop(0), keys_max=keys_max, page_keys=page_keys)
        listed += answer.keys
        found += list(lines_of(answer.lines))
        if answer.rest is not None:
            ranges.insert(0, answer.rest)
    expected = dict.fromkeys(now.keys() - was.keys(), Op.ADD)
    expected |= dict.fromkeys(was.keys() - now.keys(), Op.VANISH)
    expected |= {key: Op.MODIFY for key in was.keys() & now.keys() if was[key] != now[key]}
    assert {line.key: line.op for line in found} == expected
    assert [line.key for line in found] == sorted(expected)
    assert listed == len(now)


def test_what_is_gone_is_kept_removed_or_back() -> None:
    base = [
        Row(b"back", 1, b"e", OLD, mirror_etag=b"m", gone=5),
        Row(b"changed", 1, b"e", OLD, gone=5),
        Row(b"due", 1, b"e", OLD, mirror_etag=b"m", gone=2),
        Row(b"young", 1, b"e", OLD, gone=3),
    ]
    answer = scan(Listing({"back": (1, "e"), "changed": (1, "f")}), base)
    assert [(line.key, line.op, line.gone, line.mirror_etag) for line in lines_of(answer.lines)] == [
        ("back", Op.RETURN, 5, "m"),
        ("changed", Op.MODIFY, 5, ""),
        ("due", Op.REMOVE, 2, "m"),
    ]


def test_a_fresh_object_is_hot() -> None:
    source = Listing({"old": (1, "e"), "new": (1, "e")})
    source.times["new"] = HOT
    assert {line.key: line.hot for line in lines_of(scan(source, []).lines)} == {"old": False, "new": True}


def test_keys_are_relative_to_the_prefix_and_ours_are_left_out() -> None:
    source = Listing({"a/1": (1, "e"), "p/": (0, "e"), "p/.cowsync/trash/x": (1, "e"), "p/2": (1, "e"), "q": (1, "e")})
    answer = scan(source, [], prefix="p/")
    assert [line.key for line in lines_of(answer.lines)] == ["2"]
    assert (answer.keys, answer.reserved, answer.left_out) == (1, 1, 2)


@pytest.mark.parametrize("page_keys", [1, 2, 5])
def test_a_listing_out_of_order_is_never_taken(page_keys: int) -> None:
    # As stores with real folders do: what is below foo/ comes before foo.conda.
    order = ["bar", "foo/a", "foo/b", "foo.conda", "zoo"]
    source = Listing(dict.fromkeys(order, (1, "e")), order)
    with pytest.raises(Unordered, match=r"foo\.conda"):
        scan(source, [], page_keys=page_keys)


def test_a_listing_that_stands_still_is_refused() -> None:
    class Still(Listing):
        def list_page(self, **options: object) -> ListedPage:
            return ListedPage([], [], [], [], [], [], True)

    with pytest.raises(Refused, match="stands still"):
        scan(Still({}), [])


@given(st.lists(st.text("ab/", min_size=1, max_size=5), unique=True))
def test_prefixes_are_counted(keys: list[str]) -> None:
    keys.sort()
    counted: dict[str, tuple[int, int]] = {}
    middle = bisect_right(keys, "b")
    for part in (keys[:middle], keys[middle:]):
        rows = Rows()
        for key in part:
            rows.append(Row(key.encode(), len(key), b"e", OLD))
        count_prefixes(rows, counted)
    expected: dict[str, tuple[int, int]] = {}
    for key in keys:
        top = key[: key.find("/") + 1]
        had = expected.get(top, (0, 0))
        expected[top] = (had[0] + 1, had[1] + len(key))
    assert counted == expected
