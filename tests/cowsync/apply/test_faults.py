"""Every kind of line, every fault, at every call: nothing is half there, and calling again finishes the job.

The calls of a run are counted once without a fault; then each one fails in each way.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.apply.copy_line import Place, trash_key
from cowsync.apply.journal import journal_files, read_journal
from cowsync.apply.journal_format import HEADER_BYTES, Begun
from cowsync.apply.run import ApplyResult, ApplySettings, apply_plan
from cowsync.apply.transfer import TransferSettings
from cowsync.changes import Op, Outcome, PlanLine
from s3core.bucket import Attributes
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.apply.faulty_bucket import Crash, Fault, Faults, ListPlan, faulty, line_for, put_in_parts, service

OLD = b"what was mirrored before"
RUN = 7
KEPT = Attributes({"content-type": "image/png", "cache-control": "no-store"}, {"taken-by": "Zoë"}, {"a": "1", "b": "ü"})


@dataclass
class World:
    """`new` is what the mirror holds under "k" once the line is done, None for nothing."""

    source: MemoryBucket
    mirror: MemoryBucket
    line: PlanLine
    new: bytes | None
    settings: TransferSettings

    def plan(self) -> ListPlan:
        return ListPlan([self.line])


def apply(world: World, directory: Path, faults: Faults, **more: bool) -> ApplyResult:
    settings = ApplySettings(workers=1, transfer=world.settings, failures_in_a_row=3, **more)
    return apply_plan(
        world.plan(),
        Place(faulty(world.source, faults), "s/"),
        Place(faulty(world.mirror, faults), "m/"),
        directory,
        run=RUN,
        settings=settings,
    )


def world(
    op: Op, data: bytes, *, same: bool, versioned: bool = False, part: int = 0, conditional: bool = False
) -> World:
    source = service("one").bucket("source")
    mirror = (source._service if same else service("two")).bucket("mirror", versioned=versioned)
    was = mirror.put("m/k", OLD).etag if op is Op.MODIFY else ""
    if part:
        put_in_parts(source, "s/k", data, part)
    else:
        source.put("s/k", data, attributes=KEPT)
    line = line_for(op, source, "k", "s/", mirror_etag=was)
    return World(source, mirror, line, data, TransferSettings(16, 64, conditional_puts=conditional))


def removal(data: bytes, *, versioned: bool) -> World:
    mirror = service("two").bucket("mirror", versioned=versioned)
    etag = mirror.put("m/k", data, attributes=KEPT).etag
    line = PlanLine(Op.REMOVE, "k", len(data), "whatever", "t", mirror_etag=etag, gone=2)
    return World(service("one").bucket("source"), mirror, line, None, TransferSettings(16, 64))


BIG = bytes(range(100))
CASES: dict[str, Callable[[], World]] = {
    "add by copy": lambda: world(Op.ADD, b"small", same=True),
    "add nothing by copy": lambda: world(Op.ADD, b"", same=True),
    "add by copy of a source in parts": lambda: world(Op.ADD, BIG[:30], same=True, part=12),
    "add by copied parts": lambda: world(Op.ADD, BIG, same=True, part=12),
    "add by copied parts of none": lambda: world(Op.ADD, BIG, same=True),
    "add streamed": lambda: world(Op.ADD, b"small", same=False),
    "add nothing streamed": lambda: world(Op.ADD, b"", same=False),
    "add streamed with a condition": lambda: world(Op.ADD, b"small", same=False, conditional=True),
    "add streamed in the source's parts": lambda: world(Op.ADD, BIG, same=False, part=24),
    "add streamed in our parts": lambda: world(Op.ADD, BIG, same=False),
    "add streamed with a version": lambda: world(Op.ADD, b"small", same=False, versioned=True),
    "modify by copy": lambda: world(Op.MODIFY, b"small", same=True),
    "modify by copied parts": lambda: world(Op.MODIFY, BIG, same=True, part=12),
    "modify streamed": lambda: world(Op.MODIFY, b"small", same=False),
    "modify streamed with a condition": lambda: world(Op.MODIFY, b"small", same=False, conditional=True),
    "modify streamed in the source's parts": lambda: world(Op.MODIFY, BIG, same=False, part=24, versioned=True),
    "modify streamed in our parts": lambda: world(Op.MODIFY, BIG, same=False),
    "remove to the trash": lambda: removal(b"small", versioned=False),
    "remove to the trash in parts": lambda: removal(BIG, versioned=False),
    "remove by a marker": lambda: removal(b"small", versioned=True),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def held(world: World) -> bytes | None:
    return world.mirror.contents().get("m/k")


def check_done(world: World) -> None:
    assert held(world) == world.new
    assert not world.mirror.uploads()
    if world.line.op is not Op.REMOVE:
        facts = world.mirror.head("m/k")
        wanted = world.source.head("s/k").attributes
        assert facts.attributes == wanted
        assert world.mirror.tags("m/k") == world.source.tags("s/k")
    elif not world.mirror.properties.versioned:
        trashed = world.mirror.head("m/" + trash_key(RUN, "k"))
        assert trashed.size == world.line.size
        assert trashed.attributes.metadata == KEPT.metadata
        assert world.mirror.tags(trashed.key) == KEPT.tags


@each
def test_without_a_fault(case: Callable[[], World], tmp_path: Path) -> None:
    world = case()
    result = apply(world, tmp_path, Faults())
    assert result.counts == {world.line.op: {Outcome.DONE: 1}}
    assert result.complete
    check_done(world)
    if "-" in world.line.etag and world.line.size > 40:
        assert world.mirror.head("m/k").etag == world.line.etag, "parts as the source's give the source's ETag"
    faults = Faults()
    again = apply(world, tmp_path, faults)
    assert again.complete
    assert again.done_before == 1
    assert not faults.trace, "what is done costs no request"


@each
def test_any_fault_at_any_call(case: Callable[[], World], tmp_path: Path) -> None:
    with TemporaryDirectory(dir=tmp_path) as folder:
        faults = Faults()
        apply(case(), Path(folder), faults)
    for call in range(1, faults.calls + 1):
        for fault in Fault:
            with TemporaryDirectory(dir=tmp_path) as folder:
                world = case()
                before = held(world)
                failing = Faults({call: fault})
                try:
                    first = apply(world, Path(folder), failing)
                    assert not first.count(Outcome.DRIFTED), (call, fault, first.failures)
                    assert not first.count(Outcome.MOVED), (call, fault, first.failures)
                except Crash:
                    assert fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
                assert held(world) in (before, world.new)
                second = apply(world, Path(folder), Faults())
                assert second.complete, (call, fault, failing.trace, second.failures)
                # An upload that the crash took before it was noted is the lifecycle rule's.
                unnoted = failing.crashed and failing.trace[-1] == "begin_upload" and fault is Fault.CRASH_AFTER
                lost = fault is Fault.LOST_REPLY and failing.trace[call - 1] == "begin_upload"
                assert len(world.mirror.uploads()) == (1 if unnoted or lost else 0), (call, fault, failing.trace)
                world.mirror._uploads.clear()
                check_done(world)


@each
@pytest.mark.parametrize("what", ["changed", "deleted"])
def test_a_source_that_moves_is_never_half_copied(case: Callable[[], World], what: str, tmp_path: Path) -> None:
    """At whichever call the source changes, the mirror gets what the plan says or nothing."""
    if case().line.op is Op.REMOVE:
        return
    with TemporaryDirectory(dir=tmp_path) as folder:
        faults = Faults()
        apply(case(), Path(folder), faults)
    for call in range(1, faults.calls + 1):
        with TemporaryDirectory(dir=tmp_path) as folder:
            world = case()
            before = held(world)

            def move(world: World = world) -> None:
                if what == "deleted":
                    world.source.delete("s/k")
                else:
                    world.source.put("s/k", b"x" * world.line.size + b"more")

            result = apply(world, Path(folder), Faults(meanwhile={call: move}))
            assert result.count(Outcome.DONE) + result.count(Outcome.MOVED) == 1, result.failures
            assert held(world) == (world.new if result.count(Outcome.DONE) else before)
            assert not world.mirror.uploads()


@each
def test_what_somebody_else_wrote_is_left_alone(case: Callable[[], World], tmp_path: Path) -> None:
    """Drift before the run; and drift while a large upload is on its way."""
    world = case()
    world.mirror.put("m/k", b"somebody else's")
    result = apply(world, tmp_path / "before", Faults())
    assert result.counts == {world.line.op: {Outcome.DRIFTED: 1}}
    assert result.failures[0].key == "k"
    assert "mirror" in result.failures[0].message
    assert held(world) == b"somebody else's"
    assert not world.mirror.uploads()
    with TemporaryDirectory(dir=tmp_path) as folder:
        faults = Faults()
        apply(case(), Path(folder), faults)
    if "complete_upload" in faults.trace and world.line.op is not Op.REMOVE:
        meanwhile = case()
        tamper = {faults.trace.index("complete_upload"): lambda: meanwhile.mirror.put("m/k", b"just now")}
        result = apply(meanwhile, tmp_path / "during", Faults(meanwhile=tamper))
        assert result.count(Outcome.DRIFTED) == 1
        assert held(meanwhile) == b"just now"
        assert not meanwhile.mirror.uploads()


@each
def test_an_object_that_the_mirror_lost_comes_back_or_stays_away(case: Callable[[], World], tmp_path: Path) -> None:
    world = case()
    world.mirror.delete("m/k")
    assert apply(world, tmp_path, Faults()).complete
    assert held(world) == world.new


def test_equal_bytes_are_not_copied_again(tmp_path: Path) -> None:
    made = world(Op.ADD, b"small", same=True)
    made.mirror.put("m/k", b"small", attributes=KEPT)
    result = apply(made, tmp_path / "1", Faults())
    assert result.complete
    assert result.bytes_copied == 0
    assert made.mirror.requests["copy"] == 0
    made.mirror.put("m/k", b"small", attributes=Attributes({}, {}, {"a": "1"}))
    assert apply(made, tmp_path / "2", Faults()).complete
    check_done(made)


def test_tags_that_an_upload_lost_are_given_again(tmp_path: Path) -> None:
    """A server that is given the tags after the completion, and a crash in between."""
    made = world(Op.ADD, BIG, same=False)
    faults = Faults()
    apply(made, tmp_path / "1", faults)
    calls = faults.trace.index("complete_upload") + 1
    made = world(Op.ADD, BIG, same=False)
    with pytest.raises(Crash):
        apply(made, tmp_path / "2", Faults({calls: Fault.CRASH_AFTER}))
    made.mirror.put("m/k", BIG, attributes=Attributes(KEPT.headers, KEPT.metadata))
    assert apply(made, tmp_path / "2", Faults()).complete
    check_done(made)


def test_without_the_check_no_head_is_asked(tmp_path: Path) -> None:
    made = world(Op.MODIFY, b"small", same=True)
    made.mirror.put("m/k", b"somebody else's")
    faults = Faults()
    assert apply(made, tmp_path, faults, check_mirror=False).complete
    assert faults.trace == ["copy"]


def test_keys_of_our_own_are_refused(tmp_path: Path) -> None:
    made = world(Op.ADD, b"small", same=True)
    made.source.put("s/.cowsync/trash/1/k", b"1")
    made.line = line_for(Op.ADD, made.source, ".cowsync/trash/1/k", "s/")
    result = apply(made, tmp_path, Faults())
    assert result.count(Outcome.FAILED) == 1
    assert "exclude" in result.failures[0].message


def test_a_name_too_long_for_the_trash() -> None:
    key = "ü" * 510
    assert trash_key(1, "a/b") == ".cowsync/trash/1/a/b"
    assert trash_key(1, key).startswith(".cowsync/trash/1/.long-")
    assert trash_key(1, key) != trash_key(1, key[:-1])
    assert len(("p" * 900 + trash_key(1, "k" * 100, "p" * 900)).encode()) <= 1024


def lose_power(directory: Path, digest: bytes) -> None:
    """What was not synced is gone: everything behind the last record that had to be durable."""
    for path in journal_files(directory):
        ends = [end for entry, end in read_journal(path, digest) if isinstance(entry, Begun)]
        os.truncate(path, ends[-1] if ends else HEADER_BYTES)


faults_at = st.dictionaries(st.integers(1, 25), st.sampled_from(Fault), max_size=3)
KEYS = st.sampled_from(["a", "a/b", "b c+%", "ü/\u2603", "/lead", "x//y", "z\x01"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_interrupted_anywhere_and_carried_on_equals_one_run(data: st.DataObject) -> None:
    """Random plans of all kinds; faults, crashes and power cuts, as many as come, until nothing is left."""
    same, versioned = data.draw(st.booleans()), data.draw(st.booleans())
    source = service("one").bucket("source")
    mirror = (source._service if same else service("two")).bucket("mirror", versioned=versioned)
    lines, wanted = [], {}
    for key in data.draw(st.sets(KEYS, min_size=1)):
        op = data.draw(st.sampled_from(Op))
        body = data.draw(st.binary(max_size=60))
        was = b""
        if op is not Op.ADD:
            was = mirror.put(key, OLD).etag.encode()
            wanted[key] = OLD
        if op in (Op.ADD, Op.MODIFY):
            if len(body) > 12 and data.draw(st.booleans()):
                put_in_parts(source, key, body, 12)
            else:
                source.put(key, body)
            lines.append(line_for(op, source, key, mirror_etag=was.decode()))
            wanted[key] = body
        else:
            lines.append(PlanLine(op, key, len(OLD), "e", "t", mirror_etag=was.decode()))
            if op is Op.REMOVE:
                wanted.pop(key)
    plan = ListPlan(lines)
    settings_ = ApplySettings(
        workers=data.draw(st.sampled_from([1, 3])),
        batch_lines=data.draw(st.sampled_from([1, 64])),
        transfer=TransferSettings(16, 64, conditional_puts=data.draw(st.booleans())),
    )
    # All is drawn before: what threads come to must not decide what is drawn next.
    attempts = data.draw(st.lists(st.tuples(faults_at, st.booleans()), min_size=5, max_size=5))
    with TemporaryDirectory() as folder:
        for at, power in [*attempts, ({}, False)]:
            faults = Faults(at)
            try:
                result = apply_plan(
                    plan,
                    Place(faulty(source, faults)),
                    Place(faulty(mirror, faults)),
                    Path(folder),
                    run=RUN,
                    settings=settings_,
                )
            except Crash:
                if power:
                    lose_power(Path(folder), bytes.fromhex(plan.digest))
                continue
            assert not result.count(Outcome.MOVED)
            assert not result.count(Outcome.DRIFTED), result.failures
        assert result.complete, result.failures
    left = {key: held for key, held in mirror.contents().items() if not key.startswith(".cowsync/")}
    assert left == wanted
