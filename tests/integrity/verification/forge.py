"""A ledger made by hand, out of nothing but the formats: what a writer would write, and what somebody with its keys could.

It shares no code with the writer, so that verification is not tested against its own mirror image; `store` is in memory.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from integrity.keys import Introduction, sign_introduction
from integrity.layout import checkpoint_key, edge_key, epoch_key, kept_checkpoint_key, origin_of, tile_key
from integrity.record import START, encode, timestamp
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.note import Signer
from integrity.tlog.tiles import ENTRIES, WIDTH, Edge, encode_bundle, tile_path
from integrity.tlog.tree import complete_root, leaf_hash, root_at
from integrity.verification.evidence import Evidence
from integrity.verification.pins import Pins
from s3core.memory import MemoryStore
from s3core.store import ObjectStore

ORIGIN = "example.com/ledger"
T0 = 1_790_000_000.0


@dataclass
class Forged:
    """One log as whoever has its keys makes it. Times go on by a second with each record."""

    store: ObjectStore
    writer: str
    origin: str
    seeds: list[bytes]
    epoch: int = 0
    records: list[bytes] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    published: int = 0
    now: float = T0

    def copy(self, store: ObjectStore) -> "Forged":
        """The same log and keys, for another store."""
        return replace(self, store=store, records=list(self.records), hashes=list(self.hashes))

    @property
    def signer(self) -> Signer:
        return Signer(self.origin, self.seeds[self.epoch])

    def add(self, **event: Any) -> int:
        """One more record, not published yet; its number."""
        self.now += 1
        event = {"op": "put", "phase": "observed", "source": "client", **event}
        return self.take(event, timestamp(self.now))

    def take(self, event: dict[str, Any], at: str, **changed: Any) -> int:
        number = len(self.records)
        after = self.hashes[-1] if self.hashes else START
        data = encode(event, writer=self.writer, n=number, at=at, after=changed.get("after", after))
        self.records.append(data)
        self.hashes.append(leaf_hash(data))
        return number

    def cut(self, size: int) -> None:
        """Forget the records from `size` on; nothing is taken out of the store."""
        del self.records[size:], self.hashes[size:]
        self.published = min(self.published, size)

    def root(self, size: int) -> bytes:
        def nodes(wanted: Any) -> list[bytes]:
            return [complete_root(self.hashes[index << level : index + 1 << level]) for level, index in wanted]

        return root_at(size, nodes)

    def publish(self) -> int:
        """Append the checkpoint record, put bundles, tiles and checkpoints; the size."""
        detail = {"size": self.published, "root": self.root(self.published).hex()} if self.published else {}
        self.add(op="checkpoint", phase="done", source="ledger", detail=detail)
        return self.put()

    def put(self, *, everything: bool = False) -> int:
        """Put what the log has now under its newest key, with no further record."""
        size = len(self.records)
        self.put_tiles(0 if everything else self.published)
        edge = Edge()
        edge.extend(self.hashes)
        self.store.put(edge_key(self.writer, size), edge.encode())
        note = sign_checkpoint(Checkpoint(self.origin, size, self.root(size)), self.signer)
        self.store.put(kept_checkpoint_key(self.writer, size), note)
        self.store.put(checkpoint_key(self.writer), note)
        self.published = size
        return size

    def put_tiles(self, begin: int = 0) -> None:
        size = len(self.records)
        for first in range(begin // WIDTH * WIDTH, size, WIDTH):
            part = self.records[first : first + WIDTH]
            self._put(tile_path(ENTRIES, first // WIDTH, len(part)), encode_bundle(part))
        row = self.hashes
        level = 0
        while row:
            for first in range(0, len(row), WIDTH):
                tile = row[first : first + WIDTH]
                self._put(tile_path(level, first // WIDTH, len(tile)), b"".join(tile))
            row = [complete_root(row[first : first + WIDTH]) for first in range(0, len(row) // WIDTH * WIDTH, WIDTH)]
            level += 1

    def rotate(self) -> int:
        """The next epoch: a key record, a checkpoint by the old key, and its note."""
        new = Signer(self.origin, self.seeds[self.epoch + 1])
        self.add(op="key", phase="done", source="ledger", detail={"epoch": self.epoch + 1, "vkey": new.vkey})
        size = self.publish()
        note = sign_introduction(
            Introduction(self.origin, self.epoch + 1, size, self.root(size), new.vkey), self.signer, new
        )
        self.store.put(epoch_key(self.writer, self.epoch + 1), note)
        self.epoch += 1
        return size

    def _put(self, path: str, data: bytes) -> None:
        self.store.put(tile_key(self.writer, path), data)


class World:
    """A ledger with its own log and some writers, and a verifier of it."""

    def __init__(self, writers: tuple[str, ...] = ("pve1.1", "pve1.2"), store: ObjectStore | None = None) -> None:
        self.store: ObjectStore = store or MemoryStore()
        self.ledger = self.log("ledger")
        self.logs = {name: self.log(name) for name in writers}
        self.pins = Pins(ORIGIN, self.vkey)
        for name, log in self.logs.items():
            self.ledger.add(op="enrol", phase="done", source="ledger", detail={"writer": name, "vkey": log.signer.vkey})

    def log(self, writer: str) -> Forged:
        seeds = [writer.encode().ljust(31, b".") + bytes([epoch]) for epoch in range(4)]
        return Forged(self.store, writer, origin_of(ORIGIN, writer), seeds)

    @property
    def vkey(self) -> str:
        return Signer(ORIGIN, self.ledger.seeds[0]).vkey

    def fill(self, records: int = 600, *, each: int = 150) -> None:
        """Records in every writer's log, a checkpoint after `each`, and the heads sealed."""
        for name, log in self.logs.items():
            for number in range(records):
                log.add(bucket="data", key=f"{name}/{number}", size=number, who={"user": "backup", "host": "pve1"})
                if (number + 1) % each == 0:
                    log.publish()
            log.publish()
        self.seal()

    def seal(self, **heads: Forged) -> None:
        """Heads of all writers into the ledger's log; `heads` may name other logs than those that are."""
        now = max(log.now for log in self.logs.values())
        self.ledger.now = max(now, self.ledger.now)
        told = [
            {
                "writer": name,
                "size": log.published,
                "root": log.root(log.published).hex(),
                "epoch": log.epoch,
                "vkey": log.signer.vkey,
            }
            for name, log in (self.logs | heads).items()
            if log.published
        ]
        self.ledger.add(op="heads", phase="done", source="ledger", detail={"heads": told})
        self.ledger.publish()

    def evidence(self, **changed: Any) -> Evidence:
        now = max(self.ledger.now, *(log.now for log in self.logs.values())) + 5
        known: dict[str, Any] = {
            "store": self.store,
            "origin": ORIGIN,
            "vkey": self.vkey,
            "pins": self.pins,
            "now": now,
        }
        return Evidence(**(known | changed))

    def kept(self) -> dict[str, bytes]:
        """A copy of everything in the bucket."""
        return {one.key: self.store.get(one.key).data for one in self.store.list()}

    def put_back(self, kept: dict[str, bytes]) -> None:
        """The bucket as it was when `kept` was taken."""
        self.store.delete_many([one.key for one in self.store.list()])
        for key, data in kept.items():
            self.store.put(key, data)
