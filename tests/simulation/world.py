"""One episode: a volume on a simulated host lives, crashes, comes back and is judged, all of it from one seed.

One rule: every choice comes from the seed through one named stream per use, so that what one part draws does not
shift what another one gets.

An episode is a few lives. Each attaches, has every sector compared with the oracle, works for a while, and ends by a
crash at a step drawn beforehand (anywhere: in the attach, in a write of the disk, between a PUT and its answer), by a clean
detach, or by the failure of the local disk. In the end the faults stop, the volume settles, and the bucket is
judged by itself.

| the end of a life | what the next one must find |
| --- | --- |
| kill: the processes die | every acknowledged write, then a prefix of what was not acknowledged yet |
| power: the host dies | every write an answered flush covers, then a prefix of the others |
| host: its disks are gone | every write reported to be in the bucket, then a prefix of the others |
| detach | everything |
| takeover: another host attaches while this one lives | as for host; and nothing of the overtaken one ever after |
"""

import asyncio
import copy
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from unittest import mock
from uuid import UUID

from blockdev.engine import checkpoint, fetch, link, orphans, sweep
from blockdev.engine.ancestry import VolumePart, with_ancestors
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.collector import CollectorSettings
from blockdev.engine.destager import CommitSettings
from blockdev.engine.front import Front
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.worker import Worker, WorkerSettings
from blockdev.errors import AttachRefused, CorruptFormat, Fenced, JournalFull, LeaseExpired, LocalDiskFailed
from blockdev.extents import extent_map
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import paths, root
from blockdev.segments.volume_file import VolumeFile, cipher_of, encryption_of
from blockdev.units import KIB, MIB, Geometry
from s3core.errors import StoreError
from s3core.faulty import FaultKind, FaultPlan, FaultyStore
from s3core.store import ObjectStore
from tests.simulation import bucket
from tests.simulation.disk import SimDisk
from tests.simulation.initiator import PATIENCE_S, Initiators, LocalDiskBroken, in_time
from tests.simulation.loop import OWNER, Crash, Deadlock, Endless, SimLoop, new_loop
from tests.simulation.model import ZERO, Model, Operation, Violation, token_of
from tests.simulation.process import CACHE, JOURNAL, TABLE, Host, Process, ProcessSettings, Session, SimClock, arrive
from tests.simulation.reserved import Reserved
from tests.simulation.snapshots import Snapshots
from tests.simulation.stores import Gate, Remembered, RememberingStore

