"""A volume attached for one command: what it carries, what it leaves, and what stands in its way."""

import asyncio
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from blockdev import keys
from blockdev.checksum import crc32c
from blockdev.control import Answered, BadRequest, ControlServer
from blockdev.engine import link
from blockdev.engine.state_directory import StateDirectory
from blockdev.engine.worker import Worker
from blockdev.errors import AttachRefused, CorruptJournal, Fenced, KeyRefused, NotReady, Refused
from blockdev.offline import open_offline
from blockdev.place import VolumePlace, open_store, resolve, volume_store
from blockdev.segments.key_slot import Secret
from blockdev.segments.record import RecordKind
from blockdev.segments.volume_file import VolumeFile
from blockdev.session import Session, operate, reach
from blockdev.units import MIB, Geometry
from blockdev.volumes import create_volume, newest_record
from s3core.settings import Config
from s3core.store import ObjectStore

CONFIG = Config()


@pytest.fixture
def place(tmp_path: Path) -> VolumePlace:
    found = resolve(CONFIG, f"file://{tmp_path}/store/vm1", environ={"HOME": str(tmp_path)}, user=1000)
    volume = VolumeFile("vm1", uuid4(), uuid4(), Geometry(4 * MIB), "zstd", 0.0, "test")
    create_volume(open_store(CONFIG, found.store_url), volume)
    return found


def own(place: VolumePlace) -> ObjectStore:
    return volume_store(open_store(CONFIG, place.store_url), place.name)


def kind_of_the_newest(place: VolumePlace) -> int:
    with open_offline(own(place), place.name) as found:
        last = newest_record(own(place), found.volume.identity)
    assert last is not None
    return last.record.kind


def first_block(place: VolumePlace) -> bytes:
    content = bytearray(4096)

    class Sink:
        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            if offset < 4096:
                content[offset : offset + len(data)] = bytes(data)[: 4096 - offset]

    with open_offline(own(place), place.name) as found:
        found.copy(Sink())
    return bytes(content)


def leave_behind(place: VolumePlace, fill: int) -> None:
    """As a host that wrote one block, acknowledged it, and died before the bucket had it."""
    session = Session(place, CONFIG)
    session.__enter__()
    data = bytes([fill]) * 4096
    journal = session._journal
    assert journal is not None
    journal.stage_write(0, 8, [data], 4096, [crc32c(data)])
    journal.append()
    journal.sync()
    session._close()


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> list[link.Operate]:
    """Operations reach the worker; what it answers is the test's: `echo` at once, `refuse` with an error, others never."""
    seen: list[link.Operate] = []
    receive = Worker.receive

    def stand_in(self: Worker, message: link.ToWorker) -> None:
        if not isinstance(message, link.Operate):
            receive(self, message)
            return
        seen.append(message)
        if message.name == "echo":
            self._send(link.Operated(message.id, message.arguments))
        elif message.name == "refuse":
            self._send(link.Operated(message.id, {}, "there is no such snapshot", "Refused"))

    monkeypatch.setattr(Worker, "receive", stand_in)
    return seen


def test_a_session_attaches_operates_and_leaves_nothing_behind(place: VolumePlace, answering: list[Any]) -> None:
    with Session(place, CONFIG) as session:
        assert session.operate("echo", name="x") == {"name": "x"}
        with pytest.raises(Refused, match="no such snapshot"):
            session.operate("refuse")
        assert session.operate("echo") == {}, "an operation that is refused ends nothing else"
        assert session.ready.size_bytes == 4 * MIB
    assert kind_of_the_newest(place) == RecordKind.DETACH
    assert not (place.state_dir / "journal").exists(), "the next `serve` makes one of the configured size"
    assert not (place.state_dir / "journal.epoch").exists()
    assert operate(place, CONFIG, "echo", {"a": 1}) == {"a": 1}


def test_what_a_dead_server_left_in_its_journal_reaches_the_bucket_first(place: VolumePlace) -> None:
    leave_behind(place, 7)
    assert first_block(place) == bytes(4096)
    with Session(place, CONFIG):
        assert first_block(place) == bytes([7]) * 4096
    assert kind_of_the_newest(place) == RecordKind.DETACH
    assert (place.state_dir / "journal").exists(), "it was there before"


