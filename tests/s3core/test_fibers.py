"""Blocking calls as fibers: they give way where they wait, and end as they would in a thread."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from s3core import s3_http, waiting
from s3core.clock import SystemClock
from s3core.endpoint import Credentials, Endpoint
from s3core.errors import Misconfigured, Unavailable
from s3core.fibers import converse
from s3core.limit import Limiter, Limits
from s3core.s3_http import Transport
from s3core.wrapper import Call
from tests.servers.certificates import make_server_certificate

T = TypeVar("T")
CALLS = 50


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_call_returns_what_it_returns_and_raises_what_it_raises() -> None:
    def divide(one: int, other: int) -> float:
        waiting.sleep(0.001)
        return one / other

    async def both() -> float:
        with pytest.raises(ZeroDivisionError):
            await converse(divide, 1, 0)
        return await converse(divide, 6, 3)

    assert run(both()) == 2
    assert waiting.here.waiter is None


def test_calls_that_wait_stand_side_by_side_on_one_thread() -> None:
    under_way: set[int] = set()
    most = 0
    threads = set()

    def call(number: int) -> None:
        nonlocal most
        under_way.add(number)
        most = max(most, len(under_way))
        waiting.sleep(0.05)
        threads.add(threading.get_ident())
        under_way.remove(number)

    async def many() -> None:
        await asyncio.gather(*(converse(call, number) for number in range(CALLS)))

    run(many())
    assert most == CALLS
    assert threads == {threading.get_ident()}


def test_what_waits_elsewhere_is_called_on_a_thread() -> None:
    async def asked() -> int:
        return await converse(waiting.in_thread, threading.get_ident)

    assert run(asked()) != threading.get_ident()
    assert waiting.in_thread(threading.get_ident) == threading.get_ident()


def test_many_may_wait_elsewhere_at_once() -> None:
    """Each connection to a server that is away waits for its whole time: they must not stand in line for that."""
    together = threading.Barrier(24)

    async def many() -> None:
        await asyncio.gather(*(converse(waiting.in_thread, together.wait, 30) for _ in range(24)))

    run(many())


def test_a_cancelled_call_ends_where_it_waits() -> None:
    cleaned = []

    def call() -> None:
        try:
            waiting.sleep(600)
        finally:
            cleaned.append(True)

    async def cancelled() -> None:
        task = asyncio.ensure_future(converse(call))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())
    assert cleaned == [True]


def test_threads_and_fibers_share_the_places_and_nobody_blocks_the_loop() -> None:
    limiter = Limiter(Limits(concurrency=2), SystemClock())
    inside = most = done = 0
    lock = threading.Lock()

    def call() -> None:
        nonlocal inside, most, done
        with lock:
            inside += 1
            most = max(most, inside)
        waiting.sleep(0.005)
        with lock:
            inside -= 1
            done += 1

    async def mixed() -> None:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(None, limiter.carry_out, Call("get", "key"), call) for _ in range(5)]
        fibers = [converse(limiter.carry_out, Call("get", "key"), call) for _ in range(10)]
        await asyncio.gather(*threads, *fibers)

    run(mixed())
    assert (most, done, inside) == (2, 15, 0)


def test_who_waits_for_a_place_gets_it_in_order_and_costs_nothing_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait may not overtake fibers, nor may fibers look again and again: a thousand looks a second each."""
    turns = waiting.Turns(1)
    order: list[int] = []

    def call(number: int) -> None:
        with turns:
            order.append(number)

    async def mixed() -> None:
        loop = asyncio.get_running_loop()
        turns.__enter__()
        calls: list[asyncio.Future[None]] = []
        for number in range(20):
            on_thread = number % 4 == 3
            begun = (
                loop.run_in_executor(None, call, number) if on_thread else asyncio.ensure_future(converse(call, number))
            )
            calls.append(begun)
            while len(turns._queue) <= number:
                await asyncio.sleep(0.001)
        monkeypatch.setattr(asyncio, "sleep", None)
        turns.__exit__()
        await asyncio.gather(*calls)

    run(mixed())
    assert order == list(range(20))


