"""An event of a feed: members of a record (integrity.record) but for those that the log gives.

One rule: evidence is told as it came, secrets are not. Names of buckets, keys and versions stay as they are, byte for byte;
every other text goes through `scrubbed`, is cut at a length, and members are taken one by one, never a document as a whole.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from integrity.record import INTEGER_MAX
from s3core.keys import FOREIGN_KEY_BYTES_MAX

Event = dict[str, Any]

TEXT_MAX = 1024
"""Characters of a text that stands in a record for people: a user agent, a message."""
NAME_BYTES_MAX = 1024
"""Of a bucket's name, a version id or a request id."""
REMOVED = "[removed]"


class NotAnEvent(ValueError):
    """Why an entry of a feed is no event: what it is, or what it lacks."""


@dataclass(frozen=True, slots=True)
class Options:
    """`endpoint` is the name of the server in the configuration, "" where it is not told. `reads`: entries of reading, too.
    `operation`, `bucket` and `prefix` are of a batch report: what its job did, and where the results lie, if not where the
    report's objects are."""

    endpoint: str = ""
    reads: bool = False
    operation: str = ""
    bucket: str = ""
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one line holds. `wrong` has a reason for each entry that could not be understood. `left` counts those that are
    understood and not taken: reads, parts of uploads, other services."""

    events: tuple[Event, ...] = ()
    wrong: tuple[str, ...] = ()
    left: int = 0


class Left(Exception):
    """An entry that is understood and not taken."""


def parsed(found: Iterable[Event | NotAnEvent | Left]) -> Parsed:
    """Sorted by what they are."""
    events: list[Event] = []
    wrong: list[str] = []
    left = 0
    for one in found:
        if isinstance(one, NotAnEvent):
            wrong.append(str(one))
        elif isinstance(one, Left):
            left += 1
        else:
            events.append(one)
    return Parsed(tuple(events), tuple(wrong), left)


def made(
    source: str,
    op: str,
    options: Options,
    *,
    bucket: object,
    key: object = None,
    version: object = None,
    etag: object = None,
    size: object = None,
    time: object = None,
    who: Mapping[str, object] | None = None,
    request: object = None,
    sequencer: object = None,
    status: int = 0,
    code: object = None,
    message: object = None,
    previous: Mapping[str, object] | None = None,
    detail: Mapping[str, object] | None = None,
) -> Event:
    """An event whose members can all stand in a record. What cannot (a size that is no number, a time that is none) is left
    out; NotAnEvent for a bucket, key or version that cannot, since without them it would be evidence of something else.
    Left for reads that are not wanted. `status` is that of HTTP, 0 where none is told; with `code` it makes the phase."""
    if op == "read" and not options.reads:
        raise Left
    if op in _OF_OBJECTS and not key:
        raise NotAnEvent("names no key")
    failed = _failed(status, text(code))
    at = moment(time)
    event: Event = {
        "source": source,
        "op": op,
        "phase": failed or "observed",
        "endpoint": options.endpoint,
        "bucket": name(bucket, "bucket"),
        "key": key_text(key),
        "version": name(version, "version id") if version else None,
        "etag": text(etag).strip('"'),
        "size": number(size),
        "time": at,
        "who": {field: cut for field, value in (who or {}).items() if (cut := text(value))},
        "request": text(request, NAME_BYTES_MAX),
        "sequencer": text(sequencer, 64),
        "previous": {field: value for field, value in (previous or {}).items() if value is not None and value != ""},
        "detail": {
            field: told
            for field, value in (detail or {}).items()
            if (told := _detail(field, value)) is not None and told != ""
        },
    }
    if time and not at:
        event["detail"]["time_text"] = text(time, 64)
    if failed:
        told = {"code": text(code, 128) or str(status or "failed"), "message": text(message)}
        event["error"] = {field: value for field, value in told.items() if value}
        if status:
            event["detail"]["status"] = status
    return {field: value for field, value in event.items() if value is not None and value != "" and value != {}}


_OF_OBJECTS: Final = frozenset({"put", "copy", "delete", "delete-version", "restore"})
_NAMED: Final = frozenset({"key_decoded", "key_logged", "from_bucket", "from_key", "from_version"})
"""Details that name what is stored, and stay as they are."""
_UNSURE: Final = frozenset({500, 502, 504})
_UNSURE_CODES: Final = frozenset({"InternalError", "InternalFailure", "RequestTimeout"})


def _failed(status: int, code: str) -> str:
    """The phase of an operation that failed, "" for one that did not. After an inner error nobody knows."""
    if status in _UNSURE or (status == 0 and code in _UNSURE_CODES):
        return "unknown"
    if status >= 400 or (status == 0 and code):
        return "not-done"
    return ""


def _detail(field: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    return _writable(value) if field in _NAMED else text(value)


def identity_of(event: Mapping[str, Any]) -> bytes:
    """By which one event is known again, 16 bytes: its request, where the server tells one; else its time and sequencer. Also
    of a record that was made of it. Two deliveries of one event have one identity; two operations on one key within one
    request have one, too."""
    parts = [
        str(event.get(member, "")) for member in ("source", "endpoint", "bucket", "key", "version", "op", "request")
    ]
    if not parts[-1]:
        parts += [str(event.get(member, "")) for member in ("time", "sequencer", "size", "etag", "phase")]
        parts += [f"{member}={value}" for member, value in sorted(event.get("detail", {}).items())]
    return hashlib.sha256("\0".join(parts).encode()).digest()[:16]


# --- members ----------------------------------------------------------------------------------------------------------


def name(value: object, of: str) -> str:
    """A bucket's name or a version id. NotAnEvent for none."""
    if not isinstance(value, str) or not value:
        raise NotAnEvent(f"names no {of}")
    if len(_encoded(value, of)) > NAME_BYTES_MAX:
        raise NotAnEvent(f"names a {of} of {len(value):,} characters")
    return value


