"""What our own tools do to a bucket, as records: an intent before the request is sent, the outcome after it.

    Recording( Observed( Retrying( Limited( adapter ) ) ) )

The wrappers go outside the retries. A record is one act of the tool, not an attempt: who reads the ledger asks what was
done, and only the outermost layer knows how it ended (an attempt that was lost and its repetition are one answer there).

    what is so when the process dies     what the ledger says       who repairs it
    before the intent is durable         nothing; nothing was sent  nobody needs to
    after it, the request under way      an intent, no outcome      reconcile looks what the bucket holds
    after it, the outcome not on disk    the same                   the same

An intent without an outcome is a named unknown: key, writer and moment are known. Outcomes do not wait for the disk, so that
one sync for each request is all it costs, shared by all threads; they are on it a moment later, and at `close`.

One rule: a request that changes something is sent only when its intent is durable on this host. A ledger that cannot take it
fails the call as `NotRecorded`, before anything is sent. That the ledger's own store is away does not.
"""

import atexit
import getpass
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Final, Protocol

from integrity.coverage import Covered, covered, key_prefix
from integrity.errors import LedgerError
from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, CopySource, Written
from s3core.bucket_wrapper import BucketWrapper
from s3core.build import parse_store_url
from s3core.content import byte_count, byte_views
from s3core.credentials import CredentialsError
from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests
from s3core.errors import Misconfigured, OutcomeUnknown, StoreError
from s3core.exit_codes import ExitCode, register
from s3core.retry import RetryPolicy
from s3core.settings import Config, ConfigError
from s3core.store import Body, Buffer, MultipartUpload, ObjectStore
from s3core.wrapper import StoreWrapper
from s3core.write_options import NO_OPTIONS, CustomerKey, RestoreTier, Retention, WriteOptions

if TYPE_CHECKING:
    from integrity.place import Ledger
    from integrity.slots import OpenWriter

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS_MAX: Final = 500
"""Of an error's text in a record."""

FAILURES: Final = (LedgerError, StoreError, OSError, ValueError, ConfigError, CredentialsError)
"""What may keep a record out of a ledger."""
ATTEMPTS: Final = 2
DEADLINE_S: Final = 5.0
"""For each request to a ledger's own store."""
EVENTS_MAX: Final = 10_000
"""Events of a volume that may wait for its ledger."""


class NotRecorded(Misconfigured):
    """The ledger cannot take records, so the request was not sent. Lasting, like a setting that is wrong."""


register(NotRecorded, ExitCode.REFUSED)


class Records(Protocol):
    """What takes records: a writer of a ledger. Safe to call from several threads at once."""

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int:
        """Its number. With `wait` it is durable on this host on return, and so is every record before it. OSError and
        LedgerError where it cannot be taken, ValueError where it cannot be a record."""
        ...

    def close(self) -> None:
        """All records are durable on this host on return."""
        ...


