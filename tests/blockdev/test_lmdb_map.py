"""The local map's file: what is trusted at the next start, and what is thrown away."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents import presence, seal
from blockdev.extents.extent_map import DEAD, EXTENTS, META
from blockdev.extents.format import KEY, Base, ExtentValue, Patch
from blockdev.extents.lmdb_map import DATA, SEAL, TAGS, LmdbKeyValueStore, close_map_store, open_map_store
from blockdev.extents.presence import CHUNK, NumberedTags, StoredTags, decode, encode

ITEMS = {KEY.pack(number): bytes([number % 251]) * (number % 90) for number in range(400)}


def fill(store: LmdbKeyValueStore) -> None:
    with store.begin(write=True) as txn:
        for key, value in ITEMS.items():
            txn.put(EXTENTS, key, value)
        txn.put(DEAD, b"name", b"")


def content(store: LmdbKeyValueStore) -> dict[bytes, bytes]:
    with store.begin(write=False) as txn:
        return dict(txn.scan(EXTENTS))


def filled(path: Path) -> None:
    store = open_map_store(path, "a volume")
    fill(store)
    close_map_store(store)


def reopened(path: Path, owner: str = "a volume") -> dict[bytes, bytes]:
    store = open_map_store(path, owner)
    try:
        return content(store)
    finally:
        store.close()


def test_what_was_closed_in_order_is_there(tmp_path: Path) -> None:
    path = tmp_path / "map"
    filled(path)
    store = open_map_store(path, "a volume")
    assert content(store) == ITEMS
    with store.begin(write=False) as txn:
        assert txn.get(DEAD, b"name") == b""
        assert txn.get(EXTENTS, KEY.pack(7)) == ITEMS[KEY.pack(7)]
        assert txn.get(EXTENTS, KEY.pack(1000)) is None
    close_map_store(store)
    assert reopened(path) == ITEMS


def test_what_was_not_closed_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "map"
    filled(path)
    open_map_store(path, "a volume").close()
    assert reopened(path) == {}


def test_another_volumes_map_is_thrown_away(tmp_path: Path) -> None:
    filled(tmp_path / "map")
    assert reopened(tmp_path / "map", "another volume") == {}


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_died_of_a_signal_leaves_no_trust(tmp_path: Path, number: signal.Signals) -> None:
    """A damaged page may crash LMDB: whoever starts next must not walk into the same page."""
    path = tmp_path / "map"
    filled(path)
    program = (
        "import os, sys; from pathlib import Path; from blockdev.extents.lmdb_map import open_map_store; "
        "store = open_map_store(Path(sys.argv[1]), 'a volume'); os.kill(os.getpid(), int(sys.argv[2]))"
    )
    died = subprocess.run([sys.executable, "-c", program, str(path), str(int(number))], check=False)
    assert died.returncode == -number
    assert reopened(path) == {}


def test_damage_is_told_by_page_and_offset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "map"
    filled(path)
    with (path / DATA).open("r+b") as file:
        file.seek(3 * 4096 + 17)
        byte = file.read(1)[0]
        file.seek(3 * 4096 + 17)
        file.write(bytes([byte ^ 4]))
    assert reopened(path) == {}
    assert "page 3 is damaged at offset 12288" in caplog.text


def test_a_file_of_another_length(tmp_path: Path) -> None:
    filled(tmp_path / "map")
    os.truncate(tmp_path / "map" / DATA, 8192)
    assert reopened(tmp_path / "map") == {}


def test_an_item_that_does_not_hold_is_never_given_out(tmp_path: Path) -> None:
    """And the store is not sealed any more: what else is wrong with it nobody knows."""
    path = tmp_path / "map"
    store = open_map_store(path, "a volume")
    fill(store)
    with store._env.begin(write=True) as raw:
        whole = raw.get(KEY.pack(9), db=store.databases[EXTENTS])
        assert whole is not None
        raw.put(KEY.pack(10), whole, db=store.databases[EXTENTS])
        raw.put(b"x", whole[:-1] + b"\0", db=store.databases[META])
        raw.put(b"y", b"", db=store.databases[META])
    with store.begin(write=False) as txn:
        for table, key in ((EXTENTS, KEY.pack(10)), (META, b"x"), (META, b"y")):  # behind the store's back
            with pytest.raises(CorruptFormat, match=f"extent map, {table} {key.hex()}"):
                txn.get(table, key)
        with pytest.raises(CorruptFormat, match="extent map"):
            list(txn.scan(EXTENTS))
    close_map_store(store)
    assert not (path / SEAL).exists()
    assert reopened(path) == {}


def test_what_lmdb_loses_or_brings_back_is_missed(tmp_path: Path) -> None:
    store = open_map_store(tmp_path / "map", "a volume")
    fill(store)
    with store._env.begin() as raw:
        old = raw.get(KEY.pack(5), db=store.databases[EXTENTS])
    with store.begin(write=True) as txn:
        txn.put(EXTENTS, KEY.pack(5), b"newer")
        txn.delete(EXTENTS, KEY.pack(6))
    for key, item in ((5, old), (6, old), (7, None)):
        with store._env.begin(write=True) as raw:
            before = raw.get(KEY.pack(key), db=store.databases[EXTENTS])
            if item is None:
                raw.delete(KEY.pack(key), db=store.databases[EXTENTS])
            else:
                raw.put(KEY.pack(key), item, db=store.databases[EXTENTS])
        with store.begin(write=False) as txn:
            with pytest.raises(CorruptFormat, match="extent map, extents"):
                txn.get(EXTENTS, KEY.pack(key))
            with pytest.raises(CorruptFormat, match="extent map, extents"):
                list(txn.scan(EXTENTS, KEY.pack(key - 1)))
        with store._env.begin(write=True) as raw:
            if before is None:
                raw.delete(KEY.pack(key), db=store.databases[EXTENTS])
            else:
                raw.put(KEY.pack(key), before, db=store.databases[EXTENTS])
    with store._env.begin(write=True) as raw:
        raw.delete(b"name", db=store.databases[DEAD])
    with store.begin(write=False) as txn, pytest.raises(CorruptFormat, match="extent map, dead"):
        list(txn.scan(DEAD))
    close_map_store(store)
    assert reopened(tmp_path / "map") == {}


def test_an_abandoned_transaction_changes_nothing(tmp_path: Path) -> None:
    store = open_map_store(tmp_path / "map", "a volume")
    fill(store)

    def abandon() -> None:
        with store.begin(write=True) as txn:
            txn.put(EXTENTS, KEY.pack(5), b"newer")
            txn.delete(EXTENTS, KEY.pack(6))
            txn.put(EXTENTS, KEY.pack(900), b"new")
            txn.drop(DEAD)
            raise CorruptFormat("enough")

    with pytest.raises(CorruptFormat, match="enough"):
        abandon()
    assert content(store) == ITEMS
    with store.begin(write=True) as txn:
        assert dict(txn.scan(DEAD)) == {b"name": b""}
        txn.drop(EXTENTS)
        txn.put(EXTENTS, KEY.pack(1), b"x")
        assert dict(txn.scan(EXTENTS)) == {KEY.pack(1): b"x"}
    assert content(store) == {KEY.pack(1): b"x"}
    store.clear()
    assert content(store) == {}
    store.close()


def test_a_reader_of_an_older_moment_is_left_alone(tmp_path: Path) -> None:
    store = open_map_store(tmp_path / "map", "a volume")
    fill(store)
    with store.begin(write=False) as reader:
        with store.begin(write=True) as txn:
            txn.put(EXTENTS, KEY.pack(5), b"newer")
            txn.delete(EXTENTS, KEY.pack(6))
            assert dict(reader.scan(EXTENTS)) == ITEMS
        assert dict(reader.scan(EXTENTS)) == ITEMS
    assert content(store) != ITEMS
    store.close()


def test_numbered_tags() -> None:
    rng = random.Random(2)
    tags, model = NumberedTags(), dict[int, int]()
    for _ in range(3000):
        number = rng.choice([rng.randrange(50), rng.randrange(3 * CHUNK), rng.randrange(1 << 40)])
        tag = rng.choice([0, 1, 255])
        tags.set(KEY.pack(number), tag)
        model[number] = tag
        assert tags.get(KEY.pack(number)) == tag
    present = sorted(number for number, tag in model.items() if tag)
    for number in [*model, 0, 1 << 41]:
        assert tags.following(number) == next((other for other in present if other >= number), -1)


@pytest.mark.slow
def test_many_tags_at_once_and_taken_back() -> None:
    rng = random.Random(3)
    tags, model = NumberedTags(), NumberedTags()
    for _ in range(300):
        first = rng.choice([0, 5, CHUNK - 3, rng.randrange(4 * CHUNK), 1 << 40])
        step = rng.choice([1, 1, 1, 2, 700])
        numbers = [first + step * index for index in range(rng.choice([1, 2, 30, CHUNK, 2 * CHUNK + 5]))]
        if rng.random() < 0.3:
            rng.shuffle(numbers)
        keys = [KEY.pack(number) for number in numbers]
        values = [rng.randrange(1, 256) for _ in keys]
        before = tags.chunks()
        undo = tags.put_many(keys, values)
        if rng.random() < 0.4:
            undo()
            assert tags.chunks() == before
            continue
        for key, value in zip(keys, values, strict=True):
            model.set(key, value)
        assert tags.chunks() == model.chunks()


def test_stored_tags_spare_the_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with tags looks at no extent; one without, or with tags of another seal, at each, and knows as much."""
    path = tmp_path / "map"
    filled(path)
    whole = (path / TAGS).read_bytes()
    stored = decode(whole)
    assert [place for place, _ in stored.chunks] == [0]
    seen: list[int] = []

    def tag_of(crc: int) -> int:
        seen.append(crc)
        return presence.tag_of(crc)

    monkeypatch.setattr("blockdev.extents.lmdb_map.tag_of", tag_of)
    for number, blob in enumerate((whole, None, encode(StoredTags(stored.seal_crc ^ 1, stored.chunks)), whole[:-1])):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(path, copy)
        (copy / TAGS).unlink()
        if blob is not None:
            (copy / TAGS).write_bytes(blob)
        seen.clear()
        store = open_map_store(copy, "a volume")
        assert (len(seen) >= len(ITEMS)) == (number > 0)
        assert not (copy / TAGS).exists()
        assert content(store) == ITEMS
        tags = store.tags[EXTENTS]
        assert isinstance(tags, NumberedTags)
        assert tags.chunks() == stored.chunks
        store.close()


