"""What the runs of a mirror mean for `bucketworks status`."""

from pathlib import Path

import pytest

from cowsync.catalogue import Catalogue, Phase
from cowsync.host_status import look_at, report
from s3core.exit_codes import ExitCode
from s3core.settings import Config, MirrorSettings, parse_config
from s3core.status import Item

FACTS = {"keys": 3, "bytes": 300, "lines": 1}


def mirror(folder: Path) -> Config:
    return parse_config(
        f'[mirror.m]\nsource = "s3://a/x"\ntarget = "s3://b/y"\nstate_dir = "{folder}/m"\nevery_s = "1h"\n'
    )


def seen(folder: Path, *runs: tuple[Phase, dict[str, object]], ago: float = 60.0) -> Item:
    import time

    settings: MirrorSettings = mirror(folder).mirror("m")
    catalogue = Catalogue(folder / "m" / "catalogue.sqlite")
    for number, (phase, changes) in enumerate(runs):
        began = time.time() - ago
        run = catalogue.begin(number, "", began)
        ended = {} if phase in (Phase.SCANNING, Phase.APPLYING) else {"ended": began + 1}
        catalogue.update(run, phase, **ended, **changes)
    return look_at("m", settings)


def applied(**counts: int) -> dict[str, object]:
    return {"facts": {**FACTS, "applied": {"counts": {"add": counts}, "failures": []}}}


def test_a_mirror_that_did_its_last_run_is_well(tmp_path: Path) -> None:
    told = seen(tmp_path, (Phase.DONE, applied(done=1)))
    assert told.health == "ok", told
    assert told.facts["stored_bytes"] == 300
    assert told.facts["endpoint"] == "b"
    assert "last run done" in told.summary


@pytest.mark.parametrize(
    ("runs", "ago", "health", "said", "code"),
    [
        ([(Phase.DONE, applied(done=1))], 4 * 3600.0, "critical", "one is due every", ExitCode.UNAVAILABLE),
        (
            [(Phase.DONE, applied(done=1)), (Phase.HELD, {"plan": "ab" * 32, "message": "40 % are gone"})],
            60.0,
            "critical",
            "the guard holds plan",
            ExitCode.REFUSED,
        ),
        (
            [(Phase.DONE, applied(done=1)), (Phase.FAILED, {"message": "no such bucket"})],
            60.0,
            "warning",
            "no such bucket",
            ExitCode.UNAVAILABLE,
        ),
        ([(Phase.SCANNING, {})], 60.0, "warning", "first run goes on", ExitCode.UNAVAILABLE),
        ([(Phase.FAILED, {"message": "denied"})], 60.0, "critical", "no complete run", ExitCode.UNAVAILABLE),
        (
            [(Phase.DONE, applied(done=1)), (Phase.PARTIAL, applied(failed=2))],
            60.0,
            "warning",
            "2 lines",
            ExitCode.UNAVAILABLE,
        ),
        ([(Phase.DONE, applied(drifted=3))], 60.0, "warning", "3 objects", ExitCode.UNAVAILABLE),
    ],
)
def test_runs_are_judged(
    tmp_path: Path,
    runs: list[tuple[Phase, dict[str, object]]],
    ago: float,
    health: str,
    said: str,
    code: ExitCode,
) -> None:
    told = seen(tmp_path, *runs, ago=ago)
    assert (told.health, told.code) == (health, code), told
    assert said in told.reason
    assert told.runbook == "runbook/mirror.md"


def test_a_mirror_that_runs_elsewhere_is_well_and_nothing_is_made_here(tmp_path: Path) -> None:
    (look,) = report(mirror(tmp_path))
    assert look.ask().summary == "has not run on this host"
    assert list(tmp_path.iterdir()) == []


def test_a_history_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "catalogue.sqlite").write_bytes(b"no database" * 100)
    (look,) = report(mirror(tmp_path))
    told = look.ask()
    assert (told.health, told.code) == ("critical", ExitCode.CORRUPT)
