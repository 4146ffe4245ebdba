"""The signer against botocore's, request by request: odd keys, odd queries, odd headers."""

import datetime
from collections.abc import Mapping
from unittest import mock

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from s3core.endpoint import Credentials
from s3core.signing import EMPTY_SHA256, UNSIGNED_PAYLOAD, Query, Signer, encode_key, encode_query, payload_sha256

HOST = "bucket.example.com:7480"
NOW = 1_700_000_000.7
KEYS = [
    "plain",
    "a b",
    "a+b",
    "a~b",
    "a//b",
    "./a",
    "../a",
    "a/./b/../c",
    "a/",
    "/a",
    "ключ/鍵/🔑",
    "per%20cent%",
    "q?x=1&y=2#z",
    "quote'\"<>&;:@=,$!*()[]{}|\\^`",
    "tab\tand\nnewline",
    "\u00e9 and e\u0301",
    "z" * 900,
]
QUERIES: list[Query] = [
    [],
    [("uploads", "")],
    [("uploadId", "a+b/c=="), ("partNumber", "10")],
    [("prefix", "a b/ü~+"), ("list-type", "2"), ("start-after", "a&b=c"), ("encoding-type", "url")],
    [("b", "2"), ("a", "2"), ("a", "1"), ("a-b", "0"), ("A", "9")],
]


def authorization_by_botocore(
    method: str, path: str, query: str, headers: Mapping[str, str], payload_hash: str, credentials: Credentials
) -> str:
    request = AWSRequest(
        method=method, url=f"https://{HOST}{path}{'?' + query if query else ''}", headers=dict(headers)
    )
    signer = botocore.auth.S3SigV4Auth(
        BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.session_token or None),
        "s3",
        "eu-central-1",
    )
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    with (
        mock.patch.object(signer, "payload", return_value=payload_hash),
        mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment),
    ):
        signer.add_auth(request)
    return str(request.headers["Authorization"])


def authorization_by_us(
    method: str, path: str, query: str, headers: Mapping[str, str], payload_hash: str, credentials: Credentials
) -> str:
    return Signer(credentials, "eu-central-1").headers(method, path, query, headers, payload_hash, NOW)["authorization"]


PLAIN = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SESSION = Credentials("ASIDEXAMPLE", "secret", "token/with+odd==")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("query", QUERIES)
def test_the_signature_is_botocores(key: str, query: Query) -> None:
    path, text = "/" + encode_key(key), encode_query(query)
    arguments = ("PUT", path, text, {"host": HOST}, UNSIGNED_PAYLOAD, PLAIN)
    assert authorization_by_us(*arguments) == authorization_by_botocore(*arguments)


@pytest.mark.parametrize("credentials", [PLAIN, SESSION])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
def test_conditions_and_metadata_are_signed_as_botocore_does(method: str, credentials: Credentials) -> None:
    headers = {
        "host": HOST,
        "if-none-match": "*",
        "if-match": '"abc"',
        "content-md5": "1B2M2Y8AsgTpgAmY7PhCfg==",
        "x-amz-meta-note": "  two   spaces\tand a tab ",
        "x-amz-copy-source": "/bucket/a%20b",
        "range": "bytes=0-9",
    }
    arguments = (method, "/key", "", headers, payload_sha256([b"he", memoryview(b"llo")]), credentials)
    ours = authorization_by_us(*arguments)
    assert ours == authorization_by_botocore(*arguments)
    assert "if-none-match" in ours
    assert ("x-amz-security-token" in ours) == (credentials is SESSION)


@settings(max_examples=150, deadline=None)
@given(
    key=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=60),
    query=st.lists(
        st.tuples(st.text("abz-~+ /é&=", min_size=1), st.text("abz-~+ /é&=%")),
        max_size=4,
        unique_by=lambda pair: pair[0],
    ),
)
def test_any_key_and_query_sign_as_botocore_does(key: str, query: list[tuple[str, str]]) -> None:
    arguments = ("GET", "/" + encode_key(key), encode_query(query), {"host": HOST}, EMPTY_SHA256, PLAIN)
    assert authorization_by_us(*arguments) == authorization_by_botocore(*arguments)


def test_the_key_of_the_day_changes_with_the_day() -> None:
    signer = Signer(PLAIN, "eu-central-1")
    first = signer.headers("GET", "/a", "", {"host": HOST}, EMPTY_SHA256, NOW)
    next_day = signer.headers("GET", "/a", "", {"host": HOST}, EMPTY_SHA256, NOW + 86_400)
    again = signer.headers("GET", "/a", "", {"host": HOST}, EMPTY_SHA256, NOW)
    assert first == again
    assert first["x-amz-date"] == "20231114T221320Z"
    assert next_day["x-amz-date"] == "20231115T221320Z"
    assert next_day["authorization"] != first["authorization"]


def test_without_keys_requests_go_unsigned() -> None:
    headers = Signer(Credentials(), "eu-central-1").headers("GET", "/a", "", {"host": HOST}, EMPTY_SHA256, NOW)
    assert "authorization" not in headers


def test_secrets_stay_out_of_repr() -> None:
    shown = repr(SESSION)
    assert "ASIDEXAMPLE" in shown
    assert "secret" not in shown
    assert "token" not in shown
