"""What a comparison of a bucket with its ledger found, as values and in plain words.

One rule: a finding says what is there, what the ledger says, between when it came to differ, and who was the last that is
known to have written the key rightly; whom a feed saw is a candidate, never more.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from integrity.record import timestamp


class Code(StrEnum):
    UNLOGGED_PUT = "UNLOGGED_PUT"
    UNLOGGED_OVERWRITE = "UNLOGGED_OVERWRITE"
    UNLOGGED_DELETE = "UNLOGGED_DELETE"
    VERSION_PURGED = "VERSION_PURGED"
    CONTENT_MISMATCH = "CONTENT_MISMATCH"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    GHOST = "GHOST"
    RESTORED_OLD = "RESTORED_OLD"
    DANGLING_INTENT = "DANGLING_INTENT"
    CLOCK = "CLOCK"
    FORGED_NOTIFICATION = "FORGED_NOTIFICATION"


MEANINGS: Mapping[Code, str] = {
    Code.UNLOGGED_PUT: "an object is there that no record tells of",
    Code.UNLOGGED_OVERWRITE: "an object was replaced, and no record tells of it",
    Code.UNLOGGED_DELETE: "an object is gone, or a delete marker hides it, and no record tells of it",
    Code.VERSION_PURGED: "a version, or a delete marker, was deleted for good, and no record tells of it",
    Code.CONTENT_MISMATCH: "the bytes that were read are not those that were recorded",
    Code.SIZE_MISMATCH: "a version has another size than was recorded",
    Code.ETAG_MISMATCH: "a version has another ETag than was recorded, and was not written anew",
    Code.GHOST: "what a record calls done has no trace in the bucket",
    Code.RESTORED_OLD: "an object has the bytes of an earlier version again, and no record tells of it",
    Code.DANGLING_INTENT: "somebody began and nobody said how it ended",
    Code.CLOCK: "everything is as recorded but the time at which it was written",
    Code.FORGED_NOTIFICATION: "a notification tells of something that the bucket contradicts",
}

ADVICE: Mapping[Code, str] = {
    Code.UNLOGGED_PUT: "find out who put it; keep or delete it, and record which",
    Code.UNLOGGED_OVERWRITE: "compare with the version before; copy that back if the change was not wanted",
    Code.UNLOGGED_DELETE: "restore it from the version below the marker or from the mirror; change the keys that may delete",
    Code.VERSION_PURGED: "restore the version from the mirror; take s3:DeleteObjectVersion away or switch Object Lock on",
    Code.CONTENT_MISMATCH: "keep the object as it is; read it again by another way; restore it from the mirror",
    Code.SIZE_MISMATCH: "keep the object as it is; read it; ask whoever runs the store",
    Code.ETAG_MISMATCH: "keep the object as it is; read it; ask whoever runs the store",
    Code.GHOST: "ask the writer's host what it did; check its key (s3integrity verify)",
    Code.RESTORED_OLD: "compare with the version before; copy that back if the change was not wanted",
    Code.DANGLING_INTENT: "look at the object; the process died or is still at work",
    Code.CLOCK: "compare the clocks of the writer's host and of the store; if they agree, it was written twice",
    Code.FORGED_NOTIFICATION: "check who may send to the webhook or write the feed; the bucket is as it was",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """`since` to `until` (Unix seconds, 0.0 unknown) is when it happened. `explained`: the harmless cause, where there is
    one; such a finding is told and not counted. `records` can be given to `s3integrity prove`."""

    code: Code
    key: str
    said: str
    version: str = ""
    since: float = 0.0
    until: float = 0.0
    last_writer: str = ""
    records: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    explained: str = ""
    advice: str = field(default="")

    def as_record(self) -> dict[str, Any]:
        """What `--json` tells of it."""
        told = asdict(self) | {"code": self.code.value, "advice": self.advice or ADVICE[self.code]}
        told |= {"since": shown(self.since), "until": shown(self.until)}
        return told

    @property
    def sentence(self) -> str:
        """In plain words, for people."""
        words = f"`{self.key}` {self.said}"
        words += f", {window(self.since, self.until)}" if self.until else ""
        if self.last_writer:
            words += f"; last legitimate writer: {self.last_writer}"
        if self.candidates:
            words += f"; seen by feeds: {'; '.join(self.candidates)}"
        return words


def shown(moment: float) -> str:
    """As records write times; "" for one that is not known."""
    return timestamp(moment) if moment else ""


def window(since: float, until: float) -> str:
    """`between 2026-11-22 14:02:11 and 14:07:00 UTC`; without a beginning, `before`."""
    last = timestamp(until)[:19].replace("T", " ")
    if not since or since >= until:
        return f"{'at' if since else 'before'} {last} UTC"
    first = timestamp(since)[:19].replace("T", " ")
    if first == last:
        return f"at {last} UTC"
    return f"between {first} and {last[11:] if first[:10] == last[:10] else last} UTC"
