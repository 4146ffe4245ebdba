"""Lines carried out elsewhere: the same as here, whoever dies, and however often a piece runs."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.copy_line import Place
from cowsync.apply.journal import Journals, journal_files
from cowsync.apply.outcome_rows import line_results
from cowsync.apply.pieces import Elsewhere, LinesPiece, carry_lines
from cowsync.apply.run import ApplyResult, ApplySettings, apply_plan
from cowsync.apply.transfer import TransferSettings
from cowsync.changes import Op, Outcome, PlanLine
from cowsync.errors import ClusterUnavailable
from cowsync.scan.engine import Hold, WorkerLost
from s3core.errors import Denied, Unavailable
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.apply import crews
from tests.cowsync.apply.crews import Crew, Held
from tests.cowsync.apply.faulty_bucket import Crash, Fault, Faults, ListPlan, faulty, line_for, put_in_parts, service
from tests.cowsync.apply.test_faults import KEYS, OLD, RUN, World, check_done, each, held, lose_power
from tests.s3core.fakes import FakeClock


@pytest.fixture(autouse=True, scope="module")
def _always_asked() -> Any:
    """Every request of a piece asks whether it is still waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cowsync.apply.pieces.KEEP_S", 0.0)
        yield


class Ends:
    """A source and a mirror as workers see them, and as the command's host does."""

    def __init__(self, source: MemoryBucket, mirror: MemoryBucket, prefixes: tuple[str, str] = ("", "")) -> None:
        self.source, self.mirror, self.prefixes = source, mirror, prefixes

    def places(self, faults: Faults) -> tuple[Place, Place]:
        return (
            Place(faulty(self.source, faults), self.prefixes[0]),
            Place(faulty(self.mirror, faults), self.prefixes[1]),
        )

    def carry(self, faults: Faults) -> Callable[[LinesPiece, Hold], Any]:
        return lambda piece, hold: carry_lines(piece, *self.places(faults), hold)

    def apply(self, plan: ListPlan, folder: Path, elsewhere: Elsewhere | None = None, **more: Any) -> ApplyResult:
        options = replace(ApplySettings(workers=2, transfer=TransferSettings(16, 64), failures_in_a_row=3), **more)
        return apply_plan(plan, *self.places(Faults()), folder, run=RUN, settings=options, elsewhere=elsewhere)


def ends_of(world: World) -> Ends:
    return Ends(world.source, world.mirror, ("s/", "m/"))


def many(count: int, *, same: bool = False, versioned: bool = False) -> tuple[Ends, ListPlan]:
    """Lines of all kinds that move something, mixed."""
    source = service("one").bucket("source")
    mirror = (source._service if same else service("two")).bucket("mirror", versioned=versioned)
    lines = []
    for number in range(count):
        key, op = f"{number:05}", (Op.REMOVE, Op.MODIFY, Op.ADD)[number % 3]
        was = "" if op is Op.ADD else mirror.put(key, OLD).etag
        source.put(key, bytes([number % 251]) * (number % 40))
        lines.append(line_for(op, source, key, mirror_etag=was))
    return Ends(source, mirror), ListPlan(lines)


def test_pieces_come_to_what_one_machine_comes_to(tmp_path: Path) -> None:
    here, plan = many(300)
    there, _ = many(300)
    expected = here.apply(plan, tmp_path / "here")
    crew = Crew(3)
    result = there.apply(plan, tmp_path / "there", Elsewhere(crew, there.carry(Faults())))
    assert result.complete
    assert (result.counts, result.bytes_moved, result.bytes_copied) == (
        expected.counts,
        expected.bytes_moved,
        expected.bytes_copied,
    )
    assert there.mirror.contents() == here.mirror.contents()
    assert len(journal_files(tmp_path / "there")) == 4, "one more than lanes"
    rows = [
        [(line, done and done.mirror_etag) for line, done in line_results(plan, path)] for path in tmp_path.iterdir()
    ]
    assert rows[0] == rows[1]


@each
@pytest.mark.parametrize("befalls", [crews.lost, crews.unheard, crews.twice])
def test_a_worker_that_dies_costs_time_alone(
    case: Callable[[], World], befalls: Callable[[Callable[[Held], object]], object], tmp_path: Path
) -> None:
    world = case()
    ways = [befalls]
    crew = Crew(1, lambda run: (ways.pop() if ways else crews.whole)(run))
    result = ends_of(world).apply(world.plan(), tmp_path, Elsewhere(crew, ends_of(world).carry(Faults())))
    assert result.counts == {world.line.op: {Outcome.DONE: 1}}, result.failures
    assert result.workers_lost == 1
    check_done(world)


