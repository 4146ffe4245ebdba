"""`s3integrity log`, `tail` and `report` as users have them: what is printed, and the exit codes."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import rfc8785

from integrity.cli import app
from integrity.keys import LedgerKey, SlotKeys
from integrity.layout import tile_key
from integrity.tlog.note import Signer
from integrity.tlog.tiles import ENTRIES, tile_path
from integrity.wal import Wal
from s3core.clock import SystemClock
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.file import FileStore
from tests.integrity.verification.forge import ORIGIN, World


class Place:
    """A ledger in a directory with a configuration, and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.world = World(("pve1.1", "nas.1"))
        log = self.world.logs["pve1.1"]
        log.add(phase="intent", bucket="photos", key="lost.jpg", who={"name": "alice", "host": "pve1"})
        log.add(phase="done", bucket="photos", key="a\x1b[31m.jpg", size=5, who={"name": "alice", "host": "pve1"})
        self.world.fill(300)
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[ledger.archive]\nurl = "file://{folder}/store"\norigin = "{ORIGIN}"\nvkey = "{self.world.vkey}"\n'
            f'state_dir = "{folder}/state"\nsilence_s = 1000000000\n'
        )
        self.store = FileStore(str(folder / "store"))
        for key, data in self.world.kept().items():
            self.store.put(key, data)

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        with_config = [*arguments] if "--vkey" in arguments else [*arguments, "--config", str(self.config)]
        assert run(app, "s3integrity", with_config) == code, self.capsys.readouterr()
        said = self.capsys.readouterr()
        return said.out, said.err

    def sealing(self) -> None:
        """The ledger key lies here."""
        seed = self.world.ledger.seeds[0]
        LedgerKey.create(self.folder / "state" / "ledger.key", ORIGIN, random=lambda _: seed)
        assert Signer(ORIGIN, seed).vkey == self.world.vkey

    def damage(self) -> None:
        key = tile_key("pve1.1", tile_path(ENTRIES, 0))
        self.store.put(key, self.store.get(key).data.replace(b"lost.jpg", b"LOST.JPG"))


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


def test_log_shows_verified_records_and_up_to_where(place: Place) -> None:
    out, said = place("log", "archive", "--limit", "0")
    lines = out.splitlines()
    assert len(lines) == 602
    assert "alice@pve1" in lines[0] or "alice@pve1" in lines[1]
    assert "\x1b" not in out
    assert "a\\x1b[31m.jpg  (5 B)" in out
    assert "verified up to example.com/ledger/pve1.1 at" in said
    assert "no total order" in said


def test_log_chooses(place: Place) -> None:
    out, said = place("log", "archive", "--key", "lost*")
    assert len(out.splitlines()) == 1
    assert "begun" in out
    out, said = place("log", "archive", "--limit", "3", "--writer", "nas.1")
    assert len(out.splitlines()) == 3
    assert "there may be more" in said
    assert place("log", "archive", "--since", "2027-01-01")[0] == ""
    assert "knows no writer nas.9" in place("log", "archive", "--writer", "nas.9", code=7)[1]
    assert "not known" in place("log", "archive", "--op", "putt", code=2)[1]


def test_json_lines_are_the_records(place: Place) -> None:
    out, _ = place("log", "archive", "--json", "--all", "--limit", "0", "--writer", "pve1.1")
    assert [line.encode() for line in out.splitlines()] == place.world.logs["pve1.1"].records


def test_tampering_ends_with_12_and_what_is_whole_is_shown(place: Place) -> None:
    place.damage()
    out, said = place("log", "archive", "--limit", "0", code=12)
    assert "LOST" not in out
    assert "nas.1/299" in out
    assert "tampered: log/pve1.1/tile/entries/000" in said


def test_no_ledger_is_not_found_and_no_key_is_configuration(place: Place) -> None:
    for one in list(place.store.list()):
        place.store.delete(one.key)
    place("log", "archive", code=4)
    place.config.write_text(f'[ledger.archive]\nurl = "file://{place.folder}/store"\n')
    assert "vkey is not set" in place("log", "archive", code=3)[1]


def test_tail_shows_the_newest(place: Place) -> None:
    out, _ = place("tail", "archive", "-n", "5")
    assert len(out.splitlines()) == 5


def test_tail_follows_and_marks_what_nobody_signed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    log = place.world.logs["pve1.1"]
    folder = place.folder / "state/slots/pve1.1"
    wal = Wal.open(folder / "wal", log.published)
    log.add(key="fresh")
    wal.append([log.records[-1]])
    wal.close()
    rounds = iter(range(3))

    def sleep(clock: SystemClock, seconds: float) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt
        log.add(key="later")
        log.publish()
        for key, data in place.world.kept().items():
            place.store.put(key, data)

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    out, _ = place("tail", "archive", "-f", "-n", "0", code=int(ExitCode.INTERRUPTED))
    lines = out.splitlines()
    assert lines[0].startswith("~ ")
    assert lines[0].endswith("fresh")
    assert "fresh" not in "".join(lines[1:]), "what was shown is not shown again"
    assert [line.split()[-1] for line in lines[1:] if line.startswith("  ")] == ["later"] * 3
    assert [line for line in lines if line.startswith("= pve1.1: records up to #")]


