"""Screens and terminals: a websocket of a browser on one side, the hypervisor's console on the other, bytes between.

    GET /console/<environment id>/ws?ticket=...      (`verbs.console` makes the ticket)

    kind      from the browser                                  to the browser
    vnc       binary: RFB (RFC 6143)                            binary: RFB, no password asked for
    terminal  binary: what was typed                            binary: what the terminal writes
              text: {"columns": 80, "rows": 24}

One rule: the browser never sees the hypervisor: neither its address, nor a ticket or a password of it. Proxmox VE's framing of
terminals (termproxy: `0:LENGTH:DATA`, `1:COLUMNS:ROWS:`, `2` to keep alive) is spoken here.

Each side is read only when the other has taken what came before: a slow browser slows the machine's screen, and no memory
grows.
"""

import asyncio
import contextlib
import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import websockets
from fastapi import APIRouter, WebSocket
from fastapi.concurrency import run_in_threadpool
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect

from envctl.accounts import rights
from envctl.audit import OK
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Ticket
from envctl.drivers.port import ConsoleTarget, MachineRef
from envctl.errors import DriverFailed, EnvctlError, Forbidden, NoSuchThing, TooMany
from envctl.verbs.console import hash_of
from envctl.web import rfb
from envctl.web.security import caller_now, current_caller

log = logging.getLogger(__name__)

OPEN_S: Final = 15.0
"""For the hypervisor to answer; its own tickets live little longer."""
IDLE_S: Final = 3600.0
"""Without a byte from the browser."""
LONGEST_S: Final = 12 * 3600.0
CHECK_S: Final = 30.0
"""How often the sign-in is looked at again, and the far side kept alive."""
PIECE_BYTES: Final = 64 << 10
MESSAGE_BYTES_MAX: Final = 1 << 20
"""From a browser: RFB's largest is a clipboard."""
A_USER_MAX: Final = 8
SIZE_MAX: Final = 1000
"""Columns and rows."""

REFUSED: Final = 1008
GOING_AWAY: Final = 1001
FAILED: Final = 1011
ENDED: Final = 1000


class Bridge:
    """What is open in this process. One event loop."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def count(self) -> int:
        return self._open.total()

    def close(self) -> None:
        """End all: the server stops."""
        for task in self._tasks:
            task.cancel()

    @contextlib.contextmanager
    def one_more(self, user_id: str) -> Iterator[None]:
        """TooMany."""
        if self._open[user_id] >= A_USER_MAX:
            raise TooMany(f"{A_USER_MAX} consoles are open already", retry_after_s=CHECK_S, hint="close one of them")
        task = asyncio.current_task()
        assert task is not None
        self._open[user_id] += 1
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A ticket that was taken."""

    caller: Caller
    environment_id: str
    name: str
    kind: str
    driver: str
    machine: MachineRef


def admit(context: Context, caller: Caller, environment_id: str, secret: str) -> Admitted:
    """Use the ticket up. Forbidden for one that is unknown, used, expired, of another sign-in or of another environment: all
    alike. Durable on return, so a ticket that was read on the way opens nothing."""
    with context.audit.act(caller, "console.open", environment_id=environment_id) as act:
        row = act.session.get(Ticket, hash_of(secret, caller.login_hash))
        good = row is not None and row.user_id == caller.user_id and row.environment_id == environment_id
        if row is None or not good or row.expires_at <= context.now():
            raise Forbidden("that ticket is not good (any more)", hint="open the console page again")
        act.session.delete(row)
        found: Environment = rights.environment(act.session, caller, environment_id)
        act.target, act.detail["kind"] = found.name, row.kind
        if not found.machine or not found.running:
            raise NoSuchThing(f"{found.name} does not run")
        return Admitted(caller, found.id, found.name, row.kind, found.driver, MachineRef(found.machine))


def router(get_context: Callable[[], Context], bridge: Bridge) -> APIRouter:
    made = APIRouter()

    @made.websocket("/console/{environment}/ws")
    async def console(socket: WebSocket, environment: str, ticket: str = "") -> None:
        context = get_context()
        try:
            caller = current_caller(socket)
            with bridge.one_more(caller.user_id):
                admitted = await run_in_threadpool(admit, context, caller, environment, ticket)
                await _serve(context, socket, admitted)
        except EnvctlError as error:
            log.info("console of %s: %s", environment, error)
            await _close(socket, REFUSED, error.code)
        except asyncio.CancelledError:
            await _close(socket, GOING_AWAY, "the console is restarted")
            raise

    return made


