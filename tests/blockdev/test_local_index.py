"""The front's index against a model that knows the newest source of every sector."""

from hypothesis import given
from hypothesis import strategies as st

from blockdev.engine.local_index import LocalIndex, Piece, ZeroRanges
from blockdev.journal.format import Kind, Record

BLOCKS = 40
SECTORS = BLOCKS * 8


def record(kind: Kind, lba: int, sectors: int, position: int) -> Record:
    data_bytes = sectors * 512 if kind == Kind.WRITE else 0
    blocks = (lba + sectors - 1) // 8 - lba // 8 + 1
    checksums = tuple(range(blocks)) if kind == Kind.WRITE else ()
    return Record(
        position, position + 64 + data_bytes, kind, 0, 1, lba, sectors, 0, position + 64, data_bytes, checksums
    )


def source(index: LocalIndex, sector: int) -> int | None:
    """Position of the sector's newest byte in the journal, 0 for zeros, None if the journal does not know."""
    block, within = divmod(sector, 8)
    for piece in reversed(index.partial.get(block, [])):
        if piece.first <= within < piece.end:
            return piece.position + (within - piece.first) * 512
    entry = index.dirty.get(block)
    if entry is not None:
        return (entry >> 32) + within * 512
    return 0 if index.zeros.covers(block) else None


operations = st.lists(
    st.one_of(
        st.tuples(st.just(Kind.WRITE), st.integers(0, SECTORS - 1), st.integers(1, 40)),
        st.tuples(
            st.just(Kind.UNMAP),
            st.integers(0, BLOCKS - 1).map(lambda block: block * 8),
            st.integers(1, BLOCKS).map(lambda count: count * 8),
        ),
    ),
    max_size=20,
)


@given(operations=operations, given_up=st.integers(0, 20))
def test_newest_wins_and_given_up_records_are_gone(operations: list[tuple[Kind, int, int]], given_up: int) -> None:
    index = LocalIndex(512)
    records = []
    for number, (kind, lba, sectors) in enumerate(operations):
        records.append(record(kind, lba, min(sectors, SECTORS - lba), (number + 1) << 20))
        index.replay(records[-1])
    for gone in records[:given_up]:
        if gone.kind == Kind.WRITE:
            index.drop_write(gone)
        else:
            index.drop_range(gone)
    left = records[given_up:]
    for sector in range(SECTORS):
        expected = None
        for kept in left:
            if kept.lba <= sector < kept.lba + kept.sectors:
                expected = kept.data_position + (sector - kept.lba) * 512 if kept.kind == Kind.WRITE else 0
        # Where older content of the sector is gone, the newest that is left must still be what is found; a newer record
        # was never given up before an older one.
        assert source(index, sector) == expected
    assert all(len(pieces) <= 8 for pieces in index.partial.values())
    for start, end, data in index.local_runs(0, BLOCKS):
        for block in range(start, end):
            assert data == (block in index.dirty or block in index.partial)
            assert data or index.zeros.covers(block)


@given(operations=operations, position=st.integers(0, 21))
def test_dropping_by_position_is_the_same_as_record_by_record(
    operations: list[tuple[Kind, int, int]], position: int
) -> None:
    one, other = LocalIndex(512), LocalIndex(512)
    records = []
    for number, (kind, lba, sectors) in enumerate(operations):
        records.append(record(kind, lba, min(sectors, SECTORS - lba), (number + 1) << 20))
        one.replay(records[-1])
        other.replay(records[-1])
    limit = position << 20
    for gone in records:
        if gone.position < limit:
            (one.drop_write if gone.kind == Kind.WRITE else one.drop_range)(gone)
    other.drop_before(limit)
    assert [source(one, sector) for sector in range(SECTORS)] == [source(other, sector) for sector in range(SECTORS)]


def test_discarding_everything_is_one_range() -> None:
    index = LocalIndex(512)
    blocks = 16 << 28
    for number in range(100):
        index.replay(record(Kind.WRITE, number * 800, 9, (number + 1) << 20))
    index.discard(0, blocks, 1 << 40)
    assert (len(index.dirty), len(index.partial), list(index.zeros)) == (0, 0, [(0, blocks, 1 << 40)])


def test_a_forgotten_block_shows_nothing_older() -> None:
    index = LocalIndex(512)
    index.discard(0, 10, 100)
    index.write(8, 8, 1000, [7])
    index.forget_block(1, 5000)
    assert source(index, 8) is None
    assert source(index, 0) == 0
    assert source(index, 16) == 0


def test_pieces_that_cover_a_block_need_no_base() -> None:
    index = LocalIndex(512)
    index.write(0, 5, 1000, [1])
    assert not index.covers_block(0)
    index.write(5, 3, 9000, [2])
    assert index.covers_block(0)
    index.write(4, 2, 20000, [3])
    assert index.partial[0] == [Piece(0, 5, 1000, 1), Piece(5, 8, 9000, 2), Piece(4, 6, 20000, 3)]


def test_zero_ranges_cut_and_come_apart() -> None:
    zeros = ZeroRanges()
    zeros.add(0, 100, 1)
    zeros.add(20, 30, 2)
    assert list(zeros) == [(0, 20, 1), (20, 30, 2), (30, 100, 1)]
    assert zeros.run(25, 99) == (True, 30)
    zeros.remove(0, 100, 1)
    assert list(zeros) == [(20, 30, 2)]
    assert zeros.run(0, 25) == (False, 20)
    assert zeros.run(30, 35) == (False, 35)
    zeros.carve(22, 24)
    assert list(zeros) == [(20, 22, 2), (24, 30, 2)]
