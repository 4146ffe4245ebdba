"""Recording, publishing, crashes and what is found again."""

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity.errors import Behind, LedgerError, Tampered
from integrity.keys import SlotKeys, open_introduction
from integrity.layout import checkpoint_key, epoch_key, kept_checkpoint_key, tile_key
from integrity.record import START, decode
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.note import Signer, Verifier, parse_vkey
from integrity.tlog.tiles import WIDTH, TileNodes, chained_bundle, entries_path, split_bundle, widths
from integrity.tlog.tree import Frontier, leaf_hash, root_at
from integrity.wal import WalDamaged, WalFailed
from integrity.writer import Writer
from s3core.errors import NotFound, PreconditionFailed, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.memory import MemoryStore
from s3core.settings import LedgerSettings
from s3core.store import ObjectStore

ORIGIN = "example.com/ledger/h.1"
NAME = "h.1"
PUT = {"op": "put", "source": "client", "bucket": "b", "key": "k"}


class Hands:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def settings(**more: Any) -> LedgerSettings:
    return LedgerSettings.model_validate({"url": "memory:x", "group_s": 0} | more)


class Place:
    """A slot's folder and store; `open` gives its writer, `crash` leaves one without telling it."""

    def __init__(self, folder: Path, store: ObjectStore | None = None, **more: Any) -> None:
        self.folder = folder
        self.clock = Hands()
        self.store: ObjectStore = store or MemoryStore(clock=self.clock)
        self.settings = settings(**more)
        self.key = folder / "key.json"
        if not self.key.exists():
            SlotKeys.create(self.key, ORIGIN, now=self.clock.now)
        self.first = SlotKeys.load(self.key).signer.verifier

    def open(self, **more: Any) -> Writer:
        return Writer.open(
            self.folder,
            NAME,
            ORIGIN,
            self.store,
            SlotKeys.load(self.key),
            self.settings,
            clock=self.clock,
            random=random.Random(0),
            background=False,
            **more,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "slot")


def crash(writer: Writer) -> None:
    """Stop its threads, and let nothing else happen."""
    writer._stop_threads()
    writer._wal.close()


def read_log(store: ObjectStore, first: Verifier, *, kept: bool = True) -> list[dict[str, Any]]:
    """Every record of the published log, after everything that was signed has been checked, slowly and by other means than
    the writer's."""
    verifiers, ends = [first], [0]
    epoch = 1
    while True:
        try:
            note = store.get(epoch_key(NAME, epoch)).data
        except NotFound:
            break
        told = open_introduction(note, ORIGIN, epoch, verifiers[-1])
        verifiers.append(parse_vkey(told.vkey))
        ends.append(told.size)
        epoch += 1
    head = open_checkpoint(store.get(checkpoint_key(NAME)).data, ORIGIN, [verifiers[-1], *verifiers[-2:-1]])
    records: list[bytes] = []
    full, rest = widths(head.size, -1)
    after = START
    for index in range(full + bool(rest)):
        width = WIDTH if index < full else rest
        data = store.get(tile_key(NAME, entries_path(index, width))).data
        _, after = chained_bundle(data, after)
        records += split_bundle(data)
    frontier = Frontier()
    roots = {}
    decoded = []
    for number, data in enumerate(records):
        frontier.append(leaf_hash(data))
        record = decode(data)
        assert record["n"] == number
        assert record["writer"] == NAME
        decoded.append(record)
        if record["op"] == "checkpoint":
            roots[number + 1] = frontier.root()
    assert frontier.root() == head.root
    assert decoded[-1]["op"] == "checkpoint"
    before = 0
    for number, record in enumerate(decoded):
        if record["op"] != "checkpoint":
            continue
        size = number + 1
        assert record["detail"]["size"] == before
        if before:
            assert record["detail"]["root"] == roots[before].hex()
        verifier = verifiers[sum(1 for end in ends[1:] if size > end)]
        if kept:
            signed = open_checkpoint(store.get(kept_checkpoint_key(NAME, size)).data, ORIGIN, [verifier])
            assert signed == Checkpoint(ORIGIN, size, roots[size])
        before = size
    nodes = TileNodes(head.size, head.root, lambda path: bytes(store.get(tile_key(NAME, path)).data))
    assert root_at(head.size, nodes) == head.root
    return decoded


