"""Answers of every form, byte by byte, as the standard library's parser takes them."""

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3core.endpoint import Address, Credentials, Endpoint
from s3core.errors import StoreError, Unavailable
from s3core.s3_http import Answer, Transport
from s3core.s3_requests import ranged_body
from tests.servers.certificates import make_server_certificate
from tests.servers.tunnel import TunnelProxy

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def served(*answers: list[bytes]) -> Iterator[tuple[Transport, Address, list[int]]]:
    """A server that gives one of these answers, in these pieces, to each request, and counts requests by connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    counts: list[int] = []
    waiting = list(answers)

    def serve() -> None:
        while waiting:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            counts.append(0)
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while waiting and _request(connection):
                    counts[-1] += 1
                    pieces = waiting.pop(0)
                    for piece in pieces:
                        connection.sendall(piece)
                        # Each piece by itself where the kernel lets it: the reader must not depend on how it is cut.
                        threading.Event().wait(0.005)
                    if b"lose" in pieces[0]:
                        break

    thread = threading.Thread(target=serve)
    thread.start()
    endpoint = Endpoint(
        "here", f"http://127.0.0.1:{listener.getsockname()[1]}", credentials=Credentials("a", "b"), read_timeout_s=5
    )
    transport = Transport(endpoint)
    try:
        yield transport, endpoint.address("bucket", "us-east-1"), counts
    finally:
        transport.close()
        listener.close()
        thread.join()


def _request(connection: socket.socket) -> bool:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            return False
        head += data
    return True


def ask(transport: Transport, address: Address, method: str = "GET") -> Answer:
    return transport.send(method, address, "/bucket/key", {"host": address.host}, mutating=False, key="key")


BIG = bytes(range(256)) * 1200


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ([OK + b"Content-Length: 5\r\n\r\nhello"], 200, b"hello"),
        ([OK, b"Content-Length: 5\r", b"\n\r", b"\nhe", b"llo"], 200, b"hello"),
        ([OK + b"content-length:5 \r\nX-A: \t v \r\n\r\nhello"], 200, b"hello"),
        ([b"HTTP/1.1 206\r\nContent-Length: 0\r\n\r\n"], 206, b""),
        ([OK + b"Content-Length: %d\r\n\r\n" % len(BIG), BIG[:100_000], BIG[100_000:]], 200, BIG),
        ([OK + b"Content-Length: 5\r\nx-a: 1\r\nX-A: 2\r\n\r\nhello"], 200, b"hello"),
        ([OK + b"Content-Length: 5\r\nX-A: 1\r\n 2\r\n\r\nhello"], 200, b"hello"),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"], 200, b"hello"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello"], 200, b"hello"),
        ([b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 503 Slow Down\r\nContent-Length: 3\r\n\r\nno!"], 503, b"no!"),
        ([b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"], 200, b"hello"),
        ([OK + b"X-Long: " + b"a" * 60_000 + b"\r\nContent-Length: 5\r\n\r\nhello"], 200, b"hello"),
        (
            [OK + b"X-B: " + b"b" * 40_000 + b"\r\nX-A: " + b"a" * 40_000 + b"\r\nContent-Length: 5\r\n\r\nhello"],
            200,
            b"hello",
        ),
    ],
)
def test_an_answer_is_read_whatever_its_form_and_the_connection_kept(
    pieces: list[bytes], status: int, body: bytes
) -> None:
    with served(pieces, [OK + b"Content-Length: 2\r\n\r\nok"]) as (transport, address, counts):
        answer = ask(transport, address)
        assert (answer.status, answer.body) == (status, body)
        assert type(answer.body) is bytes
        assert ask(transport, address).body == b"ok"
    assert counts == [2]


def test_headers_come_by_lower_case_name_without_the_blanks_around_them() -> None:
    with served([OK + b'ETag: "a"\r\nX-A: \t one two \r\nContent-Length: 0\r\nX-U: \xc3\xa9\r\n\r\n']) as (
        transport,
        address,
        _,
    ):
        headers = ask(transport, address).headers
    assert headers == {"etag": '"a"', "x-a": "one two", "content-length": "0", "x-u": "\u00c3\u00a9"}


def test_the_answer_to_head_has_no_body_and_the_connection_is_kept() -> None:
    with served([OK + b"Content-Length: 500\r\n\r\n"], [OK + b"Content-Length: 0\r\n\r\n"]) as (
        transport,
        address,
        counts,
    ):
        assert ask(transport, address, "HEAD").body == b""
        assert ask(transport, address).status == 200
    assert counts == [2]


def test_a_connection_the_server_closes_is_not_used_again() -> None:
    closing = [OK + b"Connection: close\r\nX: lose\r\nContent-Length: 2\r\n\r\nok"]
    with served(closing, [OK + b"Content-Length: 2\r\n\r\nok"]) as (transport, address, counts):
        assert ask(transport, address).body == b"ok"
        assert ask(transport, address).body == b"ok"
    assert counts == [1, 1]


@pytest.mark.parametrize(("method", "length"), [("GET", 2), ("HEAD", 4)])
def test_a_connection_on_which_more_came_than_was_announced_is_not_used_again(method: str, length: int) -> None:
    more = OK + b"Content-Length: %d\r\n\r\nokno" % length
    with served([more], [OK + b"X: lose\r\nContent-Length: 2\r\n\r\nok"]) as (transport, address, counts):
        assert ask(transport, address, method).body == (b"ok" if method == "GET" else b"")
        assert ask(transport, address).body == b"ok"
    assert counts == [1, 1]


def test_a_length_that_is_no_number_leaves_the_end_to_the_connection() -> None:
    digits = b"0" * 5000 + b"5"  # more than Python makes a number of
    with served([OK + b"X: lose\r\nContent-Length: " + digits + b"\r\n\r\nhello"]) as (transport, address, _):
        assert ask(transport, address).body == b"hello"


@pytest.mark.parametrize(
    "cut",
    [
        OK + b"X: lose\r\nContent-Length: 5\r\n\r\nhel",
        b"lose",
        OK + b"X: lose\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
)
def test_an_answer_that_is_cut_is_lost(cut: bytes) -> None:
    with served([cut]) as (transport, address, _), pytest.raises(Unavailable):
        ask(transport, address)


def test_an_answer_that_does_not_come_is_lost_after_its_time() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = Endpoint(
        "here", f"http://127.0.0.1:{listener.getsockname()[1]}", credentials=Credentials("a", "b"), read_timeout_s=0.2
    )
    transport = Transport(endpoint)
    with listener, pytest.raises(StoreError, match="imed out"):
        ask(transport, endpoint.address("bucket", "us-east-1"))
    transport.close()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n\r\nok", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
)
def test_a_closed_connection_goes_through_the_proxy_anew(framing: bytes, tmp_path: Path) -> None:
    """The proxy's answer to the next CONNECT is read for itself, not as the answer that was read last."""
    certificate = make_server_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(3):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                _request(connection)
                connection.sendall(OK + b"Connection: close\r\n" + framing)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    proxy = TunnelProxy()
    endpoint = Endpoint(
        "here",
        f"https://127.0.0.1:{listener.getsockname()[1]}",
        credentials=Credentials("a", "b"),
        proxy=proxy.url,
        fingerprint=certificate.fingerprint,
        concurrency=1,
    )
    transport = Transport(endpoint)
    try:
        address = endpoint.address("bucket", "us-east-1")
        assert [ask(transport, address).body for _ in range(3)] == [b"ok"] * 3
    finally:
        transport.close()
        proxy.stop()
        listener.close()
    assert len(proxy.asked) == 3
    thread.join(10)


def test_a_connection_that_is_kept_open_keeps_no_body() -> None:
    """Otherwise each of them holds what was had last, 64 MiB perhaps, until it is used again."""
    with served([OK + b"Content-Length: %d\r\n\r\n" % len(BIG), BIG]) as (transport, address, _):
        answer = ask(transport, address)
        assert answer.body == BIG
        references = sys.getrefcount(answer.body)  # outside of the assert, which holds one more
    assert references <= 2


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": "5, 5"},
        {"content-length": "five"},
        {"content-length": "0" * 5000 + "5"},
        {"content-length": "5", "content-range": "bytes 0-" + "0" * 5000 + "4/5"},
    ],
)
def test_sizes_that_are_no_numbers_make_an_answer_that_is_tried_again(headers: dict[str, str]) -> None:
    """Not a ValueError, which nobody expects of a store: a volume would stop for what a proxy says."""
    with pytest.raises(Unavailable):
        ranged_body(Answer(206, headers, b"hello"), "key", 0, 5)
