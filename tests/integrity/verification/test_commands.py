"""`s3integrity verify|prove|check|fsck|pins` as people call them: verdict, exit code, pins, proofs."""

import json
import time
from pathlib import Path

import pytest

from integrity import verify_commands
from integrity.cli import app
from integrity.layout import checkpoint_key, kept_checkpoint_key, tile_key
from integrity.tlog.tiles import ENTRIES, tile_path
from s3core.build import build_store
from s3core.clock import SystemClock
from s3core.console import run
from s3core.errors import Unavailable
from s3core.exit_codes import ExitCode
from tests.integrity.verification.forge import ORIGIN, World

W = "pve1.1"


class Place:
    """A world in `memory:`, its configuration, and a clock that stands just behind its newest record."""

    def __init__(self, folder: Path) -> None:
        self.url = f"memory:{folder.name}-{id(self)}"
        self.world = World(store=build_store(self.url))
        self.world.fill(300)
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[ledger.l]\nurl = "{self.url}"\norigin = "{ORIGIN}"\nvkey = "{self.world.vkey}"\n'
            f'state_dir = "{folder}/state"\n'
        )

    def run(self, *words: str) -> ExitCode | int:
        return run(app, "s3integrity", [words[0], *words[1:], "--config", str(self.config)])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(tmp_path)
    monkeypatch.setattr(SystemClock, "time", lambda _: found.world.evidence().now)
    return found


