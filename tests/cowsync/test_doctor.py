"""`cowsync doctor`: what it finds, and that nothing of it stays: not after faults, not after a death at any request."""

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

from cowsync.apply.copy_line import Place
from cowsync.cli import app
from cowsync.conditions import PROBES
from cowsync.doctor import OTHERS_AGE_S, Diagnosis, Surroundings, diagnose
from cowsync.errors import Busy
from cowsync.mirror import Mirror
from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, BucketProperties, CopySource, ListedPage, Written
from s3core.bucket_wrapper import BucketWrapper
from s3core.console import run
from s3core.errors import Unavailable, Unsupported
from s3core.exit_codes import ExitCode
from s3core.findings import Finding
from s3core.memory import MemoryStore
from s3core.store import Buffer
from tests.cowsync.apply.faulty_bucket import Crash, Fault, Faults
from tests.cowsync.worlds import World

WRITES = ("put", "put_if_absent", "put_if_match", "copy", "multipart", "part", "complete", "delete")


def filled(tmp_path: Path, **settings: Any) -> World:
    world = World(tmp_path, **settings)
    for number in range(3):
        attributes = Attributes(metadata={"n": str(number)}, tags={"t": "1"})
        world.source.put(f"k/{number:03}", b"%d" % number, attributes=attributes)
    world.source.requests.clear()
    return world


def examined(world: World, mirror: Mirror | None = None, **options: Any) -> Diagnosis:
    store = MemoryStore(clock=world.clock, bucket=world.objects)
    around = options.pop("around", Surroundings())
    return diagnose(
        mirror or world.mirror(), store, around, clock=world.clock, random=random.Random(options.pop("seed", 7))
    )


def by_check(diagnosis: Diagnosis) -> dict[str, Finding]:
    assert len({finding.check for finding in diagnosis.findings}) == len(diagnosis.findings)
    return {finding.check: finding for finding in diagnosis.findings}


def left(world: World) -> list[str]:
    return [key for key in world.target.contents() if PROBES in key] + [
        info.key for info in MemoryStore(clock=world.clock, bucket=world.objects).list("probe/")
    ]


def behind(world: World, wrap: Callable[[Bucket], Bucket]) -> Mirror:
    """The mirror with another kind of bucket for its target."""
    mirror = world.mirror()
    return replace(mirror, target=Place(wrap(world.target), mirror.target.prefix))


@pytest.mark.parametrize("versioned", [False, True])
def test_all_is_well_and_nothing_is_left(tmp_path: Path, versioned: bool) -> None:
    world = filled(tmp_path, versioned=versioned)
    world.run()
    before = world.source.contents(), world.mirrored(), dict(world.source.requests)
    found = by_check(diagnosis := examined(world))
    assert {finding.verdict for finding in found.values()} == {"ok"}, found
    assert (diagnosis.exit_code, diagnosis.conditional_puts) == (ExitCode.OK, "")
    assert {"lock", "source listing", "mirror listing", "mirror conditions", "copy", "state", "state replace"} <= set(
        found
    )
    assert "restore points: 1," in found["state"].said
    assert diagnosis.figures.keys() >= {"source_list_page_median_ms", "mirror_list_page_median_ms"}
    assert left(world) == []
    assert before[:2] == (world.source.contents(), world.mirrored())
    assert not any(count for kind, count in world.source.requests.items() if kind in WRITES)


def test_what_a_death_at_any_request_leaves_is_named_and_removed_by_the_next(tmp_path: Path) -> None:
    number, named = 0, 0
    while True:
        number += 1
        world = filled(tmp_path / str(number))
        (tmp_path / str(number)).mkdir()
        world.faults.at = {number: Fault.CRASH_AFTER}
        try:
            examined(world)
            break
        except Crash:
            pass
        world.faults.at, world.faults.crashed = {}, False
        lost = left(world)
        diagnosis = examined(world, seed=8)
        assert left(world) == []
        assert diagnosis.exit_code is ExitCode.OK
        said = [finding for finding in diagnosis.findings if finding.check == "mirror left over"]
        assert bool(said) == any(PROBES in key for key in lost)
        named += len(said)
    assert number > 40
    assert named > 20


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.DENIED, Fault.LOST_REPLY])
def test_a_fault_at_any_request_ends_in_findings_and_leaves_nothing_unsaid(tmp_path: Path, fault: Fault) -> None:
    number = 0
    while True:
        number += 1
        (tmp_path / str(number)).mkdir()
        world = filled(tmp_path / str(number))
        world.faults.at = {number: fault}
        diagnosis = examined(world)
        if world.faults.calls < number:
            break
        unsaid = [] if any("clean up" in finding.check for finding in diagnosis.findings) else left(world)
        assert unsaid == [], number
        world.faults = Faults()
        examined(world)
        assert left(world) == []
    assert number > 40


