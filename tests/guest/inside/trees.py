"""File trees whose content is known: made from a seed, compared by MD5.

One rule: a checksum here finds what a disk did to content, which nobody forges; under emulation MD5 costs a tenth of SHA-256.
"""

import hashlib
import os
import random
from pathlib import Path


def write(root: str, seed: int, files: int = 40) -> dict[str, str]:
    """Files of 0 to 2 MiB in folders, synced; the checksum of each by its path."""
    choose = random.Random(seed)
    for number in range(files):
        place = Path(root) / f"folder{number % 7}" / f"file{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        size = choose.choice((0, 1, 511, 4096, 65537, 300_000, 2 << 20))
        place.write_bytes(choose.randbytes(size))
    os.sync()
    return sums(root)


def sums(root: str) -> dict[str, str]:
    """MD5 of every regular file below `root`, by its path from there."""
    found = {}
    for place in sorted(Path(root).rglob("*")):
        if place.is_file():
            found[str(place.relative_to(root))] = hashlib.md5(place.read_bytes()).hexdigest()
    return found


def drop_caches() -> None:
    """What is read next comes from the devices."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
