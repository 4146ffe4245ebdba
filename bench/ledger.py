"""What a ledger costs: verifying it, recording into it, proving a record of a large one. No server: bytes in memory.

One rule: one processor, and the figure is of everything that the step does, not of its hashing alone. An answer that is not
right fails the run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from bench.ledger_verify import Walk, walks
from bench.processes import BenchFailed
from bench.reconcile import AIM, reconcile
from bench.recording import Recorded, recording, table
from bench.report import DASH, TableOf
from integrity import record
from integrity.layout import LEDGER_WRITER, edge_key, log_prefix
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.note import Signer
from integrity.tlog.proof import Proof, check_proof, parse_proof, write_proof
from integrity.tlog.tiles import (
    ENTRIES,
    HEIGHT,
    WIDTH,
    Edge,
    TileNodes,
    chained_bundle,
    encode_bundle,
    levels,
    split_bundle,
    tile_at,
    widths,
)
from integrity.tlog.tree import complete_root, inclusion_proof, leaf_hash
from s3core.errors import NotFound

RECORD_BYTES = 490
ORIGIN = "example.com/bench"
VERIFY_AIM = 500_000
GETS_AIM = 5


@dataclass(frozen=True, slots=True)
class LedgerPlan:
    """`records`: how many are verified; `proofs`: sizes of the logs that a record is proved to be in; `versions`: how many a
    bucket has that is held against its ledger."""

    records: int
    proofs: tuple[int, ...]
    versions: int


FULL = LedgerPlan(1_000_000, (1_000_003, 100_000_007, 4_000_000_009), 1_000_000)
QUICK = LedgerPlan(100_000, (1_000_003, 100_000_007), 100_000)


@dataclass(frozen=True, slots=True)
class Rate:
    """Records a second of one processor; `aim` 0: none was set."""

    name: str
    records: int
    seconds: float
    aim: int = 0

    @property
    def rate(self) -> float:
        return self.records / self.seconds


@dataclass(frozen=True, slots=True)
class Proved:
    """One record proved out of a log of `size`. `gets` are all objects that were read, checkpoint and record included."""

    size: int
    with_edge: bool
    gets: tuple[str, ...]
    bytes_read: int
    proof_bytes: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Kept:
    """All of the section."""

    rates: tuple[Rate, ...]
    proved: tuple[Proved, ...]
    walks: tuple[Walk, ...] = ()
    recorded: tuple[Recorded, ...] = ()


class LedgerBench:
    def __init__(self, say: Callable[[str], None], folder: Path = Path("/var/tmp")) -> None:
        self._say = say
        self._folder = folder

    def run(self, plan: LedgerPlan) -> Kept:
        self._say("ledger: verify")
        rates = verify_rates(plan.records)
        self._say("ledger: prove")
        proved = [prove(size, with_edge=with_edge) for size in plan.proofs for with_edge in (True, False)]
        self._say("ledger: reconcile")
        rates += reconcile_rates(plan.versions, self._folder)
        self._say("ledger: verify, out of files")
        walked = walks(plan.records, self._folder)
        self._say("ledger: record")
        return Kept(tuple(rates), tuple(proved), tuple(walked), tuple(recording(plan.records // 5, self._folder)))


def reconcile_rates(versions: int, folder: Path) -> list[Rate]:
    taken = reconcile(versions, folder)
    return [
        Rate("reconcile: records folded, once", taken.records, taken.fold_s),
        Rate("reconcile: versions of a listing, read from XML", taken.versions, taken.parse_s),
        Rate("reconcile: versions, read from XML and joined with the ledger's", taken.versions, taken.join_s, AIM),
    ]


def chained_records(count: int) -> tuple[list[bytes], bytes]:
    """Records of `RECORD_BYTES` as a writer makes them, chained; and the hash of the last."""
    after = record.START
    found = []
    event: dict[str, object] = {
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
    for n in range(count):
        event["key"] = f"machines/vm-{n:08d}/disk-0.qcow2"
        data = record.encode(event, writer="pve1.1", n=n, at="2026-11-22T06:00:00.000000Z", after=after)
        if n == 0:
            event["request"] = "tx" + "0" * max(2, RECORD_BYTES - len(data) + len(str(event["request"])) - 2)
            data = record.encode(event, writer="pve1.1", n=n, at="2026-11-22T06:00:00.000000Z", after=after)
        found.append(data)
        after = leaf_hash(data)
    return found, after


def verify_rates(records: int) -> list[Rate]:
    """What each step of a full verification costs, and all of them."""
    made, last = chained_records(WIDTH)
    bundle = encode_bundle(made)
    leaves, _ = chained_bundle(bundle, record.START)
    if leaves[-1] != last:
        raise BenchFailed("the chain of the benchmark's own records does not hold")
    times = max(1, records // WIDTH)
    edge = Edge()

    def everything() -> None:
        found, _ = chained_bundle(bundle, record.START)
        edge.extend(found)

    steps: list[tuple[str, Callable[[], object], int]] = [
        ("hash the leaves (the least there is)", lambda: [sha256(b"\0" + one).digest() for one in made], 0),
        ("take a bundle apart", lambda: split_bundle(bundle), 0),
        ("chain: split, hash and compare with the record before", lambda: chained_bundle(bundle, record.START), 0),
        ("tree: a tile's root", lambda: complete_root(leaves), 0),
        ("chain and tree together: what full verification does", everything, VERIFY_AIM),
    ]
    return [Rate(name, times * WIDTH, _seconds(step, times), aim) for name, step, aim in steps]


def _seconds(step: Callable[[], object], times: int) -> float:
    begin = time.process_time()
    for _ in range(times):
        step()
    return time.process_time() - begin


class Synthetic:
    """A log of any size whose records are all alike, so that any of its tiles is a hash repeated: nothing has to be kept.

    The proofs out of it are as long, and read as much, as those of any other log of that size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entry = b'{"after":"' + b"0" * 64 + b'"' + b" " * (RECORD_BYTES - 76) + b"}"
        self.full = [leaf_hash(self.entry)]
        while len(self.full) < 9:
            self.full.append(complete_root([self.full[-1]] * WIDTH))
        rows = [[self.full[level]] * widths(size, level)[1] for level in range(levels(size))]
        self.edge = Edge.from_tiles(size, rows)
        self.signer = Signer(ORIGIN, bytes(32))
        self.checkpoint = sign_checkpoint(Checkpoint(ORIGIN, size, self.edge.root()), self.signer)
        self.gets: list[str] = []
        self.bytes_read = 0

    def fetch(self, path: str) -> bytes:
        data = self._object(path)
        self.gets.append(path)
        self.bytes_read += len(data)
        return data

    def _object(self, path: str) -> bytes:
        if path == "checkpoint":
            return self.checkpoint
        if path == _edge_path(self.size):
            return self.edge.encode()
        kind, _, rest = path.removeprefix("tile/").partition("/")
        number, partial, width = rest.partition(".p/")
        index = int(number.replace("x", "").replace("/", ""))
        level = 0 if kind == "entries" else int(kind)
        full, wide = widths(self.size, level)
        if (partial and (index, int(width)) != (full, wide)) or (not partial and index >= full):
            raise NotFound(path)
        many = int(width) if partial else WIDTH
        return encode_bundle([self.entry] * many) if kind == "entries" else self.full[level] * many


