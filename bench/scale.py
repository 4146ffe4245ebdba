"""What the size of a volume costs: attaching on a bare host, memory, checkpoints and the discard of everything.

One rule: the volumes are made of their map alone (`tests.blockdev.scale_volume`), and everything after that is the real
daemon: what attaching, writing, checkpoints and discards need does not depend on the data behind the map. The map of a
volume whose `pages_apart` is n has every n-th page only, and says so.
"""

import json
import random
import shutil
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import cost, volume
from bench.initiator import BLOCK_BYTES, MIB
from bench.processes import BenchFailed, memory_bytes
from bench.store import Client, Stats
from blockdev.place import open_store, resolve, volume_store
from s3core.settings import load_config
from tests.blockdev import scale_volume
from tests.system.raw_initiator import GOOD, RawInitiator

TIB = 1024 * 1024 * MIB
NAME = "large"
JOURNAL_BYTES = 64 * MIB
"""Making a journal of the default size writes 1 GiB to the disk, which is no matter of the volume's size."""
CHANGES = (1, 100, 1000)
SCATTERED = 1000
UNMAP_SECTORS_MAX = 0xFFFFF800
"""What one descriptor can say, down to a whole MiB: an end within a block is written out as zeros."""
PURGE_S_MAX = 900.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Volume:
    tebibytes: float
    pages_apart: int

    @property
    def name(self) -> str:
        mapped = "all mapped" if self.pages_apart == 1 else f"every {self.pages_apart}th page mapped"
        return f"{self.tebibytes:g} TiB, {mapped}"


FULL = (Volume(1, 1), Volume(16, 16))
QUICK = (Volume(1, 16),)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint after so many changed extents."""

    extents: int
    puts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Discarded:
    """UNMAP of the whole volume. `answer_s`: until it was acknowledged; `purge_s`: until the map had worked it off.
    `puts`: of the one commit that carries it; `journal_bytes`: what it took there."""

    answer_s: float
    journal_bytes: int
    commit_puts: int
    commit_bytes: int
    purge_s: float
    purge: Stats
    worker_peak_bytes: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """One volume. Memory is resident bytes of front and worker."""

    name: str
    pages: int
    root_bytes: int
    attach_s: float
    attach: Stats
    memory_attached: tuple[int, int]
    writes: Stats
    memory_written: tuple[int, int]
    checkpoints: list[Checkpoint]
    attach_again_s: float
    """On the host that has the map."""
    discarded: Discarded


def ask(control: Path, do: str, **arguments: Any) -> dict[str, Any]:
    """One operation through the control socket. Raises BenchFailed if it is refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(control))
        connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline() or b"{}")
    if not answer.get("ok"):
        raise BenchFailed(f"{do}: {answer.get('error', 'the daemon hung up')}")
    result: dict[str, Any] = answer["result"]
    return result


def unmap_all(url: str) -> float:
    """One UNMAP of the whole volume; seconds until it is acknowledged."""
    initiator = RawInitiator(url)
    try:
        ranges = [
            struct.pack(">QI4x", first, min(UNMAP_SECTORS_MAX, initiator.sectors - first))
            for first in range(0, initiator.sectors, UNMAP_SECTORS_MAX)
        ]
        body = b"".join(ranges)
        parameters = struct.pack(">HH4x", len(body) + 6, len(body)) + body
        begin = time.monotonic()
        tag = initiator.send(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(parameters), 0), parameters)
        answer = initiator.wait(tag)
        if answer.status != GOOD:
            raise BenchFailed(f"UNMAP of the whole volume: status {answer.status:#x}, sense {answer.sense}")
        return time.monotonic() - begin
    finally:
        initiator.close()


