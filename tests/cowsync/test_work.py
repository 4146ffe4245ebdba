"""Whole runs: after an apply there is nothing left to do, whatever failed or died on the way."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.run import ApplyResult
from cowsync.catalogue import Catalogue, Phase
from cowsync.changes import Op, Outcome
from cowsync.errors import Held, Refused
from cowsync.plan.guard import Decision
from cowsync.work import Planned, alone, explain_key, newest_plan
from s3core.errors import Denied
from s3core.key_slot import Secret
from s3core.settings import GuardSettings
from tests.cowsync.apply.faulty_bucket import Crash, Fault
from tests.cowsync.worlds import DAY_S, World

SECRET = Secret("key", bytes(range(32)))
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""What is synced a thousand times is kept in memory where there is such a file system."""
KEYS = st.sampled_from(["a", "b", "c/1", "c/2", "c/é", "d d", "e+"])
CHANGES = st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=3))), max_size=6)
FAULTS = st.dictionaries(st.integers(1, 60), st.sampled_from(list(Fault)), max_size=4)


def change(world: World, changes: list[tuple[str, bytes | None]]) -> None:
    """Somebody writes to the source."""
    for key, data in changes:
        world.clock.sleep(1)
        if data is None:
            world.source.delete(key)
        else:
            world.source.put(key, data)


def attempt(world: World) -> None:
    """A run that may fail in any way but a wrong one."""
    try:
        world.run()
    except (Crash, Refused, Held):
        pass
    except Exception as error:
        if "injected" not in str(error):
            raise


Round = tuple[list[tuple[str, bytes | None]], dict[int, Fault]]
ROUNDS = st.lists(st.tuples(CHANGES, FAULTS), min_size=1, max_size=5)


@pytest.mark.parametrize("fault", list(Fault))
def test_the_first_requests_of_an_encrypted_mirror_may_fail(fault: Fault) -> None:
    """They put its key there."""
    for at in range(8):
        live_through([([("a", b"1")], {at: fault})], versioned=False, near=False, encrypted=True)


@settings(max_examples=40, deadline=None)
@given(ROUNDS, st.booleans(), st.booleans(), st.booleans())
def test_random_histories(rounds: list[Round], versioned: bool, near: bool, encrypted: bool) -> None:
    live_through(rounds, versioned=versioned, near=near, encrypted=encrypted)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(ROUNDS, st.booleans(), st.booleans(), st.booleans())
def test_many_random_histories(rounds: list[Round], versioned: bool, near: bool, encrypted: bool) -> None:
    live_through(rounds, versioned=versioned, near=near, encrypted=encrypted)


def live_through(rounds: list[Round], *, versioned: bool, near: bool, encrypted: bool) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        world = World(Path(folder), versioned=versioned, one_endpoint=near, secret=SECRET if encrypted else None)
        for changes, faults in rounds:
            change(world, changes)
            world.faults.calls, world.faults.at, world.faults.crashed = 0, faults, False
            attempt(world)
            world.faults.at, world.faults.crashed = {}, False
        last = world.run()
        assert last.result.complete, last.result.failures
        again = world.plan()
        assert again.clean, list(again.plan)
        mirrored, source = world.mirrored(), world.source.contents()
        assert {key: mirrored.get(key) for key in source} == source
        assert world.target.uploads() == {}


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_of_a_run(fault: Fault) -> None:
    """Interrupt and resume equals one run: the same mirror, the same base, nothing copied twice but what was open."""
    calls, at = 1, -1
    while at < calls:
        at += 1  # 0: nothing goes wrong, which tells how many calls there are
        folder = TemporaryDirectory(dir=MEMORY)
        world = World(Path(folder.name), versioned=bool(at % 2))
        for number in range(4):
            world.source.put(f"k{number}", b"one")
        world.run()
        world.source.put("k1", b"two")
        world.source.put("k4", b"new")
        world.source.delete("k2")
        world.faults.calls, world.faults.at = 0, {at: fault}
        attempt(world)
        calls = max(calls, world.faults.calls)
        world.faults.at, world.faults.crashed = {}, False
        assert world.run().result.complete
        assert world.plan().clean
        assert world.mirrored() == {"k0": b"one", "k1": b"two", "k2": b"one", "k3": b"one", "k4": b"new"}
        snapshot = world.mirror().state.snapshot(world.mirror().state.head().current)
        assert (snapshot.totals.rows, snapshot.totals.gone, snapshot.totals.bytes) == (5, 1, 15)
        census = snapshot.facts.notes["census"]
        assert (census["keys"], census["bytes"]) == (4, 12)
        folder.cleanup()
    assert calls >= 5


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOST_REPLY])
def test_a_source_that_changes_again_after_a_death(fault: Fault) -> None:
    """What a dead run copied and did not note is ours: the next one must not take it for somebody else's."""
    calls, at = 1, -1
    while at < calls:
        at += 1
        folder = TemporaryDirectory(dir=MEMORY)
        world = World(Path(folder.name), one_endpoint=bool(at % 2))
        for number in range(3):
            world.source.put(f"k{number}", b"one")
        world.run()
        for number in range(3):
            world.source.put(f"k{number}", b"two, longer")
        world.faults.calls, world.faults.at = 0, {at: fault}
        attempt(world)
        calls = max(calls, world.faults.calls)
        world.faults.at, world.faults.crashed = {}, False
        world.source.put("k1", b"three")
        world.source.delete("k2")
        assert world.run().result.complete
        assert world.plan().clean
        mirrored = world.mirrored()
        assert (mirrored["k0"], mirrored["k1"]) == (b"two, longer", b"three")
        folder.cleanup()
    assert calls >= 5


