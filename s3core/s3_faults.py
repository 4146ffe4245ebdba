"""What an S3 server's refusal means: one answer in, one of `s3core.errors` out, with the cure as its hint.

One rule: an answer that leaves open whether a change was made is `OutcomeUnknown`, whatever its status.
Sure refusals are 4xx, and 5xx whose code says that the server did not begin (`_NOT_BEGUN`); every other 5xx to a
changing request is unknown: Ceph answers 500 to the loser of a race, gateways answer 502 and 504 for a server
that may still be at work. 409 ConditionalRequestConflict is `Unavailable`: S3 documents it as not applied and
to be tried again, and who won is not known yet.
Source: Amazon S3 API reference, "Error responses", and what Ceph, MinIO, Garage, R2 and B2 answer in their place.
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from s3core.endpoint import Address, Endpoint
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
from s3core.s3_http import Answer
from s3core.s3_xml import ErrorBody, parse_error, parse_time


@dataclass(frozen=True, slots=True)
class Act:
    """What was asked, in the words of a policy: `permission` on the objects or on the bucket itself."""

    verb: str
    permission: str
    on_bucket: bool = False
    mutating: bool = False


GET = Act("read", "s3:GetObject")
HEAD = Act("look at", "s3:GetObject")
PUT = Act("write", "s3:PutObject", mutating=True)
DELETE = Act("delete", "s3:DeleteObject", mutating=True)
COPY = Act("copy", "s3:GetObject and s3:PutObject", mutating=True)
LIST = Act("list", "s3:ListBucket", on_bucket=True)
UPLOAD = Act("upload in parts", "s3:PutObject", mutating=True)
TAGS = Act("read the tags of", "s3:GetObjectTagging")
PUT_TAGS = Act("tag", "s3:PutObjectTagging", mutating=True)
LIST_VERSIONS = Act("list the versions in", "s3:ListBucketVersions", on_bucket=True)
VERSIONING = Act("ask for the versioning of", "s3:GetBucketVersioning", on_bucket=True)
ABORT = Act("abort the upload of", "s3:AbortMultipartUpload", mutating=True)
DELETE_VERSION = Act("delete a version of", "s3:DeleteObjectVersion", mutating=True)
RETENTION = Act("read the retention of", "s3:GetObjectRetention")
PUT_RETENTION = Act("set the retention of", "s3:PutObjectRetention", mutating=True)
LEGAL_HOLD = Act("read the legal hold of", "s3:GetObjectLegalHold")
PUT_LEGAL_HOLD = Act("set the legal hold of", "s3:PutObjectLegalHold", mutating=True)
RESTORE = Act("restore", "s3:RestoreObject", mutating=True)
LIST_UPLOADS = Act("list the uploads in", "s3:ListBucketMultipartUploads", on_bucket=True)
LIST_PARTS = Act("list the parts of", "s3:ListMultipartUploadParts")

_NOT_BEGUN = frozenset(
    {"SlowDown", "SlowDownRead", "ServiceUnavailable", "RequestLimitExceeded", "TooManyRequests", "Throttling"}
)
_DAMAGED_ON_THE_WAY = frozenset(
    {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
_WRONG_REGION = frozenset(
    {"AuthorizationHeaderMalformed", "InvalidRegionName", "IllegalLocationConstraintException", "InvalidRegion"}
)
_MOVED = frozenset({"PermanentRedirect", "TemporaryRedirect", "Redirect"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "XMinioAdminBucketQuotaExceeded"})
_NOTHING_OF_THAT_KIND = frozenset(
    {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "NoSuchTagSet", "NoSuchTagSetError"}
)
"""Answered with 404 about an object that is there."""
_TOO_LARGE = frozenset({"EntityTooLarge", "KeyTooLong", "KeyTooLongError", "MetadataTooLarge", "EntityTooSmall"})


class TurnedAway(Unavailable):
    """The server asks to slow down. `retry_after`: seconds it wants to be left alone, 0.0 if it names none;
    `s3core.retry` waits no shorter than that."""

    def __init__(self, message: str, *, key: str, retry_after: float) -> None:
        super().__init__(message, key=key, hint="the server asks to slow down: lower requests_per_s or concurrency")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Place:
    """Where the refused request went, for messages."""

    endpoint: Endpoint
    address: Address
    bucket: str
    region: str


def fault(answer: Answer, act: Act, place: Place, key: str, now: float, body: ErrorBody | None = None) -> StoreError:
    """The error for an answer that is not a success. `now` is the time by which the request was signed; `body`
    is given where somebody else has read the answer's."""
    body = body or parse_error(answer.body)
    status, code, name = answer.status, body.code, place.endpoint.name
    what = f"{act.verb}: {status} {code}{': ' + body.message if body.message else ''}".replace(" :", ":").strip()
    if not code:
        what = f"{act.verb}: the server answered {status} without saying why"
    if status == 412 or code == "PreconditionFailed":
        return PreconditionFailed(what, key=key)
    if code in ("ConditionalRequestConflict", "OperationAborted"):
        return Unavailable(what, key=key, hint="another request for the same object was under way; try again")
    if code in _NOT_BEGUN or status == 429:
        return TurnedAway(what, key=key, retry_after=_retry_after(answer))
    if code in _FULL or status == 507:
        return _full(what, key, status, act)
    if code == "NotImplemented" or status in (501, 405):
        return Unsupported(what, key=key, hint=f"endpoint {name} cannot do this; `bucketworks doctor` says what it can")
    if status >= 500:
        return OutcomeUnknown(what, key=key) if act.mutating else Unavailable(what, key=key)
    if code in _DAMAGED_ON_THE_WAY or status == 408:
        return Unavailable(what, key=key, hint="the request did not arrive whole; try again")
    if code == "NoSuchBucket":
        return NotFound(
            f"bucket {place.bucket} does not exist at {place.address.origin}{place.address.path}",
            hint="check its name and region, or create it",
        )
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        return _skewed(body, answer, now, key)
    region = served_region(answer, body)
    if code in _WRONG_REGION or (region and region != place.region and status in (301, 307, 400, 403)):
        return _wrong_region(what, region, place, key)
    if code in _MOVED or 300 <= status < 400:
        return _moved(body, answer, place, key)
    if code == "InvalidBucketName":
        cure = "bucket names have 3 to 63 lower-case letters, digits, dots and hyphens"
        return Misconfigured(what, hint=f"{cure}; if {place.bucket} is one, try addressing = path for endpoint {name}")
    if code == "BucketAlreadyExists":
        return Denied(what, hint=f"the name {place.bucket} is taken by somebody else: choose another")
    if code in _TOO_LARGE:
        return Unsupported(what, key=key)
    if code == "InvalidObjectState":
        return Archived(what, key=key, hint="the object lies in an archive tier; restore it first")
    if status in (401, 403):
        return _denied(body, what, act, place, key)
    if code in _NOTHING_OF_THAT_KIND:
        return StoreError(what, key=key)
    if status == 404:
        return _not_found(answer, body, what, place, key)
    if status == 416:
        return Corrupt("the object is shorter than the range that was asked for", key=key)
    if status == 400 and not code and answer.body:
        return _not_s3(answer, place, key)
    return StoreError(what, key=key)


