"""Screens and terminals through the console, with the fake cluster's RFB and termproxy servers at the far end."""

import asyncio
import dataclasses
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from envctl.accounts import people
from envctl.database.models import AuditRow, Environment, Template, Ticket
from envctl.errors import Forbidden, Refused, TooMany
from envctl.fake_pve.cluster import POOL, TEMPLATE, FakePve, small_cluster
from envctl.fake_pve.server import serve, write_token
from envctl.identifiers import tag_of
from envctl.states import EnvironmentState
from envctl.verbs.console import LIFE_S, TICKETS_MAX, AskTicket, hash_of
from envctl.verbs.console import ticket as make_ticket
from envctl.web import bridge, rfb
from envctl.web.bridge import Size, admit, input_frame, resize_frame, size_of
from tests.envctl.assembly.running import Running, running_console
from tests.envctl.world import World, make_world

VMID = 90_001
WAIT_S = 30.0


@pytest.fixture
def fake() -> FakePve:
    return small_cluster()


@pytest.fixture
def console(fake: FakePve, tmp_path: Path) -> Iterator[Running]:
    with serve(fake) as served:
        driver = (
            f'[envctl.driver.pve]\nurl = "{served.url}"\ntoken = "{write_token(tmp_path / "token")}"\npool = "{POOL}"\n'
        )
        with running_console(tmp_path, driver, role="web") as running:
            running.add_user("alice")
            running.add_user("bob")
            yield running


@pytest.fixture
def environment_id(console: Running, fake: FakePve) -> str:
    return with_machine(console, fake)


def with_machine(console: Running, fake: FakePve, vmid: int = VMID) -> str:
    context = console.context
    name = context.new_id()
    fake.add_machine(
        vmid,
        "work",
        pool=POOL,
        running=True,
        tags=tag_of(name),
        serial0="socket",
        scsi0=f"ceph:vm-{vmid}-disk-0,size=8G",
    )
    with context.database.write() as session:
        template = Template(
            id=context.new_id(),
            name="debian",
            title="Debian",
            driver="pve",
            source=str(TEMPLATE),
            cores=1,
            cores_max=1,
            memory_mib=512,
            memory_mib_max=512,
            disk_gib=8,
            disk_gib_max=8,
            directories=["/home"],
            created_at=context.now(),
        )
        session.add(template)
        session.flush()
        row = Environment(
            id=name,
            owner_id=people.find_user(session, "alice").id,
            name="work",
            template_id=template.id,
            driver="pve",
            node="pve1",
            vmid=vmid,
            machine=f"pve1/{vmid}",
            state=EnvironmentState.READY,
            running=True,
            cores=1,
            memory_mib=512,
            disk_gib=8,
            directories=["/home"],
            created_at=context.now(),
        )
        session.add(row)
    return name


class Browser:
    """What a page's script does: a ticket by the API, then the websocket with it."""

    def __init__(self, console: Running, name: str) -> None:
        self._console = console
        self.http = console.browser(name)

    def ticket(self, environment: str, kind: str) -> str:
        """The path of the websocket."""
        answer = self.http.post(f"/api/v1/environments/{environment}/console", json={"kind": kind})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["path"])

    def open(self, path: str, *, origin: str | None = None) -> connect:
        return connect(
            self._console.url.replace("http://", "ws://") + path,
            additional_headers={"Cookie": self.http.headers["Cookie"]},
            origin=origin or self._console.url,  # type: ignore[arg-type]  # an Origin is a str
            subprotocols=["binary"],  # type: ignore[list-item]  # so is a Subprotocol
            proxy=None,
            compression=None,
            max_size=None,
        )


class Reader:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._have = socket, b""

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            while len(self._have) < count:
                more = await self._socket.recv()
                assert isinstance(more, bytes)
                self._have += more
        found, self._have = self._have[:count], self._have[count:]
        return found

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(WAIT_S):
            while text not in self._have:
                more = await self._socket.recv()
                assert isinstance(more, bytes)
                self._have += more
        return self._have


