"""Golden bytes of a ledger: records in a local log, the checkpoint over them, the note that introduces the next key.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_ledger` writes those missing.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from integrity.keys import Introduction, open_introduction, sign_introduction
from integrity.record import START, decode, encode
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.note import Signer
from integrity.tlog.tiles import Edge
from integrity.tlog.tree import leaf_hash
from integrity.wal import Wal, encode_file

GOLDEN = Path(__file__).parent / "golden"
ORIGIN = "example.com/ledger/pve1.1"
OLD, NEW = Signer(ORIGIN, bytes(range(32))), Signer(ORIGIN, bytes(range(32, 64)))
FIRST = 300
EVENTS: list[dict[str, object]] = [
    {
        "op": "put",
        "phase": "intent",
        "source": "client",
        "endpoint": "ceph",
        "bucket": "images",
        "key": "a/ü\u0007\U0001f600",
    },
    {
        "op": "put",
        "phase": "done",
        "source": "client",
        "endpoint": "ceph",
        "bucket": "images",
        "key": "a/ü\u0007\U0001f600",
        "intent": FIRST,
        "etag": "9e107d9d372bb6826bd81d3542a419d6",
        "version": "v1",
        "size": 43,
        "sums": {"sha256": "d7a8fbb307d7809469ca9abcb0082e4f8d5651e46d3cdb762d02d0bf37c9e592"},
        "previous": {"etag": "d41d8cd98f00b204e9800998ecf8427e", "version": "v0", "size": 0},
        "who": {"kind": "tool", "name": "cowsync", "host": "pve1", "user": "root"},
        "request": "tx1",
        "time": "2026-11-22T06:00:00.000000Z",
    },
    {"op": "key", "phase": "done", "source": "ledger", "detail": {"epoch": 1, "vkey": NEW.vkey}},
    {"op": "checkpoint", "phase": "done", "source": "ledger", "detail": {"size": 0, "root": "e3b0" + "0" * 60}},
]


def records() -> list[bytes]:
    after, made = START, []
    for n, event in enumerate(EVENTS, FIRST):
        made.append(encode(event, writer="pve1.1", n=n, at="2026-11-22T06:00:00.000001Z", after=after))
        after = leaf_hash(made[-1])
    return made


def checkpoint() -> Checkpoint:
    edge = Edge()
    edge.extend(map(leaf_hash, records()))
    return Checkpoint(ORIGIN, len(EVENTS), edge.root())


def introduction() -> Introduction:
    return Introduction(ORIGIN, 1, len(EVENTS), checkpoint().root, NEW.vkey)


def local_log() -> bytes:
    made = records()
    return encode_file(FIRST, [made[:1], made[1:]])


WRITTEN: dict[str, Callable[[], bytes]] = {
    "ledger-wal.v1.bin": local_log,
    "ledger-writer-checkpoint.v1.note": lambda: sign_checkpoint(checkpoint(), OLD),
    "ledger-epoch.v1.note": lambda: sign_introduction(introduction(), OLD, NEW),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_todays_code_writes_the_same(name: str) -> None:
    assert WRITTEN[name]() == (GOLDEN / name).read_bytes()


def test_todays_code_reads_the_local_log(tmp_path: Path) -> None:
    (tmp_path / f"{FIRST:016d}.wal").write_bytes((GOLDEN / "ledger-wal.v1.bin").read_bytes())
    wal = Wal.open(tmp_path, FIRST)
    found = [decode(data) for data in wal.records(FIRST, wal.end)]
    assert [{name: one[name] for name in event} for one, event in zip(found, EVENTS, strict=True)] == EVENTS


def test_todays_code_reads_the_notes() -> None:
    note = (GOLDEN / "ledger-writer-checkpoint.v1.note").read_bytes()
    assert open_checkpoint(note, ORIGIN, [OLD.verifier]) == checkpoint()
    note = (GOLDEN / "ledger-epoch.v1.note").read_bytes()
    assert open_introduction(note, ORIGIN, 1, OLD.verifier) == introduction()


if __name__ == "__main__":
    for name, write in WRITTEN.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(write())