def served_region(answer: Answer, body: ErrorBody | None = None) -> str:
    """The region that the server says it, or the bucket, is in; empty if it does not say."""
    named = answer.headers.get("x-amz-bucket-region", "")
    if named or answer.status < 300:
        return named
    body = body or parse_error(answer.body)
    if body.region:
        return body.region
    if body.code in _WRONG_REGION:
        # "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
        return body.message.partition("expecting '")[2].partition("'")[0]
    return ""


def _retry_after(answer: Answer) -> float:
    """Of Retry-After (RFC 9110 section 10.2.3) the form in seconds; no S3 server is known to send a date."""
    text = answer.headers.get("retry-after", "").strip()
    return float(text) if text.isdecimal() else 0.0


def _full(what: str, key: str, status: int, act: Act) -> StoreError:
    hint = "the store or the bucket's quota is full: make room or raise the quota"
    if status >= 500 and act.mutating:
        return OutcomeUnknown(what, key=key, hint=hint)
    return Denied(what, key=key, hint=hint) if status < 500 else Unavailable(what, key=key, hint=hint)


def _skewed(body: ErrorBody, answer: Answer, now: float, key: str) -> StoreError:
    server = _server_time(body, answer)
    if not server:
        text = "this host's clock differs too much from the server's"
    else:
        seconds = round(now - server)
        text = f"this host's clock is {abs(seconds):,} seconds {'ahead of' if seconds > 0 else 'behind'} the server's"
    return Misconfigured(text, key=key, hint="set the clock of the one that is wrong (timedatectl set-ntp true)")


