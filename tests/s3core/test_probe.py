"""The probe passes honest stores and catches each of these liars."""

import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from s3core.errors import Denied, NotFound, PreconditionFailed, StoreError, Unsupported
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.file import FileStore
from s3core.memory import MemoryStore
from s3core.probe import ProbeResult, probe_store, race_conditional_put
from s3core.store import Body, Buffer, ObjectInfo, ObjectStore
from tests.s3core.fakes import FakeClock

Data = Buffer | Sequence[Buffer]
Metadata = dict[str, str] | None


class IgnoresConditions(MemoryStore):
    """Takes the header and does as it pleases, as some servers and gateways do."""

    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        return self.put(key, data, metadata=metadata)

    def put_if_match(self, key: str, data: Data, etag: str, *, metadata: Metadata = None) -> str:
        return self.put(key, data, metadata=metadata)


class ChecksBeforeItWrites(MemoryStore):
    """Honours the condition in turn, but not in a race: looks first, writes then."""

    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        try:
            self.head(key)
        except NotFound:
            self.everybody.wait(10)
            return self.put(key, data, metadata=metadata)
        raise PreconditionFailed("exists", key=key)

    def __init__(self, racers: int) -> None:
        super().__init__()
        self.everybody = threading.Barrier(racers)


class RefusesAndWritesAllTheSame(MemoryStore):
    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        try:
            return super().put_if_absent(key, data, metadata=metadata)
        except PreconditionFailed:
            self.put(key, data)
            raise


class SaysYesAndWritesNothing(MemoryStore):
    done = False

    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        if self.done:
            raise PreconditionFailed("exists", key=key)
        self.done = True
        return "etag"


class AlwaysRefuses(MemoryStore):
    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        raise PreconditionFailed("exists", key=key)


class NotImplementedHere(MemoryStore):
    def put_if_absent(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        raise Unsupported("501 NotImplemented", key=key, hint="another server")


@pytest.mark.parametrize("make", [lambda path: MemoryStore(), FileStore], ids=["memory", "file"])
def test_honest_stores_pass_the_race(make: type[FileStore], tmp_path: Path) -> None:
    store: ObjectStore = make(tmp_path)
    for seed in range(5):
        result = race_conditional_put(store, "volume/probe-", random.Random(seed))
        assert result.ok, result
        assert result.conclusive
        assert result.hint == ""
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (IgnoresConditions(), "8 of 8 racing writers were told"),
        (ChecksBeforeItWrites(8), "8 of 8 racing writers were told"),
        (RefusesAndWritesAllTheSame(), "a writer that was refused"),
        (SaysYesAndWritesNothing(), "there is none"),
        (AlwaysRefuses(), "though there was no object"),
        (NotImplementedHere(), "501"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemoryStore) else "",
)
def test_liars_fail_the_race(store: MemoryStore, said: str) -> None:
    result = race_conditional_put(store, "volume/probe-", random.Random(1))
    assert not result.ok
    assert result.conclusive
    assert said in result.detail
    assert "volumes" in result.needed_for
    assert result.hint
    assert list(store.list()) == []


def test_one_racer_still_finds_a_store_that_ignores_conditions() -> None:
    assert race_conditional_put(MemoryStore(), "p/", random.Random(1), racers=1).ok
    result = race_conditional_put(IgnoresConditions(), "p/", random.Random(1), racers=1)
    assert not result.ok
    assert "created again" in result.detail


def test_a_race_nobody_could_run_is_not_conclusive() -> None:
    faulty = FaultyStore(MemoryStore(), FaultPlan(), random.Random(1), FakeClock())
    faulty.partition()
    result = race_conditional_put(faulty, "p/", random.Random(1))
    assert not result.ok
    assert not result.conclusive


def test_a_winner_without_rivals_proves_nothing() -> None:
    plan = FaultPlan(scripted={("put_if_absent", number): Fault(FaultKind.REFUSED) for number in range(1, 8)})
    result = race_conditional_put(
        FaultyStore(MemoryStore(), plan, random.Random(1), FakeClock()), "p/", random.Random(1)
    )
    assert not result.ok
    assert not result.conclusive


@pytest.mark.parametrize("fault", [FaultKind.LOST_REPLY, FaultKind.LOST_REQUEST])
def test_a_lost_answer_in_the_race_is_looked_up(fault: FaultKind) -> None:
    for lost in range(1, 9):
        memory = MemoryStore()
        plan = FaultPlan(scripted={("put_if_absent", lost): Fault(fault)})
        result = race_conditional_put(FaultyStore(memory, plan, random.Random(1), FakeClock()), "p/", random.Random(1))
        assert result.ok, result
        assert list(memory.list()) == []


