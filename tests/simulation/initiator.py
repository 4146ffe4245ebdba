"""The initiators of one process: they write, discard, read and flush, and tell the oracle what they did and heard.

One rule: an operation is told to the oracle before the front gets it, an acknowledgement after the front gave it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from blockdev.engine import link
from blockdev.errors import (
    BlockError,
    Fenced,
    JournalFull,
    LeaseExpired,
    LocalDiskFailed,
    MediumError,
    NotReady,
    Refused,
    StoreUnreachable,
)
from blockdev.units import BLOCK_BYTES, Geometry
from tests.simulation.loop import SimLoop
from tests.simulation.model import ZERO, Model, Operation, Violation, stamp
from tests.simulation.process import Process, ProcessSettings
from tests.simulation.reserved import Reserved
from tests.simulation.snapshots import Snapshots
from tests.simulation.stores import Gate

T = TypeVar("T")
SNAPSHOTS_MAX = 4
GROWTH_EXTENTS = 8
PATIENCE_S = 600.0
"""Virtual seconds anything may take while the store works most of the time."""


class LocalDiskBroken(Exception):
    """The local disk failed, as it was told to, and the volume stopped for it, as it should."""


async def in_time(answer: Awaitable[T], what: str) -> T:
    """Raises Violation when the answer does not come."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await answer
    except TimeoutError as error:
        raise Violation(f"{what} was not answered in {PATIENCE_S:g} s") from error