def key_text(value: object) -> str | None:
    """A key, None for none. NotAnEvent for one that no object can have."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise NotAnEvent("names a key that is no text")
    length = len(_encoded(value, "key"))
    if length > FOREIGN_KEY_BYTES_MAX:
        raise NotAnEvent(f"names a key of {length:,} bytes")
    return value


def _encoded(value: str, of: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise NotAnEvent(f"names a {of} that is no text") from error


def number(value: object) -> int | None:
    """A count of bytes, from a number or its text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INTEGER_MAX:
        return value
    return None


def status_of(value: object) -> int:
    """A status of HTTP from a number or its text; 0 for anything else."""
    status = number(value)
    return status if status is not None and 100 <= status <= 999 else 0


def moment(value: object) -> str:
    """A time as records have it, "" for what is none. One without a zone is UTC."""
    if not isinstance(value, str) or not 10 <= len(value) <= 40:
        return ""
    try:
        at = datetime.fromisoformat(value)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return ""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if at.year >= 1970 else ""


def text(value: object, most: int = TEXT_MAX) -> str:
    """`value`, scrubbed and at most `most` characters; "" for what is no text."""
    if not isinstance(value, str):
        return ""
    return scrubbed(_writable(value))[:most]


def _writable(value: str) -> str:
    """`value` with what no UTF-8 can say replaced."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def inner(document: object, *names: str) -> Any:
    """What lies below `names`, None where nothing does."""
    for one in names:
        if not isinstance(document, dict):
            return None
        document = document.get(one)
    return document


# --- secrets ----------------------------------------------------------------------------------------------------------

_SECRET: Final = re.compile(
    r"x-amz-(?:signature|security-token|credential|server-side-encryption-customer-key|"
    r"copy-source-server-side-encryption-customer-key)|signature|authorization|awsaccesskeyid|aws4-hmac|aws4-ecdsa|"
    r"session-?token|secret|password|bearer\s|\baws\s+[^\s:]+:|\btoken\s*[=:\"]",
    re.IGNORECASE,
)
_DECODINGS = 3


def scrubbed(value: str) -> str:
    """`value` up to the first word that a secret follows: a signature, a token, a key of SSE-C. Also where it is
    percent-encoded, up to three times; then nothing of it is left."""
    found = _SECRET.search(value)
    if found is not None:
        return value[: found.start()] + REMOVED
    decoded = value
    for _ in range(_DECODINGS):
        if "%" not in decoded:
            return value
        decoded = unquote(decoded)
        if _SECRET.search(decoded):
            return REMOVED
    return value


# --- operations -------------------------------------------------------------------------------------------------------

PARTS: Final = frozenset({"uploadpart", "uploadpartcopy", "putobjectpart", "copyobjectpart"})
"""Of no effect until the upload is completed."""
_OPERATIONS: Final[Mapping[str, str]] = {
    api.lower(): op
    for op, apis in {
        "put": "PutObject PostObject PostPolicyBucket CompleteMultipartUpload PutObjectExtract RenameObject",
        "copy": "CopyObject",
        "delete": "DeleteObject",
        "restore": "RestoreObject PostRestoreObject",
        "retention": "PutObjectRetention PutObjectLegalHold PutObjectLockConfiguration PutBucketObjectLockConfig",
        "acl": "PutObjectAcl PutBucketAcl PutBucketPolicy DeleteBucketPolicy PutBucketPublicAccessBlock"
        " DeleteBucketPublicAccessBlock PutAccountPublicAccessBlock DeleteAccountPublicAccessBlock"
        " PutBucketOwnershipControls DeleteBucketOwnershipControls",
        "tag": "PutObjectTagging DeleteObjectTagging",
    }.items()
    for api in apis.split()
}
_READING = ("get", "head", "list", "select", "describe", "options", "stat")


def op_of_api(api: str, *, version: bool) -> str:
    """The operation behind a name of S3's API (AWS, MinIO). `version`: one is named in the request. Left for parts; what is
    not known and does not begin as reads do is `control`."""
    lower = api.lower()
    if lower in PARTS:
        raise Left
    op = _OPERATIONS.get(lower)
    if op is None:
        return "read" if lower.startswith(_READING) else "control"
    return "delete-version" if op == "delete" and version else op


def each(entries: Iterable[Any], event_of: Any, *more: object) -> Iterator[Event | NotAnEvent | Left]:
    """`event_of(entry, *more)` of each, or why not."""
    for entry in entries:
        try:
            yield event_of(entry, *more)
        except (NotAnEvent, Left) as why:
            yield why


def each_line(data: bytes, parse: Callable[[bytes, Options], Parsed], options: Options) -> Parsed:
    """What is no JSON as a whole, but may be line by line."""
    lines = data.splitlines()
    if len(lines) == 1:
        return Parsed((), ("is no JSON",))
    told = [parse(line, options) for line in lines]
    return Parsed(
        tuple(event for one in told for event in one.events),
        tuple(f"line {number}: {why}" for number, one in enumerate(told, 1) for why in one.wrong),
        sum(one.left for one in told),
    )