def put(n: int) -> dict[str, Any]:
    return PUT | {"key": f"k{n}"}


def keys_of(records: list[dict[str, Any]]) -> list[str]:
    return [record["key"] for record in records if record["op"] == "put"]


def test_records_are_published_and_chained(place: Place) -> None:
    writer = place.open()
    assert [writer.record(put(n)) for n in range(300)] == list(range(300))
    signed = writer.publish()
    assert signed is not None
    assert signed.size == 301
    assert writer.publish() is None
    writer.record(put(300))
    writer.close()
    records = read_log(place.store, place.first)
    assert keys_of(records) == [f"k{n}" for n in range(301)]
    assert records[-2]["detail"] == {"what": "close"}


def test_a_closed_log_goes_on(place: Place) -> None:
    for n in range(5):
        with_records = place.open()
        with_records.record(put(n))
        with_records.close()
    idle = place.open()
    idle.close()
    records = read_log(place.store, place.first)
    assert keys_of(records) == [f"k{n}" for n in range(5)]
    assert len(records) == 15  # each: the record, close, checkpoint; an idle one says nothing


def test_a_crash_names_what_is_unknown(place: Place) -> None:
    writer = place.open()
    first, second, third = (writer.intent(put(n)) for n in range(3))
    writer.outcome(second, "done", put(1))
    writer.publish()
    crash(writer)
    writer = place.open()
    assert writer.open_intents == []
    writer.close()
    records = read_log(place.store, place.first)
    unknown = [(one["intent"], one["key"], one["source"]) for one in records if one["phase"] == "unknown"]
    assert unknown == [(first, "k0", "ledger"), (third, "k2", "ledger")]


def test_closing_names_what_was_not_told(place: Place) -> None:
    writer = place.open()
    number = writer.intent(put(0))
    writer.close()
    assert [r["intent"] for r in read_log(place.store, place.first) if r["phase"] == "unknown"] == [number]
    with pytest.raises(LedgerError, match="closed"):
        writer.record(put(1))


def test_what_cannot_be_a_record_leaves_nothing(place: Place) -> None:
    writer = place.open()
    with pytest.raises(ValueError, match="op"):
        writer.record({"op": "nonsense", "source": "client"})
    with pytest.raises(ValueError, match="outcome"):
        writer.outcome(0, "intent", PUT)
    assert writer.record(PUT) == 0
    writer.close()


def test_many_threads(place: Place) -> None:
    writer = place.open()
    numbers: list[int] = []

    def work(mine: int) -> None:
        numbers.extend([writer.record(put(mine * 1000 + n)) for n in range(50)])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(800))
    writer.close()
    assert len(keys_of(read_log(place.store, place.first))) == 800


def test_waiting_for_nothing_is_durable_after_flush(place: Place) -> None:
    writer = place.open()
    numbers = writer.record_all((put(n) for n in range(10_000)), wait=False)
    writer.flush()
    assert writer.status.durable == 10_000
    assert numbers[-1] == 9_999
    crash(writer)
    writer = place.open()
    assert writer.status.size == 10_000
    crash(writer)


@pytest.mark.parametrize("left", [1, 7, 8, 30, 200])
def test_a_torn_tail_is_cut(place: Place, left: int) -> None:
    writer = place.open()
    writer.record(put(0))
    writer.record_all([put(1), put(2)])
    crash(writer)
    (path,) = (place.folder / "wal").glob("*.wal")
    whole = path.read_bytes()
    second = whole.index(b'"k1"')
    begin = whole.rindex(b'{"after"', 0, second) - 10
    path.write_bytes(whole[: begin + left])
    writer = place.open()
    assert writer.record(put(9)) == 1
    writer.close()
    assert keys_of(read_log(place.store, place.first)) == ["k0", "k9"]


def test_a_zeroed_tail_is_cut(place: Place) -> None:
    writer = place.open()
    writer.record(put(0))
    crash(writer)
    (path,) = (place.folder / "wal").glob("*.wal")
    path.write_bytes(path.read_bytes() + bytes(5000))
    writer = place.open()
    assert writer.record(put(1)) == 1
    writer.close()