def test_what_another_hosts_doctor_left_goes_when_it_is_old(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.target.put(f"{PROBES}elsewhere/1/read", b"x")
    assert "of another host" in by_check(examined(world))["mirror left over"].said
    assert left(world) == [f"{PROBES}elsewhere/1/read"]
    world.clock.sleep(OTHERS_AGE_S + 2)
    assert "1 objects of a doctor that was broken off" in by_check(examined(world))["mirror left over"].said
    assert left(world) == []


def test_a_run_that_goes_on_is_told_and_a_second_doctor_refused(tmp_path: Path) -> None:
    world = filled(tmp_path)
    examined(world)
    folder = world.mirror().folder
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    flock(fd, LOCK_EX)
    assert "cowsync status m" in by_check(examined(world))["lock"].said
    os.close(fd)
    fd = os.open(folder / "doctor", os.O_RDWR)
    flock(fd, LOCK_EX)
    with pytest.raises(Busy, match="another doctor"):
        examined(world)
    os.close(fd)


class Unconditional(BucketWrapper):
    """A server that does not know conditional PUTs, and says nothing."""

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        **other: Any,
    ) -> Written:
        return self.inner.put(key, data, attributes=attributes)


class Careless(BucketWrapper):
    """A server that does not look at the condition of a copy, and copies no attributes."""

    def copy(self, source: CopySource, key: str, *, attributes: Attributes | None = None, **other: Any) -> Written:
        return self.inner.copy(replace(source, if_match=""), key, attributes=attributes)


class Bare(BucketWrapper):
    def copy(self, source: CopySource, key: str, *, attributes: Attributes | None = None, **other: Any) -> Written:
        return self.inner.copy(source, key, attributes=Attributes())


class NoCopies(BucketWrapper):
    def copy(self, source: CopySource, key: str, *, attributes: Attributes | None = None, **other: Any) -> Written:
        raise Unsupported("CopyObject is not known here")


class Stale(BucketWrapper):
    def list_page(self, **options: Any) -> ListedPage:
        page = self.inner.list_page(**options)
        return replace(page, keys=[], sizes=[], etags=[], modified=[], classes=[])


class Folders(BucketWrapper):
    def list_page(self, **options: Any) -> ListedPage:
        page = self.inner.list_page(**options)
        return replace(page, keys=page.keys[::-1])


@pytest.mark.parametrize(
    ("wrap", "check", "verdict", "told"),
    [
        (Unconditional, "mirror conditions", "note", "replaced an object"),
        (Careless, "copy", "fault", "is ignored"),
        (Bare, "copy", "warning", "lost or changed: metadata, tags"),
        (Bare, "mirror copied", "warning", "lost or changed"),
        (NoCopies, "copy", "warning", "travel through this host"),
        (Stale, "mirror writes", "fault", "not listed"),
        (Folders, "mirror order", "warning", "not in the order"),
    ],
)
def test_servers_that_do_otherwise(
    tmp_path: Path, wrap: Callable[[Bucket], Bucket], check: str, verdict: str, told: str
) -> None:
    world = filled(tmp_path)
    finding = by_check(examined(world, behind(world, wrap)))[check]
    assert finding.verdict == verdict
    assert told in finding.said


def test_a_source_out_of_order_is_told_with_the_keys(tmp_path: Path) -> None:
    world = filled(tmp_path)
    mirror = world.mirror()
    finding = by_check(examined(world, replace(mirror, source=Place(Folders(world.source)))))["source listing"]
    assert (finding.verdict, "'k/001' comes after 'k/002'" in finding.said) == ("warning", True)


def test_two_endpoints_copy_through_this_host(tmp_path: Path) -> None:
    world = filled(tmp_path, one_endpoint=False)
    assert "travel through this host" in by_check(examined(world))["copy"].said
    same = Surroundings(addresses=("https://one", "https://one"))
    assert "one [endpoint] for both" in by_check(examined(world, around=same))["copy"].cure


