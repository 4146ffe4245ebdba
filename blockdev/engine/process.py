"""The worker as a process of its own: `python -m blockdev.engine.process`, started by the daemon and by nothing else.

One rule: it lives and dies with the daemon. Its orders come as JSON on standard input (never as arguments: those are public),
messages over the inherited socket; when the socket closes it stops at once, leaving all to the journal and the log.
"""

import asyncio
import ctypes
import gc
import json
import logging
import os
import shutil
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from blockdev.engine import link
from blockdev.engine.attach import open_volume_file
from blockdev.engine.destager import CommitSettings
from blockdev.engine.local_objects import DirectoryObjects
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.socket_link import SocketLink
from blockdev.engine.state_directory import DirectoryJournal, StateDirectory
from blockdev.engine.worker import Worker, WorkerSettings
from blockdev.errors import AttachRefused, BlockError, CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.lmdb_map import LmdbKeyValueStore, close_map_store, open_map_store
from blockdev.segments import paths
from s3core.build import build_store
from s3core.clock import system_random
from s3core.errors import StoreError
from s3core.prefixed import sub_store
from s3core.probe import race_conditional_put
from s3core.retry import RetryPolicy
from s3core.settings import Config, ConfigError, load_config
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

THREADS = 32
NICE = 19
"""The front must never wait for the worker's CPU time: beside a worker at equal priority it loses two thirds of its
speed. While the journal fills or commits fall behind, the worker is raised to 0 (where permitted): a host whose guests use
all of its CPU must not let the RPO grow without bound."""
LATE_INTERVALS = 3
"""Commits are behind when the oldest unsaved write is so many commit intervals old."""
STEER_S = 0.5
SWITCH_INTERVAL_S = 0.0005
ATTEMPTS = 2
DEADLINE_S = 20.0
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Orders:
    """What the daemon tells its worker. `config` is the file to read endpoints from, empty for none."""

    config: str
    store_url: str
    name: str
    state_dir: str
    journal_bytes: int
    objects_bytes: int
    commit_bytes: int
    commit_interval_s: float
    accept_loss: bool
    unfenced: bool
    log_level: str
    log_format: str
    cache_file: str

    def dumps(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class SlotFile:
    """`SlotWriter` over the cache's content file."""

    def __init__(self, path: Path, slot_bytes: int) -> None:
        self._path = path
        self._slot_bytes = slot_bytes
        self._descriptor = -1

    def write(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        if self._descriptor < 0:
            # Opened at the first fetch: the front makes the file while the worker attaches.
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        view = memoryview(data)
        at = slot * self._slot_bytes
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written


def refuse_unfenced_store(store: ObjectStore, orders: Orders) -> None:
    """Raises AttachRefused when racing conditional PUTs do not have exactly one winner."""
    if orders.unfenced:
        log.warning("volume %s is used UNFENCED: two hosts writing at once destroy it", orders.name)
        return
    result = race_conditional_put(store, "", system_random())
    if not result.ok:
        raise AttachRefused(
            f"{store.url} cannot fence writers: {result.detail}",
            hint=result.hint or "use a bucket with conditional writes, without versioning on Ceph",
        )


def _set_priority(nice: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)
        except ProcessLookupError:
            continue  # a thread that ended since the listing
        except PermissionError as error:
            log.debug("priority stays as it is: %s", error)
            return


class Host:
    """One worker on this process's loop."""

    def __init__(self, orders: Orders, sock: socket.socket) -> None:
        self._orders = orders
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._link = SocketLink(self._loop, sock, self._closed)
        self._map_store: LmdbKeyValueStore | None = None

    def _closed(self) -> None:
        # The daemon is dead. Whatever is under way may finish or not: the log decides, and the next attach looks.
        os._exit(0)

    async def run(self) -> None:
        try:
            worker = await self._build()
            await worker.start()
        except (BlockError, StoreError, ConfigError, OSError, ValueError) as error:
            log.debug("attach failed", exc_info=True)
            self._link.send(link.Failed(type(error).__name__, str(error)))
            await asyncio.sleep(3600)  # the daemon reads the message and closes the link
            return
        self._link.on_message = worker.receive
        gc.collect()
        gc.freeze()
        steering = asyncio.create_task(self._steer(worker))
        await worker.run()
        steering.cancel()
        self._close_map(worker.failure)
        while self._link.unsent:
            await asyncio.sleep(0.01)

    def _close_map(self, failure: BaseException | None) -> None:
        if self._map_store is None:
            return
        if isinstance(failure, CorruptFormat) and failure.what.startswith("extent map"):
            log.error("the local extent map is damaged; the next start rebuilds it from the bucket")
            self._map_store.close()
            shutil.rmtree(self._map_store.path)
        else:
            close_map_store(self._map_store)

    async def _steer(self, worker: Worker) -> None:
        """Raise or lower the priority with the backlog."""
        nice = NICE
        while True:
            await asyncio.sleep(STEER_S)
            late = worker.lag_seconds() > LATE_INTERVALS * self._orders.commit_interval_s
            wanted = 0 if worker.urgent or worker.detaching or late else NICE
            if wanted != nice:
                nice = wanted
                _set_priority(nice)

    async def _build(self) -> Worker:
        orders = self._orders
        config = load_config(Path(orders.config)) if orders.config else Config()
        # The worker repeats by itself, for as long as it takes; a second layer that does would only hide outages from it.
        policy = RetryPolicy(attempts_max=ATTEMPTS, deadline_s=DEADLINE_S)
        store = sub_store(build_store(orders.store_url, config=config, policy=policy), paths.volume_prefix(orders.name))
        execution = ThreadExecution(THREADS)
        volume = await execution.run(open_volume_file, store, orders.name)
        await execution.run(refuse_unfenced_store, store, orders)
        geometry = volume.geometry
        directory = StateDirectory(Path(orders.state_dir))
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._map_store = open_map_store(directory.map_path, f"{boot_id} {volume.identity}")
        journal = DirectoryJournal(directory, volume.identity, orders.journal_bytes, geometry.sector_bytes)
        return Worker(
            volume=volume,
            store=store,
            extent_map=ExtentMap(self._map_store, geometry),
            local=DirectoryObjects(directory.objects_path, orders.objects_bytes),
            slots=SlotFile(Path(orders.cache_file), geometry.frame_bytes),
            journal=journal,
            execution=execution,
            settings=WorkerSettings(
                commit=CommitSettings(
                    commit_bytes=orders.commit_bytes,
                    interval_s=orders.commit_interval_s,
                    compression=volume.compression,
                ),
                accept_loss=orders.accept_loss,
                note={"host": socket.gethostname(), "pid": os.getpid()},
            ),
            nonce=lambda: uuid4().bytes,
            send=self._link.send,
        )


def configure_logging(level: str, form: str) -> None:
    """`key=value` lines or JSON lines on standard error."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


async def _main(orders: Orders, sock: socket.socket) -> None:
    await Host(orders, sock).run()


def main() -> None:
    # Dies with the daemon even where the daemon is killed before the socket closes; a worker must never outlive the lock.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = Orders(**json.loads(sys.stdin.buffer.read()))
    configure_logging(orders.log_level, orders.log_format)
    logging.getLogger("s3core.retry").setLevel(logging.ERROR)  # `Persistence` tells of outages, once
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _set_priority(NICE)
    sock = socket.socket(fileno=int(sys.argv[1]))
    asyncio.run(_main(orders, sock))


if __name__ == "__main__":
    main()
