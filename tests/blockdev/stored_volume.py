"""A volume with some of everything in a store: extents, segments, inline patches, discards, folds, roots, pages."""

import asyncio
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from blockdev import keys
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.collector import CollectorSettings
from blockdev.engine.destager import CommitSettings
from blockdev.engine.worker import WorkerSettings
from blockdev.place import volume_store
from blockdev.segments import paths, volume_file
from blockdev.segments.key_slot import Secret
from blockdev.segments.volume_file import cipher_of
from blockdev.units import KIB, MIB
from s3core.store import ObjectStore
from tests.blockdev.worker_bench import WorkerBench
from tests.blockdev.worker_bench import volume_file as bench_volume

SIZE_BYTES = 4 * MIB
SMALL = WorkerSettings(
    lease_s=0.3,
    commit=CommitSettings(commit_bytes=1 * MIB, inline_bytes_max=8 * KIB, segment_bytes=64 * KIB),
    checkpoint=CheckpointSettings(records=4),
    collector=CollectorSettings(wave_bytes=64 * KIB, nearly_empty_bytes=64 * KIB, slice_bytes=256 * KIB),
)
PATIENT = WorkerSettings(
    lease_s=0.3,
    commit=CommitSettings(commit_bytes=1 * MIB, inline_bytes_max=8 * KIB, segment_bytes=64 * KIB),
)
"""No checkpoint but the last, no collection: every commit can still be read."""


@dataclass
class Stored:
    """`content` is what the volume holds; `history` what it held after the commits that were waited for."""

    name: str
    own: ObjectStore
    content: bytes = field(repr=False)
    history: dict[int, bytes] = field(default_factory=dict, repr=False)

    def listing(self) -> list[str]:
        return [info.key for info in self.own.list()]


def store_volume(
    store: ObjectStore,
    directory: Path,
    *,
    name: str = "vm1",
    seed: int = 1,
    rounds: int = 14,
    settings: WorkerSettings = SMALL,
    detach: bool = True,
    secret: Secret | None = None,
) -> Stored:
    """Make the volume and write to it through a worker, as a host would. With a `secret` it is encrypted."""
    directory.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_store_volume(store, directory, name, seed, rounds, settings, detach, secret))


async def _store_volume(
    store: ObjectStore,
    directory: Path,
    name: str,
    seed: int,
    rounds: int,
    settings: WorkerSettings,
    detach: bool,
    secret: Secret | None,
) -> Stored:
    volume = replace(bench_volume(SIZE_BYTES, extent_bytes=128 * KIB, frame_bytes=16 * KIB), name=name)
    own = volume_store(store, name)
    volume, slot, data_key = keys.sealed(volume, secret, random=os.urandom)
    with keys.slot_in_place(own, slot):
        own.put_if_absent(paths.volume_file(), volume_file.encode(volume))
    rng = random.Random(seed)
    bench = WorkerBench(
        directory, own, volume=volume, settings=settings, cipher=cipher_of(volume, data_key, os.urandom)
    )
    await bench.attach()
    model = bytearray(SIZE_BYTES)
    stored = Stored(name, own, b"")
    for turn in range(rounds):
        for _ in range(2 if turn % 3 == 0 else 20):
            lba = rng.randrange(SIZE_BYTES // 512)
            count = min(rng.choice([1, 1, 8, 8, 40, 300]), SIZE_BYTES // 512 - lba)
            if rng.random() < 0.06:
                lba -= lba % 8
                count = min(rng.choice([8, 64, 512]), SIZE_BYTES // 512 - lba)
                bench.unmap(lba, count)
                data = bytes(count * 512)
            else:
                data = rng.choice([rng.randbytes(count * 512), bytes([rng.randrange(256)]) * (count * 512)])
                bench.write(lba, data)
            model[lba * 512 : (lba + count) * 512] = data
        await bench.commit()
        state = bench.map.state
        assert state is not None
        stored.history[state.seq] = bytes(model)
    if detach:
        await bench.detach()
    else:
        await bench.crash()
    stored.content = bytes(model)
    return stored
