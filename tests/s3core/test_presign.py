"""Signed addresses: against botocore's signer, and what servers make of what is signed."""

import base64
import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import pytest
import urllib3
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from s3core.clock import SystemClock
from s3core.endpoint import Credentials, Endpoint
from s3core.errors import Misconfigured
from s3core.presign import LIFE_MAX_S, QuerySigner
from s3core.s3 import open_s3_store
from s3core.s3_control import S3Control
from tests.s3core.test_signing import KEYS
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw

NOW = 1_700_000_000.7
ENDPOINT = Endpoint(
    name="here",
    url="https://s3.example.com:7480",
    region="eu-central-1",
    addressing="path",
    credentials=Credentials("AKIA", "secret"),
)
DATA = b"a pack of chunks" * 100


def conditions(data: bytes) -> dict[str, str]:
    digest = hashlib.sha256(data)
    return {
        "content-length": str(len(data)),
        "if-none-match": "*",
        "x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode(),
        "x-amz-content-sha256": digest.hexdigest(),
    }


def by_botocore(method: str, url: str, headers: Mapping[str, str], credentials: Credentials, life_s: int) -> str:
    parts = urlsplit(url)
    request = AWSRequest(method=method, url=f"{parts.scheme}://{parts.netloc}{parts.path}", headers=dict(headers))
    signer = botocore.auth.S3SigV4QueryAuth(
        BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.session_token or None),
        "s3",
        "eu-central-1",
        expires=life_s,
    )
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    payload = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    with (
        mock.patch.object(signer, "payload", return_value=payload),
        mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment),
    ):
        signer.add_auth(request)
    return str(request.url)


@pytest.mark.parametrize("key", [key for key in KEYS if not key.startswith("/")])
@pytest.mark.parametrize("token", ["", "a+token/=="])
def test_the_signature_is_botocores(key: str, token: str) -> None:
    credentials = replace(ENDPOINT.credentials, session_token=token)
    signer = QuerySigner(replace(ENDPOINT, credentials=credentials), "bucket")
    for method, headers in (("GET", {}), ("PUT", conditions(DATA)), ("PUT", {"x-amz-meta-note": " two  blanks "})):
        ours = signer.url(method, key, headers, NOW, 900)
        theirs = by_botocore(method, ours, headers, credentials, 900)
        assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)


def test_an_address_that_could_not_work_is_not_made() -> None:
    for life_s in (0, -1, LIFE_MAX_S + 1):
        with pytest.raises(ValueError, match="lives"):
            QuerySigner(ENDPOINT, "bucket").url("GET", "key", {}, NOW, life_s)
    with pytest.raises(Misconfigured, match="region"):
        QuerySigner(replace(ENDPOINT, region="auto"), "bucket")
    with pytest.raises(Misconfigured, match="keys"):
        QuerySigner(replace(ENDPOINT, credentials=Credentials()), "bucket")


def test_secrets_are_not_in_an_address() -> None:
    assert "secret" not in QuerySigner(ENDPOINT, "bucket").url("GET", "key", {}, NOW, 60)


@dataclass(frozen=True)
class Honoured:
    """What a server refuses of an upload that is not as it was signed."""

    absence: bool
    """Something is there already."""
    content: bool
    """Other bytes of the same length."""
    length: bool
    signature: bool
    """A header left out, another key, another method, an address that has expired."""


def tried(endpoint: Endpoint, bucket: str) -> Honoured:
    S3Control(endpoint).create_bucket(bucket)
    signer = QuerySigner(endpoint, bucket)
    store = open_s3_store(endpoint, bucket)
    http = urllib3.PoolManager(retries=False, timeout=30.0)
    now = SystemClock().time()
    headers = conditions(DATA)
    sent = {name: value for name, value in headers.items() if name != "content-length"}

    def put(key: str, data: bytes, with_headers: Mapping[str, str] = sent, at: str = "") -> int:
        url = at or signer.url("PUT", key, headers, now, 300)
        return http.request("PUT", url, body=data, headers=dict(with_headers)).status

    assert put("good", DATA) == 200
    assert store.get("good").data == DATA
    got = http.request("GET", signer.url("GET", "good", {}, now, 300), headers={"range": "bytes=2-5"})
    assert (got.status, got.data) == (206, DATA[2:6])
    absence = put("good", DATA) == 412
    other = DATA[:-1] + b"?"
    content = put("content", other) >= 400
    length = put("length", DATA + b"more") >= 400
    without = {name: value for name, value in sent.items() if name != "if-none-match"}
    signature = (
        put("header", DATA, without) == 403
        and put("key", DATA, at=signer.url("PUT", "another", headers, now, 300).replace("another", "key")) == 403
        and http.request("DELETE", signer.url("GET", "good", {}, now, 300)).status == 403
        and http.request("GET", signer.url("GET", "good", {}, now - 600, 300)).status == 403
    )
    assert store.get("good").data == DATA
    for key, refused in (("content", content), ("length", length)):
        there = [entry.key for entry in store.list(key)]
        assert bool(there) != refused
    http.clear()
    store.close()
    return Honoured(absence, content, length, signature)


def test_moto_looks_at_absence_alone(moto_server: MotoServer) -> None:
    """An emulator checks no signatures and no digests: what is put there is looked at when it is committed."""
    assert tried(moto_server.endpoint(), "presigned") == Honoured(True, False, False, False)


@pytest.mark.rgw
def test_radosgw_looks_at_everything(radosgw: Radosgw) -> None:
    assert tried(radosgw.endpoint(), "presigned") == Honoured(True, True, True, True)
