"""A mirror of all versions: each version once, in its order, whatever failed or died on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.copy_line import OWN_PREFIX
from cowsync.changes import Op, Outcome
from cowsync.cli import app
from cowsync.errors import Refused
from cowsync.plan.census import census_from_json
from cowsync.plan.guard import Decision
from cowsync.scan.listing import Listed, Unordered
from cowsync.scan.ranges import WHOLE, KeyRange
from cowsync.scan.versions import version_pages
from cowsync.versions import behind, key_of, ordinal_of, row_key
from cowsync.work import base_of, explain_key
from s3core.bucket import Bucket, CopySource, ListedVersion, VersionsPage
from s3core.bucket_stack import MEMORY as MEMORY_BUCKETS
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.key_slot import Secret
from s3core.memory_bucket import MemoryBucket
from s3core.settings import ConfigError, parse_config
from tests.cowsync.apply.faulty_bucket import Fault, put_in_parts
from tests.cowsync.test_work import FAULTS, MEMORY, attempt
from tests.cowsync.worlds import World

KEYS = st.sampled_from(["a", "a\0", "a\0b", "a\x01", "b/1", "b/é", "c"])
DATA = st.binary(max_size=2)
PUT, PARTS, MARK = "put", "parts", "mark"
WRITES = st.tuples(st.sampled_from([PUT, PUT, PARTS, MARK]), KEYS, DATA)
LOSSES = st.tuples(st.sampled_from(["lose", "null", "null marker"]), KEYS, DATA)
Step = tuple[str, str, bytes]
Round = tuple[list[Step], dict[int, Fault]]
ROUNDS = st.lists(st.tuples(st.lists(WRITES, max_size=8), FAULTS), min_size=1, max_size=4)
LOSSY = st.lists(st.tuples(st.lists(st.one_of(WRITES, LOSSES), max_size=8), FAULTS), min_size=1, max_size=4)
Sequence = list[bytes | None]


def change(world: World, steps: list[Step]) -> None:
    """Somebody writes to the source."""
    source = world.source
    for what, key, data in steps:
        world.clock.sleep(0.4)  # several of one second
        if what in ("null", "null marker"):
            source.set_versioning("Suspended")
        if what in (PUT, "null"):
            source.put(key, data)
        elif what == PARTS:
            put_in_parts(source, key, data + b"p", 1)
        elif what in (MARK, "null marker"):
            source.delete(key)
        else:
            versions = [one for one in source.list_versions().versions if one.key == key]
            if versions:
                source.delete_version(key, versions[len(data) % len(versions)].version_id)
        source.set_versioning("Enabled")


def sequences(bucket: MemoryBucket, opened: Bucket | None = None) -> dict[str, Sequence]:
    """The bytes of each key's versions, the oldest first; None for a delete marker. `opened` reads them, if they are sealed."""
    found: dict[str, Sequence] = {}
    marks = ("", "")
    while True:
        page = bucket.list_versions(key_marker=marks[0], version_marker=marks[1])
        for one in page.versions:
            if not one.key.startswith(OWN_PREFIX):
                data = None if one.delete_marker else (opened or bucket).get(one.key, version_id=one.version_id)
                found.setdefault(one.key, []).insert(0, data)
        marks = (page.next_key_marker, page.next_version_marker)
        if not marks[0]:
            return found


def is_within(part: Sequence, whole: Sequence) -> bool:
    rest = iter(whole)
    return all(any(one == other for other in rest) for one in part)


def check_census(world: World) -> None:
    """What the guard goes by is what the source has."""
    snapshot = base_of(world.mirror()).snapshot
    assert snapshot is not None
    census, current = census_from_json(snapshot.facts.notes["census"]), world.source.contents()
    assert (census.keys, census.bytes) == (len(current), sum(map(len, current.values())))
    rows = [row for piece in world.rows() for row in piece]
    assert (snapshot.totals.rows, snapshot.totals.bytes) == (len(rows), sum(row.size for row in rows))
    assert snapshot.totals.gone == sum(row.gone > 0 for row in rows)