def test_after_an_error_it_still_detaches(place: VolumePlace) -> None:
    for error in (ValueError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Session(place, CONFIG):
            raise error
        assert kind_of_the_newest(place) == RecordKind.DETACH


def test_a_dropped_session_can_be_taken_up_here_and_nowhere_else(place: VolumePlace, tmp_path: Path) -> None:
    leave_behind(place, 9)
    with (
        pytest.raises(AttachRefused, match="its journal is not here"),
        Session(place, CONFIG, state_dir=tmp_path / "b"),
    ):
        pytest.fail("attached")
    with Session(place, CONFIG, state_dir=tmp_path / "b", accept_loss=True, outwait=False):
        pass
    assert first_block(place) == bytes(4096), "the loss was accepted"


def test_a_volume_that_another_host_may_serve_is_not_taken_over_in_passing(place: VolumePlace, tmp_path: Path) -> None:
    """With flush = "s3" a take-over would lose nothing that was flushed, and `serve` elsewhere does it. A command does not."""
    flushing = replace(place, settings=place.settings.model_copy(update={"flush": "s3"}))
    leave_behind(flushing, 9)
    with pytest.raises(AttachRefused, match="is attached on"), Session(flushing, CONFIG, state_dir=tmp_path / "b"):
        pytest.fail("attached")
    with Session(flushing, CONFIG, state_dir=tmp_path / "b", accept_loss=True, outwait=False):
        pass
    assert kind_of_the_newest(place) == RecordKind.DETACH


def test_patience_ends_with_words_and_the_volume_stays_attachable(
    place: VolumePlace, answering: list[link.Operate]
) -> None:
    slow = pytest.raises(NotReady, match=r"not done with hang within 0.2 s \(is the store reachable")
    with Session(place, CONFIG, operate_patience_s=0.2) as session, slow:
        session.operate("hang")
    assert kind_of_the_newest(place) == RecordKind.DETACH


def test_a_store_that_went_away_is_told_and_the_journal_stays(
    place: VolumePlace, answering: list[link.Operate], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    session = Session(place, CONFIG, detach_patience_s=1.0).__enter__()
    os.rename(store, tmp_path / "away")
    store.write_text("no directory")
    with pytest.raises(NotReady, match="not detached within 1 s"):
        session.__exit__(None, None, None)
    store.unlink()
    os.rename(tmp_path / "away", store)
    assert (place.state_dir / "journal").exists()
    with Session(place, CONFIG):
        pass
    assert kind_of_the_newest(place) == RecordKind.DETACH


def test_one_at_a_time(place: VolumePlace) -> None:
    StateDirectory(place.state_dir).prepare()
    with Session(place, CONFIG), pytest.raises(AttachRefused, match="is in use by process"), Session(place, CONFIG):
        pytest.fail("two at once")
    with Session(place, CONFIG):
        pass


def test_a_worker_that_is_fenced_off_says_so(place: VolumePlace, answering: list[link.Operate], tmp_path: Path) -> None:
    session = Session(place, CONFIG).__enter__()
    with Session(place, CONFIG, state_dir=tmp_path / "b", accept_loss=True, outwait=False):
        pass
    with pytest.raises(Fenced, match="was written by epoch 2"):
        session.operate("flush")
    with pytest.raises(Fenced, match="was written by epoch 2"):
        session.__exit__(None, None, None)


def test_a_journal_of_a_later_epoch_is_refused(place: VolumePlace) -> None:
    leave_behind(place, 1)
    session = Session(place, CONFIG)
    with session:
        assert session._journal is not None
        with pytest.raises(CorruptJournal, match="was written by epoch 2 already"):
            session._journal.take_up(session._journal.head, 2, lambda record: None)


def test_where_a_daemon_serves_it_is_asked(place: VolumePlace, tmp_path: Path) -> None:
    StateDirectory(place.state_dir).prepare()
    loop = asyncio.new_event_loop()
    asked: list[tuple[str, dict[str, Any]]] = []

    def answer(name: str, arguments: dict[str, Any], answered: Answered) -> None:
        asked.append((name, arguments))
        answered({"name": "s1"} if name == "snapshot" else BadRequest(f"no {name}"))

    server = ControlServer(place.state_dir, answer)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result()
    try:
        with reach(place, CONFIG) as volume:
            assert volume.served
            assert volume.operate("snapshot", name="s1") == {"name": "s1"}
        with pytest.raises(BadRequest, match="no rollback"):
            operate(place, CONFIG, "rollback", {"to": "s1"})
        assert asked == [("snapshot", {"name": "s1"}), ("rollback", {"to": "s1"})]
    finally:
        loop.call_soon_threadsafe(server.close)
        time.sleep(0.05)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert list(own(place).list("log/")) == [], "nobody attached it"


def test_an_encrypted_volume_is_attached_with_its_key_and_not_without(
    tmp_path: Path, answering: list[link.Operate]
) -> None:
    found = resolve(CONFIG, f"file://{tmp_path}/store/vm1", environ={"HOME": str(tmp_path)}, user=1000)
    key_file = tmp_path / "key"
    key_file.write_bytes(bytes(range(32)))
    key_file.chmod(0o600)
    secret = Secret("key", bytes(range(32)))
    volume = VolumeFile("vm1", uuid4(), uuid4(), Geometry(4 * MIB), "zstd", 0.0, "test")
    volume, slot, _ = keys.sealed(volume, secret, random=os.urandom)
    with keys.slot_in_place(own(found), slot):
        create_volume(open_store(CONFIG, found.store_url), volume)
    keyed = replace(found, settings=found.settings.model_copy(update={"key": f"file:{key_file}"}))
    with Session(keyed, CONFIG) as session:
        assert session.operate("echo", a=1) == {"a": 1}
    with pytest.raises(KeyRefused, match="no key was given"), Session(found, CONFIG):
        pytest.fail("attached")
    with Session(keyed, CONFIG):
        pass
