"""Refusals as a table: what the server said, which error that is, and the cure that is named."""

import pytest

from s3core.endpoint import Credentials, Endpoint
from s3core.errors import (
    Archived,
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.s3_faults import DELETE, GET, LIST, PUT, Act, Place, TurnedAway, fault, served_region
from s3core.s3_http import Answer

ENDPOINT = Endpoint(
    "shop", "https://s3.example.com", "us-east-1", "path", Credentials("AKID", "s3cret", source="profile shop")
)
NOW = 1_700_000_000.0


def refused(
    status: int, code: str = "", inner: str = "", act: Act = PUT, endpoint: Endpoint = ENDPOINT, **headers: str
) -> StoreError:
    body = f"<Error><Code>{code}</Code>{inner}</Error>".encode() if code else b""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    place = Place(endpoint, endpoint.address("bucket", "us-east-1"), "bucket", "us-east-1")
    return fault(Answer(status, named, body), act, place, "key", NOW)


@pytest.mark.parametrize(
    ("status", "code", "of_a_put", "of_a_get"),
    [
        (412, "PreconditionFailed", PreconditionFailed, PreconditionFailed),
        (412, "", PreconditionFailed, PreconditionFailed),
        (409, "ConditionalRequestConflict", Unavailable, Unavailable),
        (409, "OperationAborted", Unavailable, Unavailable),
        (503, "SlowDown", TurnedAway, TurnedAway),
        (503, "ServiceUnavailable", TurnedAway, TurnedAway),
        (429, "", TurnedAway, TurnedAway),
        (503, "SlowDownWrite", OutcomeUnknown, Unavailable),
        (503, "", OutcomeUnknown, Unavailable),
        (500, "UnknownError", OutcomeUnknown, Unavailable),
        (500, "InternalError", OutcomeUnknown, Unavailable),
        (502, "", OutcomeUnknown, Unavailable),
        (504, "", OutcomeUnknown, Unavailable),
        (507, "XMinioStorageFull", OutcomeUnknown, Unavailable),
        (403, "QuotaExceeded", Denied, Denied),
        (501, "NotImplemented", Unsupported, Unsupported),
        (405, "MethodNotAllowed", Unsupported, Unsupported),
        (400, "BadDigest", Unavailable, Unavailable),
        (400, "RequestTimeout", Unavailable, Unavailable),
        (400, "EntityTooLarge", Unsupported, Unsupported),
        (400, "InvalidArgument", StoreError, StoreError),
        (403, "InvalidObjectState", Archived, Archived),
        (404, "NoSuchKey", NotFound, NotFound),
        (404, "", NotFound, NotFound),
        (404, "NoSuchUpload", NotFound, NotFound),
        (416, "InvalidRange", Corrupt, Corrupt),
    ],
)
def test_who_must_act(status: int, code: str, of_a_put: type[StoreError], of_a_get: type[StoreError]) -> None:
    assert type(refused(status, code)) is of_a_put
    assert type(refused(status, code, act=GET)) is of_a_get
    assert refused(status, code).key == "key"


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("", 0.0), ("soon", 0.0)])
def test_the_pause_a_server_asks_for_reaches_the_retries(header: str, seconds: float) -> None:
    error = refused(503, "SlowDown", retry_after=header)
    assert isinstance(error, TurnedAway)
    assert error.temporary
    assert error.retry_after == seconds


@pytest.mark.parametrize(
    ("act", "cure"),
    [
        (GET, "s3:GetObject on its objects (arn:aws:s3:::bucket/*); without s3:ListBucket on the bucket"),
        (PUT, "s3:PutObject on its objects (arn:aws:s3:::bucket/*)"),
        (DELETE, "s3:DeleteObject on its objects (arn:aws:s3:::bucket/*)"),
        (LIST, "s3:ListBucket on the bucket (arn:aws:s3:::bucket)"),
    ],
)
def test_access_denied_names_the_permission_and_its_level(act: Act, cure: str) -> None:
    error = refused(403, "AccessDenied", act=act)
    assert isinstance(error, Denied)
    assert "AKID" in error.hint
    assert cure in error.hint


def test_bad_keys_name_the_access_key_and_its_source_but_not_the_secret() -> None:
    for code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"):
        error = refused(403, code)
        assert isinstance(error, Denied)
        assert "profile shop" in error.hint
        assert "s3cret" not in str(error)
    anonymous = Endpoint("shop", "https://s3.example.com")
    assert "has no credentials" in refused(403, "AccessDenied", endpoint=anonymous).hint


def test_a_missing_bucket_is_not_found_without_a_key() -> None:
    error = refused(404, "NoSuchBucket")
    assert isinstance(error, NotFound)
    assert error.key == ""
    assert "bucket" in str(error)
    assert error.hint


@pytest.mark.parametrize(
    ("status", "code", "inner"),
    [
        (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
        (400, "AuthorizationHeaderMalformed", "<Message>the region 'a' is wrong; expecting 'eu-west-1'</Message>"),
        (403, "InvalidRegionName", "<Region>eu-west-1</Region>"),
        (400, "IllegalLocationConstraintException", "<Region>eu-west-1</Region>"),
    ],
)
def test_a_wrong_region_names_the_right_one_and_auto(status: int, code: str, inner: str) -> None:
    error = refused(status, code, inner)
    assert isinstance(error, Misconfigured)
    assert 'region = "eu-west-1" (or "auto")' in error.hint
    assert "signed for region us-east-1" in str(error)


def test_a_wrong_region_that_is_not_named_suggests_auto() -> None:
    assert 'region = "auto"' in refused(400, "AuthorizationHeaderMalformed").hint


def test_the_region_is_found_in_the_header_too() -> None:
    assert served_region(Answer(301, {"x-amz-bucket-region": "eu-west-1"}, b"")) == "eu-west-1"
    assert served_region(Answer(200, {}, b"")) == ""


def test_the_clock_is_compared_with_the_servers() -> None:
    error = refused(403, "RequestTimeTooSkewed", "<ServerTime>2023-11-14T21:13:20Z</ServerTime>")
    assert isinstance(error, Misconfigured)
    assert "3,600 seconds ahead of" in str(error)
    assert "clock" in error.hint
    by_date = refused(403, "RequestTimeTooSkewed", date="Tue, 14 Nov 2023 22:33:20 GMT")
    assert "1,200 seconds behind" in str(by_date)
    assert "differs too much" in str(refused(403, "RequestTimeTooSkewed"))


def test_redirects_name_the_addressing_style_or_the_url() -> None:
    inner = "<Endpoint>bucket.s3.example.com</Endpoint>"
    error = refused(301, "PermanentRedirect", inner)
    assert isinstance(error, Misconfigured)
    assert 'addressing = "virtual"' in error.hint
    virtual = Endpoint("shop", "https://s3.example.com", "us-east-1", "virtual")
    assert 'addressing = "path"' in refused(301, "PermanentRedirect", inner, endpoint=virtual).hint
    assert "other.example" in str(refused(307, "TemporaryRedirect", "<Endpoint>other.example</Endpoint>"))


def test_what_is_not_s3_is_a_matter_of_the_url() -> None:
    place = Place(ENDPOINT, ENDPOINT.address("bucket", "us-east-1"), "bucket", "us-east-1")
    for status in (400, 404):
        error = fault(Answer(status, {}, b"<html>nginx</html>"), GET, place, "key", NOW)
        assert isinstance(error, Misconfigured)
        assert "not S3" in str(error)
        assert "url" in error.hint
