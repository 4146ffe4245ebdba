"""A worker out of its parts, on the real disk and the real store: what the worker process and a command's session share.

One rule: building contacts the store (`vol.json`, the race of conditional writes) and opens files; it attaches nothing and
changes nothing that counts.
"""

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from blockdev.engine import link
from blockdev.engine.ancestry import VolumePart, with_ancestors
from blockdev.engine.attach import open_volume_file
from blockdev.engine.destager import CommitSettings
from blockdev.engine.local_objects import DirectoryObjects
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.state_directory import DirectoryJournal, StateDirectory
from blockdev.engine.whereabouts import here, surely_dead
from blockdev.engine.worker import Worker, WorkerSettings
from blockdev.errors import AttachRefused
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.lmdb_map import LmdbKeyValueStore, close_map_store, discard_map_store, open_map_store
from blockdev.segments.volume_file import VolumeFile, cipher_of
from s3core.build import build_store
from s3core.clock import system_random
from s3core.probe import race_conditional_put
from s3core.retry import RetryPolicy
from s3core.store import ObjectStore

if TYPE_CHECKING:
    from s3core.settings import Config

log = logging.getLogger(__name__)

ATTEMPTS = 2
DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is to do. `config` is the file to read endpoints from, empty for none."""

    config: str
    store_url: str
    name: str
    state_dir: str
    journal_bytes: int
    objects_bytes: int
    commit_bytes: int
    commit_interval_s: float
    accept_loss: bool
    flush: str
    lease_s: float
    unfenced: bool
    log_level: str
    log_format: str
    cache_file: str
    processes: tuple[int, ...] = ()
    """Others, beside this one, that acknowledge what the worker's volume is told."""
    take_over: bool = True
    """False: a volume that another host may be serving is left alone, even where nothing would be lost."""
    outwait: bool = True
    """False: somebody vouches that the host that had the volume is off."""
    data_key: str = field(default="", repr=False)
    """Of an encrypted volume, hexadecimal."""
    commits_per_hour_max: int = 0

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


@dataclass(frozen=True, slots=True)
class Assembly:
    """A worker that has not attached yet, and what must be closed after it."""

    worker: Worker
    volume: VolumeFile
    journal: DirectoryJournal
    map_store: LmdbKeyValueStore
    whole: ObjectStore

    def close(self) -> None:
        """After the worker has stopped: close the map so that the next start may use it, unless the worker failed (then
        nobody knows what of it is right, and the next start builds it anew); close the store."""
        if self.worker.failure is None:
            close_map_store(self.map_store)
        else:
            discard_map_store(self.map_store)
        self.whole.close()


async def assemble(
    orders: Orders,
    config: "Config | None",
    execution: ThreadExecution,
    send: Callable[[link.ToFront], None],
    unlock: Callable[[ObjectStore, VolumeFile], bytes] | None = None,
) -> Assembly:
    """Build the worker; `send` gets what it tells its front. The caller holds the state directory's lock.
    `unlock` finds the data key of an encrypted volume, given its own part of the store, where the orders do not hold it.
    Raises NotFound (no such volume), AttachRefused, KeyRefused, CorruptFormat, LocalDiskFailed, ConfigError, store errors."""
    # The worker repeats by itself, for as long as it takes; a second layer that does would only hide outages from it.
    policy = RetryPolicy(attempts_max=ATTEMPTS, deadline_s=DEADLINE_S)
    whole = build_store(orders.store_url, config=config, policy=policy)
    own = VolumePart(whole, orders.name)
    volume = await execution.run(open_volume_file, own, orders.name)
    data_key = bytes.fromhex(orders.data_key)
    if unlock is not None:
        data_key = await execution.run(unlock, own, volume)
    cipher = cipher_of(volume, data_key, os.urandom)
    await execution.run(refuse_unfenced_store, own, orders)
    geometry = volume.geometry
    directory = StateDirectory(Path(orders.state_dir))
    map_store = await execution.run(open_map_store, directory.map_path, str(volume.identity))
    journal = DirectoryJournal(directory, volume.identity, orders.journal_bytes, geometry.sector_bytes)
    worker = Worker(
        volume=volume,
        store=with_ancestors(own, volume),
        extent_map=ExtentMap(map_store, geometry),
        local=DirectoryObjects(directory.objects_path, orders.objects_bytes),
        slots=SlotFile(Path(orders.cache_file), geometry.frame_bytes),
        journal=journal,
        execution=execution,
        settings=WorkerSettings(
            commit=CommitSettings(
                commit_bytes=orders.commit_bytes,
                interval_s=orders.commit_interval_s,
                per_hour_max=orders.commits_per_hour_max,
                compression=volume.compression,
            ),
            accept_loss=orders.accept_loss,
            take_over=orders.take_over,
            flush_to=orders.flush,
            lease_s=orders.lease_s,
            outwait=orders.outwait,
            surely_dead=surely_dead,
            note={
                "host": socket.gethostname(),
                "journal_bytes": orders.journal_bytes,
                **here(*sorted({os.getpid(), *orders.processes})),
            },
        ),
        nonce=lambda: uuid4().bytes,
        cipher=cipher,
        send=send,
        store_counters=whole.snapshot,
    )
    return Assembly(worker, volume, journal, map_store, whole)