def test_damage_in_the_middle_is_refused(place: Place) -> None:
    writer = place.open()
    for n in range(3):
        writer.record(put(n))
    crash(writer)
    (path,) = (place.folder / "wal").glob("*.wal")
    data = bytearray(path.read_bytes())
    data[data.index(b'"k1"') + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WalDamaged, match="damaged"):
        place.open()
    assert path.read_bytes() == data


def test_a_failed_sync_stops_the_writer(place: Place) -> None:
    import os

    failing = False

    def sync(fd: int) -> None:
        if failing:
            raise OSError(5, "Input/output error")
        os.fdatasync(fd)

    writer = place.open(sync=sync)
    writer.record(put(0))
    failing = True
    with pytest.raises(WalFailed):
        writer.record(put(1))
    failing = False
    with pytest.raises(WalFailed):
        writer.record(put(2))
    with pytest.raises(WalFailed):
        writer.flush()
    writer.close()


def test_the_store_may_be_away(place: Place) -> None:
    store = FaultyStore(place.store, FaultPlan(), random.Random(0), place.clock)
    place.store = store
    store.partition()
    writer = place.open()
    writer.record(put(0))
    with pytest.raises(Unavailable):
        writer.publish()
    assert "ledger" not in writer.status.error
    assert writer.status.error
    writer.close()
    store.heal()
    writer = place.open()
    writer.close()
    assert keys_of(read_log(store, place.first)) == ["k0"]


def test_old_state_is_refused(place: Place, tmp_path: Path) -> None:
    writer = place.open()
    writer.record(put(0))
    writer.publish()
    crash(writer)
    shutil.copytree(place.folder, tmp_path / "old")
    writer = place.open()
    writer.record(put(1))
    writer.close()
    before = {info.key: info.etag for info in place.store.list()}
    shutil.rmtree(place.folder)
    shutil.copytree(tmp_path / "old", place.folder)
    with pytest.raises(Behind):
        place.open()
    assert {info.key: info.etag for info in place.store.list()} == before


def test_two_hosts_with_one_key(place: Place, tmp_path: Path) -> None:
    """A copy of the slot elsewhere: who comes second is stopped."""
    shutil.copytree(place.folder, tmp_path / "copy")
    other = Place(tmp_path / "copy", place.store)
    one, two = place.open(), other.open()
    one.record(put(0))
    two.record(put(1))
    one.publish()
    with pytest.raises((Behind, Tampered)):
        two.publish()
    two.close()
    one.close()
    assert keys_of(read_log(place.store, place.first)) == ["k0"]


def test_a_checkpoint_that_was_put_back_is_told_and_recorded(place: Place) -> None:
    writer = place.open()
    writer.record(put(0))
    writer.publish()
    old = place.store.get(checkpoint_key(NAME)).data
    writer.record(put(1))
    writer.publish()
    place.store.put(checkpoint_key(NAME), old)
    writer.record(put(2))
    writer.publish()
    writer.close()
    records = read_log(place.store, place.first)
    assert [one["error"]["code"] for one in records if one["op"] == "error"] == ["rolled-back"]
    assert keys_of(records) == ["k0", "k1", "k2"]


