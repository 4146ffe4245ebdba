"""Listings, errors and results as bytes: the fast reader, the strict one, and what neither takes."""

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
    parse_list,
    parse_result,
    parse_time,
)

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><EncodingType>url</EncodingType>"
)
ROW = (
    "<Contents><Key>{key}</Key><LastModified>2023-11-14T22:13:20.500Z</LastModified>"
    "<ETag>&quot;abc-2&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def page(rows: str, head: str = HEAD, truncated: str = "false", token: str = "") -> bytes:
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return f"{head}<IsTruncated>{truncated}</IsTruncated>{more}{rows}</ListBucketResult>".encode()


def test_a_page_is_read_with_keys_decoded_and_etags_bare() -> None:
    read = parse_list(page(ROW.format(key="a%20b%2Bc+d/%C3%A9", size=7), truncated="true", token="t&amp;1=="))
    assert [(item.key, item.size, item.etag) for item in read.objects] == [("a b+c d/é", 7, "abc-2")]
    assert read.objects[0].modified == 1_700_000_000.5
    assert read.next_token == "t&1=="


def test_prefixes_and_an_empty_page() -> None:
    rows = "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>b%26/</Prefix></CommonPrefixes>"
    assert parse_list(page(rows)).prefixes == ["a/", "b&/"]
    assert parse_list(page("")).objects == []


@pytest.mark.parametrize(
    "row",
    [
        # another order of elements; an owner and unknown elements between; an entity in a key
        '<Contents><Size>7</Size><ETag>"abc-2"</ETag><Key>it%27s</Key>'
        "<LastModified>2023-11-14T22:13:20.500Z</LastModified></Contents>",
        "<Contents>\n  <Owner><ID>x</ID></Owner><Key>it%27s</Key><LastModified>2023-11-14T22:13:20.500Z</LastModified>"
        "<ETag>abc-2</ETag><New>1</New><Size>7</Size></Contents>",
        ROW.format(key="it&apos;s", size=7),
    ],
)
def test_what_the_fast_reader_does_not_know_the_parser_reads(row: str) -> None:
    read = parse_list(page(ROW.format(key="first", size=1) + row))
    assert [(item.key, item.size, item.etag, item.modified) for item in read.objects] == [
        ("first", 1, "abc-2", 1_700_000_000.5),
        ("it's", 7, "abc-2", 1_700_000_000.5),
    ]


def test_without_url_encoding_names_are_taken_as_they_stand() -> None:
    head = HEAD.replace("<EncodingType>url</EncodingType>", "")
    read = parse_list(page(ROW.format(key="a%20b+c&amp;d", size=1), head))
    assert read.objects[0].key == "a%20b+c&d"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        page(ROW.format(key="a", size=1))[:-40],
        page("", truncated="true"),
        page("", truncated="maybe"),
        page("<Contents><Key>a</Key></Contents>"),
        page(ROW.format(key="a", size=1).replace("2023-11-14T22:13:20.500Z", "yesterday")),
        page(ROW.format(key="a", size=1)).replace(b"<Key>a", b"<Key>\xff"),
        page("<Contents><Key>a</Wrong></Contents>"),
    ],
)
def test_what_is_no_whole_listing_is_corrupt_and_never_empty(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_list(body)


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
def test_any_bytes_are_a_listing_or_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_list(body)
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
