"""What writes cost at the store: requests by kind, bytes and money, until nothing moves any more.

One rule: everything is counted at the store, from the first write until the worker has been silent for `QUIET_S`: commits,
folds, collections, checkpoints and deletions are in, whoever asked for them. Content is half compressible; settings are the
default ones. Places are drawn from a fixed seed.

The yardstick is one PUT for each write of 4 KiB, which is what storing a disk's blocks as objects would cost.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import volume
from bench.initiator import BLOCK_BYTES, MIB, half_compressible
from bench.processes import BenchFailed
from bench.store import Client, Stats
from blockdev.segments import root
from s3core.endpoint import PRESETS, Prices
from tests.system.raw_initiator import BUSY, GOOD, WRITE_BYTES_MAX, RawInitiator

GIB = 1024 * MIB
DEPTH = 32
QUIET_S = 15.0
"""Longer than the age that makes a commit, and than the collector rests between two slices."""
PATIENCE_S = 120.0
SETTLE_S_MAX = 1800.0
RATIO_AIM = 50
"""Scattered writes of 4 KiB must need at most this part of one PUT for each."""
PRICES_OF = "aws"
KINDS = ("log", "seg", "ext", "page", "root", "head")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """`host_bytes`: written in each case. `window_bytes`: where the rewriting of a hot part goes."""

    volume_bytes: int
    host_bytes: int
    window_bytes: int


FULL = Sizes(10 * GIB, GIB, GIB)
QUICK = Sizes(512 * MIB, 64 * MIB, 64 * MIB)


@dataclass(frozen=True, slots=True)
class Case:
    """What one case cost. `write_bytes`: of one write. `live_bytes`: what the newest map needs of the bucket's
    `stats.stored_bytes`, measured after a detach. `settle_s`: from the last write until silence."""

    name: str
    host_bytes: int
    write_bytes: int
    stats: Stats
    write_s: float
    settle_s: float
    left_bytes: int
    left_objects: int
    live_bytes: int

    @property
    def writes(self) -> int:
        return self.host_bytes // self.write_bytes

    @property
    def ratio(self) -> float:
        """Writes of 4 KiB for each PUT."""
        return self.host_bytes / BLOCK_BYTES / max(self.stats.puts, 1)

    def money(self, prices: Prices) -> float:
        """Of the requests, in the table's currency; LIST is charged as PUT, DELETE is free."""
        stats = self.stats
        puts = (stats.puts + stats.lists) * prices.per_1000_put
        return (puts + (stats.gets + stats.heads) * prices.per_1000_get) / 1000


def places(size_bytes: int, count: int, seed: int, first_bytes: int = 0) -> Iterator[int]:
    """`count` places of 4 KiB in [first, first + size), some more than once, as uniform random writes are."""
    source = random.Random(seed)
    blocks = size_bytes // BLOCK_BYTES
    return (first_bytes + source.randrange(blocks) * BLOCK_BYTES for _ in range(count))


