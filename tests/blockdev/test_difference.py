"""Differences of two states, against the bytes themselves: complete always, exact to 4 KiB unless asked to be fast."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from blockdev.difference import differences
from blockdev.offline import open_offline
from s3core.memory import MemoryStore
from s3core.store import Body
from tests.blockdev.stored_volume import PATIENT, SIZE_BYTES, Stored, store_volume

BLOCK = 4096
FRAME = 16 * 1024


def truth(before: bytes, after: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for at in range(0, max(len(before), len(after)), BLOCK):
        if before[at : at + BLOCK] != after[at : at + BLOCK]:
            if found and found[-1][0] + found[-1][1] == at:
                found[-1] = (found[-1][0], found[-1][1] + BLOCK)
            else:
                found.append((at, BLOCK))
    return found


def ranges(stored: Stored, old: int | None, new: int | None, *, fast: bool = False) -> list[tuple[int, int]]:
    with (
        open_offline(stored.own, stored.name, commit=old) as before,
        open_offline(stored.own, stored.name, commit=new) as after,
    ):
        return list(differences(before, after, fast=fast))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_volume(MemoryStore(), tmp_path_factory.mktemp("v"), rounds=8, settings=PATIENT)


def test_every_pair_of_states_exactly(stored: Stored) -> None:
    states = sorted(stored.history.items())
    for (old, before), (new, after) in combinations(states, 2):
        assert ranges(stored, old, new) == truth(before, after)
        assert ranges(stored, new, old) == truth(after, before)


def test_fast_leaves_nothing_out_and_is_whole_frames(stored: Stored) -> None:
    (old, before), *_, (new, after) = sorted(stored.history.items())
    found = ranges(stored, old, new, fast=True)
    assert all(at % FRAME == 0 and length % FRAME == 0 for at, length in found)
    assert all(one[0] + one[1] < two[0] for one, two in pairwise(found))
    for at, length in truth(before, after):
        assert any(first <= at and at + length <= first + size for first, size in found)


def test_fast_reads_no_data(stored: Stored) -> None:
    class NoData(MemoryStore):
        def get_range(self, key: str, offset: int, length: int) -> Body:
            raise AssertionError(f"{key} was read")

    bare = NoData()
    for info in stored.own.list():
        if not info.key.startswith(("ext/", "seg/")):
            bare.put(info.key, stored.own.get(info.key).data)
    (old, _), *_, (new, _) = sorted(stored.history.items())
    copied = Stored(stored.name, bare, stored.content)
    assert ranges(copied, old, new, fast=True) == ranges(stored, old, new, fast=True)


def test_the_same_state_and_the_state_before_the_first_write(stored: Stored) -> None:
    newest = max(stored.history)
    assert ranges(stored, newest, newest) == []
    assert ranges(stored, newest, None) == [], "detaching changes nothing"
    assert ranges(stored, 1, newest) == truth(bytes(SIZE_BYTES), stored.history[newest])


def test_what_was_folded_is_a_candidate_and_no_difference(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = max(stored.history)
    with open_offline(stored.own, stored.name) as one, open_offline(stored.own, stored.name, commit=newest) as two:
        extent, value = next((extent, value) for extent, value in one.extents() if value.base is not None)
        assert value.base is not None
        moved = value._replace(base=value.base._replace(gen=newest + 1))
        monkeypatch.setattr(two, "extents", lambda: iter([(extent, moved)]))
        monkeypatch.setattr(one, "extents", lambda: iter([(extent, value)]))
        assert list(differences(one, two, fast=True))
        assert list(differences(one, two)) == []


def test_a_shorter_state_counts_as_zeros_up_to_the_longer_ones_end(stored: Stored) -> None:
    newest = max(stored.history)
    with (
        open_offline(stored.own, stored.name, commit=newest) as before,
        open_offline(stored.own, stored.name, commit=newest) as after,
    ):
        before.size_bytes = SIZE_BYTES // 2 + BLOCK
        content = stored.history[newest]
        cut = content[: before.size_bytes] + bytes(SIZE_BYTES - before.size_bytes)
        assert list(differences(before, after)) == truth(cut, content)
        after.size_bytes = before.size_bytes
        assert list(differences(before, after)) == []


def test_two_volumes_are_not_compared(stored: Stored, tmp_path: Path) -> None:
    with open_offline(stored.own, stored.name) as one, open_offline(stored.own, stored.name) as two:
        two.volume = replace(two.volume, name="other")
        with pytest.raises(ValueError, match="are two volumes"):
            differences(one, two)
