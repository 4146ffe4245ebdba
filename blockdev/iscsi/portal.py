"""The rim: listening sockets and connections on an asyncio loop, and nothing else.

One rule: no protocol here. A readable socket is read once, straight into the connection's buffers; whatever that gave is
parsed, committed and answered by one `sendmsg` in the same turn. asyncio's transports are not used, since they copy what
a socket does not take at once; `add_reader` and our own calls cost 10 to 60 % less per command.

    reading    nothing waits to be sent
    draining   the socket took only part: the rest (copied, since a target lends its buffers for one turn only) waits for
               `add_writer`, and nothing is read meanwhile, so that a slow initiator holds back only itself
    holding    a volume asked for its writes to be slowed (`BlockTarget.hold_back`): their answers wait for a timer, and
               nothing is read meanwhile; what reads asked for before are sent as they come
    closing    what waits is still sent, for `LINGER_SECONDS` at most
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from blockdev.iscsi.address import Address as Address
from blockdev.iscsi.address import told
from blockdev.iscsi.connection import Connection, State
from blockdev.iscsi.errors import PortalError
from blockdev.iscsi.nexus import BufferPool
from blockdev.iscsi.nodes import Nodes
from blockdev.target import Buffer

log = logging.getLogger("bucketworks.iscsi")

IOV_MAX = 1024
"""Buffers one sendmsg takes (Linux UIO_MAXIOV)."""
LOGIN_SECONDS = 15.0
LINGER_SECONDS = 5.0
DISCOVERY_SECONDS = 60.0
"""A discovery session asks its question and goes; one that stays would keep others from asking."""
DEAD_SECONDS = 120
"""A peer that acknowledges nothing for so long is gone."""
CONNECTIONS_MAX = 512
READS_PER_TURN = 4
"""A busy connection gives way to the others after so many receives."""


class Portal:
    """iSCSI portals on `listen`, serving `nodes`. Everything runs on the loop `start` is called on, which must be the
    volumes' front thread. The first address is portal group 1, the next 2, and so on: to an initiator each is another
    port of the target, so that one with the same ISID at two of them has two sessions.

    `advertise`: what SendTargets tells in place of `listen` (behind NAT); one for each, or any number for a single one."""

    def __init__(
        self,
        nodes: Nodes,
        *,
        listen: Sequence[Address] = (Address(),),
        advertise: Sequence[Address] = (),
        login_seconds: float = LOGIN_SECONDS,
        discovery_seconds: float = DISCOVERY_SECONDS,
        connections_max: int = CONNECTIONS_MAX,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.nodes = nodes
        if advertise and len(advertise) != len(listen) > 1:
            raise PortalError(
                f"{len(listen)} addresses to listen on and {len(advertise)} to advertise",
                hint="advertise one for each, in the same order",
            )
        self._listen = tuple(listen)
        self._advertise = tuple(advertise)
        self._login_seconds = login_seconds
        self._discovery_seconds = discovery_seconds
        self._connections_max = connections_max
        self._random_bytes = random_bytes
        self._pool = BufferPool()
        self._listeners: list[_Listener] = []
        self._links: set[_Link] = set()
        self._empty = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def addresses(self) -> list[Address]:
        """Where it listens now, with the ports that were given."""
        return [listener.address for listener in self._listeners]

    @property
    def session_count(self) -> int:
        return len(self.nodes.sessions)

    @property
    def connection_count(self) -> int:
        return len(self._links)

    async def start(self) -> None:
        """Listens on every address. Raises PortalError if one cannot be had; then it listens on none."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._listen_everywhere()
        except PortalError:
            self._stop_listening()
            raise
        for listener in self._listeners:
            self._loop.add_reader(listener.sock, self._accept, listener)
            log.info("portal listens on %s", listener.address)

    async def try_addresses(self) -> None:
        """Raises PortalError if an address cannot be had. It listens on none, before and after."""
        try:
            await self._listen_everywhere()
        finally:
            self._stop_listening()

    async def stop(self, *, drain_seconds: float = 2.0) -> None:
        """Accepts nobody new, asks every initiator to log out, waits up to `drain_seconds` for that, then drops the rest.
        What was acknowledged is in the journal either way."""
        self._stop_listening()
        for link in list(self._links):
            link.ask_to_log_out(max(1, round(drain_seconds)))
        if self._links:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), drain_seconds)
            except TimeoutError:
                log.info("%d connections did not log out in time", len(self._links))
        for link in list(self._links):
            link.close("the portal stops")

    # ---- inside

    async def _listen_everywhere(self) -> None:
        for tag, address in enumerate(self._listen, 1):
            for sock in await self._bind(address):
                self._listeners.append(_Listener(sock, _address(sock.getsockname()), tag))

    async def _bind(self, address: Address) -> list[socket.socket]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise PortalError(f"cannot listen on {address}: {error}", hint="give an address of this machine") from error
        listeners: list[socket.socket] = []
        for family, kind, protocol, _, place in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            try:
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(place)
                listener.listen(128)
            except OSError as error:
                listener.close()
                for other in listeners:
                    other.close()
                raise PortalError(
                    f"cannot listen on {address}: {error.strerror or error}",
                    hint="another program uses that port, or the address is not of this machine; see `ss -ltnp`",
                ) from error
            listeners.append(listener)
        return listeners

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            if self._loop is not None:
                self._loop.remove_reader(listener.sock)
            listener.sock.close()
        self._listeners = []

    def _accept(self, listener: "_Listener") -> None:
        loop = self._loop
        assert loop is not None
        for _ in range(16):
            try:
                sock, peer = listener.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the listener stays readable, so pause it rather than spin.
                log.warning("cannot accept a connection: %s", error)
                loop.remove_reader(listener.sock)
                loop.call_later(1.0, self._listen_again, listener)
                return
            if len(self._links) >= self._connections_max:
                log.warning("%s turned away: %d connections are open", peer[0], len(self._links))
                sock.close()
                continue
            try:
                link = _Link(self, loop, sock, str(_address(peer)), listener.portal_group)
            except OSError as error:
                log.info("%s was gone at once: %s", peer[0], error)
                sock.close()
                continue
            self._links.add(link)

    def _listen_again(self, listener: "_Listener") -> None:
        if listener in self._listeners and self._loop is not None:
            self._loop.add_reader(listener.sock, self._accept, listener)

    def _gone(self, link: "_Link") -> None:
        self._links.discard(link)
        if not self._links:
            self._empty.set()

    def connection_for(self, sock: socket.socket, portal_group: int, notify: Callable[[], None]) -> Connection:
        listening = [(listener.address, listener.portal_group) for listener in self._listeners]
        came_to = _address(sock.getsockname())
        return Connection(
            self.nodes,
            random_bytes=self._random_bytes,
            pool=self._pool,
            addresses=told(listening, self._advertise, (came_to, portal_group)),
            notify=notify,
            portal_group=portal_group,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    sock: socket.socket
    address: Address
    portal_group: int


class _Link:
    """One accepted socket and its connection."""

    def __init__(
        self, portal: Portal, loop: asyncio.AbstractEventLoop, sock: socket.socket, peer: str, portal_group: int
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A host that lost its power keeps its session for two minutes, not for two hours.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_SECONDS - 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6)
        # Keepalive says nothing while data waits to be acknowledged or the peer's window is closed: this does.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)
        self._portal = portal
        self._loop = loop
        self._sock = sock
        self._peer = peer
        self._connection = portal.connection_for(sock, portal_group, self._notified)
        self._backlog: list[memoryview] = []
        self._closed = False
        self._logged_in = False
        self._closing: asyncio.TimerHandle | None = None
        self._holding: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = loop.call_later(portal._login_seconds, self._expired)
        loop.add_reader(sock, self._readable)

    def ask_to_log_out(self, seconds: int) -> None:
        self._connection.ask_to_log_out(seconds)
        self._push()

    def close(self, reason: str) -> None:
        """At once; what was not sent is lost."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._deadline, self._closing, self._holding):
            if timer is not None:
                timer.cancel()
        connection = self._connection
        failure = connection.failure or reason
        if failure:
            log.info("%s (%s): %s", self._peer, connection.who, failure)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._portal._gone(self)
        connection.lost()

    # ---- events

    def _readable(self) -> None:
        try:
            self._read()
        except Exception:
            # The last fence: whatever went wrong with this connection, the others and the volumes go on.
            log.exception("%s (%s): ended by an error of ours", self._peer, self._connection.who)
            self.close("internal error")

    def _read(self) -> None:
        connection, sock = self._connection, self._sock
        for _ in range(READS_PER_TURN):
            buffers = connection.buffers()
            room = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
            try:
                count = sock.recv_into(buffers[0]) if len(buffers) == 1 else sock.recvmsg_into(buffers)[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close(f"connection lost: {error.strerror or error}")
                return
            if not count:
                self.close("closed by the initiator" if connection.state is not State.CLOSING else "")
                return
            connection.received(count)
            if not self._push() or count < room:
                return

    def _push(self) -> bool:
        """Send what there is, parse what that made room for, and so on. False if reading must pause."""
        connection = self._connection
        outbox = connection.outbox
        while True:
            if self._closed:
                return False
            if outbox.parts:
                size = outbox.size
                self._send(connection.take(), size)
            if self._closed:
                return False
            if self._backlog:
                if connection.state is State.CLOSING:
                    self._linger()
                return False
            if connection.state is not State.LOGIN and not self._logged_in:
                self._logged_in = True
                self._login_is_over()
            if connection.state is State.CLOSING:
                self._close_gently()
                return False
            if outbox.hold_seconds:
                self._hold()
            if self._holding is not None:
                return False
            if not connection.go_on():
                return True

    def _hold(self) -> None:
        """Read nothing for a while. A hold that runs already is not made longer: nobody's answer waits twice."""
        outbox = self._connection.outbox
        seconds, outbox.hold_seconds = outbox.hold_seconds, 0.0
        if self._holding is None:
            self._loop.remove_reader(self._sock)
            self._holding = self._loop.call_later(seconds, self._released)

    def _released(self) -> None:
        self._holding = None
        try:
            self._connection.release()
            if self._push():
                self._loop.add_reader(self._sock, self._readable)
        except Exception:
            # As in `_readable`.
            log.exception("%s (%s): ended by an error of ours", self._peer, self._connection.who)
            self.close("internal error")

    def _send(self, parts: list[Buffer], size: int) -> None:
        """One sendmsg per 1024 buffers; the first that is not taken whole starts the backlog. `size`: their bytes."""
        if self._backlog:
            self._backlog += _copied(parts)
            return
        at = 0
        while at < len(parts):
            some = parts if len(parts) <= IOV_MAX else parts[at : at + IOV_MAX]
            try:
                sent = self._sock.sendmsg(some)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self.close(f"connection lost: {error.strerror or error}")
                return
            if sent == size:
                return
            for part in islice(parts, at, at + IOV_MAX):
                length = len(part)
                if sent < length:
                    break
                sent -= length
                at += 1
            else:
                continue
            if at < len(parts):
                self._backlog = _copied([memoryview(parts[at]).cast("B")[sent:], *parts[at + 1 :]])
                self._loop.remove_reader(self._sock)
                self._loop.add_writer(self._sock, self._writable)
            return

    def _writable(self) -> None:
        try:
            self._drain()
        except Exception:
            # As in `_readable`.
            log.exception("%s (%s): ended by an error of ours", self._peer, self._connection.who)
            self.close("internal error")

    def _drain(self) -> None:
        try:
            sent = self._sock.sendmsg(self._backlog[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"connection lost: {error.strerror or error}")
            return
        backlog = self._backlog
        while backlog and sent >= len(backlog[0]):
            sent -= len(backlog[0])
            del backlog[0]
        if backlog:
            backlog[0] = backlog[0][sent:]
            return
        self._loop.remove_writer(self._sock)
        if self._push():
            self._loop.add_reader(self._sock, self._readable)

    def _notified(self) -> None:
        """The connection has something to send, or has ended, outside of our own call."""
        try:
            self._push()
        except Exception:
            # As in `_readable`; here the caller is a target or another session, whom this must not reach.
            log.exception("%s (%s): ended by an error of ours", self._peer, self._connection.who)
            self.close("internal error")

    def _login_is_over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        session = self._connection.session
        if session is not None and session.identity.discovery:
            self._deadline = self._loop.call_later(self._portal._discovery_seconds, self._expired)

    def _expired(self) -> None:
        self._deadline = None
        self._connection.expire()
        self._push()

    def _linger(self) -> None:
        """From now on the connection only gets rid of what waits; the session has ended."""
        if self._closing is not None:
            return
        self._closing = self._loop.call_later(LINGER_SECONDS, self.close, "")
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None
        self._connection.lost()

    def _close_gently(self) -> None:
        """All is sent: say so, and wait shortly for the peer's own end, so that it is not cut off by a reset."""
        self._linger()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close("")
            return
        self._loop.add_reader(self._sock, self._readable)


def _address(name: tuple[Any, ...]) -> Address:
    """Of what the socket module calls an address."""
    return Address(str(name[0]).partition("%")[0], int(name[1]))


def _copied(parts: Sequence[Buffer]) -> list[memoryview]:
    whole = b"".join(parts)
    return [memoryview(whole)] if whole else []
