"""Events between listings: they only say where to look, and a listing always follows."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.catalogue import Phase
from cowsync.changes import Op
from cowsync.feed.gathered import Counts
from cowsync.feed.source import FileFeed
from cowsync.follow import Followed, follow, follow_once, listed_round
from cowsync.hints import plan_hinted
from cowsync.mirror import Mirror
from cowsync.plan.guard import Decision
from cowsync.plan.plan_file import digests
from cowsync.scan.engine import Engine, InlineEngine
from cowsync.watch import End, Ended, run_round
from cowsync.watch_health import Doing, Health, past_of
from cowsync.work import alone, base_of, is_from_events
from s3core.errors import Denied, NotFound
from s3core.settings import GuardSettings
from tests.cowsync.apply.faulty_bucket import Crash, Fault
from tests.cowsync.feed.notices import notice
from tests.cowsync.test_work import CHANGES, KEYS, MEMORY
from tests.cowsync.worlds import DAY_S, World


class Watched:
    """A world whose source notifies, and a service that follows."""

    def __init__(self, folder: Path, keys: int = 0, **options: object) -> None:
        self.world = World(folder, **options)  # type: ignore[arg-type]
        self.path = folder / "events.jsonl"
        for number in range(keys):
            self.world.source.put(f"k/{number:03}", b"%d" % number)

    @property
    def feed(self) -> FileFeed:
        return FileFeed(self.path, self.world.mirror().folder)

    def put(self, key: str, data: bytes) -> None:
        self.world.source.put(key, data)
        self.notify(key)

    def delete(self, key: str) -> None:
        self.world.source.delete(key)
        self.notify(key)

    def notify(self, *keys: str) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(map(notice, keys)))

    def events(self, stop: threading.Event | None = None) -> Followed:
        return follow_once(self.world.mirror(), self.feed, now=self.world.clock.time, stop=stop or threading.Event())

    def listing(self, *, flooded: bool = False) -> Ended:
        def round_() -> Ended:
            return run_round(self.world.mirror(), inline, now=self.world.clock.time, stop=threading.Event())

        return listed_round(round_, self.feed, self.world.clock.time, flooded=flooded)


@contextmanager
def inline(mirror: Mirror) -> Iterator[Engine]:
    yield InlineEngine()


def watched(tmp_path: Path, keys: int = 20, **options: object) -> Watched:
    made = Watched(tmp_path, keys, **options)
    assert made.listing().end is End.DONE
    return made


# --- one round -------------------------------------------------------------------------------------------------------


def test_what_events_name_is_mirrored_and_nothing_is_listed(tmp_path: Path) -> None:
    it = watched(tmp_path)
    it.put("k/003", b"new")
    it.put("k/new é+%", b"n")
    it.delete("k/005")
    it.world.source.put("k/007", b"nobody told")
    it.notify("k/001", "k/001", "never was")
    it.world.source.requests.clear()
    told = it.events()
    assert (told.ended.end, told.ended.lines, told.ended.done) == (End.DONE, 3, 3)
    assert told.gathered is not None
    assert len(told.gathered.keys) == 5
    assert it.world.source.requests["list"] == 1, "whether the bucket is there, since keys are not"
    mirrored = it.world.mirrored()
    assert (mirrored["k/003"], mirrored["k/new é+%"], mirrored["k/005"], mirrored["k/007"]) == (
        b"new",
        b"n",
        b"5",
        b"7",
    )
    snapshot = base_of(it.world.mirror()).snapshot
    assert snapshot is not None
    assert is_from_events(snapshot)
    assert snapshot.facts.tiling == (), "no range was listed"
    assert snapshot.facts.notes["events"]["keys"] == 5
    assert (snapshot.totals.rows, snapshot.totals.gone) == (21, 1)
    assert digests(it.world.mirror().plans) == [told.ended.plan] or told.ended.plan not in digests(
        it.world.mirror().plans
    )
    assert it.events().quiet
    assert it.listing().lines == 1, "the listing finds what nobody told of"
    assert it.world.plan().clean


def test_the_plan_counts_what_was_asked(tmp_path: Path) -> None:
    it = watched(tmp_path)
    it.world.source.put("k/003", b"new")
    planned = plan_hinted(it.world.mirror(), ["k/003", "k/004"], Counts(lines=2), now=it.world.clock.time)
    assert planned is not None
    assert [line.key for line in planned.plan] == ["k/003"]
    assert (planned.scan.heads, planned.scan.requests, planned.scan.tiling) == (2, 0, [])
    document = planned.plan.summary()
    assert document["scan"]["events"]["keys"] == 2  # type: ignore[index]
    assert document["scan"]["requests"] == 2  # type: ignore[index]
    assert "of the 2 keys that events named" in str(document["text"])
    assert "0 lists and 2 heads" in str(document["text"])
    assert plan_hinted(it.world.mirror(), ["k/004"], Counts(), now=it.world.clock.time) is None


def test_nothing_new_leaves_nothing_but_the_place(tmp_path: Path) -> None:
    it = watched(tmp_path)
    runs, head = len(it.world.mirror().catalogue().runs()), it.world.mirror().state.head()
    it.notify("k/001", "k/002")
    told = it.events()
    assert (told.ended.end, told.quiet) == (End.CLEAN, False)
    assert len(it.world.mirror().catalogue().runs()) == runs
    assert it.world.mirror().state.head() == head
    assert it.events().quiet


def test_events_before_the_first_listing_wait_for_it(tmp_path: Path) -> None:
    it = Watched(tmp_path)
    it.put("a", b"1")
    told = it.events()
    assert told.ended.end is End.FAILED
    assert "no restore point yet" in told.ended.message
    assert it.listing().end is End.DONE
    assert it.events().quiet, "the listing began after it"


def test_an_event_never_removes_anything(tmp_path: Path) -> None:
    it = watched(tmp_path, vanished="remove", vanished_runs=1, vanished_s=0.0)
    it.delete("k/005")
    for _ in range(4):
        it.world.clock.sleep(DAY_S)
        it.notify("k/005")
        it.events()
    assert "k/005" in it.world.mirrored()
    it.listing()
    assert "k/005" in it.world.mirrored(), "rounds of events are no runs that missed it"
    it.world.clock.sleep(1)
    it.listing()
    assert "k/005" not in it.world.mirrored()


def test_a_bucket_that_is_gone_has_lost_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = watched(tmp_path)

    def gone(*args: object, **named: object) -> object:
        raise NotFound("no such bucket")

    monkeypatch.setattr(it.world.source, "head", gone)
    monkeypatch.setattr(it.world.source, "list_page", gone)
    it.notify("k/001")
    told = it.events()
    assert (told.ended.end, told.ended.message) == (End.FAILED, "no such bucket")
    monkeypatch.undo()
    assert it.events().ended.end is End.CLEAN, "it was not handled"


def test_a_key_that_the_source_gives_no_answer_about_is_left_to_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = watched(tmp_path)
    head = it.world.source.head

    def picky(key: str, **named: int) -> object:
        if key == "k/001":
            raise Denied("not this one")
        return head(key)

    monkeypatch.setattr(it.world.source, "head", picky)
    it.world.source.put("k/002", b"new")
    it.notify("k/001", "k/002")
    assert it.events().ended.end is End.DONE
    snapshot = base_of(it.world.mirror()).snapshot
    assert snapshot is not None
    assert snapshot.facts.notes["events"]["unanswered"] == 1
    it.notify("k/001")
    assert it.events().ended.message == "not this one", "nothing was answered at all"


def test_a_mirror_that_another_process_works_on(tmp_path: Path) -> None:
    it = watched(tmp_path)
    it.put("k/001", b"new")
    with alone(it.world.mirror()):
        assert it.events().ended.end is End.BUSY
    assert it.events().ended.end is End.DONE


# --- restore points and runs -----------------------------------------------------------------------------------------


def test_events_between_two_listings_are_one_restore_point(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=200)
    for number in range(12):
        it.put(f"k/{number:03}", b"again %d" % number)
        it.world.clock.sleep(5)
        assert it.events().ended.end is End.DONE
    mirror = it.world.mirror()
    assert [entry.run for entry in mirror.state.head().entries] == [2, 1]
    snapshot = base_of(mirror).snapshot
    assert snapshot is not None
    assert len(snapshot.layers) <= 2
    assert snapshot.facts.notes["counts"][Op.MODIFY] == 12
    it.listing()
    entries = mirror.state.head().entries
    assert [entry.run for entry in entries] == [2, 1], "the listing takes its place"
    assert mirror.state.snapshot(entries[0].name).facts.tiling == ((b"", None),)
    assert base_of(mirror).past[-1].modified == 12, "what events did counts as the run's"
    it.listing()
    assert [entry.run for entry in mirror.state.head().entries] == [3, 2, 1]
    assert it.world.plan().clean


def test_a_layer_that_takes_keys_away_is_joined_whole(tmp_path: Path) -> None:
    """The row that says that a key is gone for good must not be lost when events add to its layer."""
    it = watched(tmp_path, keys=200, vanished="remove", vanished_runs=1, vanished_s=0.0)
    it.world.source.delete("k/005")
    it.listing()
    it.world.clock.sleep(1)
    assert it.listing().lines == 1
    it.put("k/007", b"new")
    it.events()
    it.put("k/008", b"new")
    it.events()
    mirror = it.world.mirror()
    snapshot = base_of(mirror).snapshot
    assert snapshot is not None
    assert snapshot.totals.rows == 199
    assert it.world.plan().clean
    assert "k/005" not in it.world.mirrored()


def test_monitors_are_told_of_listings_apart(tmp_path: Path) -> None:
    it = watched(tmp_path)
    mirror = it.world.mirror()
    listed = mirror.catalogue().runs(1)[0]
    for number in range(5):
        it.world.clock.sleep(5)
        it.put("k/001", b"%d" % number)
        it.events()
    runs = mirror.catalogue().recent(2)
    assert [run.of_events for run in runs] == [True, True, False]
    past = past_of(runs)
    assert past.complete == past.listed == listed
    assert past.last is not None
    assert past.last.of_events
    mirror.catalogue().forget_events(it.world.clock.time() + 1)
    assert [run.id for run in mirror.catalogue().runs()] == [listed.id]


# --- the guard -------------------------------------------------------------------------------------------------------


def test_many_small_losses_are_one_large_one(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=200)
    ends = []
    for number in range(5):
        for key in range(5):
            it.delete(f"k/{5 * number + key:03}")
        ends.append(it.events().ended)
    assert [ended.end for ended in ends] == [End.DONE] * 4 + [End.HELD], "10 % of 200 is 20"
    assert "25 of 200 keys are gone" in ends[-1].message
    held = it.listing()
    assert held.end is End.HELD, "the listing sees the same, whoever saw it first"
    assert "25 of 200 keys are gone" in held.message
    health = Health("m", 3600.0, it.world.mirror().catalogue().recent, Doing(), it.world.clock.time)
    assert health.past().held is not None
    it.world.apply(it.world.plan())
    assert health.past().held is None
    it.delete("k/190")
    assert it.events().ended.end is End.DONE, "counting began anew"


def test_an_approval_of_a_plan_of_events_begins_counting_anew(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=200)
    for key in range(30):
        it.delete(f"k/{key:03}")
    held = it.events().ended
    assert held.end is End.HELD
    from cowsync.work import apply

    apply(it.world.mirror(), held.plan, approve=held.plan, now=it.world.clock.time)
    assert it.world.mirror().catalogue().runs(1)[0].phase is Phase.DONE
    assert it.events().ended.end is End.CLEAN, "they are read again, and nothing is left to do"
    it.delete("k/100")
    assert it.events().ended.end is End.DONE
    assert it.listing().end is End.CLEAN


def test_renames_and_new_suffixes_add_up(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=1000)
    held: Ended | None = None
    for number in range(40):
        it.put(f"k/{number:03}.locked", b"x")
        it.delete(f"k/{number:03}")
        ended = it.events().ended
        if ended.end is End.HELD:
            held = ended
            break
    assert held is not None
    assert 10 <= number <= 12
    assert "suffix" in held.message


def test_a_key_that_changes_all_day_counts_once(tmp_path: Path) -> None:
    """Nor does a lock that comes and goes count for more than it is, which is nothing once it is gone."""
    it = watched(tmp_path, keys=100)
    for number in range(40):
        it.put("k/001", b"%d" % number)
        it.put("lock", b"%d" % number)
        assert it.events().ended.end is End.DONE, number
        it.delete("lock")
        if number % 2:
            it.delete("k/002")
        else:
            it.put("k/002", b"2")
        assert it.events().ended.end is End.DONE, number
    since = base_of(it.world.mirror()).since
    assert since is not None
    counts = {str(op): since.carried.objects(op) for op in Op if since.carried.objects(op)}
    assert counts == {"modify": 1, "vanish": 1}
    assert since.carried.prefixes == {"k/": 1}
    assert since.carried.suffixes == {}
    assert it.listing().end is End.CLEAN


def test_a_canary_that_events_name(tmp_path: Path) -> None:
    it = watched(tmp_path, guard=GuardSettings(canaries=("k/003",)))
    it.put("k/001", b"fine")
    assert it.events().ended.end is End.DONE
    it.put("k/003", b"touched")
    assert it.events().ended.end is End.HELD


# --- floods, and listings that always follow -------------------------------------------------------------------------


def test_a_flood_is_a_listing(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=200, events_keys_max=10)
    for number in range(11):
        it.put(f"k/{number:03}", b"new")
    it.world.source.requests.clear()
    told = it.events()
    assert told.flooded
    assert "more than 10 keys" in told.text()
    assert not it.world.source.requests
    assert it.listing(flooded=True).done == 11
    assert it.events().quiet
    assert it.feed.note.counts.floods == 1


def test_a_listing_that_fails_handles_nothing(tmp_path: Path) -> None:
    it = watched(tmp_path)
    it.put("k/001", b"new")
    it.world.faults.at = dict.fromkeys(range(1, 1000), Fault.REFUSED)
    assert it.listing().end is End.FAILED
    it.world.faults.at = {}
    it.world.faults.calls = 0
    assert it.events().ended.end is End.DONE


def test_a_feed_that_cannot_be_read_or_noted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = watched(tmp_path)

    def fails(*args: object) -> object:
        raise OSError(28, "No space left on device")

    it.put("k/001", b"new")
    for name in ("end", "handled"):
        monkeypatch.setattr(FileFeed, name, fails)
        ended = it.listing()
        assert ended.snapshot
        assert "the feed of events: [Errno 28] No space left on device" in ended.untidy
        monkeypatch.undo()
    monkeypatch.setattr(FileFeed, "waiting", fails)
    assert it.events().ended.end is End.FAILED
    monkeypatch.undo()
    assert it.events().ended.end is End.CLEAN


class Clocked:
    """A clock that moves when somebody waits or works."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def followed(end: End = End.DONE, *, quiet: bool = False) -> Followed:
    from cowsync.feed.gathered import Gathered, Scope

    gathered = Gathered(Scope("b", "", lambda key: True, 1))
    return Followed(Ended(end if not quiet else End.CLEAN), None if quiet else gathered)


