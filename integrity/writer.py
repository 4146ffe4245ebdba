"""A writer's log, being written: many threads record, one sync makes many records durable, a thread publishes behind them.

    record() ── encode, chain ──▶ pending ── one write, one fdatasync for all ──▶ local log (`wal`) ── `publish` ──▶ store
                    (lock)                                                       acknowledged here

A thread that is alone writes by itself; where several wait, the syncer writes for all of them.

One rule: a record has its number, its place in the chain and its place in the queue under one lock, and is acknowledged when
the local disk has it, never before. The store is not on that way: when it is away, records wait in the local log.

An intent that has no outcome when its slot is opened again was cut off by a crash: it gets the outcome `unknown`, by name.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol, Self

import orjson
from crc32c import crc32c

from integrity.errors import Behind, LedgerError, Tampered
from integrity.keys import Keys
from integrity.publish import Incident, Progress, Publisher
from integrity.record import START, encode, timestamp
from integrity.tlog.checkpoint import Checkpoint
from integrity.tlog.tiles import Edge
from integrity.tlog.tree import leaf_hash
from integrity.wal import Wal, WalDamaged, WalFailed, make_private, write_private
from s3core.clock import Clock, SystemClock, system_random
from s3core.errors import StoreError
from s3core.settings import LedgerSettings
from s3core.store import ObjectStore

GROUP_RECORDS_MAX = 4096
"""Records in one write of the local log."""
PENDING_MAX = 1 << 16
"""Records that wait for the disk before `record` waits too, whether it was asked to or not."""
RETRY_S = 1.0
RETRY_S_MAX = 60.0
CLOSE_ATTEMPTS = 3
ATTACH_WAIT_S = 5.0
"""How long opening waits for the store to tell that nobody else wrote this log; later is soon enough to stop."""
_GATHER_S = 0.0005

log = logging.getLogger(__name__)

Event = Mapping[str, object]
_KEPT_OF_INTENT = ("op", "bucket", "key", "endpoint", "version", "who")
"""What an `unknown` outcome repeats of its intent."""


class Fold(Protocol):
    """Something that is made up of a log's records, such as the roster. To apply a record twice is to apply it once."""

    def apply(self, record: Mapping[str, Any]) -> None: ...

    def to_json(self) -> object: ...

    def load_json(self, document: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Status:
    """Of an open writer. Sizes count records; times are Unix seconds, 0.0: never."""

    writer: str
    size: int
    durable: int
    published: int
    published_at: float
    intents: int
    """Without an outcome so far."""
    epoch: int
    wal_bytes: int
    error: str
    """Why the last publishing failed; "" after one that did not."""


@dataclass(slots=True)
class _Base:
    """What the local log begins with when older files of it are gone."""

    size: int = 0
    after: bytes = START
    edge: Edge = field(default_factory=Edge)
    checkpoint: tuple[int, bytes] | None = None
    published: int = 0
    intents: dict[int, dict[str, Any]] = field(default_factory=dict)
    fold: object = None


class Writer:
    """Get one from `open`. Every method may be called from any thread, in the process that opened it."""

    def __init__(
        self,
        folder: Path,
        writer: str,
        origin: str,
        store: ObjectStore,
        keys: Keys,
        settings: LedgerSettings,
        *,
        clock: Clock,
        random: Random,
        fold: Fold | None,
        wal: Wal,
        base: _Base,
    ) -> None:
        self.name = writer
        self.origin = origin
        self._folder = folder
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._random = random
        self._fold = fold
        self._wal = wal
        self._pid = os.getpid()

        self._lock = threading.Lock()
        """Guards what is below, up to the next comment."""
        self._to_sync = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._pending: list[bytes] = []
        self._waiting: list[threading.Lock] = []
        self._leading = False
        """Whether somebody is writing, or about to."""
        self._expected = 0
        """How many waited for the last group."""
        self._after = base.after
        self._end = base.size
        self._durable = base.size
        self._intents = base.intents
        self._failure: LedgerError | None = None
        self._closing = False
        self._closed = False
        self._said = False
        """Whether anything was recorded since the slot was opened."""
        self._unpublished_since = 0.0

        self._publishing = threading.RLock()
        """Guards what is below."""
        progress = Progress(base.edge, base.published)
        if base.checkpoint is not None:
            progress.checkpoints = {base.checkpoint[0]: base.checkpoint[1]}
            progress.recorded = base.checkpoint[0]
        self._publisher = Publisher(store, writer, origin, keys, self._read, progress, self._note_incident)
        self._trimmed = base.size
        self._key_change = 0
        """The size of the checkpoint with which the epoch ends, while the key changes."""
        self._key_named = False
        """Whether the log names the next key and that checkpoint is still to come."""
        self._opened_at = clock.time()
        self._published_at = 0.0
        self._error = ""
        self._clean = False
        """Whether the log ends with `control/close` and its checkpoint."""

        self._syncer = threading.Thread(target=self._sync, name=f"ledger-sync-{writer}", daemon=True)
        self._wake = threading.Event()
        self._background: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        writer: str,
        origin: str,
        store: ObjectStore,
        keys: Keys,
        settings: LedgerSettings,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        fold: Fold | None = None,
        background: bool = True,
        sync: Any = os.fdatasync,
    ) -> Self:
        """The log in `folder`, whose lock the caller holds. Intents that were cut off have their `unknown` outcomes, durably,
        on return. `background`: publish as the settings say; otherwise only `publish` and `close` do.

        WalDamaged; Behind if the store holds another history (one that does not answer within seconds is asked again
        later, and then the writer stops); OSError.

        Crash within: nothing is lost; the next opening does the same."""
        make_private(folder)
        base = _read_base(folder, fold)
        wal = Wal.open(folder / "wal", base.size, sync=sync)
        self = cls(
            folder,
            writer,
            origin,
            store,
            keys,
            settings,
            clock=clock or SystemClock(),
            random=random or system_random(),
            fold=fold,
            wal=wal,
            base=base,
        )
        try:
            self._replay(base)
            self._syncer.start()
            attaching = threading.Thread(target=self._attach, name=f"ledger-attach-{writer}", daemon=True)
            attaching.start()
            # A store that hangs must not keep a tool from its work; who has to know waits with `publish`.
            attaching.join(ATTACH_WAIT_S if background else None)
            with self._lock:
                self._check()
            self._name_unknown("the process that wrote it ended before it told the outcome")
        except BaseException:
            self._stop_threads()
            wal.close()
            raise
        if background:
            self._background = threading.Thread(target=self._publish_always, name=f"ledger-{writer}", daemon=True)
            self._background.start()
        return self

    def _attach(self) -> None:
        with self._publishing:
            try:
                self._publisher.attach()
            except StoreError as error:
                self._error = str(error)
                log.warning("ledger writer %s: the store does not answer: %s", self.name, error)
            except LedgerError as error:
                self._fail(error)

    # --- recording ----------------------------------------------------------------------------------------------------

    def record(self, event: Event, *, wait: bool = True) -> int:
        """Append one record and return its number; durable on this host on return, or, with `wait=False`, within about
        `group_s`. `event` has every member but those the log gives (`integrity.record.encode`); `phase` defaults to `done`.

        ValueError for an event that cannot be a record (nothing is appended); WalFailed, Behind, LedgerError (closed)."""
        with self._lock:
            self._make_room()
            number = self._append(event)
            if not wait:
                self._to_sync.notify()
                return number
            alone = self._lead_alone()
            waiter = None if alone else self._enlist()
        if waiter is None:
            self._write(alone, [])
            self._acknowledge(number)
        else:
            self._await(waiter, number)
        return number

    def record_all(self, events: Iterable[Event], *, wait: bool = True) -> list[int]:
        """Append records, with one wait for all of them; their numbers. As `record`; on ValueError those before the bad one
        are appended."""
        numbers: list[int] = []
        with self._lock:
            for event in events:
                self._make_room()
                numbers.append(self._append(event))
            if not numbers or not wait:
                self._to_sync.notify()
                return numbers
            waiter = self._enlist()
        self._await(waiter, numbers[-1])
        return numbers

    def intent(self, event: Event) -> int:
        """Record that something is about to be tried; its number, for `outcome`. Durable on return."""
        return self.record({**event, "phase": "intent"})

    def outcome(self, intent: int, phase: str, event: Event, *, wait: bool = True) -> int:
        """Record what came of an intent: `done`, `not-done` or `unknown`. As `record`."""
        if phase not in ("done", "not-done", "unknown"):
            raise ValueError(f"{phase!r} is no outcome of an intent: done, not-done or unknown")
        return self.record({**event, "phase": phase, "intent": intent}, wait=wait)

    def flush(self) -> None:
        """Everything recorded so far is durable on return. WalFailed."""
        with self._lock:
            self._check()
            if self._durable >= self._end:
                return
            # Where all of it is being written just now, the next group is one without records.
            number, waiter = self._end - 1, self._enlist()
        self._await(waiter, number)

    # --- publishing ---------------------------------------------------------------------------------------------------

    def publish(self, *, force: bool = False) -> Checkpoint | None:
        """Everything recorded before the call is in the store on return, under a signed checkpoint, which is given; None where
        nothing is to be published. `force`: sign one though nothing is new.

        Behind: for good; Tampered; StoreError: published or not, what is recorded stays here and is published later."""
        with self._publishing:
            try:
                signed = self._publish(force=force)
            except Behind as error:
                self._fail(error)
                raise
            except (StoreError, LedgerError) as error:
                self._error = str(error)
                raise
            self._error = ""
            return signed

    def close(self, *, say: bool = True) -> None:
        """Name what has no outcome, record that the writer closes (`say`, and only if it recorded anything), publish,
        stop. A store that is away, or evidence that was changed, is told in the log and raised to nobody: what is recorded
        stays on this host, and whoever opens the slot next publishes it. Closing twice is fine. WalFailed.

        Crash within: as with any other crash."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._wake.set()
        if self._background is not None:
            self._background.join()
        try:
            if self._failure is None:
                self._name_unknown("the writer was closed before the outcome was told")
                if say and (self._said or (self._end and not self._clean)):
                    self.record({"op": "control", "source": "ledger", "detail": {"what": "close"}})
                self._publish_at_last()
        finally:
            self._stop_threads()
            self._publisher.close()
            self._wal.close()

    @property
    def clean(self) -> bool:
        """Whether nothing is left to be published: the slot needs nobody to look after it."""
        return self._publisher.attached and self._publisher.progress.published == self._wal.end

    @property
    def status(self) -> Status:
        progress = self._publisher.progress
        with self._lock:
            error = str(self._failure) if self._failure is not None else self._error
            return Status(
                self.name,
                self._end,
                self._durable,
                progress.published,
                self._published_at,
                len(self._intents),
                self._keys.epoch,
                self._wal.size_bytes,
                error,
            )

    @property
    def open_intents(self) -> list[int]:
        """Numbers of the intents that have no outcome so far."""
        with self._lock:
            return list(self._intents)

    # --- inside: recording --------------------------------------------------------------------------------------------

    def _append(self, event: Event) -> int:
        """With the lock."""
        self._check()
        number = self._end
        if "phase" not in event:
            event = {**event, "phase": "done"}
        now = self._clock.time()
        data = encode(event, writer=self.name, n=number, at=timestamp(now), after=self._after)
        self._after = leaf_hash(data)
        self._end = number + 1
        self._said = True
        if not self._unpublished_since:
            self._unpublished_since = now
        if event["phase"] == "intent":
            self._intents[number] = {name: event[name] for name in _KEPT_OF_INTENT if name in event}
        elif "intent" in event:
            self._intents.pop(event["intent"], None)  # type: ignore[call-overload]  # any JSON value may ask
        if self._fold is not None:
            self._fold.apply({**event, "n": number, "at": timestamp(now)})
        self._pending.append(data)
        return number

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise LedgerError(f"the ledger's writer {self.name} is closed")
        if os.getpid() != self._pid:
            raise LedgerError(f"the ledger's writer {self.name} was opened by another process; each opens its own")

    def _make_room(self) -> None:
        while len(self._pending) >= PENDING_MAX and self._failure is None:
            self._to_sync.notify()
            self._room.wait(1.0)

    def _lead_alone(self) -> list[bytes]:
        """What is pending, for a thread that writes it by itself since nobody else is at it: no other thread need wake up
        for it. Empty: let the syncer do it. With the lock."""
        if self._leading or self._waiting or self._expected > 1 or len(self._pending) > GROUP_RECORDS_MAX:
            return []
        self._leading = True
        batch, self._pending = self._pending, []
        return batch

    def _enlist(self) -> threading.Lock:
        """A lock that is let go when what is pending now is durable. With the lock."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.append(waiter)
        self._to_sync.notify()
        return waiter

    def _await(self, waiter: threading.Lock, number: int) -> None:
        waiter.acquire()
        self._acknowledge(number)

    def _acknowledge(self, number: int) -> None:
        if self._durable <= number:
            assert self._failure is not None
            raise self._failure

    def _sync(self) -> None:
        """The thread that writes where several wait, or nobody does. A group is what came while the one before was written;
        where several waited at once, it waits `group_s` for as many as there were last time."""
        while True:
            with self._lock:
                while self._leading or not (self._pending or self._waiting or self._closed):
                    self._to_sync.wait()
                if not (self._pending or self._waiting) or self._failure is not None:
                    return
                self._leading = True
                if self._expected > 1 and len(self._waiting) < self._expected and not self._closed:
                    # They come within microseconds where they come at all: a look costs less than a signal from each.
                    self._lock.release()
                    try:
                        self._gather()
                    finally:
                        self._lock.acquire()
                batch, waiting = self._pending[:GROUP_RECORDS_MAX], self._waiting
                if len(batch) == len(self._pending):
                    self._pending, self._waiting = [], []
                    self._expected = len(waiting)
                else:
                    # Whoever waits may wait for one that does not fit: all of them wait for the next group.
                    self._pending, waiting = self._pending[GROUP_RECORDS_MAX:], []
                self._room.notify_all()
            self._write(batch, waiting)

    def _write(self, batch: list[bytes], waiting: list[threading.Lock]) -> None:
        """Make a group durable and let go of those that wait for it. By whoever is leading; that ends here."""
        failure: LedgerError | None = None
        try:
            self._wal.append(batch)
        except LedgerError as error:
            failure = error
        except (OSError, ValueError, MemoryError) as error:
            failure = WalFailed(f"{self._folder}: {error}")
        with self._lock:
            self._leading = False
            self._durable = self._wal.end
            if failure is not None:
                log.error("ledger writer %s has stopped: %s", self.name, failure)
                self._failure = self._failure or failure
                waiting = waiting + self._waiting
                self._waiting = []
                self._room.notify_all()
            if self._pending or self._waiting or self._closed:
                self._to_sync.notify()
            due = self._durable - self._publisher.progress.published >= self._settings.checkpoint_records
        for waiter in waiting:
            waiter.release()
        if due:
            self._wake.set()

    def _gather(self) -> None:
        until = self._clock.monotonic() + self._settings.group_s
        while len(self._waiting) < self._expected and self._clock.monotonic() < until:
            self._clock.sleep(_GATHER_S)

    def _name_unknown(self, why: str) -> None:
        with self._lock:
            left = sorted(self._intents.items())
        events = [
            {**event, "source": "ledger", "phase": "unknown", "intent": number, "detail": {"why": why}}
            for number, event in left
        ]
        if events:
            log.warning("ledger writer %s: %d intents have no outcome: told as unknown", self.name, len(events))
            self.record_all(events)

    def _note_incident(self, incident: Incident) -> None:
        self.record(
            {
                "op": "error",
                "phase": "observed",
                "source": "ledger",
                "error": {"code": "rolled-back", "message": incident.message},
                "detail": {"found": incident.found, "published": incident.published},
            },
            wait=False,
        )

    def _fail(self, failure: LedgerError) -> None:
        log.error("ledger writer %s has stopped: %s", self.name, failure)
        with self._lock:
            self._failure = self._failure or failure
            self._room.notify_all()

    # --- inside: publishing -------------------------------------------------------------------------------------------

    def _read(self, begin: int, end: int) -> Iterator[bytes]:
        return self._wal.records(begin, end)

    def _publish(self, *, force: bool) -> Checkpoint | None:
        publisher, progress = self._publisher, self._publisher.progress
        publisher.attach()
        self.flush()
        self._finish_key_change()
        signed = None
        for size in progress.due:
            signed = self._publish_one(size)
        with self._lock:
            new = self._end > progress.recorded
        change = self._key_is_due() and (new or force)
        if new or force or change:
            signed = self._publish_one(self._append_checkpoint(change=change))
        self._trim()
        return signed

    def _publish_one(self, size: int) -> Checkpoint:
        checkpoint = self._publisher.publish(size)
        now = self._clock.time()
        with self._lock:
            if self._end == size:
                self._unpublished_since = 0.0
            else:
                self._unpublished_since = now
        self._published_at = now
        self._finish_key_change()
        return checkpoint

    def _finish_key_change(self) -> None:
        """Where the last checkpoint of the epoch is published: the next one begins."""
        size = self._key_change
        if size and size <= self._publisher.progress.published:
            self._publisher.introduce(size)
            self._keys.promote(size, self._clock.time())
            self._key_change = 0
            log.info("ledger writer %s: epoch %d begins at record %d", self.name, self._keys.epoch, size)

    def _append_checkpoint(self, *, change: bool) -> int:
        """Append the record that ends the tree to be signed, after one that names the next key where it is time; the
        tree's size. Durable on return."""
        progress = self._publisher.progress
        last = progress.recorded
        root = progress.checkpoints[last]
        record = {"op": "checkpoint", "source": "ledger", "detail": {"size": last, "root": root.hex()}}
        events: list[Event] = [record]
        if change:
            # Crash from here on: see `keys`.
            new = self._keys.prepare()
            detail = {"epoch": self._keys.epoch + 1, "vkey": new.vkey}
            events.insert(0, {"op": "key", "source": "ledger", "detail": detail})
        with self._lock:
            said = self._said
            number = -1
            for event in events:
                number = self._append(event)
            self._said = said
            waiter = self._enlist()
        # Before the disk answers: when it fails nothing is published any more.
        progress.recorded = number + 1
        self._await(waiter, number)
        if change or self._key_named:
            self._key_change, self._key_named = number + 1, False
        return number + 1

    def _key_is_due(self) -> bool:
        keys = self._keys
        if not keys.rotates or self._key_change or self._key_named:
            return False
        old = self._clock.time() - keys.since >= self._settings.epoch_s
        return old or self._end - keys.since_size >= self._settings.epoch_records

    def change_key(self) -> None:
        """Begin a new epoch now; the old key is erased on return. As `publish`."""
        with self._publishing:
            epoch = self._keys.epoch
            self.publish(force=True)
            if self._keys.rotates and self._keys.epoch == epoch:
                self._publish_one(self._append_checkpoint(change=True))

    def _trim(self) -> None:
        """Forget local records that full, published tiles hold, a file at a time.

        Crash between the note and the removal: files that the note does not need, removed by the next trimming."""
        progress = self._publisher.progress
        size = progress.aligned.size
        wal = self._wal
        if size <= self._trimmed or not wal.can_trim(size):
            return
        with self._lock:
            end = self._end
            # Of intents told since `size` the log itself tells; of outcomes not durable yet the flush below sees to.
            intents = {str(number): event for number, event in self._intents.items() if number < size}
            folded = self._fold.to_json() if self._fold is not None else None
        self.flush()
        assert self._durable >= end
        before = [at for at in progress.checkpoints if at <= size]
        newest = max(before)
        after = leaf_hash(next(iter(wal.records(size - 1, size))))
        checkpoint = (newest, progress.checkpoints[newest])
        write_base(self._folder, size, after, progress.aligned, checkpoint, progress.published, intents, folded)
        wal.trim(size)
        self._trimmed = size
        for at in before:
            if at != newest:
                del progress.checkpoints[at]

    def _publish_always(self) -> None:
        settings, retry_s = self._settings, RETRY_S
        pause = min(settings.checkpoint_s, settings.heartbeat_s)
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._closing or self._failure is not None:
                return
            pause = min(self._next_checkpoint_s(), settings.checkpoint_s)
            if pause > 0:
                continue
            try:
                self.publish(force=True)
                retry_s, pause = RETRY_S, 0.01
            except Behind:
                return
            except (StoreError, LedgerError, OSError) as error:
                log.warning("ledger writer %s: publishing failed, tried again later: %s", self.name, error)
                pause = retry_s * (0.5 + self._random.random())
                retry_s = min(RETRY_S_MAX, 2 * retry_s)
                self._pause(pause)
                pause = 0.01

    def _pause(self, seconds: float) -> None:
        """Wait though records come in."""
        until = self._clock.monotonic() + seconds
        while not self._closing and (left := until - self._clock.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()

    def _next_checkpoint_s(self) -> float:
        """How long until a checkpoint is due."""
        settings, now = self._settings, self._clock.time()
        with self._lock:
            new = self._end - self._publisher.progress.recorded
            since = self._unpublished_since
        if new >= settings.checkpoint_records:
            return 0.0
        due = settings.heartbeat_s - (now - max(self._published_at, self._opened_at))
        if new and since:
            due = min(due, settings.checkpoint_s - (now - since))
        return due

    def _publish_at_last(self) -> None:
        attempts = 1 if self._error else CLOSE_ATTEMPTS
        for attempt in range(attempts):
            try:
                self.publish()
                return
            except StoreError as error:
                if attempt + 1 == attempts or not error.temporary:
                    log.warning(
                        "ledger writer %s closed, its last records stay on this host until the store answers: %s",
                        self.name,
                        error,
                    )
                    return
                self._clock.sleep(0.1 * 2**attempt)
            except Tampered as error:
                log.error("ledger writer %s closed, its last records stay on this host: %s", self.name, error)
                return
            except Behind:
                return

    def _stop_threads(self) -> None:
        with self._lock:
            self._closing = self._closed = True
            self._to_sync.notify_all()
            self._room.notify_all()
        if self._syncer.is_alive():
            self._syncer.join()

    # --- inside: opening ----------------------------------------------------------------------------------------------

    def _replay(self, base: _Base) -> None:
        """What the local log says since its base."""
        wal, progress = self._wal, self._publisher.progress
        edge, leaves = base.edge.copy(), []
        after = base.after
        closed = False
        for number, data in enumerate(wal.records(base.size, wal.end), base.size):
            record = orjson.loads(data)
            if record["n"] != number or record["after"] != after.hex():
                raise WalDamaged(
                    f"{self._folder}: record {number:,} of the local log does not follow the one before it",
                    hint="keep the folder; retire this writer and enrol another",
                )
            after = leaf_hash(data)
            leaves.append(after)
            operation, phase = record["op"], record["phase"]
            if phase == "intent":
                self._intents[number] = {name: record[name] for name in _KEPT_OF_INTENT if name in record}
            elif "intent" in record:
                self._intents.pop(record["intent"], None)
            if operation == "checkpoint" and record["source"] == "ledger":
                edge.extend(leaves)
                leaves = []
                progress.checkpoints[number + 1] = edge.root()
                progress.recorded = number + 1
                if self._key_named:
                    self._key_change, self._key_named = number + 1, False
            elif operation == "key" and record["source"] == "ledger":
                self._key_named = self._is_next_key(record)
            if operation != "checkpoint":
                closed = operation == "control" and record.get("detail") == {"what": "close"}
            if self._fold is not None:
                self._fold.apply(record)
        self._after, self._end, self._durable, self._clean = after, wal.end, wal.end, closed
        if self._end > progress.recorded:
            self._unpublished_since = self._clock.time()

    def _is_next_key(self, record: Mapping[str, Any]) -> bool:
        """Whether a change of keys was cut off by a crash behind this record, and is to be gone on with."""
        keys, detail = self._keys, record["detail"]
        if detail["epoch"] <= keys.epoch:
            return False
        new = keys.next_signer
        if detail["epoch"] != keys.epoch + 1 or new is None or new.vkey != detail["vkey"]:
            raise LedgerError(
                f"{self._folder}: the log names a key for epoch {detail['epoch']} that is not here",
                hint="its state was rolled back in part; retire this writer and join anew",
            )
        return True


def write_base(
    folder: Path,
    size: int,
    after: bytes,
    edge: Edge,
    checkpoint: tuple[int, bytes],
    published: int,
    intents: Mapping[str, Mapping[str, Any]],
    fold: object,
) -> None:
    """What a local log begins with whose first `size` records are elsewhere; durable on return. See docs/formats/ledger.md."""
    document = {
        "v": 1,
        "size": size,
        "after": after.hex(),
        "edge": edge.encode().hex(),
        "checkpoint": {"size": checkpoint[0], "root": checkpoint[1].hex()},
        "published": published,
        "intents": intents,
        "fold": fold,
    }
    body = orjson.dumps(document)
    write_private(folder / "base.json", b"%08x\n" % crc32c(body) + body + b"\n")


def _read_base(folder: Path, fold: Any) -> _Base:
    path = folder / "base.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _Base()
    checksum, _, body = data.partition(b"\n")
    body = body.removesuffix(b"\n")
    if checksum != b"%08x" % crc32c(body):
        raise WalDamaged(f"{path} is damaged", hint="keep the folder; retire this writer and enrol another")
    document = orjson.loads(body)
    checkpoint = document["checkpoint"]
    if fold is not None and document["fold"] is not None:
        fold.load_json(document["fold"])
    return _Base(
        document["size"],
        bytes.fromhex(document["after"]),
        Edge.decode(document["size"], bytes.fromhex(document["edge"])),
        (checkpoint["size"], bytes.fromhex(checkpoint["root"])),
        document["published"],
        {int(number): event for number, event in document["intents"].items()},
    )
