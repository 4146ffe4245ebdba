"""One record of a ledger, as bytes: canonical JSON whose members are fixed.

Canonical is RFC 8785 with less freedom: names of ASCII, no floats, integers below 2^53 in magnitude, text that UTF-8 can
encode, no name twice. A record has 1 to 65,535 bytes, so that it fits an entry bundle (C2SP tlog-tiles). docs/formats/ledger.md
has the members as a table.

One rule: the bytes are the record. They are hashed once, as a leaf of the log's tree (RFC 6962), and that hash stands in the
next record's `after`: chain and tree are over the same bytes by the same hash and cannot disagree.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from integrity.errors import Malformed
from integrity.layout import check_writer

VERSION = 1
RECORD_BYTES_MAX = 65_535
INTEGER_MAX = 2**53 - 1
DEPTH_MAX = 250
"""Objects and lists within one another in a member: what is deeper no JSON library need read."""
START: Final = bytes(32)
"""`after` of a log's first record."""

MEMBERS: Final[Mapping[str, type]] = {
    "after": str,
    "at": str,
    "bucket": str,
    "detail": dict,
    "endpoint": str,
    "error": dict,
    "etag": str,
    "intent": int,
    "key": str,
    "n": int,
    "op": str,
    "phase": str,
    "previous": dict,
    "request": str,
    "sequencer": str,
    "size": int,
    "source": str,
    "sums": dict,
    "time": str,
    "v": int,
    "version": str,
    "who": dict,
    "writer": str,
}
REQUIRED: Final = ("after", "at", "n", "op", "phase", "source", "v", "writer")
OPERATIONS: Final = (
    "put",
    "copy",
    "delete",
    "delete-version",
    "restore",
    "retention",
    "acl",
    "tag",
    "read",
    "key",
    "checkpoint",
    "enrol",
    "retire",
    "heads",
    "control",
    "note",
    "error",
)
PHASES: Final = ("intent", "done", "not-done", "unknown", "observed")
SOURCES: Final = (
    "client",
    "notification",
    "minio-audit",
    "rgw-ops-log",
    "access-log",
    "cloudtrail",
    "batch-report",
    "ledger",
)
WHO: Final = ("kind", "name", "access_key", "ip", "host", "user", "agent", "principal")

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*\Z")
_HEAD: Final = b'{"after":"'
_AFTER = slice(len(_HEAD), len(_HEAD) + 64)


def encode(event: Mapping[str, object], *, writer: str, n: int, at: str, after: bytes) -> bytes:
    """The record's bytes: `event` (every member but the four that the log gives) with its place in the log of `writer`.
    Members that are None, "" or {} are left out. ValueError says which member cannot be so."""
    record = {name: value for name, value in event.items() if value is not None and value != "" and value != {}}
    for name in ("after", "at", "n", "v", "writer"):
        if name in record:
            raise ValueError(f"{name}: is given by the log, not by the event")
    record |= {"after": after.hex(), "at": at, "n": n, "v": VERSION, "writer": writer}
    _check(record)
    try:
        data: bytes = orjson.dumps(record, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from error
    if len(data) > RECORD_BYTES_MAX:
        raise ValueError(f"a record has at most {RECORD_BYTES_MAX:,} bytes, this one {len(data):,}")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The record's members. Malformed for bytes that `encode` cannot have made."""
    try:
        record = orjson.loads(data)
        if not isinstance(record, dict):
            raise ValueError("is not a JSON object")
        _check(record)
        # Names twice, other spacing, another order or spelling of a number or character: all show here.
        if orjson.dumps(record, option=orjson.OPT_SORT_KEYS) != data:
            raise ValueError("is not canonical JSON (RFC 8785)")
    except (ValueError, TypeError) as error:
        raise Malformed(f"not a record of a ledger: {error}: {bytes(data[:80])!r}") from error
    return record


def after_of(data: bytes) -> bytes:
    """The hash in a record's `after`, without reading the rest of it. Malformed where there is none."""
    try:
        if not data.startswith(_HEAD):
            raise ValueError("does not begin with `after`")
        after = bytes.fromhex(data[_AFTER].decode("ascii"))
        if len(after) != 32:
            raise ValueError("`after` is not 32 bytes")
    except ValueError as error:
        raise Malformed(f"not a record of a ledger: {error}: {bytes(data[:80])!r}") from error
    return after


def timestamp(unix_s: float) -> str:
    """Unix seconds as `at` and `time` are written: UTC, microseconds, 27 characters; texts compare as times do."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_of(text: str) -> float:
    """Unix seconds of a time as records have it. ValueError for another text."""
    if not _TIME.match(text):
        raise ValueError(f"{text!r} is not a time such as 2026-01-31T12:00:00.000000Z")
    return datetime.fromisoformat(text).timestamp()


def _check(record: Mapping[str, Any]) -> None:
    for name in REQUIRED:
        if name not in record:
            raise ValueError(f"{name}: is missing")
    for name, value in record.items():
        kind = MEMBERS.get(name)
        if type(value) is not kind:
            if kind is None:
                raise ValueError(f"{name}: no such member")
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name}: must be {_kind_name(kind)}, not {value!r}")
        if isinstance(value, int):
            if not 0 <= value <= INTEGER_MAX:
                raise ValueError(f"{name}: must be from 0 to 2^53 - 1, not {value}")
        elif kind is dict and name != "who":
            _check_value(name, value)
    if record["v"] != VERSION:
        raise ValueError(f"v: is {record['v']}; this program knows {VERSION}")
    for name, known in (("op", OPERATIONS), ("phase", PHASES), ("source", SOURCES)):
        if record[name] not in known:
            raise ValueError(f"{name}: {record[name]!r} is not known; it is one of {', '.join(known)}")
    check_writer(record["writer"])
    if not _HASH.match(record["after"]):
        raise ValueError(f"after: is not a SHA-256 in lower-case hex: {record['after']!r}")
    for name in ("at", "time"):
        if name in record and not _is_time(record[name]):
            raise ValueError(f"{name}: {record[name]!r} is not a time such as 2026-01-31T12:00:00.000000Z")
    for name, value in record.get("who", {}).items():
        if name not in WHO:
            raise ValueError(f"who.{name}: no such member; known are {', '.join(WHO)}")
        if type(value) is not str:
            _check_value(f"who.{name}", value)


def _is_time(text: str) -> bool:
    """Whether there is such a moment: 13 is no month."""
    if not _TIME.match(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _check_value(where: str, value: Any, depth: int = DEPTH_MAX) -> None:
    if depth == 0:
        raise ValueError(f"{where[:80]}: has more than {DEPTH_MAX} objects or lists within one another")
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str) or not _NAME.match(name):
                raise ValueError(f"{where}: {name!r} is no name: letters, digits, '_', '.', ':' and '-'")
            _check_value(f"{where}.{name}", below, depth - 1)
    elif isinstance(value, list):
        for below in value:
            _check_value(where, below, depth - 1)
    elif isinstance(value, float):
        raise ValueError(f"{where}: {value!r} is a fraction; write it as text or in a smaller unit")
    elif isinstance(value, int):
        if not isinstance(value, bool) and abs(value) > INTEGER_MAX:
            raise ValueError(f"{where}: {value} is beyond 2^53 - 1")
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {type(value).__name__} is not a type of JSON that records may hold")


def _kind_name(kind: Any) -> str:
    return {str: "text", int: "a whole number", dict: "an object"}[kind]
