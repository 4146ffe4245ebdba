from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from integrity.reconcile.findings import Code
from s3core.s3_control import LifecycleRule
from tests.integrity.reconcile.worlds import BEGAN, World

BOTH = pytest.mark.parametrize("versioned", [True, False], ids=["versioned", "unversioned"])


def settled(versioned: bool = True, *, feeds: bool = False) -> World:
    """A bucket in which `x.iso` was written twice and `gone` deleted, by the rules."""
    world = World(versioned=versioned, feeds=feeds)
    for key, data in (("x.iso", b"first"), ("gone", b"once"), ("other", b"other"), ("x.iso", b"second")):
        world.put(key, data)
        world.wait()
    world.delete("gone")
    world.wait()
    world.put("last", b"last")
    world.wait()
    world.deliver(Random(1))
    assert world.codes() == []
    return world


# --- each attack on an object ------------------------------------------------------------------------------


@BOTH
def test_attack_object_put_beside_the_ledger(versioned: bool) -> None:
    world = settled(versioned)
    world.bucket.put("evil", b"evil")
    assert world.codes() == [Code.UNLOGGED_PUT]


@BOTH
def test_attack_object_altered(versioned: bool) -> None:
    world = settled(versioned)
    world.bucket.put("x.iso", b"altered")
    assert world.codes() == [Code.UNLOGGED_OVERWRITE]
    (finding,) = world.findings()
    assert finding.last_writer == "backup@pve1"
    assert finding.records == ("pve1.1#6", "pve1.1#7")
    assert BEGAN < finding.since < finding.until == world.clock.time()
    assert "`x.iso` was replaced outside the ledger" in finding.sentence
    assert "last legitimate writer: backup@pve1" in finding.sentence


@BOTH
def test_attack_object_deleted(versioned: bool) -> None:
    world = settled(versioned)
    world.bucket.delete("x.iso")
    assert world.codes() == [Code.UNLOGGED_DELETE]


@BOTH
def test_attack_deleted_object_put_again(versioned: bool) -> None:
    world = settled(versioned)
    world.bucket.put("gone", b"something else")
    assert world.codes() == [Code.UNLOGGED_PUT]


@BOTH
def test_attack_old_bytes_restored_over_new(versioned: bool) -> None:
    world = settled(versioned)
    world.bucket.put("x.iso", b"first")
    assert world.codes() == [Code.RESTORED_OLD]


def test_attack_version_purged() -> None:
    world = settled()
    world.bucket.delete_version("x.iso", world.version("x.iso", 1).version_id)
    assert world.codes() == [Code.VERSION_PURGED]


def test_attack_newest_version_purged_so_that_old_bytes_show() -> None:
    world = settled()
    world.bucket.delete_version("x.iso", world.version("x.iso").version_id)
    assert world.codes() == [Code.VERSION_PURGED]


def test_attack_delete_marker_removed() -> None:
    world = settled()
    world.bucket.delete_version("gone", world.version("gone").version_id)
    (finding,) = world.findings()
    assert finding.code is Code.VERSION_PURGED
    assert "delete marker" in finding.said


@BOTH
@pytest.mark.parametrize("observed_counts", [True, False])
@pytest.mark.parametrize("key", ["x.iso", "never"])
def test_attack_notification_forged(versioned: bool, observed_counts: bool, key: str) -> None:
    world = settled(versioned, feeds=True)
    world.observe("put", key, "v-forged" if versioned else "", etag="0" * 32, size=7)
    world.deliver(Random(2))
    world.wait()
    assert set(world.codes(observed_counts=observed_counts)) == {Code.FORGED_NOTIFICATION}


@BOTH
@pytest.mark.parametrize("observed_counts", [True, False])
def test_attack_notification_of_a_delete_forged(versioned: bool, observed_counts: bool) -> None:
    world = settled(versioned, feeds=True)
    world.observe("delete", "x.iso", "m-forged" if versioned else "")
    world.deliver(Random(2))
    world.wait()
    assert world.codes(observed_counts=observed_counts) == [Code.FORGED_NOTIFICATION]


