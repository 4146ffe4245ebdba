"""The fake as an ASGI application: `/api2/json/...` as pveproxy answers it, console websockets, and `/fake/...` to order
faults.

One rule: what is answered is decided in `FakePve.handle`; here are only HTTP, delays and broken connections. `/fake/` has no
password: the server listens on loopback alone, and there is nothing real behind it.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from envctl.fake_pve.cluster import FakePve, Refusal
from envctl.fake_pve.consoles import serve_terminal, serve_vnc
from envctl.fake_pve.faults import Fault

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

PREFIX: Final = "/api2/json"
BODY_BYTES_MAX: Final = 1 << 20


def application(fake: FakePve, via: str = "", *, clock_ahead_s: float = 0.0) -> Application:
    """The web side of node `via` (empty: the first): any node answers for all of the cluster."""
    asked_node = via or next(iter(fake.nodes))

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await _websocket(fake, asked_node, scope, receive, send)
        elif scope["type"] == "http":
            await _http(fake, asked_node, clock_ahead_s, scope, receive, send)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _http(fake: FakePve, via: str, clock_ahead_s: float, scope: Message, receive: Receive, send: Send) -> None:
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = bool(message.get("more_body"))
        if len(body) > BODY_BYTES_MAX:
            await _answer(send, 413, {"data": None, "message": "too large"}, clock_ahead_s)
            return
    method, path = scope["method"], unquote(scope["raw_path"].decode("ascii"))
    if path.startswith("/fake/"):
        await _control(fake, method, path, body, send)
        return
    if not path.startswith(PREFIX + "/"):
        await _answer(send, 404, {"data": None, "message": f"no such file '{path}'"}, clock_ahead_s)
        return
    path = path[len(PREFIX) :]
    text = scope.get("query_string", b"") if method in ("GET", "DELETE") else body
    parameters = dict(parse_qsl(text.decode(), keep_blank_values=True))
    authorization = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), "")

    def work() -> tuple[int, dict[str, Any]]:
        try:
            return 200, {"data": fake.handle(method, path, parameters, authorization, via)}
        except Refusal as error:
            return error.status, {
                "data": None,
                "message": error.message,
                **({"errors": error.errors} if error.errors else {}),
            }

    fault = _take(fake, method, path)
    if fault is None:
        status, answer = await asyncio.to_thread(work)
        await _answer(send, status, answer, clock_ahead_s)
        return
    words = {"data": None, "message": fault.message}
    if fault.kind == "answer":
        await asyncio.sleep(fault.delay_s)
        await _answer(send, fault.status, words, clock_ahead_s)
    elif fault.kind == "later":
        await _answer(send, fault.status, words, clock_ahead_s)
        await asyncio.sleep(fault.delay_s)
        await asyncio.to_thread(work)
    elif fault.kind == "after":
        await asyncio.to_thread(work)
        await _answer(send, fault.status, words, clock_ahead_s)
    elif fault.kind == "drop":
        await asyncio.to_thread(work)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
    else:
        await asyncio.sleep(fault.delay_s)
        status, answer = await asyncio.to_thread(work)
        await _answer(send, status, answer, clock_ahead_s)


def _take(fake: FakePve, method: str, path: str) -> Fault | None:
    with fake.lock:
        for fault in fake.faults:
            if fault.kind != "task" and fault.hits(method, path):
                fault.times -= 1
                return fault
    return None


async def _answer(send: Send, status: int, data: Any, clock_ahead_s: float = 0.0) -> None:
    body = json.dumps(data).encode()
    headers = [
        (b"content-type", b"application/json;charset=UTF-8"),
        (b"content-length", str(len(body)).encode()),
        (b"date", formatdate(time.time() + clock_ahead_s, usegmt=True).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _control(fake: FakePve, method: str, path: str, body: bytes, send: Send) -> None:
    """`POST /fake/faults` (fields of `Fault`), `GET /fake/faults`, `GET /fake/machines`, `POST /fake/nodes/NAME` with `online`,
    `GET /fake/violations`."""
    try:
        asked = json.loads(body) if body else {}
        if (method, path) == ("POST", "/fake/faults"):
            fake.fault(**asked)
            await _answer(send, 200, {"ordered": True})
            return
        if (method, path) == ("GET", "/fake/faults"):
            await _answer(send, 200, [vars(fault) for fault in fake.faults])
            return
        if (method, path) == ("GET", "/fake/machines"):
            fake.advance()
            with fake.lock:
                found = [
                    {
                        "vmid": each.vmid,
                        "node": each.node,
                        "running": each.running,
                        "pool": each.pool,
                        "config": dict(each.config),
                    }
                    for each in fake.machines.values()
                ]
            await _answer(send, 200, found)
            return
        if (method, path) == ("GET", "/fake/violations"):
            await _answer(send, 200, list(fake.violations))
            return
        node = re.fullmatch(r"/fake/nodes/([\w-]+)", path)
        if method == "POST" and node and node[1] in fake.nodes:
            if asked["online"]:
                fake.nodes[node[1]].online = True
            else:
                fake.crash_node(node[1])
            await _answer(send, 200, {"online": fake.nodes[node[1]].online})
            return
    except (ValueError, TypeError, KeyError) as error:
        await _answer(send, 400, {"message": repr(error)})
        return
    await _answer(send, 404, {"message": f"the fake has no {method} {path}"})


async def _websocket(fake: FakePve, via: str, scope: Message, receive: Receive, send: Send) -> None:
    """A console: the ticket and the token are checked, then the far side of the port is what `consoles` plays."""
    await receive()
    path = unquote(scope["raw_path"].decode("ascii"))
    parameters = dict(parse_qsl(scope.get("query_string", b"").decode(), keep_blank_values=True))
    authorization = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), "")
    try:
        await asyncio.to_thread(fake.handle, "GET", path[len(PREFIX) :], parameters, authorization, via)
    except Refusal:
        await send(
            {"type": "websocket.close", "code": 1008}
        )  # before it was accepted: the handshake is answered with 403
        return
    protocols = scope.get("subprotocols") or []
    await send({"type": "websocket.accept", "subprotocol": "binary" if "binary" in protocols else None})
    with fake.lock:
        kind, vmid, ticket, password = fake.ports.pop((via, int(parameters["port"])))
        machine = fake.machines.get(vmid)

    async def read() -> bytes | None:
        """Bytes, or None: it is over."""
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return None
        return bytes(message["bytes"]) if message.get("bytes") is not None else str(message.get("text") or "").encode()

    async def write(data: bytes) -> None:
        await send({"type": "websocket.send", "bytes": data})

    def lines() -> list[str]:
        with fake.lock:
            if machine is None:
                return ["no such machine"]
            name = machine.config.get("name", str(machine.vmid))
            return [
                name,
                *(
                    machine.guest.lines()
                    if machine.guest is not None
                    else ["running" if machine.running else "stopped"]
                ),
            ]

    if kind == "vnc":
        await serve_vnc(read, write, password, lines)
    else:
        user = authorization.removeprefix("PVEAPIToken=").rpartition("=")[0]
        await serve_terminal(read, write, f"{user}:{ticket}\n".encode(), lines)
    await _close(send)


async def _close(send: Send) -> None:
    try:
        await send({"type": "websocket.close", "code": 1000})
    except RuntimeError:
        return  # the browser's side was first
