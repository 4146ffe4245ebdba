"""One line, one object, and nothing of an error nobody foresaw crosses the socket but its kind."""

import json

import pytest

from plugin import protocol
from plugin.errors import CODES, BadVolume, Refused, code_of
from s3core.errors import Denied, OutcomeUnknown


def test_a_request_comes_back_as_it_was() -> None:
    request = protocol.Request("7f", "list", "offsite", {"vmid": 100}, 10_000)
    line = protocol.encode_request(request)
    assert line.count(b"\n") == 1
    assert protocol.decode_request(line) == request


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"v":2,"id":"1","method":"ping"}',
        b'{"v":1,"id":"1","method":"rm"}',
        b'{"v":1,"id":1,"method":"ping"}',
        b'{"v":1,"id":"1","method":"ping","deadline_ms":-1}',
        b'{"v":1,"id":"1","method":"ping","args":[]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(BadVolume):
        protocol.decode_request(line)


def test_a_request_without_a_deadline_has_its_methods() -> None:
    assert protocol.decode_request(b'{"v":1,"id":"1","method":"status","storage":"s1"}').deadline_ms == 2_000


def test_errors_are_one_line_with_a_code() -> None:
    told = json.loads(protocol.encode_error("1", Refused("a\nb", hint="do\nthis")))["error"]
    assert told == {"code": "refused", "message": "a b", "hint": "do this", "retryable": False}
    told = json.loads(protocol.encode_error("1", KeyError("secret")))["error"]
    assert told["code"] == "bug"
    assert "secret" not in json.dumps(told)
    assert json.loads(protocol.encode_error("1", OutcomeUnknown("lost")))["error"]["code"] == "deadline"
    assert {code_of(error) for error in (Denied("x"), ValueError("x"), OSError("x"))} <= set(CODES)
