"""The disk below the journal: what an fdatasync costs there, so that flush rates can be read.

One rule: measured in the folder of the journals, on a file written through before, right beside the flushes it explains.
A target that flushes cannot be faster than this; one whose file is in memory says nothing about flushes.
"""

import os
import tempfile
import time
from pathlib import Path

FILE_BYTES = 16 * 1024 * 1024
RECORD_BYTES = 48 + 4096
"""About what the journal appends for a write of 4 KiB."""


def flushes_per_s(folder: Path, seconds: float) -> float:
    """How often a second a program can append 4 KiB and wait until the disk has it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = file.fileno()
        os.pwrite(descriptor, bytes(FILE_BYTES), 0)
        os.fsync(descriptor)
        record, count, at = bytes(RECORD_BYTES), 0, 0
        begin = time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds:
            os.pwrite(descriptor, record, at)
            os.fdatasync(descriptor)
            at = (at + RECORD_BYTES) % (FILE_BYTES - RECORD_BYTES)
            count += 1
        return count / passed


def in_memory(folder: Path) -> bool:
    """Whether a folder is on tmpfs, where an fdatasync costs nothing."""
    device = os.stat(folder).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        major, _, minor = fields[2].partition(":")
        if os.makedev(int(major), int(minor)) == device:
            return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False
