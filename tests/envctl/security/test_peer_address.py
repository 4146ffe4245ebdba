"""Whose address a request has, on a socket that takes IPv4 and IPv6 (s3-envctl.socket)."""

import pytest
from starlette.requests import HTTPConnection

from envctl.web.security import address_of


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("::ffff:127.0.0.1", "", "127.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("::ffff:10.0.0.2", "198.51.100.7", "10.0.0.2"),
        ("2001:db8::1", "", "2001:db8::1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7, ::ffff:10.0.0.1", "198.51.100.7"),
    ],
)
def test_ipv4_is_known_by_its_own_name(peer: str, forwarded: str, address: str) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    connection = HTTPConnection({"type": "http", "client": (peer, 1), "headers": headers})
    assert address_of(connection, ["10.0.0.1/32"]) == address
