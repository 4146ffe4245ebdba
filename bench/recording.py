"""What recording costs: a writer with its local log on a disk, publishing behind it into a store in memory.

One rule: elapsed time, until everything is durable on the disk; what is published meanwhile competes for the same interpreter.
"""

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchFailed
from bench.report import DASH, TableOf
from integrity.keys import SlotKeys
from integrity.writer import Writer
from s3core.memory import MemoryStore
from s3core.settings import LedgerSettings

AIM = 20_000
ORIGIN = "example.com/bench/h.1"
EVENT: dict[str, object] = {
    "op": "put",
    "phase": "done",
    "source": "client",
    "endpoint": "ceph",
    "bucket": "images",
    "etag": "9e107d9d372bb6826bd81d3542a419d6",
    "size": 123_456_789,
    "request": "tx00000abcdef0123456789-0065a1b2c3-4f5e-default",
    "who": {"kind": "tool", "name": "cowsync", "host": "pve1", "user": "root"},
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """`cpu_us` is of this process, for each record, publishing included."""

    name: str
    records: int
    seconds: float
    cpu_us: float
    aim: int = 0


def recording(records: int, folder: Path) -> list[Recorded]:
    """A few ways to record, each into a log of its own below `folder`."""
    return [
        _timed("one thread, waits at the end", records, 1, 0, folder, aim=AIM),
        _timed("16 threads, 50 records a call, each call waits", records, 16, 50, folder, aim=AIM),
        _timed("64 threads, each record waits", records // 4, 64, 1, folder),
        _timed("one thread, each record waits", records // 40, 1, 1, folder),
    ]


def _timed(name: str, records: int, threads: int, together: int, folder: Path, *, aim: int = 0) -> Recorded:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        slot = Path(place) / "slot"
        keys = SlotKeys.create(slot / "key.json", ORIGIN, now=time.time())
        settings = LedgerSettings.model_validate({"url": "memory:bench"})
        writer = Writer.open(slot, "h.1", ORIGIN, MemoryStore(), keys, settings)
        each = records // threads

        def work(mine: int) -> None:
            events = [EVENT | {"key": f"machines/vm-{mine:03d}/{n:08d}.qcow2"} for n in range(max(1, together))]
            if together > 1:
                for _ in range(each // together):
                    writer.record_all(events)
                return
            for _ in range(each):
                writer.record(events[0], wait=together == 1)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        began, cpu = time.perf_counter(), time.process_time()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        writer.flush()
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        durable = writer.status.durable
        writer.close()
        done = each * threads if together <= 1 else each // together * together * threads
        if durable < done or writer.status.published < writer.status.size:
            raise BenchFailed(f"{name}: of {done:,} records {durable:,} are durable; {writer.status}")
        return Recorded(name, done, seconds, cpu_s / done * 1e6, aim)


def table(measured: tuple[Recorded, ...]) -> TableOf:
    return (
        "Ledger: recording by one writer, its local log on a disk, publishing behind it; elapsed",
        ["how", "records", "records/s", "us of processor each", "aim"],
        [
            [
                one.name,
                f"{one.records:,}",
                f"{one.records / one.seconds:,.0f}",
                f"{one.cpu_us:.1f}",
                f"{one.aim:,}" if one.aim else DASH,
            ]
            for one in measured
        ],
    )
