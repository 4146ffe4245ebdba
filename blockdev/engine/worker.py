"""The worker of one volume: attaches, commits, fetches, checkpoints. Coroutines only; everything that blocks goes through
the execution port, everything it tells the front through `send`.

One rule: whatever cannot be cured by waiting stops the worker with a `Failed` message; it never goes on after a state
it does not understand.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

from blockdev.engine import link
from blockdev.engine.ancestry import Ancestry
from blockdev.engine.attach import Attacher, Standing
from blockdev.engine.budget import CommitBudget
from blockdev.engine.checkpoint import Checkpointer, CheckpointSettings
from blockdev.engine.collector import Collector, CollectorSettings
from blockdev.engine.delivery import Delivery, SlotWriter
from blockdev.engine.destager import CommitSettings, Destager, Extras, Records
from blockdev.engine.fetch import Fetcher
from blockdev.engine.lease import LEASE_S, Lease, renew_interval_s, wait_s
from blockdev.engine.local_objects import LocalObjects
from blockdev.engine.log import CommitLog, Persistence
from blockdev.engine.operations import RESERVATIONS, Asked, Operations
from blockdev.engine.orphans import OrphanSweeper
from blockdev.engine.ports import Execution
from blockdev.engine.sweep import Sweeper
from blockdev.engine.whereabouts import AFTER
from blockdev.errors import (
    AttachRefused,
    CorruptFormat,
    CorruptJournal,
    Fenced,
    LocalDiskFailed,
    Refused,
)
from blockdev.extents.extent_map import ExtentMap, MapState
from blockdev.extents.format import PATCH_BYTES
from blockdev.segments import paths
from blockdev.segments.cipher import Cipher
from blockdev.segments.record import RecordKind
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import BLOCK_BYTES
from s3core.errors import Corrupt, NotFound, StoreError
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
COLLECT_BESIDE_FLUSHES_S = 2.0
"""A commit that a flush waits for does not wait for the collector, nor for deletions, but once in so many seconds."""
OUTWAIT_POLL_S = 1.0
"""While a predecessor's lease runs out: how often to look whether it has said that it stopped."""
STOP_PATIENCE_S = 5.0
"""How long to wait for the front to say that it acknowledges nothing more, before others are told so."""
EXPIRY_S = 60.0
"""How often to look for snapshots whose time is over, and whether what clones held is free."""
LOOK_AROUND_S = 0.25
"""While there is always something to commit, one slice of what otherwise waits for a pause is done so often."""
TOLD_OPERATIONS = ("snapshot", "snapshot-delete", "rollback", "resize", "gc")
"""What a ledger hears of; others change nothing, or nothing that outlives the attachment."""
TOLD_CHECKPOINTS_S = 60.0
"""A ledger hears of a checkpoint at most so often."""
PURGE_DEAD_MAX = 100_000
"""Objects that wait for their deletion before a discard is worked further into the map: every root lists them all, which
takes about 500 bytes of memory for each while it is written."""


class LocalJournal(Protocol):
    """The journal file as the worker needs it."""

    def identity(self) -> UUID | None:
        """The journal on this host, None when there is none."""
        ...

    def create(self, position: int) -> UUID:
        """A new empty journal whose first position is `position`; durable on return. An old one is kept aside."""
        ...

    def fits(self) -> bool:
        """Whether the journal that is here has the size it is to have."""
        ...

    def remove(self) -> None:
        """Remove the journal, which holds nothing the bucket lacks. Crash within: it is there, or it is not."""
        ...

    def note_epoch(self, epoch: int) -> None:
        """Remember, durably on return, that the journal is about to be attached as this epoch."""
        ...

    def noted_epoch(self) -> int:
        """The newest note for the journal that is here, 0 if there is none."""
        ...

    def records(self) -> Records:
        """Reader over the journal of now."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    commit: CommitSettings = field(default_factory=CommitSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    collector: CollectorSettings = field(default_factory=CollectorSettings)
    accept_loss: bool = False
    take_over: bool = True
    """False: a volume that another host may be serving is left alone, even where nothing would be lost."""
    flush_to: str = "local"
    """"s3": a flush is answered when the bucket has everything, so that no promise rests on the journal."""
    lease_s: float = LEASE_S
    outwait: bool = True
    """False: somebody says that the host that had the volume is off; its lease is not waited for."""
    surely_dead: Callable[[Mapping[str, Any]], bool] = lambda note: False
    """Whether the writer of a fence record with that note has ended, for sure."""
    note: dict[str, Any] = field(default_factory=dict)
    """Goes into the fence record: host, process, journal's size."""


