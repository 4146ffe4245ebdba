"""`check` on volumes that are whole, damaged, incomplete and in use."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockdev.inspection.findings import Inspection
from blockdev.inspection.inspector import inspect_volume
from blockdev.offline import open_offline
from blockdev.segments import container, paths
from s3core.errors import NotFound, Unavailable
from s3core.memory import MemoryStore
from s3core.store import Body
from s3core.wrapper import StoreWrapper
from tests.blockdev.stored_volume import PATIENT, Stored, store_volume


@contextmanager
def no_stage(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def look(stored: Stored, *, deep: bool = False) -> Inspection:
    return inspect_volume(stored.own, stored.name, deep=deep, stage=no_stage)


def named(found: Inspection) -> set[str]:
    return {defect.key for defect in found.defects}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_volume(MemoryStore(), tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def used(stored: Stored) -> set[str]:
    """Keys of the objects that content depends on."""
    keys = set()
    with open_offline(stored.own, stored.name) as found:
        for extent, value in found.map.extents():
            if value.base is not None:
                keys.add(paths.extent(extent, value.base.gen, value.base.epoch))
            keys |= {paths.container(patch.ref) for patch in value.patches if patch.stored}
    return keys


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_whole_volume(tmp_path: Path, seed: int, deep: bool) -> None:
    left = store_volume(MemoryStore(), tmp_path, seed=seed, detach=seed % 2 == 0)
    found = look(left, deep=deep)
    assert found.defects == []
    assert found.objects == len(left.listing())
    assert found.roots >= 3
    assert found.extents > 10
    assert bool(found.frames_read) == deep
    assert found.orphans == 0


def test_a_new_volume(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path)
    left.own.delete_many([key for key in left.listing() if key != "vol.json"])
    found = look(left, deep=True)
    assert (found.defects, found.commit, found.objects) == ([], 0, 1)


def test_no_such_volume() -> None:
    with pytest.raises(NotFound, match="there is no volume"):
        inspect_volume(MemoryStore(), "v", deep=False, stage=no_stage)


def test_stages_are_told(stored: Stored) -> None:
    told: dict[str, tuple[int, int]] = {}

    @contextmanager
    def stage(label: str, total: int) -> Iterator[Callable[[int], None]]:
        done = 0

        def count(steps: int) -> None:
            nonlocal done
            done += steps

        yield count
        told[label] = (done, total)

    inspect_volume(stored.own, stored.name, deep=True, stage=stage)
    assert set(told) == {"log", "map", "objects"}
    assert all(done == total > 0 for done, total in told.values())


@pytest.mark.parametrize("kind", ["vol.json", "head", "log/", "root/", "page/", "ext/", "seg/"])
def test_a_flipped_byte_is_found_and_its_object_named(stored: Stored, used: set[str], kind: str) -> None:
    rng = random.Random(kind)
    newest_roots = sorted(key for key in stored.listing() if key.startswith("root/"))[-3:]
    packs = _packs(stored, newest_roots)
    for key in [key for key in stored.listing() if key.startswith(kind)]:
        if kind in ("ext/", "seg/") and key not in used:
            continue
        if kind == "page/" and key not in packs:
            continue
        body = stored.own.get(key).data
        for _ in range(2):
            at = rng.randrange(len(body))
            damaged = bytearray(body)
            damaged[at] ^= 1 << rng.randrange(8)
            if kind in ("head", "vol.json") and (body[at] in b" \n" or damaged[at] in b" \n"):
                continue  # white space in JSON means nothing
            stored.own.put(key, bytes(damaged))
            try:
                found = look(stored, deep=True)
                if kind == "head" and not found.defects:
                    continue  # a key of the document that nobody reads
                if kind == "seg/" and not named(found) and not _names(stored, key, at):
                    continue  # a patch that was overwritten: nobody reads it any more, and it goes with its segment
                assert key in named(found), (key, at, found.defects)
                if kind in ("ext/", "seg/"):
                    assert any(defect.offset is not None or "digest" in defect.said for defect in found.defects)
            finally:
                stored.own.put(key, body)


def _names(stored: Stored, key: str, at: int) -> bool:
    """Whether the map names what lies at that byte of a segment; its header counts as named."""
    if at < container.HEADER_BYTES:
        return True
    with open_offline(stored.own, stored.name) as found:
        return any(
            patch.stored and paths.container(patch.ref) == key and patch.offset <= at < patch.offset + patch.stored
            for _, value in found.map.extents()
            for patch in value.patches
        )


def _packs(stored: Stored, roots: list[str]) -> set[str]:
    from blockdev.segments import root

    found = set()
    for key in roots:
        made = root.decode(stored.own.get(key).data, what=key)
        found |= {paths.page_pack(ref.seq, ref.epoch, ref.n) for ref in (*made.pages, *made.runs)}
    return found


def test_a_missing_object_is_found_without_reading_data(stored: Stored, used: set[str]) -> None:
    for key in sorted(used):
        body = stored.own.get(key).data
        stored.own.delete(key)
        try:
            assert key in named(look(stored))
        finally:
            stored.own.put(key, body)


def test_a_short_object_is_found_without_reading_data(stored: Stored, used: set[str]) -> None:
    key = min(key for key in used if key.startswith("ext/"))
    body = stored.own.get(key).data
    stored.own.put(key, body[:-1])
    try:
        (defect,) = look(stored).defects
        assert defect.key == key
        assert f"has {len(body) - 1} bytes where the map needs" in defect.said
        assert defect.extent is not None
    finally:
        stored.own.put(key, body)


def test_a_gap_in_the_log(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path)
    before_last = int(
        sorted(key for key in left.listing() if key.startswith("root/"))[-2].split("/")[1].split("-")[0], 16
    )
    left.own.delete(paths.log(before_last + 1))
    found = look(left, deep=True)
    assert paths.log(before_last + 1) in named(found)
    assert any(f"there is no commit {before_last + 1}" in defect.said for defect in found.defects)
    # A root behind the gap carries on: the rest of the volume is looked at all the same.
    assert found.extents > 10


def test_old_records_may_be_gone_unless_they_hold_content(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path)
    newest = sorted(int(key.split("/")[1].split("-")[0], 16) for key in left.listing() if key.startswith("root/"))
    held: dict[str, set[int]] = {}
    with open_offline(left.own, left.name) as opened:
        for extent, value in opened.map.extents():
            for patch in value.patches:
                if patch.stored:
                    held.setdefault(paths.container(patch.ref), set()).add(extent)
    old = [paths.log(number) for number in range(1, newest[-2])]
    free = [key for key in old if key not in held]
    assert free
    assert len(free) < len(old)
    for key in free:
        left.own.delete(key)
    found = look(left, deep=True)
    assert found.defects == []
    assert found.log_from > 1
    key = next(key for key in old if key in held)
    left.own.delete(key)
    found = look(left)
    assert named(found) == {key}
    assert {defect.extent for defect in found.defects} == held[key]
    assert all(defect.hits == ("volume",) and defect.length for defect in found.defects)


def test_damage_behind_the_last_root(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path, settings=PATIENT, rounds=4, detach=False)
    left.own.delete(paths.log(2))
    found = look(left)
    assert {paths.log(2), paths.log_prefix()} <= named(found)
    assert any("cannot be built to the end" in defect.said for defect in found.defects)


def test_a_swapped_record_breaks_the_chain(tmp_path: Path) -> None:
    """A record of another history, sound in itself, under the right number."""
    left = store_volume(MemoryStore(), tmp_path / "a", seed=1, settings=PATIENT, rounds=4)
    other = store_volume(MemoryStore(), tmp_path / "b", seed=2, settings=PATIENT, rounds=4)
    left.own.put(paths.log(3), other.own.get(paths.log(3)).data)
    found = look(left)
    assert any(defect.key == paths.log(3) and "another digest" in defect.said for defect in found.defects)


def test_a_root_of_another_history(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path / "a", seed=1)
    other = store_volume(MemoryStore(), tmp_path / "b", seed=2)
    key = next(key for key in left.listing() if key.startswith("root/") and key in other.listing())
    left.own.put(key, other.own.get(key).data)
    assert key in named(look(left))


def test_orphans_are_counted_and_are_no_defect(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path)
    before = look(left)
    left.own.put(paths.extent(3, 999, 9), b"left by a crash")
    left.own.put("stray", b"1")
    found = look(left)
    assert found.defects == []
    assert (found.orphans, found.orphan_bytes) == (2, 16)
    assert (found.waiting, found.waiting_bytes) == (before.waiting, before.waiting_bytes)


@pytest.mark.parametrize("key", ["log/xyz", "log/0000000000000000", "root/5"])
def test_names_that_are_none(tmp_path: Path, key: str) -> None:
    left = store_volume(MemoryStore(), tmp_path, rounds=2)
    left.own.put(key, b"")
    assert key in named(look(left))


def test_a_store_that_cannot_be_asked_is_no_finding(stored: Stored) -> None:
    class Away(StoreWrapper):
        def get(self, key: str) -> Body:
            if key.startswith("ext/"):
                raise Unavailable("nobody there", key=key)
            return super().get(key)

    with pytest.raises(Unavailable, match="nobody there"):
        inspect_volume(Away(stored.own), stored.name, deep=True, stage=no_stage)
