"""When a mirror's conditions on PUT are probed, what is remembered, and what a run makes of it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from cowsync.apply.copy_line import Place
from cowsync.changes import Op, Outcome
from cowsync.conditions import FIRST_LINES_MIN, PROBES, SEEN_FOR_S, conditional_puts_hold, probe_id, useful, worth_it
from cowsync.mirror import Mirror
from cowsync.work import apply
from tests.cowsync.apply.faulty_bucket import Fault
from tests.cowsync.test_doctor import Away, Unconditional, examined
from tests.cowsync.worlds import World


def streaming(tmp_path: Path, **settings: Any) -> World:
    world = World(tmp_path, one_endpoint=False, **settings)
    for number in range(3):
        world.source.put(f"k{number}", b"one")
    world.run()
    assert world.target.requests["put_if_absent"] == 0, "the first time the mirror is looked at"
    return world


def hold(world: World, mirror: Mirror | None = None) -> bool:
    return conditional_puts_hold(mirror or world.mirror(), world.clock.time(), random.Random(1))


def asked(world: World) -> int:
    """Conditional PUTs so far."""
    return world.target.requests["put_if_absent"] + world.target.requests["put_if_match"]


def test_a_run_asks_once_and_then_spares_the_look(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    world.source.put("k3", b"new")
    assert world.run().result.counts == {Op.ADD: {Outcome.DONE: 1}}
    assert [key for key in world.target.contents() if PROBES in key] == []
    world.source.put("k3", b"two, longer")
    world.source.put("k4", b"new")
    before, looks = asked(world), world.target.requests["head"]
    assert world.run().result.complete
    assert asked(world) - before == 2
    assert world.target.requests["head"] == looks


def test_what_is_on_the_mirror_already_is_found_and_not_sent(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    world.target.put("k5", b"foreign")
    world.target.put("k6", b"same")
    world.source.put("k5", b"ours")
    world.source.put("k6", b"same")
    counts = world.run().result.counts
    assert counts == {Op.ADD: {Outcome.DRIFTED: 1, Outcome.DONE: 1}}
    assert world.mirrored()["k5"] == b"foreign"


@pytest.mark.parametrize("there", ["nothing", "its own", "one like ours", "a foreign one"])
def test_the_first_run_of_an_empty_mirror_looks_at_nothing(tmp_path: Path, there: str) -> None:
    world = World(tmp_path, one_endpoint=False)
    for number in range(FIRST_LINES_MIN):
        world.source.put(f"k{number:03}", b"one")
    match there:
        case "its own":
            world.target.put(".cowsync/trash/1/k7", b"one")
        case "one like ours":
            world.target.put("k007", b"one")
        case "a foreign one":
            world.target.put("zzz", b"one")
    result = world.run().result
    assert result.complete
    empty = there in ("nothing", "its own")
    assert (asked(world) >= FIRST_LINES_MIN) == empty
    assert (world.target.requests["head"] < FIRST_LINES_MIN) == empty
    assert result.bytes_moved == len(b"one") * (FIRST_LINES_MIN - (there == "one like ours"))


def test_somebody_elses_object_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run has seen nothing there; the condition of its PUT is what keeps the object."""
    world = World(tmp_path, one_endpoint=False)
    for number in range(FIRST_LINES_MIN):
        world.source.put(f"k{number:03}", b"one")

    def then_it_comes(mirror: Mirror, lines: int, *, first: bool) -> bool:
        answer = worth_it(mirror, lines, first=first)
        world.target.put("k050", b"foreign")
        return answer

    monkeypatch.setattr("cowsync.work.worth_it", then_it_comes)
    assert world.run().result.counts == {Op.ADD: {Outcome.DONE: FIRST_LINES_MIN - 1, Outcome.DRIFTED: 1}}
    assert asked(world) >= FIRST_LINES_MIN
    assert world.mirrored()["k050"] == b"foreign"


def test_it_is_asked_again_after_a_day_or_elsewhere(tmp_path: Path) -> None:
    world = streaming(tmp_path)

    def requests() -> int:
        before = asked(world)
        assert hold(world)
        return asked(world) - before

    assert requests() > 0
    assert requests() == 0
    world.clock.sleep(SEEN_FOR_S - 1)
    assert requests() == 0
    world.clock.sleep(2)
    assert requests() > 0
    before = asked(world)
    assert hold(world, replace(world.mirror(), target_identity="https://elsewhere"))
    assert asked(world) > before
    world.target.set_versioning("Enabled")
    assert requests() > 0
    world.clock.now -= 10.0
    assert requests() > 0, "a clock that was set back"


def test_a_server_that_ignores_them_is_found_out_and_looked_at(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    mirror = replace(world.mirror(), target=Place(Unconditional(world.target)))
    assert not hold(world, mirror)
    before = asked(world)
    assert not hold(world, mirror)
    assert asked(world) == before, "remembered"
    world.target.put("k3", b"foreign")
    world.source.put("k3", b"ours")
    planned = world.plan()
    applied = apply(mirror, planned.plan.digest, approve=planned.plan.digest, now=world.clock.time)
    assert applied.result.counts == {Op.ADD: {Outcome.DRIFTED: 1}}
    assert world.mirrored()["k3"] == b"foreign"


def test_a_store_that_does_not_answer_is_not_remembered(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    number, unknown = 0, 0
    while True:
        number += 1
        world.faults.calls, world.faults.at = 0, {number: Fault.LOST_REPLY}
        known = hold(world)
        assert known == (world.mirror().catalogue().seen("conditional_puts") is not None)
        if world.faults.calls < number:
            break
        unknown += not known
        world.clock.sleep(SEEN_FOR_S)
        (world.mirror().folder / "catalogue.sqlite").unlink()
    assert unknown > 5
    assert [key for key in world.target.contents() if PROBES in key] == [], "the next one removes what is left"


@pytest.mark.parametrize(("setting", "holds"), [("yes", True), ("no", False)])
def test_the_setting_wins(tmp_path: Path, setting: Literal["yes", "no"], holds: bool) -> None:
    world = streaming(tmp_path, conditional_puts=setting)
    assert hold(world) is holds
    assert asked(world) == 0
    mirror = replace(world.mirror(), target=Place(Unconditional(world.target)))
    (finding,) = (one for one in examined(world, mirror).findings if one.check == "mirror conditions")
    assert finding.verdict == ("fault" if holds else "note")


def test_the_doctor_asks_anew_and_is_believed(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    mirror = replace(world.mirror(), target=Place(Unconditional(world.target)))
    assert hold(world)
    examined(world, mirror)
    assert not hold(world)
    examined(world)
    assert hold(world)


def test_where_the_server_copies_or_nobody_looks_nothing_is_asked(tmp_path: Path) -> None:
    worlds: list[dict[str, Any]] = [{"one_endpoint": True}, {"one_endpoint": False, "check_target": False}]
    for number, options in enumerate(worlds):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, **options)
        world.source.put("k", b"1")
        world.run()
        world.source.put("k", b"2")
        assert world.run().result.complete
        assert asked(world) == 0


def test_an_end_that_is_away_is_told_by_lines(tmp_path: Path) -> None:
    world = streaming(tmp_path)
    assert useful(world.mirror())
    assert not useful(replace(world.mirror(), target=Place(Away(world.target))))


def test_the_name_of_a_hosts_probes_stays(tmp_path: Path) -> None:
    first = probe_id(tmp_path, random.Random(1))
    assert len(first) == 16
    assert probe_id(tmp_path, random.Random(2)) == first
    assert [path.name for path in tmp_path.iterdir()] == ["probe-id"]
