"""A ledger's checkpoint and its witnesses: cosigned, unreachable, wrong, and what they prove when they say no."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from integrity.cli import app
from integrity.cosigning import (
    Cosigned,
    Head,
    Network,
    WitnessAddress,
    cosign,
    keep_cosigned,
    ledger_nodes,
    newest_head,
    parse_witnesses,
)
from integrity.errors import LedgerError, Malformed, Tampered
from integrity.layout import LEDGER_WRITER, checkpoint_key, tile_key
from integrity.place import Ledger, open_ledger
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.cosignature import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, cosignatures
from integrity.tlog.note import split_note
from integrity.witness_server import witness_app
from integrity.witness_state import WitnessFolder, add_log, create
from s3core.clock import SystemClock
from s3core.errors import Unavailable
from s3core.exit_codes import ExitCode
from s3core.memory import MemoryStore
from s3core.settings import load_config
from s3core.store import ObjectStore
from tests.integrity.test_witness import FORKED, LOG, ORIGIN, OURS, History, Served
from tests.integrity.test_writer import Unconditional
from tests.integrity.tlog.logs import Tiles

NOW = 1_700_000_000.0
VERIFIERS = [LOG.verifier]


@dataclass
class Wires:
    """`Http` into apps of the same process; `asked` are the requests, `broken` addresses that do not answer."""

    clients: dict[str, TestClient] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def post(self, url: str, body: bytes, content_type: str = "") -> tuple[int, bytes]:
        return self._asked("POST", url, body)

    def get(self, url: str) -> tuple[int, bytes]:
        return self._asked("GET", url, None)

    def _asked(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        host = url.split("/")[2]
        path = url.partition(host)[2]
        self.asked.append(f"{method} {url}")
        if host in self.broken:
            raise Unavailable(f"{host} does not answer")
        if url in self.answers:
            return self.answers[url]
        answer = self.clients[host].request(method, path, content=body)
        return answer.status_code, answer.content


@dataclass
class World:
    wires: Wires
    witnesses: list[WitnessAddress]
    known: dict[str, int] = field(default_factory=dict)

    def ask(self, size: int, history: History = OURS) -> Cosigned:
        note = history.note(size)
        return cosign(note, history.nodes, self.witnesses, self.wires, verifiers=VERIFIERS, known=self.known)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    wires = Wires()
    witnesses: list[WitnessAddress] = []
    with ExitStack() as stack:
        for number in (1, 2):
            host = f"w{number}.example"
            keys = create(tmp_path / host, host, [COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44][:number])
            add_log(tmp_path / host, LOG.vkey)
            memory = WitnessFolder.open(tmp_path / host)
            stack.callback(memory.close)
            wires.clients[host] = TestClient(witness_app(memory, lambda: NOW))
            witnesses += parse_witnesses([f"http://{host}/ {' '.join(key.vkey for key in keys)}"])
        yield World(wires, witnesses)


def test_all_witnesses_cosign_and_the_next_time_cost_one_request_each(world: World) -> None:
    found = world.ask(100)
    assert [(one.witness.name, one.verdict, one.unix_s) for one in found.told] == [
        ("w1.example", "cosigned", int(NOW)),
        ("w2.example", "cosigned", int(NOW)),
    ]
    keys = [key for one in world.witnesses for key in one.cosigners]
    assert len(cosignatures(found.note, keys)) == 3
    assert open_checkpoint(found.note, ORIGIN, VERIFIERS) == Checkpoint(ORIGIN, 100, OURS.root(100))
    assert (found.changed, found.evidence) == (True, ())
    world.wires.asked.clear()
    assert [one.verdict for one in world.ask(120).told] == ["cosigned"] * 2
    assert len(world.wires.asked) == 2
    # Without a memory, the answer 409 tells where to prove from.
    world.known.clear()
    assert [one.verdict for one in world.ask(150).told] == ["cosigned"] * 2
    assert len(world.wires.asked) == 2 + 4


def test_cosigning_again_replaces_a_cosignature_instead_of_adding_one(world: World) -> None:
    first = world.ask(100)
    again = cosign(first.note, OURS.nodes, world.witnesses, world.wires, verifiers=VERIFIERS)
    assert len(split_note(again.note)[1]) == len(split_note(first.note)[1]) == 4


def test_a_witness_that_does_not_answer_is_told_and_the_others_count(world: World) -> None:
    world.wires.broken.add("w1.example")
    found = world.ask(100)
    assert [one.verdict for one in found.told] == ["unreachable", "cosigned"]
    assert found.told[0].message == "w1.example does not answer"
    assert len(cosignatures(found.note, [key for one in world.witnesses for key in one.cosigners])) == 2
    world.wires.answers["http://w2.example/add-checkpoint"] = (503, b"no")
    assert [one.verdict for one in world.ask(120).told] == ["unreachable", "unreachable"]
    assert not world.ask(120).changed


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, b"unknown"), "it answered 404: unknown"),
        ((403, b"no key"), "it answered 403: no key"),
        ((409, b"many\n"), "without a size"),
        ((200, b""), "no cosignature of its key"),
        ((200, b"nonsense\n"), "no cosignature of its key"),
        ((200, OURS.note(7).partition(b"\n\n")[2]), "no cosignature of its key"),
        ((422, b"no"), "shows no checkpoint that the log signed"),
        ((409, b"100000\n"), "shows no checkpoint that the log signed"),
    ],
)
def test_an_answer_that_proves_nothing_is_not_taken_for_evidence(
    world: World, answer: tuple[int, bytes], message: str
) -> None:
    world.wires.answers["http://w1.example/add-checkpoint"] = answer
    found = world.ask(100)
    assert found.told[0].verdict == "refused"
    assert message in found.told[0].message
    assert found.evidence == ()
    assert found.told[1].verdict == "cosigned"


def test_a_log_that_was_rolled_back_is_told_with_the_checkpoint_it_signed(world: World) -> None:
    world.ask(200)
    world.known.clear()
    found = world.ask(150)
    assert [(one.verdict, one.size) for one in found.evidence] == [("ahead", 200)] * 2
    assert open_checkpoint(found.evidence[0].evidence, ORIGIN, VERIFIERS).size == 200
    assert not found.changed


def test_a_forked_log_is_told_with_the_checkpoint_it_signed(world: World) -> None:
    world.ask(200)
    found = world.ask(300, FORKED)
    assert [(one.verdict, one.size) for one in found.evidence] == [("contradicts", 200)] * 2
    shown = open_checkpoint(found.evidence[0].evidence, ORIGIN, VERIFIERS)
    assert shown.root != FORKED.root(200)


def test_settings_that_are_no_witness() -> None:
    for wrong in ("w1.example", "http://w1.example", f"ftp://w1.example {LOG.vkey}", f"http://w1.example {LOG.vkey}"):
        with pytest.raises(Malformed):
            parse_witnesses([wrong])
    assert parse_witnesses([]) == ()
    assert cosign(OURS.note(7), OURS.nodes, [], Wires(), verifiers=VERIFIERS) == Cosigned(OURS.note(7), ())


def test_the_network_says_when_nobody_answers() -> None:
    with pytest.raises(Unavailable, match=r"http://127.0.0.1:1/add-checkpoint"):
        Network(2.0).post("http://127.0.0.1:1/add-checkpoint", b"")


def test_a_witness_that_drips_its_answer_holds_nothing_up() -> None:
    """A byte now and then keeps every timeout of a connection away."""
    over = Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            taken, _ = listening.accept()
            with taken, suppress(OSError):
                taken.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.1):
                    taken.sendall(b"x")

        thread = Thread(target=drip)
        thread.start()
        network, url = Network(0.3), f"http://127.0.0.1:{listening.getsockname()[1]}/checkpoint"
        try:
            with pytest.raises(Unavailable, match="too slowly"):
                network.get(url)
            with pytest.raises(Unavailable, match="an earlier request"):
                network.get(url)
        finally:
            over.set()
            thread.join()


# --- in the store -----------------------------------------------------------------------------------------------


def published(store: ObjectStore, size: int, history: History = OURS) -> None:
    """The ledger's own log at that size, as its writer puts it."""
    for path, data in Tiles().grow(history.hashes[:size]).items():
        store.put(tile_key(LEDGER_WRITER, path), data)
    store.put(checkpoint_key(LEDGER_WRITER), history.note(size))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'[ledger.audit]\nurl = "file://{tmp_path}/store"\norigin = "{ORIGIN}"\nvkey = "{LOG.vkey}"\n'
        f'state_dir = "{tmp_path}/state"\n'
    )
    return path