class Worker:
    """`start` attaches and sends Ready; `receive` takes the front's messages; `run` works until detached or failed."""

    def __init__(
        self,
        *,
        volume: VolumeFile,
        store: ObjectStore,
        extent_map: ExtentMap,
        local: LocalObjects,
        slots: SlotWriter,
        journal: LocalJournal,
        execution: Execution,
        settings: WorkerSettings,
        nonce: Callable[[], bytes],
        cipher: Cipher | None = None,
        send: Callable[[link.ToFront], None],
        store_counters: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self._volume = volume
        self._store = store
        self._map = extent_map
        self._local = local
        self._journal = journal
        self._execution = execution
        self._settings = settings
        self._nonce = nonce
        self._cipher = cipher
        self._send = send
        self._store_counters = store_counters
        """`ObservedStore.snapshot`: every request to the store, whoever made it."""
        self._persistence = Persistence(execution, self._store_changed)
        self._lease = Lease(settings.lease_s, self._granted)
        self._log = CommitLog(store, volume.identity, execution, self._persistence, self._lease)
        self._fetcher = Fetcher(
            volume.geometry, Ancestry(volume).volume_of, extent_map, store, local, execution, cipher
        )
        self._delivery = Delivery(
            geometry=volume.geometry,
            extent_map=extent_map,
            fetcher=self._fetcher,
            slots=slots,
            execution=execution,
            send=send,
            stopped=lambda: self._stopped,
        )
        self._head = 0
        self.urgent = False
        self._commit_to = 0
        self._budget = CommitBudget(settings.commit.per_hour_max, execution.monotonic())
        self._collected_at = execution.monotonic()
        self._arrivals: deque[tuple[int, float]] = deque()
        """(journal position, when it was announced) of what the bucket does not have yet."""
        self.detaching = False
        self._stopped = False
        self.failure: BaseException | None = None
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._destager: Destager | None = None
        self._checkpointer: Checkpointer | None = None
        self._collector: Collector | None = None
        self._sweeper: Sweeper | None = None
        self._operations: Operations | None = None
        self._asked: deque[Asked] = deque()
        self._asked_soon: deque[Asked] = deque()
        self._first_head = -1
        self._serving = False
        self._front_stopped = asyncio.Event()
        self._collect_from = 0.0
        self._looked_for_expired = 0.0
        self._looked_around = 0.0
        self._deleting = False
        self._purge_dead_max = PURGE_DEAD_MAX
        self._told_checkpoint = -TOLD_CHECKPOINTS_S

    # --- attach --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Attach and fence, then tell the front. Raises AttachRefused, CorruptFormat and store errors."""
        attacher = Attacher(self._volume, self._store, self._map, self._log, self._persistence)
        state = await attacher.catch_up()
        mine = self._journal.identity()
        noted = self._journal.noted_epoch()
        standing = attacher.standing(state, mine, noted)
        attacher.refuse_loss(standing, state, noted, accept_loss=self._settings.accept_loss)
        if standing.takes_over and state is not None and not (self._settings.take_over or self._settings.accept_loss):
            raise AttachRefused(
                f"volume {self._volume.name} is attached on {state.fence.get('host', 'another host')}, or was left there "
                "without detaching",
                hint="run this on that host; if it is gone for good, `s3block promote` takes the volume over",
            )
        detached = state is not None and state.kind == RecordKind.DETACH
        if standing == Standing.CONTINUES and detached and not self._journal.fits():
            # It holds nothing that counts: the moment to give it the size that a setting asks for.
            await self._execution.run(self._journal.remove)
            standing = Standing.CLEAN
        position = state.end if state is not None and state.seq else BLOCK_BYTES
        if standing == Standing.CONTINUES and mine is not None:
            journal = mine
        else:
            position = -(-position // BLOCK_BYTES) * BLOCK_BYTES
            journal = await self._execution.run(self._journal.create, position)
        await self._execution.run(self._journal.note_epoch, (state.epoch if state is not None else 0) + 1)
        wait = attacher.waits_for(standing, state)
        if wait and state is not None:
            former = state.fence if standing.takes_over else state.fence.get(AFTER, {})
            if not self._settings.outwait or self._settings.surely_dead(former):
                wait = 0.0
        # A journal that goes on may hold what was promised locally: then only a later commit ends that promise.
        settled = standing != Standing.CONTINUES or (state is not None and state.flush == "s3")
        to_bucket = self._settings.flush_to == "s3"
        attached = await attacher.fence(
            journal,
            standing=standing,
            position=position,
            nonce=self._nonce(),
            time_us=int(self._execution.time() * 1e6),
            waits=wait,
            note={
                **self._settings.note,
                "lease_s": self._settings.lease_s,
                "flush": "s3" if to_bucket and settled else "local",
            },
        )
        if wait and state is not None:
            await self._outwait(state, wait, attached.seq)
        now_state = self._map.state
        assert now_state is not None
        self._destager = Destager(
            geometry=replace(self._volume.geometry, size_bytes=now_state.size_bytes),
            volume=self._volume.identity,
            epoch=attached.epoch,
            lineage=attached.lineage,
            journal=journal,
            records=self._journal.records(),
            extent_map=self._map,
            store=self._store,
            local=self._local,
            commit_log=self._log,
            persistence=self._persistence,
            execution=self._execution,
            settings=self._settings.commit,
            nonce=self._nonce,
            cipher=self._cipher,
        )
        self._checkpointer = Checkpointer(
            volume=self._volume.identity,
            extent_map=self._map,
            store=self._store,
            destager=self._destager,
            persistence=self._persistence,
            execution=self._execution,
            settings=self._settings.checkpoint,
        )
        self._collector = Collector(
            geometry=self._volume.geometry,
            extent_map=self._map,
            fetcher=self._fetcher,
            destager=self._destager,
            execution=self._execution,
            settings=self._settings.collector,
        )
        if to_bucket and not settled:
            self._destager.flushed_from = sys.maxsize  # until the front has said how far its journal goes
        self._sweeper = Sweeper(
            extent_map=self._map,
            destager=self._destager,
            store=self._store,
            persistence=self._persistence,
            execution=self._execution,
            read_root=attacher.read_root,
            checkpoint=self._checkpointer.write,
        )
        self._operations = Operations(
            extent_map=self._map,
            destager=self._destager,
            checkpointer=self._checkpointer,
            sweeper=self._sweeper,
            orphans=OrphanSweeper(
                extent_map=self._map,
                store=self._store,
                persistence=self._persistence,
                execution=self._execution,
                read_root=attacher.read_root,
                between=self._between,
            ),
            read_root=attacher.read_root,
            persistence=self._persistence,
            execution=self._execution,
            between=self._between,
            resized=lambda size_bytes: self._send(link.Resized(size_bytes)),
        )
        self._head = position
        self._serving = True
        kept = self._map.history.reservations
        self._send(
            link.Ready(
                position,
                attached.seq,
                attached.epoch,
                attached.size_bytes,
                self._lease.until,
                dict(kept) if kept is not None else None,
            )
        )
        if standing.takes_over and state is not None:
            self._happened("take-over", former=str(state.fence.get("host", "")), accepted_loss=standing.loses)
        else:
            self._happened("attach", standing=standing.value)

    # --- for ledgers ---------------------------------------------------------------------------------------------

    def _happened(self, event: str, **detail: Any) -> None:
        """Tell of something done, with where the volume stands after it. Costs a message, never a wait."""
        state = self._map.state
        where = {"epoch": state.epoch, "commit": state.seq, "digest": state.digest.hex()} if state is not None else {}
        self._send(link.Happened(event, where | detail))

    async def _checkpoint(self) -> None:
        """Write one, and tell of it now and then: a ledger is no part of the way that data takes."""
        assert self._checkpointer is not None
        await self._checkpointer.write()
        now = self._execution.monotonic()
        if now - self._told_checkpoint >= TOLD_CHECKPOINTS_S:
            self._told_checkpoint = now
            self._happened("checkpoint")

    # --- the lease -----------------------------------------------------------------------------------------------

    def _granted(self, until: float) -> None:
        if self._serving:
            self._send(link.Lease(until))

    async def _outwait(self, before: MapState, lease_s: float, seq: int) -> None:
        """Wait until the writer before us acknowledges nothing more: its lease has run out, or it says that it has
        stopped. Our own lease is kept meanwhile. Raises Fenced when we are taken over ourselves."""
        log.warning(
            "volume %s was in use%s; waiting up to %.0f s until that writer has surely stopped",
            self._volume.name,
            f" on {before.fence['host']}" if before.fence.get("host") else "",
            wait_s(lease_s),
        )
        deadline = self._execution.monotonic() + wait_s(lease_s)
        renewed = self._execution.monotonic()
        while self._execution.monotonic() < deadline:
            try:
                await self._execution.run(self._store.head, paths.released(before.epoch))
                log.info("epoch %d has said that it stopped", before.epoch)
                return
            except StoreError as error:
                if not isinstance(error, NotFound):
                    self._persistence.failed("look for the former writer's word", error)
            if self._execution.monotonic() - renewed >= renew_interval_s(self._lease.seconds):
                renewed = self._execution.monotonic()
                with contextlib.suppress(StoreError):
                    await self._log.renew(seq + 1, before.epoch + 1)
            await self._execution.sleep(min(OUTWAIT_POLL_S, max(0.0, deadline - self._execution.monotonic())))

    async def _keep_lease(self) -> None:
        """Look now and then whether somebody took over: what a volume that writes nothing would not notice otherwise."""
        interval = renew_interval_s(self._lease.seconds)
        while not self._stopped:
            due = self._lease.until - self._lease.seconds + interval
            now = self._execution.monotonic()
            if now < due:
                await self._execution.sleep(due - now)
                continue
            state = self._map.state
            assert state is not None
            try:
                await self._log.renew(state.seq + 1, state.epoch)
            except StoreError as error:
                self._persistence.failed("renew the lease", error)
            if self._lease.until - self._lease.seconds + interval <= self._execution.monotonic():
                await self._execution.sleep(min(interval / 4, 1.0))

    async def _say_stopped(self) -> None:
        """Tell the one that took over that it need not wait: after the front has stopped, and only then."""
        self._send(link.Stop(str(self.failure)))
        state = self._map.state
        if state is None or not self._serving:
            return
        waiting = asyncio.ensure_future(self._front_stopped.wait())
        timer = asyncio.ensure_future(self._execution.sleep(STOP_PATIENCE_S))
        await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        timer.cancel()
        if not self._front_stopped.is_set():
            return
        word = json.dumps({"epoch": state.epoch, "time": self._execution.time()}).encode() + b"\n"
        try:
            await self._execution.run(self._store.put, paths.released(state.epoch), word)
        except StoreError as error:
            log.warning("the new writer could not be told that this one has stopped; it waits longer: %s", error)

    # --- messages ------------------------------------------------------------------------------------------------

    def receive(self, message: link.ToWorker) -> None:
        """Called on the worker's loop for each message, in order."""
        match message:
            case link.Appended(position, urgent):
                if self._first_head < 0:
                    self._first_head = position
                    if self._destager is not None and self._destager.flushed_from is not None:
                        self._destager.flushed_from = position
                if position > self._head:
                    self._arrivals.append((position, self._execution.monotonic()))
                    self._head = position
                self.urgent = urgent
                self._wake.set()
            case link.Fetch():
                self._spawn(self._delivery.fetch(message))
            case link.CommitNow(position):
                self._commit_to = max(self._commit_to, position)
                self._wake.set()
            case link.Detach():
                self.detaching = True
                self._wake.set()
            case link.AskAllocated(id, lba, count):
                self._spawn(self._delivery.allocated(id, lba, count))
            case link.Operate(id, name, arguments):
                # Reservations say nothing of the content: they wait neither for data nor for other operations.
                queue = self._asked_soon if name == RESERVATIONS else self._asked
                queue.append(Asked(id, name, arguments, self._head))
                self._wake.set()
            case link.Stopped():
                self._front_stopped.set()

    def lag_seconds(self) -> float:
        """Age of the oldest journal record that the bucket does not have."""
        return self._execution.monotonic() - self._arrivals[0][1] if self._arrivals else 0.0

    @property
    def saves_commits(self) -> bool:
        """Whether the budget forbids a commit for age alone just now: then a large lag is meant."""
        return self._budget.wait_s(self._execution.monotonic()) > 0

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fail(task.exception())

    def _fail(self, error: BaseException | None) -> None:
        if self._stopped:
            return
        self._stopped = True
        self.failure = error
        log.error(
            "volume %s stops: %s", self._volume.name, error, exc_info=error if _failure_kind(error) == "bug" else None
        )
        self._happened("stopped", kind=_failure_kind(error), message=str(error) or repr(error))
        if not isinstance(error, Fenced):
            self._send(link.Failed(_failure_kind(error), str(error) or repr(error)))
        self._wake.set()

    # --- committing ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit, collect and checkpoint until detached or failed. Never raises but for cancellation."""
        self._spawn(self._keep_lease())
        try:
            while not self._stopped:
                if not await self._turn():
                    return
        except Exception as error:  # noqa: BLE001 - the front must be told whatever it is, or it would go on alone
            self._fail(error)
        finally:
            for task in list(self._tasks):
                task.cancel()
            if self._destager is not None:
                self._destager.abandon()
        if isinstance(self.failure, Fenced):
            await self._say_stopped()
            self._send(link.Failed("fenced", str(self.failure)))

    async def _turn(self) -> bool:
        """One look at what is due; False when detached."""
        assert self._collector is not None
        await self._operate_soon()
        asked = self._asked[0] if self._asked else None
        made = await self._commit_due(forced=asked is not None and asked.position > self._committed)
        # Whether or not more is due by now: an initiator that never stops writing must not keep an operation waiting.
        if asked is not None and asked.position <= self._committed:
            self._asked.popleft()
            await self._operate(asked)
            return True
        if made and (self.detaching or self.urgent or not self._look_around_is_due()):
            return True
        if self.detaching:
            if self._head > self._committed:
                return True
            await self._detach()
            return False
        if await self._look_around() or made:
            return True
        wait = STATUS_INTERVAL_S
        if self._arrivals:
            saving = self._budget.wait_s(self._execution.monotonic())
            wait = min(wait, max(0.0, saving, self._settings.commit.interval_s - self.lag_seconds()))
        await self._idle(wait)
        return True

    @property
    def _committed(self) -> int:
        """The bucket has everything before this journal position."""
        state = self._map.state
        assert state is not None
        return state.end

    async def _commit_due(self, *, forced: bool = False) -> bool:
        """One commit, if there is one to make; whether there was."""
        assert self._destager is not None
        assert self._checkpointer is not None
        assert self._collector is not None
        behind = self._head - self._committed
        settings = self._settings.commit
        now = self._execution.monotonic()
        saving = self._budget.wait_s(now)
        aged = self.lag_seconds() >= settings.interval_s and not saving
        flushing = self._commit_to > self._committed
        forced = forced or self.detaching or self.urgent or flushing
        due = behind > 0 and (forced or aged or behind >= settings.commit_bytes)
        hurried = flushing and now - self._collected_at < COLLECT_BESIDE_FLUSHES_S
        resting = self.detaching or self.urgent or hurried or now < self._collect_from or (saving and not due)
        may_collect = not resting and self._collector.choose()
        if not due and not may_collect:
            return False
        if not hurried:
            self._collected_at = now
        made = await self._destager.commit(
            self._head if due else self._committed, self._collect if may_collect else None
        )
        if made is None:
            # The collector's extents could not be read just now, or never again: nothing else waits for that.
            self._collect_from = self._execution.monotonic() + STATUS_INTERVAL_S
            return False
        self._budget.made(self._execution.monotonic())
        self._checkpointer.wrote(self._destager.last_record_bytes)
        while self._arrivals and self._arrivals[0][0] <= made.end:
            self._arrivals.popleft()
        self._send(link.Durable(made.end, made.seq, made.time_us / 1e6))
        await self._look_after_map([entry.extent for entry in made.patches])
        if self._checkpointer.due():
            await self._checkpoint()
        if not (hurried and self._commit_to > made.end):
            self._deleting = bool(await self._checkpointer.delete_dead())
        self._status()
        return True

    async def _collect(self, busy: Callable[[int], bool]) -> Extras | None:
        """The collector's next slice; then it rests, so that it takes no more than its share of the upload rate."""
        assert self._collector is not None
        began = self._execution.monotonic()
        try:
            return await self._collector.slice(busy)
        finally:
            now = self._execution.monotonic()
            self._collect_from = now + (now - began) * (1 / self._collector.share - 1)

    async def _between(self) -> None:
        """Room for commits in the middle of something long: of what there is now, since writes may never end."""
        await self._operate_soon()
        until = self._head
        try:
            while not self._stopped and await self._commit_due() and self._committed < until:
                pass
        except Exception as error:
            # It is not the operation's failure. Nothing else may be tried under that commit's number: its objects are on
            # their way, and another content under the same keys could be overtaken by them.
            self._fail(error)
            raise

    async def _operate_soon(self) -> None:
        while self._asked_soon and not self._stopped:
            await self._operate(self._asked_soon.popleft())

    async def _operate(self, asked: Asked) -> None:
        assert self._operations is not None
        try:
            result = await self._operations.perform(asked.name, asked.arguments)
        except (Refused, CorruptFormat, NotFound, Corrupt) as error:
            self._send(link.Operated(asked.id, {}, str(error), type(error).__name__))
            return
        if asked.name in TOLD_OPERATIONS:
            self._happened(asked.name, arguments=asked.arguments)
        self._send(link.Operated(asked.id, result))
        self._status()

    def _look_around_is_due(self) -> bool:
        return self._execution.monotonic() - self._looked_around >= LOOK_AROUND_S

    async def _look_around(self) -> bool:
        """What is done when nothing is due, and now and then beside commits; whether something was."""
        self._looked_around = self._execution.monotonic()
        assert self._checkpointer is not None
        assert self._sweeper is not None
        assert self._operations is not None
        if self._map.purging and not self._purge_waits:
            try:
                await self._execution.run(self._map.purge)
            except StoreError as error:
                self._persistence.failed("read map pages", error)
                return False
            self._status()
            return True
        if self._deleting:
            self._deleting = bool(await self._checkpointer.delete_dead())
            return True
        if self._map.purging:
            await self._make_room_for_dead()
            return True
        if self._sweeper.waiting:
            await self._sweeper.slice()
            if not self._sweeper.waiting:
                await self._two_roots()
            return True
        now = self._execution.monotonic()
        if now - self._looked_for_expired >= EXPIRY_S:
            self._looked_for_expired = now
            self._sweeper.look_again()
            if self._operations.expired():
                names = await self._operations.expire()
                if names:
                    self._happened("snapshot-expired", names=names)
                return True
        return False

    @property
    def _purge_waits(self) -> bool:
        return self._map.dead_waiting >= self._purge_dead_max

    async def _make_room_for_dead(self) -> None:
        """Delete what a discard has left so far, with commits in between; whoever asks for something else comes first."""
        assert self._checkpointer is not None
        await self._two_roots()
        while await self._checkpointer.delete_dead():
            if self.detaching or self._asked:
                return
            await self._between()
        # What could not be deleted, or may not be, must not hold the discard up for ever.
        self._purge_dead_max = self._map.dead_waiting + PURGE_DEAD_MAX

    async def _two_roots(self) -> None:
        """Two roots later what is dead now may be deleted. A crash between them: the next writer begins again."""
        assert self._checkpointer is not None
        for _ in range(2):
            await self._destager_mark({"purpose": "collection"})
            await self._checkpoint()
        self._deleting = True

    async def _destager_mark(self, note: dict[str, Any]) -> None:
        assert self._destager is not None
        await self._destager.mark(note)

    async def _look_after_map(self, extents: Sequence[int]) -> None:
        assert self._collector is not None
        if not self._purge_waits:
            try:
                await self._execution.run(self._map.purge)
            except StoreError as error:
                self._persistence.failed("read map pages", error)
        touched = sorted(set(extents))
        if not touched:
            return
        _, values = await self._execution.run(self._map.lookup, touched)
        limit = self._settings.collector.value_bytes_max
        self._collector.overgrown(
            [extent for extent, value in zip(touched, values, strict=True) if len(value.patches) * PATCH_BYTES > limit]
        )

    async def _idle(self, seconds: float) -> None:
        self._status()
        self._wake.clear()
        sleeper = asyncio.ensure_future(self._execution.sleep(seconds))
        waker = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeper, waker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waker.cancel()

    async def _detach(self) -> None:
        assert self._destager is not None
        assert self._checkpointer is not None
        await self._destager.detach()
        await self._checkpointer.write()
        self._stopped = True
        self._happened("detach")
        self._send(link.Detached())

    @property
    def progress(self) -> int:
        """Grows with every object that was put, fetched or deleted: while it does, an orderly stop is worth waiting for."""
        if self._destager is None or self._checkpointer is None:
            return 0
        commits, fetches = self._destager.counters, self._fetcher.counters
        return commits.puts + fetches.bytes_down + self._checkpointer.deleted + self._checkpointer.trimmed

    def _store_changed(self) -> None:
        """A commit that waits for the store is the very moment at which somebody wants to know: `_idle` is not come to then."""
        made = self._destager is not None and self._checkpointer is not None and self._collector is not None
        if made and self._map.state is not None:
            self._status()

    def _status(self) -> None:
        assert self._destager is not None
        assert self._checkpointer is not None
        assert self._collector is not None
        state = self._map.state
        assert state is not None
        commits, fetches = self._destager.counters, self._fetcher.counters
        self._send(
            link.Status(
                {
                    "commit_sequence": state.seq,
                    "epoch": state.epoch,
                    "commits": commits.commits,
                    "journal_records": commits.records,
                    "host_bytes_committed": commits.host_bytes,
                    "store_puts": commits.puts,
                    "store_bytes_up": commits.bytes_up,
                    "extents_written": commits.extents,
                    "patches_written": commits.patches,
                    "store_gets": fetches.requests,
                    "store_bytes_down": fetches.bytes_down,
                    "local_object_hits": fetches.local_hits,
                    "corrupt_local_copies": fetches.corrupt_local,
                    "corrupt_objects": fetches.corrupt_store,
                    "extents_folded": self._collector.folded,
                    "patches_moved": self._collector.moved,
                    "objects_deleted": self._checkpointer.deleted,
                    "records_trimmed": self._checkpointer.trimmed,
                    "map_pages_written": self._checkpointer.pages_written,
                    "map_pages_waiting": self._map.pages_waiting,
                    "snapshots": len(self._map.history.snapshots),
                    "snapshots_removed": len(self._map.history.removed),
                    "extents_mapped": self._map.extents_mapped,
                    "lease_seconds_left": max(0.0, self._lease.until - self._execution.monotonic()),
                    "store_failures": self._persistence.failures,
                    "store_reachable": float(not self._persistence.last_error),
                }
                | {f"store.{name}": value for name, value in self._store_counters().items()}
            )
        )


def _failure_kind(error: BaseException | None) -> str:
    """As in `link.Failed`."""
    if isinstance(error, Fenced):
        return "fenced"
    if isinstance(error, CorruptFormat | CorruptJournal | Corrupt):
        return "corrupt"
    if isinstance(error, LocalDiskFailed | OSError):
        return "local"
    if isinstance(error, StoreError | AttachRefused):
        return "store"
    return "bug"