def test_tail_stops_at_tampering(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.world.logs["pve1.1"].cut(100)
    place.world.logs["pve1.1"].put(everything=True)

    def sleep(clock: SystemClock, seconds: float) -> None:
        for key, data in place.world.kept().items():
            place.store.put(key, data)

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    assert "cut or rolled back" in place("tail", "archive", "-f", code=12)[1]


def test_a_report_is_made_signed_and_checked(place: Place, tmp_path: Path) -> None:
    place.sealing()
    out, _ = place("report", "archive", "--out", str(tmp_path / "reports"))
    assert out.startswith("VERIFIED: ")
    files = {path.suffix: path for path in (tmp_path / "reports").iterdir()}
    assert set(files) == {".json", ".html", ".note"}
    document = json.loads(files[".json"].read_bytes())
    assert files[".json"].read_bytes() == rfc8785.dumps(document)
    assert [row["key"] for row in document["unfinished"]] == ["lost.jpg"]
    assert document["totals"] == {"done": 1, "not-done": 0, "unknown": 0, "observed": 600, "unfinished": 1}
    assert hashlib.sha256(files[".json"].read_bytes()).hexdigest() in files[".html"].read_text()
    out, _ = place("report", "check", str(files[".note"]), "--vkey", place.world.vkey)
    assert "as it was signed" in out
    assert "(json, html)" in out
    assert "VERIFIED" in place("report", "check", str(files[".note"]), "--ledger", "archive")[0]
    other = Signer(ORIGIN, b"x" * 32).vkey
    place("report", "check", str(files[".note"]), "--vkey", other, code=12)
    files[".html"].write_bytes(files[".html"].read_bytes() + b" ")
    assert (
        "not the file that was signed"
        in place("report", "check", str(files[".note"]), "--vkey", place.world.vkey, code=12)[1]
    )


def test_a_writer_signs_where_the_ledger_key_is_not(place: Place, tmp_path: Path) -> None:
    seed = place.world.logs["pve1.1"].seeds[0]
    key = place.folder / "state/slots/pve1.1/key.json"
    SlotKeys.create(key, f"{ORIGIN}/pve1.1", now=0.0, random=lambda _: seed)
    _, said = place("report", "archive", "--out", str(tmp_path / "r"))
    assert "signed by example.com/ledger/pve1.1" in said
    note = str(next((tmp_path / "r").glob("*.note")))
    assert "signed by example.com/ledger/pve1.1" in place("report", "check", note, "--ledger", "archive")[0]
    place("report", "check", note, "--vkey", Signer(f"{ORIGIN}/pve1.1", seed).vkey)
    place("report", "check", note, "--vkey", place.world.vkey, code=12)
    stranger = tmp_path / "stranger.note"
    stranger.write_bytes(Path(note).read_bytes().replace(b"/pve1.1 ", b"/nas.1 "))
    place("report", "check", str(stranger), "--ledger", "archive", code=12)


def test_another_ledger_key_signs_nothing(place: Place) -> None:
    LedgerKey.create(place.folder / "state" / "ledger.key", ORIGIN, random=lambda _: b"z" * 32)
    assert "is not the one that `vkey`" in place("report", "archive", code=int(ExitCode.REFUSED))[1]


def test_a_report_of_tampering_says_so_in_every_form(place: Place, tmp_path: Path) -> None:
    place.damage()
    out, said = place("report", "archive", "--out", str(tmp_path), code=12)
    assert out.startswith("TAMPERED: ")
    assert "not signed: this host has neither" in said
    assert "Tampered" in next(tmp_path.glob("*.html")).read_text()
    assert not list(tmp_path.glob("*.note"))


def test_findings_are_taken_in(place: Place, tmp_path: Path) -> None:
    finding = {"code": "GHOST", "key": "a", "said": "has no trace", "until": "2026-11-22T06:00:00.000000Z"}
    answer = tmp_path / "found.json"
    answer.write_text(json.dumps({"bucket": "photos", "findings": [finding]}))
    out, _ = place("report", "archive", "--out", str(tmp_path), "--reconcile", str(answer), "--json", code=1)
    made = json.loads(out)
    assert made["verdict"]["word"] == "ANOMALIES"
    document = json.loads(Path(made["files"][0]).read_bytes())
    assert document["findings"][0]["code"] == "GHOST"
    assert document["reconciled"]["sha256"] == hashlib.sha256(answer.read_bytes()).hexdigest()
    answer.write_text("{")
    place("report", "archive", "--out", str(tmp_path), "--reconcile", str(answer), code=1)


def test_a_report_is_published_beside_the_ledger_and_never_unsigned(place: Place, tmp_path: Path) -> None:
    assert "nothing is published unsigned" in place("report", "archive", "--publish", code=int(ExitCode.REFUSED))[1]
    place.sealing()
    made = json.loads(place("report", "archive", "--publish", "--json", "--out", str(tmp_path / "r"))[0])
    for key, path in zip(made["published"], made["files"], strict=True):
        assert place.store.get(key).data == Path(path).read_bytes()


def test_a_report_does_not_overwrite(place: Place, tmp_path: Path) -> None:
    from integrity.reports.making import write_files

    write_files({"json": b"a"}, tmp_path, "N")
    with pytest.raises(FileExistsError):
        write_files({"json": b"b"}, tmp_path, "N")
    assert (tmp_path / "N.json").read_bytes() == b"a"


def test_report_alone_is_help(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    assert run(app, "s3integrity", ["report", "--help"]) == 0
    assert "check" in place.capsys.readouterr().out
    assert not os.path.exists("check.json")