@pytest.mark.parametrize("make", [lambda path: MemoryStore(), FileStore], ids=["memory", "file"])
def test_honest_stores_pass_everything(make: type[FileStore], tmp_path: Path) -> None:
    store: ObjectStore = make(tmp_path)
    store.put("bucketworks-probe/mine", b"not the probe's")
    told: list[ProbeResult] = []
    report = probe_store(store, random=random.Random(1), samples=2, bulk_bytes=65536, on_result=told.append)
    assert report.ok, report
    assert told == list(report.findings)
    assert len({finding.name for finding in report.findings}) == len(report.findings) == 11
    assert report.url == store.url
    assert report.figures["put_4k_median_ms"] >= 0
    assert report.figures["get_mib_per_s"] > 0
    assert [info.key for info in store.list()] == ["bucketworks-probe/mine"]


class LagsBehind(MemoryStore):
    """Reads are answered from the state before the last write."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Body] = {}
        self.now: dict[str, Body] = {}

    def put(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        etag = super().put(key, data, metadata=metadata)
        body = super().get(key)
        self.before[key] = self.now.get(key, body)
        self.now[key] = body
        return etag

    def get(self, key: str) -> Body:
        super().get(key)
        return self.before[key]


class ServesWhatThereIs(MemoryStore):
    def get_range(self, key: str, offset: int, length: int) -> Body:
        body = self.get(key)
        return Body(body.data[offset : offset + length], body.etag)


class ShiftedRanges(MemoryStore):
    def get_range(self, key: str, offset: int, length: int) -> Body:
        body = super().get_range(key, offset, length)
        return body if offset else Body(bytes(length), body.etag)


class ListsInUtf16Order(MemoryStore):
    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        found = [info for info in super().list(prefix) if info.key > start_after]
        return iter(sorted(found, key=lambda info: info.key.encode("utf-16-be")))


class ListsLate(MemoryStore):
    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter([])

    def close(self) -> None:
        for info in super().list():
            self.delete(info.key)


class KeepsTheDeleted(MemoryStore):
    def delete(self, key: str) -> None:
        return


class DropsMetadata(MemoryStore):
    def put(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
        return super().put(key, data)


class CannotCopy(MemoryStore):
    def copy(self, source: str, target: str) -> str:
        raise Denied("403 AccessDenied", key=target, hint="grant s3:GetObject and s3:PutObject")


@pytest.mark.parametrize(
    ("store", "names"),
    [
        (IgnoresConditions(), {"create once", "replace if unchanged"}),
        (LagsBehind(), {"read after write"}),
        (ServesWhatThereIs(), {"ranges"}),
        (ShiftedRanges(), {"ranges"}),
        (ListsInUtf16Order(), {"order of listings"}),
        (ListsLate(), {"order of listings"}),
        (KeepsTheDeleted(), {"delete"}),
        (DropsMetadata(), {"metadata", "copy"}),
        (CannotCopy(), {"copy"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MemoryStore) else "",
)
def test_each_lie_is_found(store: MemoryStore, names: set[str]) -> None:
    report = probe_store(store, random=random.Random(1), samples=1, bulk_bytes=1024)
    assert {finding.name for finding in report.findings if not finding.ok} - {"clean up"} == names
    for finding in report.findings:
        assert finding.detail


def test_a_clock_that_is_off_is_named() -> None:
    theirs, ours = FakeClock(), FakeClock()
    theirs.now += 3600
    report = probe_store(MemoryStore(clock=theirs), clock=ours, random=random.Random(1), samples=1, bulk_bytes=1024)
    (finding,) = [finding for finding in report.findings if not finding.ok]
    assert finding.name == "clock"
    assert "3600 s ahead of ours" in finding.detail
    assert "clock" in finding.hint


def test_a_store_that_cannot_be_written_to_is_left_alone() -> None:
    class ReadOnly(MemoryStore):
        def put(self, key: str, data: Data, *, metadata: Metadata = None) -> str:
            raise Denied("403 AccessDenied", key=key, hint="grant s3:PutObject on the objects")

    report = probe_store(ReadOnly(), random=random.Random(1))
    assert [finding.name for finding in report.findings] == ["read after write"]
    (finding,) = report.findings
    assert not finding.conclusive
    assert "AccessDenied" in finding.detail
    assert finding.hint == "grant s3:PutObject on the objects"


def test_what_cannot_be_removed_is_told() -> None:
    class Locked(MemoryStore):
        def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
            return {key: Denied("object lock", key=key) for key in keys}

    report = probe_store(Locked(), random=random.Random(1), samples=1, bulk_bytes=1024)
    last = report.findings[-1]
    assert (last.name, last.ok) == ("clean up", False)
    assert "object lock" in last.detail


def test_the_probe_aborts_uploads_it_cannot_finish() -> None:
    memory = MemoryStore()
    plan = FaultPlan(scripted={("part", 2): Fault(FaultKind.REFUSED)})
    faulty = FaultyStore(memory, plan, random.Random(1), FakeClock())
    report = probe_store(faulty, random=random.Random(1), samples=1, bulk_bytes=1024)
    (finding,) = [finding for finding in report.findings if not finding.ok]
    assert finding.name == "upload in parts"
    assert faulty.calls["abort"] == 1
    assert list(memory.list()) == []
