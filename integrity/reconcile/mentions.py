"""What one record says about one key of a bucket, in the few members that a comparison with the bucket needs.

One rule: nothing is concluded here. A record is taken as it is, or it is not about the place; what several records say
together is `integrity.reconcile.acts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from integrity.record import unix_of

CREATES = ("put", "copy")
CHANGES = (*CREATES, "delete", "delete-version")
"""Operations after which a bucket holds something else. The others are told in the story of a key, and change nothing."""
TOLD = (*CHANGES, "restore", "retention", "acl", "tag", "error")
BY_THE_SERVER = ("lifecycle", "replication")
"""Kinds of `who` that are the server itself, following rules that somebody gave it."""
UNKNOWN_SIZE = -1
NO_INTENT = -1


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket, or the part of it below `prefix`. `endpoint` is its name in the configuration; records without one (of
    feeds that do not know it) count for every endpoint."""

    endpoint: str
    bucket: str
    prefix: str = ""

    @property
    def url(self) -> str:
        return f"s3://{self.endpoint}/{self.bucket}/{self.prefix}".rstrip("/")


class Mention(NamedTuple):
    """One record about one key. Times are Unix seconds, `time` 0.0 where the event has none. `sums` is JSON text. `who` is
    plain words, `kind` that of the record's `who`. A version "null" is ""."""

    key: str
    writer: str
    n: int
    at: float
    time: float
    op: str
    phase: str
    source: str
    intent: int
    version: str
    etag: str
    size: int
    sums: str
    sequencer: str
    request: str
    who: str
    kind: str
    parts: int
    """Above 0 for an upload in parts: its time may be that of its beginning, long before the intent to complete it."""

    @property
    def reference(self) -> str:
        """As `s3integrity prove` takes it."""
        return f"{self.writer}#{self.n}"


def mention_of(record: Mapping[str, Any], place: Place) -> Mention | None:
    """None for a record that is not about a key of the place."""
    key, op = record.get("key"), record["op"]
    if key is None or op not in TOLD or record.get("bucket") != place.bucket or not key.startswith(place.prefix):
        return None
    if record.get("endpoint", place.endpoint) != place.endpoint:
        return None
    if record["phase"] == "observed" and "error" in record:
        return None  # a request that a feed saw refused
    who = record.get("who", {})
    detail = record.get("detail", {})
    sums = record.get("sums")
    moment = record.get("time")
    return Mention(
        key,
        record["writer"],
        record["n"],
        unix_of(record["at"]),
        unix_of(moment) if moment else 0.0,
        op,
        record["phase"],
        record["source"],
        record.get("intent", NO_INTENT),
        bare_version(record.get("version", "")),
        record.get("etag", "").strip('"'),
        record.get("size", UNKNOWN_SIZE),
        orjson.dumps(sums).decode() if sums else "",
        record.get("sequencer", ""),
        record.get("request", ""),
        who_words(who),
        (_by_the_server(detail) if detail and record["phase"] == "observed" else "") or who.get("kind", ""),
        parts if isinstance(parts := detail.get("parts"), int) else 0,
    )


def _by_the_server(detail: Mapping[str, Any]) -> str:
    """Which of its own rules the server followed, by what feeds call it."""
    told = " ".join(str(detail.get(name, "")) for name in ("event", "api", "reason")).lower()
    if "lifecycle" in told or "s3.expire" in told:
        return "lifecycle"
    return "replication" if "objectsynced" in told or "replication" in told else ""


def bare_version(version: str) -> str:
    """The id S3 calls null is that of the one version which is replaced when its key is written: here it has none."""
    return "" if version == "null" else version


def who_words(who: Mapping[str, str]) -> str:
    """`root@pve1 (cowsync, key AK7, from 192.0.2.7)`; "" where nothing is known."""
    name = who.get("user") or who.get("name") or who.get("principal") or ""
    if who.get("host") and name:
        name = f"{name}@{who['host']}"
    name = name or who.get("host", "")
    beside = []
    if who.get("name") and not name.startswith(who["name"]):
        beside.append(who["name"])
    if who.get("access_key") and who["access_key"] != name:
        beside.append(f"key {who['access_key']}")
    if who.get("ip"):
        beside.append(f"from {who['ip']}")
    if not beside:
        return name
    return f"{name} ({', '.join(beside)})" if name else ", ".join(beside)
