"""The benchmark's lister: its pages are those of a sorted bucket, and what is planted is what it says."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from bench import lister
from bench.lister import BLOCK, Bucket, Client, Planted, key_of, planted
from bench.processes import end, start, wait_for_line

OBJECTS = 12_345
_ROW = re.compile(
    rb"<Contents><Key>([^<]+)</Key><LastModified>[^<]+</LastModified><ETag>&quot;([0-9a-f]{32})&quot;</ETag>"
)


def rows_of(bucket: Bucket, page_keys: int = BLOCK) -> Iterator[tuple[str, bytes]]:
    after = b""
    while True:
        rows, count, last = bucket.page(b"", after, b"", page_keys)
        found = _ROW.findall(rows)
        assert len(found) == count
        yield from ((key.decode(), etag) for key, etag in found)
        if not last:
            return
        assert last == found[-1][0]
        after = last


@pytest.mark.parametrize("per_thousand", [1, 3, 10])
def test_what_is_planted_is_all_that_differs(per_thousand: int) -> None:
    was, now = (dict(rows_of(Bucket(OBJECTS, planted_in), page_keys=777)) for planted_in in (0, per_thousand))
    assert list(was) == [key_of(number) for number in range(OBJECTS)]
    assert len(set(was.values())) == OBJECTS
    assert list(now) == sorted(now)
    found = [(Planted.MODIFIED, key) for key, etag in now.items() if key in was and was[key] != etag]
    found += [(Planted.REMOVED, key) for key in was if key not in now]
    found += [(Planted.ADDED, key) for key in now if key not in was]
    assert sorted(found, key=lambda one: one[1]) == list(planted(OBJECTS, per_thousand))
    assert len(found) == pytest.approx(OBJECTS * per_thousand / 1000, abs=per_thousand)
    assert {kind for kind, _ in found} == set(Planted)


@pytest.mark.parametrize(
    ("prefix", "after", "delimiter", "keys_max", "want"),
    [
        ("", "", "/", 1000, (["data/"], False)),
        ("data/", "", "/", 1000, (["data/0000/", "data/0001/"], False)),
        ("data/", "", "/", 1, (["data/0000/"], True)),
        ("data/", "data/0000/", "/", 1000, (["data/0001/"], False)),
        ("data/0001/", "", "/", 2, ([key_of(10_000), key_of(10_001)], True)),
        ("data/0001/", key_of(12_343), "", 1000, ([key_of(12_344)], False)),
        ("", "data/0000/object-0000", "", 1, ([key_of(0)], True)),
        ("", "data/0000/object-5", "", 1, ([key_of(10_000)], True)),
        ("", "zoo", "", 1000, ([], False)),
        ("zoo", "", "", 1000, ([], False)),
    ],
)
def test_a_page_is_the_asked_for_part_of_the_order(
    prefix: str, after: str, delimiter: str, keys_max: int, want: tuple[list[str], bool]
) -> None:
    rows, count, last = Bucket(OBJECTS, 0).page(prefix.encode(), after.encode(), delimiter.encode(), keys_max)
    names = re.findall(r"<(?:Key|Prefix)>([^<]+)<", rows.decode())
    assert (names, bool(last)) == want
    assert count == len(names)


def test_it_serves_counts_and_plants_in_all_its_processes(tmp_path: Path) -> None:
    server = start([sys.executable, "-m", "bench.lister", "2"], tmp_path / "log")
    try:
        client = Client(int(wait_for_line(tmp_path / "log", lister.READY, server).split()[-1]))
        client.plant(1)
        gone = next(key for kind, key in planted(3000, 1) if kind is Planted.REMOVED)
        for side, there in (("mirror", True), ("source", False)):
            with urlopen(f"{client.url}/{side}-3000?list-type=2&prefix={gone}") as answer:
                page = answer.read().decode()
            assert (f"<Key>{gone}</Key>" in page) is there
            assert "<IsTruncated>false<" in page
        counts = client.counts()
        assert (counts.lists, counts.keys, counts.heads, counts.others) == (2, 1, 0, 0)
    finally:
        end(server)
