"""Records of all writers: only what is under a signed root, in order of time, from both ends."""

from typing import Any

import pytest

from integrity.layout import tile_key
from integrity.record import encode, timestamp
from integrity.reports.choose import Choice
from integrity.reports.digest import Digest
from integrity.reports.reading import Readings
from integrity.tlog.tiles import ENTRIES, encode_bundle, split_bundle, tile_path
from s3core.errors import NotFound, Unavailable
from s3core.memory import MemoryStore
from s3core.store import Body
from tests.integrity.verification.forge import T0, World

EVERYTHING = Choice(everything=True)


@pytest.fixture(scope="module")
def world() -> World:
    made = World(("pve1.1", "pve1.2", "idle.1"))
    for number in range(1500):
        log = made.logs[("pve1.1", "pve1.2")[number % 3 == 0]]
        log.add(bucket="data", key=f"k{number}", who={"name": "backup", "host": "pve1"})
        if number % 400 == 0:
            log.publish()
    for name in ("pve1.1", "pve1.2"):
        made.logs[name].publish()
    made.seal()
    return made


def numbers(records: Any) -> list[tuple[str, int]]:
    return [(record["writer"], record["n"]) for record in records]


def test_all_records_come_once_by_time_and_by_number_within_a_writer(world: World) -> None:
    with Readings(world.evidence()) as readings:
        records = list(readings.merged(EVERYTHING))
        assert readings.problems == []
        assert [part.writer for part in readings.parts()] == ["ledger", "pve1.1", "pve1.2", "idle.1"]
        assert all(part.first == 0 and part.last == (part.size or 0) for part in readings.parts())
    assert [record["at"] for record in records] == sorted(record["at"] for record in records)
    for name, log in {**world.logs, "ledger": world.ledger}.items():
        assert [record["n"] for record in records if record["writer"] == name] == list(range(len(log.records)))


@pytest.mark.parametrize("limit", [1, 7, 300, 5000])
@pytest.mark.parametrize("choice", [Choice(), EVERYTHING, Choice(key="*7"), Choice(key="none")])
def test_the_newest_are_the_end_of_all(world: World, limit: int, choice: Choice) -> None:
    with Readings(world.evidence()) as readings:
        everything = numbers(readings.merged(choice))
        assert numbers(readings.newest(choice, limit)) == everything[-limit:]


@pytest.mark.parametrize(("since", "until"), [(100, 200), (0, 10), (999, 5000), (300, 0), (0, 300), (600, 601)])
def test_a_time_is_found_without_reading_all(world: World, since: int, until: int) -> None:
    first = timestamp(T0 + since) if since else ""
    last = timestamp(T0 + until) if until else ""
    choice = Choice(since=first, until=last, everything=True)
    with Readings(world.evidence()) as readings:
        found = list(readings.merged(choice))
    with Readings(world.evidence()) as readings:
        everything = readings.merged(EVERYTHING)
        assert numbers(found) == numbers(record for record in everything if choice.in_time(record))


def test_what_lies_long_before_is_not_read() -> None:
    world = World(("a.1",))
    for number in range(5000):
        world.logs["a.1"].add(key=f"k{number}")
    world.logs["a.1"].publish()
    world.seal()
    with Readings(world.evidence()) as readings:
        assert len(list(readings.merged(Choice(since=timestamp(T0 + 4900), until=timestamp(T0 + 4950))))) == 50
        part = {part.writer: part for part in readings.parts()}["a.1"]
        assert part.last - part.first < 1000


def test_one_writer_alone(world: World) -> None:
    with Readings(world.evidence(), "pve1.2") as readings:
        assert {writer for writer, _ in numbers(readings.merged(EVERYTHING))} == {"pve1.2"}


def test_a_record_that_was_changed_ends_its_log_alone_and_is_named() -> None:
    world = World(("a.1", "b.1"))
    world.fill(600)
    log = world.logs["a.1"]
    key = tile_key("a.1", tile_path(ENTRIES, 1))
    records = split_bundle(world.store.get(key).data)
    records[4] = records[4].replace(b"data", b"DATA")
    world.store.put(key, encode_bundle(records))
    with Readings(world.evidence()) as readings:
        found = numbers(readings.merged(EVERYTHING))
        assert [n for writer, n in found if writer == "a.1"] == list(range(256))
        assert len([1 for writer, _ in found if writer == "b.1"]) == len(world.logs["b.1"].records)
        assert [(one.kind, one.where) for one in readings.problems] == [("tampered", key)]
        part = {part.writer: part for part in readings.parts()}["a.1"]
        assert (part.size, part.last) == (None, 256)
    with Readings(world.evidence()) as readings:
        assert len(readings.newest(Choice(), 10)) == 10, "what is behind the change is not needed for the newest ten"
    assert log.published > 256


