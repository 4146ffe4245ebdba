"""The gateway of a node: the one address at which its initiators find their disks, wherever these are served.

    QEMU, open-iscsi ──► 127.0.0.1:PORT ──► the disk's process on this node
                                       └──► NODE:PORT, the other node's gateway ──► the disk's process there

One rule: an initiator's address never changes, and what stands behind it may. The first PDU of a connection names the target
(RFC 7143 section 6.3); by it the connection is led, byte by byte, to whoever serves the disk now. When that one leaves, the
connection is closed; the initiator logs in again, at the same address, and sends again what had no answer.

Two kinds of sockets: to loopback initiators come, for disks that are active on this node; to the node's own address other
gateways come, which must know the cluster's secret (`peers`), for disks that are served here. Nothing is listed to anybody.
It keeps no state: end it and start it again, and initiators come back.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from uuid import uuid4

from plugin.disks import peers, serving
from plugin.disks.peers import Answer, Asked, NotOurs
from plugin.disks.serving import Route
from plugin.errors import Busy, PluginError
from s3core.errors import StoreError
from s3core.logs import configure_logging
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

LOGIN_PATIENCE_S: Final = 10.0
ROUTE_PATIENCE_S: Final = 25.0
"""Below the 30 s that open-iscsi gives a login; then the connection is closed, and the initiator comes again."""
BUFFER_BYTES: Final = 1024 * 1024
BHS_BYTES: Final = 48
LOGIN_OPCODE: Final = 0x03
LOGIN_BYTES_MAX: Final = 16 * 1024
LINE_LIMIT_BYTES: Final = LOGIN_BYTES_MAX
LOOKING_THREADS: Final = 64
CONNECTIONS_MAX: Final = 1024
"""Of initiators, and of other nodes: a flood from the network leaves the node's own guests their disks."""


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class NoLogin(Exception):
    """What came is no login of an initiator that this gateway can lead anywhere."""


def login_bytes(header: bytes) -> int:
    """How many bytes follow the 48 of a Login Request. NoLogin."""
    if header[0] & 0x3F != LOGIN_OPCODE:
        raise NoLogin(f"opcode {header[0] & 0x3F:#04x} instead of a login")
    data = int.from_bytes(header[5:8], "big")
    following = header[4] * 4 + (data + 3 & ~3)
    if following > LOGIN_BYTES_MAX:
        raise NoLogin(f"a login with {following} bytes of text")
    return following


def login_target(header: bytes, following: bytes) -> str:
    """The target that a login names. NoLogin: none, or a discovery session (nothing is told of disks that way)."""
    begin = header[4] * 4
    text = following[begin : begin + int.from_bytes(header[5:8], "big")]
    keys = dict(part.split(b"=", 1) for part in text.split(b"\0") if b"=" in part)
    if keys.get(b"SessionType", b"Normal") != b"Normal" or b"TargetName" not in keys:
        raise NoLogin("a discovery session, or no target")
    return keys[b"TargetName"].decode("ascii", errors="replace")