@pytest.mark.parametrize("takes", [0.0, 1.0, 7.0])
def test_no_number_of_events_postpones_a_listing(takes: float) -> None:
    clock, rounds = Clocked(), []

    def once(until: threading.Event) -> Followed:
        rounds.append(clock.now)
        # A round that would never end by itself looks at what it was given.
        step = max(takes, 0.5)
        for _ in range(1000 if takes > 5 else 1):
            if until.is_set():
                return followed(End.STOPPED)
            clock.now += step
        return followed()

    told = follow(
        once,
        due=60.0,
        every_s=5.0,
        stop=threading.Event(),
        monotonic=lambda: clock.now,
        wait=clock.wait,
        held=lambda: False,
        ended=lambda _: None,
    )
    assert told is None
    assert 60.0 <= clock.now < 60.0 + max(takes, 0.5)
    assert len(rounds) == (1 if takes > 5 else 12)


def test_while_a_plan_is_held_and_after_a_failure_events_wait() -> None:
    clock, rounds = Clocked(), []

    def once(until: threading.Event) -> Followed:
        rounds.append(clock.now)
        return followed(End.FAILED)

    held = iter([True] * 4 + [False] * 100)
    seen: list[Followed] = []
    follow(
        once,
        due=300.0,
        every_s=5.0,
        stop=threading.Event(),
        monotonic=lambda: clock.now,
        wait=clock.wait,
        held=lambda: next(held),
        ended=seen.append,
    )
    assert rounds == [20.0, 80.0, 140.0, 200.0, 260.0]
    assert len(seen) == 5