def test_attack_seen_by_a_feed_names_the_candidate() -> None:
    world = settled(feeds=True)
    written = world.bucket.put("x.iso", b"altered")
    world.observe("put", "x.iso", written.version_id, etag=written.etag, size=7)
    world.deliver(Random(2))
    (finding,) = world.findings()
    assert finding.code is Code.UNLOGGED_OVERWRITE
    assert "key AK, from 192.0.2.7" in finding.candidates[0]
    assert world.codes(observed_counts=True) == []


def test_attack_delete_said_to_be_by_a_rule() -> None:
    """A feed's word is believed where there is such a rule, or where nobody may read the rules."""
    world = settled(feeds=True)
    marker = world.bucket.delete("x.iso")
    world.observe("delete", "x.iso", marker)
    world.events[-1]["detail"] = {"event": "LifecycleExpiration:DeleteMarkerCreated"}
    world.deliver(Random(2))
    rule = LifecycleRule("out", "x", expire_days=1)
    (finding,) = world.findings(rules=())
    assert (finding.code, finding.explained) == (Code.UNLOGGED_DELETE, ""), "there is no rule at all"
    (finding,) = world.findings(rules=[rule])
    assert (finding.code, finding.explained) == (Code.UNLOGGED_DELETE, ""), "its day has not run out"
    (finding,) = world.findings(rules=None)
    assert (finding.code, finding.explained) == (Code.UNLOGGED_DELETE, "lifecycle")
    world.wait(2 * 86_400)
    (finding,) = world.findings(rules=[rule])
    assert finding.explained.startswith("lifecycle")


# --- what is no attack --------------------------------------------------------------------------------------


def test_what_was_there_before_the_ledger_is_explained() -> None:
    world = World(versioned=True)
    world.bucket.put("old", b"old")
    world.wait()
    world.put("new", b"new")
    (finding,) = world.findings(began=world.clock.time() - 30)
    assert (finding.key, finding.explained) == ("old", "there before the ledger")


def test_lifecycle_explains_what_its_days_allow() -> None:
    world = settled()
    old = world.version("x.iso", 1).version_id
    world.wait(30 * 86_400)
    world.bucket.delete_version("x.iso", old)
    world.bucket.delete("other")
    rules = [LifecycleRule("tidy", "", expire_noncurrent_days=30), LifecycleRule("out", "o", expire_days=29)]
    assert [one.explained for one in world.findings(rules=rules)] == ["lifecycle: out", "lifecycle: tidy"]
    rules = [LifecycleRule("tidy", "", expire_noncurrent_days=31), LifecycleRule("out", "y", expire_days=29)]
    assert world.codes(rules=rules) == [Code.UNLOGGED_DELETE, Code.VERSION_PURGED]


def test_replication_is_explained() -> None:
    world = settled(feeds=True)
    written = world.bucket.put("copied", b"copied")
    world.observe("put", "copied", written.version_id, etag=written.etag, size=6)
    world.events[-1]["who"] = {"kind": "replication", "principal": "replicator"}
    world.deliver(Random(2))
    (finding,) = world.findings()
    assert (finding.code, finding.explained) == (Code.UNLOGGED_PUT, "replication")


@BOTH
def test_an_intent_without_an_outcome_is_told_once_it_is_old(versioned: bool) -> None:
    world = settled(versioned)
    world.put("x.iso", b"third", answer="died")
    assert world.codes() == []
    world.wait(7200)
    (finding,) = world.findings()
    assert finding.code is Code.DANGLING_INTENT
    assert "the bucket has what it would have left" in finding.said


def test_a_time_that_nobody_was_writing_at() -> None:
    world = settled()
    world.wait(3600)
    one = world.version("x.iso")
    acts_before = world.codes()
    history = world.bucket._history["x.iso"]  # what a backend can do and S3 cannot
    history[-1] = history[-1].__class__(one.version_id, b"second", one.etag, int(world.clock.time()))
    assert (acts_before, world.codes()) == ([], [Code.CLOCK])


