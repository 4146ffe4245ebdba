"""A witness as a service: over HTTP, through crashes of its disk and of itself, and by file."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from integrity import wal
from integrity.cli import app
from integrity.errors import LedgerError, Malformed, Tampered
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.cosignature import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, cosignatures
from integrity.tlog.note import Signer
from integrity.tlog.tiles import TileNodes
from integrity.tlog.tree import Frontier, consistency_proof
from integrity.tlog.witness import REQUEST_BYTES_MAX, origin_hash, write_request
from integrity.witness_server import witness_app
from integrity.witness_state import WitnessFolder, add_log, create
from tests.integrity.tlog.logs import Tiles, leaves

ORIGIN = "example.com/ledger"
LOG = Signer(ORIGIN, bytes(range(32)))
NAME = "witness.example/w1"
LEAVES = leaves(400)
NOW = 1_700_000_000.9


class History:
    """A log as its writer has it: notes of any size, and requests for them."""

    def __init__(self, hashes: list[bytes]) -> None:
        self.hashes = hashes
        tiles = Tiles().grow(hashes)
        self.nodes = TileNodes(len(hashes), tiles.edge.root(), tiles.fetch)

    def root(self, size: int) -> bytes:
        frontier = Frontier()
        frontier.extend(self.hashes[:size])
        return frontier.root()

    def note(self, size: int, signer: Signer = LOG, origin: str = ORIGIN) -> bytes:
        return sign_checkpoint(Checkpoint(origin, size, self.root(size)), signer)

    def request(self, old: int, size: int) -> bytes:
        proof = consistency_proof(old, size, self.nodes) if old <= size else []
        return write_request(old, proof, self.note(size))


OURS = History(LEAVES)
FORKED = History([*LEAVES[:50], *leaves(350, "forked")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "witness"
    create(place, NAME, [COSIGNATURE_ED25519])
    assert add_log(place, LOG.vkey) == ORIGIN
    return place


@contextmanager
def opened(folder: Path) -> Iterator[WitnessFolder]:
    memory = WitnessFolder.open(folder)
    try:
        yield memory
    finally:
        memory.close()


def test_a_log_is_cosigned_over_http_and_shown_to_monitors(folder: Path) -> None:
    with opened(folder) as memory, TestClient(witness_app(memory, lambda: NOW)) as client:
        assert client.get("/healthz").status_code == 200
        place = f"/{origin_hash(ORIGIN)}/checkpoint"
        assert client.get(place).status_code == 404
        answer = client.post("/add-checkpoint", content=OURS.request(0, 7))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        note = OURS.note(7) + answer.content
        keys = [key.cosigner for key in memory.witness.keys]
        assert [(one.name, one.unix_s) for one in cosignatures(note, keys)] == [(NAME, int(NOW))]
        shown = client.get(place)
        assert (shown.status_code, shown.content) == (200, note)
        assert client.get(f"/{origin_hash('another')}/checkpoint").status_code == 404


def test_every_status_over_http(folder: Path) -> None:
    stranger = Signer(ORIGIN, bytes(32))
    unknown = History(LEAVES).note(7, origin="example.com/unknown")
    with opened(folder) as memory, TestClient(witness_app(memory, lambda: NOW)) as client:

        def status(body: bytes) -> int:
            return int(client.post("/add-checkpoint", content=body).status_code)

        assert status(OURS.request(0, 100)) == 200
        assert status(b"nonsense") == 400
        assert status(OURS.request(200, 100)) == 400
        assert status(write_request(0, [], unknown)) == 404
        assert status(write_request(0, [], OURS.note(7, signer=stranger))) == 403
        conflict = client.post("/add-checkpoint", content=OURS.request(90, 120))
        assert (conflict.status_code, conflict.text, conflict.headers["content-type"]) == (
            409,
            "100\n",
            "text/x.tlog.size",
        )
        assert status(FORKED.request(100, 120)) == 422
        assert status(bytes(REQUEST_BYTES_MAX + 1)) == 413
        assert client.get("/add-checkpoint").status_code == 405
        assert status(OURS.request(100, 120)) == 200


def test_a_witness_remembers_across_its_restart(folder: Path) -> None:
    with opened(folder) as memory:
        assert memory.add(OURS.request(0, 100), 1).status == 200
    with opened(folder) as memory:
        assert memory.add(FORKED.request(0, 120), 2).status == 409
        assert memory.add(FORKED.request(100, 120), 2).status == 422
        assert memory.add(OURS.request(100, 120), 2).status == 200


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace", "sync_folder"])
def test_a_crash_while_the_state_is_written_says_nothing_and_forgets_nothing(
    folder: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(folder) as memory:
        assert memory.add(OURS.request(0, 100), 1).status == 200

    def crash(*arguments: object, **named: object) -> None:
        raise OSError("crash")

    with opened(folder) as memory, monkeypatch.context() as patched:
        if step == "sync_folder":
            patched.setattr(wal, "sync_folder", crash)
        else:
            patched.setattr(os, step, crash)
        with pytest.raises(OSError, match="crash"):
            memory.add(OURS.request(100, 120), 2)
    with opened(folder) as memory:
        assert not list((folder / "state").glob("*.new"))
        answer = memory.add(OURS.request(100, 130), 3)
        # Either state may be there; the log learns which, and goes on from it.
        if answer.status == 409:
            assert step == "sync_folder"
            answer = memory.add(OURS.request(int(answer.body), 130), 3)
        assert answer.status == 200
        assert memory.add(FORKED.request(130, 140), 4).status == 422


def test_a_disk_that_fails_is_told_as_such(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as memory, TestClient(witness_app(memory, lambda: NOW)) as client:
        with monkeypatch.context() as patched:
            patched.setattr(wal, "sync_folder", lambda path: (_ for _ in ()).throw(OSError("no space")))
            assert client.post("/add-checkpoint", content=OURS.request(0, 7)).status_code == 503
        assert client.post("/add-checkpoint", content=OURS.request(0, 7)).status_code == 200


def test_one_process_at_a_time(folder: Path) -> None:
    with opened(folder), pytest.raises(LedgerError, match="is in use by another process"):
        WitnessFolder.open(folder)


def test_a_state_that_was_changed_stops_the_witness(folder: Path) -> None:
    with opened(folder) as memory:
        memory.add(OURS.request(0, 100), 1)
    (path,) = (folder / "state").iterdir()
    kept = path.read_bytes()
    for wrong in (b"", kept[:-20], kept.replace(b"\n100\n", b"\n50\n"), OURS.note(100)):
        path.write_bytes(wrong)
        with pytest.raises(LedgerError, match="what was cosigned last cannot be read"):
            WitnessFolder.open(folder)
    path.rename(path.with_name(origin_hash("another")))
    path.with_name(origin_hash("another")).write_bytes(kept)
    with pytest.raises(LedgerError, match="which is kept elsewhere"):
        WitnessFolder.open(folder)


def test_the_list_of_logs(folder: Path) -> None:
    second = Signer("key.example", bytes(32))
    add_log(folder, second.vkey, "example.com/other")
    (folder / "logs").write_text((folder / "logs").read_text() + "\n# a note\n")
    with opened(folder) as memory:
        assert {origin: [one.name for one in keys] for origin, keys in memory.witness.logs.items()} == {
            ORIGIN: [ORIGIN],
            "example.com/other": ["key.example"],
        }
    for wrong in ("nonsense", f"a b {LOG.vkey}"):
        (folder / "logs").write_text(f"{LOG.vkey}\n{wrong}\n")
        with pytest.raises(Malformed, match="line 2"):
            WitnessFolder.open(folder)


def test_a_folder_that_is_none(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(LedgerError, match="is no witness's folder"):
        WitnessFolder.open(tmp_path / "none")
    with pytest.raises(FileExistsError, match="keeps its key"):
        create(folder, NAME, [COSIGNATURE_ED25519])
    with pytest.raises(LedgerError, match="is no key's name"):
        create(tmp_path / "other", "two words", [COSIGNATURE_ED25519])


class Served:
    """`s3integrity witness serve` as a process of its own, which may be killed."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "integrity", "witness", "serve", str(folder), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "http://" in line:
                self.url = line.split()[-1]
                break
        else:
            raise AssertionError("the witness did not start")

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        status = self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def test_a_witness_that_is_killed_at_any_time_never_cosigns_two_histories(folder: Path) -> None:
    dice = random.Random(11)
    http = urllib3.PoolManager(retries=False, timeout=10)
    cosigned: list[int] = []
    served = Served(folder)
    # A kill may come before the first answer, on a busy machine each time: there is something to remember all the same.
    assert http.request("POST", f"{served.url}/add-checkpoint", body=OURS.request(0, 1)).status == 200
    served.end(signal.SIGKILL)
    cosigned.append(1)
    last = 1
    for _ in range(4):
        served = Served(folder)
        killer = threading.Timer(dice.uniform(0.02, 0.3), served.process.kill)
        killer.start()
        try:
            while True:
                size = min(400, last + dice.randrange(3))
                answer = http.request("POST", f"{served.url}/add-checkpoint", body=OURS.request(last, size))
                if answer.status == 409:
                    last = int(answer.data)
                    # It knows of everything that it said it cosigned.
                    assert last >= max(cosigned, default=0)
                    continue
                assert answer.status == 200
                cosigned.append(size)
                last = size
        except urllib3.exceptions.HTTPError:
            last = max(cosigned, default=0)
        finally:
            killer.join()
            served.end(signal.SIGKILL)
    assert cosigned == sorted(cosigned)
    with opened(folder) as memory:
        note = memory.latest(origin_hash(ORIGIN))
        assert note is not None
        there = open_checkpoint(note, ORIGIN, [LOG.verifier])
        assert there.size >= cosigned[-1]
        assert there.root == OURS.root(there.size)


