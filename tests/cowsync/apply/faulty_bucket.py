"""Buckets whose calls go wrong where a test says so; and what a small world of two of them looks like.

One rule: calls of all buckets of one `Faults` are numbered together, from 1, so that a test can go through them all.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, cast

from cowsync.changes import Op, PlanLine
from s3core.bucket import Bucket
from s3core.errors import Denied, OutcomeUnknown, StoreError, Unavailable
from s3core.memory_bucket import MemoryBucket, MemoryService

READS = {"list_page", "list_versions", "head", "tags", "get"}
WRITES = {
    "put",
    "copy",
    "begin_upload",
    "upload_part",
    "copy_part",
    "complete_upload",
    "abort_upload",
    "delete",
}


class Crash(BaseException):
    """The process is gone: nobody may clean up."""


class Fault(StrEnum):
    REFUSED = "refused"
    DENIED = "denied"
    LOST_REQUEST = "lost request"
    LOST_REPLY = "lost reply"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


@dataclass
class Faults:
    """`at`: what befalls call number n. `meanwhile`: what somebody else does right before call n."""

    at: Mapping[int, Fault] = field(default_factory=dict)
    meanwhile: Mapping[int, Callable[[], object]] = field(default_factory=dict)
    calls: int = 0
    crashed: bool = False
    trace: list[str] = field(default_factory=list)

    def call(self, name: str, action: Callable[[], object]) -> object:
        if self.crashed:
            raise Crash
        self.calls += 1
        self.trace.append(name)
        if self.calls in self.meanwhile:
            self.meanwhile[self.calls]()
        fault = self.at.get(self.calls)
        unheard = OutcomeUnknown if name in WRITES else Unavailable
        match fault:
            case None:
                return action()
            case Fault.REFUSED:
                raise Unavailable("injected: refused")
            case Fault.DENIED:
                raise Denied("injected: no")
            case Fault.LOST_REQUEST:
                raise unheard("injected: the request was lost")
            case Fault.LOST_REPLY:
                _unheard(action)
                raise unheard("injected: the reply was lost")
            case Fault.CRASH_BEFORE | Fault.CRASH_AFTER:
                if fault is Fault.CRASH_AFTER:
                    _unheard(action)
                self.crashed = True
                raise Crash


def _unheard(action: Callable[[], object]) -> None:
    with suppress(StoreError):  # a refusal is lost like any other answer
        action()


class FaultyBucket:
    def __init__(self, inner: MemoryBucket, faults: Faults) -> None:
        self.inner = inner
        self.faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in READS | WRITES:
            return found
        return lambda *args, **named: self.faults.call(name, lambda: found(*args, **named))


def faulty(inner: MemoryBucket, faults: Faults) -> Bucket:
    return cast(Bucket, FaultyBucket(inner, faults))


class ListPlan:
    """A plan in memory, named by what it holds."""

    def __init__(self, lines: list[PlanLine]) -> None:
        self.held = sorted(lines, key=lambda line: line.key)
        self.digest = sha256(repr(self.held).encode()).hexdigest()

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, PlanLine]]:
        yield from list(enumerate(self.held))[start:stop]


def service(name: str) -> MemoryService:
    return MemoryService(name, part_bytes_min=10, copy_bytes_max=40)


def put_in_parts(bucket: MemoryBucket, key: str, data: bytes, part: int) -> str:
    upload = bucket.begin_upload(key)
    parts = [
        (number, bucket.upload_part(key, upload, number, data[at : at + part]))
        for number, at in enumerate(range(0, len(data), part), 1)
    ]
    return bucket.complete_upload(key, upload, parts).etag


def line_for(op: Op, source: MemoryBucket, key: str, prefix: str = "", **more: Any) -> PlanLine:
    """The line that a scan of `source` as it is would give."""
    facts = source.head(prefix + key)
    return PlanLine(op, key, facts.size, facts.etag, "2026-01-01T00:00:00.000Z", **more)