def test_every_bit_of_stored_tags() -> None:
    whole = encode(StoredTags(5, [(0, bytes(range(256)) * 4), (9, b"\1" * CHUNK)]))
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFormat):
            decode(bytes(flipped))
    for length in range(len(whole)):
        with pytest.raises(CorruptFormat):
            decode(whole[:length])


def test_every_bit_of_a_seal(tmp_path: Path) -> None:
    path, where = tmp_path / "file", tmp_path / "seal"
    path.write_bytes(random.Random(1).randbytes(3 * 4096 + 100))
    seal.seal_file(path, where, "me")
    seal.verify_file(path, where, "me")
    whole = where.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        where.write_bytes(flipped)
        with pytest.raises(CorruptFormat):
            seal.verify_file(path, where, "me")
    for length in range(len(whole)):
        with pytest.raises(CorruptFormat):
            seal.decode(whole[:length])


def test_a_short_value_whose_checksum_holds_is_corrupt() -> None:
    """Whatever length and flags it claims, a value parses as a whole or not at all."""
    value = ExtentValue(Base(1, 2, 3, bytes(range(8))), (Patch(0, 1, 2, 3, 4, 5, 6),))
    whole = mapformat.encode(5, value)
    for length in range(4, len(whole)):
        tail = whole[4:length]
        crc = crc32c(tail, crc32c(KEY.pack(5)))
        with pytest.raises(CorruptFormat):
            mapformat.decode(5, crc.to_bytes(4, "little") + tail)
    assert mapformat.decode(5, whole) == value
