"""What a snapshot had comes back, or is named before anything moves; what the place has is safe unless asked."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.copy_line import Place
from cowsync.apply.outcome_rows import outcome_rows
from cowsync.apply.restore import RestoreOptions, RestoreReport, apply_restore, plan_restore
from cowsync.apply.run import ApplyResult, ApplySettings, apply_plan
from cowsync.apply.transfer import TransferSettings
from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused
from cowsync.rows import REMOVED, Row, Rows
from s3core.bucket import Attributes
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.apply.faulty_bucket import Crash, Fault, Faults, ListPlan, faulty, line_for, put_in_parts, service

SMALL = ApplySettings(workers=2, transfer=TransferSettings(16, 64))


class History:
    """A source and its mirror over some runs; `snapshots` are the base after each, `states` the source's bytes then."""

    def __init__(self, folder: Path, *, versioned: bool) -> None:
        self.folder = folder
        self.service = service("two")
        self.source = service("one").bucket("source")
        self.mirror = self.service.bucket("mirror", versioned=versioned)
        self.base: dict[str, Row] = {}
        self.snapshots: list[dict[str, Row]] = []
        self.states: list[dict[str, bytes]] = []

    @property
    def places(self) -> tuple[Place, Place]:
        return Place(self.source), Place(self.mirror, "m/")

    def run(self) -> None:
        """Mirror the source as it is; what it has lost is removed at once."""
        lines = []
        now = {key: self.source.head(key) for key in self.source.contents()}
        for key, facts in now.items():
            known = self.base.get(key)
            if known is None:
                lines.append(line_for(Op.ADD, self.source, key))
            elif known.etag.decode() != facts.etag:
                lines.append(line_for(Op.MODIFY, self.source, key, mirror_etag=known.mirror_etag.decode()))
        lines += [
            PlanLine(Op.REMOVE, key, row.size, row.etag.decode(), "t", mirror_etag=row.mirror_etag.decode(), gone=1)
            for key, row in self.base.items()
            if key not in now
        ]
        plan, number = ListPlan(lines), len(self.snapshots) + 1
        directory = self.folder / f"apply-{number}"
        assert apply_plan(plan, *self.places, directory, run=number, settings=SMALL).complete
        for rows in outcome_rows(plan, directory):
            for row in rows:
                self.base[row.key.decode()] = row
        self.base = {key: row for key, row in self.base.items() if row.gone != REMOVED}
        self.snapshots.append(dict(self.base))
        self.states.append(self.source.contents())

    def rows(self, at: int) -> Iterator[Rows]:
        snapshot = self.snapshots[at]
        for key in sorted(snapshot):
            rows = Rows()
            rows.append(snapshot[key])
            yield rows

    def dry_run(
        self, at: int, place: Place, options: RestoreOptions | None = None, name: str = "restore"
    ) -> tuple[RestoreReport, list[str]]:
        lost: list[str] = []
        self.plan, report = plan_restore(
            self.folder / name,
            self.rows(at),
            self.places[1],
            place,
            name="photos",
            snapshot="s",
            run=90,
            options=options,
            on_unavailable=lambda row: lost.append(row.key.decode()),
        )
        return report, lost

    def carry_out(self, place: Place) -> ApplyResult:
        return apply_restore(self.plan, self.places[1], place, self.folder / self.plan.digest, run=90, settings=SMALL)


KEYS = ["a", "a/b", "b+ %", "ü\u2603", "z" * 1010]


@settings(max_examples=50, deadline=None)
@given(st.data(), st.booleans())
def test_any_snapshot_comes_back_as_far_as_its_bytes_are_there(data: st.DataObject, versioned: bool) -> None:
    with TemporaryDirectory() as folder:
        history = History(Path(folder), versioned=versioned)
        for _ in range(data.draw(st.integers(1, 4))):
            for key in data.draw(st.sets(st.sampled_from(KEYS))):
                body = data.draw(st.binary(max_size=40))
                match data.draw(st.sampled_from(["put", "parts", "delete"])):
                    case "parts" if body:
                        put_in_parts(history.source, key, body, 10)
                    case "delete":
                        history.source.delete(key)
                    case _:
                        history.source.put(key, body)
            history.run()
        at = data.draw(st.integers(0, len(history.snapshots) - 1))
        if data.draw(st.booleans()):
            bucket = history.service.bucket("other")
        else:
            bucket = service("three").bucket("other")
        place = Place(bucket, "back/")
        report, lost = history.dry_run(at, place)
        assert not bucket.contents(), "a dry run moves nothing"
        assert report.keys == len(history.states[at]) == report.copies + report.unavailable
        assert report.unavailable == len(lost)
        if versioned:
            assert not lost
        else:
            # Overwritten since, and the bytes are nowhere. What was removed lies in the trash.
            assert all(any(key in later for later in history.states[at + 1 :]) for key in lost)
        assert history.carry_out(place).complete
        wanted = {f"back/{key}": body for key, body in history.states[at].items() if key not in lost}
        assert bucket.contents() == wanted
        again, _ = history.dry_run(at, place, name="again")
        assert (again.present, again.copies) == (len(wanted), 0)


