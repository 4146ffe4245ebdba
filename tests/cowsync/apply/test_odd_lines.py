"""Lines that cannot be carried out, and what earlier attempts left: one of them never keeps the others back."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from cowsync.apply.copy_line import Place
from cowsync.apply.run import ApplySettings, apply_plan
from cowsync.changes import Op, Outcome, PlanLine
from s3core.bucket import Bucket
from s3core.errors import Unsupported
from tests.cowsync.apply.faulty_bucket import (
    Crash,
    Fault,
    Faults,
    FaultyBucket,
    ListPlan,
    faulty,
    line_for,
    put_in_parts,
    service,
)

ONE = ApplySettings(workers=1)


def test_a_key_too_long_below_the_mirrors_prefix_fails_alone(tmp_path: Path) -> None:
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    keys = ["a", "l" * 1020, "z"]
    for key in keys:
        source.put(key, b"data")
    plan = ListPlan([line_for(Op.ADD, source, key) for key in keys])
    result = apply_plan(plan, Place(source), Place(mirror, "below/here/"), tmp_path, run=1, settings=ONE)
    assert result.counts == {Op.ADD: {Outcome.DONE: 2, Outcome.FAILED: 1}}
    assert "1,031 bytes below the mirror's prefix" in result.failures[0].message
    assert sorted(mirror.contents()) == ["below/here/a", "below/here/z"]


def test_what_the_port_refuses_to_send_fails_alone(tmp_path: Path) -> None:
    """Some servers keep what others would not take: here a length of a key that only the source knows."""
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    for key in ("a", "b", "c"):
        source.put(key, b"data")

    class Odd(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            if name == "put" and self.trace.count("put") == 1:
                self.trace.append(name)
                raise ValueError("no header can hold that")
            return super().call(name, action)

    plan = ListPlan([line_for(Op.ADD, source, key) for key in ("a", "b", "c")])
    result = apply_plan(plan, Place(source), Place(faulty(mirror, Odd())), tmp_path, run=1, settings=ONE)
    assert result.counts == {Op.ADD: {Outcome.DONE: 2, Outcome.FAILED: 1}}
    assert sorted(mirror.contents()) == ["a", "c"]


def test_an_archived_object_does_not_end_copying_by_the_server(tmp_path: Path) -> None:
    """All after it would go through this host, and be paid for."""
    here = service("one")
    source, mirror = here.bucket("source"), here.bucket("mirror")
    for key in ("a", "b", "c"):
        source.put(key, b"data")

    class Archived(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            self.trace.append(name)
            if name == "get" or (name == "copy" and self.trace.count("copy") == 1):
                raise Unsupported("InvalidObjectState", hint="restore it first")
            return action()

    faults = Archived()
    plan = ListPlan([line_for(Op.ADD, source, key) for key in ("a", "b", "c")])
    ends = Place(faulty(source, faults)), Place(faulty(mirror, faults))
    result = apply_plan(plan, *ends, tmp_path, run=1, settings=ONE)
    assert result.counts == {Op.ADD: {Outcome.DONE: 2, Outcome.FAILED: 1}}
    assert (result.bytes_moved, result.bytes_copied) == (0, 8)


def test_somebody_elses_object_of_the_same_size_survives_a_second_call(tmp_path: Path) -> None:
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    for key in ("a", "b", "c"):
        source.put(key, b"ours")
    mirror.put("a", b"else")
    stop = threading.Event()
    faults = Faults(meanwhile={3: stop.set})
    plan = ListPlan([line_for(Op.ADD, source, key) for key in ("a", "b", "c")])
    ends = Place(source), Place(faulty(mirror, faults))
    first = apply_plan(plan, *ends, tmp_path, run=1, settings=ONE, stop=stop)
    assert first.stopped
    assert first.count(Outcome.DRIFTED) == 1
    second = apply_plan(plan, *ends, tmp_path, run=1, settings=ONE)
    assert second.count(Outcome.DRIFTED) == 1
    assert mirror.contents() == {"a": b"else", "b": b"ours", "c": b"ours"}


@pytest.mark.parametrize("check_mirror", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_what_a_death_left_is_noted_though_the_source_has_moved_on(
    tmp_path: Path, gone: bool, check_mirror: bool
) -> None:
    """A copy of an object in parts has an ETag of its own. If it is not noted, nobody will know that it is ours."""
    here = service("one")
    source, mirror = here.bucket("source"), here.bucket("mirror")
    put_in_parts(source, "k", b"0123456789abcdef", 10)
    old = mirror.put("k", b"old").etag
    line = replace(line_for(Op.MODIFY, source, "k"), mirror_etag=old, was_etag=old, was_size=3)
    plan, settings = ListPlan([line]), ApplySettings(workers=1, check_mirror=check_mirror)
    faults = Faults(at={2 if check_mirror else 1: Fault.CRASH_AFTER})
    with pytest.raises(Crash):
        apply_plan(plan, Place(source), Place(faulty(mirror, faults)), tmp_path, run=1, settings=settings)
    assert mirror.contents() == {"k": b"0123456789abcdef"}
    if gone:
        source.delete("k")
    else:
        source.put("k", b"newer")
    result = apply_plan(plan, Place(source), Place(mirror), tmp_path, run=1, settings=settings)
    assert result.complete, result.failures
    assert mirror.contents() == {"k": b"0123456789abcdef"}


def test_a_line_that_was_never_begun_stays_moved(tmp_path: Path) -> None:
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    source.put("k", b"new")
    old = mirror.put("k", b"old").etag
    plan = ListPlan([replace(line_for(Op.MODIFY, source, "k"), mirror_etag=old)])
    source.delete("k")
    for _ in range(2):
        result = apply_plan(plan, Place(source), Place(mirror), tmp_path, run=1, settings=ONE)
        assert result.count(Outcome.MOVED) == 1


def test_what_was_put_while_versions_were_suspended_goes_to_the_trash(tmp_path: Path) -> None:
    """A service asks once whether there are versions, and lives for months."""
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror", versioned=True)
    kept = mirror.put("kept", b"has a version").etag
    mirror.set_versioning("Suspended")
    bare = mirror.put("bare", b"has none").etag

    class Asked(FaultyBucket):
        properties = replace(mirror.properties, versioned=True)

    lines = [
        PlanLine(Op.REMOVE, "bare", 8, bare, "2026-01-01T00:00:00.000Z", mirror_etag=bare),
        PlanLine(Op.REMOVE, "kept", 13, kept, "2026-01-01T00:00:00.000Z", mirror_etag=kept),
    ]
    ends = Place(source), Place(cast(Bucket, Asked(mirror, Faults())))
    assert apply_plan(ListPlan(lines), *ends, tmp_path, run=7, settings=ONE).complete
    assert mirror.contents() == {".cowsync/trash/7/bare": b"has none"}


def test_the_trash_never_takes_the_place_of_what_lies_in_it(tmp_path: Path) -> None:
    """Numbers of runs come again where a state was lost and begun anew."""
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    for number, body in enumerate((b"first", b"second", b"second", b"third")):
        etag = mirror.put("a", body).etag
        line = PlanLine(Op.REMOVE, "a", len(body), etag, "2026-01-01T00:00:00.000Z", mirror_etag=etag)
        folder = tmp_path / str(number)
        assert apply_plan(ListPlan([line]), Place(source), Place(mirror), folder, run=7, settings=ONE).complete
    kept = {f".cowsync/trash/{run}/a": body for run, body in ((7, b"first"), (8, b"second"), (9, b"third"))}
    assert mirror.contents() == kept