def _server_time(body: ErrorBody, answer: Answer) -> float:
    try:
        if body.server_time:
            return parse_time(body.server_time)
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (Corrupt, ValueError):
        return 0.0


def _wrong_region(what: str, region: str, place: Place, key: str) -> StoreError:
    name = place.endpoint.name
    if region:
        cure = f'set region = "{region}" (or "auto") for endpoint {name}'
    else:
        cure = f'set region = "auto" for endpoint {name}, or the name the provider gives'
    return Misconfigured(f"{what}; requests are signed for region {place.region}", key=key, hint=cure)


def _moved(body: ErrorBody, answer: Answer, place: Place, key: str) -> StoreError:
    target = body.endpoint or answer.headers.get("location", "")
    text = f"{place.address.origin} sends requests for bucket {place.bucket} elsewhere"
    if target:
        text += f": {target}"
    name = place.endpoint.name
    if place.address.virtual:
        cure = f'set addressing = "path" for endpoint {name}, or the url that the server names'
    elif body.endpoint.startswith(f"{place.bucket}."):
        cure = f'set addressing = "virtual" for endpoint {name}'
    else:
        cure = f"set the url that the server names for endpoint {name}"
    return Misconfigured(text, key=key, hint=cure)


def _denied(body: ErrorBody, what: str, act: Act, place: Place, key: str) -> StoreError:
    credentials = place.endpoint.credentials
    origin = f" (from {credentials.source})" if credentials.source else ""
    if body.code == "SignatureDoesNotMatch":
        hint = f"the secret key does not belong to access key {credentials.access_key}{origin}"
    elif body.code in ("InvalidAccessKeyId", "NoSuchAccessKey"):
        hint = f"the server does not know access key {credentials.access_key}{origin}; is it for this endpoint?"
    elif body.code in ("ExpiredToken", "InvalidToken"):
        hint = f"the session token{origin} is not valid any more: get new credentials"
    elif credentials.anonymous:
        hint = f"endpoint {place.endpoint.name} has no credentials: set them"
    else:
        resource = f"arn:aws:s3:::{place.bucket}" + ("" if act.on_bucket else "/*")
        level = "the bucket" if act.on_bucket else "its objects"
        hint = f"access key {credentials.access_key} needs {act.permission} on {level} ({resource})"
        if act in (GET, HEAD):
            hint += (
                f"; without s3:ListBucket on the bucket (arn:aws:s3:::{place.bucket})"
                " a missing object is refused the same way"
            )
    return Denied(what, key=key, hint=hint)


def _not_found(answer: Answer, body: ErrorBody, what: str, place: Place, key: str) -> StoreError:
    if body.code == "NoSuchUpload":
        return NotFound("the upload does not exist: it was completed or aborted before", key=key)
    if answer.body and not body.code:
        return _not_s3(answer, place, key)
    if not key:
        return NotFound(what, hint=f"check the name of bucket {place.bucket}")
    return NotFound("no such object", key=key)


def _not_s3(answer: Answer, place: Place, key: str) -> StoreError:
    shown = answer.body[:80].decode("utf-8", "replace").strip()
    return Misconfigured(
        f"{place.address.origin} answered {answer.status} with something that is not S3: {shown!r}",
        key=key,
        hint=f"check the url of endpoint {place.endpoint.name}: scheme, port and path",
    )
