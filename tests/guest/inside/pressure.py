"""A host that runs out of memory, while it writes to a disk that one of its own processes serves."""

import ctypes
import mmap
import os
import time
from pathlib import Path

from tests.guest.inside.commands import run

STEP = 8 << 20


def flags(unit: str) -> dict[str, int]:
    """What the kernel calls PF_*, of each thread of a service (proc(5): field 9 of stat)."""
    group = run("systemctl", "show", "--value", "-p", "ControlGroup", unit).strip()
    found = {}
    for pid in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split():
        for task in Path(f"/proc/{pid}/task").iterdir():
            found[f"{pid}/{task.name}"] = int((task / "stat").read_text().rpartition(")")[2].split()[6])
    return found


def available() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) << 10


def write(path: str, size: int, leave: int) -> dict[str, float]:
    """Take all memory but `leave` bytes, then write `size` random bytes through the page cache and sync them. `free` is the
    least that was left."""
    Path("/proc/self/oom_score_adj").write_text("500")
    held = []
    while available() > leave + STEP:
        piece = mmap.mmap(-1, STEP)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(piece)), 1, STEP)
        held.append(piece)
    least, began = available(), time.monotonic()
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
            least = min(least, available())
        file.flush()
        os.fsync(file.fileno())
    return {"free": least, "held": len(held) * STEP, "seconds": time.monotonic() - began}