def live_through(
    rounds: list[Round], *, near: bool, page_keys: int, check: Callable[[World], None], secret: Secret | None = None
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        world = World(Path(folder), versions="all", one_endpoint=near, secret=secret)
        for bucket in (world.source, world.target):
            bucket._service.part_bytes_min = 1
        world.page_keys = page_keys
        for steps, faults in rounds:
            change(world, steps)
            world.faults.calls, world.faults.at, world.faults.crashed = 0, faults, False
            attempt(world)
            world.faults.at, world.faults.crashed = {}, False
        last = world.run()
        assert last.result.complete, last.result.failures
        again = world.plan()
        assert again.clean, list(again.plan)
        check(world)
        check_census(world)


def same(world: World) -> None:
    assert sequences(world.target, world.opened()) == sequences(world.source)


def within(world: World) -> None:
    source, target = sequences(world.source), sequences(world.target, world.opened())
    for key, sequence in source.items():
        assert is_within(sequence, target[key]), key
        assert target[key][-1] == sequence[-1], key


@settings(max_examples=60, deadline=None)
@given(ROUNDS, st.booleans(), st.sampled_from([2, 3, 1000]))
def test_random_histories(rounds: list[Round], near: bool, page_keys: int) -> None:
    """Every version once and in order: nothing twice, nothing left out."""
    live_through(rounds, near=near, page_keys=page_keys, check=same)


@settings(max_examples=60, deadline=None)
@given(LOSSY, st.booleans(), st.sampled_from([2, 3, 1000]))
def test_random_histories_of_versions_that_are_deleted_or_written_anew(
    rounds: list[Round], near: bool, page_keys: int
) -> None:
    """What the source still has lies on the mirror in its order, and the newest is the newest."""
    live_through(rounds, near=near, page_keys=page_keys, check=within)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(LOSSY, st.booleans(), st.sampled_from([2, 3, 1000]))
def test_many_random_histories(rounds: list[Round], near: bool, page_keys: int) -> None:
    live_through(rounds, near=near, page_keys=page_keys, check=within)


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_of_a_run(fault: Fault) -> None:
    """Interrupt and resume equals one run: no version is on the mirror twice."""
    calls, at = 1, -1
    while at < calls:
        at += 1
        with TemporaryDirectory(dir=MEMORY) as folder:
            world = World(Path(folder), versions="all", one_endpoint=bool(at % 2))
            change(world, [(PUT, "a", b"1"), (PUT, "b", b"1"), (PUT, "b", b"1"), (PUT, "c", b"")])
            world.run()
            change(world, [(PUT, "a", b"1"), (MARK, "a", b""), (MARK, "a", b""), (PUT, "a", b"2"), (MARK, "b", b"")])
            change(world, [(PUT, "c", b""), (PUT, "new", b"1"), (PUT, "new", b"2"), (MARK, "new", b"")])
            world.faults.calls, world.faults.at = 0, {at: fault}
            attempt(world)
            calls = max(calls, world.faults.calls)
            world.faults.at, world.faults.crashed = {}, False
            assert world.run().result.complete
            assert world.plan().clean
            same(world)
            check_census(world)
    assert calls >= 15


@settings(max_examples=40, deadline=None)
@given(LOSSY, st.booleans())
def test_random_histories_of_an_encrypted_mirror(rounds: list[Round], near: bool) -> None:
    live_through(rounds, near=near, page_keys=1000, check=within, secret=Secret("key", bytes(32)))


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.CRASH_AFTER])
def test_a_fault_at_any_call_of_a_run_of_an_encrypted_mirror(fault: Fault) -> None:
    calls, at = 1, -1
    while at < calls:
        at += 1
        with TemporaryDirectory(dir=MEMORY) as folder:
            world = World(Path(folder), versions="all", secret=Secret("key", bytes(32)))
            change(world, [(PUT, "a", b"1"), (PUT, "b", b"1")])
            world.run()
            change(world, [(PUT, "a", b"1"), (MARK, "a", b""), (PUT, "a", b"2"), (MARK, "b", b""), (PUT, "c", b"")])
            world.faults.calls, world.faults.at = 0, {at: fault}
            attempt(world)
            calls = max(calls, world.faults.calls)
            world.faults.at, world.faults.crashed = {}, False
            assert world.run().result.complete
            assert world.plan().clean
            same(world)
    assert calls >= 10


