"""What our tools do is recorded: an intent before each request that changes something, one outcome after it, and it is true.

One rule: what happened is taken from a wrapper right above the memory bucket, below faults and retries.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity import recording
from integrity.coverage import Covered
from integrity.errors import SlotsTaken
from integrity.recording import NotRecorded, Recorder, RecordingBucket, RecordingStore, phase_of
from s3core.bucket import Attributes, CopySource
from s3core.bucket_stack import stack_bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.build import stack
from s3core.errors import Denied, NotFound, OutcomeUnknown, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.faulty_bucket import FaultyBucket
from s3core.limit import Limits
from s3core.memory import MemoryStore
from s3core.memory_bucket import MemoryService
from s3core.retry import RetryPolicy
from s3core.settings import ConfigError, parse_config
from s3core.wrapper import READS, Call, Operation, T
from s3core.write_options import Retention, WriteOptions
from tests.architecture.tree import ROOT
from tests.integrity.kept_records import Kept
from tests.s3core.fakes import FakeClock

PLACE = Covered("audit", "site", "photos", "")
WHO = {"kind": "tool", "name": "a test", "host": "here"}


class Truth(BucketWrapper):
    """Counts what was applied, and that a durable intent was there before."""

    def __init__(self, inner: Any, kept: Kept) -> None:
        super().__init__(inner)
        self.kept = kept
        self.applied: Counter[tuple[str, str]] = Counter()
        self.unannounced: list[Call] = []

    def put(self, key: str, data: Any, **more: Any) -> Any:
        written = super().put(key, data, **more)
        self.applied["body", bytes(data).decode()] += 1
        return written

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation not in READS | {"part"}:
            op = {"complete": "put", "multipart": "note", "abort": "note"}.get(
                call.operation, call.operation.partition("_")[0]
            )
            durable = self.kept.records[: self.kept.durable]
            if not any((one["op"], one["key"], one["phase"]) == (op, call.key, "intent") for one in durable):
                self.unannounced.append(call)
        answer = action()
        self.applied[call.operation, call.key] += 1
        return answer


@dataclass
class Rig:
    seed: int
    rate: float
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        clock = FakeClock()
        self.memory = MemoryService(clock=clock, part_bytes_min=1).bucket("photos", versioned=True)
        self.truth = Truth(self.memory, self.kept)
        rates = FaultPlan.even(self.rate, *(kind for kind in FaultKind if kind not in SILENT))
        self.faulty = FaultyBucket(self.truth, FaultPlan(rates=rates), random.Random(self.seed), clock)
        policy = RetryPolicy(attempts_max=2)
        stacked = stack_bucket(self.faulty, clock, random.Random(self.seed), policy, Limits())
        self.bucket = RecordingBucket(stacked, Recorder(lambda: self.kept, [PLACE], WHO))


SILENT = (FaultKind.FLIPPED_BIT, FaultKind.PARTITION)


def _act(rig: Rig, number: int, kind: str, key: str) -> tuple[str, str, tuple[str, str] | None]:
    """Carry it out; (op, key, what the truth calls it if it is done)."""
    bucket, body = rig.bucket, f"body {number}"
    try:
        match kind:
            case "put":
                bucket.put(key, body.encode())
            case "absent":
                bucket.put(key, body.encode(), if_absent=True)
            case "match":
                bucket.put(key, body.encode(), if_match="00000000000000000000000000000000")
            case "delete":
                key = f"{key}-{number}"
                rig.memory.put(key, b"doomed")
                bucket.delete(key)
                return "delete", key, ("delete", key)
            case "copy":
                key = f"{key}-{number}"
                rig.memory.put("source", b"copied")
                bucket.copy(CopySource("photos", "source"), key, attributes=Attributes(metadata={"a": "b"}))
                return "copy", key, ("copy", key)
            case "parts":
                key = f"{key}-{number}"
                upload = bucket.begin_upload(key)
                etags = [(part, bucket.upload_part(key, upload, part, b"part")) for part in (1, 2)]
                if number % 2:
                    bucket.abort_upload(key, upload)
                else:
                    bucket.complete_upload(key, upload, etags)
    except StoreError:
        if kind in ("delete", "copy"):
            return kind, key, (kind, key)
    return "put", key, ("body", body) if kind in ("put", "absent", "match") else ("complete", key)


KINDS = st.sampled_from(["put", "absent", "match", "delete", "copy", "parts"])


@given(
    st.lists(st.tuples(KINDS, st.sampled_from(["a", "ä/b", "c\x07"])), max_size=30),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.2, 0.6]),
)
def test_every_change_has_an_intent_before_and_one_true_outcome_after(
    acts: list[tuple[str, str]], seed: int, rate: float
) -> None:
    rig = Rig(seed, rate)
    told = []
    for number, (kind, key) in enumerate(acts):
        before = len(rig.kept.records)
        op, acted, truth = _act(rig, number, kind, key)
        own = rig.kept.records[before:]
        told.append(([one for one in own if (one["op"], one["key"]) == (op, acted)], truth))
    rig.faulty.settle()
    assert rig.truth.unannounced == []
    for own, truth in told:
        if not own:  # an upload that never came to its completion
            assert truth is not None
            assert rig.truth.applied[truth] == 0
            continue
        intent, outcome = own
        assert (intent["phase"], outcome["intent"]) == ("intent", intent["n"])
        assert outcome["phase"] in ("done", "not-done", "unknown")
        assert ("error" in outcome) == (outcome["phase"] != "done")
        assert truth is not None
        applied = rig.truth.applied[truth]
        if outcome["phase"] == "done":
            assert applied >= 1
            assert outcome["version"]
            if outcome["op"] != "delete":
                assert rig.memory.head(outcome["key"], version_id=outcome["version"]).etag == outcome["etag"]
        elif outcome["phase"] == "not-done":
            assert applied == 0
        else:
            assert outcome["error"]["code"] == "OutcomeUnknown"
    outcomes = Counter(one["intent"] for one in rig.kept.records if one["phase"] != "intent")
    assert outcomes == Counter(one["n"] for one in rig.kept.records if one["phase"] == "intent")


def _store(
    kept: Kept, *, prefix: str = "", covers: str = "", reads: bool = False, plan: FaultPlan | None = None
) -> Any:
    clock = FakeClock()
    faulty = FaultyStore(MemoryStore(clock=clock), plan or FaultPlan(), random.Random(1), clock)
    stacked = stack(faulty, clock, random.Random(1), RetryPolicy(attempts_max=2), Limits())
    place = Covered("audit", "site", "disks", covers)
    return RecordingStore(stacked, Recorder(lambda: kept, [place], WHO, reads=reads), prefix)


def test_a_store_records_whole_keys_and_each_key_of_a_batch() -> None:
    kept = Kept()
    store = _store(kept, prefix="state/", covers="state/")
    etag = store.put("a", [b"12", b"345"])
    store.put_if_match("a", b"6", etag)
    assert store.put_if_absent("b", b"")
    store.copy("a", "c")
    upload = store.multipart("d")
    upload.part(1, bytes(5 << 20))
    upload.part(2, b"end")
    upload.complete()
    store.multipart("e").abort()
    store.delete("a")
    assert store.delete_many(["b", "c"]) == {}
    done = kept.of(phase="done")
    assert [(one["op"], one["key"], one.get("size")) for one in done] == [
        ("put", "state/a", 5),
        ("put", "state/a", 1),
        ("put", "state/b", 0),
        ("copy", "state/c", None),
        ("note", "state/d", None),
        ("put", "state/d", (5 << 20) + 3),
        ("note", "state/e", None),
        ("note", "state/e", None),
        ("delete", "state/a", None),
        ("delete", "state/b", None),
        ("delete", "state/c", None),
    ]
    assert done[1]["previous"] == {"etag": etag}
    assert done[2]["detail"] == {"condition": "absent"}
    assert done[3]["detail"] == {"from": {"key": "state/a"}}
    assert done[5]["detail"] == {"parts": 2}
    assert {one["endpoint"] for one in kept.records} == {"site"}
    assert {one["bucket"] for one in kept.records} == {"disks"}
    assert all(one["who"] == WHO for one in kept.records)


def test_an_upload_in_parts_is_one_put_with_its_size() -> None:
    rig = Rig(1, 0.0)
    upload = rig.bucket.begin_upload("a")
    rig.memory.put("source", b"0123456789")
    source = CopySource("photos", "source")
    first = rig.bucket.upload_part("a", upload, 1, b"12345")
    second = rig.bucket.copy_part("a", upload, 2, source, offset=2, length=4)
    parts = [(1, first), (2, second)]
    written = rig.bucket.complete_upload("a", upload, parts)
    (put,) = rig.kept.of(op="put", phase="done")
    assert (put["size"], put["etag"], put["version"]) == (9, written.etag, written.version_id)
    assert put["detail"] == {"parts": 2, "upload": upload}
    upload = rig.memory.begin_upload("b")
    etag = rig.memory.upload_part("b", upload, 1, b"sent by another process")
    rig.bucket.complete_upload("b", upload, [(1, etag)])
    assert "size" not in rig.kept.of(op="put", phase="done", key="b")[0]
    assert rig.bucket._parts == {}


def test_of_a_batch_each_key_has_its_own_outcome() -> None:
    kept = Kept()
    plan = FaultPlan(
        scripted={("delete_many", 1): Fault(FaultKind.SHORT_BODY), ("delete_many", 2): Fault(FaultKind.LOST_REPLY)}
    )
    store = _store(kept, plan=plan)
    failed = store.delete_many(["a", "b", "c"])
    assert {key: type(error) for key, error in failed.items()} == {"b": OutcomeUnknown, "c": OutcomeUnknown}
    assert {one["key"]: one["phase"] for one in kept.records if one["phase"] != "intent"} == {
        "a": "done",
        "b": "unknown",
        "c": "unknown",
    }
    assert kept.durable == 3, "one wait for the three intents"


def test_versions_locks_and_restores_are_recorded() -> None:
    kept, clock = Kept(), FakeClock()
    memory = MemoryService(clock=clock).bucket("photos", object_lock=True)
    bucket = RecordingBucket(memory, Recorder(lambda: kept, [PLACE], WHO))
    first = memory.put("a", b"x").version_id
    memory.put("cold", b"x", options=WriteOptions(storage_class="GLACIER"))
    until = Retention("GOVERNANCE", clock.time() + 60)
    bucket.set_legal_hold("a", True, version_id=first)
    bucket.set_retention("a", until)
    with pytest.raises(Denied):
        bucket.delete_version("a", first)
    bucket.set_legal_hold("a", False)
    bucket.delete_version("a", first, bypass_governance=True)
    bucket.restore("cold", days=2)
    bucket.retention("cold")
    told = [
        (one["op"], one["key"], one.get("version", ""), one.get("detail", {}), one["phase"]) for one in kept.records
    ]
    assert told == [
        (*record, phase)
        for record, end in (
            (("retention", "a", first, {"hold": "on"}), "done"),
            (("retention", "a", "", {"mode": "GOVERNANCE", "until": until.until_text}), "done"),
            (("delete-version", "a", first, {}), "not-done"),
            (("retention", "a", "", {"hold": "off"}), "done"),
            (("delete-version", "a", first, {"bypass": "governance"}), "done"),
            (("restore", "cold", "", {"days": 2, "tier": "Standard"}), "done"),
        )
        for phase in ("intent", end)
    ]
    assert list(memory.list_versions(prefix="a").versions) == []


def test_what_is_not_covered_is_not_recorded() -> None:
    kept = Kept()
    store = _store(kept, covers="photos/")
    store.put("photo", b"1")
    store.put("photos-old/a", b"1")
    store.delete_many(["photos-old/a", "photos/b"])
    assert [one["key"] for one in kept.of(phase="done")] == ["photos/b"]


def test_reads_are_recorded_only_where_they_are_asked_for() -> None:
    kept = Kept()
    silent, telling = _store(kept), _store(kept, reads=True)
    silent.put("a", b"12345")
    before = len(kept.records)
    assert silent.get("a").data == b"12345"
    with pytest.raises(NotFound):
        silent.get("b")
    assert len(kept.records) == before
    telling.put("a", b"12345")
    before = len(kept.records)
    telling.get("a")
    telling.get_range("a", 1, 2)
    with pytest.raises(NotFound):
        telling.get("b")
    read = kept.records[before:]
    assert [(one["op"], one["key"], one["phase"], one.get("size")) for one in read] == [
        ("read", "a", "done", 5),
        ("read", "a", "done", 2),
        ("read", "b", "not-done", None),
    ]
    assert read[1]["detail"] == {"offset": 1, "length": 2}
    assert kept.durable < len(kept.records), "nobody waited for them"


def test_without_room_for_the_intent_nothing_is_sent() -> None:
    rig = Rig(1, 0.0)
    rig.bucket.put("a", b"body 1")
    rig.kept.full = True
    before = dict(rig.memory.requests)
    for act in (
        lambda: rig.bucket.put("a", b"body 2"),
        lambda: rig.bucket.delete("a"),
        lambda: rig.bucket.begin_upload("a"),
        lambda: rig.bucket.copy(CopySource("photos", "a"), "b"),
    ):
        with pytest.raises(
            NotRecorded, match=r"nothing was sent: ledger audit cannot record .* No space left on device"
        ) as error:
            act()
        assert not error.value.temporary
        assert "s3integrity status audit" in error.value.hint
    assert rig.bucket.get("a") == b"body 1"
    assert dict(rig.memory.requests) == before | {"get": 1}
    store = _store(rig.kept)
    assert set(store.delete_many(["a", "b"])) == {"a", "b"}


def test_a_disk_that_fills_between_intent_and_outcome_changes_no_answer() -> None:
    rig = Rig(1, 0.0)
    real = rig.truth.put

    def put_and_fill(key: str, data: Any, **more: Any) -> Any:
        written = real(key, data, **more)
        rig.kept.full = True
        return written

    rig.truth.put = put_and_fill  # type: ignore[method-assign]  # one call is spied on
    assert rig.bucket.put("a", b"body 1").etag
    assert [one["phase"] for one in rig.kept.records] == ["intent"]
    assert rig.bucket._recorder.lost == 1


def test_ctrl_c_in_the_middle_tells_nothing() -> None:
    kept = Kept()
    recorder = Recorder(lambda: kept, [PLACE], WHO)
    with pytest.raises(KeyboardInterrupt), recorder.action("put", "a"):
        raise KeyboardInterrupt
    assert kept.records[-1]["phase"] == "unknown"
    assert [phase_of(error) for error in (None, Unavailable("x"), OutcomeUnknown("x"), ValueError("x"))] == [
        "done",
        "not-done",
        "unknown",
        "unknown",
    ]


def test_a_key_that_no_record_can_hold_is_not_written() -> None:
    rig = Rig(1, 0.0)
    with pytest.raises(NotRecorded, match="cannot be written as JSON"):
        rig.bucket.put("\ud800", b"body")
    assert rig.memory.requests["put"] == 0


# --- which ledger, and one writer in a process ------------------------------------------------------------------------

CONFIG = """
[endpoint.site]
preset = "ceph"
url = "https://rgw.example.com:7443"
access_key = "AKID"
secret_key = "hidden"
[endpoint.other]
preset = "ceph"
url = "https://rgw.example.com:7443/"
access_key = "OTHER"
secret_key = "hidden"
[ledger.audit]
url = "s3://site/ledger"
covers = ["s3://site/photos", "s3://site/disks/mail"]
reads = true
"""


def _kept_writers(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    opened: list[Kept] = []

    def open_writer(name: str, config: object) -> Kept:
        assert name == "audit"
        opened.append(Kept())
        return opened[-1]

    monkeypatch.setattr(recording, "open_writer", open_writer)
    return opened


@pytest.mark.parametrize(
    ("url", "key", "covers"),
    [
        ("s3://site/photos", "a", True),
        ("s3://site/photos/below", "below/a", True),
        ("s3://other/photos", "a", True),
        ("s3://site/disks", "mail/a", True),
        ("s3://site/disks", "mailbox/a", False),
        ("s3://site/disks/mailbox", "", None),
        ("s3://site/photos2", "", None),
        ("memory:photos", "", None),
        ("file:///photos", "", None),
    ],
)
def test_places_are_compared_by_server_and_whole_components(
    monkeypatch: pytest.MonkeyPatch, url: str, key: str, covers: bool | None
) -> None:
    opened = _kept_writers(monkeypatch)
    recorder = recording.recorder_for(url, parse_config(CONFIG), tool="cowsync apply")
    if covers is None:
        assert recorder is None
        return
    assert recorder is not None
    assert recorder.covers(key) is covers
    assert opened == [], "nothing is opened before the first record"
    recorder.event("note", key)
    (kept,) = opened
    assert kept.records[0]["endpoint"] == "site", "as `covers` has it"
    assert kept.records[0]["who"]["access_key"] == ("OTHER" if "other" in url else "AKID")
    assert "hidden" not in str(kept.records)
    recorder.close()
    recorder.close()
    assert kept.closed == 1


def test_a_process_has_one_writer_of_a_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, config = _kept_writers(monkeypatch), parse_config(CONFIG)
    first = recording.recorder_for("s3://site/photos", config, tool="a")
    second = recording.recorder_for("s3://site/disks/mail", config, tool="b")
    assert first is not None
    assert second is not None
    first.event("note")
    second.event("note")
    first.close()
    second.event("note")
    assert [kept.closed for kept in opened] == [0]
    assert [(one["bucket"], one["who"]["name"]) for one in opened[0].records] == [
        ("photos", "a"),
        ("disks", "b"),
        ("disks", "b"),
    ]
    second.close()
    assert [kept.closed for kept in opened] == [1]
    again = recording.recorder_for("s3://site/photos", config, tool="a")
    assert again is not None
    again.ready()
    assert len(opened) == 2
    again.close()


def test_a_ledger_that_cannot_be_opened_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_writer(name: str, config: object) -> Kept:
        raise SlotsTaken("all 8 slots are in use", hint="raise slots")

    monkeypatch.setattr(recording, "open_writer", open_writer)
    recorder = recording.recorder_for("s3://site/photos", parse_config(CONFIG), tool="a")
    assert recorder is not None
    with pytest.raises(NotRecorded, match=r"nothing was sent.*all 8 slots are in use \(raise slots\)"):
        recorder.ready()
    recorder.event("note")
    assert recorder.lost == 1
    recorder.close()


@pytest.mark.parametrize(
    ("covers", "words"),
    [
        ('"s3://site/ledger"', "a ledger has a bucket of its own"),
        ('"s3://other/ledger/"', "a ledger has a bucket of its own"),
        ('"s3://site/ledger/below"', "a ledger has a bucket of its own"),
        ('"s3://nowhere/photos"', "there is no [endpoint.nowhere]"),
        ('"site/photos"', "must be s3://ENDPOINT/BUCKET/PREFIX"),
        (
            '"s3://site/a"]\n[ledger.two]\nurl = "s3://site/ledger2"\ncovers = ["s3://other/a/b"',
            "one place is recorded in one ledger",
        ),
    ],
)
def test_a_place_that_cannot_be_covered_is_refused(covers: str, words: str) -> None:
    text = CONFIG.replace('"s3://site/photos", "s3://site/disks/mail"', covers).replace("reads = true", "")
    with pytest.raises(ConfigError) as error:
        parse_config(text)
    assert words in str(error.value)


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_says_what_each_call_leaves() -> None:
    text = (ROOT / "docs/integrity/recording.md").read_text(encoding="utf-8")
    table = text.split("## Requests")[1].split("\n## ")[0]
    named = [
        name for row in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert sorted(named) == sorted(get_args(Operation))
