"""An HTTP server that answers from a script, broken in whatever way the script says.

One rule: one request takes one `Reply` off the script, in order; a request beyond its end gets 599, so that a
client which quietly tries again is seen to.
"""

import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Reply:
    """`raw` goes out as it is (nothing if empty); `then` says what becomes of the connection. With `body_bytes`
    only so much of the request's body is read before that."""

    raw: bytes = b""
    then: Literal["keep", "close", "reset", "hang"] = "keep"
    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def reply(status: int, body: bytes = b"", headers: dict[str, str] | None = None, **how: object) -> Reply:
    """A well-formed answer, with `how` as the other fields of `Reply`."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return Reply(raw, **how)  # type: ignore[arg-type]  # named fields, passed through


def refusal(status: int, code: str, inner: str = "", headers: dict[str, str] | None = None) -> Reply:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code>{inner}</Error>"
    return reply(status, text.encode(), headers)


class ScriptedServer:
    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = list(replies)
        self.requests: list[Request] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._spawn(self._accept)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._stopping.set()
        for held in [self._listener, *self._open]:
            try:
                held.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                # It was closed by its own thread or never connected: that is what we want.
                if error.errno is None:
                    raise
            held.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a callable
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed by stop
            self._open.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        try:
            while (request_line := stream.readline()).strip():
                headers = {}
                while line := stream.readline().strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                plan = self._replies.pop(0) if self._replies else reply(599)
                length = int(headers.get("content-length", 0))
                body = stream.read(length if plan.body_bytes is None else plan.body_bytes)
                method, target, _ = request_line.decode().split()
                self.requests.append(Request(method, target, headers, body))
                connection.sendall(plan.raw)
                if plan.then == "hang":
                    self._stopping.wait(10)
                    return
                if plan.then == "reset":
                    # Closing with lingering off and a zero timeout sends RST in place of FIN.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if plan.then != "keep":
                    return
        except OSError as error:
            if not self._stopping.is_set() and not isinstance(error, ConnectionError):
                raise
        finally:
            stream.close()
            connection.close()
