"""Tiles and bundles: names and widths as C2SP gives them, trees that grow by tiles, and tiles that were changed."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity.errors import Malformed, Tampered
from integrity.tlog.tiles import (
    ENTRIES,
    ChainBroken,
    Edge,
    Tile,
    TileNodes,
    chained_bundle,
    encode_bundle,
    entries_path,
    levels,
    split_bundle,
    tile_path,
    tiles_to_publish,
    widths,
)
from integrity.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    cover,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_inclusion,
)
from tests.integrity.tlog.logs import Tiles, leaves

LEAVES = leaves(70_000)


def root_of(size: int) -> bytes:
    frontier = Frontier()
    frontier.extend(LEAVES[:size])
    return frontier.root()


def test_names() -> None:
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert entries_path(1234067, 9) == "tile/entries/x001/x234/067.p/9"
    assert [tile_path(2, index) for index in (0, 999, 1000, 10**9)] == [
        "tile/2/000",
        "tile/2/999",
        "tile/2/x001/000",
        "tile/2/x001/x000/x000/000",
    ]
    for level, index, width in ((64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (-2, 0, 1)):
        with pytest.raises(ValueError, match="there is no tile"):
            tile_path(level, index, width)


def test_the_tiles_of_a_log_of_seventy_thousand() -> None:
    assert [widths(70_000, level) for level in (ENTRIES, 0, 1, 2)] == [(273, 112), (273, 112), (1, 17), (0, 1)]
    assert levels(70_000) == 3
    found = tiles_to_publish(0, 70_000)
    assert [tile.path for tile in found if tile.width < 256] == [
        "tile/entries/273.p/112",
        "tile/0/273.p/112",
        "tile/1/001.p/17",
        "tile/2/000.p/1",
    ]
    assert len(found) == 2 * 274 + 2 + 1
    assert {tile.path for tile in found if tile.level >= 0} == set(Tiles().grow(LEAVES))


def test_a_tree_of_256_has_a_full_tile_and_one_above_it() -> None:
    assert [tile.path for tile in tiles_to_publish(0, 256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert tiles_to_publish(256, 256) == tiles_to_publish(0, 0) == []
    assert levels(0) == 0


@given(st.lists(st.integers(0, 700), max_size=8))
@settings(deadline=None, max_examples=60)
def test_what_is_to_publish_is_what_an_edge_gives(steps: list[int]) -> None:
    edge, there = Edge(), set()
    for step in steps:
        at = edge.size
        found = [*edge.extend(LEAVES[at : at + step]), *edge.partial()]
        there |= {tile for tile, _ in found}
        wanted = {tile for tile in tiles_to_publish(at, edge.size) if tile.level != ENTRIES}
        assert wanted <= {tile for tile, _ in found}
        assert wanted == {tile for tile, _ in found} - {Tile(n, *widths(at, n)) for n in range(levels(at))}
        assert all(len(data) == 32 * tile.width for tile, data in found)
    frontier = Frontier()
    frontier.extend(LEAVES[: edge.size])
    assert edge.root() == frontier.root()
    assert edge.frontier().hashes == frontier.hashes
    assert Edge.decode(edge.size, edge.encode()).rows == edge.rows == edge.copy().rows


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 512, 65_535, 65_536, 65_537, 70_000])
def test_nodes_out_of_tiles(size: int) -> None:
    log = Tiles().grow(LEAVES[: size // 3]).grow(LEAVES[size // 3 : size])
    nodes = TileNodes(size, root_of(size), log.fetch)
    dice = random.Random(size)
    for old in [size, *dice.sample(range(size), min(5, size))]:
        assert root_at(old, nodes) == (root_of(old) if old else EMPTY_ROOT)
    for index in [0, size - 1, *dice.sample(range(size), min(20, size))]:
        verify_inclusion(LEAVES[index], index, size, inclusion_proof(index, size, nodes), nodes.root)
    assert list(nodes.leaf_hashes(0)) == LEAVES[: min(size, 256)]
    assert len(log.gets) == len(set(log.gets))
    assert nodes.whole_edge().rows == log.edge.rows
    with pytest.raises(ValueError, match="no complete subtree"):
        nodes([(0, size)])


def test_a_pool_may_fetch() -> None:
    log = Tiles().grow(LEAVES)
    with ThreadPoolExecutor(4) as pool:
        nodes = TileNodes(70_000, log.edge.root(), log.fetch, each=pool.map)
        verify_inclusion(LEAVES[5], 5, 70_000, inclusion_proof(5, 70_000, nodes), nodes.root)


def test_nothing_is_read_of_an_empty_log() -> None:
    assert root_at(0, TileNodes(0, EMPTY_ROOT, Tiles().fetch)) == EMPTY_ROOT


def test_a_full_tile_stands_in_for_a_partial_one_that_was_removed() -> None:
    log = Tiles().grow(LEAVES[:300]).grow(LEAVES[300:600])
    del log["tile/0/001.p/44"]
    nodes = TileNodes(300, root_of(300), log.fetch)
    assert nodes([(0, 299)]) == [LEAVES[299]]
    assert log.gets[:2] == ["tile/0/001.p/44", "tile/0/001"]


@pytest.mark.parametrize("where", ["tile/0/000", "tile/0/273.p/112", "tile/1/001.p/17", "tile/1/000", "tile/2/000.p/1"])
@pytest.mark.parametrize("how", ["another hash", "shorter", "longer", "gone"])
def test_a_tile_that_was_changed_is_told(where: str, how: str) -> None:
    log = Tiles().grow(LEAVES)
    root = log.edge.root()
    if how == "another hash":
        log[where] = bytes(32) + log[where][32:]
    elif how == "shorter":
        log[where] = log[where][:-1]
    elif how == "longer":
        log[where] += bytes(8192)
    else:
        del log[where]
    with pytest.raises(Tampered) as caught:
        TileNodes(70_000, root, log.fetch)([*cover(0, 70_000), (0, 0), (0, 65_536)])
    assert where in caught.value.where


def test_what_somebody_else_has_saves_a_get_and_is_not_believed_unseen() -> None:
    log = Tiles().grow(LEAVES)
    root = log.edge.root()
    nodes = TileNodes(70_000, root, log.fetch)
    nodes.offer(0, 3, LEAVES[768:1024])
    nodes.offer(0, 3, LEAVES[:5])
    assert list(nodes.leaf_hashes(3)) == LEAVES[768:1024]
    assert "tile/0/003" not in log.gets
    nodes.offer(0, 4, LEAVES[:256])
    assert list(nodes.leaf_hashes(4)) == LEAVES[1024:1280]
    assert "tile/0/004" in log.gets
    other = TileNodes(70_000, root, log.fetch)
    other.offer(0, 273, LEAVES[:112])
    assert list(other.leaf_hashes(273)) == LEAVES[273 * 256 :]


def test_an_edge_saves_the_partial_tiles_and_a_wrong_one_does_no_harm() -> None:
    log = Tiles().grow(LEAVES)
    root = log.edge.root()
    nodes = TileNodes(70_000, root, log.fetch, edge=log.edge.encode())
    assert nodes([(0, 5), (12, 16)])
    assert nodes.edge_held
    assert sorted(log.gets) == ["tile/0/000", "tile/1/000"]
    for wrong in (b"", bytes(len(log.edge.encode())), log.edge.encode()[:-32]):
        nodes = TileNodes(70_000, root, log.fetch, edge=wrong)
        assert nodes([(0, 5)]) == [LEAVES[5]]
        assert not nodes.edge_held


def test_a_reader_of_a_whole_log_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.tlog.tiles.HELD_TILES_MAX", 16)
    log = Tiles().grow(LEAVES)
    nodes = TileNodes(70_000, log.edge.root(), log.fetch)
    for index in range(274):
        assert list(nodes.leaf_hashes(index)) == LEAVES[index * 256 : index * 256 + 256]
    assert len(nodes._held) <= 20
    assert len(log.gets) < 400


RECORDS = st.lists(st.binary(max_size=80), max_size=256)


@given(RECORDS)
def test_a_bundle_gives_its_entries_back(records: list[bytes]) -> None:
    data = encode_bundle(records)
    assert split_bundle(data) == records
    for cut in {1, 2, len(data) - 1} & set(range(len(data))):
        try:
            found = split_bundle(data[:cut])
        except Malformed:
            continue
        assert encode_bundle(found) == data[:cut]


def test_bundles_that_are_none() -> None:
    for data in (b"\x00", b"\x00\x01", b"\x00\x00\x05", bytes(2 * 257)):
        with pytest.raises(Malformed, match="the bundle"):
            split_bundle(data)
        with pytest.raises((Malformed, ChainBroken)):
            chained_bundle(data, bytes(32))
    with pytest.raises(ValueError, match="a bundle holds 256 entries, not 257"):
        encode_bundle([b""] * 257)
    with pytest.raises(ValueError, match="an entry has at most 65,535 bytes"):
        encode_bundle([bytes(65_536)])


def chain(count: int, after: bytes) -> list[bytes]:
    records = []
    for number in range(count):
        records.append(b'{"after":"' + after.hex().encode() + b'","n":%d}' % number)
        after = leaf_hash(records[-1])
    return records


def test_a_chain_is_followed_across_bundles() -> None:
    records = chain(300, bytes(32))
    first, last = chained_bundle(encode_bundle(records[:256]), bytes(32))
    rest, end = chained_bundle(encode_bundle(records[256:]), last)
    assert [*first, *rest] == [leaf_hash(record) for record in records]
    assert end == rest[-1]
    assert chained_bundle(b"", last) == ([], last)


@pytest.mark.parametrize("position", [0, 1, 100, 255])
def test_a_break_of_the_chain_is_told_with_its_place(position: int) -> None:
    records = chain(256, bytes(32))
    edited = list(records)
    edited[position] = edited[position].replace(b'"after":"', b'"after":"f', 1)[: len(edited[position])]
    dropped = records[:position] + records[position + 1 :]
    for wrong in (edited, dropped) if position < 255 else (edited,):
        with pytest.raises(ChainBroken, match=f"record {position} of the bundle") as caught:
            chained_bundle(encode_bundle(wrong), bytes(32))
        assert caught.value.position == position


def test_a_short_record_borrows_nothing_from_the_next() -> None:
    zeros = b"0" * 64
    data = encode_bundle([b"x" * 10, b"ab" + zeros])
    with pytest.raises(ChainBroken) as caught:
        chained_bundle(data, bytes(32))
    assert caught.value.position == 0