def in_memory(config: Path) -> Ledger:
    ledger = open_ledger("audit", load_config(config))
    return Ledger("audit", ledger.settings, MemoryStore(), ORIGIN, ledger.state_dir, SystemClock())


def asking(ledger: Ledger, world: World, before: Callable[[], None] = lambda: None) -> Callable[[Head], Cosigned]:
    def ask(head: Head) -> Cosigned:
        with ledger_nodes(ledger, head) as nodes:
            found = cosign(head.note, nodes, world.witnesses, world.wires, verifiers=VERIFIERS)
        before()
        return found

    return ask


def test_the_cosignatures_are_kept_on_the_newest_checkpoint(world: World, config: Path) -> None:
    ledger = in_memory(config)
    with pytest.raises(LedgerError, match="has no checkpoint of its own"):
        newest_head(ledger)
    published(ledger.store, 300)
    keep_cosigned(ledger, asking(ledger, world))
    kept = newest_head(ledger)
    assert len(cosignatures(kept.note, [key for one in world.witnesses for key in one.cosigners])) == 3
    world.wires.broken |= {"w1.example", "w2.example"}
    keep_cosigned(ledger, asking(ledger, world))
    assert newest_head(ledger) == kept


def test_a_checkpoint_that_came_meanwhile_is_never_put_back(world: World, config: Path) -> None:
    ledger = in_memory(config)
    published(ledger.store, 300)
    coming = [320, 310]
    keep_cosigned(ledger, asking(ledger, world, lambda: published(ledger.store, coming.pop()) if coming else None))
    head = newest_head(ledger)
    assert head.checkpoint.size == 320
    assert len(split_note(head.note)[1]) == 4


