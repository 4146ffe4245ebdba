"""The hot paths, one operation each: what is set up once, what is counted, and in what unit.

One rule: everything is made here from fixed seeds, waits for nothing that a clock decides, and counts the same in every run.
Whatever is counted runs with `around` entered.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from blockdev.engine.lease import clock
from blockdev.engine.worker import WorkerSettings
from cowsync.rows import Row
from envctl.agent import scan
from integrity.writer import Writer
from s3core.listing import parse_page
from tests.blockdev import worker_bench
from tests.blockdev.counting_store import CountingStore
from tests.blockdev.worker_bench import WorkerBench
from tests.cowsync.scan.test_shard import OLD, Listing
from tests.cowsync.scan.test_shard import scan as scan_listing
from tests.envctl.agent.console import FakeConsole
from tests.envctl.agent.machine import Machine
from tests.guard.portal import PortalWorld, portal_world
from tests.integrity.test_writer import Place, put
from tests.plugin.upload.test_files import Stopping
from tests.plugin.upload.world import PART, noise, uploader

T = TypeVar("T")
Around = Callable[[], AbstractContextManager[None]]
"""Entered around what is to be counted."""
Requests = Callable[[], int]

COMMIT_WRITES = 64
COLD_FRAMES = 128
PAGE_KEYS = 1000
RECORDS = 32
PARTS = 2
FILES = 64


@dataclass(frozen=True, slots=True)
class Operation:
    """`run(folder, around, times)` does it `times` times and gives the requests that one made at its store.
    `per`: how many units of work one is; counts are divided by it."""

    name: str
    unit: str
    run: Callable[[Path, Around, int], float]
    per: int = 1
    memory: bool = True
    """Whether the most memory held is the same each time: not where threads decide what is held at once."""
    slack: float = 1.05
    """What a budget allows above what was measured: more where threads wait for each other."""


def _portal(act: Callable[[PortalWorld, int], object]) -> Callable[[Path, Around, int], float]:
    def run(folder: Path, around: Around, times: int) -> float:
        with portal_world(folder) as world:
            for number in range(3):
                act(world, number)
            world.count = around
            for number in range(times):
                act(world, number)
            return 0

    return run


def _write_and_flush(world: PortalWorld, number: int) -> None:
    world.write(number * 8, b"w" * 4096)
    world.flush()


class InlineExecution:
    """Runs what may block at once, in the loop's thread: so that it is counted, and always in one order."""

    def __init__(self, threads: int) -> None:
        pass

    def run(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(function(*args))
        except Exception as error:  # noqa: BLE001  # handed on to whoever awaits
            done.set_exception(error)
        return done

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def monotonic(self) -> float:
        return clock()

    def time(self) -> float:
        return 1_800_000_000.0

    def close(self, *, wait: bool = False) -> None:
        pass


async def _worker(folder: Path, store: CountingStore) -> WorkerBench:
    with patch.object(worker_bench, "ThreadExecution", InlineExecution):
        bench = WorkerBench(folder, store, settings=WorkerSettings(lease_s=3600.0))
    await bench.attach()
    return bench


def _half(randomness: random.Random) -> bytes:
    """4 KiB, half of it compressible."""
    return randomness.randbytes(2048) + bytes(2048)


def _commit(folder: Path, around: Around, times: int) -> float:
    async def main() -> float:
        store, randomness = CountingStore(), random.Random(1)
        bench = await _worker(folder, store)
        asked = 0
        for _ in range(times):
            for _ in range(COMMIT_WRITES):
                bench.write(randomness.randrange(200_000) * 8, _half(randomness))
            store.begin()
            with around():
                await bench.commit()
            asked += store.counted.puts.total() + store.counted.gets.total() + store.counted.lists
        await bench.detach()
        return asked / times

    return asyncio.run(main())


def _cold_frame(folder: Path, around: Around, times: int) -> float:
    async def main() -> float:
        store, randomness = CountingStore(), random.Random(1)
        (folder / "first").mkdir()
        first = await _worker(folder / "first", store)
        for number in range(COLD_FRAMES):
            first.write(number * 97 % 4096 * 128, _half(randomness) * 16)
        await first.commit()
        await first.detach()
        # A host that has nothing of the volume.
        (folder / "second").mkdir()
        bench = await _worker(folder / "second", store)
        frames = [number * 97 % 4096 * 128 // bench.geometry.sectors_per_frame for number in range(COLD_FRAMES)]
        await bench.read_frames(frames[:1])
        store.begin()
        for frame in frames[8 : 8 + times]:
            with around():
                await bench.read_frames([frame])
        asked = store.counted.gets.total()
        await bench.detach()
        return asked / times

    return asyncio.run(main())


def _unchanged_page(folder: Path, around: Around, times: int) -> float:
    objects = {f"folder/{number:06d}": (number, f'"{number:032x}"') for number in range(PAGE_KEYS)}
    listing = Listing(objects)
    rows = [
        Row(f"folder/{number:06d}".encode(), number, f'"{number:032x}"'.encode(), OLD) for number in range(PAGE_KEYS)
    ]
    for _ in range(times):
        with around():
            scan_listing(listing, rows, page_keys=PAGE_KEYS)
    return 0


def _page_of_xml(folder: Path, around: Around, times: int) -> float:
    rows = "".join(
        f"<Contents><Key>folder/{number:06d}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{number}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(PAGE_KEYS)
    )
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><Prefix></Prefix><KeyCount>{PAGE_KEYS}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
    ).encode()
    parse_page(body)
    for _ in range(times):
        with around():
            parse_page(body)
    return 0


def _record(writer: Writer, first: int) -> None:
    for number in range(RECORDS):
        writer.record(put(first + number))
    writer.publish()


def _records(folder: Path, around: Around, times: int) -> float:
    store = CountingStore()
    writer = Place(folder / "slot", store).open()
    _record(writer, 0)
    store.begin()
    for turn in range(times):
        with around():
            _record(writer, (turn + 1) * RECORDS)
    asked = store.counted.puts.total() + store.counted.gets.total()
    writer.close()
    return asked / times


def _parts(folder: Path, around: Around, times: int) -> float:
    data = memoryview(noise(PART * PARTS))
    bucket = Stopping(times * PARTS)
    for turn in range(times):
        sending = uploader(bucket, folder / str(turn))
        stream = sending.stream(f"pve/dump/{turn}")
        with around():
            for at in range(0, len(data), PART // 5):
                stream.write(data[at : at + PART // 5])
        stream.finish()
        sending.close()
    return len(bucket.came) / times


def _unchanged_files(folder: Path, around: Around, times: int) -> float:
    # What is younger than the clock's tick is read once more: here the cache speaks for it at once.
    with patch.object(scan, "RACY_NS", 0), FakeConsole() as console:
        machine = Machine(folder / "machine", console)
        machine.service().restore()
        randomness = random.Random(2)
        for number in range(FILES):
            file = machine.home / f"{number:03d}"
            file.write_bytes(randomness.randbytes(3000))
        machine.service().backup("timer")
        machine.service().backup("timer")
        asked = len(console.requests)
        for _ in range(times):
            service = machine.service()
            with around():
                service.backup("timer")
        return (len(console.requests) - asked) / times


OPERATIONS = (
    Operation("portal read 4K, warm", "command", _portal(lambda world, number: world.read(number * 8, 8))),
    Operation("portal read 256K, warm", "command", _portal(lambda world, number: world.read(number % 8 * 512, 512))),
    Operation("portal write 4K", "command", _portal(lambda world, number: world.write(number * 8, b"w" * 4096))),
    Operation(
        "portal write 1M", "command", _portal(lambda world, number: world.write(number % 2 * 2048, bytes(1 << 20)))
    ),
    Operation("portal write 4K and flush", "both", _portal(_write_and_flush)),
    Operation("portal 32 reads of 4K at once", "command", _portal(lambda world, number: world.batch(True)), 32),
    Operation("portal 32 writes of 4K at once", "command", _portal(lambda world, number: world.batch(False)), 32),
    Operation("destager commit of 64 writes of 4K", "commit", _commit),
    Operation("cold read of a frame", "frame", _cold_frame),
    Operation("listing page parsed", "page of 1000", _page_of_xml),
    Operation("cowsync unchanged page", "page of 1000", _unchanged_page),
    Operation("integrity record and publish", "record", _records, RECORDS),
    Operation("plugin upload of a part", "part", _parts, PARTS, memory=False, slack=1.2),
    Operation("envctl agent, unchanged file", "file", _unchanged_files, FILES, slack=1.1),
)