class ScaleBench:
    """One volume after the other on one store, which is empty before and after."""

    def __init__(self, directory: Path, store: Client, say: Say) -> None:
        self._directory = directory
        self._store = store
        self._say = say

    def run(self, volumes: tuple[Volume, ...]) -> list[Scaled]:
        self._store.set_latency(0)
        return [self._one(one) for one in volumes]

    def _one(self, one: Volume) -> Scaled:
        self._say(f"scale: make {one.name}")
        config = volume.configure(self._directory, NAME, self._store.port, JOURNAL_BYTES)
        place = resolve(load_config(config), NAME)
        made = scale_volume.make(
            volume_store(open_store(load_config(config), place.store_url), NAME),
            one.tebibytes,
            pages_apart=one.pages_apart,
        )
        size_bytes = int(one.tebibytes * TIB)
        source = random.Random(21)
        self._say(f"scale: attach {one.name}")
        before = self._store.stats()
        with self._serve(config) as served:
            attach_s, attach = served.attach_s, self._store.stats().since(before)
            attached = self._memory(served)
            before = self._store.stats()
            self._scatter(served.url, size_bytes, SCATTERED, source)
            self._ask("flush")
            writes, written = self._store.stats().since(before), self._memory(served)
            self._ask("checkpoint")
            checkpoints = []
            for count in CHANGES:
                self._say(f"scale: checkpoint after {count:,} changed extents")
                self._scatter(served.url, size_bytes, count, source)
                self._ask("flush")
                before = self._store.stats()
                self._ask("checkpoint")
                stats = self._store.stats().since(before)
                kinds = ("page", "root", "head")
                checkpoints.append(
                    Checkpoint(
                        count,
                        sum(stats.puts_of.get(kind, 0) for kind in kinds),
                        sum(stats.bytes_of.get(kind, 0) for kind in kinds),
                    )
                )
        with self._serve(config) as served:
            again_s = served.attach_s
            self._say(f"scale: discard {one.name}")
            discarded = self._discard(served)
        shutil.rmtree(self._directory / "scale")
        self._store.remove(volume.BUCKET)
        return Scaled(
            one.name,
            made.pages,
            made.root_bytes,
            attach_s,
            attach,
            attached,
            writes,
            written,
            checkpoints,
            again_s,
            discarded,
        )

    def _serve(self, config: Path) -> volume.Served:
        return volume.Served(config, NAME, state="scale")

    def _ask(self, do: str) -> dict[str, Any]:
        return ask(self._directory / "scale" / NAME / "control", do)

    def _memory(self, served: volume.Served) -> tuple[int, int]:
        return memory_bytes(served.pid), memory_bytes(served.worker_pid)

    def _scatter(self, url: str, size_bytes: int, count: int, source: random.Random) -> None:
        places = source.sample(range(size_bytes // MIB), count)
        cost.write(url, ((place * MIB, source.randbytes(BLOCK_BYTES)) for place in places))

    def _discard(self, served: volume.Served) -> Discarded:
        self._ask("flush")
        head = self._ask("status")["front"]["journal_head"]
        before = self._store.stats()
        answer_s = unmap_all(served.url)
        journal_bytes = int(self._ask("status")["front"]["journal_head"] - head)
        self._ask("flush")
        commit = self._store.stats().since(before)
        before, begin = self._store.stats(), time.monotonic()
        while self._ask("status")["worker"]["extents_mapped"]:
            if time.monotonic() - begin > PURGE_S_MAX:
                raise BenchFailed(f"the discard is not worked off after {PURGE_S_MAX:.0f} s")
            time.sleep(0.25)
        purge_s = time.monotonic() - begin
        stats = self._store.stats().since(before)
        return Discarded(
            answer_s,
            journal_bytes,
            commit.puts_of.get("log", 0),
            commit.bytes_of.get("log", 0),
            purge_s,
            stats,
            self._memory(served)[1],
        )


def tables(found: list[Scaled]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells."""
    header = ["", *(one.name for one in found)]

    def memory(pair: tuple[int, int]) -> str:
        return f"{pair[0] / MIB:,.0f} + {pair[1] / MIB:,.0f} MiB"

    def requests(stats: Stats) -> str:
        counts = f"{stats.puts} PUT, {stats.gets} GET, {stats.heads} HEAD, {stats.lists} LIST"
        return f"{counts}; {stats.bytes_out / 1024:,.0f} KiB down"

    rows: list[list[str]] = [
        ["pages of the map; newest root", *(f"{one.pages:,}; {one.root_bytes / 1024:,.0f} KiB" for one in found)],
        ["attach on a bare host", *(f"{one.attach_s:.1f} s" for one in found)],
        ["  requests", *(requests(one.attach) for one in found)],
        ["  GETs of", *(", ".join(f"{n} {kind}" for kind, n in sorted(one.attach.gets_of.items())) for one in found)],
        ["attach where the map is", *(f"{one.attach_again_s:.1f} s" for one in found)],
        ["memory after that (front + worker)", *(memory(one.memory_attached) for one in found)],
        [f"memory after {SCATTERED:,} scattered writes", *(memory(one.memory_written) for one in found)],
        ["  their requests", *(requests(one.writes) for one in found)],
    ]
    for number, count in enumerate(CHANGES):
        rows.append(
            [
                f"checkpoint after {count:,} changed extents",
                *(
                    f"{one.checkpoints[number].puts} PUT, {one.checkpoints[number].bytes / 1024:,.0f} KiB"
                    for one in found
                ),
            ]
        )
    rows += [
        ["discard of everything acknowledged after", *(f"{one.discarded.answer_s * 1000:.0f} ms" for one in found)],
        ["  in the journal", *(f"{one.discarded.journal_bytes} bytes" for one in found)],
        [
            "  its commit",
            *(f"{one.discarded.commit_puts} PUT, {one.discarded.commit_bytes} bytes" for one in found),
        ],
        ["  worked off the map after", *(f"{one.discarded.purge_s:.1f} s" for one in found)],
        ["  with", *(requests(one.discarded.purge) for one in found)],
        ["  worker's memory then", *(f"{one.discarded.worker_peak_bytes / MIB:,.0f} MiB" for one in found)],
    ]
    return [("Scale: volumes made of their map alone", header, rows)]


def document(found: list[Scaled]) -> list[dict[str, object]]:
    return [asdict(one) for one in found]
