"""Server access logs of S3: lines of fields with blanks between, some in quotes that are not escaped.

One rule: what a client can write into a line (user agent, referrer, host) can only blur those fields, never move another: a
request line has no blank in its target, what follows the user agent no quote before a blank. The request line is read for
its `versionId` alone and kept nowhere; the referrer is not kept either: both may be presigned.

Source: S3 User Guide, "Amazon S3 server access log format". Delivery is best effort, hours late, at times twice. Keys are
percent-encoded twice.
"""

import re
from datetime import datetime
from typing import Final
from urllib.parse import parse_qs, unquote_to_bytes

from integrity.ingest.events import (
    Event,
    Left,
    NotAnEvent,
    Options,
    Parsed,
    each,
    made,
    parsed,
    status_of,
)

SOURCE = "access-log"
_LINE: Final = re.compile(
    r"(?P<owner>\S+) (?P<bucket>\S+) \[(?P<time>[^\]]+)\] (?P<ip>\S+) (?P<requester>\S+) (?P<request>\S+)"
    r" (?P<operation>[A-Z0-9_.]+) (?P<key>\S+) (?:-|\"(?:-|[A-Z]+ (?P<target>\S*) [^ \"]+)\")"
    r" (?P<status>\d{3}|-) (?P<code>\S+) (?P<sent>\d+|-) (?P<size>\d+|-) (?P<total>\d+|-) (?P<turnaround>\d+|-)"
    r"(?: (?P<rest>.*))?\Z"
)
_AFTER: Final = (
    "version",
    "host_id",
    "signature_version",
    "cipher",
    "authentication",
    "host",
    "tls",
    "access_point",
    "acl",
)
_OPS: Final = {
    "PUT.OBJECT": "put",
    "POST.OBJECT": "put",
    "POST.UPLOAD": "put",
    "COPY.OBJECT": "copy",
    "DELETE.OBJECT": "delete",
    "POST.RESTORE": "restore",
    "RESTORE.OBJECT": "restore",
    "EXPIRE.OBJECT": "delete",
    "CREATE.DELETEMARKER": "delete",
    "PUT.ACL": "acl",
    "PUT.BUCKETPOLICY": "acl",
    "DELETE.BUCKETPOLICY": "acl",
    "PUT.PUBLIC_ACCESS_BLOCK": "acl",
    "DELETE.PUBLIC_ACCESS_BLOCK": "acl",
    "PUT.OBJECT_TAGGING": "tag",
    "DELETE.OBJECT_TAGGING": "tag",
    "PUT.OBJECT_LOCK_RETENTION": "retention",
    "PUT.OBJECT_LOCK_LEGALHOLD": "retention",
    "PUT.OBJECT_LOCK_LEGAL_HOLD": "retention",
    "PUT.OBJECT_LOCK_CONFIGURATION": "retention",
    "PUT.RETENTION": "retention",
    "PUT.LEGAL_HOLD": "retention",
}
_OF_LIFECYCLE = frozenset({"EXPIRE.OBJECT", "CREATE.DELETEMARKER"})
_LEFT = frozenset({"PUT.PART", "COPY.PART", "COPY.PART_GET", "COPY.OBJECT_GET"})
_READING = ("GET", "HEAD", "OPTIONS", "SELECT")


def parse(line: bytes, options: Options) -> Parsed:
    """The event of one line."""
    return parsed(each([line], _event, options)) if line.strip() else Parsed()


def _event(line: bytes, options: Options) -> Event:
    found = _LINE.match(line.decode("utf-8", "surrogateescape").rstrip("\r\n"))
    if found is None:
        raise NotAnEvent("is no line of a server access log")
    field = {name: None if value == "-" else value for name, value in found.groupdict().items()}
    if field["bucket"] is None:
        raise Left
    agent, after = _agent(field["rest"] or "")
    door, _, called = (field["operation"] or "").partition(".")
    if called in _LEFT:
        raise Left
    asked = _version(field["target"])
    op = _OPS.get(called) or ("read" if called.startswith(_READING) else "control")
    # Lifecycle and batch deletion have no request line: the version field says which was deleted.
    version = asked or after.get("version")
    if called == "CREATE.DELETEMARKER":
        op = "delete"
    elif op == "delete" and (asked or (version and field["target"] is None)):
        op = "delete-version"
    requester = field["requester"]
    key, doubtful = _key(field["key"])
    return made(
        SOURCE,
        op,
        options,
        bucket=field["bucket"],
        key=key,
        version=version,
        size=field["size"] if op == "put" else None,
        time=_time(field["time"]),
        who={
            "kind": "anonymous" if requester is None else "service" if door == "S3" else None,
            "principal": requester,
            "ip": field["ip"],
            "agent": agent,
        },
        request=field["request"],
        status=status_of(field["status"]),
        code=field["code"] if status_of(field["status"]) >= 400 else None,
        detail={
            "api": f"{door}.{called}",
            "reason": "lifecycle" if door == "S3" and called in _OF_LIFECYCLE else None,
            "key_logged": doubtful,
            "access_point": after.get("access_point"),
        },
    )


def _agent(rest: str) -> tuple[str, dict[str, str]]:
    """User agent, and the fields behind it, from what follows the times: `"referrer" "agent" version …`."""
    quoted, quote, tail = rest.rpartition('" ')
    if not quote:
        quoted, tail = rest.removesuffix('"'), ""
    # A referrer may hold `" "` as well: then the agent begins too early, which loses nothing.
    agent = quoted.partition('" "')[2]
    after = {name: value for name, value in zip(_AFTER, tail.split(" "), strict=False) if value not in ("-", "")}
    return ("" if agent == "-" else agent), after


def _version(target: str | None) -> str | None:
    if target is None or "versionId=" not in target:
        return None
    try:
        return parse_qs(target.partition("?")[2], max_num_fields=100).get("versionId", [""])[0] or None
    except ValueError:
        return None


def _key(logged: str | None) -> tuple[str | None, str | None]:
    """The key, and how it was logged where once decoded it still looks encoded: then either may be meant, and S3's way,
    twice, is taken."""
    if logged is None:
        return None, None
    once = unquote_to_bytes(logged.encode("utf-8", "surrogateescape"))
    for data in (unquote_to_bytes(once), once):
        try:
            return data.decode(), logged[:1024] if data != once and _is_plain(once) else None
        except UnicodeDecodeError:
            continue
    raise NotAnEvent("names a key that is no text")


def _is_plain(once: bytes) -> bool:
    """Whether what was decoded once is not what an encoder gives: then it may have been encoded only once."""
    return re.search(rb"[^A-Za-z0-9_.~!*'()%/-]", once) is not None


def _time(value: str | None) -> str | None:
    try:
        return datetime.strptime(value or "", "%d/%b/%Y:%H:%M:%S %z").isoformat()
    except ValueError:
        return value