def test_a_round_of_events_is_stopped_when_the_listing_is_due(tmp_path: Path) -> None:
    it = watched(tmp_path, keys=60, copiers=1)
    for number in range(60):
        it.put(f"k/{number:03}", b"new")
    stop = threading.Event()
    it.world.faults.calls = 0

    def new() -> int:
        return sum(data == b"new" for data in it.world.mirrored().values())

    it.world.faults.meanwhile = dict.fromkeys(range(70, 2000), lambda: stop.set() if new() >= 5 else None)
    it.world.settings = it.world.settings.model_copy(update={"guard": GuardSettings(floor_keys=1000)})
    told = it.events(stop)
    assert told.ended.end is End.STOPPED
    it.world.faults.meanwhile = {}
    assert 5 <= new() < 60
    assert it.listing().end in (End.DONE, End.CLEAN)
    assert new() == 60
    assert it.world.plan().clean
    assert it.events().quiet


# --- crashes and histories -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.REFUSED, Fault.LOST_REPLY])
def test_a_fault_at_any_call_of_a_round_of_events(fault: Fault) -> None:
    calls, at = 1, -1
    while at < calls:
        at += 1
        with TemporaryDirectory(dir=MEMORY) as folder:
            it = watched(Path(folder), keys=4)
            it.put("k/001", b"two")
            it.put("k/new", b"new")
            it.delete("k/002")
            it.world.faults.calls, it.world.faults.at = 0, {at: fault}
            with suppress(Crash):
                it.events()
            calls = max(calls, it.world.faults.calls)
            it.world.faults.at, it.world.faults.crashed = {}, False
            assert it.events().ended.end in (End.DONE, End.CLEAN)
            want = {"k/000": b"0", "k/001": b"two", "k/002": b"2", "k/003": b"3", "k/new": b"new"}
            assert it.world.mirrored() == want
            assert it.events().quiet
            assert it.world.plan().clean
    assert calls >= 6


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_note_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    it = watched(tmp_path)
    it.put("k/001", b"new")
    noted = FileFeed.handled

    def dies(feed: FileFeed, *args: object) -> None:
        if when == "after":
            noted(feed, *args)  # type: ignore[arg-type]
        raise Crash

    monkeypatch.setattr(FileFeed, "handled", dies)
    with pytest.raises(Crash):
        it.events()
    monkeypatch.undo()
    assert it.world.mirrored()["k/001"] == b"new", "published first"
    it.world.target.requests.clear()
    assert it.events().quiet is (when == "after")
    assert not it.world.target.requests, "handled again, which moves nothing"
    assert it.world.plan().clean