def filled(tmp_path: Path, keys: int = 30, **options: object) -> World:
    world = World(tmp_path, **{"versions": "all", **options})  # type: ignore[arg-type]
    for number in range(keys):
        world.source.put(f"data/{number:03}", b"old")
        world.source.put(f"data/{number:03}", b"%d" % number)
    world.run()
    return world


def test_only_what_is_new_moves_and_nothing_is_asked_about_the_rest(tmp_path: Path) -> None:
    world = filled(tmp_path)
    assert world.plan().clean
    world.source.put("data/007", b"new")
    world.source.delete("data/008")
    world.source.requests.clear()
    world.target.requests.clear()
    applied = world.run()
    assert applied.result.counts == {Op.MODIFY: {Outcome.DONE: 1}, Op.REMOVE: {Outcome.DONE: 1}}
    assert world.source.requests == {"list_versions": 1}
    assert world.target.requests == {"head": 2, "copy": 1, "delete": 1}


def test_a_source_of_many_pieces(tmp_path: Path) -> None:
    """Keys stay whole wherever pieces end."""
    world = World(tmp_path, versions="all", shard_keys=1000, copiers=8)
    world.page_keys = 70
    for number in range(1100):
        for _ in range(1 + number % 3):
            world.source.put(f"{number % 7}/{number}\0", b"%d" % number)
    first = world.run()
    assert (first.result.lines, first.result.complete) == (2199, True)
    same(world)
    planned = world.plan()
    assert planned.clean
    assert (planned.scan.keys, planned.scan.versions, planned.scan.shards > 2) == (1100, 2199, True)
    for number in range(0, 1100, 100):
        world.source.put(f"{number % 7}/{number}\0", b"new")
    assert world.run().result.lines == 11
    same(world)
    check_census(world)


def test_the_guard_counts_keys_and_not_versions(tmp_path: Path) -> None:
    world = filled(tmp_path)
    for _ in range(40):
        world.source.put("data/001", b"again")
    planned = world.plan()
    assert (len(planned.plan), planned.verdict.decision) == (40, Decision.PASS)
    world.apply(planned)
    for number in range(30):
        world.source.delete(f"data/{number:03}")
    planned = world.plan()
    assert planned.verdict.decision is Decision.HOLD
    assert "the source is empty; it had 30 keys" in planned.verdict.text()
    assert "--op remove --op vanish" in planned.verdict.text()


def test_versions_deleted_for_good_are_told_counted_and_kept(tmp_path: Path) -> None:
    world = filled(tmp_path)
    for one in world.source.list_versions().versions:
        world.source.delete_version(one.key, one.version_id)
    before = sequences(world.target)
    planned = world.plan()
    assert {line.op for line in planned.plan} == {Op.VANISH}
    assert planned.verdict.decision is Decision.HOLD
    assert world.apply(planned).result.complete
    assert sequences(world.target) == before
    assert world.plan().clean


def test_an_undelete_shows_on_the_mirror(tmp_path: Path) -> None:
    """The delete marker is deleted: the mirror's stays in its history, the object lies on top again."""
    world = filled(tmp_path, keys=2)
    marker = world.source.delete("data/001")
    world.run()
    world.source.delete_version("data/001", marker)
    assert [line.op for line in world.plan().plan] == [Op.VANISH, Op.ADD]
    assert world.run().result.complete
    assert sequences(world.target)["data/001"] == [b"old", b"1", None, b"1"]
    assert world.plan().clean


def test_what_somebody_else_put_on_the_mirror_stops_the_key_and_no_other(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=3)
    theirs = world.target.put("data/001", b"by somebody else")
    for key in ("data/001", "data/002"):
        change(world, [(PUT, key, b"x"), (PUT, key, b"y")])
    applied = world.run()
    assert applied.result.counts == {Op.MODIFY: {Outcome.DONE: 2, Outcome.DRIFTED: 1, Outcome.SKIPPED: 1}}
    assert sequences(world.target)["data/001"] == [b"old", b"1", b"by somebody else"]
    world.target.delete_version("data/001", theirs.version_id)
    assert world.run().result.complete
    same(world)
    world.target.delete("data/001")
    change(world, [(PUT, "data/001", b"z")])
    assert world.run().result.complete, "under a delete marker nothing is hidden"