def test_a_size_and_an_etag_that_changed_below_s3() -> None:
    world = settled()
    one = world.version("x.iso")
    history = world.bucket._history["x.iso"]
    written = history[-1].modified
    history[-1] = history[-1].__class__(one.version_id, b"longer than before", one.etag, written)
    assert world.codes() == [Code.SIZE_MISMATCH]
    history[-1] = history[-1].__class__(one.version_id, b"second", "f" * 32, written)
    assert world.codes() == [Code.ETAG_MISMATCH]


def test_a_put_that_neither_bucket_nor_feed_knows_of_is_a_ghost() -> None:
    world = settled(feeds=True)
    world.put("x.iso", b"third", answer="never")
    written = world.bucket.put("tmp", b"")
    world.bucket.delete_version("tmp", written.version_id)
    intent = world._intent(0, {"op": "put", "key": "x.iso", "size": 5})
    world._outcome(0, intent, {"op": "put", "key": "x.iso", "size": 5, "etag": "9" * 32, "version": "v-no"}, "done")
    world.wait()
    now = world.clock.time()
    assert world.codes(feed=(BEGAN, now)) == [Code.GHOST]
    assert world.codes(feed=(0.0, 0.0)) == [Code.VERSION_PURGED]


# --- histories at random --------------------------------------------------------------------------------------

KEYS = ("a", "b", "c/d")
Step = tuple[str, str, int, int, str, float]
answers = st.sampled_from(["done"] * 6 + ["lost", "never", "twice", "refused", "died"])
steps = st.lists(
    st.tuples(
        st.sampled_from(["put"] * 4 + ["delete", "purge"]),
        st.sampled_from(KEYS),
        st.integers(0, 4),
        st.integers(0, 1),
        answers,
        st.sampled_from([0.0, 3.0, 1200.0]),
    ),
    max_size=14,
)


def play(world: World, drawn: list[Step], random: Random) -> None:
    for op, key, number, writer, answer, pause in drawn:
        if op == "put":
            world.put(key, b"%d" % number * (number + 1), writer=writer, answer=answer)
        elif op == "delete":
            world.delete(key, writer=writer, answer=answer)
        else:
            versions = [one for one in world.versions if one.key == key and one.version_id != "null"]
            if versions:
                world.purge(key, versions[number % len(versions)].version_id, writer=writer, answer=answer)
        world.wait(pause)
        if random.random() < 0.4:
            world.deliver(random)
    world.wait(1200)
    world.deliver(random)


# What was never done and left the same is not what a feed saw, though its clock be nearer.
RETRIED: list[Step] = [("put", "b", 0, 0, "never", 0.0), ("put", "b", 0, 1, "done", 0.0)]
# Several that leave the same, within the skew of clocks: whose event is which, nobody can tell; its order holds for all that.
DELETED_TWICE: list[Step] = [
    ("delete", "b", 0, 0, "twice", 0.0),
    ("put", "b", 1, 0, "done", 0.0),
    ("delete", "b", 2, 0, "done", 0.0),
]
PUT_BACK: list[Step] = [
    ("put", "a", 3, 1, "done", 0.0),
    ("put", "a", 0, 1, "done", 0.0),
    ("put", "a", 3, 0, "done", 0.0),
]
PUT_BACK_UNSURELY: list[Step] = [
    ("put", "a", 0, 1, "twice", 0.0),
    ("put", "a", 1, 0, "done", 0.0),
    ("put", "a", 0, 0, "lost", 1200.0),
]
ALL_TWICE: list[Step] = [
    ("put", "a", 0, 0, "twice", 0.0),
    ("put", "a", 0, 1, "twice", 0.0),
    ("delete", "a", 0, 1, "twice", 0.0),
    ("put", "a", 0, 0, "done", 0.0),
]
SEEN_FOR_NEVER: list[Step] = [
    ("put", "a", 0, 1, "twice", 0.0),
    ("put", "a", 1, 1, "twice", 0.0),
    ("put", "a", 0, 0, "done", 0.0),
    ("put", "a", 1, 0, "never", 0.0),
]


