"""Transactions of SQLite, each of them on disk before the next begins: `python -m bench.peers.wal_loop FILE SECONDS`.

One rule: what an application with a small database does, with SQLite's own defaults beside `journal_mode=WAL` and
`synchronous=FULL`: a row is added, an older one is changed, and COMMIT returns after an fsync of the log.
Prints a line of JSON: transactions, seconds, and the slowest in milliseconds.
"""

import json
import random
import sqlite3
import sys
import time

_PAYLOAD_BYTES = 120


def run(file: str, seconds: float) -> dict[str, float]:
    """Raises sqlite3.OperationalError where the file system is none for it."""
    source = random.Random(1)
    database = sqlite3.connect(file, isolation_level=None)
    mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"SQLite chose journal_mode={mode}, not WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, at REAL, body BLOB)")
    count, slowest = 0, 0.0
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO entry (at, body) VALUES (?, ?)", (now, source.randbytes(_PAYLOAD_BYTES)))
        database.execute("UPDATE entry SET at = ? WHERE id = ?", (now, source.randrange(count + 1) + 1))
        database.execute("COMMIT")
        count += 1
        slowest = max(slowest, time.perf_counter() - now)
    took = time.perf_counter() - begin
    database.close()
    return {"transactions": count, "seconds": took, "slowest_ms": slowest * 1000}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], float(sys.argv[2]))))