class Recorder:
    """Records acts on the places of one ledger that lie in one bucket. Threads share it.

    `records` opens the ledger, at the first record; until then nothing is opened. `lost` counts outcomes and events that
    could not be recorded: what they tell of was done. `release` is called at the end, in place of closing what others share."""

    def __init__(
        self,
        records: Callable[[], Records],
        places: Sequence[Covered],
        who: Mapping[str, str],
        *,
        reads: bool = False,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        if not places or len({(place.ledger, place.endpoint, place.bucket) for place in places}) != 1:
            raise ValueError("a recorder is for places of one ledger in one bucket")
        self._open = records
        self._ledger = places[0].ledger
        self._prefixes = tuple(place.prefix for place in places)
        self._known: dict[str, object] = {
            "endpoint": places[0].endpoint,
            "bucket": places[0].bucket,
            "source": "client",
            "who": dict(who),
        }
        self._release = release
        self.reads = reads
        self.lost = 0
        self._lost_lock = threading.Lock()

    def covers(self, key: str) -> bool:
        """Whether what is done to the key (as the bucket has it, with every prefix) belongs into the ledger."""
        return any(key.startswith(prefix) for prefix in self._prefixes)

    def ready(self) -> None:
        """Open the ledger now, so that a tool hears at its beginning that it cannot record. NotRecorded."""
        try:
            self._open()
        except FAILURES as error:
            raise self._cannot("what is done", error) from error

    def intent(self, op: str, key: str, *, wait: bool = True, **members: object) -> tuple[int, dict[str, object]]:
        """Record that something is about to be done; the record's number, and what its outcome repeats. Durable on this host on
        return, but without `wait`. NotRecorded: do not do it."""
        event = self._known | {"op": op, "key": key} | members
        try:
            return self._open().record(event | {"phase": "intent"}, wait=wait), event
        except FAILURES as error:
            raise self._cannot(f"{op} of {key}" if key else op, error, key) from error

    def outcome(
        self,
        intent: tuple[int, dict[str, object]],
        error: BaseException | None = None,
        *,
        refusals: tuple[type[BaseException], ...] | None = None,
        **told: object,
    ) -> None:
        """Record how it ended, `refusals` as in `action`. `told`: members that the answer brought. Never raises and never
        waits: it is done, or not, whatever becomes of the record; one that is missing leaves a named unknown."""
        number, event = intent
        members: dict[str, object] = {"phase": phase_of(error, refusals), "intent": number, **told}
        if error is not None:
            members["error"] = error_members(error)
        self._record_done(event | members)

    def event(self, op: str, key: str = "", *, phase: str = "done", **members: object) -> bool:
        """Record what has happened, without an intent; whether it is. Never raises and never waits for the disk."""
        return self._record_done(self._known | {"op": op, "key": key, "phase": phase} | members)

    def action(
        self, op: str, key: str = "", *, refusals: tuple[type[BaseException], ...] | None = None, **members: object
    ) -> "Action":
        """As a context around something that is done: the intent before it, and afterwards `done`; or `not-done` or
        `unknown`, by the error it ends with (`phase_of`). What takes several requests may be done in part when one of them
        fails: it names the errors that are raised before anything is done as `refusals`, and all others are `unknown`."""
        return Action(self, op, key, refusals, members)

    def close(self) -> None:
        """Nothing more is recorded by this one. When the last of a process has said so, all records are durable on this host
        and the writer's slot is free. Never raises: what was done was done."""
        try:
            self._release()
        except FAILURES as error:
            log.error("ledger %s: its last records may be missing: %s", self._ledger, error)

    def _record_done(self, event: Mapping[str, object]) -> bool:
        try:
            self._open().record(event, wait=False)
            return True
        except FAILURES as error:
            with self._lost_lock:
                self.lost += 1
            log.error("ledger %s: %s of %r is not recorded: %s", self._ledger, event["op"], event.get("key"), error)
            return False

    def _cannot(self, what: str, error: Exception, key: str = "") -> NotRecorded:
        hint = getattr(error, "hint", "")
        message = error.args[0] if hint else error
        return NotRecorded(
            f"nothing was sent: ledger {self._ledger} cannot record {what}: {message}",
            key=key,
            hint=hint or f"see what is wrong with it: s3integrity status {self._ledger}",
        )


class Action:
    """One act, as a context. `done` says what the answer brought."""

    __slots__ = ("_intent", "_key", "_members", "_op", "_recorder", "_refusals", "_told")

    def __init__(
        self,
        recorder: Recorder,
        op: str,
        key: str,
        refusals: tuple[type[BaseException], ...] | None,
        members: Mapping[str, Any],
    ) -> None:
        self._recorder = recorder
        self._refusals = refusals
        self._op = op
        self._key = key
        self._members = members
        self._told: Mapping[str, object] = {}
        self._intent: tuple[int, dict[str, object]] | None = None

    def __enter__(self) -> "Action":
        self._intent = self._recorder.intent(self._op, self._key, **self._members)
        return self

    def done(self, **told: object) -> None:
        self._told = told

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._intent is not None
        self._recorder.outcome(self._intent, error, refusals=self._refusals, **self._told)


def phase_of(error: BaseException | None, refusals: tuple[type[BaseException], ...] | None = None) -> str:
    """How an act ended by what it raised: one request of a store, by the store's three answers; what is none of them (Ctrl-C in
    the middle of it, a bug) tells nothing. With `refusals`: not done for these alone."""
    if error is None:
        return "done"
    if refusals is not None:
        return "not-done" if isinstance(error, refusals) else "unknown"
    return "not-done" if isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown) else "unknown"


