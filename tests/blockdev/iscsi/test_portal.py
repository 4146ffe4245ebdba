"""The rim, over real sockets on loopback: listening, back-pressure, limits, the last fence, and the orderly end."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest

from blockdev.iscsi import portal as rim
from blockdev.iscsi.errors import PortalError
from blockdev.iscsi.pdu import BHS_BYTES, NO_TAG, Opcode, pack, unpack
from blockdev.iscsi.portal import Address, Portal
from tests.blockdev.iscsi.initiator import READ, WRITE, World, read10
from tests.blockdev.ram_target import RamTarget
from tests.protocol.conversations import RECORDED, pattern

LOOPBACK = Address("127.0.0.1", 0)
LOGIN = RECORDED["reads and writes"][0]
TEST_UNIT_READY = RECORDED["reads and writes"][1]


class Client:
    """Sends bytes, reads PDUs. Never more than a test's few seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, portal: Portal, number: int = 0, *, receive_buffer: int = 0) -> "Client":
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        where = portal.addresses[number]
        await asyncio.get_running_loop().sock_connect(sock, (where.host, where.port))
        return cls(*await asyncio.open_connection(sock=sock, limit=4096 if receive_buffer else 1 << 16))

    def say(self, *wire: bytes) -> None:
        self.writer.write(b"".join(wire))

    async def hear(self) -> tuple[dict[str, int], bytes]:
        header = await self.reader.readexactly(BHS_BYTES)
        fields = unpack(header)
        length = fields["length"]
        data = await self.reader.readexactly(length + -length % 4)
        return fields, data[:length]

    async def closed(self) -> bytes:
        """What still comes until the portal ends the connection."""
        return await self.reader.read()

    async def log_in(self, login: bytes = LOGIN) -> None:
        self.say(login, TEST_UNIT_READY)
        assert (await self.hear())[0]["status_word"] == 0
        assert (await self.hear())[0]["status"] == 2

    def end(self) -> None:
        self.writer.close()


def read_command(number: int, lba: int, count: int) -> bytes:
    return pack(
        Opcode.SCSI_COMMAND,
        READ,
        itt=number,
        cmd_sn=number,
        expected_length=count * 512,
        cdb=read10(lba, count) + bytes(6),
    )


def run(test: Callable[[Portal, World], Awaitable[None]], world: World | None = None, **options: float) -> None:
    """The test on a running portal, which must end with nobody left."""

    async def body() -> None:
        used = world if world is not None else World(RamTarget(4096))
        portal = Portal(used.nodes, listen=(LOOPBACK,), **options)  # type: ignore[arg-type]  # what the test sets
        await portal.start()
        try:
            await asyncio.wait_for(test(portal, used), 20)
        finally:
            await portal.stop(drain_seconds=0.05)
        assert portal.connection_count == 0
        assert portal.session_count == 0
        assert portal.addresses == []

    asyncio.run(body())


def test_commands_over_a_socket() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        client.say(*RECORDED["reads and writes"])
        seen = [await client.hear() for _ in range(10)]
        assert sum(fields["opcode"] == Opcode.SCSI_RESPONSE for fields, _ in seen) >= 6
        assert world.target.peek(2, 1) == pattern(512, 2)
        client.end()

    run(test)


def test_discovery_tells_the_address_the_initiator_came_to() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        client.say(*RECORDED["discovery"])
        everything = await client.closed()
        assert f"TargetAddress={portal.addresses[0]},1\0".encode() in everything
        client.end()

    run(test)


def discovered(everything: bytes) -> list[str]:
    text = everything.split(b"TargetName=", 1)[1]
    lines = (item.partition("=") for item in text.decode(errors="replace").split("\0"))
    return [value for key, _, value in lines if key == "TargetAddress"]


def test_several_portals_are_told_of_and_are_several_ports() -> None:
    async def body() -> None:
        world = World(RamTarget(4096), portal_groups=(1, 2))
        portal = Portal(world.nodes, listen=(LOOPBACK, Address("127.0.0.2", 0)))
        await portal.start()
        expected = [f"{address},{tag}" for tag, address in enumerate(portal.addresses, 1)]
        for number in range(2):
            client = await Client.connect(portal, number)
            client.say(*RECORDED["discovery"])
            assert discovered(await client.closed()) == expected
            client.end()
        # One initiator, one ISID, two target ports: two sessions, side by side.
        both = [await Client.connect(portal, number) for number in range(2)]
        for tag, client in enumerate(both, 1):
            client.say(LOGIN)
            assert f"TargetPortalGroupTag={tag}".encode() in (await client.hear())[1]
        assert portal.session_count == 2
        for client in both:
            client.say(TEST_UNIT_READY)
            assert (await client.hear())[0]["status"] == 2
            client.end()
        await portal.stop(drain_seconds=0.05)

    asyncio.run(asyncio.wait_for(body(), 20))