def small(tmp_path: Path, *, versioned: bool) -> History:
    """Run 1: a, b, c. Run 2: a changed, b removed, d added."""
    history = History(tmp_path, versioned=versioned)
    for key in "abc":
        history.source.put(key, key.encode(), attributes=Attributes({}, {"of": key}, {"t": key}))
    history.run()
    history.source.put("a", b"changed")
    history.source.delete("b")
    history.source.put("d", b"d")
    history.run()
    return history


def test_an_unversioned_mirror_says_what_it_cannot_give(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=False)
    place = Place(service("three").bucket("other"))
    report, lost = history.dry_run(0, place)
    assert lost == report.examples == ["a"]
    assert (report.copies, report.from_trash, report.unavailable, report.unavailable_bytes) == (2, 1, 1, 1)
    assert report.to_json()["unavailable"] == 1
    assert [line.reason for line in history.plan] == ["from the trash of run 2", "from the mirror"]
    assert history.carry_out(place).complete
    other = place.bucket
    assert isinstance(other, MemoryBucket)
    assert other.contents() == {"b": b"b", "c": b"c"}
    assert other.head("b").attributes.metadata == {"of": "b"}
    assert other.tags("b") == {"t": "b"}


def test_back_to_the_source_nothing_is_lost_unless_asked(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=True)
    source = history.places[0]
    before = history.source.contents()
    report, _ = history.dry_run(0, source, name="1")
    assert (report.present, report.copies, report.kept, report.extra, report.deletes) == (1, 1, 1, 1, 0)
    assert history.carry_out(source).complete
    assert history.source.contents() == before | {"b": b"b"}
    report, _ = history.dry_run(0, source, RestoreOptions(overwrite=True), name="2")
    assert (report.copies, report.overwrites, report.kept) == (1, 1, 0)
    assert history.carry_out(source).complete
    assert history.source.contents() == {"a": b"a", "b": b"b", "c": b"c", "d": b"d"}
    report, _ = history.dry_run(0, source, RestoreOptions(delete=True), name="3")
    assert (report.copies, report.deletes) == (0, 1)
    assert history.carry_out(source).complete
    kept = {key: body for key, body in history.source.contents().items() if not key.startswith(".cowsync/")}
    assert kept == history.states[0]
    assert history.source.contents()[".cowsync/trash/90/d"] == b"d"


def test_what_changed_after_the_dry_run_is_left_alone(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=True)
    source = history.places[0]
    history.dry_run(0, source, RestoreOptions(overwrite=True))
    history.source.put("a", b"written meanwhile")
    result = history.carry_out(source)
    assert not result.complete
    assert [failure.key for failure in result.failures] == ["a"]
    assert history.source.contents()["a"] == b"written meanwhile"


def test_vanished_keys_come_back_when_asked(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=True)
    history.snapshots[0]["c"] = history.snapshots[0]["c"]._replace(gone=1)
    place = Place(service("three").bucket("other"))
    assert history.dry_run(0, place, name="1")[0].keys == 2
    assert history.dry_run(0, place, RestoreOptions(vanished=True), name="2")[0].keys == 3


def test_not_onto_itself(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=True)
    with pytest.raises(Refused, match="itself"):
        history.dry_run(0, history.places[1])


def test_a_crash_goes_on_where_it_was(tmp_path: Path) -> None:
    history = small(tmp_path, versioned=True)
    bucket = service("three").bucket("other")
    history.dry_run(0, Place(bucket))
    settings_ = ApplySettings(workers=1, transfer=TransferSettings(16, 64))
    crashes = 0
    for call in (1, 2, 2, 3, 3, 2, 1):
        faults = Faults({call: Fault.CRASH_AFTER})
        try:
            apply_restore(
                history.plan,
                history.places[1],
                Place(faulty(bucket, faults)),
                tmp_path / history.plan.digest,
                run=90,
                settings=settings_,
            )
        except Crash:
            crashes += 1
    assert crashes > 3
    assert history.carry_out(Place(bucket)).complete
    assert bucket.contents() == history.states[0]
