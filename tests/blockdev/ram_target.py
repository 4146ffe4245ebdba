"""A volume in memory for tests of front doors: the BlockTarget port with a queue in place of time.

One rule: it keeps the port's promises to the letter (staged writes are held by reference until `commit`, a read
commits first), so that a door which breaks its side of the contract is caught here.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from blockdev.errors import BlockError, JournalFull
from blockdev.target import Buffer

PAGE_SECTORS = 64
IDENTITY = UUID("6a1f3c52-90d4-4b6e-8f17-2d0c5b9e7a41")


class RamTarget:
    """A sparse RAM disk.

    `deferred_reads` / `deferred_flushes`: the next so many reads or flushes (all of them if True) answer only when the
    test calls `run_one` or `run_all`; with False or 0 they answer at once. After a deferred read was
    answered, its range counts as local until the next `evict`, as with a cache that was filled.

    `fail_next(call, error)`: the next call of that name ("read", "write", "write_zeroes", "unmap", "commit", "flush",
    "allocated") fails with `error`: raised, or handed to `done` where the call has one.
    `room`: bytes that may still be staged or committed before JournalFull; None for no end.
    `slow`: seconds that `hold_back` asks for; `taken` lists the bytes it was told.
    `calls` lists what was asked, in order, as tuples.
    """

    def __init__(
        self,
        sectors: int = 2048,
        *,
        sector_bytes: int = 512,
        name: str = "ram",
        identity: UUID = IDENTITY,
        read_only: bool = False,
        deferred_reads: bool | int = False,
        deferred_flushes: bool | int = False,
        room: int | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.sector_bytes = sector_bytes
        self.sector_count = sectors
        self.read_only = read_only
        self.deferred_reads = deferred_reads
        self.deferred_flushes = deferred_flushes
        self.room = room
        self.slow = 0.0
        self.taken: list[int] = []
        self.kept_reservations: dict[str, Any] | None = None
        self.allocated_bytes = 0
        """Whatever a test says."""
        self.calls: list[tuple[object, ...]] = []
        self.queue: list[Callable[[], None]] = []
        self.flushed = 0
        """Number of flushes carried out."""
        self._pages: dict[int, bytearray] = {}
        self._mapped: dict[int, bytearray] = {}
        self._staged: list[Callable[[], None]] = []
        self._failures: dict[str, list[Exception]] = {}
        self._local: set[tuple[int, int]] = set()

    # ---- what a test does

    def fail_next(self, call: str, error: Exception) -> None:
        self._failures.setdefault(call, []).append(error)

    def run_one(self) -> None:
        """Answer the oldest deferred read or flush."""
        self.queue.pop(0)()

    def run_all(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.queue:
                return
            self.run_one()
        raise AssertionError(f"still busy after {limit} deferred answers: a loop that does not end")

    def evict(self) -> None:
        self._local.clear()

    def peek(self, lba: int, count: int) -> bytes:
        """Committed content, without any of the port's effects."""
        out = bytearray()
        for sector in range(lba, lba + count):
            page = self._pages.get(sector // PAGE_SECTORS)
            at = sector % PAGE_SECTORS * self.sector_bytes
            out += page[at : at + self.sector_bytes] if page else bytes(self.sector_bytes)
        return bytes(out)

    def poke(self, lba: int, data: bytes) -> None:
        """Put content there at once, without any of the port's effects."""
        self._apply(lba, [data])

    @property
    def staged(self) -> int:
        """How many staged changes wait for `commit`."""
        return len(self._staged)

    # ---- the port

    def read(self, lba: int, count: int, done: Callable[[list[Buffer] | Exception], None]) -> list[Buffer] | None:
        self.calls.append(("read", lba, count))
        assert lba >= 0
        assert lba + count <= self.sector_count, "the caller checks the range"
        self._settle()
        error = self._failure("read")
        wait = (lba, count) not in self._local and self._defers("deferred_reads")
        if not wait and error is None:
            return self._buffers(lba, count)

        def answer() -> None:
            self._local.add((lba, count))
            done(error if error is not None else self._buffers(lba, count))

        self.queue.append(answer)
        return None

    def write(self, lba: int, data: Sequence[Buffer]) -> None:
        length = sum(len(part) for part in data)
        self.calls.append(("write", lba, length))
        assert length % self.sector_bytes == 0, "whole sectors only"
        assert lba + length // self.sector_bytes <= self.sector_count, "the caller checks the range"
        self._raise("write")
        self._take_room(length)
        held = list(data)
        self._staged.append(lambda: self._apply(lba, held))

    def write_atomic(self, lba: int, data: Sequence[Buffer]) -> None:
        self.write(lba, data)
        self.calls[-1] = ("write_atomic", *self.calls[-1][1:])

    def write_zeroes(self, lba: int, count: int, *, may_unmap: bool = True) -> None:
        self.calls.append(("write_zeroes", lba, count, may_unmap))
        assert lba + count <= self.sector_count, "the caller checks the range"
        self._raise("write_zeroes")
        self._take_room(64)
        self._staged.append(lambda: self._zero(lba, count, mapped=not may_unmap))

    def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        held = tuple(ranges)
        self.calls.append(("unmap", held))
        self._raise("unmap")
        self._take_room(64)
        for lba, count in held:
            assert lba + count <= self.sector_count, "the caller checks the range"
            self._staged.append(partial(self._zero, lba, count, mapped=False))

    def commit(self) -> None:
        self.calls.append(("commit",))
        self._raise("commit")
        self._settle()

    def hold_back(self, bytes: int) -> float:
        self.taken.append(bytes)
        return self.slow

    def flush(self, done: Callable[[Exception | None], None]) -> None:
        self.calls.append(("flush",))
        self._settle()
        error = self._failure("flush")

        def answer() -> None:
            self.flushed += error is None
            done(error)

        if self._defers("deferred_flushes"):
            self.queue.append(answer)
        else:
            answer()

    def allocated(self, lba: int, count: int, done: Callable[[list[tuple[int, int, bool]] | Exception], None]) -> None:
        self.calls.append(("allocated", lba, count))
        self._settle()
        error = self._failure("allocated")
        if error is not None:
            done(error)
            return
        runs: list[tuple[int, int, bool]] = []
        sector, end = lba, lba + count
        while sector < end and len(runs) < 64:
            marks = self._mapped.get(sector // PAGE_SECTORS)
            within = sector % PAGE_SECTORS
            mapped = bool(marks and marks[within])
            step = 1 if marks else min(PAGE_SECTORS - within, end - sector)
            if runs and runs[-1][2] == mapped:
                runs[-1] = (runs[-1][0], runs[-1][1] + step, mapped)
            else:
                runs.append((sector, step, mapped))
            sector += step
        done(runs)

    def keep_reservations(self, state: dict[str, Any] | None, done: Callable[[Exception | None], None]) -> None:
        self.calls.append(("keep_reservations", state))
        error = self._failure("keep_reservations")

        def answer() -> None:
            if error is None:
                self.kept_reservations = state
            done(error)

        if self._defers("deferred_flushes"):
            self.queue.append(answer)
        else:
            answer()

    # ---- inside

    def _defers(self, which: str) -> bool:
        setting: bool | int = getattr(self, which)
        if setting is True or setting is False:
            return setting
        if setting > 0:
            setattr(self, which, setting - 1)
            return True
        return False

    def _failure(self, call: str) -> Exception | None:
        waiting = self._failures.get(call)
        return waiting.pop(0) if waiting else None

    def _raise(self, call: str) -> None:
        error = self._failure(call)
        if error is not None:
            raise error

    def _take_room(self, length: int) -> None:
        if self.room is None:
            return
        if length > self.room:
            raise JournalFull(f"{length} bytes asked, {self.room} free")
        self.room -= length

    def _settle(self) -> None:
        staged, self._staged = self._staged, []
        for change in staged:
            change()

    def _buffers(self, lba: int, count: int) -> list[Buffer]:
        """In pages, so that a door that expects one buffer is found out."""
        parts: list[Buffer] = []
        while count:
            step = min(count, PAGE_SECTORS - lba % PAGE_SECTORS)
            parts.append(self.peek(lba, step))
            lba, count = lba + step, count - step
        return parts

    def _apply(self, lba: int, data: Sequence[Buffer]) -> None:
        whole = b"".join(data)
        size = self.sector_bytes
        for index in range(len(whole) // size):
            page, within = divmod(lba + index, PAGE_SECTORS)
            content = self._pages.setdefault(page, bytearray(PAGE_SECTORS * size))
            content[within * size : (within + 1) * size] = whole[index * size : (index + 1) * size]
            self._mapped.setdefault(page, bytearray(PAGE_SECTORS))[within] = 1

    def _zero(self, lba: int, count: int, *, mapped: bool) -> None:
        size = self.sector_bytes
        end = lba + count
        touched = {page for page in self._pages if page * PAGE_SECTORS < end and (page + 1) * PAGE_SECTORS > lba}
        if mapped:
            touched |= set(range(lba // PAGE_SECTORS, -(-end // PAGE_SECTORS)))
        for page in touched:
            first = max(lba - page * PAGE_SECTORS, 0)
            last = min(end - page * PAGE_SECTORS, PAGE_SECTORS)
            content = self._pages.setdefault(page, bytearray(PAGE_SECTORS * size))
            content[first * size : last * size] = bytes((last - first) * size)
            marks = self._mapped.setdefault(page, bytearray(PAGE_SECTORS))
            marks[first:last] = (b"\1" if mapped else b"\0") * (last - first)


def broken(kind: type[BlockError], text: str = "injected") -> BlockError:
    """An error of that kind with a plain message, for `fail_next`."""
    return kind(text)
