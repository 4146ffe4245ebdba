"""A source that lists out of order: listed once from end to end, sorted on disk, then handed on like any other.

One rule: memory is bounded by `rows_max` rows, disk takes the rest. The listing follows the server's own token, the only
thing that is exact where keys do not rise; it is complete when the server says that nothing follows, and a key that
comes twice is an error. Stores with real folders do this: they list `foo/` and all below it before `foo.conda`.
"""

import heapq
import io
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import zstandard

from cowsync.errors import Refused
from cowsync.rows import Row, Rows
from cowsync.scan.filters import Belongs
from cowsync.scan.listing import Listed, relative, wanted
from s3core.bucket import Bucket

ROWS_MAX = 200_000
"""Rows held while listing: some 100 MiB."""
_BATCH = 5_000


def sorted_rows(
    bucket: Bucket,
    prefix: str,
    listed: Listed,
    folder: Path,
    *,
    belongs: Belongs | None = None,
    page_keys: int = 1000,
    rows_max: int = ROWS_MAX,
) -> Iterator[Rows]:
    """All rows below `prefix`, ascending. Sorted runs lie in `folder` until the last row is out; a crash leaves them to
    whoever removes the folder. Refused for a key that comes twice or a listing that stands still."""
    runs: list[Path] = []
    held: list[Row] = []
    for row in _listed(bucket, prefix, listed, belongs, page_keys):
        held.append(row)
        if len(held) >= rows_max:
            runs.append(_spooled(held, folder / f"run-{len(runs):06}"))
            held = []
    held.sort()
    streams = [_read(path) for path in runs]
    before: bytes | None = None
    merged = heapq.merge(*streams, iter(held))
    while batch := list(islice(merged, _BATCH)):
        rows = Rows()
        for row in batch:
            if row.key == before:
                raise Refused(
                    f"{bucket.url} lists the key {row.key.decode()!r} twice",
                    hint="it was written to while it was listed, or its listing cannot be trusted; run it again",
                )
            before = row.key
            rows.append(row)
        listed.keys += len(rows)
        listed.bytes_listed += sum(rows.sizes)
        yield rows
    for path in runs:
        path.unlink()


def _listed(bucket: Bucket, prefix: str, listed: Listed, belongs: Belongs | None, page_keys: int) -> Iterator[Row]:
    token, stem = "", prefix.encode()
    while True:
        page = bucket.list_page(prefix=prefix, max_keys=page_keys, token=token)
        listed.requests += 1
        yield from wanted(relative(page, stem), belongs, listed)
        if not page.truncated:
            listed.complete = True
            return
        if not page.token or page.token == token:
            raise Refused(
                f"{bucket.url}: the listing stands still: the server says that there is more and does not say where",
                hint="run `bucketworks doctor` on the bucket; nothing was changed",
            )
        token = page.token


def _spooled(rows: list[Row], path: Path) -> Path:
    rows.sort()
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as packed:
        for start in range(0, len(rows), _BATCH):
            pickle.dump([tuple(row) for row in rows[start : start + _BATCH]], packed, protocol=5)
    return path


def _read(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from _unpacked(file)


def _unpacked(file: BinaryIO) -> Iterator[Row]:
    with io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)) as packed:
        while True:
            try:
                batch = pickle.load(packed)
            except EOFError:
                return
            for fields in batch:
                yield Row(*fields)