@pytest.mark.parametrize(
    "way",
    [[], ["--quick"], ["--full"], ["--since", "2026-09-21T14:18Z"], ["--range", f"{W}:10-290"]],
    ids=lambda way: "".join(way[:1]) or "default",
)
def test_a_ledger_is_verified_and_pinned(place: Place, way: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("verify", "l", *way) == ExitCode.OK
    answer = capsys.readouterr().out.splitlines()
    assert answer[0].startswith("VERIFIED: ledger l, ")
    assert "ot read" in answer[-1] or "read and hashed: 610 records of 610" in answer[-1]
    assert place.run("pins", "show", "l", "--json") == ExitCode.OK
    pins = {one["log"]: one["size"] for one in json.loads(capsys.readouterr().out)}
    assert pins == {"ledger": place.world.ledger.published, W: 303, "pve1.2": 303}


def test_tampering_is_told_first_and_moves_no_pin(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("verify", "l") == ExitCode.OK
    kept = place.world.store.get(kept_checkpoint_key(W, 151)).data
    place.world.store.put(checkpoint_key(W), kept)
    capsys.readouterr()
    assert place.run("verify", "l", "--json") == ExitCode.TAMPERED
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "TAMPERED"
    found = answer["findings"][0]
    assert found["log"] == W
    assert found["first"] == 151
    assert "303 records" in found["known_good"]
    assert place.run("pins", "show", "l", "--json") == ExitCode.OK
    assert {one["log"]: one["size"] for one in json.loads(capsys.readouterr().out)}[W] == 303
    assert place.run("verify", "l") == ExitCode.TAMPERED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("TAMPERED: ledger l, quick: cut or rolled back")
    assert any("last good state: " in line for line in lines)


def test_what_cannot_be_reached_is_neither_verified_nor_tampered(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(place.world.store)
    get = kind.get

    def away(part: str) -> object:
        def answer(self: object, key: str) -> object:
            if part in key:
                raise Unavailable("no answer", key=key)
            return get(self, key)  # type: ignore[arg-type]  # the method of a class that is patched

        return answer

    monkeypatch.setattr(kind, "get", away("log/ledger/"))
    assert place.run("verify", "l", "--full") == ExitCode.UNAVAILABLE
    assert capsys.readouterr().out.startswith("INCOMPLETE")
    monkeypatch.setattr(kind, "get", away(f"log/{W}/tile/entries"))
    for way in ("--full", "--quick"):
        assert place.run("verify", "l", way) == ExitCode.PARTIAL
        assert capsys.readouterr().out.startswith("INCOMPLETE")
    assert place.run("pins", "show", "l", "--json") == ExitCode.OK
    assert W not in [one["log"] for one in json.loads(capsys.readouterr().out)]


def test_a_record_is_proved_and_the_proof_checked_without_a_ledger(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = tmp_path / "p.tlog-proof"
    assert place.run("prove", "l", W, "77", "--out", str(proof), "--json") == ExitCode.OK
    answer = json.loads(capsys.readouterr().out)
    record = Path(answer["record"])
    assert record.read_bytes() == place.world.logs[W].records[77]
    words = ["check", str(proof), str(record), "--vkey", answer["vkey"]]
    assert run(app, "s3integrity", words) == ExitCode.OK
    assert capsys.readouterr().out.startswith(f"VERIFIED: record 77 of {ORIGIN}/{W}")
    assert run(app, "s3integrity", ["check", str(proof), "--vkey", answer["vkey"], "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["record"]["n"] == 77
    record.write_bytes(record.read_bytes().replace(b"backup", b"nobody"))
    assert run(app, "s3integrity", words) == ExitCode.TAMPERED
    assert run(app, "s3integrity", [*words[:-1], place.world.vkey]) == ExitCode.TAMPERED
    assert run(app, "s3integrity", words[:3]) == ExitCode.USAGE
    assert place.run("prove", "l", W, "9999", "--out", str(proof)) == ExitCode.USAGE
    assert place.run("prove", "l", "nobody", "1", "--out", str(proof)) == ExitCode.USAGE


def test_a_proof_of_a_record_in_the_name_of_another_is_refused(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = place.world.logs[W]
    log.writer = "pve1.2"
    number = log.add(key="x")
    log.writer = W
    log.publish()
    proof = tmp_path / "p.tlog-proof"
    assert place.run("prove", "l", W, str(number), "--out", str(proof), "--json") == ExitCode.OK
    vkey = json.loads(capsys.readouterr().out)["vkey"]
    assert run(app, "s3integrity", ["check", str(proof), "--vkey", vkey]) == ExitCode.TAMPERED
    assert "calls itself pve1.2" in capsys.readouterr().err


def test_a_name_in_the_bucket_cannot_write_a_line_of_the_answer(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.world.store.put("log/x\nVERIFIED: ledger l, full/checkpoint", b"x")
    assert place.run("verify", "l", "--full") == ExitCode.FINDING
    told = capsys.readouterr().out
    assert "x\\nVERIFIED" in told
    assert not [line for line in told.splitlines() if line.startswith("VERIFIED")]


def test_fsck_tells_what_is_missing_and_what_does_not_belong(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("fsck", "l") == ExitCode.OK
    assert capsys.readouterr().out.startswith("SOUND")
    place.world.store.put("log/pve1.2/stray", b"x")
    place.world.store.put(tile_key(W, tile_path(0, 9)), b"x")
    assert place.run("fsck", "l") == ExitCode.FINDING
    told = capsys.readouterr().out
    assert "unknown: log/pve1.2/stray" in told
    assert "beyond: log/pve1.1/tile/0/009" in told
    place.world.store.delete(tile_key(W, tile_path(ENTRIES, 0)))
    assert place.run("fsck", "l", "--json") == ExitCode.TAMPERED
    logs = {one["log"]: one for one in json.loads(capsys.readouterr().out)["logs"]}
    assert logs[W]["missing"] == [tile_key(W, tile_path(ENTRIES, 0))]
    assert logs["ledger"]["missing"] == []


def test_pins_are_forgotten_only_when_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("verify", "l") == ExitCode.OK
    assert place.run("pins", "forget", "l", W) == ExitCode.OK
    assert place.run("pins", "forget", "l", "--json") == ExitCode.OK
    told = capsys.readouterr().out
    assert f"forgotten: {W}" in told
    assert json.loads(told[told.index("{") :]) == {"forgotten": ["ledger", "pve1.2"]}


def test_what_is_wrong_with_the_words_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["verify", "l", "--quick", "--full"],
        ["verify", "l", "--since", "yesterday"],
        ["verify", "l", "--range", "x"],
        ["verify", "l", "--range", f"{W}:0-9999"],
        ["verify", "l", "--range", "nobody:0-1"],
    ):
        assert place.run(*words) == ExitCode.USAGE, words
        assert "error" in capsys.readouterr().err
    assert place.run("verify", "nope") == ExitCode.CONFIGURATION
    place.config.write_text(f'[ledger.l]\nurl = "{place.url}"\n')
    assert place.run("verify", "l") == ExitCode.CONFIGURATION
    assert "vkey is not set" in capsys.readouterr().err


def test_progress_is_told_from_the_first_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter((0.0, 0.5, 1.5, 2.0, 9.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with verify_commands._rate(False) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err.splitlines() == ["2,000 records, 1,333 a second", "4,000 records, 444 a second"]
