"""Write options as headers and back, and what digests prove."""

import base64
from hashlib import md5, sha256
from typing import Any

import pytest

from s3core.bucket import ListedPart, ObjectFacts
from s3core.digests import Digests, Expected, digests_of, verdict, whole_checksum
from s3core.errors import Corrupt
from s3core.s3_uploads import parse_parts, parse_uploads
from s3core.write_options import (
    NO_OPTIONS,
    CustomerKey,
    Retention,
    WriteOptions,
    answered_options,
    option_headers,
)

KEY = CustomerKey(bytes(range(32)))


def test_headers_are_those_that_s3_documents() -> None:
    options = WriteOptions(
        storage_class="GLACIER",
        encryption="aws:kms",
        kms_key_id="arn:aws:kms:eu-west-1:1:key/a",
        retention=Retention("COMPLIANCE", 1_700_000_000.5),
        legal_hold=True,
    )
    assert option_headers(options) == {
        "x-amz-storage-class": "GLACIER",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:eu-west-1:1:key/a",
        "x-amz-object-lock-mode": "COMPLIANCE",
        "x-amz-object-lock-retain-until-date": "2023-11-14T22:13:21Z",
        "x-amz-object-lock-legal-hold": "ON",
    }
    assert option_headers(NO_OPTIONS) == {}
    key = base64.b64encode(KEY.key).decode()
    told = base64.b64encode(md5(KEY.key).digest()).decode()
    stem = "x-amz-server-side-encryption-customer-"
    assert option_headers(WriteOptions(customer_key=KEY)) == {
        f"{stem}algorithm": "AES256",
        f"{stem}key": key,
        f"{stem}key-md5": told,
    }
    assert KEY.headers(of_source=True)["x-amz-copy-source-server-side-encryption-customer-key"] == key
    assert "000102" not in repr(WriteOptions(customer_key=KEY))
    assert str(KEY.key) not in repr(WriteOptions(customer_key=KEY))