def test_the_commands_make_serve_and_stop_a_witness(tmp_path: Path) -> None:
    place = tmp_path / "w"
    made = CliRunner().invoke(app, ["witness", "keygen", str(place), "--name", NAME, "--log", LOG.vkey, "--ml-dsa"])
    assert made.exit_code == 0, made.output
    vkeys = [line for line in made.stdout.splitlines() if line.startswith(NAME)]
    assert len(vkeys) == 2
    served = Served(place)
    answer = urllib3.request("POST", f"{served.url}/add-checkpoint", body=OURS.request(0, 7))
    assert answer.status == 200
    assert len(answer.data.splitlines()) == 2
    assert served.end(signal.SIGTERM) == 0


def test_a_checkpoint_that_comes_as_a_file(folder: Path, tmp_path: Path) -> None:
    request = tmp_path / "request"
    request.write_bytes(OURS.request(0, 7))
    signed = CliRunner().invoke(app, ["witness", "sign", str(folder), str(request)])
    assert signed.exit_code == 0, signed.output
    with opened(folder) as memory:
        note = OURS.note(7) + signed.stdout.encode()
        assert len(cosignatures(note, [key.cosigner for key in memory.witness.keys])) == 1
    again = CliRunner().invoke(app, ["witness", "sign", str(folder), str(request)])
    assert isinstance(again.exception, LedgerError)
    assert "--old 7" in str(again.exception)
    request.write_bytes(OURS.request(7, 60))
    assert CliRunner().invoke(app, ["witness", "sign", str(folder), str(request)]).exit_code == 0
    request.write_bytes(FORKED.request(60, 90))
    forked = CliRunner().invoke(app, ["witness", "sign", str(folder), str(request)])
    assert isinstance(forked.exception, Tampered)


def test_kinds_of_keys(tmp_path: Path) -> None:
    place = tmp_path / "pq"
    (key,) = create(place, NAME, [COSIGNATURE_ML_DSA_44])
    add_log(place, LOG.vkey)
    with opened(place) as memory:
        assert memory.add(OURS.request(0, 7), 5).status == 200
    with opened(place) as memory:
        assert memory.witness.keys[0].vkey == key.vkey
        assert memory.add(OURS.request(7, 9), 6).status == 200
