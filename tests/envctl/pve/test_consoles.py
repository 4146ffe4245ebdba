"""Screens and terminals: what the driver hands to the bridge is opened as the bridge opens it, against the fake."""

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from envctl.drivers.port import ConsoleTarget, MachineRef
from envctl.drivers.pve.driver import PveDriver
from envctl.errors import DriverFailed
from envctl.fake_pve.cluster import POOL, FakePve, small_cluster
from envctl.fake_pve.consoles import HEIGHT, INK, PAPER, WIDTH, picture, vnc_response
from envctl.fake_pve.glyphs import GLYPH_HEIGHT, GLYPH_WIDTH, glyph
from envctl.fake_pve.server import Served, serve, start, write_token
from s3core.settings import EnvctlDriverSettings

MACHINE = MachineRef("pve2/90000")
BGRX = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


@pytest.fixture
def served() -> Iterator[Served]:
    fake = small_cluster()
    fake.add_machine(90_000, "alice-work", node="pve2", pool=POOL, running=True, serial0="socket")
    with serve(fake) as running:
        yield running
    assert fake.violations == []


@pytest.fixture
def driver(served: Served, tmp_path: Path) -> PveDriver:
    return PveDriver("pve", EnvctlDriverSettings(url=served.url, token=write_token(tmp_path / "token"), pool=POOL))


async def read(socket: ClientConnection, count: int, have: bytes = b"") -> tuple[bytes, bytes]:
    while len(have) < count:
        piece = await asyncio.wait_for(socket.recv(), 20)
        assert isinstance(piece, bytes)
        have += piece
    return have[:count], have[count:]


def opened(target: ConsoleTarget) -> connect:
    return connect(target.url, additional_headers=dict(target.headers), max_size=None, subprotocols=["binary"])  # type: ignore[list-item]  # a NewType of str


def test_the_screen_shows_the_name_and_wants_the_right_password(driver: PveDriver) -> None:
    async def screen(password: str, target: ConsoleTarget) -> bytes:
        async with opened(target) as socket:
            greeting, rest = await read(socket, 12)
            assert greeting == b"RFB 003.008\n"
            await socket.send(greeting)
            kinds, rest = await read(socket, 2, rest)
            assert kinds == b"\x01\x02"
            await socket.send(b"\x02")
            challenge, rest = await read(socket, 16, rest)
            await socket.send(vnc_response(password, challenge))
            result, rest = await read(socket, 4, rest)
            if result != bytes(4):
                return b""
            await socket.send(b"\x01")
            head, rest = await read(socket, 24, rest)
            width, height = struct.unpack(">HH", head[:4])
            name, rest = await read(socket, struct.unpack(">I", head[20:24])[0], rest)
            assert (width, height, name) == (WIDTH, HEIGHT, b"alice-work")
            await socket.send(struct.pack(">BBHi", 2, 0, 1, 0))
            await socket.send(struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT))
            _, rest = await read(socket, 16, rest)
            pixels, rest = await read(socket, WIDTH * HEIGHT * 4, rest)
            await socket.send(struct.pack(">BBxxI", 4, 1, ord("x")) + struct.pack(">BBHHHH", 3, 1, 0, 0, WIDTH, HEIGHT))
            _, rest = await read(socket, 16, rest)
            typed, _ = await read(socket, WIDTH * HEIGHT * 4, rest)
            assert typed != pixels, "what is typed shows"
            return pixels

    async def work() -> None:
        try:
            first = await driver.console(MACHINE, "vnc")
            assert first.url.startswith("ws://127.0.0.1:")
            assert first.password
            assert "PVEAPIToken" not in first.url
            assert await screen("wrong", first) == b""
            with pytest.raises(InvalidStatus):
                async with opened(first):
                    pass  # a port is used once
            pixels = await screen((second := await driver.console(MACHINE, "vnc")).password, second)
            assert pixels == picture(["alice-work", "running"], BGRX)
        finally:
            await driver.close()

    asyncio.run(work())


def test_the_terminal_repeats_what_it_is_told_after_its_ticket(driver: PveDriver) -> None:
    async def work() -> None:
        target = await driver.console(MACHINE, "terminal")
        async with opened(target) as socket:
            await socket.send(target.preamble)
            assert (await read(socket, 2))[0] == b"OK"
            await socket.send(b"1:80:24:")
            await socket.send(b"2")
            command = "echo grüße\r".encode()
            await socket.send(b"0:%d:" % len(command) + command)
            seen = b""
            while seen.count("echo grüße".encode()) < 2:
                piece = await asyncio.wait_for(socket.recv(), 20)
                assert isinstance(piece, bytes)
                seen += piece
            assert b"user@alice-work:~$ " in seen
            await socket.send(b"0:5:exit\r")
            await asyncio.wait_for(socket.wait_closed(), 20)
        wrong = await driver.console(MACHINE, "terminal")
        async with opened(wrong) as socket:
            await socket.send(b"envctl@pve!console:PVEVNC:0::AAAA\n")
            await asyncio.wait_for(socket.wait_closed(), 20)
        await driver.close()

    asyncio.run(work())


def test_a_console_is_opened_at_the_node_that_gave_the_ticket(served: Served, tmp_path: Path) -> None:
    """vncproxy listens at the node that was asked, which is not the machine's."""
    second = start(served.fake, via="pve2")
    try:
        settings = EnvctlDriverSettings(
            url=f"{served.url} {second.url}", token=write_token(tmp_path / "both"), pool=POOL
        )
        driver = PveDriver("pve", settings)

        async def work() -> None:
            await driver.headroom()
            target = await driver.console(MACHINE, "vnc")
            assert target.url.startswith(served.url.replace("http", "ws"))
            elsewhere = target.url.replace(served.url[7:], second.url[7:])
            with pytest.raises(InvalidStatus):
                async with connect(elsewhere, additional_headers=dict(target.headers)):
                    pass
            async with opened(target) as socket:
                assert (await read(socket, 12))[0] == b"RFB 003.008\n"
            await driver.close()

        asyncio.run(work())
    finally:
        second.close()


def test_a_machine_without_a_serial_port_has_no_terminal(driver: PveDriver, served: Served) -> None:
    fake: FakePve = served.fake
    del fake.machines[90_000].config["serial0"]

    async def work() -> None:
        with pytest.raises(DriverFailed, match="no serial port"):
            await driver.console(MACHINE, "terminal")
        await driver.close()

    asyncio.run(work())


def test_every_glyph_fits_and_colours_follow_the_pixel_format() -> None:
    for letter in map(chr, range(32, 127)):
        rows = glyph(letter)
        assert len(rows) == GLYPH_HEIGHT
        assert max(rows) < 1 << GLYPH_WIDTH
    assert picture([], BGRX)[:4] == bytes([PAPER[2], PAPER[1], PAPER[0], 0])
    rgb565 = struct.pack(">BBBBHHHBBBxxx", 16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
    assert len(picture(["x"], rgb565)) == WIDTH * HEIGHT * 2
    assert bytes([INK[2], INK[1], INK[0], 0]) in picture(["x"], BGRX)
