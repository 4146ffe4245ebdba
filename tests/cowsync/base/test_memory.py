"""How much memory a base takes does not depend on how many rows it has."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cowsync.base.difference import differences
from cowsync.base.layers import read
from cowsync.base.snapshot import Facts, Totals
from cowsync.base.state import State
from cowsync.rows import Rows
from s3core.file import FileStore

ROWS = 600_000
MIB = 1 << 20


def rows_of(numbers: range, etag: int = 0) -> Iterator[Rows]:
    """Pages as a listing gives them."""
    for start in range(0, len(numbers), 1000):
        page = numbers[start : start + 1000]
        empty = [b""] * len(page)
        etags = [b"%032x" % ((n + etag) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)) for n in page]
        keys = [b"archive/2026/%09d.bin" % n for n in page]
        times = [b"2026-11-21T22:18:%02d.000Z" % (n % 60) for n in page]
        yield Rows(keys, [n % 9999 for n in page], etags, times, empty, empty, etags, empty, [0] * len(page))


def peak(folder: Path) -> dict[str, int]:
    """A first publish, a second that is folded, a scan against it; the peak of memory after each, and what was found."""
    # What has been imported is there before; what counts is what rows add to it.
    state = State(FileStore(folder / "store"), folder / "cache", workers=2)
    found = {"at first": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    for run, rows in enumerate((rows_of(range(ROWS)), rows_of(range(0, ROWS, 8), etag=1)), 1):
        facts = Facts(run, "2026-11-21T22:18:54Z", "s3://source", "s3://mirror", ((b"", None),))
        head = state.publish(state.head(), rows, facts, Totals())
    layers = state.snapshot(head.current).layers
    found["layers"] = len(layers)
    found["changed"] = sum(len(change.now) for change in differences(read(layers, state), rows_of(range(ROWS))))
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """600,000 rows as lists take 166 MiB (measured); this takes 48."""
    command = [sys.executable, "-m", "tests.cowsync.base.test_memory", str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=250).stdout)
    assert found["layers"] == 1
    assert found["changed"] == ROWS // 8
    assert found["peak"] - found["at first"] < 110 * MIB, found


if __name__ == "__main__":
    print(json.dumps(peak(Path(sys.argv[1]))))