def test_advertised_addresses() -> None:
    async def body() -> None:
        world = World(RamTarget(4096))
        outside = (Address("192.0.2.1", 3260), Address("disk.example.com", 3261))
        portal = Portal(world.nodes, listen=(LOOPBACK,), advertise=outside)
        await portal.start()
        client = await Client.connect(portal)
        client.say(*RECORDED["discovery"])
        assert discovered(await client.closed()) == ["192.0.2.1:3260,1", "disk.example.com:3261,1"]
        client.end()
        await portal.stop(drain_seconds=0.05)
        with pytest.raises(PortalError, match="2 addresses to listen on and 1 to advertise"):
            Portal(world.nodes, listen=(LOOPBACK, LOOPBACK), advertise=outside[:1])

    asyncio.run(asyncio.wait_for(body(), 20))


def test_discovery_session_that_stays_is_ended() -> None:
    async def test(portal: Portal, world: World) -> None:
        staying, working = await Client.connect(portal), await Client.connect(portal)
        await working.log_in()
        staying.say(RECORDED["discovery"][0])
        await staying.hear()
        assert await staying.closed() == b""
        working.say(TEST_UNIT_READY[:27] + bytes((3,)) + TEST_UNIT_READY[28:])
        staying.end()
        working.end()

    run(test, discovery_seconds=0.1)


def test_a_peer_that_acknowledges_nothing_is_gone_after_two_minutes() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        (link,) = portal._links
        options = {
            name: link._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        }
        assert options["TCP_USER_TIMEOUT"] == 120_000
        assert options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"] == 120
        assert link._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        client.end()

    run(test)


def test_logout_closes_the_connection_after_its_answer() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        client.say(*RECORDED["everything else"])
        everything = await client.closed()
        assert everything[-BHS_BYTES] == Opcode.LOGOUT_RESPONSE
        client.end()

    run(test)


def test_address_in_use() -> None:
    async def body() -> None:
        world = World()
        first = Portal(world.nodes, listen=(LOOPBACK,))
        await first.start()
        second = Portal(world.nodes, listen=(LOOPBACK, first.addresses[0]))
        with pytest.raises(
            PortalError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use .*another program"
        ):
            await second.start()
        assert second.addresses == []
        await first.stop()

    asyncio.run(body())


def test_address_that_is_none() -> None:
    async def body() -> None:
        with pytest.raises(PortalError, match="cannot listen on no such host"):
            await Portal(World().nodes, listen=(Address("no such host", 0),)).start()

    asyncio.run(body())


def test_address_in_words() -> None:
    assert str(Address("::1", 3260)) == "[::1]:3260"
    assert str(Address()) == "0.0.0.0:3260"


def test_silent_peer_is_sent_away() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        assert await client.closed() == b""
        client.end()

    run(test, login_seconds=0.05)


def test_deadline_ends_with_the_login() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        await asyncio.sleep(0.15)
        client.say(read_command(2, 0, 1))
        assert (await client.hear())[0]["status"] == 0
        client.end()

    run(test, login_seconds=0.1)


def test_connections_are_limited() -> None:
    async def test(portal: Portal, world: World) -> None:
        first = await Client.connect(portal)
        await first.log_in()
        second = await Client.connect(portal)
        assert await second.closed() == b""
        first.end()
        second.end()

    run(test, connections_max=1)


def test_garbage_ends_that_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def test(portal: Portal, world: World) -> None:
        good, bad = await Client.connect(portal), await Client.connect(portal)
        await good.log_in()
        bad.say(b"GET / HTTP/1.1\r\nHost: here\r\nUser-Agent: a browser, lost\r\n\r\n")
        assert await bad.closed() == b""
        good.say(read_command(2, 0, 1))
        assert (await good.hear())[0]["status"] == 0
        good.end()
        bad.end()

    with caplog.at_level(logging.INFO, "bucketworks.iscsi"):
        run(test)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_an_error_of_ours_ends_that_session_only(caplog: pytest.LogCaptureFixture) -> None:
    async def test(portal: Portal, world: World) -> None:
        unlucky = await Client.connect(portal)
        await unlucky.log_in()
        world.target.fail_next("commit", RuntimeError("a bug"))
        unlucky.say(RECORDED["reads and writes"][2])
        assert await unlucky.closed() == b""
        unlucky.end()
        next_one = await Client.connect(portal)
        await next_one.log_in()
        next_one.say(read_command(2, 0, 1))
        assert (await next_one.hear())[0]["status"] == 0
        next_one.end()

    run(test)
    assert "ended by an error of ours" in caplog.text
    assert "a bug" in caplog.text