def test_a_signed_record_that_is_none_is_tampering() -> None:
    world = World(("a.1",))
    log = world.logs["a.1"]
    log.add(key="x")
    bad = encode(
        {"op": "put", "phase": "done", "source": "client"}, writer="a.1", n=1, at=timestamp(T0), after=log.hashes[-1]
    )
    log.add(key="y")
    log.cut(1)
    log.records.append(bad.replace(b'"put"', b'"PUT"'))
    from integrity.tlog.tree import leaf_hash

    log.hashes.append(leaf_hash(log.records[-1]))
    log.publish()
    world.seal()
    with Readings(world.evidence()) as readings:
        assert [n for writer, n in numbers(readings.merged(EVERYTHING)) if writer == "a.1"] == [0]
        assert [one.kind for one in readings.problems] == ["tampered"]


def test_a_record_in_the_name_of_another_writer_is_tampering() -> None:
    world = World(("a.1",))
    log = world.logs["a.1"]
    log.add(key="x")
    log.writer = "b.1"
    log.add(key="y")
    log.writer = "a.1"
    log.publish()
    world.seal()
    with Readings(world.evidence()) as readings:
        assert [n for writer, n in numbers(readings.merged(EVERYTHING)) if writer != "ledger"] == [0]
        assert ["calls itself b.1 1" in one.said for one in readings.problems] == [True]


def test_a_store_that_stops_answering_is_no_evidence() -> None:
    world = World(("a.1",))
    world.fill(600)

    class Away(MemoryStore):
        def get(self, key: str) -> Body:
            if "a.1/tile/entries/001" in key:
                raise Unavailable("no answer", key=key)
            return world.store.get(key)

    with Readings(world.evidence(store=Away())) as readings:
        assert len([1 for writer, _ in numbers(readings.merged(EVERYTHING)) if writer == "a.1"]) == 256
        assert [one.kind for one in readings.problems] == ["unread"]


def test_without_a_ledger_there_is_nothing_to_read() -> None:
    with pytest.raises(NotFound):
        Readings(World().evidence(store=MemoryStore()))


def test_another_key_shows_nothing(world: World) -> None:
    other = World(("z.1",))
    evidence = world.evidence(vkey=other.logs["z.1"].signer.vkey, pins=type(world.pins)("example.com/ledger", "x"))
    with Readings(evidence) as readings:
        assert list(readings.merged(EVERYTHING)) == []
        assert [one.kind for one in readings.problems] == ["tampered"]


def test_new_records_are_those_behind_the_sizes_that_were_seen() -> None:
    world = World(("a.1", "b.1"))
    world.fill(300)
    with Readings(world.evidence()) as readings:
        sizes = readings.sizes()
    world.logs["a.1"].add(key="new")
    world.logs["a.1"].publish()
    with Readings(world.evidence()) as readings:
        assert [record["key"] for record in readings.new_since(sizes, Choice())] == ["new"]


def test_what_was_read_once_is_a_pin_for_the_next_reading() -> None:
    world = World(("a.1", "b.1"))
    world.fill(300)
    before = world.kept()
    world.logs["a.1"].add(key="new")
    world.logs["a.1"].publish()
    world.seal()
    with Readings(world.evidence(), "a.1") as readings:
        pins = readings.pins()
    with Readings(world.evidence(pins=pins)) as readings:
        assert readings.problems == []
    world.put_back(before)
    with Readings(world.evidence()) as readings:
        assert readings.problems == []
    with Readings(world.evidence(pins=pins)) as readings:
        assert [one.kind for one in readings.problems] == ["tampered"]


def test_outcomes_behind_the_time_asked_for_are_found() -> None:
    world = World(("a.1",))
    log = world.logs["a.1"]
    opened = log.add(phase="intent", key="long")
    lost = log.add(phase="intent", key="lost")
    for number in range(9000):
        log.add(key=f"k{number}")
    log.add(phase="done", intent=opened, key="long")
    log.publish()
    world.seal()
    digest = Digest(Choice(until=timestamp(T0 + 10)))
    with Readings(world.evidence()) as readings:
        readings.into(digest)
        assert readings.problems == []
    assert [(row["n"], row["key"]) for row in digest.finish()] == [(lost, "lost")]
    assert dict(digest.totals) == {"done": 1, "unfinished": 1, "observed": 7}
    assert digest.records["a.1"] == 9
