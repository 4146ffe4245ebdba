"""Where entries come from: files, folders, patterns, standard input, and log objects in a bucket; packed or not.

One rule: a place is given with each batch, and is what `Cursors` may remember once the batch is in the ledger. A file that
grows is read by whole lines; one that is packed, and an object, does not grow, and is read to its end once.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import IO

import zstandard

from integrity.ingest.cursor import Cursors, Place
from integrity.ingest.feeds import Feed
from s3core.bucket import Bucket
from s3core.log_file import LINE_BYTES_MAX, LogFile

BATCH = 2000
"""Pieces that are recorded together."""
WHOLE_BYTES_MAX = 256 << 20
"""Of a piece that is a file, unpacked."""
FETCH_BYTES = 8 << 20
STANDARD_INPUT = "-"
HALF_WRITTEN = (".tmp", ".part", ".new")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

OpenBucket = Callable[[str], tuple[Bucket, str]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a parser is given, and where it was: `FILE:LINE`. None for one that is too long."""

    data: bytes | None
    where: str


@dataclass(slots=True)
class Batch:
    """`places` are right when all pieces are in the ledger. `known` counts files that were read to their end before."""

    pieces: list[Piece] = field(default_factory=list)
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    known: int = 0
    lost: str = ""
    """A file whose place was not found again, so that it is read from its beginning."""
    unreadable: str = ""
    """A file that cannot be unpacked, and why; its place stays where it was."""


def read_sources(
    names: list[str], feed: Feed, cursors: Cursors, open_bucket: OpenBucket, *, follow: bool = False
) -> Iterator[Batch]:
    """All there is to read, once. `follow`: the last line of a file waits for its end. FileNotFoundError, OSError,
    StoreError."""
    for name in names:
        if name == STANDARD_INPUT:
            yield from _pieces(_Unpacked(sys.stdin.buffer), "standard input", feed)
        elif name.startswith("s3://"):
            yield from _objects(name, feed, cursors, *open_bucket(name))
        else:
            for path in _files(name, follow=follow):
                yield from _file(path, feed, cursors, follow=follow)


def _files(name: str, *, follow: bool) -> list[Path]:
    path = Path(name).absolute()
    if path.is_dir():
        found = (one for one in path.rglob("*") if not one.name.startswith("."))
        return sorted(one for one in found if not one.name.endswith(HALF_WRITTEN) and one.is_file())
    if has_magic(name) and not path.exists():
        matches = sorted(Path(one).absolute() for one in glob(name, recursive=True) if Path(one).is_file())
        if not matches and not follow:
            raise FileNotFoundError(2, "no file matches", name)
        return matches
    if not path.exists():
        if follow:
            return []
        raise FileNotFoundError(2, "there is no such file", name)
    return [path]


def _file(path: Path, feed: Feed, cursors: Cursors, *, follow: bool) -> Iterator[Batch]:
    name = str(path)
    with path.open("rb") as file:
        packed = file.read(4).startswith((_GZIP, _ZSTD))
    if not packed and not feed.whole and path.is_file():
        yield from _growing(path, feed, cursors, follow=follow)
        return
    facts = path.stat()
    place = cursors.place(feed.name, name)
    signature = f"{facts.st_size}:{facts.st_mtime_ns}"
    if place.signature == signature and place.done:
        yield Batch(known=1)
        return
    with path.open("rb") as file:
        yield from _pieces(_Unpacked(file), name, feed, signature, place.line if place.signature == signature else 0)


def _growing(path: Path, feed: Feed, cursors: Cursors, *, follow: bool) -> Iterator[Batch]:
    file, name = LogFile(path), str(path)
    reached = cursors.place(feed.name, name).position
    while True:
        batch = Batch()

        def take(data: bytes | None, found: Path, number: int, batch: Batch = batch) -> bool:
            batch.pieces.append(Piece(data and data.removesuffix(b"\n"), f"{found}:{number}"))
            return len(batch.pieces) < BATCH

        def lost(batch: Batch = batch) -> None:
            batch.lost = name

        before, reached = reached, file.read(reached, take, lost=lost)
        if reached is not None:
            batch.places[(feed.name, name)] = Place(reached.line, position=reached)
        if batch.pieces:
            yield batch
        if not batch.pieces or reached == before:
            break
    if follow or reached is None:
        return
    # Nobody writes a file that is given once: its last line counts, though the place stays before it.
    with path.open("rb") as stream:
        stream.seek(reached.offset)
        rest = stream.readline(LINE_BYTES_MAX)
    if rest.strip() and not rest.endswith(b"\n"):
        yield Batch([Piece(rest, f"{name}:{reached.line + 1}")])