def test_a_request_that_comes_too_late_stops_nothing(tmp_path: Path) -> None:
    """What lies there is the newest once more: nothing could be lost under the next."""
    world = filled(tmp_path, keys=2)
    world.source.delete("data/001")
    world.run()
    world.target.put("data/000", b"0")
    world.target.delete("data/001")
    for key in ("data/000", "data/001"):
        change(world, [(PUT, key, b"next")])
    assert world.run().result.complete
    found = sequences(world.target)
    assert found == {"data/000": [b"old", b"0", b"0", b"next"], "data/001": [b"old", b"1", None, None, b"next"]}
    world.target.copy(CopySource("target", "data/000", world.target.list_versions().versions[1].version_id), "data/000")
    change(world, [(PUT, "data/000", b"last")])
    assert world.run().result.count(Outcome.DRIFTED) == 1, "over a newer one it is told"


def test_an_older_version_never_lies_over_a_newer_one(tmp_path: Path) -> None:
    """What comes after a line that is not done waits for it."""
    world = World(tmp_path, versions="all")
    change(world, [(PUT, "k", b"1"), (PUT, "k", b"2"), (PUT, "k", b"3")])
    planned = world.plan()
    gone = world.source.list_versions().versions[1]
    world.source.delete_version("k", gone.version_id)
    applied = world.apply(planned)
    assert applied.result.counts == {
        Op.ADD: {Outcome.DONE: 1},
        Op.MODIFY: {Outcome.MOVED: 1, Outcome.SKIPPED: 1},
    }
    assert sequences(world.target) == {"k": [b"1"]}
    assert world.run().result.complete
    same(world)


def test_a_lost_state_finds_what_is_there(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=3)
    world.source.delete("data/001")
    world.run()
    lost = World(tmp_path / "anew", versions="all")
    lost.source, lost.target = world.source, world.target
    (tmp_path / "anew").mkdir()
    change(lost, [(PUT, "data/002", b"later")])
    assert lost.run().result.complete
    same(lost)


def test_buckets_without_versions_are_refused(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=1)
    for bucket, what in ((world.source, "source"), (world.target, "mirror")):
        bucket.set_versioning("Suspended")
        with pytest.raises(Refused, match=f"its {what}, .* does not keep versions"):
            world.plan()
        bucket.set_versioning("Enabled")
    change(world, [(PUT, "data/000", b"x")])
    planned = world.plan()
    world.target.set_versioning("Suspended")
    with pytest.raises(Refused, match="does not keep versions"):
        world.apply(planned)


def test_what_is_known_is_of_one_kind(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=1)
    world.settings = world.settings.model_copy(update={"versions": "current"})
    with pytest.raises(Refused, match="is of all versions"):
        world.plan()


TABLE = '[mirror.m]\nsource = "memory:a"\ntarget = "memory:b"\nversions = "all"\n'


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="has no meaning with versions"):
        parse_config(f'{TABLE}vanished = "remove"\n')


def test_explain_tells_all_versions(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=2)
    world.source.delete("data/001")
    world.run()
    told = explain_key(world.mirror(), "data/001")
    assert [one["etag"] == "" for one in told["known"]] == [True, False, False]
    assert "(delete marker)" in str(told["plans"])


# --- what looks at such a mirror --------------------------------------------------------------------------------------


def told(*words: str, expect: int = 0, capsys: pytest.CaptureFixture[str]) -> Any:
    code = run(app, "cowsync", [*words, "--json"])
    printed = capsys.readouterr()
    assert code == expect, printed
    return json.loads(printed.out)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryBucket, MemoryBucket]:
    """Two buckets of this process and a configuration with mirror `m` between them."""
    name = tmp_path.name.replace("_", "-")
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mirror.m]\nsource = "memory:{name}-s"\ntarget = "memory:{name}-t/copy"\nversions = "all"\n'
        f'state_dir = "{tmp_path}/state"\nscanners = 1\n'
    )
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(config))
    return tuple(MEMORY_BUCKETS.bucket(f"{name}-{end}", versioned=True) for end in "st")  # type: ignore[return-value]