def test_a_screen_is_drawn_and_no_password_reaches_the_browser(
    console: Running, environment_id: str, fake: FakePve
) -> None:
    browser = Browser(console, "alice")

    async def look() -> tuple[int, int]:
        async with browser.open(browser.ticket(environment_id, "vnc")) as socket:
            assert socket.subprotocol == "binary"
            reader = Reader(socket)
            assert await reader.exactly(12) == b"RFB 003.008\n"
            await socket.send(b"RFB 003.008\n")
            assert await reader.exactly(2) == b"\x01\x01", "one security type: none"
            await socket.send(b"\x01")
            assert await reader.exactly(4) == b"\0\0\0\0"
            # ClientInit and a request, in one message and byte by byte: pieces do not matter.
            await socket.send(b"\x01")
            server = await reader.exactly(24)
            width, height = struct.unpack(">HH", server[:4])
            await reader.exactly(int.from_bytes(server[20:], "big"))
            for byte in b"\x03\x00\x00\x00\x00\x00\x02\x80\x01\x90":
                await socket.send(bytes([byte]))
            kind, _, rectangles = struct.unpack(">BBH", await reader.exactly(4))
            assert (kind, rectangles) == (0, 1)
            _, _, across, down, encoding = struct.unpack(">HHHHi", await reader.exactly(12))
            assert encoding == 0, "raw pixels"
            pixels = await reader.exactly(across * down * 4)
            assert len({pixels[at : at + 4] for at in range(0, len(pixels), 4)}) > 1, "there is something on it"
            return width, height

    assert asyncio.run(look()) == (640, 400)
    assert fake.violations == []
    told = [asked for asked in fake.asked if asked.path.endswith("/vncproxy")]
    assert len(told) == 1


def test_a_terminal_takes_keys_and_sizes(console: Running, environment_id: str, fake: FakePve) -> None:
    browser = Browser(console, "alice")

    async def type_something() -> bytes:
        async with browser.open(browser.ticket(environment_id, "terminal")) as socket:
            await socket.send(json.dumps({"columns": 120, "rows": 40}))
            await socket.send("not a size")
            await socket.send("echo grüße 0:5:x\r".encode())
            return await Reader(socket).until("grüße 0:5:x".encode())

    seen = asyncio.run(type_something())
    assert b"OK" not in seen[:2], "termproxy's beginning is not the terminal's"
    assert fake.violations == []


def test_a_console_ends_with_the_role_that_opened_it(
    console: Running, environment_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "CHECK_S", 0.2)

    def becomes(role: str) -> None:
        with console.context.database.write() as session:
            people.find_user(session, "bob").role = role

    becomes("operator")
    browser = Browser(console, "bob")

    async def stay() -> str:
        async with browser.open(browser.ticket(environment_id, "terminal")) as socket:
            await socket.send(b"echo here\r")
            await Reader(socket).until(b"here")
            await asyncio.to_thread(becomes, "user")
            async with asyncio.timeout(WAIT_S):
                try:
                    while True:
                        await socket.recv()
                except ConnectionClosed:
                    return str(socket.close_reason)

    assert asyncio.run(stay()) == "the environment is not theirs any more"


def test_a_ticket_opens_once_in_the_browser_that_asked(console: Running, environment_id: str, fake: FakePve) -> None:
    alice, again, bob = Browser(console, "alice"), Browser(console, "alice"), Browser(console, "bob")

    async def refused(browser: Browser, path: str, *, origin: str | None = None) -> str:
        try:
            async with browser.open(path, origin=origin) as socket:
                await socket.recv()
        except InvalidStatus as error:
            return str(error.response.status_code)
        except ConnectionClosed as error:
            return str(error.rcvd.code if error.rcvd else "lost")
        return "open"

    async def all_of_them() -> None:
        path = alice.ticket(environment_id, "vnc")
        assert await refused(bob, path) in ("403", "1008")
        assert await refused(again, path) in ("403", "1008"), "another sign-in of the same person"
        assert await refused(alice, path, origin="https://elsewhere.example") in ("403", "1008")
        other = path.replace(environment_id, console.context.new_id())
        assert await refused(alice, other) in ("403", "1008")
        async with alice.open(path) as socket:
            assert await Reader(socket).exactly(4) == b"RFB "
        assert await refused(alice, path) in ("403", "1008"), "it is used up"

    asyncio.run(all_of_them())
    with console.context.database.read() as session:
        assert session.scalars(select(Ticket)).all() == []
        rows = [(row.actor, row.verb, row.outcome) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))]
    assert rows.count(("alice", "console.open", "ok")) == 1
    assert rows.count(("bob", "console.open", "forbidden")) == 1
    end = time.monotonic() + WAIT_S
    while True:
        with console.context.database.read() as session:
            closed = session.scalars(select(AuditRow).where(AuditRow.verb == "console.close")).all()
        if closed:
            break
        assert time.monotonic() < end, "the end of a console leaves a row"
        time.sleep(0.05)
    assert closed[0].detail["shown_bytes"] > 0  # type: ignore[operator]  # JSON