def write(url: str, jobs: Iterable[tuple[int, bytes]], *, depth: int = DEPTH) -> float:
    """Carry out (byte, data) writes with `depth` in flight, again where the target is busy, then a flush; seconds.
    Raises BenchFailed when one fails."""
    begin = heard = time.monotonic()
    initiator = RawInitiator(url)
    waiting: dict[int, tuple[int, bytes]] = {}
    again: list[tuple[int, bytes]] = []
    source = iter(jobs)
    ended = False
    try:
        while True:
            while len(waiting) < depth and initiator.window and not (ended and not again):
                job = again.pop() if again else next(source, None)
                if job is None:
                    ended = True
                    continue
                waiting[initiator.write(job[0] // initiator.sector_bytes, job[1])] = job
            if not waiting:
                break
            for answer in initiator.poll(1.0):
                heard = time.monotonic()
                job = waiting.pop(answer.tag)
                if answer.status == BUSY:
                    again.append(job)
                    time.sleep(0.02)
                elif answer.status != GOOD:
                    raise BenchFailed(f"a write at byte {job[0]} failed: status {answer.status:#x}, {answer.sense}")
            if time.monotonic() - heard > PATIENCE_S:
                raise BenchFailed(f"no answer from {url} in {PATIENCE_S:.0f} s")
        if initiator.wait(initiator.flush()).status != GOOD:
            raise BenchFailed("the flush behind the writes failed")
    finally:
        initiator.close()
    return time.monotonic() - begin


def scattered(size_bytes: int, count: int, seed: int, first_bytes: int = 0) -> Iterator[tuple[int, bytes]]:
    blocks = list(half_compressible(256, seed))
    for number, place in enumerate(places(size_bytes, count, seed, first_bytes)):
        yield place, blocks[number % 256]


def in_order(size_bytes: int, step_bytes: int, seed: int, first_bytes: int = 0) -> Iterator[tuple[int, bytes]]:
    """Half compressible content in order; no two pieces are alike."""
    blocks = list(half_compressible(512, seed))
    source = random.Random(seed)
    for at in range(0, size_bytes, step_bytes):
        yield first_bytes + at, b"".join(source.choices(blocks, k=step_bytes // BLOCK_BYTES))


def wait_until_quiet(store: Client, quiet_s: float = QUIET_S) -> float:
    """Until no request came for `quiet_s`; the seconds until the last one. Raises BenchFailed if that never happens.

    Only work counts: a lease is renewed with one GET now and then, for ever."""
    begin = last = time.monotonic()
    seen = _work(store.stats())
    while time.monotonic() - last < quiet_s:
        time.sleep(0.25)
        now = _work(store.stats())
        if now != seen:
            seen, last = now, time.monotonic()
        if last - begin > SETTLE_S_MAX:
            raise BenchFailed(f"the worker is not done {SETTLE_S_MAX:.0f} s after the last write")
    return last - begin


def _work(stats: Stats) -> tuple[int, ...]:
    return stats.puts, stats.deletes, stats.bytes_in, stats.bytes_out


def counted(
    url: str, store: Client, jobs: Iterable[tuple[int, bytes]], quiet_s: float = QUIET_S
) -> tuple[Stats, float, float]:
    """What writes cost until silence; seconds of writing and of settling."""
    before = store.stats()
    write_s = write(url, jobs)
    settle_s = wait_until_quiet(store, quiet_s)
    return store.stats().since(before), write_s, settle_s


class CostBench:
    """All cases on one store. The bucket must be empty before, and is afterwards."""

    def __init__(self, directory: Path, store: Client, sizes: Sizes, say: Say, quiet_s: float = QUIET_S) -> None:
        self._directory = directory
        self._store = store
        self._sizes = sizes
        self._say = say
        self._quiet_s = quiet_s
        self._cases: list[Case] = []

    def run(self) -> list[Case]:
        sizes = self._sizes
        count = sizes.host_bytes // BLOCK_BYTES
        size, window = sizes.volume_bytes, sizes.window_bytes
        self._store.set_latency(0)
        for name, step, jobs in (
            ("4K scattered, empty volume", BLOCK_BYTES, lambda: scattered(size, count, 11)),
            ("1M in order, empty volume", MIB, lambda: in_order(sizes.host_bytes, WRITE_BYTES_MAX, 12)),
        ):
            config = self._create(f"c{len(self._cases)}")
            self._case(config, name, step, jobs, fresh=True)
            self._store.remove(volume.BUCKET)
        config = self._create("full")
        self._say("cost: fill a volume")
        with self._serve(config) as served:
            write(served.url, in_order(size, WRITE_BYTES_MAX, 13))
            wait_until_quiet(self._store, self._quiet_s)
        self._case(config, "4K scattered, full volume", BLOCK_BYTES, lambda: scattered(size, count, 14))
        self._case(
            config, "4K scattered over a hot part, full volume", BLOCK_BYTES, lambda: scattered(window, count, 15)
        )
        self._case(config, "the same hot part again", BLOCK_BYTES, lambda: scattered(window, count, 16))
        self._store.remove(volume.BUCKET)
        return self._cases

    def _create(self, name: str) -> Path:
        return volume.create(self._directory, name, self._store.port, self._sizes.volume_bytes)

    def _serve(self, config: Path) -> volume.Served:
        return volume.Served(config, config.stem, state=f"{config.stem}-cost")

    def _case(
        self,
        config: Path,
        name: str,
        write_bytes: int,
        jobs: Callable[[], Iterable[tuple[int, bytes]]],
        *,
        fresh: bool = False,
    ) -> None:
        self._say(f"cost: {name}")
        with self._serve(config) as served:
            wait_until_quiet(self._store, min(self._quiet_s, 3.0))
            stats, write_s, settle_s = counted(served.url, self._store, jobs(), self._quiet_s)
        live = self._live_bytes()
        self._cases.append(
            Case(
                name,
                self._sizes.host_bytes,
                write_bytes,
                stats,
                write_s,
                settle_s,
                stats.stored_bytes,
                stats.objects,
                live,
            )
        )
        if fresh:
            served.forget()

    def _live_bytes(self) -> int:
        """What the newest root's map needs: everything but what it lists as dead, and the dead part of containers."""
        keys = self._store.sizes(volume.BUCKET)
        newest = max((key for key in keys if "/root/" in key), key=lambda key: key.rpartition("/")[2])
        found = root.decode(self._store.read(f"{volume.BUCKET}/{newest}"), what=newest)
        prefix = newest.partition("root/")[0]
        total = sum(size for key, size in keys.items() if not re.search("/(log|seg)/", key))
        total -= sum(keys.get(prefix + item.key, 0) for item in found.dead if not item.key.startswith(("log/", "seg/")))
        return total + sum(int(use.stored * use.live / max(use.sectors, 1)) for use in found.containers)


def tables(cases: list[Case], prices: Prices) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells."""
    requests = []
    volume_rows = []
    for one in cases:
        stats = one.stats
        other = stats.puts - sum(stats.puts_of.get(kind, 0) for kind in KINDS)
        requests.append(
            [
                one.name,
                f"{stats.puts:,}",
                *(f"{stats.puts_of.get(kind, 0):,}" for kind in ("log", "seg", "ext")),
                f"{other + sum(stats.puts_of.get(kind, 0) for kind in ('page', 'root', 'head')):,}",
                f"{stats.gets + stats.heads:,}",
                f"{stats.lists:,}",
                f"{stats.deletes:,} ({stats.deleted:,})",
                f"1/{one.ratio:,.0f}",
                f"{100 * one.money(prices) * GIB / one.host_bytes:.2f}",
            ]
        )
        volume_rows.append(
            [
                one.name,
                f"{one.host_bytes / MIB:,.0f}",
                f"{stats.bytes_in / one.host_bytes:.2f}",
                *(f"{stats.bytes_of.get(kind, 0) / one.host_bytes:.2f}" for kind in ("log", "seg", "ext")),
                f"{stats.bytes_out / one.host_bytes:.2f}",
                f"{one.left_objects:,}",
                f"{one.left_bytes / MIB:,.0f}",
                f"{one.live_bytes / MIB:,.0f}",
                f"{one.left_bytes / max(one.live_bytes, 1):.2f}",
                f"{one.write_s:.0f} + {one.settle_s:.0f}",
            ]
        )
    kinds = ["records", "segments", "extents"]
    return [
        (
            "Cost: requests until nothing moved any more; cents of the aws price table per GiB written",
            ["case", "PUT", *kinds, "map", "GET", "LIST", "DELETE (objects)", "PUT per 4 KiB", "c/GiB"],
            requests,
        ),
        (
            "Cost: bytes at the store per byte written, and what is left in the bucket",
            ["case", "host MiB", "up", *kinds, "down", "objects", "MiB", "live MiB", "stored/live", "s"],
            volume_rows,
        ),
    ]


def lines(cases: list[Case]) -> list[str]:
    """What must hold, and whether it does."""
    found = []
    for one in cases:
        if one.write_bytes == BLOCK_BYTES:
            word = "holds" if one.ratio >= RATIO_AIM else "DOES NOT HOLD"
            found.append(f"{one.name}: one PUT for {one.ratio:,.0f} writes of 4 KiB; at least {RATIO_AIM} {word}")
    return found


def document(cases: list[Case]) -> list[dict[str, object]]:
    return [{**asdict(one), "ratio": one.ratio, "money": one.money(prices())} for one in cases]


def prices() -> Prices:
    return PRESETS[PRICES_OF].prices
