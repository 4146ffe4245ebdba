"""Keys: unique per object, sorted by number where a listing is walked, spread where requests are many."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockdev.segments import paths
from blockdev.segments.paths import INLINE, ContainerRef

numbers = st.integers(0, 2**33)
gens = st.integers(0, 2**48 - 1)
epochs = st.integers(0, 2**24 - 1)


@given(st.sets(st.tuples(numbers, gens, epochs), max_size=30))
def test_no_two_extent_objects_share_a_key(objects: set[tuple[int, int, int]]) -> None:
    assert len({paths.extent(*item) for item in objects}) == len(objects)


@given(st.sets(st.tuples(gens, epochs, st.integers(0, INLINE - 1)), max_size=30))
def test_no_two_segments_share_a_key(objects: set[tuple[int, int, int]]) -> None:
    assert len({paths.segment(*item) for item in objects}) == len(objects)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=30))
def test_records_and_roots_sort_by_number(seqs: list[int]) -> None:
    assert sorted(seqs, key=paths.log) == sorted(seqs)
    assert sorted(seqs, key=lambda seq: paths.root(seq, 1)) == sorted(seqs)


def test_neighbours_do_not_share_a_prefix() -> None:
    spreads = [paths.spread(number) for number in range(4096)]
    assert all(a != b for a, b in pairwise(spreads))
    assert len(set(spreads)) == 256


def test_inline_patches_are_read_from_the_record() -> None:
    assert paths.container(ContainerRef(7, 2, INLINE)) == paths.log(7) == "log/0000000000000007"
    assert paths.container(ContainerRef(7, 2, 1)) == f"seg/{paths.spread(7)}/000000000007-000002-0001"


def test_every_key_is_one_a_person_can_read() -> None:
    assert paths.extent(9, 4, 2) == f"ext/{paths.spread(9)}/0000000009/000000000004-000002"
    assert paths.root(7, 1) == "root/0000000000000007-000001"
    assert paths.page_pack(7, 1, 0) == f"page/{paths.spread(7)}/0000000000000007-000001-0000"
    assert paths.volume_prefix("disk") == "v1/disk/"
    assert (paths.volume_file(), paths.head()) == ("vol.json", "head")
    assert paths.log(3).startswith(paths.log_prefix())
    assert paths.extent(1, 1, 1).startswith("ext/")
    assert paths.root(1, 1).startswith(paths.root_prefix())