def test_a_store_that_fails_every_condition_gets_the_cosignatures(world: World, config: Path) -> None:
    ledger = replace(in_memory(config), store=Unconditional())
    published(ledger.store, 300)
    keep_cosigned(ledger, asking(ledger, world))
    assert len(split_note(newest_head(ledger).note)[1]) == 4


def test_the_command_cosigns_and_tells_what_is_wrong(config: Path, tmp_path: Path) -> None:
    place = tmp_path / "witness"
    (key,) = create(place, "w.example", [COSIGNATURE_ED25519])
    add_log(place, LOG.vkey)
    ledger = open_ledger("audit", load_config(config))
    published(ledger.store, 300)
    base = config.read_text()

    def run(*more: str) -> tuple[int, BaseException | None, str]:
        found = CliRunner().invoke(app, ["cosign", "audit", "--config", str(config), *more])
        return found.exit_code, found.exception, found.stdout

    assert isinstance(run()[1], LedgerError)
    config.write_text(f'{base}witnesses = ["http://127.0.0.1:1 {key.vkey}"]\n')
    assert run()[0] == ExitCode.UNAVAILABLE
    served = Served(place)
    try:
        config.write_text(f'{base}witnesses = ["{served.url} {key.vkey}", "http://127.0.0.1:1 {key.vkey}"]\n')
        assert run()[0] == ExitCode.PARTIAL
        config.write_text(f'{base}witnesses = ["{served.url} {key.vkey}"]\n')
        status, _, out = run("--json")
        assert status == 0
        assert '"verdict": "cosigned"' in out
        assert len(cosignatures(newest_head(ledger).note, [key.cosigner])) == 1
        published(ledger.store, 320, FORKED)
        with pytest.raises(Tampered, match="has seen another history") as caught:
            raise run()[1] or AssertionError
        assert served.url in str(caught.value)
    finally:
        served.end(15)


def test_the_command_works_by_files_too(config: Path, tmp_path: Path) -> None:
    place = tmp_path / "witness"
    (key,) = create(place, "w.example", [COSIGNATURE_ED25519])
    add_log(place, LOG.vkey)
    ledger = open_ledger("audit", load_config(config))
    config.write_text(f'{config.read_text()}witnesses = ["http://w.example {key.vkey}"]\n')
    for old, size in ((0, 300), (300, 333)):
        published(ledger.store, size)
        request, lines = tmp_path / "request", tmp_path / "lines"
        line = ["cosign", "audit", "--config", str(config)]
        made = CliRunner().invoke(app, [*line, "--request", str(request), "--old", str(old)])
        assert made.exit_code == 0, made.output
        lines.write_text(CliRunner().invoke(app, ["witness", "sign", str(place), str(request)]).stdout)
        assert CliRunner().invoke(app, [*line, "--attach", str(lines)]).exit_code == 0
        head = newest_head(ledger)
        assert head.checkpoint.size == size
        assert abs(cosignatures(head.note, [key.cosigner])[0].unix_s - time.time()) < 60
    assert sign_checkpoint(head.checkpoint, LOG) != head.note
    assert os.listdir(place / "state")


def test_sealing_asks_the_witnesses_and_verification_counts_them(tmp_path: Path) -> None:
    """The whole way, by the commands that people use."""
    config, place = tmp_path / "c.toml", tmp_path / "witness"
    config.write_text("")
    found = CliRunner().invoke(
        app,
        [
            *("init", "audit", f"file://{tmp_path}/store", "--config", str(config)),
            *("--state-dir", str(tmp_path / "state"), "--writer", "here"),
        ],
    )
    assert found.exit_code == 0, found.output

    def run(*words: str) -> int:
        return CliRunner().invoke(app, [*words, "audit", "--config", str(config)]).exit_code

    vkey = load_config(config).ledger("audit").vkey
    keys = create(place, "w.example", [COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44])
    add_log(place, vkey)
    served = Served(place)
    try:
        line = f'witnesses = ["{served.url} {keys[0].vkey} {keys[1].vkey}"]\nwitnesses_needed = '
        config.write_text(f"{config.read_text()}{line}1\n")
        assert run("verify") == ExitCode.FINDING
        assert run("seal") == 0
        assert run("verify") == 0
        # Two keys of one witness are one witness.
        config.write_text(config.read_text().replace("needed = 1", "needed = 2"))
        assert run("verify") == ExitCode.FINDING
    finally:
        served.end(15)
    assert run("seal") == 0