async def _serve(context: Context, socket: WebSocket, admitted: Admitted) -> None:
    driver = context.drivers.get(admitted.driver)
    if driver is None:
        raise DriverFailed(f"the hypervisor {admitted.driver} is not configured any more")
    async with asyncio.timeout(OPEN_S):
        target = await driver.console(admitted.machine, "terminal" if admitted.kind == "terminal" else "vnc")
    offered = socket.scope.get("subprotocols", [])
    began = context.clock.monotonic()
    near = Near(socket)
    outcome = OK
    try:
        async with _opened(target) as far:
            await socket.accept("binary" if "binary" in offered else None)
            if target.kind == "terminal":
                await _terminal_begins(far, target)
                await _both_ways(context, socket, admitted, near, far, framed=bool(target.preamble))
            else:
                if target.password:
                    async with asyncio.timeout(OPEN_S):
                        await rfb.open_far(far.exactly, far.write, target.password)
                        await rfb.open_near(near.exactly, near.write)
                await _both_ways(context, socket, admitted, near, far, framed=False)
        await _close(socket, ENDED, near.why)
    except (DriverFailed, EOFError, OSError, TimeoutError, websockets.WebSocketException) as error:
        # What a library says may have addresses of the hypervisor in it: the log has it, the browser does not.
        outcome = "driver-failed"
        log.warning("console of %s: %s", admitted.name, error or type(error).__name__)
        await _close(socket, FAILED, "the hypervisor's console failed")
    finally:
        detail = {
            "kind": admitted.kind,
            "seconds": int(context.clock.monotonic() - began),
            "typed_bytes": near.received,
            "shown_bytes": near.sent,
            "why": near.why,
        }
        await asyncio.shield(run_in_threadpool(_tell, context, admitted, outcome, detail))


def _tell(context: Context, admitted: Admitted, outcome: str, detail: dict[str, object]) -> None:
    context.audit.row(
        admitted.caller,
        "console.close",
        target=admitted.name,
        environment_id=admitted.environment_id,
        outcome=outcome,
        detail=detail,
    )


class Pieces(ABC):
    """Reads exactly so many bytes of what comes in pieces; what is left over comes first afterwards."""

    def __init__(self) -> None:
        self._left = b""

    @abstractmethod
    async def _piece(self) -> bytes:
        """The next bytes; empty: there are no more."""

    async def exactly(self, count: int) -> bytes:
        """EOFError."""
        while len(self._left) < count:
            more = await self._piece()
            if not more:
                raise EOFError("the console's connection ended in its beginning")
            self._left += more
        found, self._left = self._left[:count], self._left[count:]
        return found

    async def read(self) -> bytes:
        """The next piece; empty at the end."""
        if self._left:
            found, self._left = self._left, b""
            return found
        return await self._piece()


@dataclass(frozen=True, slots=True)
class Size:
    """Of a terminal."""

    columns: int
    rows: int


class Near(Pieces):
    """The browser's side."""

    def __init__(self, socket: WebSocket) -> None:
        super().__init__()
        self._socket = socket
        self.received = 0
        self.sent = 0
        self.heard_at = asyncio.get_running_loop().time()
        self.why = "the browser closed it"

    async def event(self) -> bytes | Size:
        """Bytes, or another size of the terminal; empty bytes at the end."""
        if self._left:
            return await self.read()
        while True:
            try:
                message = await self._socket.receive()
            except (WebSocketDisconnect, RuntimeError):
                return b""
            if message["type"] != "websocket.receive":
                return b""
            self.heard_at = asyncio.get_running_loop().time()
            data: bytes | None = message.get("bytes")
            if data:
                self.received += len(data)
                return data
            size = size_of(message.get("text") or "")
            if size is not None:
                return size

    async def _piece(self) -> bytes:
        while isinstance(found := await self.event(), Size):
            continue
        return found

    async def write(self, data: bytes) -> None:
        """Returns when the browser's connection has room again."""
        self.sent += len(data)
        await self._socket.send_bytes(data)


class Far(Pieces):
    """The hypervisor's side."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Returns when it was taken."""


