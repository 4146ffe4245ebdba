"""What the store lets a bare parallel client have: the yardstick of "95 % of what the store gives".

One rule: it is the cheapest client that Python can be. One thread keeps N connections busy with epoll, sends a body that is
there from one buffer and receives into another; nothing is signed, hashed, checked or kept. What a product does more than
that, it does at its own cost. It runs in a process of its own, as the product does.

    python -m bench.bare_client --port PORT            a table: sizes and depths, PUT and GET
"""

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.conditions import MIB
from bench.store import SOCKET_BYTES, Client

BUCKET = "bare"
KEYS_EACH = 4
"""Objects that each connection writes in turn, or reads."""
DEPTHS = (1, 8, 32, 64)
SIZES = (MIB, MIB // 2, 4096)


@dataclass(frozen=True, slots=True)
class Bare:
    """What one run gave. `store_cpu`, `client_cpu`: processors kept busy meanwhile, of 1."""

    method: str
    object_bytes: int
    connections: int
    seconds: float
    requests: int
    store_cpu: float
    client_cpu: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def mib_s(self) -> float:
        return self.per_second * self.object_bytes / MIB


class _Line:
    """One connection: a request is out on it at any time."""

    def __init__(self, number: int, port: int, method: str, size: int, body: memoryview) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self.sock.setblocking(False)
        self.done = 0
        length = f"Content-Length: {size}\r\n" if method == "PUT" else ""
        self._heads = [
            f"{method} /{BUCKET}/{number}/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n".encode()
            for key in range(KEYS_EACH)
        ]
        self._body = body if method == "PUT" else memoryview(b"")
        self._unsent: list[bytes | memoryview] = []
        self._missing = -1
        """Bytes of the answer's body still to come; -1: its head has not come."""

    def start(self) -> bool:
        """Send the next request; True if not all of it went out."""
        head = self._heads[self.done % KEYS_EACH]
        self._unsent = [head, self._body] if self._body else [head]
        self._missing = -1
        return self.go_on()

    def go_on(self) -> bool:
        """True while there is more to send."""
        try:
            sent = self.sock.sendmsg(self._unsent)
        except BlockingIOError:
            return True
        while self._unsent and sent >= len(self._unsent[0]):
            sent -= len(self._unsent.pop(0))
        if self._unsent and sent:
            self._unsent[0] = memoryview(self._unsent[0])[sent:]
        return bool(self._unsent)

    def receive(self, room: memoryview) -> bool:
        """True if the answer is whole."""
        try:
            count = self.sock.recv_into(room)
        except BlockingIOError:
            return False
        if not count:
            raise ConnectionResetError("the store closed a connection of the bare client")
        if self._missing < 0:
            head, found, _ = bytes(room[: min(count, 4096)]).partition(b"\r\n\r\n")
            if not found or head[9:12] not in (b"200", b"206"):
                raise RuntimeError(f"the store answered the bare client with {head[:80]!r}")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            self._missing = length - (count - len(head) - 4)
        else:
            self._missing -= count
        if self._missing:
            return False
        self.done += 1
        return True


def run(port: int, method: str, object_bytes: int, connections: int, seconds: float) -> Bare:
    """Here and now, in this process and this thread. GETs read what a PUT with the same arguments has written."""
    body = memoryview(os.urandom(object_bytes))
    room = memoryview(bytearray(max(object_bytes + 4096, 65536)))
    lines = {}
    epoll = select.epoll()
    for number in range(connections):
        line = _Line(number, port, method, object_bytes, body)
        lines[line.sock.fileno()] = line
        epoll.register(line.sock.fileno(), select.EPOLLIN)
    control = Client(port)
    store_cpu, own_cpu = control.stats().cpu_s, time.process_time()
    begin = time.perf_counter()
    give_up = begin + seconds
    both = select.EPOLLIN | select.EPOLLOUT
    for number, line in lines.items():
        if line.start():
            epoll.modify(number, both)
    open_ = set(lines)
    # Every request that was begun is waited for and counted, with the time that it took.
    while open_:
        for number, event in epoll.poll():
            line = lines[number]
            if event & select.EPOLLOUT and not line.go_on():
                epoll.modify(number, select.EPOLLIN)
            if event & ~select.EPOLLOUT and line.receive(room):
                if time.perf_counter() >= give_up:
                    open_.discard(number)
                elif line.start():
                    epoll.modify(number, both)
    took = time.perf_counter() - begin
    own_cpu, store_cpu = time.process_time() - own_cpu, control.stats().cpu_s - store_cpu
    for line in lines.values():
        line.sock.close()
    done = sum(line.done for line in lines.values())
    return Bare(method, object_bytes, connections, took, done, store_cpu / took, own_cpu / took)


def prepare(port: int, object_bytes: int, connections: int) -> None:
    """Write what GETs will read, whatever the conditions are."""
    client = Client(port)
    body = os.urandom(object_bytes)
    for number in range(connections):
        for key in range(KEYS_EACH):
            client.place(f"{BUCKET}/{number}/{key}", body)


def measure(port: int, method: str, object_bytes: int, connections: int, seconds: float) -> Bare:
    """As `run`, in a process of its own, the objects that GETs need made before; all of them are gone afterwards.

    The store's conditions are the caller's. Raises CalledProcessError with what the process said."""
    if method == "GET":
        prepare(port, object_bytes, connections)
    command = [sys.executable, "-m", "bench.bare_client", "--port", str(port), "--one", method]
    command += [str(object_bytes), str(connections), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    Client(port).remove(BUCKET)
    return Bare(**json.loads(done.stdout))


def table(found: Sequence[Bare]) -> str:
    """For people."""
    rows = ["method    bytes  depth     MiB/s  requests/s  store CPU  client CPU"]
    rows += [
        f"{one.method:6} {one.object_bytes:8} {one.connections:6} {one.mib_s:9.0f} {one.per_second:11.0f} "
        f"{one.store_cpu:10.0%} {one.client_cpu:11.0%}"
        for one in found
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.bare_client")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--one", nargs=4, metavar=("METHOD", "BYTES", "CONNECTIONS", "SECONDS"))
    options = parser.parse_args()
    if options.one:
        method, size, connections, seconds = options.one
        print(json.dumps(asdict(run(options.port, method, int(size), int(connections), float(seconds)))))
        return
    print(
        table(
            [
                measure(options.port, method, size, depth, options.seconds)
                for method in ("PUT", "GET")
                for size in SIZES
                for depth in DEPTHS
            ]
        )
    )


if __name__ == "__main__":
    main()