def error_members(error: BaseException) -> dict[str, str]:
    """An error as a record has it."""
    text = str(error)[:MESSAGE_CHARACTERS_MAX]
    return {"code": type(error).__name__, "message": text.encode("utf-8", "replace").decode()}


class RecordingBucket(BucketWrapper):
    """Records what changes the bucket where `recorder` covers the key; with its `reads` GETs too, after the fact. Parts of
    an upload are not recorded one by one: beginning and giving up are notes, the completion is one `put`."""

    def __init__(self, inner: Bucket, recorder: Recorder) -> None:
        super().__init__(inner)
        self._recorder = recorder
        self._parts: dict[str, dict[int, int]] = {}
        """Bytes of the parts sent from here, by upload and number."""

    def ready(self) -> None:
        """As `Recorder.ready`."""
        self._recorder.ready()

    def get(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int = -1,
        if_match: str = "",
        version_id: str = "",
        customer_key: CustomerKey | None = None,
    ) -> bytes:
        if not (self._recorder.reads and self._recorder.covers(key)):
            return super().get(
                key, offset=offset, length=length, if_match=if_match, version_id=version_id, customer_key=customer_key
            )
        known: dict[str, Any] = {"version": version_id, "etag": if_match, "detail": _range(offset, length)}
        try:
            data = self.inner.get(
                key, offset=offset, length=length, if_match=if_match, version_id=version_id, customer_key=customer_key
            )
        except StoreError as error:
            self._recorder.event("read", key, phase=phase_of(error), error=error_members(error), **known)
            raise
        self._recorder.event("read", key, size=len(data), **known)
        return data

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> Written:
        given: dict[str, Any] = {"attributes": attributes, "if_match": if_match, "if_absent": if_absent}
        given |= {"options": options, "digests": digests}
        if not self._recorder.covers(key):
            return self.inner.put(key, data, **given)
        members: dict[str, Any] = {"size": byte_count(byte_views(data)), **_condition(if_match, if_absent)}
        with self._recorder.action("put", key, **members) as act:
            written = self.inner.put(key, data, **given)
            act.done(etag=written.etag, version=written.version_id)
        return written

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        if not self._recorder.covers(key):
            return self.inner.copy(source, key, attributes=attributes, options=options)
        detail = {"from": _source(source)} | ({"attributes": "replaced"} if attributes is not None else {})
        with self._recorder.action("copy", key, detail=detail) as act:
            written = self.inner.copy(source, key, attributes=attributes, options=options)
            act.done(etag=written.etag, version=written.version_id)
        return written

    def begin_upload(
        self, key: str, *, attributes: Attributes = NO_ATTRIBUTES, options: WriteOptions = NO_OPTIONS
    ) -> str:
        if not self._recorder.covers(key):
            return self.inner.begin_upload(key, attributes=attributes, options=options)
        with self._recorder.action("note", key, detail={"multipart": "begin"}) as act:
            upload_id = self.inner.begin_upload(key, attributes=attributes, options=options)
            act.done(detail={"multipart": "begin", "upload": upload_id})
        self._parts[upload_id] = {}
        return upload_id

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer | Sequence[Buffer],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> str:
        etag = self.inner.upload_part(key, upload_id, number, data, options=options, digests=digests)
        self._note_part(upload_id, number, byte_count(byte_views(data)))
        return etag

    def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: CopySource,
        *,
        offset: int,
        length: int,
        options: WriteOptions = NO_OPTIONS,
    ) -> str:
        etag = self.inner.copy_part(key, upload_id, number, source, offset=offset, length=length, options=options)
        self._note_part(upload_id, number, length)
        return etag

    def _note_part(self, upload_id: str, number: int, size: int) -> None:
        parts = self._parts.get(upload_id)
        if parts is not None:
            parts[number] = size

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        if not self._recorder.covers(key):
            return self.inner.complete_upload(key, upload_id, parts, options=options, digests=digests)
        sizes = self._parts.get(upload_id, {})
        # Of an upload that another process began the size is not known here; the bucket tells it.
        known = bool(parts) and all(number in sizes for number, _ in parts)
        size = sum(sizes[number] for number, _ in parts) if known else None
        detail = {"parts": len(parts), "upload": upload_id}
        with self._recorder.action("put", key, size=size, detail=detail) as act:
            written = self.inner.complete_upload(key, upload_id, parts, options=options, digests=digests)
            act.done(etag=written.etag, version=written.version_id)
        self._parts.pop(upload_id, None)
        return written

    def abort_upload(self, key: str, upload_id: str) -> None:
        if not self._recorder.covers(key):
            return self.inner.abort_upload(key, upload_id)
        with self._recorder.action("note", key, detail={"multipart": "abort", "upload": upload_id}):
            self.inner.abort_upload(key, upload_id)
        self._parts.pop(upload_id, None)

    def delete(self, key: str) -> str:
        if not self._recorder.covers(key):
            return self.inner.delete(key)
        with self._recorder.action("delete", key) as act:
            marker = self.inner.delete(key)
            act.done(version=marker)
        return marker

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        if not self._recorder.covers(key):
            return self.inner.delete_version(key, version_id, bypass_governance=bypass_governance)
        detail = {"bypass": "governance"} if bypass_governance else {}
        with self._recorder.action("delete-version", key, version=version_id, detail=detail):
            self.inner.delete_version(key, version_id, bypass_governance=bypass_governance)

    def set_retention(
        self, key: str, retention: Retention | None, *, version_id: str = "", bypass_governance: bool = False
    ) -> None:
        given: dict[str, Any] = {"version_id": version_id, "bypass_governance": bypass_governance}
        if not self._recorder.covers(key):
            return self.inner.set_retention(key, retention, **given)
        detail = {"mode": retention.mode, "until": retention.until_text} if retention else {"mode": "none"}
        detail |= {"bypass": "governance"} if bypass_governance else {}
        with self._recorder.action("retention", key, version=version_id, detail=detail):
            self.inner.set_retention(key, retention, **given)

    def set_legal_hold(self, key: str, on: bool, *, version_id: str = "") -> None:
        if not self._recorder.covers(key):
            return self.inner.set_legal_hold(key, on, version_id=version_id)
        with self._recorder.action("retention", key, version=version_id, detail={"hold": "on" if on else "off"}):
            self.inner.set_legal_hold(key, on, version_id=version_id)

    def restore(self, key: str, *, days: int, tier: RestoreTier = "Standard", version_id: str = "") -> bool:
        if not self._recorder.covers(key):
            return self.inner.restore(key, days=days, tier=tier, version_id=version_id)
        with self._recorder.action("restore", key, version=version_id, detail={"days": days, "tier": tier}):
            return self.inner.restore(key, days=days, tier=tier, version_id=version_id)

    def close(self) -> None:
        super().close()
        self._recorder.close()


