"""Requests, errors and results as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core.errors import Corrupt
from s3core.s3_xml import (
    complete_request,
    delete_request,
    fits_xml,
    parse_delete_result,
    parse_error,
    parse_result,
    parse_time,
)


def test_error_bodies() -> None:
    body = (
        b'<?xml version="1.0"?>\n<Error><Code>AuthorizationHeaderMalformed</Code><Message>no &amp; no</Message>'
        b"<Region>eu-west-1</Region><ServerTime>2023-11-14T22:13:20Z</ServerTime><Endpoint>e</Endpoint></Error>"
    )
    error = parse_error(body)
    assert (error.code, error.message, error.region) == ("AuthorizationHeaderMalformed", "no & no", "eu-west-1")
    assert (error.server_time, error.endpoint) == ("2023-11-14T22:13:20Z", "e")
    wrapped = b"<ErrorResponse xmlns='x'><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
    assert parse_error(wrapped).code == "AccessDenied"


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_body_or_none(body: bytes) -> None:
    assert parse_error(b"<Error>" + body).code == ""
    assert parse_error(body).code == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_a_result_or_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_result(body, "CopyObjectResult")


@given(st.lists(st.text(min_size=1).filter(fits_xml), min_size=1, max_size=5))
def test_delete_requests_carry_any_key_xml_can(keys: list[str]) -> None:
    echoed = delete_request(keys).replace(b"<Object>", b"<Error>").replace(b"</Object>", b"</Error>")
    echoed = echoed.replace(b"<Delete ", b"<DeleteResult ").replace(b"</Delete>", b"</DeleteResult>")
    assert [failure.key for failure in parse_delete_result(echoed)] == keys


def test_control_characters_do_not_fit() -> None:
    assert fits_xml("tab\tand\r\n")
    assert not fits_xml("a\x01")
    assert not fits_xml("\ufffe")


def test_results_are_checked_by_their_root() -> None:
    assert parse_result(b"<CopyObjectResult xmlns='x'><ETag>\"e\"</ETag></CopyObjectResult>", "CopyObjectResult") == {
        "ETag": '"e"'
    }
    with pytest.raises(Corrupt, match="expected CopyObjectResult"):
        parse_result(b"<Other/>", "CopyObjectResult")
    with pytest.raises(Corrupt, match="expected DeleteResult"):
        parse_delete_result(b"<Other/>")


def test_completions_list_parts_by_number() -> None:
    assert b'<PartNumber>1</PartNumber><ETag>"e1"</ETag>' in complete_request([(1, "e1"), (2, "e2")])


def test_times() -> None:
    assert parse_time("2023-11-14T22:13:20Z") == parse_time("2023-11-14T22:13:20") == 1_700_000_000
    assert parse_time("") == 0