def test_what_head_tells_is_read() -> None:
    kept = answered_options(
        {
            "x-amz-server-side-encryption": "AES256",
            "x-amz-object-lock-mode": "GOVERNANCE",
            "x-amz-object-lock-retain-until-date": "2023-11-14T22:13:21.000Z",
            "x-amz-object-lock-legal-hold": "ON",
            "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"',
        }
    )
    assert (kept.encryption, kept.legal_hold, kept.restoring) == ("AES256", True, False)
    assert kept.retention == Retention("GOVERNANCE", 1_700_000_001.0)
    assert kept.restored_until == 1_356_048_000.0
    assert answered_options({"x-amz-restore": 'ongoing-request="true"'}).restoring
    odd = answered_options({"x-amz-object-lock-mode": "FOREVER", "x-amz-restore": "who knows"})
    assert (odd.retention, odd.restored_until) == (None, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"encryption": "rot13"},
        {"checksum": "md4"},
        {"kms_key_id": "key"},
        {"encryption": "AES256", "customer_key": KEY},
        {"storage_class": "TWO WORDS"},
        {"storage_class": "GL\u00c4CIER"},
        {"kms_key_id": "a\r\nx-other: 1", "encryption": "aws:kms"},
    ],
)
def test_options_that_no_server_takes(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        WriteOptions(**wrong)


def test_keys_and_retentions_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        CustomerKey(b"short")
    with pytest.raises(ValueError, match="GOVERNANCE or COMPLIANCE"):
        Retention("FOREVER", 1.0)  # type: ignore[arg-type]  # what is refused


def test_what_a_caller_says_goes_before_the_defaults() -> None:
    defaults = WriteOptions(storage_class="STANDARD_IA", encryption="aws:kms", kms_key_id="k")
    assert NO_OPTIONS.over(defaults) is defaults
    assert WriteOptions(legal_hold=True).over(defaults) == WriteOptions("STANDARD_IA", "aws:kms", "k", legal_hold=True)
    assert WriteOptions(customer_key=KEY).over(defaults) == WriteOptions("STANDARD_IA", customer_key=KEY)
    assert WriteOptions(encryption="AES256").over(defaults) == WriteOptions("STANDARD_IA", "AES256")


# --- proof -------------------------------------------------------------------------------------------------------------


def facts(size: int, etag: str = "", **checksums: str) -> ObjectFacts:
    return ObjectFacts("k", size, etag, 0.0, checksums=checksums)


def test_only_what_was_compared_proves() -> None:
    parts = [digests_of(b"one", "sha256"), digests_of(b"two", "sha256")]
    expected = Expected.of_parts(6, parts)
    composite = base64.b64encode(sha256(b"".join(sha256(p).digest() for p in (b"one", b"two"))).digest()).decode()
    assert expected.checksums == {"sha256": f"{composite}-2"}
    assert expected.etag == md5(md5(b"one").digest() + md5(b"two").digest()).hexdigest() + "-2"
    for held, is_md5, told in (
        (facts(7, expected.etag), True, "other"),
        (facts(6, expected.etag), True, "same"),
        (facts(6, "0" * 32 + "-2"), True, "other"),
        (facts(6, "0" * 32 + "-2"), False, "size"),
        (facts(6, expected.etag), False, "same"),
        (facts(6, "0" * 32, sha256=f"{composite}-2"), False, "same"),
        (facts(6, "0" * 32, sha256=composite), False, "same"),
        (facts(6, expected.etag, sha256="AAAA-2"), True, "other"),
        (facts(6, "0" * 32, crc32="AAAA"), False, "size"),
    ):
        assert verdict(held, expected, etag_is_md5=is_md5) == told, held
    assert verdict(facts(6, "x"), Expected(6), etag_is_md5=True) == "size"


def test_digests() -> None:
    assert digests_of([b"ab", b"", memoryview(b"c")], "crc32") == Digests(
        md5(b"abc").digest(), crc32=bytes.fromhex("352441c2")
    )
    assert digests_of(b"abc", "sha256", with_md5=False) == Digests(sha256=sha256(b"abc").digest())
    assert whole_checksum("crc32", [b"\0" * 4, b""]) == ""
    assert whole_checksum("", []) == ""
    assert Expected.of_parts(0, []) == Expected(0)


# --- uploads under way -------------------------------------------------------------------------------------------------

_XMLNS = b'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def test_listed_uploads_and_parts_are_read() -> None:
    page = parse_uploads(
        b"<ListMultipartUploadsResult " + _XMLNS + b"><NextKeyMarker>b &amp; c</NextKeyMarker>"
        b"<NextUploadIdMarker>u2</NextUploadIdMarker><IsTruncated>true</IsTruncated>"
        b"<Upload><Key>a+b%20</Key><UploadId>u1</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>"
        b"</ListMultipartUploadsResult>"
    )
    assert [(one.key, one.upload_id) for one in page.uploads] == [("a+b%20", "u1")]
    assert (page.next_key_marker, page.next_upload_marker) == ("b & c", "u2")
    parts = parse_parts(
        b"<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><Size>5</Size>"
        b"<ETag>&quot;e&quot;</ETag><ChecksumSHA256>x=</ChecksumSHA256></Part></ListPartsResult>"
    )
    assert list(parts.parts) == [ListedPart(1, 5, "e", {"sha256": "x="})]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html/>",
        b"<ListMultipartUploadsResult/>",
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated></ListMultipartUploadsResult>",
        b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key></Upload>"
        b"</ListMultipartUploadsResult>",
    ],
)
def test_what_is_no_listing_of_uploads_is_never_an_empty_one(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_uploads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"<ListPartsResult/>",
        b"<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>",
        b"<ListPartsResult><IsTruncated>true</IsTruncated><NextPartNumberMarker>0</NextPartNumberMarker>"
        b"<Part><PartNumber>1</PartNumber><Size>5</Size></Part></ListPartsResult>",
        b"<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>x</PartNumber></Part></ListPartsResult>",
    ],
)
def test_what_is_no_listing_of_parts_is_never_an_empty_one(body: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_parts(body)