def test_a_place_is_not_lost_with_who_was_cancelled_while_waiting_for_it() -> None:
    turns = waiting.Turns(1)
    done: list[int] = []

    def call(number: int) -> None:
        with turns:
            done.append(number)

    async def cancelled() -> None:
        turns.__enter__()
        calls = [asyncio.ensure_future(converse(call, number)) for number in range(3)]
        while len(turns._queue) < 3:
            await asyncio.sleep(0.001)
        calls[1].cancel()  # while it waits
        await asyncio.sleep(0)
        turns.__exit__()
        calls[0].cancel()  # after the place was given to it, before it could go on
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.wait_for(converse(call, 3), 30)

    run(cancelled())
    assert done == [2, 3]


class Slow:
    """A server whose answers come piece by piece, on connections of their own."""

    def __init__(self, pieces: list[bytes], pause_s: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._pieces = pieces
        self._pause_s = pause_s
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                for piece in self._pieces:
                    time.sleep(self._pause_s)
                    connection.sendall(piece)

    def __enter__(self) -> "Slow":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def endpoint(port: int, **settings: Any) -> Endpoint:
    return Endpoint("here", f"http://127.0.0.1:{port}", credentials=Credentials("a", "b"), **settings)


def ask(transport: Transport, place: Endpoint) -> bytes:
    address = place.address("bucket", "us-east-1")
    return transport.send("GET", address, "/bucket/key", {"host": address.host}, mutating=False, key="key").body


PIECES = [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 6\r\n\r\nhel", b"lo!"]
CHUNKED = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nhel\r\n", b"3\r\nlo!\r\n0\r\n\r\n"]


@pytest.mark.parametrize("pieces", [PIECES, CHUNKED])
def test_requests_stand_side_by_side_however_slowly_their_answers_come(pieces: list[bytes]) -> None:
    with Slow(pieces, 0.05) as server:
        place = endpoint(server.port, concurrency=8)
        transport = Transport(place)
        turns = 0

        async def turning() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        async def many() -> list[bytes]:
            beside = asyncio.ensure_future(turning())
            answers = await asyncio.gather(*(converse(ask, transport, place) for _ in range(16)))
            beside.cancel()
            return answers

        assert run(many()) == [b"hello!"] * 16
        transport.close()
    # More calls than connections: the others waited for one, and the loop turned all the while.
    assert 1 < server.connections <= 8
    assert turns >= 3


def test_an_answer_that_does_not_come_ends_after_its_time() -> None:
    with Slow([b"HTTP/1.1 200 OK\r\n"], 0.0) as server:
        place = endpoint(server.port, read_timeout_s=0.2)
        transport = Transport(place)
        with pytest.raises(Unavailable, match="imed out"):
            run(converse(ask, transport, place))
        transport.close()


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    place = endpoint(port)
    transport = Transport(place)
    with pytest.raises(Unavailable, match="refused"):
        run(converse(ask, transport, place))
    transport.close()


def test_a_certificate_nobody_trusts_is_looked_at_on_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the hint: it takes another connection, which may take its time."""
    certificate = make_server_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    threads = []

    def looked_at(hostname: str, port: int, timeout_s: float) -> bytes:
        threads.append(threading.get_ident())
        return b"certificate"

    monkeypatch.setattr(s3_http, "peer_certificate", looked_at)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as plain, pytest.raises(OSError), context.wrap_socket(plain, server_side=True):
                pass

        server = threading.Thread(target=serve)
        server.start()
        place = Endpoint("here", f"https://127.0.0.1:{listener.getsockname()[1]}", credentials=Credentials("a", "b"))
        transport = Transport(place)
        with pytest.raises(Misconfigured, match="verify failed"):
            run(converse(ask, transport, place))
        server.join(10)
    transport.close()
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