def _objects(url: str, feed: Feed, cursors: Cursors, bucket: Bucket, prefix: str) -> Iterator[Batch]:
    """Log objects below a prefix. Names of delivered logs begin with their times: what was read to its end is skipped."""
    place_of = "/".join(url.split("/", 4)[:4])
    token = ""
    while True:
        page = bucket.list_page(prefix=prefix, token=token)
        for raw, size, etag in zip(page.keys, page.sizes, page.etags, strict=True):
            key = raw.decode()
            if size == 0 or key.endswith("/"):
                continue
            name, signature = f"{place_of}/{key}", f"{etag.decode()}:{size}"
            place = cursors.place(feed.name, name)
            if place.signature == signature and place.done:
                yield Batch(known=1)
                continue
            stream = io.BufferedReader(_Fetched(bucket, key, size, etag.decode()), FETCH_BYTES)
            yield from _pieces(
                _Unpacked(stream), name, feed, signature, place.line if place.signature == signature else 0
            )
        if not page.truncated:
            return
        token = page.token


class _Fetched(io.RawIOBase):
    """An object, piece by piece; StoreError goes through."""

    def __init__(self, bucket: Bucket, key: str, size: int, etag: str) -> None:
        self._bucket, self._key, self._size, self._etag, self._at = bucket, key, size, etag, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # typeshed's buffer, which has no name before Python 3.12
        length = min(len(view), self._size - self._at)
        if length == 0:
            return 0
        data = self._bucket.get(self._key, offset=self._at, length=length, if_match=self._etag)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Unpacked:
    """A stream, unpacked if its first bytes say that it is packed; `error` for one that cannot be."""

    def __init__(self, stream: IO[bytes]) -> None:
        # type-var: any binary stream will do, but BufferedReader is declared for raw ones.
        buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
        head = buffered.peek(4)[:4]
        self.stream: IO[bytes] = buffered
        if head.startswith(_GZIP):
            self.stream = io.BufferedReader(gzip.GzipFile(fileobj=buffered))
        elif head.startswith(_ZSTD):
            self.stream = io.BufferedReader(
                zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
            )


_UNPACKING = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


def _pieces(source: _Unpacked, name: str, feed: Feed, signature: str = "", skip: int = 0) -> Iterator[Batch]:
    """Batches of a stream that ends; the places are kept where it has a signature."""
    batch, line = Batch(), 0
    try:
        for line, data in enumerate(_cut(source.stream, feed), 1):
            if line <= skip:
                continue
            batch.pieces.append(Piece(data, name if feed.whole else f"{name}:{line}"))
            if len(batch.pieces) >= BATCH:
                if signature:
                    batch.places[(feed.name, name)] = Place(line, signature=signature)
                yield batch
                batch = Batch()
    except _UNPACKING as error:
        batch.unreadable = f"{name}: cannot be unpacked to its end: {error}"
    except OSError as error:
        if error.errno is not None:
            raise
        batch.unreadable = f"{name}: cannot be unpacked to its end: {error}"
    if signature:
        batch.places[(feed.name, name)] = Place(line, not batch.unreadable, signature)
    yield batch


def _cut(stream: IO[bytes], feed: Feed) -> Iterator[bytes | None]:
    if feed.whole:
        data = stream.read(WHOLE_BYTES_MAX + 1)
        yield data if len(data) <= WHOLE_BYTES_MAX else None
        return
    while line := stream.readline(LINE_BYTES_MAX):
        ended = line.endswith(b"\n")
        if ended or len(line) < LINE_BYTES_MAX:
            yield line.removesuffix(b"\n")
            continue
        while not ended and (more := stream.readline(LINE_BYTES_MAX)):
            ended = more.endswith(b"\n")
        yield None