class RecordingStore(StoreWrapper):
    """As `RecordingBucket`. `prefix` is the store's own in its bucket, with a slash at its end: records have whole keys."""

    def __init__(self, inner: ObjectStore, recorder: Recorder, prefix: str) -> None:
        super().__init__(inner)
        self._recorder = recorder
        self._prefix = prefix

    def get(self, key: str) -> Body:
        return self._read(key, {}, lambda: self.inner.get(key))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        return self._read(key, _range(offset, length), lambda: self.inner.get_range(key, offset, length))

    def _read(self, key: str, detail: dict[str, object], ask: Callable[[], Body]) -> Body:
        whole = self._prefix + key
        if not (self._recorder.reads and self._recorder.covers(whole)):
            return ask()
        try:
            body = ask()
        except StoreError as error:
            self._recorder.event("read", whole, phase=phase_of(error), error=error_members(error), detail=detail)
            raise
        self._recorder.event("read", whole, size=len(body.data), etag=body.etag, detail=detail)
        return body

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        return self._put(key, data, {}, lambda: self.inner.put(key, data, metadata=metadata))

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        members = _condition("", if_absent=True)
        return self._put(key, data, members, lambda: self.inner.put_if_absent(key, data, metadata=metadata))

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        members = _condition(etag, if_absent=False)
        return self._put(key, data, members, lambda: self.inner.put_if_match(key, data, etag, metadata=metadata))

    def _put(
        self, key: str, data: Buffer | Sequence[Buffer], members: Mapping[str, Any], ask: Callable[[], str]
    ) -> str:
        whole = self._prefix + key
        if not self._recorder.covers(whole):
            return ask()
        with self._recorder.action("put", whole, size=byte_count(byte_views(data)), **members) as act:
            etag = ask()
            act.done(etag=etag)
        return etag

    def delete(self, key: str) -> None:
        whole = self._prefix + key
        if not self._recorder.covers(whole):
            return self.inner.delete(key)
        with self._recorder.action("delete", whole):
            self.inner.delete(key)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """A record for each key. They share one sync: the last one waits, and those before it are durable then."""
        covered = [key for key in keys if self._recorder.covers(self._prefix + key)]
        intents = {}
        for place, key in enumerate(covered, 1):
            try:
                intents[key] = self._recorder.intent("delete", self._prefix + key, wait=place == len(covered))
            except NotRecorded as error:
                for intent in intents.values():
                    self._recorder.outcome(intent, error)
                return dict.fromkeys(keys, error)
        failed: dict[str, StoreError] = {}
        try:
            failed = self.inner.delete_many(keys)
        except BaseException as error:
            for intent in intents.values():
                self._recorder.outcome(intent, error)
            raise
        for key, intent in intents.items():
            self._recorder.outcome(intent, failed.get(key))
        return failed

    def copy(self, source: str, target: str) -> str:
        whole = self._prefix + target
        if not self._recorder.covers(whole):
            return self.inner.copy(source, target)
        with self._recorder.action("copy", whole, detail={"from": {"key": self._prefix + source}}) as act:
            etag = self.inner.copy(source, target)
            act.done(etag=etag)
        return etag

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> MultipartUpload:
        whole = self._prefix + key
        if not self._recorder.covers(whole):
            return self.inner.multipart(key, metadata=metadata)
        with self._recorder.action("note", whole, detail={"multipart": "begin"}):
            upload = self.inner.multipart(key, metadata=metadata)
        return _RecordedUpload(self._recorder, upload, whole)

    def close(self) -> None:
        super().close()
        self._recorder.close()