def test_clocks_that_hold_every_plan(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.clock_skew_s = -400.0
    diagnosis = examined(world)
    assert "guard lets no plan pass" in by_check(diagnosis)["guard's clock"].said
    assert diagnosis.exit_code is ExitCode.FINDING


def test_an_end_that_cannot_be_reached_is_asked_nothing_more(tmp_path: Path) -> None:
    world = filled(tmp_path)
    away = Finding("connection", "fault", "nobody answers", "", ExitCode.UNAVAILABLE)
    found = by_check(diagnosis := examined(world, around=Surroundings(mirror=lambda: [away])))
    assert "mirror listing" not in found
    assert "state create once" in found
    assert "copy" not in found
    assert diagnosis.exit_code is ExitCode.UNAVAILABLE
    assert diagnosis.conditional_puts is None


class Away(BucketWrapper):
    @property
    def properties(self) -> BucketProperties:
        raise Unavailable("nobody answers")


@pytest.mark.parametrize("facts", [[], [Finding("bucket", "ok", "there")]])
def test_ends_that_go_away_while_they_are_asked_for_their_settings(tmp_path: Path, facts: list[Finding]) -> None:
    world = filled(tmp_path)
    mirror = replace(world.mirror(), source=Place(Away(world.source)), target=Place(Away(world.target)))
    around = Surroundings(source=lambda: facts, mirror=lambda: facts)
    diagnosis = examined(world, mirror, around=around)
    assert diagnosis.exit_code is ExitCode.UNAVAILABLE
    assert left(world) == []


def test_a_damaged_catalogue_is_a_finding(tmp_path: Path) -> None:
    world = filled(tmp_path)
    (world.mirror().folder / "catalogue.sqlite").write_bytes(b"not a database, and long enough for a page" * 100)
    found = by_check(diagnosis := examined(world))
    assert "move the file away" in found["catalogue"].cure
    assert found["mirror conditions"].verdict == "ok"
    assert diagnosis.exit_code is ExitCode.CORRUPT


def test_a_state_that_does_not_keep_to_conditions_is_a_fault(tmp_path: Path) -> None:
    class Ignoring(MemoryStore):
        def put_if_match(self, key: str, data: Any, etag: str, *, metadata: dict[str, str] | None = None) -> str:
            return self.put(key, data, metadata=metadata)

    world = filled(tmp_path)
    store = Ignoring(clock=world.clock, bucket=world.objects)
    found = diagnose(world.mirror(), store, Surroundings(), clock=world.clock, random=random.Random(1))
    assert by_check(found)["state replace"].verdict == "fault"
    assert left(world) == []


def configured(tmp_path: Path, **settings: str) -> list[str]:
    name = tmp_path.name.replace("_", "-")
    table = {
        "source": f"memory:{name}-s",
        "target": f"memory:{name}-t/copy",
        "state_dir": f"{tmp_path}/state",
    } | settings
    lines = "".join(f'{key} = "{value}"\n' for key, value in table.items())
    (tmp_path / "config.toml").write_text(f"[mirror.m]\n{lines}")
    return ["--config", str(tmp_path / "config.toml")]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    assert run(app, "cowsync", ["doctor", "m", *config]) == ExitCode.OK
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("ok         lock                  free")
    assert out.splitlines()[-1].split() == ["yes", "cowsync", "mirror", "m"]
    assert run(app, "cowsync", ["doctor", "m", "--json", *config]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["mirror"], told["ok"]) == ("m", True)
    assert {finding["check"] for finding in told["findings"]} >= {"copy", "mirror conditions"}
    assert list((tmp_path / "state" / "state").rglob("probe/*/*")) == []


def test_a_state_below_the_source_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path.name.replace("_", "-")
    config = configured(tmp_path, state=f"memory:{name}-s/state")
    assert run(app, "cowsync", ["doctor", "m", *config]) == ExitCode.FINDING
    out = capsys.readouterr().out
    assert "lies below the source" in out
    assert "mend first: state" in out


def test_a_store_that_dies_while_it_is_cleaned_up_is_told(tmp_path: Path) -> None:
    class Undeletable(BucketWrapper):
        def delete(self, key: str) -> str:
            if key.endswith("read/read"):
                raise Unavailable("try later", key=key)
            return self.inner.delete(key)

    world = filled(tmp_path)
    finding = by_check(examined(world, behind(world, Undeletable)))["mirror clean up"]
    assert (finding.verdict, "removes what is left" in finding.cure) == ("fault", True)
    assert len(left(world)) == 1
    by_check(examined(world))
    assert left(world) == []
