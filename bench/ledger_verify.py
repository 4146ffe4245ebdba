"""What full verification costs as `s3integrity verify --full` does it: bundles and tiles read from files, hashed, compared.

One rule: the whole of the work counts, reading and searching included. A log that does not verify fails the run.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.processes import BenchFailed
from integrity import record
from integrity.layout import kept_checkpoint_key, tile_key
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.note import Signer
from integrity.tlog.tiles import ENTRIES, WIDTH, Edge, encode_bundle, tile_path
from integrity.tlog.tree import leaf_hash
from integrity.verification.lanes import Lanes
from integrity.verification.walk import stretches, walk
from s3core.file import FileStore

ORIGIN = "example.com/bench/pve1.1"
WRITER = "pve1.1"
CHECKPOINT_EVERY = 1024
"""About as often as a writer with default settings signs one."""
PASSES = 3
PARSE_EVERY = 64
SIZE = "size"
"""The file beside a log that was made, which holds how many records there are."""


@dataclass(frozen=True, slots=True)
class Walk:
    """`processes` 0: in this process, and `seconds` are of its processor; else elapsed, starting processes included."""

    name: str
    processes: int
    records: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.records / self.seconds


def walks(records: int, within: Path) -> list[Walk]:
    """The rates of logs with so many records each in a folder below `within` that is removed again."""
    folder = tempfile.mkdtemp(prefix="bucketworks-bench-", dir=within)
    try:
        found = []
        for name, intents in (("a feed's events", False), ("our tools' intents and outcomes", True)):
            store = FileStore(f"{folder}/{intents}")
            signer = Signer(ORIGIN, bytes(32))
            edge = Edge()
            for index, bundle in enumerate(_bundles(records, edge, signer, store, intents=intents)):
                store.put(tile_key(WRITER, tile_path(ENTRIES, index)), bundle)
            size, keys = edge.size, [signer.vkey]
            for said, every in ((f"1 in {PARSE_EVERY} as JSON", PARSE_EVERY), ("all as JSON", 1)):
                seconds = [_walked(store, size, keys, every) for _ in range(PASSES if every > 1 else 1)]
                found.append(Walk(f"{name}; {said}", 0, size, median(seconds)))
            if intents:
                continue
            for processes in (1, 2):
                if processes > (os.cpu_count() or 1):
                    continue
                begin = time.perf_counter()
                with Lanes(store, count=processes, url=f"file://{folder}/{intents}") as lanes:
                    wanted = stretches(WRITER, ORIGIN, size, keys, parse_every=PARSE_EVERY)
                    done = sum(1 for _ in lanes.walk(wanted, max(size, 1 << 20)))
                if not done:
                    raise BenchFailed("nothing was walked")
                found.append(Walk(f"as the first, {processes} processes", processes, size, time.perf_counter() - begin))
        return found
    finally:
        shutil.rmtree(folder)


def _walked(store: FileStore, size: int, keys: list[str], every: int) -> float:
    """Seconds of processor for the whole log."""
    begin = time.process_time()
    for stretch in stretches(WRITER, ORIGIN, size, keys, parse_every=every):
        walked = walk(store, stretch)
        if walked.troubles or walked.open or walked.records != (stretch.last - stretch.first) * WIDTH:
            raise BenchFailed(f"the benchmark's own log does not verify: {walked.troubles[:1]}")
    return time.process_time() - begin


def _bundles(records: int, edge: Edge, signer: Signer, store: FileStore, *, intents: bool = False) -> Iterator[bytes]:
    """Bundles of records, and beside them the tiles and the checkpoints that records name. With `intents` every other record
    is the intent of the next one."""
    after = record.START
    named = (0, b"")
    event: dict[str, object] = {
        "op": "put",
        "phase": "observed",
        "source": "client",
        "endpoint": "ceph",
        "bucket": "images",
        "etag": "9e107d9d372bb6826bd81d3542a419d6",
        "size": 123_456_789,
        "request": "tx00000abcdef0123456789-0065a1b2c3-4f5e-default-0000000000000000000000",
        "who": {"kind": "tool", "name": "cowsync", "host": "pve1", "user": "root"},
    }
    for begin in range(0, records // WIDTH * WIDTH, WIDTH):
        made, hashes = [], []
        for n in range(begin, begin + WIDTH):
            told = event | {"key": f"machines/vm-{n:08d}/disk-0.qcow2"}
            if intents:
                told |= {"phase": "done", "intent": n - 1} if n % 2 else {"phase": "intent"}
            if (n + 1) % CHECKPOINT_EVERY == 0:
                detail = {"size": named[0], "root": named[1].hex()}
                told = {"op": "checkpoint", "phase": "done", "source": "ledger", "detail": detail}
                if intents:
                    told["intent"] = n - 1
            data = record.encode(told, writer=WRITER, n=n, at="2026-11-22T06:00:00.000000Z", after=after)
            made.append(data)
            after = leaf_hash(data)
            hashes.append(after)
        for tile, content in edge.extend(hashes):
            store.put(tile_key(WRITER, tile.path), content)
        if edge.size % CHECKPOINT_EVERY == 0:
            named = edge.size, edge.root()
            note = sign_checkpoint(Checkpoint(ORIGIN, *named), signer)
            store.put(kept_checkpoint_key(WRITER, edge.size), note)
        yield encode_bundle(made)


def make(folder: Path, records: int) -> None:
    """A log of a feed's events in `folder`, its size beside it: what `walk_log` goes through."""
    store = FileStore(str(folder / "log"))
    edge = Edge()
    for index, bundle in enumerate(_bundles(records, edge, Signer(ORIGIN, bytes(32)), store)):
        store.put(tile_key(WRITER, tile_path(ENTRIES, index)), bundle)
    (folder / SIZE).write_text(str(edge.size))


def walk_log(folder: Path) -> float:
    """Verify all of it in this process, as `s3integrity verify --full` does; seconds of processor."""
    size = int((folder / SIZE).read_text())
    return _walked(FileStore(str(folder / "log")), size, [Signer(ORIGIN, bytes(32)).vkey], PARSE_EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger_verify", description="Rates of full verification.")
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make a log and end")
    parser.add_argument("--walk", type=Path, metavar="FOLDER", help="verify a log that was made, once")
    options = parser.parse_args()
    if options.make:
        make(options.make, options.records)
    elif options.walk:
        print(f"{walk_log(options.walk):.3f} s of processor")
    else:
        for one in walks(options.records, Path(tempfile.gettempdir())):
            print(f"{one.rate:12,.0f} records/s  {one.name}")


if __name__ == "__main__":
    main()