def test_late_answers_are_sent_at_once() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        world.target.poke(5, pattern(512))
        client.say(read_command(2, 5, 1))
        while not world.target.queue:
            await asyncio.sleep(0.001)
        world.target.run_all()
        assert (await client.hear())[1] == pattern(512)
        client.end()

    run(test, World(RamTarget(deferred_reads=True)))


def test_answer_to_a_connection_that_is_gone() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        client.say(read_command(2, 5, 1))
        while not world.target.queue:
            await asyncio.sleep(0.001)
        client.end()
        while portal.connection_count:
            await asyncio.sleep(0.001)
        world.target.run_all()

    run(test, World(RamTarget(deferred_reads=True)))


def test_slow_reader_holds_back_only_itself_and_gets_everything() -> None:
    """16 MiB of answers for a socket that takes little: parsing pauses, memory stays bounded, nothing is lost."""
    sectors, reads = 2048, 16

    async def test(portal: Portal, world: World) -> None:
        whole = pattern(sectors * 512)
        world.target.poke(0, whole)
        slow = await Client.connect(portal, receive_buffer=4096)
        await slow.log_in()
        slow.say(*(read_command(2 + number, 0, sectors) for number in range(reads)))
        quick = await Client.connect(portal)
        quick_login = RECORDED["reads and writes"][0].replace(b":01:host", b":01:fast")
        quick.say(quick_login, TEST_UNIT_READY)
        for _ in range(2):
            await quick.hear()
        link = max(portal._links, key=lambda link: sum(map(len, link._backlog)))
        waiting = sum(map(len, link._backlog)) + link._connection.outbox.size
        assert 0 < waiting < 4 << 20
        quick.say(read_command(2, 0, 1))
        assert (await quick.hear())[1] == whole[:512]
        for number in range(reads):
            got = b""
            while len(got) < len(whole):
                fields, data = await slow.hear()
                assert fields["itt"] == 2 + number
                got += data
            assert got == whole
        slow.end()
        quick.end()

    run(test, World(RamTarget(4096)))


def test_stopping_asks_for_logout_and_then_drops() -> None:
    async def test(portal: Portal, world: World) -> None:
        polite, rude = await Client.connect(portal), await Client.connect(portal)
        await polite.log_in()
        rude.say(RECORDED["reads and writes"][0].replace(b":01:host", b":01:rude"))
        await rude.hear()
        stopping = asyncio.create_task(portal.stop(drain_seconds=0.3))
        fields, _ = await polite.hear()
        assert (fields["opcode"], fields["event"] >> 24) == (Opcode.ASYNC_MESSAGE, 1)
        polite.say(pack(Opcode.LOGOUT, itt=7, cmd_sn=2, immediate=True))
        assert (await polite.hear())[0]["opcode"] == Opcode.LOGOUT_RESPONSE
        assert await polite.closed() == b""
        polite.end()
        assert (await rude.hear())[0]["opcode"] == Opcode.ASYNC_MESSAGE
        assert await rude.closed() == b""
        await stopping
        rude.end()

    run(test)


def test_peer_that_never_closes_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rim, "LINGER_SECONDS", 0.05)

    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        client.say(pack(Opcode.LOGOUT, itt=7, cmd_sn=2, immediate=True))
        await client.hear()
        while portal.connection_count:
            await asyncio.sleep(0.01)
        client.end()

    run(test)


def test_many_small_answers_need_several_calls() -> None:
    """More buffers than one sendmsg takes (1024), in one receive."""
    count = 200

    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        pings = [
            pack(Opcode.NOP_OUT, itt=100 + number, ttt=NO_TAG, cmd_sn=2, immediate=True, length=5) + b"hello\0\0\0"
            for number in range(count * 4)
        ]
        client.say(*pings)
        for number in range(count * 4):
            fields, data = await client.hear()
            assert (fields["itt"], data) == (100 + number, b"hello")
        client.end()

    run(test)


