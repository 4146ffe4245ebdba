"""Records out of a log: believed under the signed root, or `Altered` and where."""

import pytest

from integrity.layout import checkpoint_key, edge_key, tile_key
from integrity.log_reader import Altered, LogReader
from integrity.tlog.note import Signer
from integrity.tlog.tiles import ENTRIES, encode_bundle, split_bundle, tile_path
from s3core.errors import NotFound, Unavailable
from s3core.memory import MemoryStore
from s3core.store import Body, ObjectStore
from tests.integrity.verification.forge import Forged, World


@pytest.fixture
def log() -> Forged:
    world = World(("pve1.1",))
    log = world.logs["pve1.1"]
    for number in range(700):
        log.add(key=f"k{number}")
        if number in (100, 255, 511):
            log.publish()
    log.publish()
    return log


def reader_of(log: Forged, store: ObjectStore | None = None) -> LogReader:
    return LogReader(store or log.store, log.writer, log.origin, [log.signer.verifier])


@pytest.mark.parametrize(("first", "last"), [(0, None), (0, 0), (3, 9), (250, 520), (700, 704), (256, 512)])
def test_records_come_in_order_with_their_numbers(log: Forged, first: int, last: int | None) -> None:
    with reader_of(log) as reader:
        end = len(log.records) if last is None else last
        assert list(reader.records(first, last)) == list(enumerate(log.records))[first:end]


def test_sizes_in_the_past_have_their_roots(log: Forged) -> None:
    reader = reader_of(log)
    assert reader.checkpoint().size == len(log.records) == 704
    for size in (1, 102, 255, 256, 257, 600, 704):
        assert reader.root_at(size) == log.root(size)
    assert reader.record(5) == log.records[5]
    with pytest.raises(ValueError, match="704 records"):
        reader.records(0, 705)


def test_a_log_without_a_checkpoint_is_not_found() -> None:
    log = World(("a",)).logs["a"]
    with pytest.raises(NotFound):
        reader_of(log).checkpoint()


def test_another_key_or_another_log_is_not_believed(log: Forged) -> None:
    other = LogReader(log.store, log.writer, log.origin, [Signer(log.origin, bytes(32)).verifier])
    with pytest.raises(Altered, match="not a checkpoint of"):
        other.checkpoint()
    other = LogReader(log.store, log.writer, log.origin + "x", [log.signer.verifier])
    with pytest.raises(Altered):
        other.checkpoint()


def test_a_changed_record_is_told_by_its_number_after_all_before_it(log: Forged) -> None:
    key = tile_key(log.writer, tile_path(ENTRIES, 1))
    records = split_bundle(log.store.get(key).data)
    records[44] = records[44].replace(b"k2", b"K2")
    log.store.put(key, encode_bundle(records))
    reader = reader_of(log)
    records_read = reader.records()
    assert [next(records_read)[0] for _ in range(256)] == list(range(256))
    with pytest.raises(Altered) as told:
        next(records_read)
    assert (told.value.first, told.value.last, told.value.where) == (300, 300, key)


@pytest.mark.parametrize("path", [tile_path(ENTRIES, 1), tile_path(ENTRIES, 2, 704 - 512), tile_path(1, 0, 2)])
def test_an_object_that_the_size_demands_and_is_missing_is_altered(log: Forged, path: str) -> None:
    log.store.delete(tile_key(log.writer, path))
    log.store.delete(edge_key(log.writer, log.published))
    with pytest.raises(Altered) as told, reader_of(log) as reader:
        list(reader.records())
    assert path in told.value.where


def test_a_partial_bundle_is_taken_out_of_the_full_one(log: Forged) -> None:
    note = log.store.get(checkpoint_key(log.writer)).data
    for number in range(300):
        log.add(key=f"more{number}")
    log.publish()
    for path in (tile_path(ENTRIES, 2, 704 - 512), tile_path(0, 2, 704 - 512)):
        log.store.delete(tile_key(log.writer, path))
    reader = reader_of(log)
    reader.take(note)
    assert [record for _, record in reader.records()] == log.records[:704]


def test_a_store_that_does_not_answer_is_no_evidence(log: Forged) -> None:
    class Away(MemoryStore):
        def get(self, key: str) -> Body:
            if "entries" in key:
                raise Unavailable("no answer", key=key)
            return log.store.get(key)

    with pytest.raises(Unavailable), reader_of(log, Away()) as reader:
        list(reader.records())


def test_a_signed_log_whose_records_do_not_follow_each_other_is_altered(log: Forged) -> None:
    log.take(
        {"op": "put", "phase": "observed", "source": "client", "key": "x"},
        "2026-01-31T12:00:00.000000Z",
        after=bytes(32),
    )
    log.publish()
    with pytest.raises(Altered, match="record 704") as told, reader_of(log) as reader:
        list(reader.records())
    assert told.value.first == 704