def test_a_machine_that_is_gone_closes_with_words_of_ours(console: Running, environment_id: str, fake: FakePve) -> None:
    browser = Browser(console, "alice")
    path = browser.ticket(environment_id, "vnc")
    fake.machines.pop(VMID)

    async def look() -> tuple[int, str]:
        try:
            async with browser.open(path) as socket:
                await socket.recv()
        except ConnectionClosed as error:
            return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (0, "the connection was lost")
        except InvalidStatus as error:
            return error.response.status_code, ""
        raise AssertionError("it opened")

    code, reason = asyncio.run(look())
    assert code in (403, bridge.REFUSED, bridge.FAILED)
    assert "127.0.0.1" not in reason


# --- without a server


def test_frames_of_a_terminal() -> None:
    """Lengths are in bytes, as termproxy has them."""
    assert input_frame("ü\r".encode()) == b"0:3:\xc3\xbc\r"
    assert resize_frame(Size(80, 24)) == b"1:80:24:"
    assert size_of('{"columns": 80, "rows": 24}') == Size(80, 24)
    for text in (
        "",
        "[]",
        '{"columns": 80}',
        '{"columns": 0, "rows": 1}',
        '{"columns": "1:1:", "rows": 1}',
        "1" * 10_000,
    ):
        assert size_of(text) is None, text
    assert size_of('{"columns": true, "rows": 24}') is None


def test_the_answer_to_a_challenge_is_vnc_s() -> None:
    challenge = bytes(range(16))
    answer = rfb.response("secret12", challenge)
    assert len(answer) == 16
    assert rfb.response("secret12 and what is longer", challenge) == answer, "eight characters count"
    assert rfb.response("secret13", challenge) != answer
    # NIST's known answer for DES (SP 800-17, table 1): key 01..01, plain 80 00 .. 00. Mirrored, the key is 80..80.
    assert rfb.response("\x80" * 8, bytes([0x80]) + bytes(7)).hex() == "95f8a5e5dd31d900"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_a_ticket_lives_a_minute_and_for_a_machine_that_runs(world: World) -> None:
    template = world.add_template()
    row = world.add_environment("alice", "work", template, machine="pve1/1")
    stopped = world.add_environment("alice", "off", template, EnvironmentState.STOPPED)
    alice = dataclasses.replace(world.caller("alice", via="browser"), login_hash="1" * 64)
    with pytest.raises(Refused):
        make_ticket(world.context, alice, AskTicket(environment=stopped.id))
    with pytest.raises(Refused, match="browser"):
        make_ticket(world.context, world.caller("alice"), AskTicket(environment=row.id))
    made = make_ticket(world.context, alice, AskTicket(environment="work", kind="terminal"))
    with world.database.read() as session:
        kept = session.scalars(select(Ticket)).one()
    assert made.ticket not in kept.token_hash
    assert kept.token_hash == hash_of(made.ticket, alice.login_hash)
    world.clock.now += LIFE_S
    with pytest.raises(Forbidden):
        admit(world.context, alice, row.id, made.ticket)
    fresh = make_ticket(world.context, alice, AskTicket(environment="work", kind="terminal"))
    with world.database.read() as session:
        assert len(session.scalars(select(Ticket)).all()) == 1, "what has expired goes when the next is made"
    assert admit(world.context, alice, row.id, fresh.ticket).kind == "terminal"
    with pytest.raises(Forbidden):
        admit(world.context, alice, row.id, fresh.ticket)


def test_a_user_has_few_tickets_that_wait_to_be_used(world: World) -> None:
    row = world.add_environment("alice", "work", world.add_template(), machine="pve1/1")
    alice = dataclasses.replace(world.caller("alice", via="browser"), login_hash="1" * 64)
    made = [make_ticket(world.context, alice, AskTicket(environment=row.id)) for _ in range(TICKETS_MAX)]
    with pytest.raises(TooMany, match="not used") as refused:
        make_ticket(world.context, alice, AskTicket(environment=row.id))
    assert refused.value.retry_after_s == LIFE_S
    admit(world.context, alice, row.id, made[0].ticket)
    make_ticket(world.context, alice, AskTicket(environment=row.id))
    with pytest.raises(TooMany):
        make_ticket(world.context, alice, AskTicket(environment=row.id))
    world.clock.now += LIFE_S
    make_ticket(world.context, alice, AskTicket(environment=row.id))
