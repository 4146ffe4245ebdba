"""The new layer holds what happened, in order, and nothing else."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.copy_line import Place
from cowsync.apply.journal import Journals, WorkerJournal
from cowsync.apply.outcome_rows import done_results, outcome_rows, row_of
from cowsync.apply.run import ApplySettings, apply_plan
from cowsync.apply.transfer import TransferSettings
from cowsync.changes import LineResult, Op, Outcome, PlanLine
from cowsync.rows import REMOVED, Row
from tests.cowsync.apply.faulty_bucket import Crash, Fault, Faults, ListPlan, faulty, line_for, service


def line(op: Op, key: str = "k") -> PlanLine:
    return PlanLine(op, key, 5, "e", "m", "v", "STANDARD", 4, "we", "wv", "me", "mv", gone=3)


def test_each_kind_of_line() -> None:
    done = LineResult(0, Outcome.DONE, "new", "7")
    row = Row(b"k", 5, b"e", b"m", b"v", b"STANDARD", b"new", b"7", 0)
    assert row_of(line(Op.ADD), done) == row
    assert row_of(line(Op.MODIFY), done) == row
    assert row_of(line(Op.VANISH), None) == row._replace(mirror_etag=b"me", mirror_version=b"mv", gone=3)
    assert row_of(line(Op.RETURN), None) == row._replace(mirror_etag=b"me", mirror_version=b"mv", gone=0)
    removed = row_of(line(Op.REMOVE), done)
    assert removed is not None
    assert (removed.key, removed.gone) == (b"k", REMOVED)
    assert [row_of(line(op), None) for op in (Op.ADD, Op.MODIFY, Op.REMOVE)] == [None] * 3


outcomes = st.sampled_from([Outcome.DONE, Outcome.DONE, Outcome.FAILED])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 30), outcomes), max_size=12), min_size=1, max_size=4))
def test_results_in_any_order_come_out_ascending(journals: list[list[tuple[int, Outcome]]]) -> None:
    with TemporaryDirectory() as folder:
        for worker, results in enumerate(journals):
            journal = WorkerJournal(Path(folder), worker, bytes(32))
            for number, outcome in results:
                journal.append(LineResult(number, outcome))
            journal.close()
        wanted = sorted(n for results in journals for n, outcome in results if outcome is Outcome.DONE)
        assert [result.number for result in done_results(Path(folder), bytes(32))] == wanted


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 60), st.sampled_from(Fault), max_size=8), st.sampled_from([1, 3]))
def test_a_layer_says_what_the_mirror_holds(at: dict[int, Fault], workers: int) -> None:
    """After a run with failures: each row names the object that is there; what no row speaks of is as it was, unless
    its line was begun."""
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror", versioned=True)
    lines = []
    for number in range(12):
        key = f"{number:02}"
        op = list(Op)[number % 5]
        was = "" if op is Op.ADD else mirror.put(key, b"old").etag
        if op in (Op.ADD, Op.MODIFY):
            source.put(key, b"new" * number)
            lines.append(line_for(op, source, key, mirror_etag=was))
        else:
            lines.append(PlanLine(op, key, 3, "e", "t", mirror_etag=was, gone=4 if op is not Op.RETURN else 0))
    plan, faults = ListPlan(lines), Faults(at)
    with TemporaryDirectory() as folder:
        try:
            apply_plan(
                plan,
                Place(faulty(source, faults)),
                Place(faulty(mirror, faults)),
                Path(folder),
                run=5,
                settings=ApplySettings(workers=workers, batch_lines=2, transfer=TransferSettings(16, 64)),
            )
        except Crash:
            assert faults.crashed
        pieces = list(outcome_rows(plan, Path(folder), piece_rows=3))
        journals = Journals.read(Path(folder), bytes.fromhex(plan.digest))
        unsettled = {line.key for number, line in plan.read() if journals.maybe_ours(line.op, number)}
    rows = [row for piece in pieces for row in piece]
    assert [row.key for row in rows] == sorted({row.key for row in rows})
    assert all(len(piece) <= 3 for piece in pieces)
    held = {key: mirror.head(key) for key in mirror.contents()}
    for row in rows:
        key = row.key.decode()
        if row.gone == REMOVED:
            assert key not in held
        else:
            assert held[key].etag == row.mirror_etag.decode()
            assert row.mirror_version.decode() in ("", held[key].version_id)
    known = {row.key.decode() for row in rows}
    for number, planned in enumerate(plan.held):
        if planned.key not in known | unsettled:
            assert (held[planned.key].etag if planned.key in held else "") == planned.mirror_etag, number
