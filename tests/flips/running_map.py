"""Reads a sealed map in a process of its own, which may die of it, while bits of the file are flipped under LMDB.

    python -m tests.flips.running_map PATH FIRST STEP

Prints "N ..." before flip N and what came of it after.
"""

import os
import random
import sys
from pathlib import Path

from blockdev.errors import CorruptFormat, LocalDiskFailed
from blockdev.extents.extent_map import TABLES
from blockdev.extents.lmdb_map import DATA, LmdbKeyValueStore, open_map_store
from tests.flips.bits import STRETCH

ITEMS = 120


def items() -> dict[str, dict[bytes, bytes]]:
    rng = random.Random(4)
    return {
        table: {number.to_bytes(8, "big"): rng.randbytes(number % 100) for number in range(ITEMS)} for table in TABLES
    }


def fill(store: LmdbKeyValueStore) -> None:
    with store.begin(write=True) as txn:
        for table, content in items().items():
            for key, value in content.items():
                txn.put(table, key, value)


def look(store: LmdbKeyValueStore, content: dict[str, dict[bytes, bytes]]) -> str:
    """ "right", "refused" when something is, or "WRONG" with what."""
    refused = False
    for table, expected in content.items():
        for key, value in expected.items():
            try:
                with store.begin(write=False) as txn:
                    found = txn.get(table, key)
            except (CorruptFormat, LocalDiskFailed):
                refused = True
            else:
                if found != value:
                    return f"WRONG {table} {key.hex()} gives {found!r}"
        try:
            with store.begin(write=False) as txn:
                scanned = list(txn.scan(table))
        except (CorruptFormat, LocalDiskFailed):
            refused = True
        else:
            if scanned != list(expected.items()):
                return f"WRONG {table} scanned"
    return "refused" if refused else "right"


def main(path: Path, first: int, step: int) -> None:
    store = open_map_store(path, "me")
    content = items()
    file = os.open(path / DATA, os.O_RDWR)
    for number in range(first, os.fstat(file).st_size // STRETCH, step):
        print(number, end=" ", flush=True)
        at = number * STRETCH + number * 5 % STRETCH
        byte = os.pread(file, 1, at)
        os.pwrite(file, bytes([byte[0] ^ 1 << number * 3 % 8]), at)
        outcome = look(store, content)
        os.pwrite(file, byte, at)
        print(outcome, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
