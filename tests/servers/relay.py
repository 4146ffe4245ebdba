"""The way to a store, which a test can cut, slow down or make refuse: an HTTP relay on a port of its own.

One rule: what passes goes on byte for byte, requests as they came (signatures stay good) and answers with their status,
headers and body; nothing is ever made up but the 503 that was asked for.
"""

import http.client
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 57\r\n\r\n"
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
)
_ONE_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Relay:
    """To `port` on this host. `refuse_every` n > 0: every n-th request is answered 503; `delay_s`: before each is passed on."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.refuse_every = 0
        self.delay_s = 0.0
        self.before: Callable[[str], None] = lambda _: None
        """Called with each request line before the request is passed on; it may wait."""
        self.requests = 0
        self.refused = 0
        self.kinds: Counter[str] = Counter()
        """Requests by method; those that list are LIST, those that copy COPY."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._spawn_accepting()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Connections end now, new ones are refused. What was on its way may have arrived or not."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            cut, self._open = self._open, set()
        for held in cut:
            with suppress(OSError):  # it may have ended by itself
                held.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """The way is open again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._spawn_accepting()

    def stop(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(timeout=5)

    # --- inside

    def _spawn_accepting(self) -> None:
        self._spawn(self._accept, self._listener)

    def _spawn(self, work: object, *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a callable
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed by cut
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with self._lock:
            self._open.add(client)
        stream = client.makefile("rb")
        try:
            server = socket.create_connection(("127.0.0.1", self._upstream))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(server)
            while self._pass_one(stream, client, server):
                continue
        except (OSError, http.client.HTTPException):
            return  # cut, or one of the two has gone: the other learns it by the end of its connection
        finally:
            with self._lock:
                self._open -= {client, server} if server is not None else {client}
            stream.close()
            client.close()
            if server is not None:
                server.close()

    def _pass_one(self, stream: io.BufferedReader, client: socket.socket, server: socket.socket) -> bool:
        head = line = stream.readline()
        if not line:
            return False
        asked = line.decode("latin-1")
        method, kind = line.split()[0].decode(), ""
        if b"list-type=2" in line:
            kind = "LIST"
        length = 0
        while (line := stream.readline()).strip():
            head += line
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
            elif name.lower() == b"x-amz-copy-source":
                kind = "COPY"
        body = stream.read(length)
        with self._lock:
            self.requests += 1
            self.kinds[kind or method] += 1
            refuse = self.refuse_every and self.requests % self.refuse_every == 0
            self.refused += bool(refuse)
        if refuse:
            client.sendall(SLOW_DOWN)
            return True
        self.before(asked)
        if self.delay_s:
            time.sleep(self.delay_s)
        server.sendall(head + b"\r\n" + body)
        answer = http.client.HTTPResponse(server, method=method)
        answer.begin()
        content = answer.read()
        kept = [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in _ONE_HOP]
        size = answer.getheader("content-length", "0") if method == "HEAD" else str(len(content))
        if answer.status not in (204, 304):
            kept.append(f"content-length: {size}")
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *kept]
        client.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)
        return not answer.will_close