@settings(max_examples=300, deadline=None)
@given(steps, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
@example([("put", "a", 0, 0, "done", 0.0)] * 12 + RETRIED, True, True, False, False, 0)
@example(DELETED_TWICE, False, True, False, False, 10)
@example(PUT_BACK, False, True, False, False, 1)
@example(PUT_BACK_UNSURELY, False, True, True, False, 10)
@example(ALL_TWICE, False, True, True, True, 5)
@example(SEEN_FOR_NEVER, False, True, False, False, 5)
def test_no_legitimate_history_gives_a_finding(
    drawn: list[Step],
    versioned: bool,
    feeds: bool,
    counts: bool,
    tells: bool,
    seed: int,
) -> None:
    world = World(versioned=versioned, ahead=(0.0, 4.0), feeds=feeds, tells_versions=tells)
    play(world, drawn, Random(seed))
    died = sum(answer == "died" for *_, answer, _ in drawn)
    found = world.codes(observed_counts=counts)
    assert set(found) <= {Code.DANGLING_INTENT}
    assert len(found) <= died


@pytest.mark.parametrize("ahead", [-4.0, -2.0, 0.0, 2.0, 4.0])
def test_a_clock_that_is_off_by_less_than_the_skew_leaves_each_act_its_event(ahead: float) -> None:
    world = World(versioned=True, ahead=(ahead, 0.0), feeds=True, tells_versions=False)
    answers = ("done", "done", "never", "done")
    play(world, [("put", "a", 0, 0, answer, 0.0) for answer in answers], Random(0))
    assert world.codes() == []


@pytest.mark.parametrize(
    ("attack", "code"),
    [("purge", Code.VERSION_PURGED), ("delete", Code.UNLOGGED_DELETE), ("put", Code.UNLOGGED_OVERWRITE)],
)
def test_what_was_seen_beside_an_answer_that_was_lost_is_watched_as_ever(attack: str, code: Code) -> None:
    world = World(versioned=True, ahead=(0.0, 4.0), feeds=True, tells_versions=False)
    play(world, RETRIED, Random(0))
    if attack == "purge":
        world.bucket.delete_version("b", world.version("b").version_id)
    elif attack == "delete":
        world.bucket.delete("b")
    else:
        world.bucket.put("b", b"evil")
    assert world.codes() == [code]


@pytest.mark.parametrize("history", [DELETED_TWICE, PUT_BACK, PUT_BACK_UNSURELY, ALL_TWICE, SEEN_FOR_NEVER])
def test_among_several_that_leave_the_same_what_else_was_put_is_seen(history: list[Step]) -> None:
    for seed in range(20):
        world = World(versioned=False, ahead=(0.0, 4.0), feeds=True)
        play(world, history, Random(seed))
        world.bucket.put(history[0][1], b"evil")
        (code,) = world.codes()
        assert code in (Code.UNLOGGED_OVERWRITE, Code.UNLOGGED_PUT)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put"] * 3 + ["delete"]), st.sampled_from(KEYS), st.integers(0, 9)), max_size=10
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["put", "delete", "purge", "restore"]),
    st.integers(0, 99),
)
def test_any_single_tampering_is_told_by_its_name(
    drawn: list[tuple[str, str, int]], versioned: bool, feeds: bool, attack: str, seed: int
) -> None:
    random = Random(seed)
    world = World(versioned=versioned, ahead=(0.0, 4.0), feeds=feeds)
    for op, key, number in drawn:
        if op == "put":
            world.put(key, b"%d" % number, writer=random.randrange(2))
        else:
            world.delete(key, writer=random.randrange(2))
        world.wait(30)
    key = random.choice(KEYS)
    world.put(key, b"one", writer=0)
    world.wait(30)
    world.put(key, b"another", writer=1)
    world.wait(30)
    world.deliver(random)
    assert world.codes() == []
    if attack == "put":
        world.bucket.put(key, b"evil")
        expected = Code.UNLOGGED_OVERWRITE
    elif attack == "restore":
        world.bucket.put(key, b"one")
        expected = Code.RESTORED_OLD
    elif attack == "delete" or not versioned:
        world.bucket.delete(key)
        expected = Code.UNLOGGED_DELETE
    else:
        victim = random.choice([one for one in world.versions if one.key == key])
        world.bucket.delete_version(key, victim.version_id)
        expected = Code.VERSION_PURGED
    world.wait(30)
    (finding,) = world.findings()
    assert (finding.code, finding.key, finding.explained) == (expected, key, "")