def test_doctor_tells_what_a_run_would(
    mirror: tuple[MemoryBucket, MemoryBucket], capsys: pytest.CaptureFixture[str]
) -> None:
    def found(expect: int) -> str:
        findings = told("doctor", "m", expect=expect, capsys=capsys)["findings"]
        return str(next(one["verdict"] for one in findings if one["check"] == "versions"))

    assert found(ExitCode.OK) == "ok"
    mirror[0].set_versioning("Suspended")
    assert found(ExitCode.FINDING) == "fault"


def test_a_restore_point_comes_back_as_it_was_current(
    mirror: tuple[MemoryBucket, MemoryBucket], capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = mirror
    for key, data in (("kept", b"1"), ("kept", b"2"), ("gone", b"g"), ("deleted", b"d"), ("moved\0", b"m")):
        source.put(key, data)
    source.delete("deleted")
    assert told("run", "m", capsys=capsys)["done"] == 6
    then = source.contents()
    source.put("kept", b"3")
    source.delete("gone")
    source.put("deleted", b"again")
    source.put("new", b"n")
    versions = told("run", "m", capsys=capsys)
    assert versions["complete"]
    diff = told("snapshot", "diff", "m", "run:1", expect=1, capsys=capsys)
    assert diff["counts"] == {"added": 4}
    assert {(one["key"], one["size"]) for one in diff["shown"]} == {
        ("kept", 1),
        ("gone", 0),
        ("deleted", 5),
        ("new", 1),
    }
    for words in (["run:1"], ["run:1", "--overwrite", "--delete", "--go"]):
        expect = 0 if "--go" in words else 1
        told("snapshot", "restore", "m", *words, expect=expect, capsys=capsys)
    assert source.contents() == then
    assert told("run", "m", capsys=capsys)["complete"]
    verified = told("verify", "m", "--full", capsys=capsys)
    assert verified["listing"]["intact"] == verified["listing"]["keys"]
    assert verified["bytes"]["intact"] == verified["bytes"]["objects"] == 10


def test_verify_finds_what_is_missing_and_what_is_too_much(
    mirror: tuple[MemoryBucket, MemoryBucket], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = mirror
    for data in (b"1", b"2"):
        source.put("k", data)
        source.put("l", data)
    told("run", "m", capsys=capsys)
    oldest = [one for one in target.list_versions().versions if one.key == "copy/k"][-1]
    target.delete_version("copy/k", oldest.version_id)
    target.put("copy/l", b"2")
    target.delete("copy/z")
    found = told("verify", "m", expect=1, capsys=capsys)["listing"]
    assert (found["counts"], found["intact"]) == ({"missing": 1, "extra": 2}, 3)
    assert [(one["kind"], one["key"]) for one in found["findings"]] == [
        ("missing", "k"),
        ("extra", "l"),
        ("extra", "z"),
    ]


def test_plans_are_shown_and_exported_where_the_order_is_kept(
    mirror: tuple[MemoryBucket, MemoryBucket], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = mirror
    source.put("k", b"1")
    source.delete("k")
    planned = told("plan", "m", expect=1, capsys=capsys)
    assert (planned["scan"]["keys"], planned["scan"]["versions"]) == (0, 2)
    shown = told("show", "m", capsys=capsys)["shown"]
    assert [(line["op"], line["ordinal"]) for line in shown] == [("add", 1), ("remove", 2)]
    assert told("export", "m", "--format", "jsonl", "--out", str(tmp_path / "a"), capsys=capsys)["files"]
    assert run(app, "cowsync", ["export", "m", "--format", "rclone", "--out", str(tmp_path / "b")]) == ExitCode.REFUSED
    assert "order" in capsys.readouterr().err
    told("run", "m", capsys=capsys)
    assert run(app, "cowsync", ["explain", "m", "k"]) == ExitCode.OK
    assert "delete marker, on the mirror as" in capsys.readouterr().out


def test_what_keeps_no_order_is_refused(
    mirror: tuple[MemoryBucket, MemoryBucket], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror[0].put("k", b"1")
    digest = told("plan", "m", expect=1, capsys=capsys)["digest"]
    report = tmp_path / "report.csv"
    report.write_text("s,k,,succeeded,,200,Successful\n")
    for words in (
        ["run", "m", "--cluster", "tcp://127.0.0.1:1"],
        ["apply", "m", "--cluster", "tcp://127.0.0.1:1"],
        ["import-results", "m", digest, str(report)],
    ):
        assert run(app, "cowsync", words) == ExitCode.REFUSED
        assert "knows current objects alone" in capsys.readouterr().err
    assert sequences(mirror[1]) == {}


# --- keys of rows -----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(alphabet="a\0\x01b", min_size=1, max_size=4), st.integers(1, 2**32 - 1)), max_size=20)
)
def test_rows_sort_as_keys_and_then_ordinals(pairs: list[tuple[str, int]]) -> None:
    rows = [row_key(key.encode(), ordinal) for key, ordinal in pairs]
    assert sorted(rows) == [row_key(key.encode(), ordinal) for key, ordinal in sorted(pairs)]
    for row, (key, ordinal) in zip(rows, pairs, strict=True):
        assert (key_of(row), ordinal_of(row)) == (key.encode(), ordinal)
        for other, _ in pairs:
            assert (row <= behind(other.encode())) is (key <= other)


@pytest.mark.parametrize("ordinal", [0, 2**32])
def test_an_ordinal_without_room_is_refused(ordinal: int) -> None:
    with pytest.raises(ValueError, match="ordinal is from 1"):
        row_key(b"k", ordinal)


# --- listings ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(WRITES, max_size=25), st.integers(1, 7), st.integers(0, 6), st.sampled_from(["", "b/"]))
def test_a_range_is_listed_as_a_whole_whatever_pages_and_pieces_it_is_cut_into(
    steps: list[Step], page_keys: int, keys_max: int, prefix: str
) -> None:
    bucket = MemoryBucket(versioned=True)
    for what, key, data in steps:
        bucket.delete(key) if what == MARK else bucket.put(key, data)
    wanted = {key[len(prefix) :]: all_of for key, all_of in sequences(bucket).items() if key.startswith(prefix)}
    wanted.pop("", None)
    for upto in (None, b"a\0", b"b", b"b/1", b"1"):
        found: dict[str, Sequence] = {}
        within = KeyRange(b"", upto)
        while True:
            listed = Listed(within.after)
            for page in version_pages(bucket, prefix, within, listed, keys_max=keys_max, page_keys=page_keys):
                for seen in page:
                    assert seen.key.decode() not in found
                    found[seen.key.decode()] = [None if not row.etag else b"" for row in seen.versions]
            if listed.complete:
                break
            within = KeyRange(listed.reached, upto)
        assert found == {
            key: [None if one is None else b"" for one in all_of]
            for key, all_of in wanted.items()
            if upto is None or key.encode() <= upto
        }


class Listing:
    """A bucket that lists these pages."""

    url = "test:"

    def __init__(self, *pages: VersionsPage) -> None:
        self._pages = iter(pages)

    def list_versions(self, **_: object) -> VersionsPage:
        return next(self._pages)


def version(key: str, name: str, *, latest: bool = False, etag: str = "e") -> ListedVersion:
    return ListedVersion(key, name, latest, False, 1, etag, "2026-01-01T00:00:00.000Z")


@pytest.mark.parametrize(
    ("pages", "error", "match"),
    [
        ([[version("b", "1")], [version("a", "1")]], Unordered, "out of the order"),
        ([[version("a", "1"), version("a", "2", latest=True)]], Refused, "newest first"),
        ([[version("a", "1", latest=True), version("a", "1")]], Refused, "newest first"),
        ([[version("a", "1", etag="")]], Refused, "without an ETag"),
        ([[], []], Refused, "stands still"),
    ],
)
def test_a_listing_that_cannot_be_right_is_an_error(
    pages: list[list[ListedVersion]], error: type[Exception], match: str
) -> None:
    made = [VersionsPage(rows, "x", str(number) if rows else "x") for number, rows in enumerate(pages[:-1])]
    made.append(VersionsPage(pages[-1], "x" if not pages[-1] else "", "x" if not pages[-1] else ""))
    with pytest.raises(error, match=match):
        list(version_pages(cast(Bucket, Listing(*made)), "", WHOLE, Listed(b"")))