class Gateway:
    """`run_dir`: where activations are. `secret`: reads the cluster's secret; asked for each connection between nodes, so
    that a new one counts at once."""

    def __init__(
        self,
        run_dir: Path,
        secret: Callable[[], bytes],
        *,
        local: Sequence[tuple[str, int]],
        peer: Sequence[tuple[str, int]],
    ) -> None:
        self._run_dir = run_dir
        self._secret = secret
        self._local = local
        self._peer = peer
        self._name = f"{local[0][1]}-"
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises OSError naming the address; then nothing is listened on."""
        try:
            for addresses, handle in ((self._local, self._initiator), (self._peer, self._other_node)):
                for host, port in addresses:
                    server = await asyncio.start_server(self._guarded(handle), host, port, limit=LINE_LIMIT_BYTES)
                    self._servers.append(server)
        except OSError:
            await self.stop()
            raise

    def begin_anew(self) -> None:
        """No initiator is connected yet. Only for whoever listens: nobody else is the gateway then."""
        serving.forget_initiators(self._run_dir, self._name)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [server.sockets[0].getsockname()[:2] for server in self._servers]

    async def stop(self) -> None:
        """Drop every connection. Initiators come back when the gateway does."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _guarded(self, handle: Handle) -> Handle:
        present: set[asyncio.Task[None]] = set()

        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            present.add(task)
            _no_delay(writer)
            try:
                if len(present) <= CONNECTIONS_MAX:
                    await handle(reader, writer)
            except (NoLogin, NotOurs) as error:
                log.warning("a connection from %s was refused: %s", writer.get_extra_info("peername"), error)
            except (PluginError, StoreError, ConfigError) as error:
                log.warning("a connection leads nowhere: %s", error)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError) as error:
                log.debug("a connection ended: %r", error)
            finally:
                self._tasks.discard(task)
                present.discard(task)
                writer.close()

        return guarded

    # --- initiators of this node ---------------------------------------------------------------------------------

    async def _initiator(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(LOGIN_PATIENCE_S):
            header = await reader.readexactly(BHS_BYTES)
            following = await reader.readexactly(login_bytes(header))
        target = login_target(header, following)
        until = time.monotonic() + ROUTE_PATIENCE_S
        while True:
            found = await asyncio.to_thread(serving.active, self._run_dir, target)
            if found is None:
                raise NoLogin(f"{target} is not active on this node")
            route = await asyncio.to_thread(serving.route, found[0], until=until)
            opened = await self._open(route, target)
            if opened is not None:
                break
            # It was served there a moment ago, and is leaving.
            if time.monotonic() > until:
                raise Busy(f"{target} is on its way between nodes")
            await asyncio.sleep(serving.POLL_S)
        opened.write(header + following)
        name = f"{self._name}{uuid4().hex}"
        serving.note_initiator(found[0], name, here=True)
        try:
            await splice(writer, opened)
        finally:
            serving.note_initiator(found[0], name, here=False)

    async def _open(self, route: Route, target: str) -> asyncio.StreamWriter | None:
        """A connection on which the login may be sent; None: nobody serves the target there any more. Raises NotOurs."""
        try:
            async with asyncio.timeout(peers.PATIENCE_S):
                reader, writer = await asyncio.open_connection(route.host, route.port)
        except (OSError, TimeoutError):
            return None
        _no_delay(writer)
        if route.local:
            return writer
        try:
            async with asyncio.timeout(peers.PATIENCE_S):
                asked = Asked("open", target)
                secret, nonce = await asyncio.to_thread(self._secret), peers.new_nonce()
                greeted = await _line(reader)
                writer.write(peers.request(secret, greeted, nonce, asked))
                said = peers.answer_of(secret, greeted, nonce, asked, await _line(reader))
        except (OSError, TimeoutError):
            writer.close()
            return None
        except BaseException:
            writer.close()
            raise
        if said == "serving":
            return writer
        writer.close()
        return None

    # --- gateways of other nodes ---------------------------------------------------------------------------------

    async def _other_node(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(peers.PATIENCE_S):
            secret, nonce = await asyncio.to_thread(self._secret), peers.new_nonce()
            writer.write(peers.greeting(nonce))
            asked, theirs = peers.asked_of(secret, nonce, await _line(reader))
        said, route = await asyncio.to_thread(self._here, asked.target)
        there: asyncio.StreamWriter | None = None
        if asked.ask == "open" and route is not None:
            there = await self._open(route, asked.target)
            said = "serving" if there is not None else "busy"
        writer.write(peers.answer(secret, nonce, theirs, asked, said))
        if there is None:
            await writer.drain()
        else:
            await splice(writer, there)

    def _here(self, target: str) -> tuple[Answer, Route | None]:
        """Whether this node serves the target, on its own: nobody is led on to a third node."""
        found = serving.active(self._run_dir, target)
        if found is None:
            return "no", None
        try:
            here = serving.look(Path(found[1].state_dir))
        except Busy:
            return "busy", None
        if here is None:
            waits = serving.running(found[1]) is not None or serving.revive(*found)
            return ("busy" if waits else "no"), None
        if here.portal is None:
            return "busy", None
        return "serving", Route(*here.portal, local=True)


class _Pipe(asyncio.Protocol):
    """What one side sends, the other is sent; no more is read than the other takes. `ended` is done when a side has ended."""

    def __init__(self, other: asyncio.Transport, ended: "asyncio.Future[None]") -> None:
        self._other = other
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._other.write(data)

    def pause_writing(self) -> None:
        self._other.pause_reading()

    def resume_writing(self) -> None:
        self._other.resume_reading()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def splice(writer: asyncio.StreamWriter, there: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until one side ends; then end the other, which first gets what was read before.

    From now on the transports call each other, without a task in between: that is half of the time of a small request.
    Nothing can have been read and not been carried: each side waits for an answer to what it sent before this."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    one, other = writer.transport, there.transport
    assert isinstance(one, asyncio.Transport)
    assert isinstance(other, asyncio.Transport)
    for transport, opposite in ((one, other), (other, one)):
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        transport.set_protocol(_Pipe(opposite, ended))
    try:
        await ended
    finally:
        one.close()
        other.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Raises NotOurs for what is longer than any line of ours."""
    try:
        return await reader.readline()
    except ValueError as error:
        raise NotOurs("no line of the protocol") from error


def _no_delay(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _run(gateway: Gateway) -> None:
    stopping = asyncio.Event()
    # A thread waits while a disk comes up: those that hang must leave threads to the others.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOKING_THREADS, "look"))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await gateway.start()
    gateway.begin_anew()
    for host, port in gateway.addresses:
        log.info("gateway listens on %s:%d", host, port)
    await stopping.wait()
    await gateway.stop()


def run(gateway: Gateway) -> None:
    """Until SIGTERM. Raises OSError where an address cannot be had."""
    asyncio.run(_run(gateway))


def serve(run_dir: Path, secret: Path, port: int, local: str, peer: str) -> None:
    """Until SIGTERM. `run_dir`: of all disks; `peer` empty: for this node alone. Raises OSError where an address cannot be
    had."""
    configure_logging("info", "text")
    peers_at = [(peer, port)] if peer else []
    run(Gateway(run_dir, lambda: peers.read_secret(secret), local=[(local, port)], peer=peers_at))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
