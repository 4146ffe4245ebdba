"""The ledger: verifying it, proving one record, recording, and what it adds to a request that it records.

One rule: nothing is hashed or written less than the tools do. There is no peer in Debian for any of it; what it could cost at
least is told by `sha256sum` over the same bytes, and by the same requests without a ledger.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.home import endpoint_settings
from bench.ledger import RECORD_BYTES, chained_records, prove, verify_rates
from bench.ledger_verify import walks
from bench.peers.context import Context
from bench.peers.figures import CPU_US, REQUESTS, Figure, Part
from bench.processes import BenchFailed, children_cpu_s
from bench.recording import EVENT, ORIGIN
from integrity.coverage import Covered
from integrity.keys import SlotKeys
from integrity.recording import Recorder, RecordingStore
from integrity.tlog.tiles import WIDTH
from integrity.writer import Writer
from s3core.build import build_store
from s3core.settings import Config, LedgerSettings, load_config
from s3core.store import ObjectStore

NAME: Final = "ledger"
TITLE: Final = "Ledger: verifying, proving, recording"
VERIFY: Final = "verify records"
PROVE: Final = "prove one record"
RECORD: Final = "record and sync"
PUT: Final = "PUT of 64 KiB, 8 threads"
RECORDS_S: Final = "records/s"
PUTS_S: Final = "PUT/s"
FLOOR: Final = "sha256sum of the same bytes"
WITHOUT, WITH = "without a ledger", "with a ledger"
THREADS: Final = (1, 8, 64)
PUT_THREADS: Final = 8
PUT_BYTES: Final = 64 * 1024
BUCKET: Final = "bench-ledger"
WHO: Final = {"kind": "tool", "name": "bench", "host": "bench", "user": "bench"}
PUBLISHED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LedgerPlan:
    """`records`: of the log that is verified; `seconds`: of each way to record; `puts`: of each run of requests."""

    records: int
    seconds: float
    puts: int


FULL: Final = LedgerPlan(300_000, 5.0, 2_000)
QUICK: Final = LedgerPlan(100_000, 2.0, 400)


def measure(context: Context) -> Part:
    """The part of the run."""
    return ledgers(context, QUICK if context.quick else FULL)


def ledgers(context: Context, plan: LedgerPlan) -> Part:
    """The local log lies on the disk of the run's directory; publishing goes to the run's store."""
    begin = time.monotonic()
    folder = context.directory / NAME
    folder.mkdir(parents=True)
    config = _config(folder, context.store.port)
    missing: list[str] = []
    try:
        context.say("ledger: verify")
        figures = _verified(plan.records, folder)
        context.say("ledger: prove")
        figures += _proved()
        for threads in THREADS:
            if context.no_time(f"{RECORD}, {threads} threads", missing):
                continue
            context.say(f"ledger: record with {threads} threads")
            figures.append(_recorded(context, config, folder, threads, plan.seconds))
        for latency in [one for one in (0, 20) if one in context.latencies_ms] or [0]:
            if context.no_time(f"{PUT}, {latency} ms", missing):
                continue
            context.say(f"ledger: requests with and without it, {latency} ms")
            context.store.set_latency(latency)
            figures += _requests(context, config, folder, latency, plan.puts)
            context.store.set_latency(0)
    finally:
        context.store.set_latency(0)
        context.store.remove(BUCKET)
        shutil.rmtree(folder)
    notes = [
        f"records of {RECORD_BYTES} bytes; verifying is of one processor unless it says how many, reading from files included",
        "recording: elapsed, until each record that a thread waits for is on the local disk; it is published meanwhile",
        "a PUT with a ledger waits for its intent to be on the local disk before it is sent; requests: of the store, publishing"
        " included, for each PUT",
        "no peer is packaged in Debian: sha256sum is the least that a verification could cost, not another one",
    ]
    return Part(NAME, TITLE, figures, notes=notes, missing=missing, seconds=time.monotonic() - begin)


def _verified(records: int, folder: Path) -> list[Figure]:
    figures = []
    floor, cpu = _sha256sum(records, folder)
    figures.append(Figure(VERIFY, FLOOR, 0, RECORDS_S, (floor,), facts={CPU_US: cpu}))
    for rate in verify_rates(records):
        figures.append(Figure(VERIFY, rate.name, 0, RECORDS_S, (rate.rate,), facts={CPU_US: 1e6 / rate.rate}))
    for walk in walks(records, folder):
        facts = {} if walk.processes else {CPU_US: 1e6 / walk.rate}
        figures.append(Figure(VERIFY, f"out of files: {walk.name}", 0, RECORDS_S, (walk.rate,), facts=facts))
    return figures


def _sha256sum(records: int, folder: Path) -> tuple[float, float]:
    """Records a second of processor, and microseconds for each, if their bytes were only hashed."""
    made, _ = chained_records(WIDTH)
    path = folder / "records"
    with path.open("wb") as file:
        for _ in range(records // WIDTH):
            file.write(b"".join(made))
    before = children_cpu_s()
    subprocess.run(["sha256sum", str(path)], check=True, capture_output=True)
    used = children_cpu_s() - before
    path.unlink()
    done = records // WIDTH * WIDTH
    return done / used, used / done * 1e6


def _proved() -> list[Figure]:
    figures = []
    for size in (1_000_003, 100_000_007):
        found = [prove(size, with_edge=True) for _ in range(5)]
        facts = {REQUESTS: float(len(found[0].gets)), "down_bytes": float(found[0].bytes_read)}
        times = tuple(one.milliseconds for one in found)
        figures.append(Figure(PROVE, f"out of {size:,}", 0, "ms", times, True, facts))
    return figures


def _recorded(context: Context, config: Config, folder: Path, threads: int, seconds: float) -> Figure:
    """Threads that each wait for each of their records: the more, the more of them share one sync."""
    written = _Written(config, folder / f"slot-{threads}", f"r{threads}.1")
    records = 0
    counting = threading.Lock()
    until = time.perf_counter() + seconds
    before, cpu = context.store.stats(), time.process_time()

    def work(mine: int) -> None:
        nonlocal records
        event, done = EVENT | {"key": f"machines/vm-{mine:03d}/disk-0.qcow2"}, 0
        while time.perf_counter() < until:
            written.writer.record(event)
            done += 1
        with counting:
            records += done

    began = time.perf_counter()
    _in_threads(threads, work)
    elapsed = time.perf_counter() - began
    written.published()
    facts = {
        CPU_US: (time.process_time() - cpu) * 1e6 / records,
        REQUESTS: context.store.stats().since(before).requests / records,
    }
    written.close()
    return Figure(
        RECORD, f"{threads} thread{'s' if threads > 1 else ''}", 0, RECORDS_S, (records / elapsed,), facts=facts
    )


def _requests(context: Context, config: Config, folder: Path, latency: int, count: int) -> list[Figure]:
    """The same PUTs with and without a ledger, in turn."""
    plain = build_store(f"s3://bench/{BUCKET}/plain", config=config)
    url = f"s3://bench/{BUCKET}/recorded"
    written = _Written(config, folder / f"slot-put-{latency}", f"p{latency}.1")
    place = Covered("bench", "bench", BUCKET, "recorded/")
    covered = RecordingStore(
        build_store(url, config=config), Recorder(lambda: written.writer, [place], WHO), "recorded/"
    )
    rates: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    cpu_us: dict[str, float] = {WITHOUT: 0.0, WITH: 0.0}
    requests: dict[str, int] = {WITHOUT: 0, WITH: 0}
    done: dict[str, int] = {WITHOUT: 0, WITH: 0}
    _put_all(plain, "warm", 8 * PUT_THREADS)
    _put_all(covered, "warm", 8 * PUT_THREADS)
    written.published()
    for number in range(max(2, context.repeats)):
        for name, store in ((WITHOUT, plain), (WITH, covered)):
            before, cpu, began = context.store.stats(), time.process_time(), time.perf_counter()
            _put_all(store, f"{name}-{number}", count)
            rates[name].append(count / (time.perf_counter() - began))
            if store is covered:
                written.published()
            cpu_us[name] += (time.process_time() - cpu) * 1e6
            requests[name] += context.store.stats().since(before).requests
            done[name] += count
    written.close()
    plain.close()
    return [
        Figure(
            PUT,
            name,
            latency,
            PUTS_S,
            tuple(rates[name]),
            facts={CPU_US: cpu_us[name] / done[name], REQUESTS: requests[name] / done[name]},
        )
        for name in (WITHOUT, WITH)
    ]


def _put_all(store: ObjectStore, folder: str, count: int) -> None:
    body = bytes(PUT_BYTES)

    def work(mine: int) -> None:
        for number in range(mine, count, PUT_THREADS):
            store.put(f"{folder}/{number:06}", body)

    _in_threads(PUT_THREADS, work)


def _in_threads(threads: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(threads) as pool:
        # What one of them raises comes out here.
        list(pool.map(work, range(threads)))


class _Written:
    """A writer of a ledger whose local log is in `folder` and whose bucket is the run's store."""

    def __init__(self, config: Config, folder: Path, slot: str) -> None:
        keys = SlotKeys.create(folder / "key.json", ORIGIN, now=time.time())
        store = build_store(f"s3://bench/{BUCKET}/ledger", config=config)
        self.writer = Writer.open(
            folder, slot, ORIGIN, store, keys, LedgerSettings.model_validate({"url": "memory:bench"})
        )

    def published(self) -> None:
        """All that is recorded is durable, and in the bucket. BenchFailed where that takes too long."""
        self.writer.flush()
        give_up = time.monotonic() + PUBLISHED_S
        self.writer.publish(force=True)
        while self.writer.status.published < self.writer.status.durable:
            if time.monotonic() > give_up:
                raise BenchFailed(f"the ledger is not published: {self.writer.status}")
            time.sleep(0.01)

    def close(self) -> None:
        self.writer.close()


def _config(folder: Path, port: int) -> Config:
    path = folder / "ledger.toml"
    path.touch(mode=0o600)
    path.write_text(endpoint_settings(port))
    return load_config(path)
