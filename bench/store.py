"""A loopback S3 server for benchmarks: objects in memory, conditions on demand, every request counted.

One rule: it must never be what is measured. So one thread serves all connections with epoll and plain sockets; bodies are
received where they stay, and sent from there. `bench.bare_client` says what it lets a parallel client have, and `bench` prints
beside every figure how busy it was.

    python -m bench.store                              prints its port; serves 127.0.0.1 until it is ended
    GET  /_stats[?bucket=NAME]                         what was asked of it, as JSON
    POST /_stats/clear                                 counts from now on
    POST /_latency?ms=20                               how long every answer waits, beside what follows
    POST /_bandwidth?mib_s=100&per_connection_mib_s=40 each direction, shared by all, and each connection's own; 0: no limit
    POST /_faults?share=0.2&status=503&seed=1&lost=0.5 see `bench.conditions.Faults`; also method= and retry_after_s=
    POST /_blackout?seconds=30[&refuse=1]              requests are taken and never answered, their connections reset
                                                       afterwards; or connections are refused, and open ones reset at once
    POST /_reset                                       no conditions at all
    POST /_flip?path=/bucket/key&offset=N[&bit=0]      one bit of one object turned
    POST /_put?path=/bucket/key                        the body is an object now, uncounted
    POST /_remove?bucket=NAME                          its objects and uploads are gone, uncounted

What it knows of S3 says `bench.objects`. These calls themselves are never delayed, failed or counted.
"""

import argparse
import gc
import heapq
import http.client
import itertools
import json
import re
import select
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from urllib.parse import quote, unquote, urlencode

from bench.conditions import MIB, Conditions, Fate, Faults
from bench.objects import REASONS, Answer, Bucket, Data, Objects, Request, Stats, error, parse_head

__all__ = ["READY", "Client", "Server", "Stats"]