ATTACH_TRIES = 20
IDLE_S = 10.0
IDLE_COMMITS_MAX = 60
"""More than a collection of so small a volume can need."""
TEMPORARY = (
    FaultKind.REFUSED,
    FaultKind.SLOW_DOWN,
    FaultKind.LOST_REQUEST,
    FaultKind.LOST_REPLY,
    FaultKind.LATE,
    FaultKind.SHORT_BODY,
    FaultKind.SLOW,
    FaultKind.HANG,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an episode is made of; drawn from the seed by `draw`, or written down by a test."""

    lives: int = 3
    sector_bytes: int = 512
    extents: int = 6
    settings: ProcessSettings = field(
        default_factory=lambda: ProcessSettings(WorkerSettings(lease_s=10.0), 256 * KIB, 12, 0, "local", 0.01)
    )
    fault_rate: float = 0.0
    actors: int = 2
    steps_per_life: int = 1500
    ends: tuple[str, ...] = ("kill",) * 3 + ("power",) * 3 + ("host",) * 2 + ("detach",) * 2 + ("takeover",)
    crash_at: int = -1
    """The exact step of the first life that crashes; drawn when negative."""
    local_copies_bytes: int = 0
    sync_fails: bool = False
    """fdatasync fails now and then; the volume must stop, and is started again after a power loss."""
    cache_flips: bool = False
    """Bits of the cache files flip; nobody may notice but by a fetch."""
    encrypted: bool = False
    operations: bool = False
    """An operator takes and deletes snapshots, grows the volume and collects, beside the initiators."""
    reservations: bool = False
    """Reservations are kept anew all the time, beside the initiators."""
    session_rate: float = 0.0
    """How often a command attaches the volume between two lives: it rolls back, cuts off, collects."""
    page_extents: int = 1024
    """Extents on a page of the map: with few, so small a volume has several pages."""
    mixed_flush: bool = False
    """Each life draws anew whether a flush means the disk or the bucket."""
    leaks: bool = False
    """In the end every snapshot is deleted and everything collected: then nothing may be left over."""
    object_flips: float = 0.0
    """How often a GET brings a flipped bit; reads may fail then, attaching too, nothing may come out wrong."""


def draw(seed: int) -> Plan:
    """The plan of a numbered episode."""
    r = random.Random(f"{seed}:plan")
    commit = CommitSettings(
        commit_bytes=r.choice([8 * KIB, 32 * KIB, 128 * KIB]),
        interval_s=r.choice([0.02, 0.2, 1.0]),
        inline_bytes_max=r.choice([0, 600, 4 * KIB, 64 * KIB]),
        segment_bytes=r.choice([1 * KIB, 4 * KIB, 64 * KIB]),
        uploads=r.choice([1, 3, 8]),
        compression=r.choice(["zstd", "none"]),
    )
    checkpoint = CheckpointSettings(records=r.choice([1, 2, 5, 20]))
    collector = CollectorSettings(
        live_fraction=r.choice([0.5, 0.9]),
        nearly_empty_bytes=r.choice([1, 4 * KIB]),
        wave_bytes=r.choice([1, 4 * KIB, 128 * KIB]),
        fold_fraction=r.choice([0.01, 0.25, 0.9]),
        value_bytes_max=r.choice([200, 1800]),
        slice_bytes=r.choice([16 * KIB, 256 * KIB]),
    )
    settings = ProcessSettings(
        worker=WorkerSettings(lease_s=r.choice([2.0, 20.0]), commit=commit, checkpoint=checkpoint, collector=collector),
        ring_bytes=r.choice([64 * KIB, 128 * KIB, 256 * KIB, 1 * MIB]),
        cache_slots=r.choice([2, 8, 32, 64]),
        read_ahead_bytes=r.choice([0, 0, 64 * KIB]),
        flush_to=r.choice(["local", "local", "s3"]),
        delay_s=r.choice([0.001, 0.01, 0.05]),
    )
    o = random.Random(f"{seed}:operations")
    checkpoint = replace(checkpoint, trim_age_s=o.choice([0.0, 0.0, 3.0, 86400.0]))
    collector = replace(collector, share=o.choice([0.25, 0.25, 1.0]))
    commit = replace(commit, per_hour_max=o.choice([0, 0, 0, 1800]))
    worker = replace(settings.worker, commit=commit, checkpoint=checkpoint, collector=collector)
    operations = o.random() < 0.6
    settings = replace(settings, worker=worker)
    return Plan(
        operations=operations,
        mixed_flush=o.random() < 0.3,
        session_rate=o.choice([0.0, 0.5]) if operations else 0.0,
        page_extents=o.choice([1, 2, 1024]),
        leaks=operations and o.random() < 0.6,
        lives=r.choice([2, 3, 4, 6]),
        sector_bytes=r.choice([512, 512, 4096]),
        extents=r.choice([3, 6]),
        settings=settings,
        fault_rate=r.choice([0.0, 0.02, 0.1, 0.25]),
        actors=r.choice([1, 2, 4]),
        steps_per_life=r.choice([200, 800, 2000]),
        local_copies_bytes=r.choice([0, 16 * KIB, 1 * MIB]),
        sync_fails=r.random() < 0.05,
        cache_flips=r.random() < 0.3,
        encrypted=random.Random(f"{seed}:encrypted").random() < 0.5,
    )


class World:
    """Build with a seed (and a plan), then `run`. Raises Violation, naming what was promised, or whatever the engine raises
    that it should not."""

    def __init__(
        self,
        seed: int,
        plan: Plan | None = None,
        *,
        worker_type: type[Worker] = Worker,
        front_type: type[Front] = Front,
        trace: bool = False,
        name: str = "disk",
        beside: "World | None" = None,
    ) -> None:
        self.seed = seed
        self._trace = trace
        self.last_trace: list[tuple[int, str]] | None = None
        self.first_life_steps = 0
        self.plan = plan if plan is not None else draw(seed)
        self._worker_type = worker_type
        self._front_type = front_type
        self._choices = self._stream("choices")
        self._work = self._stream("work")
        self._sessions = self._stream("sessions")
        self.flush_to = self.plan.settings.flush_to
        geometry = Geometry(
            size_bytes=self.plan.extents * 128 * KIB,
            sector_bytes=self.plan.sector_bytes,
            frame_bytes=16 * KIB,
            extent_bytes=128 * KIB,
        )
        ids = self._stream("identity")
        self.volume = VolumeFile(
            name=name,
            identity=UUID(bytes=ids.randbytes(16), version=4),
            lineage=UUID(bytes=ids.randbytes(16), version=4),
            geometry=geometry,
            compression=self.plan.settings.worker.commit.compression,
            created=0.0,
            creator="simulation",
        )
        self.data_key = b""
        if self.plan.encrypted:
            self.data_key = ids.randbytes(32)
            encryption = encryption_of(self.data_key, self.volume.identity)
            self.volume = replace(self.volume, features=frozenset({"encryption"}), encryption=encryption)
        self.volume = self.identify(self.volume)
        self.cipher = cipher_of(self.volume, self.data_key, self._stream("nonces").randbytes)
        self.clock: SimClock = beside.clock if beside is not None else SimClock()
        self.whole: RememberingStore = beside.whole if beside is not None else RememberingStore(clock=self.clock)
        """Everything in the bucket; below it the volume's own part as it is, as it ever was, and with faults."""
        self.store = FaultyStore(self.whole, FaultPlan(), self._stream("store"), self.clock)
        self.bucket = self._part(self.whole)
        self.past = self._part(Remembered(self.whole, self.whole.remembered, ""))
        self.history = bucket.History(self.volume, self.past)
        self.snapshots = Snapshots()
        self.reserved = Reserved()
        geometry = self.volume.geometry
        self.sizes = {geometry.size_bytes}
        """What the volume's size may be, as far as anybody was told."""
        self.model = Model(geometry.sector_count)
        self.loop = self._new_loop(0.0)
        self.host = self._new_host()
        self.initiators: Initiators | None = None
        self.bound = 0
        self.promise = "a new volume is empty"
        self.accept_loss = False
        self._journal_was_lost = False
        self._must_not_vanish = 0
        """Operations acknowledged before the journal was lost: losing any must be accepted by somebody."""
        self._settled = False
        self._settling = False
        self._swept_to = 0
        self._late_until = 0.0
        self._flipping: SimLoop | None = None
        """Where bits of the cache flip already."""
        self._armed = False
        """Whether a crash is due in this life once it works."""
        self._compared = False
        """Whether this life has come so far that the oracle saw the whole volume."""
        self.happened: Counter[str] = Counter()
        """What the episode came across: for tests that want to know that something was tried at all."""
        self._late: list[tuple[float, Callable[[], object]]] = []
        self._digest = hashlib.sha256()

    def identify(self, made: VolumeFile) -> VolumeFile:
        """For a volume that is not simply new."""
        return made

    def _part(self, store: ObjectStore) -> ObjectStore:
        """The volume's own part of a store as its engine sees it."""
        return with_ancestors(VolumePart(store, self.volume.name), self.volume)

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}:{name}")

    def _new_loop(self, now: float) -> SimLoop:
        loop = new_loop(self._stream(f"loop {now}"), now=now)
        self.clock.loop = loop
        if self._trace:
            loop.trace = []
        return loop

    def _new_host(self) -> Host:
        disk = SimDisk(self._stream(f"disk {self._choices.random()}"), lambda what: self.loop.point(what))
        return Host(disk, MemoryKeyValueStore(), MemoryObjects(self.plan.local_copies_bytes))

    # --- the episode ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        with small_pages(self.plan.page_extents):
            self.live_through()
            while not self._settled:
                self._live(self.plan.lives, "settle")
            self._judge_bucket(len(self.model.operations), "a settled volume is in the bucket", whole=True)

    def live_through(self) -> None:
        """All lives but the last one, which settles."""
        for life in range(self.plan.lives - 1):
            self._live(life, self._choices.choice(self.plan.ends))
            if (
                self.plan.session_rate
                and not self.plan.object_flips
                and self._sessions.random() < self.plan.session_rate
            ):
                self._live(life, "session")

    def _live(self, life: int, end: str) -> None:
        loop = self.loop
        if end == "session":
            self._arm_session()
        elif end in ("kill", "power", "host"):
            if life == 0 and self.plan.crash_at >= 0:
                loop.crash_at = self.plan.crash_at
            elif self._choices.random() < 0.2:
                self._arm()
            else:
                self._armed = True
        try:
            loop.run(self._life(end))
        except Crash:
            self.happened[f"crash: {end}"] += 1
            if end == "session":
                end = self._sessions.choice(["kill", "power", "host"])
        except LocalDiskBroken:
            self.happened["local disk failed"] += 1
            end = "power"  # nobody knows what the disk holds; that the page cache still has it is no proof
        except (Deadlock, Endless) as error:
            raise Violation(f"no progress: {error}") from error
        finally:
            # A callback that raised explains whatever else went wrong.
            bugs = [error for error in loop.failures if not isinstance(error, Crash | LocalDiskBroken)]
            if bugs:
                raise Violation(f"an exception nobody handled: {bugs[0]!r}") from bugs[0]
        self._armed = False
        loop.crash_at = loop.crash_at_point = -1
        self._die(end)

    def _arm_session(self) -> None:
        if self._sessions.random() < 0.5:
            self.loop.crash_at = self.loop.steps + 1 + int(self._sessions.random() ** 2 * 1500)

    def _arm(self) -> None:
        """Crash somewhere in what follows. Half of the crashes fall where something is being made durable, however rare
        that is among all steps."""
        within = self._choices.random() ** 2 * self.plan.steps_per_life
        if self._choices.random() < 0.5:
            self.loop.crash_at = self.loop.steps + 1 + int(within)
        else:
            self.loop.crash_at_point = self.loop.points + 1 + int(within / 5)

    async def _life(self, end: str) -> None:
        if self.plan.mixed_flush:
            self.flush_to = self._sessions.choice(["local", "s3"])
        self._settling = end == "settle"
        self._weather(settle=self._settling)
        for when, action in self._late:
            self.loop.call_at(when, arrive, action)
            self._late_until = max(self._late_until, when)
        self._late = []
        if end == "session":
            await self._session()
            return
        served = await self._attach()
        await self._compare(served)
        self.happened["lives"] += 1
        if end == "settle":
            if self._choices.random() < 0.3:
                await self._idle(served)
            await self._work_for(served, self.plan.steps_per_life // 4)
            if self.plan.leaks:
                await self._clean_up(served)
            await self._settle(served)
            self._settled = True
            return
        if self._choices.random() < 0.2:
            await self._idle(served)
        if self._armed:
            self._arm()
        if end == "takeover":
            served = await self._take_over(served)
        else:
            await self._work_for(served, self.plan.steps_per_life if end == "detach" else 10**9)
        if end in ("detach", "takeover"):
            self._weather(settle=True)
            await self._settle(served)
            self.happened["detached"] += 1

    async def _session(self) -> None:
        """A command attaches the volume, carries what its journal holds, operates, and detaches."""
        served = await self._attach(Session)
        process = served.process
        assert isinstance(process, Session)
        await in_time(process.carry(), "carrying the journal")
        self._found(self._judge_bucket(self.bound, self.promise))
        self.model.settled()
        self.happened["sessions"] += 1
        await self._offline_work(process)
        await in_time(process.detach(), "detaching")
        self.happened["detached"] += 1

    async def _offline_work(self, process: Session) -> None:
        r = self._stream(f"session {self.loop.steps} {self.loop.time()}")
        for _ in range(r.randrange(1, 4)):
            await in_time(self._operate_offline(process, r), "an operation")

    async def _operate_offline(self, process: Session, r: random.Random) -> None:
        model, snapshots = self.model, self.snapshots
        alive, kind = snapshots.alive(), r.random()
        geometry = self.volume.geometry
        if kind < 0.5 and alive:
            answer = await self._roll_back(process, r.choice(alive))
        elif kind < 0.65:
            state = process.map.state
            assert state is not None
            extents = r.randrange(1, max(2, state.size_bytes // geometry.extent_bytes))
            size, per = extents * geometry.extent_bytes, geometry.sector_bytes
            self.sizes.add(size)
            if size < state.size_bytes:
                model.staged(Operation(ZERO, size // per, (state.size_bytes - size) // per))
            answer = await process.operate("resize", size_bytes=size, shrink=True)
        elif kind < 0.8:
            answer = await process.operate("gc", orphans=r.random() < 0.6)
        elif kind < 0.9 and alive:
            name = r.choice(alive)
            snapshots.doomed.add(name)
            answer = await process.operate("snapshot-delete", name=name)
            if answer.kind == "Refused" and self.has_clone(name):
                snapshots.doomed.discard(name)
                return
            snapshots.deleted.add(name)
        else:
            name = snapshots.new_name()
            snapshots.ask(name, model)
            answer = await process.operate("snapshot", name=name)
            snapshots.promised.add(name)
        if answer.kind:
            raise Violation(f"an operation without initiators failed: {answer.kind}: {answer.error}")
        self.happened["offline operations"] += 1
        state = process.map.state
        assert state is not None
        self.sizes = {state.size_bytes}
        model.settled()
        self._judge_bucket(model.acknowledged, "an operation was answered")

    async def _roll_back(self, process: Session, to: str) -> link.Operated:
        """One step of the model: the volume becomes what the snapshot holds, and what it was before is a snapshot."""
        snapshots, geometry, state = self.snapshots, self.volume.geometry, process.map.state
        assert state is not None
        keep = snapshots.new_name()
        snapshots.ask(keep, self.model)
        was = snapshots.kept[to]
        self.sizes.add(len(was) * geometry.sector_bytes)
        self.model.became([*was, *([ZERO] * (state.size_bytes // geometry.sector_bytes - len(was)))])
        answer = await process.operate("rollback", to=to, keep_as=keep)
        snapshots.promised.add(keep)
        self.happened["rolled back"] += 1
        return answer

    def has_clone(self, name: str) -> bool:
        """Whether a clone reads a snapshot of this volume."""
        return False

    async def _clean_up(self, served: Initiators) -> None:
        """Delete every snapshot and collect: what is in the bucket then is what the volume needs, and what is already
        noted as dead."""
        await asyncio.sleep(max(0.0, self._late_until - self.loop.time()) + 0.001)
        self.store.settle()
        with suppress(LeaseExpired):
            await served.operate("flush")
        await asyncio.sleep(2.0)  # the lease that ran out in the weather before has been renewed by then
        for name in sorted(self.snapshots.promised):
            if name in (item["name"] for item in (await served.operate("snapshots"))["snapshots"]):
                await served.delete_snapshot(name)
        for item in (await served.operate("snapshots"))["snapshots"]:
            await served.delete_snapshot(item["name"])
        assert served.process is not None
        assert served.process.map.state is not None
        self._swept_to = served.process.map.state.seq
        await served.operate("gc", orphans=True)
        self.happened["cleaned up"] += 1

    def _find_leaks(self, live: ExtentMap) -> None:
        if live.history.snapshots or live.history.removed:
            return
        state = live.state
        assert state is not None
        kept = bucket.needed(live) | {item.key for item in live.dead()}
        kept |= {paths.root(state.root_seq, state.root_epoch)}
        kept |= {paths.log(seq) for seq in live.old_records(state.seq + 1, 1 << 62, 1 << 30)}
        # A record that arrives once more after it was trimmed lies where nobody reads. What the very last commits left
        # is for the next collection.
        trimmed = {key.removeprefix(paths.volume_prefix(self.volume.name)) for key in self.whole.deleted}
        left = [
            info.key
            for info in self.bucket.list()
            if info.key not in kept
            and (paths.number_of(info.key) or self._swept_to) < self._swept_to
            and not (info.key.startswith(paths.log_prefix()) and info.key in trimmed)
        ]
        if left:
            raise Violation(f"nothing needs these, and nothing deletes them: {left}")
        self.happened["looked for leaks"] += 1

    async def _idle(self, served: Initiators) -> None:
        """Nobody writes: the volume carries to the bucket what is left, settles, and costs nothing from then on."""
        await asyncio.sleep(IDLE_S)
        before = self.happened["commits"]
        await asyncio.sleep(IDLE_S)
        made = self.happened["commits"] - before
        if made > IDLE_COMMITS_MAX:
            raise Violation(f"an idle volume made {made} commits in {IDLE_S:g} s")
        served.check_alive()
        self.happened["idle"] += 1

    async def _take_over(self, old: Initiators, rounds: int = 2) -> Initiators:
        """A second host attaches without the journal while the first one lives on in one way or another, and the loss is
        accepted where there is one. From the fence on, nothing the first one does may reach the bucket; what it told the
        initiators before is the promise; once the second one serves, the first one answers nothing."""
        r = self._stream(f"takeover {self.loop.steps}")
        await self._work_for(old, self.plan.steps_per_life // 4)
        self.store.plan = replace(self.store.plan, slow_s_max=4.0)
        until = self.loop.steps + self.plan.steps_per_life
        old.may_be_fenced = True
        going_on = asyncio.gather(*self._go_on(old, lambda: self.loop.steps >= until))
        self._befall(old, r)
        if self.flush_to == "local":
            self.model.held = self.model.acknowledged
        lineage = self._lineage()
        self.host = self._new_host()
        self._journal_was_lost = True
        # Nor is it left over from an attach that was cut off: there is nothing to accept where everything is in the bucket.
        self.accept_loss = self.flush_to == "local" and r.random() < 0.5
        asked_before = self.happened["loss accepted"]
        new = await self._attach()
        asked = self.happened["loss accepted"] > asked_before
        old.superseded = True
        # From here on each has a history of its own, and the first one's is not the volume's any more.
        old.model = copy.deepcopy(self.model)
        changed = self._lineage() != lineage
        # After a refusal a writer with flush = "s3" may still have carried everything to the bucket: then nothing is lost.
        if changed != asked and not (asked and self.flush_to == "s3"):
            raise Violation(f"a loss was {'' if asked else 'not '}accepted, and the lineage is {self._lineage()}")
        if not asked:
            self._must_not_vanish = max(self.model.in_bucket, self.model.held if self.flush_to == "s3" else 0)
        self.bound, self.promise = self.model.in_bucket, "a take-over finds what was reported to be in the bucket"
        self._judge_bucket(self.bound, self.promise)
        await self._compare(new)
        await self._work_for(new, self.plan.steps_per_life // 4)
        self.loop.thaw(old.serving)
        old.gate.shut = False
        await going_on
        await self._must_be_fenced(old)
        self.happened["taken over"] += 1
        if self.flush_to == "local" and r.random() < 0.5:
            await self._must_be_refused(old)
        return await self._take_over(new, rounds - 1) if rounds > 1 and r.random() < 0.4 else new

    def _lineage(self) -> str:
        self.history.advance()
        state = self.history.map.state
        return state.lineage if state is not None else ""

    def _befall(self, old: Initiators, r: random.Random) -> None:
        """What happens to the first host about the time when it is taken over."""
        kind = r.choice(["nothing", "frozen", "stopped in a write", "cut off", "deaf"])
        self.happened[f"overtaken: {kind}"] += 1
        loop, process = self.loop, old.serving
        begins, lasts = r.random() * 2.0, r.random() * 3 * self.plan.settings.worker.lease_s
        if kind == "frozen":
            loop.call_later(begins, loop.freeze, process)
            loop.call_later(begins + lasts, loop.thaw, process)
        elif kind == "stopped in a write":
            disk, passing = process.host.disk, process.host.disk.point
            at = loop.time() + begins

            def point(what: str) -> None:
                passing(what)
                if what == f"write {JOURNAL}" and loop.time() >= at and OWNER.get() is process:
                    disk.point = passing
                    loop.stop_here(process, lasts)

            disk.point = point
        elif kind == "cut off":
            loop.call_later(begins, setattr, old.gate, "shut", True)
            loop.call_later(begins + lasts, setattr, old.gate, "shut", False)
        elif kind == "deaf":
            process.to_front.held_until = loop.time() + begins + r.random() * 4.0

    async def _must_be_refused(self, old: Initiators) -> None:
        """The first host comes back with its journal while another one has the volume: what the journal holds is not the
        volume's any more, and what the other one acknowledged is not here."""
        host, mine, serving = self.host, self.initiators, old.serving.host
        serving.disk.kill_process()
        self.host = serving
        try:
            for _ in range(ATTACH_TRIES):
                process = self._make(
                    Process,
                    Initiators(
                        self.loop,
                        self.plan.settings,
                        copy.deepcopy(self.model),
                        self.happened,
                        disk_may_fail=False,
                        objects_may_be_damaged=False,
                        snapshots=self.snapshots,
                    ),
                    self.plan.settings,
                )
                try:
                    await in_time(self.loop.create_task(process.start(), context=process.context), "attaching")
                except AttachRefused as error:
                    if "accept-loss" in str(error):
                        self.happened["came back and was refused"] += 1
                        return
                except StoreError:
                    self.happened["attach failed by the store"] += 1
                else:
                    raise Violation(
                        "a host that was overtaken attached again and was not asked whether to accept the loss"
                    )
                await asyncio.sleep(1.0)
        finally:
            self.host, self.initiators = host, mine

    async def _must_be_fenced(self, old: Initiators) -> None:
        """Whoever was overtaken learns of it at its next commit, and acknowledges nothing more."""
        self.store.heal()
        process = old.process
        assert process is not None
        for _ in range(int(PATIENCE_S)):
            if isinstance(process.stopped_by, Fenced):
                return
            if self.plan.object_flips and process.failed is not None and process.failed.kind == "corrupt":
                return  # it could not read the record that fences it, and stopped for that
            if process.stopped_by is not None:
                raise Violation(f"a fenced volume stopped for another reason: {process.stopped_by!r}")
            with suppress(JournalFull, Fenced, LeaseExpired):
                process.front.write(0, [bytes(self.volume.geometry.sector_bytes)])
                process.front.commit()
            await asyncio.sleep(1.0)
        raise Violation(f"a volume that was taken over goes on after {PATIENCE_S:g} s")

    def _weather(self, *, settle: bool) -> None:
        """Faults of this life. Settling is under a clear sky, or nothing would ever end."""
        self.store.heal()
        rates = {} if settle or not self.plan.fault_rate else dict(FaultPlan.even(self.plan.fault_rate, *TEMPORARY))
        if rates and self._choices.random() < 0.2:
            rates[FaultKind.PARTITION] = 0.01
        if self.plan.object_flips and not settle:
            rates[FaultKind.FLIPPED_BIT] = self.plan.object_flips
        self.store.plan = FaultPlan(rates=rates, slow_s_max=0.5, hang_s=5.0, slow_down_s=0.5, partition_s=5.0)

    # --- attaching and comparing ---------------------------------------------------------------------------------

    async def _attach(self, process_type: type[Process] = Process) -> Initiators:
        """Attach as an operator would: again after a failure that time cures, with --accept-loss where it was refused."""
        for _ in range(ATTACH_TRIES):
            settings = self.plan.settings
            worker = replace(settings.worker, flush_to=self.flush_to, accept_loss=self.accept_loss)
            settings = replace(settings, flush_to=self.flush_to, worker=worker)
            served = Initiators(
                self.loop,
                settings,
                self.model,
                self.happened,
                disk_may_fail=self.plan.sync_fails,
                objects_may_be_damaged=self.plan.object_flips > 0,
                snapshots=self.snapshots,
                has_clone=self.has_clone,
            )
            served.sizes = self.sizes
            self.initiators = served
            process = self._make(process_type, served, settings)
            try:
                await in_time(self.loop.create_task(process.start(), context=process.context), "attaching")
            except AttachRefused as error:
                self.happened["attach refused"] += 1
                if "accept-loss" in str(error):
                    if not self._journal_was_lost:
                        raise Violation(f"no journal was lost, and the attach is refused: {error}") from error
                    self.accept_loss = True
            except StoreError:
                self.happened["attach failed by the store"] += 1
            except CorruptFormat as error:
                if not self.plan.object_flips:
                    raise Violation(f"the attach found damage: {error}") from error
                self.happened["attach failed by damage"] += 1
            except LocalDiskFailed as error:
                raise served.unexpected(error) from error
            else:
                if self._journal_was_lost and self.accept_loss:
                    self.happened["loss accepted"] += 1
                    self._must_not_vanish = 0
                self.accept_loss = self._journal_was_lost = False
                if process_type is Process:
                    self.reserved.found(process.front.kept_reservations)
                return served
            await asyncio.sleep(1.0)
        raise Violation(f"the volume did not attach in {ATTACH_TRIES} tries")

    def _make(self, process_type: type[Process], served: Initiators, settings: ProcessSettings) -> Process:
        served.gate = Gate(self.store)
        served.process = process_type(
            loop=self.loop,
            random=self._work,
            host=self.host,
            volume=self.volume,
            store=self._part(served.gate),
            direct=self.bucket,
            clock=self.clock,
            settings=settings,
            observe=served.observe,
            cipher=self.cipher,
            worker_type=self._worker_type,
            front_type=self._front_type,
        )
        return served.process

    async def _compare(self, served: Initiators) -> None:
        """Every sector is read through the front and the whole judged."""
        assert served.process is not None
        geometry = served.process.front.geometry
        tokens: list[int] = []
        step = geometry.sectors_per_frame * 4
        for lba in range(0, geometry.sector_count, step):
            count = min(step, geometry.sector_count - lba)
            data = b"".join(await served.read(lba, count))
            for index in range(count):
                at = index * geometry.sector_bytes
                tokens.append(token_of(data[at : at + geometry.sector_bytes], lba + index))
        self._found(self.model.judge(tokens, self.bound, self.promise))

    def _found(self, prefix: int) -> None:
        """The volume goes on from this prefix."""
        if prefix < len(self.model.operations):
            self.happened["operations lost, as is legal"] += len(self.model.operations) - prefix
        self.model.recovered(prefix)
        self._compared = True
        if prefix < self._must_not_vanish:
            raise Violation(f"{self._must_not_vanish - prefix} acknowledged writes are gone, and nobody was asked")
        self._must_not_vanish = 0
        self._digest.update(repr((prefix, self.loop.steps, round(self.loop.time(), 6))).encode())

    # --- work ----------------------------------------------------------------------------------------------------

    async def _work_for(self, served: Initiators, steps: int) -> None:
        """Several initiators at once, until the steps are used up or the volume stops."""
        until = self.loop.steps + steps
        if self.plan.sync_fails and self._choices.random() < 0.3:
            self.loop.call_later(self._choices.random() * 2, self._break_sync)
        if self.plan.cache_flips and self._flipping is not self.loop:
            self._flipping = self.loop
            self.loop.call_later(self._choices.random() * self.plan.settings.delay_s, self._flip_cache)
        for actor in self._go_on(served, lambda: self.loop.steps >= until):
            await actor
        served.check_alive()

    def _go_on(self, served: Initiators, until: Callable[[], bool]) -> "list[asyncio.Task[None]]":
        tasks = [
            self.loop.create_task(
                served.work(until, self._stream(f"actor {index} {self.loop.steps}")), context=served.serving.context
            )
            for index in range(self.plan.actors)
        ]
        if self.plan.operations:
            r = self._stream(f"operator {self.loop.steps}")
            tasks.append(self.loop.create_task(served.operating(until, r), context=served.serving.context))
        if self.plan.reservations:
            r = self._stream(f"reserver {self.loop.steps}")
            reserving = served.reserving(until, r, self.reserved)
            tasks.append(self.loop.create_task(reserving, context=served.serving.context))
        return tasks

    def _break_sync(self) -> None:
        file = self.host.disk.files.get(JOURNAL)
        if file is not None:
            file.fail_next_sync = True

    def _flip_cache(self) -> None:
        file = self.host.disk.files[self._choices.choice([CACHE, CACHE, CACHE, TABLE])]
        for _ in range(8):
            file.flip(self._choices.randrange(len(file.image) * 8))
        self.happened["cache bits flipped"] += 8
        # No more often than that: a long wait for a lease is long in virtual time, and each flip is a step.
        pause = max(self.plan.settings.delay_s * 10, 0.25)
        self.loop.call_later(self._choices.random() * pause, self._flip_cache)

    # --- endings -------------------------------------------------------------------------------------------------

    async def _settle(self, served: Initiators) -> None:
        """Clean stop: everything acknowledged ends in the bucket, and the map of the live engine is that of the log."""
        process = served.process
        assert process is not None
        if process.stopped_by is not None:
            raise LocalDiskBroken("the volume stopped before")
        self.store.settle()
        await served.detach()
        self.store.settle()
        self._judge_bucket(len(self.model.operations), "a detached volume is in the bucket", live=process.map)
        self.sizes = {process.front.geometry.size_bytes}
        self._check_previous_root(process)
        if self.plan.leaks and self._settling:
            self._find_leaks(process.map)

    def _check_previous_root(self, process: Process) -> None:
        """The root before the newest one is whole as well: a reader may have begun from it."""
        found = process.worker._checkpointer
        if found is None or not found.previous_root:
            return
        keys = [info.key for info in self.bucket.list(paths.root_prefix())]
        broken: list[Violation] = []
        for key in keys:
            if paths.birth(key) == found.previous_root:
                try:
                    bucket.check_root(self.bucket, self.volume, self.history, key)
                    bucket.image(
                        self.bucket, self.volume, bucket.load_root(self.bucket, self.volume, key), self.cipher, {}
                    )
                except Violation as violation:
                    broken.append(violation)
                else:
                    self.happened["previous roots read"] += 1
                    return
        if found.previous_root >= self.history.first:
            raise Violation(
                f"the root before the newest one, of commit {found.previous_root}, cannot be used: {broken}"
            )

    def _die(self, end: str) -> None:
        """The process ends; what it leaves depends on how. Sets what the next life must find."""
        served, self.initiators = self.initiators, None
        process = served.process if served is not None else None
        self.loop.abandon()
        self.last_trace = self.loop.trace
        self.first_life_steps = self.first_life_steps or self.loop.steps
        now = self.loop.time()
        if process is not None:
            self._strand(process, now)
        model = self.model
        if self.flush_to == "local" and self._compared:
            model.held = model.acknowledged
        if end == "kill":
            self.host.disk.kill_process()
            bound, promise = model.acknowledged, "a killed process keeps every acknowledged write"
        elif end == "power":
            self.host.disk.lose_power()
            # The map is not synced; it is thrown away when the host has booted since.
            self.host.map_store = MemoryKeyValueStore()
            self.host.local = MemoryObjects(self.plan.local_copies_bytes)
            bound, promise = model.flushed, "a power loss keeps what a flush was answered for"
        elif end == "host":
            self.host = self._new_host()
            self._journal_was_lost = True
            if self._compared:
                self._must_not_vanish = model.held
            bound, promise = model.in_bucket, "a lost host leaves what was reported to be in the bucket"
        else:
            self.host.disk.kill_process()
            if self._choices.random() < 0.5:
                self.host = self._new_host()
                self.happened["bare host"] += 1
            bound, promise = len(model.operations), "a detached volume has everything"
        if self._compared or bound < self.bound:
            # Else this life ended before it was compared, and what the one before left is still the promise.
            self.bound, self.promise = bound, promise
        self._compared = False
        self.loop = self._new_loop(now)
        self._judge_bucket(model.in_bucket, "what was reported to be in the bucket is there")

    def _strand(self, process: Process, now: float) -> None:
        """Requests under way when the sender died: each arrived, did not, or arrives in a later life."""
        for action in process.execution.under_way.values():
            fate = self._choices.random()
            if fate < 0.33:
                arrive(action)
                self.happened["stranded requests arrived"] += 1
            elif fate < 0.66:
                self._late.append((now + self._choices.expovariate(1.0), action))
                self.happened["stranded requests arrive later"] += 1
        if self._choices.random() < 0.5:
            self.store.settle(all_arrive=False)

    def _judge_bucket(self, at_least: int, promise: str, *, whole: bool = False, live: ExtentMap | None = None) -> int:
        """The bucket by itself is a prefix of the operations, and everything in it holds together, snapshots too. How
        many operations it has."""
        history, seen = self.history, bucket.Seen()
        tokens = bucket.check(self.bucket, history, self.cipher, seen)
        state = history.map.state
        prefix = 0
        if state is not None:
            prefix = self.model.judge(tokens, at_least, promise)
            if state.size_bytes not in self.sizes:
                raise Violation(f"the volume has {state.size_bytes} bytes; promised was one of {sorted(self.sizes)}")
            self.snapshots.judge(
                history.map.history.snapshots,
                lambda snapshot: bucket.snapshot_image(self.bucket, self.volume, snapshot, self.cipher, seen),
                self.model,
                self.clock.time(),
            )
            self.happened["snapshots read"] += len(history.map.history.snapshots)
        elif at_least:
            raise Violation(f"{promise}: the log is empty")
        if live is not None:
            bucket.check_map(live, history.map, "the live map")
        if whole:
            self._digest.update(repr([(seq, p.digest) for seq, p in history.records.items()]).encode())
        return prefix

    @property
    def digest(self) -> str:
        """Of everything that was compared and of the log's chain: equal for equal runs."""
        return self._digest.hexdigest()


@contextmanager
def small_pages(extents: int) -> Iterator[None]:
    """Maps with so many extents on a page, wherever the engine counts them."""
    with ExitStack() as stack:
        for module in (root, extent_map, sweep, orphans, fetch):
            stack.enter_context(mock.patch.object(module, "PAGE_EXTENTS", extents))
        stack.enter_context(mock.patch.object(checkpoint, "DELTA_EXTENTS_MAX", max(1, extents // 8)))
        yield