def _edge_path(size: int) -> str:
    return edge_key(LEDGER_WRITER, size).removeprefix(log_prefix(LEDGER_WRITER))


def prove(size: int, *, with_edge: bool) -> Proved:
    """One record out of the middle of a log of that size: everything is read anew, and the proof is checked."""
    log = Synthetic(size)
    index = size // 3
    begin = time.perf_counter()
    checkpoint = open_checkpoint(log.fetch("checkpoint"), ORIGIN, [log.signer.verifier])
    edge = log.fetch(_edge_path(checkpoint.size)) if with_edge else None
    nodes = TileNodes(checkpoint.size, checkpoint.root, log.fetch, edge=edge)
    entries = split_bundle(log.fetch(tile_at(size, ENTRIES, index // WIDTH).path))
    nodes.offer(0, index // WIDTH, [leaf_hash(entry) for entry in entries])
    hashes = inclusion_proof(index, checkpoint.size, nodes)
    entry = entries[index % WIDTH]
    written = write_proof(Proof(index, tuple(hashes), log.checkpoint, entry))
    seconds = time.perf_counter() - begin
    check_proof(parse_proof(written), leaf_hash(entry), ORIGIN, [log.signer.verifier])
    if with_edge and len(log.gets) > GETS_AIM and size < 1 << 4 * HEIGHT:
        raise BenchFailed(f"a proof out of {size:,} records took {len(log.gets)} GETs: {', '.join(log.gets)}")
    return Proved(size, with_edge, tuple(log.gets), log.bytes_read, len(written), seconds * 1000)


def tables(kept: Kept) -> list[TableOf]:
    rates = [
        [one.name, f"{one.rate:,.0f}", f"{1e6 / one.rate:.2f}", f"{one.aim:,}" if one.aim else DASH]
        for one in kept.rates
    ]
    proved = [
        [
            f"{one.size:,}",
            "yes" if one.with_edge else "no",
            str(len(one.gets)),
            f"{one.bytes_read:,}",
            f"{one.proof_bytes:,}",
            f"{one.milliseconds:.1f}",
            str(GETS_AIM) if one.with_edge else DASH,
        ]
        for one in kept.proved
    ]
    return [
        (
            f"Ledger: records of {RECORD_BYTES} bytes, one processor",
            ["step", "records or versions/s", "us each", "aim"],
            rates,
        ),
        (
            "Ledger: one record proved, nothing known before but the key; GETs with checkpoint and record",
            ["records in the log", "edge", "GETs", "bytes read", "proof's bytes", "ms without the store", "aim"],
            proved,
        ),
        (
            "Ledger: full verification out of files, reading included",
            ["what", "records", "records/s", "measured"],
            [
                [one.name, f"{one.records:,}", f"{one.rate:,.0f}", "elapsed" if one.processes else "one processor"]
                for one in kept.walks
            ],
        ),
        table(kept.recorded),
    ]


def lines(kept: Kept) -> list[str]:
    return [f"{one.size:,} records: {', '.join(one.gets)}" for one in kept.proved]


def document(kept: Kept) -> list[dict[str, object]]:
    return [asdict(kept)]


def show(table: TableOf) -> Sequence[str]:
    """A table as plain lines, for `python -m bench.ledger`."""
    _, header, rows = table
    wide = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in [header, *rows]]


if __name__ == "__main__":
    measured = LedgerBench(print).run(FULL)
    for one in tables(measured):
        print(one[0], *show(one), "", sep="\n")
    print(*lines(measured), sep="\n")
