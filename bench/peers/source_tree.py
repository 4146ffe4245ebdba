"""A tree of files as a release of some program has: many small ones, a few large ones, folders in folders.

One rule: the same seed gives the same bytes. Half of every 4 KiB is noise and half is text that repeats: about what a
compressor makes of sources beside pictures.
"""

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

FILES = 5000
_BLOCK = 4096
_TEXT = b"    return size if size <= limit else -1;  /* no more than was asked for */\n"
_LARGEST = 512 * 1024


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file: a median of 4 KiB, a mean of about 9."""
    source = random.Random(seed)
    text = (_TEXT * (_BLOCK // len(_TEXT) + 1))[: _BLOCK // 2]
    noise = source.randbytes(1 << 20)
    for number in range(count):
        size = min(int(source.lognormvariate(8.3, 1.3)), _LARGEST)
        parts = []
        for _ in range(size // _BLOCK + 1):
            at = source.randrange(len(noise) - _BLOCK // 2)
            parts += [noise[at : at + _BLOCK // 2], text]
        folder = f"tree/{number * 37 % 12:02d}/{number * 101 % 25:02d}"
        yield f"{folder}/part{number}.c", b"".join(parts)[:size]


def write_archive(target: Path, count: int = FILES, seed: int = 1) -> int:
    """A tar archive of such a tree; the bytes of its files."""
    total = 0
    with tarfile.open(target, "w") as archive:
        for path, content in files(count, seed):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            total += len(content)
    return total