@pytest.mark.parametrize("opened", [True, False])
def test_a_checkpoint_that_nobody_signed_stops_no_writer(
    place: Place, opened: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may write to the bucket can put it, and must not make a host believe that it lost its state."""
    writer = place.open()
    writer.record(put(0))
    writer.publish()
    if not opened:
        writer.close()
    forged = sign_checkpoint(Checkpoint(ORIGIN, 99, START), Signer(ORIGIN, bytes(32)))
    place.store.put(checkpoint_key(NAME), forged)
    writer = writer if opened else place.open()
    writer.record(put(1))
    writer.publish()
    writer.close()
    records = read_log(place.store, place.first)
    # A writer that was just opened does not know what was published; it tells it in the host's own journal.
    assert ["rolled-back"] * opened == [one["error"]["code"] for one in records if one["op"] == "error"]
    assert keys_of(records) == ["k0", "k1"]
    assert any("no key of this log signed" in record.message for record in caplog.records)


def test_old_state_is_refused_by_a_later_epochs_checkpoint(place: Place, tmp_path: Path) -> None:
    """The key that signed it came after the one that the old state has."""
    writer = place.open()
    writer.record(put(0))
    writer.publish()
    crash(writer)
    shutil.copytree(place.folder, tmp_path / "old")
    place.settings = settings(epoch_records=20)
    writer = place.open()
    for number in range(1, 60):
        writer.record(put(number))
        writer.publish()
    assert writer.status.epoch >= 2
    writer.close()
    shutil.rmtree(place.folder)
    shutil.copytree(tmp_path / "old", place.folder)
    with pytest.raises(Behind):
        place.open()


def test_an_object_that_is_not_ours_is_not_overwritten(place: Place) -> None:
    writer = place.open()
    place.store.put(tile_key(NAME, entries_path(0, 2)), b"something else")
    writer.record(put(0))
    with pytest.raises(Tampered):
        writer.publish()
    writer.record(put(1))  # recording goes on
    crash(writer)
    assert place.store.get(tile_key(NAME, entries_path(0, 2))).data == b"something else"


def test_epochs(place: Place) -> None:
    place.settings = settings(epoch_records=20)
    writer = place.open()
    for n in range(100):
        writer.record(put(n))
        if n % 7 == 0:
            writer.publish()
    assert writer.status.epoch >= 4
    writer.change_key()
    writer.close()
    records = read_log(place.store, place.first)
    assert [one["detail"]["epoch"] for one in records if one["op"] == "key"] == list(range(1, 1 + writer.status.epoch))
    assert not list(place.folder.glob("*.old"))
    assert not list(place.folder.glob("*.new"))


def test_an_old_epoch_is_not_on_the_disk(place: Place) -> None:
    import json

    seed = json.loads(place.key.read_bytes())["seed"]
    writer = place.open()
    writer.record(put(0))
    writer.change_key()
    writer.close()
    for path in place.folder.rglob("*"):
        assert not path.is_file() or seed.encode() not in path.read_bytes()


def test_the_local_log_is_trimmed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.wal.FILE_BYTES", 20_000)
    writer = place.open()
    kept = writer.intent(put(0))
    for n in range(1, 1500):
        writer.record(put(n), wait=n % 10 == 0)
        if n % 100 == 0:
            writer.publish()
    assert writer.status.wal_bytes < 200_000
    assert len(list((place.folder / "wal").glob("*.wal"))) < 8
    crash(writer)
    writer = place.open()
    writer.record(put(1500))
    writer.close()
    records = read_log(place.store, place.first)
    assert keys_of(records)[:1501] == [f"k{n}" for n in range(1500)] + ["k0"]
    assert [one["intent"] for one in records if one["phase"] == "unknown"] == [kept]


def test_a_damaged_base_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.wal.FILE_BYTES", 20_000)
    writer = place.open()
    for n in range(600):
        writer.record(put(n), wait=n % 10 == 0)
    writer.close()
    base = place.folder / "base.json"
    base.write_bytes(base.read_bytes().replace(b'"size":', b'"size" :', 1))
    with pytest.raises(WalDamaged, match=r"base\.json"):
        place.open()
    base.unlink()
    with pytest.raises(WalDamaged, match="missing"):
        place.open()


def _history(place: Place, writer: Writer) -> None:
    """Some of everything."""
    at = writer.status.size
    number = writer.intent(put(at))
    writer.record_all([put(at + 1 + n) for n in range(300)], wait=False)
    writer.publish()
    writer.outcome(number, "done", put(at))
    writer.change_key()
    writer.record(put(at + 500))
    writer.close()


class Death(Exception):
    """The process dies here."""


class DyingStore(MemoryStore):
    """Dies at its n-th write: before it, or after."""

    die: Callable[[], None] = staticmethod(lambda: None)

    def put_if_absent(self, *arguments: Any, **more: Any) -> str:
        self.die()
        etag = super().put_if_absent(*arguments, **more)
        self.die()
        return etag

    def put_if_match(self, *arguments: Any, **more: Any) -> str:
        self.die()
        etag = super().put_if_match(*arguments, **more)
        self.die()
        return etag


def test_death_at_every_write_of_the_store(tmp_path: Path) -> None:
    """Whatever the moment, whoever comes next makes the log whole: nothing acknowledged is lost, nothing is open."""
    deaths = 0
    for moment in range(200):
        place = Place(tmp_path / f"slot{moment}", DyingStore(clock=Hands()))
        writes = 0
        lock = threading.Lock()

        def die(moment: int = moment, lock: threading.Lock = lock) -> None:
            nonlocal writes
            with lock:
                writes += 1
                if writes > moment:
                    raise Death

        writer = place.open()
        place.store.die = die  # type: ignore[attr-defined]  # the rig's store has it
        died = False
        try:
            _history(place, writer)
        except Death:
            died = True
            crash(writer)
        durable = writer.status.durable
        place.store.die = lambda: None  # type: ignore[attr-defined]  # the rig's store has it
        writer = place.open()
        writer.record(put(10_000))
        writer.close()
        records = read_log(place.store, place.first)
        assert len(records) > durable
        assert keys_of(records)[-1] == "k10000"
        assert {r["n"] for r in records if r["phase"] == "intent"} == {r["intent"] for r in records if "intent" in r}
        deaths += died
        if not died:
            break
    assert deaths > 30


@pytest.mark.parametrize("seed", range(12))
def test_a_faulty_store(tmp_path: Path, seed: int) -> None:
    rates = dict(FaultPlan.even(0.3))
    rates.pop(FaultKind.HANG)
    inner = MemoryStore(clock=Hands())
    place = Place(tmp_path / "slot")
    store = FaultyStore(inner, FaultPlan(rates=rates), random.Random(seed), place.clock)
    place.store = store
    said: list[str] = []
    chance = random.Random(seed)
    writer = place.open()
    for n in range(120):
        match chance.randrange(6):
            case 0:
                for _ in range(chance.randrange(60)):
                    said.append(f"k{len(said)}")
                    writer.record(PUT | {"key": said[-1]}, wait=False)
            case 1 | 2:
                try:
                    writer.publish(force=chance.random() < 0.2)
                except StoreError:
                    place.clock.now += 1
            case 3:
                writer.intent(PUT | {"op": "copy", "key": f"c{n}"})
            case 4:
                try:
                    writer.change_key()
                except StoreError:
                    place.clock.now += 1
            case 5:
                writer.flush()
                crash(writer)
                store.settle(all_arrive=False)
                writer = place.open()
    store.plan = FaultPlan(scripted={("any", 10**9): Fault(FaultKind.REFUSED)})
    store.settle()
    writer.close()
    records = read_log(inner, place.first)
    assert keys_of(records) == said
    assert {r["n"] for r in records if r["phase"] == "intent"} == {r["intent"] for r in records if "intent" in r}


class Unconditional(MemoryStore):
    """As older releases of Ceph in buckets with versions: every If-Match fails, If-None-Match is ignored."""

    def put_if_match(self, key: str, data: Any, etag: str, *, metadata: dict[str, str] | None = None) -> str:
        raise PreconditionFailed("the ETag is another", key=key)

    def put_if_absent(self, key: str, data: Any, *, metadata: dict[str, str] | None = None) -> str:
        return self.put(key, data, metadata=metadata)


def test_a_store_whose_conditions_do_not_work_is_compared_with_by_us(tmp_path: Path) -> None:
    place = Place(tmp_path, Unconditional())
    for number in range(3):
        writer = place.open()
        for _ in range(2):
            writer.record({**PUT, "key": f"k{number}"})
            writer.publish()
        writer.close()
    assert [record.get("key") for record in read_log(place.store, place.first) if record["op"] == "put"] == [
        *("k0", "k0", "k1", "k1", "k2", "k2")
    ]
    writer = place.open()
    writer.record(PUT)
    writer.publish()
    writer.record(PUT)
    signed = writer.publish()
    assert signed is not None
    place.store.put(kept_checkpoint_key(NAME, signed.size + 2), b"not ours")
    writer.record(PUT)
    with pytest.raises(Tampered, match="other bytes"):
        writer.publish()
    crash(writer)