@each
def test_a_worker_that_dies_at_any_request(case: Callable[[], World], tmp_path: Path) -> None:
    """It is gone in the middle of a line; the piece is given out again, or the command has died too and is called again."""
    faults = Faults()
    world = case()
    ends_of(world).apply(world.plan(), tmp_path / "whole", Elsewhere(Crew(), ends_of(world).carry(faults)))
    for call in range(1, faults.calls + 1):
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            world, failing = case(), Faults({call: fault})

            def dies(run: Callable[[Held], object], world: World = world, failing: Faults = failing) -> object:
                try:
                    return run(Held())
                except Crash:
                    # Whatever comes to this bucket next is another worker's.
                    failing.at, failing.crashed = {}, False
                    raise WorkerLost("injected") from None

            elsewhere = Elsewhere(Crew(1, dies), ends_of(world).carry(failing))
            with TemporaryDirectory(dir=tmp_path) as folder:
                result = ends_of(world).apply(world.plan(), Path(folder), elsewhere)
            assert result.complete, (call, fault, failing.trace, result.failures)
            # Between the begin of an upload and its note, it is the lifecycle rule's.
            unnoted = fault is Fault.CRASH_AFTER and failing.trace[call - 1] == "begin_upload"
            assert len(world.mirror.uploads()) == unnoted, (call, fault, failing.trace)
            world.mirror._uploads.clear()
            check_done(world)


@each
@pytest.mark.parametrize("noticed", [True, False])
def test_two_runs_of_a_piece_at_once(case: Callable[[], World], noticed: bool, tmp_path: Path) -> None:
    """A run stands still before any of its requests while another does all; then it finds out, or finishes its request
    and whatever else it has to do before it asks."""
    faults = Faults()
    world = case()
    ends_of(world).apply(world.plan(), tmp_path / "whole", Elsewhere(Crew(), ends_of(world).carry(faults)))
    for call in range(1, faults.calls + 1):
        world, stalled = case(), Faults()
        answers: list[object] = []
        given_away = threading.Event()

        def kept(noticed: bool = noticed, given_away: threading.Event = given_away) -> None:
            if noticed and given_away.is_set():
                raise WorkerLost("another has it")

        def both(
            run: Callable[[Held], object],
            world: World = world,
            answers: list[object] = answers,
            stalled: Faults = stalled,
            call: int = call,
            kept: Callable[[], None] = kept,
            given_away: threading.Event = given_away,
        ) -> object:
            def other() -> None:
                given_away.set()
                stalled.meanwhile = {}
                answers.append(run(Held(again=True)))

            stalled.meanwhile = {} if answers else {call: other}
            try:
                answer = run(Held(kept=kept))
            except WorkerLost:
                assert noticed
            else:
                if not answers:
                    return answer
            return answers[0]

        elsewhere = Elsewhere(Crew(1, both), ends_of(world).carry(stalled))
        with TemporaryDirectory(dir=tmp_path) as folder:
            result = ends_of(world).apply(world.plan(), Path(folder), elsewhere)
        assert result.complete, (call, stalled.trace, result.failures)
        check_done(world)


@each
def test_a_run_that_nobody_waits_for_touches_nothing_more(case: Callable[[], World], tmp_path: Path) -> None:
    """It stood still before a request for so long that the key has got another object by a later run."""
    world, asked = case(), Faults()
    crew = Crew(1, lambda run: run(Held(kept=lambda: None)))
    carry = ends_of(world).carry(asked)
    ends_of(world).apply(world.plan(), tmp_path / "whole", Elsewhere(crew, carry))
    for at in range(1, asked.calls + 1):
        world = case()
        keeps: list[int] = []

        def stalls(world: World = world, at: int = at, keeps: list[int] = keeps) -> None:
            keeps.append(at)
            if len(keeps) >= at:
                world.mirror.put("m/k", b"of a later run")
                raise WorkerLost("another has it")

        def late(run: Callable[[Held], object], stalls: Callable[[], None] = stalls) -> object:
            run(Held(kept=stalls))
            raise AssertionError("it did not stop")

        with TemporaryDirectory(dir=tmp_path) as folder, pytest.raises(WorkerLost):
            ends_of(world).apply(world.plan(), Path(folder), Elsewhere(Crew(1, late), ends_of(world).carry(Faults())))
        assert held(world) == b"of a later run", at