def filled(tmp_path: Path, keys: int = 40, **options: object) -> World:
    world = World(tmp_path, **options)  # type: ignore[arg-type]
    for number in range(keys):
        world.source.put(f"data/{number:03}.txt", b"%d" % number)
    world.run()
    return world


def test_only_what_changed_moves_and_nothing_is_asked_about_the_rest(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/007.txt", b"changed")
    world.source.requests.clear()
    world.target.requests.clear()
    applied = world.run()
    assert applied.result.counts == {Op.MODIFY: {Outcome.DONE: 1}}
    assert world.source.requests["head"] == 0
    assert world.target.requests["head"] <= 1, "the one before the overwrite"
    assert world.source.requests["list"] <= 3


def test_an_emptied_source_is_held_and_the_mirror_stands(tmp_path: Path) -> None:
    world = filled(tmp_path)
    for key in list(world.source.contents()):
        world.source.delete(key)
    planned = world.plan()
    assert planned.verdict.decision is Decision.HOLD
    with pytest.raises(Held) as held:
        world.apply(planned, approve="")
    assert held.value.digest == planned.plan.digest
    with pytest.raises(Held):
        world.apply(planned, approve="deadbeef")
    assert len(world.mirrored()) == 40
    assert world.mirror().catalogue().runs(1)[0].phase is Phase.HELD
    world.apply(planned)
    assert len(world.mirrored()) == 40, "vanished objects stay even after an approval"
    assert world.plan().clean


def test_vanished_objects_go_when_they_may_and_not_before(tmp_path: Path) -> None:
    world = filled(tmp_path, vanished="remove", vanished_runs=3, vanished_s=7 * DAY_S)
    world.source.delete("data/003.txt")
    world.run()
    for _ in range(5):
        world.clock.sleep(DAY_S)
        assert world.run().result.lines == 0
    assert "data/003.txt" in world.mirrored()
    world.clock.sleep(3 * DAY_S)
    removed = world.run()
    assert removed.result.counts == {Op.REMOVE: {Outcome.DONE: 1}}
    assert "data/003.txt" not in world.mirrored()
    assert any(key.endswith("data/003.txt") for key in world.target.contents()), "it is in the trash"
    assert world.plan().clean


def test_an_object_that_comes_back_unchanged_costs_nothing(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.delete("data/003.txt")
    world.run()
    world.source.put("data/003.txt", b"3")
    before = world.target.requests["copy"] + world.target.requests["put"]
    assert world.run().result.counts == {Op.RETURN: {Outcome.DONE: 1}}
    assert world.target.requests["copy"] + world.target.requests["put"] == before
    assert world.plan().clean


def test_what_somebody_else_wrote_to_the_mirror_is_left_alone_and_told(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/003.txt", b"new")
    world.target.put("data/003.txt", b"by somebody else")
    applied = world.run()
    assert applied.result.count(Outcome.DRIFTED) == 1
    assert world.mirrored()["data/003.txt"] == b"by somebody else"
    assert world.mirror().catalogue().runs(1)[0].phase is Phase.PARTIAL
    assert not world.plan().clean, "it is tried again"


def test_another_host_goes_on(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    assert world.run(new_host=True).result.lines == 1
    assert world.plan(new_host=True).clean


def test_a_plan_of_an_older_base_is_refused(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/a.txt", b"n")
    old = world.plan()
    world.source.put("data/b.txt", b"n")
    world.run()
    with pytest.raises(Refused, match="was made from snapshot"):
        world.apply(old)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    world = filled(tmp_path)
    with alone(world.mirror()), pytest.raises(Refused, match="another process"), alone(world.mirror()):
        pass


def test_a_filter_leaves_out_and_what_it_leaves_out_later_stays(tmp_path: Path) -> None:
    world = World(tmp_path, exclude=("**.tmp",), guard=GuardSettings(floor_keys=100))
    world.source.put("a.tmp", b"t")
    world.source.put("a", b"t")
    assert isinstance(world.run().result, ApplyResult)
    assert world.mirrored() == {"a": b"t"}


def test_a_canary_must_be_there_and_as_it_was(tmp_path: Path) -> None:
    """An approval lets one plan through; the canary is missed again by the next."""
    world = World(tmp_path, guard=GuardSettings(canaries=("canary",)))
    world.source.put("k", b"one")
    assert world.plan().verdict.decision is Decision.HOLD
    world.source.put("canary", b"here")
    assert world.plan().verdict.decision is Decision.PASS
    assert world.run().result.complete
    world.source.put("k", b"two")
    assert world.plan().verdict.decision is Decision.PASS
    world.source.delete("canary")
    for told in ("missing", "missing"):
        planned = world.plan()
        assert planned.verdict.decision is Decision.HOLD
        assert told in planned.verdict.text()
        assert world.apply(planned).result.complete
        world.source.put("k", b"three")
    world.source.put("canary", b"another")
    assert "changed" in world.plan().verdict.text()


def test_a_clock_that_is_wrong_holds_the_plan(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    world.clock_skew_s = 900.0
    planned = world.plan()
    assert planned.verdict.decision is not Decision.PASS
    assert "clock" in planned.verdict.text()
    world.clock_skew_s = 1.0
    assert world.plan().verdict.decision is Decision.PASS


@pytest.mark.parametrize("setting", ["source", "target"])
def test_what_is_known_of_one_place_is_not_taken_for_another(tmp_path: Path, setting: str) -> None:
    """A new, empty target would be "clean": the base says that all of it is there."""
    world = filled(tmp_path)
    before = world.settings
    world.settings = before.model_copy(update={setting: "memory:elsewhere"})
    planned = world.plan()
    assert planned.clean
    assert planned.verdict.decision is Decision.HOLD
    assert f"the {setting} is memory:elsewhere by the configuration" in planned.verdict.text()
    with pytest.raises(Held):
        world.apply(planned, approve="")
    world.apply(planned)
    assert world.plan().verdict.decision is Decision.PASS, "it was the same place under another name"


@pytest.mark.parametrize("setting", ["source", "target"])
def test_a_plan_is_not_carried_out_elsewhere(tmp_path: Path, setting: str) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    planned = world.plan()
    world.settings = world.settings.model_copy(update={setting: "memory:elsewhere"})
    with pytest.raises(Refused, match=f"was made for the {setting}"):
        world.apply(planned)
    assert "data/new.txt" not in world.mirrored()


def test_an_apply_that_was_broken_off_is_not_settled_elsewhere(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    planned = world.plan()
    world.faults.calls, world.faults.at = 0, {2: Fault.CRASH_AFTER}
    with pytest.raises(Crash):
        world.apply(planned)
    world.faults.at, world.faults.crashed = {}, False
    here = world.settings
    world.settings = here.model_copy(update={"target": "memory:elsewhere"})
    with pytest.raises(Refused, match="was made for the target memory:t"):
        world.plan()
    world.settings = here
    assert world.run().result.complete
    assert world.plan().clean


def test_a_plan_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    torn = world.plan().plan
    (torn.folder / "index.json").write_bytes(b"")
    os.utime(torn.folder, (0, 0))
    world.clock.sleep(60)
    world.source.put("data/other.txt", b"n")
    whole = world.plan().plan
    assert newest_plan(world.mirror()).digest == whole.digest
    said = "\n".join(explain_key(world.mirror(), "data/new.txt")["plans"])
    assert "index" in said
    assert "add (new)" in said


@pytest.mark.parametrize("name", ["plan.jsonl.zst", "summary.json", "index.json"])
def test_a_plan_damaged_after_its_apply_was_broken_off_stops_nothing(tmp_path: Path, name: str) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    planned = world.plan()
    world.faults.calls, world.faults.at = 0, {2: Fault.CRASH_AFTER}
    with pytest.raises(Crash):
        world.apply(planned)
    world.faults.at, world.faults.crashed = {}, False
    path = planned.plan.folder / name
    path.write_bytes(path.read_bytes()[:-9])
    assert world.run().result.complete
    assert world.plan().clean
    assert "data/new.txt" in world.mirrored()


def test_what_is_done_is_published_though_the_summary_is_damaged(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.put("data/new.txt", b"n")
    planned = world.plan()
    (planned.plan.folder / "summary.json").write_bytes(b"{")
    assert world.apply(planned).snapshot
    assert world.plan().clean
    snapshot = world.mirror().state.snapshot(world.mirror().state.head().current)
    assert snapshot.facts.notes["keys"] == 41


MIB = 1 << 20


def large(tmp_path: Path) -> World:
    """A mirror to which the next run uploads an object in two parts."""
    world = World(tmp_path, one_endpoint=False, copiers=1, part_bytes=5 * MIB, conditional_puts="no")
    world.source.put("small", b"1")
    world.run()
    world.source.put("large", bytes(6 * MIB))
    return world


def died_in_an_upload(world: World) -> Planned:
    planned = world.plan()
    world.faults.trace.clear()
    started = world.faults.calls
    world.faults.at = {started + 5: Fault.CRASH_AFTER}
    with pytest.raises(Crash):
        world.apply(planned)
    assert world.faults.trace[-1] == "upload_part", world.faults.trace
    world.faults.at, world.faults.crashed = {}, False
    assert list(world.target.uploads().values()) == ["large"]
    return planned


@pytest.mark.parametrize("how", ["no plan", "no plan nor a whole journal", "another base"])
def test_an_upload_of_an_apply_that_nobody_goes_on_with_is_aborted(tmp_path: Path, how: str) -> None:
    world = large(tmp_path)
    planned = died_in_an_upload(world)
    other = world.target.begin_upload("large")
    journals = world.mirror().journals(planned.plan.digest)
    if how == "another base":
        world.run(new_host=True)
        world.hosts = 0
    else:
        shutil.rmtree(planned.plan.folder)
    if how == "no plan nor a whole journal":
        (journals / "worker-0000.journal").rename(journals / "worker-0001.journal")
        (journals / "worker-0000.journal").write_bytes(b"nonsense" * 100)
    world.plan()
    assert list(world.target.uploads()) == [other], "ours is gone, and no other"
    assert not journals.exists()
    assert world.run().result.complete
    assert world.mirrored()["large"] == bytes(6 * MIB)


def test_an_upload_that_cannot_be_aborted_is_not_forgotten(tmp_path: Path) -> None:
    world = large(tmp_path)
    planned = died_in_an_upload(world)
    shutil.rmtree(planned.plan.folder)
    world.faults.calls, world.faults.at = 0, {1: Fault.REFUSED}
    world.faults.trace.clear()
    world.plan()
    assert world.faults.trace[0] == "abort_upload"
    assert len(world.target.uploads()) == 1
    world.plan()
    assert world.target.uploads() == {}
    assert not world.mirror().journals(planned.plan.digest).exists()


def test_an_upload_that_a_finished_apply_could_not_abort_is_aborted_by_the_next_plan(tmp_path: Path) -> None:
    world = large(tmp_path)
    planned = world.plan()
    world.faults.calls = 0
    world.faults.trace.clear()
    world.faults.at = {5: Fault.DENIED, 6: Fault.DENIED}
    applied = world.apply(planned)
    assert world.faults.trace[4:6] == ["upload_part", "abort_upload"], world.faults.trace
    assert (applied.result.count(Outcome.FAILED), applied.result.uploads_left) == (1, 1)
    assert applied.snapshot
    world.faults.at = {}
    assert len(world.target.uploads()) == 1
    assert world.run().result.complete
    assert world.target.uploads() == {}
    assert not world.mirror().journals(planned.plan.digest).exists()


def test_what_went_wrong_first_is_told_where_the_history_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = filled(tmp_path)
    world.faults.calls, world.faults.at = 0, {1: Fault.DENIED}

    def full(*_: object, **__: object) -> None:
        raise OSError("the history of runs cannot be used")

    monkeypatch.setattr(Catalogue, "update", full)
    with pytest.raises(Denied, match="injected"):
        world.plan()