class Initiators:
    """`process` is set once there is one. `model` may be exchanged: after a take-over the fenced one's no longer counts."""

    def __init__(
        self,
        loop: SimLoop,
        settings: ProcessSettings,
        model: Model,
        happened: Counter[str],
        *,
        disk_may_fail: bool,
        objects_may_be_damaged: bool,
        snapshots: Snapshots,
        has_clone: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.process: Process | None = None
        self.gate: Gate
        """The process's way to the store."""
        self.model = model
        self.may_be_fenced = False
        self.superseded = False
        """Another host serves the volume by now: whatever this one answers is a broken promise."""
        self._loop = loop
        self._settings = settings
        self._happened = happened
        self._disk_may_fail = disk_may_fail
        self._objects_may_be_damaged = objects_may_be_damaged
        self.snapshots = snapshots
        self._has_clone = has_clone
        self.sizes: set[int] = set()
        """Sizes that were asked for."""

    @property
    def _geometry(self) -> Geometry:
        """Of now: a volume grows while it is served."""
        return self.serving.front.geometry

    @property
    def serving(self) -> Process:
        assert self.process is not None
        return self.process

    def observe(self, message: link.ToFront) -> None:
        """What the worker tells the front, when the front hears it."""
        if isinstance(message, link.Durable):
            self.model.reported_durable(message.position)
            self._happened["commits"] += 1
        elif isinstance(message, link.Status):
            for name in ("extents_folded", "patches_moved", "objects_deleted"):
                self._happened[name] = max(self._happened[name], int(message.counters.get(name, 0)))

    # --- what may go wrong ---------------------------------------------------------------------------------------

    def unexpected(self, error: Exception) -> Exception:
        """What to raise for an answer that only an injected fault can explain, if even that."""
        if self._disk_may_fail and isinstance(error, NotReady | LocalDiskFailed):
            return LocalDiskBroken(str(error))
        return Violation(f"unexpected answer: {error!r}")

    def check_alive(self) -> None:
        """Raises Violation when the process stopped for no reason that was injected."""
        process = self.serving
        if process.work.done() and not process.work.cancelled() and process.work.exception() is not None:
            raise Violation("the worker raised") from process.work.exception()
        if process.failed is not None and not (self._objects_may_be_damaged and process.failed.kind == "corrupt"):
            raise Violation(f"the worker gave up ({process.failed.kind}): {process.failed.message}")
        if process.stopped_by is not None and process.failed is None:
            raise self.unexpected(process.stopped_by)

    # --- work ----------------------------------------------------------------------------------------------------

    async def work(self, until: Callable[[], bool], r: random.Random) -> None:
        """One initiator's life, until there is no more to do or the volume stopped."""
        process = self.serving
        while not until() and process.stopped_by is None:
            kind = r.random()
            try:
                if kind < 0.55:
                    self._write(r)
                elif kind < 0.65:
                    self._discard(r)
                elif kind < 0.85:
                    await self._check_read(r)
                else:
                    await self.flush()
            except JournalFull:
                self._happened["journal full"] += 1
                await asyncio.sleep(0.1)
            except LeaseExpired:
                self._happened["lease out"] += 1
                await asyncio.sleep(0.2)
            except BlockError as error:
                if self.may_be_fenced and isinstance(error, Fenced):
                    return
                if self._objects_may_be_damaged and process.failed is not None:
                    return
                raise self.unexpected(error) from error
            await asyncio.sleep(0.0 if r.random() < 0.5 else r.expovariate(1.0) * self._settings.delay_s * 3)

    async def read(self, lba: int, count: int) -> list[bytes]:
        """Read, again while the store is away."""
        begun = self._loop.time()
        while self._loop.time() - begun < PATIENCE_S:
            future: asyncio.Future[object] = self._loop.create_future()
            found = self.serving.front.read(lba, count, future.set_result)
            if found is None:
                answer = await in_time(future, f"a read of sectors {lba} to {lba + count}")
                waits = isinstance(answer, StoreUnreachable) or (
                    isinstance(answer, LeaseExpired) and not self.may_be_fenced
                )
                if waits or (self._objects_may_be_damaged and isinstance(answer, MediumError)):
                    self._happened[f"reads answered {type(answer).__name__}"] += 1
                    await asyncio.sleep(1.0)
                    continue
                if isinstance(answer, BlockError):
                    raise answer
                assert isinstance(answer, list), answer
                found = answer
            self._answered("a read")
            return [bytes(buffer) for buffer in found]
        raise Violation(
            f"sectors {lba} to {lba + count} were not read in {PATIENCE_S:g} s, though asked for each second"
        )

    def _answered(self, what: str) -> None:
        if self.superseded:
            raise Violation(f"{what} was answered by a host that another one has taken over from")

    async def flush(self) -> None:
        future: asyncio.Future[Exception | None] = self._loop.create_future()
        begun = self.model.flush_begun()
        self.serving.front.flush(future.set_result)
        error = await in_time(future, "a flush")
        if error is not None:
            raise error
        self._answered("a flush")
        self.model.flush_done(begun, to_bucket=self._settings.flush_to == "s3")
        self._happened["flushes"] += 1

    async def detach(self) -> None:
        future: asyncio.Future[Exception | None] = self._loop.create_future()
        self.serving.front.detach(future.set_result)
        error = await in_time(future, "a detach")
        if error is not None:
            raise self.unexpected(error)
        await self.serving.work

    # --- operations on the volume as a whole -----------------------------------------------------------------------

    async def operate(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Through the front. Raises what it answers."""
        future: asyncio.Future[dict[str, Any] | Exception] = self._loop.create_future()
        self.serving.front.operate(name, arguments, future.set_result)
        answer = await in_time(future, f"the operation {name}")
        if isinstance(answer, Exception):
            raise answer
        self._happened[f"operation: {name}"] += 1
        return answer

    async def reserving(self, until: Callable[[], bool], r: random.Random, reserved: Reserved) -> None:
        """Reservations change now and then, one change at a time."""
        process = self.serving
        while not until() and process.stopped_by is None:
            await asyncio.sleep(r.expovariate(1.0) * self._settings.delay_s * 20)
            number = reserved.ask()
            future: asyncio.Future[Exception | None] = self._loop.create_future()
            process.front.keep_reservations({"number": number}, future.set_result)
            error = await in_time(future, "keeping reservations")
            if error is None:
                self._answered("a reservation")
                reserved.answered(number)
                self._happened["reservations kept"] += 1
            elif isinstance(error, LeaseExpired):
                self._happened["lease out"] += 1
            elif (self.may_be_fenced and isinstance(error, Fenced)) or self._objects_may_be_damaged:
                return
            else:
                raise self.unexpected(error)

    async def operating(self, until: Callable[[], bool], r: random.Random) -> None:
        """An operator's life beside the initiators', until there is no more to do or the volume stopped."""
        process = self.serving
        while not until() and process.stopped_by is None:
            await asyncio.sleep(r.expovariate(1.0) * self._settings.delay_s * 40)
            try:
                await self.operate_once(r)
            except LeaseExpired:
                self._happened["lease out"] += 1
            except BlockError as error:
                if self.may_be_fenced and isinstance(error, Fenced):
                    return
                if self._objects_may_be_damaged:
                    return
                raise self.unexpected(error) from error

    async def operate_once(self, r: random.Random) -> None:
        kind, alive = r.random(), self.snapshots.alive()
        if kind < 0.35 and len(alive) < SNAPSHOTS_MAX:
            await self.take_snapshot(r)
        elif kind < 0.6 and alive:
            await self.delete_snapshot(r.choice(alive))
        elif kind < 0.75:
            await self.operate("gc", orphans=r.random() < 0.6)
        elif kind < 0.85:
            await self.grow(r)
        elif kind < 0.9:
            await self.operate("checkpoint")
        else:
            known = set(self.snapshots.promised)
            listed = {item["name"] for item in (await self.operate("snapshots"))["snapshots"]}
            gone = known - listed - self.snapshots.doomed - self.snapshots.expires.keys()
            if gone:
                raise Violation(f"snapshots are not listed: {sorted(gone)}")

    async def take_snapshot(self, r: random.Random) -> None:
        name = self.snapshots.new_name()
        expires = self.serving.execution.time() + r.random() * 100 if r.random() < 0.2 else 0.0
        self.snapshots.ask(name, self.model, expires)
        await self.operate("snapshot", name=name, expires_us=int(expires * 1e6))
        self.snapshots.promised.add(name)

    async def delete_snapshot(self, name: str) -> None:
        self.snapshots.doomed.add(name)
        try:
            await self.operate("snapshot-delete", name=name)
        except Refused as error:
            if not self._has_clone(name):
                raise Violation(f"snapshot {name} cannot be deleted: {error}") from error
            self.snapshots.doomed.discard(name)
            self._happened["held back by a clone"] += 1
            return
        if self._has_clone(name):
            raise Violation(f"snapshot {name} was deleted, and a clone needs it")
        self.snapshots.deleted.add(name)

    async def grow(self, r: random.Random) -> None:
        geometry = self._geometry
        size = geometry.size_bytes + r.choice([1, 3, 32, 40]) * BLOCK_BYTES
        if size > GROWTH_EXTENTS * geometry.extent_bytes:
            return
        self.sizes.add(size)
        told = await self.operate("resize", size_bytes=size)
        if told["size_bytes"] != size or self._geometry.size_bytes != size:
            raise Violation(f"the volume was to have {size} bytes, has {self._geometry.size_bytes} and says {told}")
        self.sizes -= {smaller for smaller in self.sizes if smaller < size}

    def _place(self, r: random.Random, longest: int) -> tuple[int, int]:
        """(first sector, count): mostly near what others touch, mostly 4 KiB, sometimes odd."""
        sectors = self._geometry.sector_count
        per_block = self._geometry.sectors_per_block
        shape = r.random()
        if shape < 0.5:
            lba = r.randrange(sectors // per_block) * per_block
            count = per_block
        elif shape < 0.7:
            lba = r.randrange(sectors // per_block) * per_block
            count = per_block * r.randrange(1, 5)
        else:
            lba = r.randrange(sectors)
            count = r.randrange(1, 4 * per_block + 1)
        if r.random() < 0.3:
            lba %= self._geometry.sectors_per_frame * 2
        return lba, max(1, min(count, longest, sectors - lba))

    def _write(self, r: random.Random) -> None:
        """A burst as one receive brings it: staged one by one, committed once, then acknowledged."""
        sector_bytes = self._geometry.sector_bytes
        # More than a quarter of the ring takes several records, and is there whole or not at all like any other write.
        longest = self._settings.ring_bytes // 2 // sector_bytes
        sequential = r.random() < 0.15
        lba, count = self._place(r, longest)
        if r.random() < 0.05:
            count = min(count * 16, longest, self._geometry.sector_count - lba)
        full: JournalFull | None = None
        for _ in range(r.choice([1, 1, 2, 4]) if not sequential else 12):
            token = self.model.new_token()
            data = b"".join(stamp(token, at, sector_bytes) for at in range(lba, lba + count))
            self.model.staged(Operation(token, lba, count))
            try:
                self.serving.front.write(lba, _cut(data, sector_bytes, r))
            except BlockError as error:
                self.model.refused()
                if not isinstance(error, JournalFull):
                    raise
                full = error
                break
            lba, count = (lba + count, count) if sequential else self._place(r, longest)
            if lba + count > self._geometry.sector_count:
                break
        self._commit()
        if full is not None:
            raise full

    def _commit(self) -> None:
        journal = self.serving.journal
        assert journal is not None
        before = journal.head
        self.serving.front.commit()
        if journal.head > before:
            self._answered("a write")
        self.model.acknowledge(journal.head)

    def _discard(self, r: random.Random) -> None:
        """With cut blocks at its ends a range takes up to three records."""
        geometry = self._geometry
        if r.random() < 0.3:
            size = geometry.sectors_per_extent
            first_extent = r.randrange(geometry.extent_count)
            lba, count = first_extent * size, r.randrange(1, geometry.extent_count - first_extent + 1) * size
            if r.random() < 0.5:
                lba, count = 0, geometry.sector_count
        else:
            lba, count = self._place(r, geometry.sector_count)
            if r.random() < 0.5:
                count = max(1, min(count * 8, geometry.sector_count - lba))
        self.model.staged(Operation(ZERO, lba, count))
        try:
            if r.random() < 0.5:
                self.serving.front.unmap([(lba, count)])
            else:
                self.serving.front.write_zeroes(lba, count, may_unmap=r.random() < 0.5)
        except BlockError:
            self.model.refused()
            raise
        self._commit()

    async def _check_read(self, r: random.Random) -> None:
        lba, count = self._place(r, self._geometry.sector_count)
        if r.random() < 0.2:
            count = min(count * 16, self._geometry.sector_count - lba)
        model = self.model
        read = model.read_begun(lba, count)
        data = await self.read(lba, count)
        if model is self.model:  # else a take-over came between, and this process answers from a state of its own
            model.read_done(read, data, self._geometry.sector_bytes)


def _cut(data: bytes, sector_bytes: int, r: random.Random) -> list[bytes]:
    """The same bytes in one buffer or several, as sockets bring them."""
    if r.random() < 0.7 or len(data) == sector_bytes:
        return [data]
    at = r.randrange(1, len(data) // sector_bytes) * sector_bytes
    return [data[:at], data[at:]]