def test_an_answer_that_is_old_when_it_is_read_does_not_count(tmp_path: Path) -> None:
    """The worker stood still after it had asked: by then the piece may be another's."""
    ends, plan = many(3)
    clock, asked = FakeClock(), 0

    def kept() -> None:
        nonlocal asked
        asked += 1
        clock.now += 3600 if asked == 2 else 0
        if asked == 3:
            raise WorkerLost("another has it")

    before = ends.mirror.contents()
    piece = LinesPiece(plan.digest, RUN, 1, 5.0, True, TransferSettings(16, 64))
    lines = [(number, line, False) for number, line in plan.read() if line.op is not Op.REMOVE]
    faults, hold = Faults(), Held(kept=kept)
    with pytest.raises(WorkerLost, match="another has it"):
        carry_lines(piece.over(lines), *ends.places(faults), hold, clock=clock)
    assert (faults.calls, ends.mirror.contents()) == (1, before)


def test_a_piece_whose_workers_die_every_time_ends_the_run(tmp_path: Path) -> None:
    ends, plan = many(90)
    given = 0

    def dying(run: Callable[[Held], object]) -> object:
        nonlocal given
        given += 1
        if given > 2:
            raise WorkerLost("injected")
        return run(Held())

    with pytest.raises(WorkerLost, match="injected"):
        ends.apply(plan, tmp_path, Elsewhere(Crew(1, dying), ends.carry(Faults()), piece_lines=4))
    done = len(Journals.read(tmp_path, bytes.fromhex(plan.digest)).done)
    assert done == 8, "what was answered is noted"
    again = ends.apply(plan, tmp_path)
    assert (again.complete, again.done_before) == (True, done)


def test_a_cluster_that_goes_away_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    """After lines that nobody heard of; gone on with here."""
    ends, plan = many(90)
    given = 0

    def going(run: Callable[[Held], object]) -> object:
        nonlocal given
        given += 1
        answer = run(Held())
        if given > 2:
            raise ClusterUnavailable("the cluster is gone")
        return answer

    with pytest.raises(ClusterUnavailable):
        ends.apply(plan, tmp_path, Elsewhere(Crew(1, going), ends.carry(Faults()), piece_lines=4))
    assert ends.apply(plan, tmp_path).complete


def test_lines_whose_turn_did_not_come_are_given_out_again(tmp_path: Path) -> None:
    ends, plan = many(90)
    sizes: list[int] = []

    def carry(piece: LinesPiece, hold: Hold) -> Any:
        sizes.append(len(piece.numbers))
        return carry_lines(piece, *ends.places(Faults()), hold)

    result = ends.apply(plan, tmp_path, Elsewhere(Crew(1), carry, piece_s=0.0), workers=2)
    assert result.complete
    assert sorted(set(sizes), reverse=True) == list(range(16, 0, -2)), "each thread begins one"
    assert result.done == 90


def test_large_lines_are_alone_and_lines_of_a_key_together(tmp_path: Path) -> None:
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    for key, size in (("a", 1), ("b", 900), ("c", 1), ("d", 1), ("e", 200), ("f", 200)):
        source.put(key, bytes(size))
    lines = [line_for(Op.ADD, source, key) for key in "abccccdef"]
    pieces: list[list[str]] = []
    ends = Ends(source, mirror)

    def carry(piece: LinesPiece, hold: Hold) -> Any:
        pieces.append([line.key for _, line, _ in piece.unpacked()])
        return carry_lines(piece, *ends.places(Faults()), hold)

    ends.apply(ListPlan(lines), tmp_path, Elsewhere(Crew(1), carry, piece_lines=2), workers=2, batch_bytes=100)
    assert sorted(pieces) == [["a"], ["b"], ["c"] * 4, ["d"], ["e"], ["f"]]