class _RecordedUpload:
    def __init__(self, recorder: Recorder, inner: MultipartUpload, key: str) -> None:
        self._recorder = recorder
        self._inner = inner
        self._key = key
        self._parts: dict[int, int] = {}

    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        etag = self._inner.part(number, data)
        self._parts[number] = byte_count(byte_views(data))
        return etag

    def complete(self) -> str:
        detail = {"parts": len(self._parts)}
        with self._recorder.action("put", self._key, size=sum(self._parts.values()), detail=detail) as act:
            etag = self._inner.complete()
            act.done(etag=etag)
        return etag

    def abort(self) -> None:
        with self._recorder.action("note", self._key, detail={"multipart": "abort"}):
            self._inner.abort()


class ControlEvents:
    """Events of something that must not be held up: calling it queues the event, at once, whatever becomes of the ledger. A
    thread of its own records them, in order. `detail` is in each of them.

    What is in the queue is lost with the process; `lost` counts what the ledger or a full queue did not take."""

    def __init__(self, recorder: Recorder, key: str, detail: Mapping[str, object], *, limit: int = EVENTS_MAX) -> None:
        self._recorder = recorder
        self._key = key
        self._detail = dict(detail)
        self._queue: Queue[dict[str, object] | None] = Queue(limit)
        self._dropped = 0
        self.recorded = 0
        self._thread = threading.Thread(target=self._work, name="ledger events", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        return self._dropped + self._recorder.lost

    def __call__(self, event: str, detail: Mapping[str, object]) -> None:
        try:
            self._queue.put_nowait(self._detail | {"event": event, **detail})
        except Full:
            self._dropped += 1
            log.error("%s of %r is not recorded: %d events wait for the ledger", event, self._key, self._queue.qsize())

    def _work(self) -> None:
        while (detail := self._queue.get()) is not None:
            self.recorded += self._recorder.event("control", self._key, detail=detail)
        self._recorder.close()

    def close(self, patience_s: float = 5.0) -> None:
        """Record what waits and give the writer back, for so long at most. Idempotent."""
        try:
            self._queue.put(None, timeout=patience_s)
        except Full:
            log.error("%d events of %r are lost with this process", self._queue.qsize(), self._key)
            return
        self._thread.join(patience_s)


class _Shared:
    """The one writer that a process has of a ledger, opened at the first record, closed when nobody has it any more."""

    def __init__(self, open_writer: Callable[[], Records]) -> None:
        self._open_writer = open_writer
        self._lock = threading.Lock()
        self._records: Records | None = None
        self.users = 0

    def records(self) -> Records:
        """LedgerError, OSError where it cannot be opened; the next call tries again."""
        records = self._records
        if records is None:
            with self._lock:
                if self._records is None:
                    self._records = self._open_writer()
                    # For a process that ends without closing what it opened, such as a worker of a cluster.
                    atexit.register(self.close)
                records = self._records
        return records

    def close(self) -> None:
        with self._lock:
            records, self._records = self._records, None
        if records is not None:
            atexit.unregister(self.close)
            records.close()


_shared: dict[tuple[int, str, str], _Shared] = {}
"""By process (a fork has none of its parent's), configuration and ledger."""
_shared_lock = threading.Lock()


def recorder_for(url: str, config: Config, *, tool: str) -> Recorder | None:
    """Records what `tool` does at `url` (a bucket, a prefix, a store), None where no ledger covers it. Close it at the end.

    Nothing is opened before the first record, so that a command that only looks needs no slot; all of a process share one.
    ValueError, ConfigError as `covered`; CredentialsError for keys that cannot be had."""
    places = covered(config, url)
    if not places:
        return None
    name = places[0].ledger
    key = (os.getpid(), str(config.path), name)
    with _shared_lock:
        shared = _shared.setdefault(key, _Shared(lambda: open_writer(name, config)))
        shared.users += 1

    released = threading.Event()

    def release() -> None:
        with _shared_lock:
            if released.is_set():
                return
            released.set()
            shared.users -= 1
            last = shared.users == 0
            if last:
                del _shared[key]
        if last:
            shared.close()

    place = parse_store_url(url)
    access_key = config.endpoint(place.name).credentials.access_key if place.scheme == "s3" else ""
    who = who_is_here(tool, access_key)
    return Recorder(shared.records, places, who, reads=config.ledger(name).reads, release=release)


class _Opened:
    """A writer and the ledger it was opened for."""

    def __init__(self, ledger: "Ledger", writer: "OpenWriter") -> None:
        self._ledger = ledger
        self._writer = writer
        self.record = writer.record

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._ledger.close()


def open_writer(name: str, config: Config) -> Records:
    """A writer of the ledger in the first free slot of this host. As `integrity.slots.open_writer`; ConfigError and
    CredentialsError of the ledger's own store."""
    # Signatures and trees are imported by who has something to record.
    from integrity import slots
    from integrity.place import open_ledger

    # The writer publishes again by itself; with retries below it, a store that is away would hold up who records and who ends.
    ledger = open_ledger(name, config, policy=RetryPolicy(attempts_max=ATTEMPTS, deadline_s=DEADLINE_S))
    try:
        return _Opened(ledger, slots.open_writer(ledger))
    except BaseException:
        ledger.close()
        raise


def recorded_bucket(bucket: Bucket, url: str, config: Config, *, tool: str) -> Bucket:
    """`bucket`, which is that of `url`, with records of what is done to it where a ledger covers it. As `recorder_for`."""
    recorder = recorder_for(url, config, tool=tool)
    return bucket if recorder is None else RecordingBucket(bucket, recorder)


def recorded_store(store: ObjectStore, url: str, config: Config, *, tool: str) -> ObjectStore:
    """As `recorded_bucket`, for a store."""
    recorder = recorder_for(url, config, tool=tool)
    return store if recorder is None else RecordingStore(store, recorder, key_prefix(url))


def who_is_here(tool: str, access_key: str = "") -> dict[str, str]:
    """`who` of what this process does. `access_key` is the key's id, never the secret."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.geteuid())  # a container's user without a name
    return {"kind": "tool", "name": tool, "host": socket.gethostname(), "user": user, "access_key": access_key}


def _condition(if_match: str, if_absent: bool) -> dict[str, Any]:
    if if_match:
        return {"previous": {"etag": if_match}}
    return {"detail": {"condition": "absent"}} if if_absent else {}


def _source(source: CopySource) -> dict[str, str]:
    told = {"bucket": source.bucket, "key": source.key, "version": source.version_id, "etag": source.if_match}
    return {name: value for name, value in told.items() if value}


def _range(offset: int, length: int) -> dict[str, object]:
    return {"offset": offset, "length": length} if offset or length >= 0 else {}