HEAD_BYTES_MAX = 64 * 1024
READY = "the store listens on port"
SOCKET_BYTES = 4 * 1024 * 1024
JOINED_BYTES_MAX = 16 * 1024
"""Up to here one copy costs less than a second buffer in the system call."""
BACKLOG = 1024
_ENTRY = re.compile(rb"<Key>([^<]*)</Key>.*?<Size>(\d+)</Size>")
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST (socket(7))."""
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class Connection:
    """One keep-alive connection. Heads go through a small buffer, bodies straight to where they will stay."""

    __slots__ = (
        "_body_filled",
        "_buffer",
        "_chunked",
        "_filled",
        "_pending",
        "_request",
        "_server",
        "answering",
        "begun",
        "controls",
        "down",
        "sock",
        "up",
    )

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.sock = sock
        self.answering = False
        self.controls = False
        self.begun = 0.0
        self.up, self.down = server.conditions.own_link(), server.conditions.own_link()
        self._server = server
        self._buffer = bytearray(HEAD_BYTES_MAX)
        self._filled = 0
        self._request: Request | None = None
        self._body_filled = 0
        self._chunked: bytearray | None = None
        self._pending: list[memoryview] = []

    def readable(self) -> None:
        request = self._request
        try:
            if request is not None and not self.answering:
                self._body_filled += (count := self.sock.recv_into(memoryview(request.body)[self._body_filled :]))
                if count and self._body_filled == len(request.body):
                    self._complete(request)
            else:
                room = memoryview(self._buffer)[self._filled :]
                # A client that sends on and on while it waits for an answer is no client of this server.
                count = self.sock.recv_into(room) if room else 0
                self._filled += count
                if count and not self.answering:
                    self._begin()
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._server.drop(self)

    def writable(self) -> None:
        self._flush()

    def _begin(self) -> None:
        """Look for a head in what has come."""
        if self._chunked is not None:
            self._go_on_chunked(self._chunked)
            return
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled == len(self._buffer):
                self._server.drop(self)
            return
        try:
            request = parse_head(bytes(self._buffer[:end]))
            size = int(request.headers.get("content-length", "0"))
        except ValueError:
            self._server.drop(self)
            return
        self.begun = time.monotonic()
        headers = request.headers
        if headers.get("expect", "").lower() == "100-continue" and self._filled == end + 4:
            # libcurl (s3backer) asks before every body, and without an answer waits for a second each time.
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._take(end + 4)
            self._request, self._chunked = None, bytearray()
            self._server.chunked[self] = request
            self._go_on_chunked(self._chunked)
            return
        had = min(self._filled - end - 4, size)
        if size:
            request.body = bytearray(size)
            request.body[:had] = self._buffer[end + 4 : end + 4 + had]
        self._take(end + 4 + had)
        self._request, self._body_filled = request, had
        if had == size:
            self._complete(request)

    def _go_on_chunked(self, whole: bytearray) -> None:
        """A body in chunks (RFC 9112 section 7.1), whose end only they tell."""
        while True:
            end = self._buffer.find(b"\r\n", 0, self._filled)
            if end < 0:
                return
            try:
                size = int(bytes(self._buffer[:end]).partition(b";")[0], 16)
            except ValueError:
                self._server.drop(self)
                return
            if size + end + 4 > len(self._buffer):
                # Not in place: a view of it is what has just been received into.
                self._buffer = self._buffer + bytes(size + end + 4 - len(self._buffer))
            if self._filled < end + 2 + size + 2:
                return
            whole += memoryview(self._buffer)[end + 2 : end + 2 + size]
            self._take(end + 2 + size + 2)
            if not size:
                request = self._server.chunked.pop(self)
                request.body, self._chunked = whole, None
                self._request = request
                self._complete(request)
                return

    def _take(self, count: int) -> None:
        """Forget the first `count` bytes of the buffer."""
        rest = self._filled - count
        if rest:
            self._buffer[:rest] = self._buffer[count : self._filled]
        self._filled = rest

    def _complete(self, request: Request) -> None:
        self.answering = True
        self._server.complete(self, request)

    def finish(self) -> None:
        """The answer is out: look at what came meanwhile."""
        self.answering = False
        self._request = None
        if self._filled:
            self._begin()

    def write(self, *pieces: Data) -> None:
        if self._pending:
            self._pending += [memoryview(piece) for piece in pieces]
            return
        try:
            sent = self.sock.sendmsg(pieces) if len(pieces) > 1 else self.sock.send(pieces[0])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._server.drop(self)
            return
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
                continue
            self._pending.append(memoryview(piece)[sent:])
            sent = 0
        if self._pending:
            self._server.watch(self, _IN | _OUT)

    def _flush(self) -> None:
        try:
            sent = self.sock.sendmsg(self._pending[:16])
        except BlockingIOError:
            return
        except OSError:
            self._server.drop(self)
            return
        while sent and sent >= len(self._pending[0]):
            sent -= len(self._pending.pop(0))
        if sent:
            self._pending[0] = self._pending[0][sent:]
        if not self._pending:
            self._server.watch(self, _IN)


class Server:
    """All connections, and the time at which something is to happen."""

    def __init__(self, port: int = 0, check_md5: bool = False) -> None:
        self.conditions = Conditions()
        self.objects = Objects(check_md5)
        self.chunked: dict[Connection, Request] = {}
        self._check_md5 = check_md5
        self._connections: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._in_flight = 0
        self._in_flight_max = 0
        self._epoll = select.epoll()
        self._listener = self._listen(port)
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        """Serve until interrupted."""
        poll, waits = self._epoll.poll, [self._epoll]
        while True:
            events = poll(0)
            if not events:
                due = self._timers[0][0] - time.monotonic() if self._timers else None
                if due is None or due > 0:
                    # epoll_wait counts in milliseconds, select in microseconds.
                    select.select(waits, (), (), due)
                    events = poll(0)
            for number, event in events:
                connection = self._connections.get(number)
                if connection is None:
                    if number == self._listener.fileno():
                        self._accept()
                    continue
                if event & _OUT:
                    connection.writable()
                if event & ~_OUT and connection.sock.fileno() >= 0:
                    connection.readable()
            if self._timers:
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    heapq.heappop(self._timers)[2]()

    def watch(self, connection: Connection, events: int) -> None:
        if connection.sock.fileno() >= 0:
            self._epoll.modify(connection.sock.fileno(), events)

    def drop(self, connection: Connection, reset: bool = False) -> None:
        number = connection.sock.fileno()
        if number < 0:
            return
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        del self._connections[number]
        self.chunked.pop(connection, None)
        self._epoll.unregister(number)
        connection.sock.close()

    def complete(self, connection: Connection, request: Request) -> None:
        """A request has arrived as a whole: see to it that it is answered, when the conditions let it."""
        if request.path.startswith("/_"):
            connection.controls = True
            self._send(connection, request, self._control(request))
            connection.finish()
            return
        conditions = self.conditions
        now = time.monotonic()
        if now < conditions.silent_until:
            self.at(conditions.silent_until, lambda: self.drop(connection, reset=True))
            return
        bucket = self.objects.bucket(request.bucket)
        stats = bucket.stats
        stats.in_flight += 1
        stats.in_flight_max = max(stats.in_flight_max, stats.in_flight)
        self._in_flight += 1
        self._in_flight_max = max(self._in_flight_max, self._in_flight)
        ready = now
        if conditions.limited and request.body:
            ready = max(now, conditions.arrived(connection.up, connection.begun, len(request.body)))
        ready += conditions.latency_s
        if ready > now:
            self.at(ready, lambda: self._reply(connection, request, bucket, ready))
        else:
            self._reply(connection, request, bucket, now)

    def _reply(self, connection: Connection, request: Request, bucket: Bucket, now: float) -> None:
        bucket.stats.in_flight -= 1
        self._in_flight -= 1
        conditions = self.conditions
        if time.monotonic() < conditions.silent_until:
            self.at(conditions.silent_until, lambda: self.drop(connection, reset=True))
            return
        faults = conditions.faults
        fate = faults.fate(request.method) if faults.share else Fate.DONE
        if fate is Fate.REFUSED:
            bucket.stats.faults += 1
            later = (("Retry-After", str(faults.retry_after_s)),) if faults.retry_after_s else ()
            answer = error(faults.status, headers=later)
        else:
            answer = self._answer(request)
        if fate in (Fate.LOST, Fate.CUT):
            bucket.stats.lost += 1
            answer = error(500)
        if fate is Fate.CUT:
            self.drop(connection, reset=True)
            return
        if request.method == "HEAD" and answer.body:
            answer = Answer(answer.status, b"", answer.headers, 0)
        if answer.body and (conditions.down.bytes_per_s or conditions.per_connection_bytes_per_s):
            self._send_paced(connection, request, answer, now)
            return
        self._send(connection, request, answer)
        connection.finish()

    def _answer(self, request: Request) -> Answer:
        try:
            return self.objects.answer(request, time.time())
        except Exception:  # noqa: BLE001  # one request that nobody foresaw must not end a run of half an hour
            print(
                f"{request.method} {request.path} {request.query}", traceback.format_exc(), file=sys.stderr, flush=True
            )
            return error(500)

    def _send(self, connection: Connection, request: Request, answer: Answer) -> None:
        if connection.sock.fileno() < 0:
            return
        head, body = _head(answer), answer.body
        if not body:
            connection.write(head)
        elif len(body) <= JOINED_BYTES_MAX:
            connection.write(head + body)
        else:
            connection.write(head, body)

    def _send_paced(self, connection: Connection, request: Request, answer: Answer, now: float) -> None:
        """Piece by piece, each when the link has carried it: its last byte is out when it would be there."""
        body, conditions = memoryview(answer.body), self.conditions
        step = conditions.piece_bytes()
        at = 0

        def next_piece(begin: float) -> None:
            if connection.sock.fileno() < 0:
                return
            piece = body[at : at + step]
            due = conditions.delivered(connection.down, begin, len(piece))
            self.at(due, lambda: send(piece, due))

        def send(piece: memoryview, due: float) -> None:
            nonlocal at
            if connection.sock.fileno() < 0:
                return
            if at:
                connection.write(piece)
            else:
                connection.write(_head(answer), piece)
            at += len(piece)
            if at < len(body):
                next_piece(due)
            else:
                connection.finish()

        next_piece(now)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (moment, next(self._order), call))

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._epoll.register(listener.fileno(), _IN)
        return listener

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            self._connections[sock.fileno()] = Connection(self, sock)
            self._epoll.register(sock.fileno(), _IN)

    def _control(self, request: Request) -> Answer:
        query = request.query
        try:
            match request.path:
                case "/_stats":
                    return Answer(200, self._stats(query.get("bucket")))
                case "/_stats/clear":
                    for bucket in self.objects.buckets.values():
                        bucket.stats.clear()
                    self._in_flight_max = self._in_flight
                case "/_latency":
                    self.conditions.latency_s = float(query["ms"]) / 1000
                case "/_bandwidth":
                    self.conditions.set_bandwidth(
                        float(query.get("mib_s", 0)), float(query.get("per_connection_mib_s", 0))
                    )
                    self._renew_links()
                case "/_faults":
                    self.conditions.faults = Faults(
                        share=float(query.get("share", 0)),
                        status=int(query.get("status", 503)),
                        lost=float(query.get("lost", 0)),
                        method=query.get("method", ""),
                        retry_after_s=int(query.get("retry_after_s", 0)),
                        seed=int(query.get("seed", 0)),
                    )
                case "/_blackout":
                    self._black_out(float(query["seconds"]), query.get("refuse", "0") != "0")
                case "/_reset":
                    self.conditions = Conditions()
                    self._renew_links()
                case "/_flip":
                    if not self.objects.flip(query["path"], int(query["offset"]), int(query.get("bit", 0))):
                        return error(404, "NoSuchKey")
                case "/_put":
                    name, _, key = query["path"].lstrip("/").partition("/")
                    self.objects.place(name, key, request.body, time.time())
                case "/_remove":
                    bucket = self.objects.bucket(query["bucket"])
                    bucket.objects, bucket.in_order = {}, None
                    bucket.uploads.clear()
                case _:
                    return error(404, "NoSuchKey")
        except (KeyError, ValueError) as problem:
            return error(400, f"InvalidArgument: {problem!r}")
        return Answer(204)

    def _renew_links(self) -> None:
        for connection in self._connections.values():
            connection.up, connection.down = self.conditions.own_link(), self.conditions.own_link()

    def _stats(self, bucket: str | None) -> bytes:
        found = json.loads(self.objects.stats(bucket))
        if bucket is None:
            found["in_flight"], found["in_flight_max"] = self._in_flight, self._in_flight_max
        found["cpu_s"] = time.process_time()
        return json.dumps(found).encode()

    def _black_out(self, seconds: float, refuse: bool) -> None:
        self.conditions.silent_until = time.monotonic() + seconds
        if not refuse or self._listener.fileno() < 0:
            return
        self._epoll.unregister(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections.values()):
            if not connection.controls:
                self.drop(connection, reset=True)
        self.at(self.conditions.silent_until, self._listen_again)

    def _listen_again(self) -> None:
        self._listener = self._listen(self.port)


def _head(answer: Answer) -> bytes:
    size = len(answer.body) if answer.body_bytes is None else answer.body_bytes
    told = "".join([f"{name}: {value}\r\n" for name, value in answer.headers])
    length = "" if answer.status in (204, 304) else f"Content-Length: {size}\r\n"
    return f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Error')}\r\n{length}{told}\r\n".encode("latin-1")


class Client:
    """What the benchmark itself asks of the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def stats(self, bucket: str = "") -> Stats:
        """Of one bucket, or of all. `cpu_s` is the whole server's either way."""
        return Stats(**json.loads(self._ask("GET", f"/_stats?bucket={quote(bucket)}" if bucket else "/_stats")))

    def clear_stats(self) -> None:
        self._ask("POST", "/_stats/clear")

    def set_latency(self, milliseconds: float) -> None:
        self._ask("POST", f"/_latency?ms={milliseconds}")

    def set_bandwidth(self, mib_s: float, per_connection_mib_s: float = 0.0) -> None:
        """Each direction by itself. 0: no limit."""
        self._tell("_bandwidth", {"mib_s": mib_s, "per_connection_mib_s": per_connection_mib_s})

    def set_faults(
        self,
        share: float,
        *,
        status: int = 503,
        lost: float = 0.0,
        method: str = "",
        retry_after_s: int = 0,
        seed: int = 1,
    ) -> None:
        """See `bench.conditions.Faults`. A share of 0: no more faults."""
        said = {"share": share, "status": status, "lost": lost, "method": method}
        self._tell("_faults", {**said, "retry_after_s": retry_after_s, "seed": seed})

    def black_out(self, seconds: float, *, refuse: bool = False) -> None:
        self._tell("_blackout", {"seconds": seconds, "refuse": int(refuse)})

    def reset(self) -> None:
        """No latency, no limits, no faults. Does not end a blackout that refuses connections."""
        self._ask("POST", "/_reset")

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        """Turn one bit of the object BUCKET/KEY."""
        self._tell("_flip", {"path": path, "offset": offset, "bit": bit})

    def place(self, path: str, body: bytes) -> None:
        """The object BUCKET/KEY is there, uncounted and whatever the conditions are."""
        self._ask("POST", f"/_put?path={quote(path)}", body)

    def remove(self, bucket: str) -> None:
        """Every object of `bucket` is gone, uncounted."""
        self._tell("_remove", {"bucket": bucket})

    def sizes(self, bucket: str) -> dict[str, int]:
        """Every key of `bucket` with its size."""
        found: dict[str, int] = {}
        page = f"/{bucket}/?list-type=2&encoding-type=url&start-after="
        after = ""
        while rows := _ENTRY.findall(self._ask("GET", page + quote(after))):
            found |= {unquote(key.decode()): int(size) for key, size in rows}
            after = max(found)
        return found

    def read(self, path: str) -> bytes:
        """The body of BUCKET/KEY."""
        return self._ask("GET", f"/{quote(path)}")

    def ceiling(self, seconds: float) -> tuple[float, float]:
        """Most it can do for one plain client: MiB/s of 1 MiB PUTs, and 64 KiB GETs in a second."""
        body = bytes(MIB)
        self._ask("PUT", "/ceiling/part", body[: 64 * 1024])
        puts = self._rate(seconds / 2, "PUT", "/ceiling/large", body)
        gets = self._rate(seconds / 2, "GET", "/ceiling/part", b"")
        self.remove("ceiling")
        return puts, gets

    def _rate(self, seconds: float, method: str, path: str, body: bytes) -> float:
        begin = time.perf_counter()
        count = 0
        while time.perf_counter() - begin < seconds:
            self._ask(method, path, body)
            count += 1
        return count / (time.perf_counter() - begin)

    def _tell(self, path: str, said: Mapping[str, object]) -> None:
        self._ask("POST", f"/{path}?{urlencode(said)}")

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        self._connection.request(method, path, body or None)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path} at the benchmark's store: {answer.status} {data[:200]!r}")
        return data


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.store")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--md5", action="store_true", help="ETags are MD5s, and Content-MD5 is compared: slower")
    options = parser.parse_args()
    server = Server(options.port, options.md5)
    print(READY, server.port, flush=True)
    # Objects refer to nothing; a collection would only look at them all.
    gc.disable()
    try:
        server.run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
