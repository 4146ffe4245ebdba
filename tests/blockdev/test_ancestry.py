"""Clones read their ancestors' objects where they are, and never change them."""

from collections.abc import Callable
from functools import partial
from uuid import UUID

import pytest

from blockdev.engine.ancestry import AncestorStore, Ancestry, VolumePart, with_ancestors
from blockdev.segments import paths
from blockdev.segments.paths import ContainerRef
from blockdev.segments.volume_file import Origin, VolumeFile
from blockdev.units import MIB, Geometry
from s3core.errors import NotFound
from s3core.memory import MemoryStore

GRAND, PARENT, CHILD = UUID(int=1), UUID(int=2), UUID(int=3)


def origin(name: str, identity: UUID, seq: int) -> Origin:
    return Origin(name, identity, seq, 1, paths.root(seq, 1), bytes(32), UUID(int=9))


def child(*origins: Origin) -> VolumeFile:
    return VolumeFile(
        name="child",
        identity=CHILD,
        lineage=UUID(int=4),
        geometry=Geometry(MIB),
        compression="zstd",
        created=0.0,
        creator="test",
        features=frozenset({"clone"}) if origins else frozenset(),
        origin=origins,
    )


TWICE = child(origin("grand", GRAND, 10), origin("parent", PARENT, 20))
KEYS: tuple[Callable[[int], str], ...] = (
    lambda n: paths.log(n),
    lambda n: paths.extent(7, n, 3),
    lambda n: paths.segment(n, 3, 0x8001),
    lambda n: paths.container(ContainerRef(n, 3, paths.INLINE)),
    lambda n: paths.root(n, 3),
    lambda n: paths.page_pack(n, 3, 2),
)


@pytest.mark.parametrize("number", [1, 10, 20, 21, 2**40])
def test_the_number_of_every_kind_of_key(number: int) -> None:
    assert {paths.number_of(key(number)) for key in KEYS} == {number}
    assert {paths.number_of(key) for key in (paths.volume_file(), paths.head(), paths.ref(CHILD), "x/y")} == {None}


@pytest.mark.parametrize(("number", "owner"), [(1, GRAND), (10, GRAND), (11, PARENT), (20, PARENT), (21, CHILD)])
def test_the_number_decides_whose_it_is(number: int, owner: UUID) -> None:
    whole = MemoryStore()
    store = with_ancestors(VolumePart(whole, "child"), TWICE)
    names = {GRAND: "grand", PARENT: "parent", CHILD: "child"}
    assert Ancestry(TWICE).volume_of(number) == owner.bytes
    for key in (make(number) for make in KEYS):
        for identity, name in names.items():
            whole.put(f"v1/{name}/{key}", identity.bytes)
        assert store.get(key).data == owner.bytes
        assert store.get_range(key, 0, 4).data == owner.bytes[:4]
        assert store.head(key).size == 16
        whole.delete(f"v1/{names[owner]}/{key}")
        with pytest.raises(NotFound) as missing:
            store.get(key)
        assert missing.value.key == f"v1/{names[owner]}/{key}"


def test_ancestors_are_never_changed() -> None:
    whole = MemoryStore()
    store = with_ancestors(VolumePart(whole, "child"), TWICE)
    for key in (make(20) for make in KEYS):
        changes: tuple[Callable[[], object], ...] = (
            partial(store.put, key, b""),
            partial(store.put_if_absent, key, b""),
            partial(store.put_if_match, key, b"", "x"),
            partial(store.delete, key),
            partial(store.delete_many, [paths.log(30), key]),
            partial(store.copy, key, "head"),
            partial(store.copy, "head", key),
            partial(store.multipart, key),
        )
        for change in changes:
            with pytest.raises(AssertionError, match="of its ancestor parent"):
                change()
    assert [info.key for info in whole.list()] == []


def test_its_own_part_is_written_and_listed() -> None:
    whole = MemoryStore()
    whole.put("v1/parent/log/0000000000000014", b"")
    store = with_ancestors(VolumePart(whole, "child"), TWICE)
    for make in KEYS:
        store.put(make(21), b"x")
    store.put("head", b"h")
    assert store.get("head").data == b"h"
    assert sorted(info.key for info in store.list()) == sorted({make(21) for make in KEYS} | {"head"})
    assert store.delete_many([paths.log(21)]) == {}
    assert whole.get("v1/parent/log/0000000000000014").data == b""


def test_a_volume_that_is_no_clone_keeps_its_store() -> None:
    own = VolumePart(MemoryStore(), "child")
    assert with_ancestors(own, child()) is own
    assert Ancestry(child()).volume_of(1) == CHILD.bytes
    with pytest.raises(TypeError, match="is a clone"):
        with_ancestors(MemoryStore(), TWICE)
    assert isinstance(with_ancestors(own, TWICE), AncestorStore)