STEP = st.tuples(
    CHANGES,
    st.sampled_from(["told", "lost", "doubled", "reversed", "late"]),
    st.sampled_from(["events", "events", "listing", "nothing"]),
    st.dictionaries(st.integers(1, 40), st.sampled_from(list(Fault)), max_size=2),
)


def live_through(steps: list[tuple[list[tuple[str, bytes | None]], str, str, dict[int, Fault]]], folder: Path) -> None:
    it = Watched(folder, guard=GuardSettings(floor_keys=1000))
    # A source that becomes empty is held, whatever the limits.
    it.world.source.put("always", b"here")
    ever: dict[str, set[bytes]] = {"always": {b"here"}}
    late: list[str] = []

    def sound() -> None:
        """Whatever is on the mirror is something that the source had there."""
        for key, data in it.world.mirrored().items():
            assert data in ever[key], key

    it.listing()
    for changes, how, then, faults in steps:
        for key, data in changes:
            it.world.clock.sleep(1)
            if data is None:
                it.world.source.delete(key)
            else:
                it.world.source.put(key, data)
                ever.setdefault(key, set()).add(data)
        keys = [key for key, _ in changes]
        if how == "late":
            late += keys
        elif how != "lost":
            it.notify(*(keys[::-1] if how == "reversed" else keys * (1 + (how == "doubled"))), *late)
            late = []
        it.world.faults.calls, it.world.faults.at, it.world.faults.crashed = 0, faults, False
        with suppress(Crash):
            if then == "events":
                it.events()
            elif then == "listing":
                it.listing()
        it.world.faults.at, it.world.faults.crashed = {}, False
        sound()
    it.events()
    sound()
    assert it.listing().end in (End.DONE, End.CLEAN)
    assert it.world.plan().clean
    source = it.world.source.contents()
    assert {key: it.world.mirrored().get(key) for key in source} == source
    snapshot = base_of(it.world.mirror()).snapshot
    assert snapshot is not None
    assert snapshot.totals.rows - snapshot.totals.gone == len(source)
    assert snapshot.facts.notes["census"]["keys"] == len(source)
    assert snapshot.facts.notes["census"]["bytes"] == sum(map(len, source.values()))
    assert it.world.plan().verdict.decision is Decision.PASS


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=6))
def test_random_histories_with_events_lost_doubled_late_and_out_of_order(
    steps: list[tuple[list[tuple[str, bytes | None]], str, str, dict[int, Fault]]],
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        live_through(steps, Path(folder))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=8))
def test_many_random_histories_with_events(
    steps: list[tuple[list[tuple[str, bytes | None]], str, str, dict[int, Fault]]],
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        live_through(steps, Path(folder))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=3))), max_size=12))
def test_events_of_everything_leave_a_listing_nothing_to_do(changes: list[tuple[str, bytes | None]]) -> None:
    """The lines of both come from one place; so does what they leave in the base."""
    with TemporaryDirectory(dir=MEMORY) as folder:
        it = Watched(Path(folder), guard=GuardSettings(floor_keys=1000))
        it.world.source.put("always", b"here")
        it.listing()
        for key, data in changes:
            it.world.source.delete(key) if data is None else it.world.source.put(key, data)
            it.notify(key)
            if len(changes) % 2:
                it.events()
        it.events()
        assert it.world.plan().clean