def test_a_worker_that_is_not_let_in_stops_the_run(tmp_path: Path) -> None:
    ends, plan = many(90)

    class Policy(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            if self.calls > 30:
                raise Denied("not you")
            return super().call(name, action)

    result = ends.apply(plan, tmp_path, Elsewhere(Crew(1), ends.carry(Policy())))
    assert result.stopped == "a worker is not let in: not you"
    assert 0 < result.done < 90
    assert ends.apply(plan, tmp_path).complete


def test_a_store_that_is_away_for_the_workers_stops_the_run(tmp_path: Path) -> None:
    ends, plan = many(300)
    faults = Faults(dict.fromkeys(range(40, 4000), Fault.REFUSED))
    result = ends.apply(plan, tmp_path, Elsewhere(Crew(1), ends.carry(faults), piece_lines=16))
    assert "3 lines in a row failed" in result.stopped
    assert result.failures[0].message == "injected: refused"
    assert faults.calls < 200, "nothing more was sent"
    assert ends.apply(plan, tmp_path).complete


def test_errors_of_an_adapter_come_back_as_what_they_mean(tmp_path: Path) -> None:
    class SlowDown(Unavailable):
        def __init__(self, message: str, *, key: str, retry_after: float) -> None:
            super().__init__(message, key=key, hint="wait")
            self.retry_after = retry_after

    ends, plan = many(3)

    class Busy(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            if not self.crashed:
                self.crashed = True
                raise SlowDown("busy", key="00000", retry_after=1.0)
            return action()

    result = ends.apply(plan, tmp_path, Elsewhere(Crew(1), ends.carry(Busy())))
    assert result.complete, "tried once more, as what is temporary is"


def test_a_stop_waits_for_what_is_given_out_and_no_longer(tmp_path: Path) -> None:
    ends, plan = many(300)
    stop, begun = threading.Event(), 0

    def carry(piece: LinesPiece, hold: Hold) -> Any:
        nonlocal begun
        begun += 1
        if begun == 3:
            stop.set()
        return carry_lines(piece, *ends.places(Faults()), hold)

    options = ApplySettings(workers=2, transfer=TransferSettings(16, 64))
    stopped = apply_plan(
        plan,
        *ends.places(Faults()),
        tmp_path,
        run=RUN,
        settings=options,
        stop=stop,
        elsewhere=Elsewhere(Crew(2), carry, piece_lines=10),
    )
    assert stopped.stopped == "asked to stop"
    assert 30 <= stopped.done < 100
    assert not stopped.failures
    assert ends.apply(plan, tmp_path).done_before == stopped.done


def test_limits_of_this_process_are_not_promised_elsewhere(tmp_path: Path) -> None:
    ends, plan = many(3)
    with pytest.raises(ValueError, match="limits of this process"):
        ends.apply(plan, tmp_path, Elsewhere(Crew(), ends.carry(Faults())), requests_per_s=5.0)


faults_at = st.dictionaries(st.integers(1, 25), st.sampled_from(Fault), max_size=3)
ways_of_workers = st.lists(
    st.sampled_from([crews.whole, crews.lost, crews.unheard, crews.twice]), min_size=12, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_plans_come_to_the_same_elsewhere_as_here(data: st.DataObject) -> None:
    """Faults of the stores and of workers, crashes and power cuts of the command, a cluster in one call and none in the
    next: in the end all is as after one run here."""
    same, versioned = data.draw(st.booleans()), data.draw(st.booleans())
    sides = []
    for _ in range(2):
        source = service("one").bucket("source")
        mirror = (source._service if same else service("two")).bucket("mirror", versioned=versioned)
        sides.append(Ends(source, mirror))
    lines: list[PlanLine] = []
    for key in data.draw(st.sets(KEYS, min_size=1)):
        op, body, parts = data.draw(st.sampled_from(Op)), data.draw(st.binary(max_size=60)), data.draw(st.booleans())
        for side in sides:
            was = side.mirror.put(key, OLD).etag if op is not Op.ADD else ""
            if op not in (Op.ADD, Op.MODIFY):
                line = PlanLine(op, key, len(OLD), "e", "t", mirror_etag=was)
                continue
            if len(body) > 12 and parts:
                put_in_parts(side.source, key, body, 12)
            else:
                side.source.put(key, body)
            line = line_for(op, side.source, key, mirror_etag=was)
        lines.append(line)
    plan, (here, there) = ListPlan(lines), sides
    attempts = data.draw(
        st.lists(st.tuples(faults_at, ways_of_workers, st.booleans(), st.booleans()), min_size=4, max_size=4)
    )
    lanes, piece_s = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([0.0, 5.0]))
    with TemporaryDirectory() as once, TemporaryDirectory() as folder:
        assert here.apply(plan, Path(once)).complete
        for at, ways, power, local in [*attempts, ({}, [], False, False)]:
            faults = Faults(at)

            def befalls(run: Callable[[Held], object], ways: list[Any] = ways) -> object:
                try:
                    return (ways.pop() if ways else crews.whole)(run)
                except Crash as crash:  # of the worker
                    raise WorkerLost("injected") from crash

            elsewhere = None if local else Elsewhere(Crew(lanes, befalls), there.carry(faults), piece_s=piece_s)
            places = there.places(faults if local else Faults())
            options = ApplySettings(workers=2, transfer=TransferSettings(16, 64))
            try:
                result = apply_plan(plan, *places, Path(folder), run=RUN, settings=options, elsewhere=elsewhere)
            except (Crash, WorkerLost):
                if power:
                    lose_power(Path(folder), bytes.fromhex(plan.digest))
                continue
            assert not result.count(Outcome.MOVED)
            assert not result.count(Outcome.DRIFTED), result.failures
        assert result.complete, result.failures
        assert there.mirror.contents() == here.mirror.contents()
        answered = [
            [(line, done and done.mirror_etag) for line, done in line_results(plan, Path(path))]
            for path in (once, folder)
        ]
        if not same:
            assert answered[0] == answered[1]