class FarSocket(Far):
    """A websocket of a hypervisor."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__()
        self._connection = connection

    async def _piece(self) -> bytes:
        try:
            while not (found := await self._connection.recv()):
                continue
        except websockets.ConnectionClosedOK:
            return b""
        return found.encode() if isinstance(found, str) else found

    async def write(self, data: bytes) -> None:
        await self._connection.send(data)


class FarStream(Far):
    """A Unix socket of this host."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer

    async def _piece(self) -> bytes:
        return await self._reader.read(PIECE_BYTES)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


@asynccontextmanager
async def _opened(target: ConsoleTarget) -> AsyncIterator[Far]:
    """OSError, TimeoutError, WebSocketException."""
    if target.path:
        async with asyncio.timeout(OPEN_S):
            reader, writer = await asyncio.open_unix_connection(target.path, limit=PIECE_BYTES)
        try:
            yield FarStream(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return
    tls: Any = None if not target.url.startswith("wss:") else target.verify if target.verify is not True else True
    async with connect(
        target.url,
        additional_headers=dict(target.headers),
        subprotocols=[websockets.Subprotocol("binary")],
        ssl=tls,
        compression=None,
        proxy=None,
        open_timeout=OPEN_S,
        close_timeout=2.0,
        ping_interval=None,
        max_size=16 * MESSAGE_BYTES_MAX,
        max_queue=4,
    ) as connection:
        yield FarSocket(connection)


async def _terminal_begins(far: Far, target: ConsoleTarget) -> None:
    """termproxy: `USER:TICKET`, and `OK` comes back. A plain serial line has no beginning."""
    if not target.preamble:
        return
    await far.write(target.preamble)
    async with asyncio.timeout(OPEN_S):
        answer = await far.exactly(2)
    if answer != b"OK":
        raise DriverFailed("the terminal was refused")


async def _both_ways(
    context: Context, socket: WebSocket, admitted: Admitted, near: Near, far: Far, *, framed: bool
) -> None:
    """Until either side ends, nobody types for long, or the sign-in or the right to this machine is over; `near.why` says
    which."""

    async def typed() -> None:
        while (event := await near.event()) != b"":
            if isinstance(event, Size):
                if framed:
                    await far.write(resize_frame(event))
            else:
                await far.write(input_frame(event) if framed else event)

    async def shown() -> None:
        while data := await far.read():
            await near.write(data)
        near.why = "the machine's side ended"

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + LONGEST_S
        while True:
            await asyncio.sleep(CHECK_S)
            if why := await run_in_threadpool(why_over, context, socket, admitted):
                near.why = why
                return
            if loop.time() - near.heard_at > IDLE_S or loop.time() > until:
                near.why = "nobody used it"
                return
            if framed:
                await far.write(KEEP_ALIVE)

    tasks = [asyncio.create_task(one()) for one in (typed, shown, watched)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def why_over(context: Context, socket: WebSocket, admitted: Admitted) -> str:
    """Empty while who opened the console may still have it: whoever was an operator an hour ago may be none now, and a machine
    may have been made anew for somebody else."""
    caller = caller_now(context, socket)
    if caller is None:
        return "the sign-in is over"
    try:
        with context.database.read() as session:
            found = rights.environment(session, caller, admitted.environment_id)
    except NoSuchThing:
        return "the environment is not theirs any more"
    if not found.machine or MachineRef(found.machine) != admitted.machine:
        return "the machine is gone"
    return ""


def input_frame(data: bytes) -> bytes:
    """termproxy's: `0:LENGTH:DATA`, the length in bytes."""
    return b"0:%d:%b" % (len(data), data)


def resize_frame(size: Size) -> bytes:
    return b"1:%d:%d:" % (size.columns, size.rows)


KEEP_ALIVE: Final = b"2"


def size_of(text: str) -> Size | None:
    """`{"columns": 80, "rows": 24}`; None for anything else."""
    try:
        said = json.loads(text[:200])
        columns, rows = said["columns"], said["rows"]
    except (ValueError, TypeError, KeyError):
        return None
    if type(columns) is not int or type(rows) is not int:
        return None
    return Size(columns, rows) if 0 < columns <= SIZE_MAX and 0 < rows <= SIZE_MAX else None


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    """Nothing, where the browser has gone."""
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
        await socket.close(code, reason)