def write_command(number: int, lba: int, data: bytes) -> bytes:
    cdb = bytes([0x2A, 0]) + lba.to_bytes(4, "big") + b"\0" + (len(data) // 512).to_bytes(2, "big") + bytes(7)
    command = Opcode.SCSI_COMMAND
    return pack(command, WRITE, itt=number, cmd_sn=number, expected_length=len(data), cdb=cdb, length=len(data)) + data


def test_a_slowed_volume_holds_the_answers_of_that_connection_and_nobody_elses() -> None:
    async def test(portal: Portal, world: World) -> None:
        loop = asyncio.get_running_loop()
        writer, reader = await Client.connect(portal), await Client.connect(portal)
        await writer.log_in()
        other_isid = bytearray(LOGIN)
        other_isid[13] ^= 0xFF
        await reader.log_in(bytes(other_isid))
        world.target.slow = 2.0
        begun = loop.time()
        writer.say(write_command(2, 0, pattern(4096, 1)), write_command(3, 8, pattern(4096, 2)))
        while world.target.peek(0, 16) != pattern(4096, 1) + pattern(4096, 2):
            assert loop.time() - begun < 1.9, "it is committed at once"
            await asyncio.sleep(0.001)
        assert world.target.taken == [8192]
        reader.say(read_command(2, 0, 8))
        fields, data = await reader.hear()
        assert (fields["status"], data) == (0, pattern(4096, 1))
        assert loop.time() - begun < 1.9, "another connection waits for nothing"
        world.target.slow = 0.0
        writer.say(write_command(4, 16, pattern(4096, 3)))
        await asyncio.sleep(0.05)
        assert world.target.peek(16, 1) == bytes(512), "nothing is read from the slowed connection"
        seen = [(await writer.hear())[0] for _ in range(3)]
        assert loop.time() - begun >= 2.0
        assert [(fields["itt"], fields["status"]) for fields in seen] == [(2, 0), (3, 0), (4, 0)]
        assert [fields["stat_sn"] - seen[0]["stat_sn"] for fields in seen] == [0, 1, 2]
        writer.end()
        reader.end()

    run(test)


def test_a_read_that_waited_is_answered_while_writes_are_held() -> None:
    async def test(portal: Portal, world: World) -> None:
        loop = asyncio.get_running_loop()
        client = await Client.connect(portal)
        await client.log_in()
        world.target.deferred_reads = 1
        world.target.slow = 2.0
        begun = loop.time()
        client.say(read_command(2, 0, 1), write_command(3, 8, pattern(512, 2)))
        await asyncio.sleep(0.05)
        world.target.run_one()
        assert (await client.hear())[0]["itt"] == 2
        assert loop.time() - begun < 1.9
        assert (await client.hear())[0]["itt"] == 3
        assert loop.time() - begun >= 0.4
        client.end()

    run(test)


def test_what_may_not_wait_answers_the_held_writes_first() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        world.target.slow = 0.2
        logout = pack(Opcode.LOGOUT, 0x80, itt=9, cmd_sn=3)
        client.say(write_command(2, 0, pattern(512, 1)) + logout)
        everything = await client.closed()
        opcodes = [everything[at] for at in range(0, len(everything), BHS_BYTES)]
        assert opcodes == [Opcode.SCSI_RESPONSE, Opcode.LOGOUT_RESPONSE]
        client.end()

    run(test)


def test_a_connection_that_ends_while_it_is_held_leaves_nothing() -> None:
    async def test(portal: Portal, world: World) -> None:
        client = await Client.connect(portal)
        await client.log_in()
        world.target.slow = 0.1
        client.say(write_command(2, 0, pattern(512, 1)))
        await asyncio.sleep(0.03)
        client.end()
        await asyncio.sleep(0.3)
        assert world.target.peek(0, 1) == pattern(512, 1)

    run(test)


@pytest.mark.parametrize("deferred", [0, 1], ids=["flushed at once", "flushed later"])
def test_writes_with_fua_are_held_as_well(deferred: int) -> None:
    async def test(portal: Portal, world: World) -> None:
        loop = asyncio.get_running_loop()
        client = await Client.connect(portal)
        await client.log_in()
        world.target.slow = 0.3
        world.target.deferred_flushes = deferred
        begun = loop.time()
        wire = bytearray(write_command(2, 0, pattern(512, 1)))
        wire[33] |= 0x08  # FUA, in the second byte of the CDB
        client.say(bytes(wire))
        await asyncio.sleep(0.05)
        world.target.run_all()
        fields, _ = await client.hear()
        assert (fields["itt"], fields["status"]) == (2, 0)
        assert loop.time() - begun >= 0.3
        assert world.target.flushed == 1
        assert world.target.taken == [512]
        client.end()

    run(test)
