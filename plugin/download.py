"""An object into a file: parallel ranges, resumed after a crash, verified, and then there under its name in one step.

    .NAME.partial           the bytes so far
    .NAME.partial.pieces    a line of JSON for the object, and one for each piece that is there, with its CRC-32

    proof      what was compared at the end
    sealed     each frame was opened (AES-GCM)
    checksum   the checksum that the server keeps
    etag       the MD5 of the bytes, or of the parts they were uploaded in
    size       nothing else can be compared: the ETag is no MD5 (SSE-KMS, SSE-C), or nobody knows how the parts were cut

One rule: the name exists only with all bytes of one version of the object, verified and on disk.

| a crash | leaves | repaired by |
| --- | --- | --- |
| while bytes come | the two files beside the name | the next call: pieces whose CRC-32 is right are not fetched again |
| after the rename | the whole file, and the list of pieces | the next call of that name removes it |
"""

import json
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cowsync.apply.transfer import guessed_parts
from cowsync.sealing.reading import OpenedBucket
from plugin.errors import PluginError
from plugin.upload.context import PARTS
from plugin.upload.plan import PartPlan
from plugin.upload.spool import FileSpan, read_exactly
from s3core.bucket import Bucket, ObjectFacts
from s3core.digests import Digests, Expected, digests_of, verdict
from s3core.errors import Corrupt, PreconditionFailed, StoreError
from s3core.write_options import Checksum

PIECE_BYTES = 8 << 20
VERSION = 1
Proof = Literal["sealed", "checksum", "etag", "size"]


class Stopped(PluginError):
    """Whoever wanted the file has gone; the next call goes on."""

    code = "unavailable"
    retryable = True


@dataclass(frozen=True, slots=True)
class Downloaded:
    facts: ObjectFacts
    proof: Proof


def download(
    bucket: Bucket,
    key: str,
    path: Path,
    *,
    facts: ObjectFacts | None = None,
    parallel: int = 4,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Downloaded:
    """`path` holds the object, durable, when this returns. `bucket` gives plain bytes (`plugin.bucket.readable`); `facts` are
    those of HEAD with the plain size. Until then the bytes lie beside the name, and a later call for the same ETag goes on.
    `progress`: bytes that are there, bytes in all. Memory: `parallel` times 16 MiB. Replaces a file of that name. For one
    process at a time for one `path`. NotFound; PreconditionFailed (the object changed meanwhile; the next call begins again);
    Corrupt (what came is deleted); Stopped; other StoreErrors and OSError leave what the next call goes on with."""
    facts = facts or bucket.head(key)
    partial = path.with_name(f".{path.name}.partial")
    listed = path.with_name(f".{path.name}.partial.pieces")
    file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        pieces = _Pieces(file, listed, key, facts)
        checks = _Checks(bucket, key, facts, file, parallel)
        try:
            try:
                _fetch(bucket, key, facts, file, pieces, checks, parallel, progress, stop)
            except PreconditionFailed:
                _remove(partial, listed)
                raise
            finally:
                pieces.close()
            with ThreadPoolExecutor(1, thread_name_prefix="sync") as syncing:
                synced = syncing.submit(os.fsync, file)  # the disk works while the bytes are proved
                try:
                    proof = checks.proof()
                except Corrupt:
                    _remove(partial, listed)
                    raise
                synced.result()
        finally:
            checks.close()
    finally:
        os.close(file)
    partial.replace(path)
    _sync_directory(path.parent)
    listed.unlink(missing_ok=True)
    return Downloaded(facts, proof)


class _Pieces:
    """Which pieces are there. Lines come from several threads, each is one write."""

    def __init__(self, file: int, listed: Path, key: str, facts: ObjectFacts) -> None:
        self.size = facts.size
        self.done: set[int] = set()
        head = {"pieces": VERSION, "key": key, "etag": facts.etag, "size": facts.size, "piece": PIECE_BYTES}
        lines = _lines(listed)
        known = lines[0] == head if lines else False
        if known:
            for line in lines[1:]:
                self._take(file, line)
        else:
            os.ftruncate(file, 0)
        os.ftruncate(file, facts.size)
        if facts.size:
            os.posix_fallocate(file, 0, facts.size)  # a disk without room says so now
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if known else os.O_TRUNC)
        self._file = os.open(listed, flags, 0o600)
        if known:
            os.write(self._file, b"\n")  # a line that a crash cut ends here
        else:
            self._append(head)

    def _take(self, file: int, line: object) -> None:
        """Only bytes that are what they were: a power failure may have kept the line and lost them."""
        if not isinstance(line, dict) or not isinstance(line.get("at"), int):
            return
        at = line["at"]
        if not 0 <= at * PIECE_BYTES < self.size:
            return
        try:
            data = read_exactly(file, at * PIECE_BYTES, self.length(at))
        except OSError:
            return
        if zlib.crc32(data) == line.get("crc32"):
            self.done.add(at)

    def length(self, at: int) -> int:
        return min(PIECE_BYTES, self.size - at * PIECE_BYTES)

    @property
    def missing(self) -> list[int]:
        return [at for at in range(-(-self.size // PIECE_BYTES)) if at not in self.done]

    @property
    def done_bytes(self) -> int:
        return sum(map(self.length, self.done))

    def came(self, at: int, crc: int) -> None:
        self.done.add(at)
        self._append({"at": at, "crc32": crc})

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: dict[str, object]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _fetch(
    bucket: Bucket,
    key: str,
    facts: ObjectFacts,
    file: int,
    pieces: _Pieces,
    checks: "_Checks",
    parallel: int,
    progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool],
) -> None:
    ended = threading.Event()

    def one(at: int) -> tuple[int, int]:
        if ended.is_set():
            raise Stopped("the download was stopped")
        data = bucket.get(
            key,
            offset=at * PIECE_BYTES,
            length=pieces.length(at),
            if_match=facts.etag,
            version_id=facts.version_id,
        )
        view, offset = memoryview(data), at * PIECE_BYTES
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
        return at, zlib.crc32(data)

    def came(at: int, crc: int) -> None:
        pieces.came(at, crc)
        checks.came(at)

    for known in sorted(pieces.done):
        checks.came(known)
    missing = iter(pieces.missing)
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="download")
    waiting: set[Future[tuple[int, int]]] = set()
    try:
        while True:
            if progress is not None:
                progress(pieces.done_bytes, pieces.size)
            if stop():
                raise Stopped(f"{key}: the download was stopped", hint="the next one goes on from here")
            while len(waiting) < 2 * parallel and (at := next(missing, None)) is not None:
                waiting.add(pool.submit(one, at))
            if not waiting:
                return
            for future in wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED).done:
                found = future.result()
                waiting.discard(future)
                came(*found)
    finally:
        ended.set()
        pool.shutdown(wait=True)
        for future in waiting:
            if future.exception() is None:
                pieces.came(*future.result())


class _Checks:
    """The digests that prove a file: of each part of the object as soon as its last piece is in the file, while others are on
    their way. What was hashed is what the file gives back, not what came."""

    def __init__(self, bucket: Bucket, key: str, facts: ObjectFacts, file: int, parallel: int) -> None:
        self._key = key
        self._facts = facts
        self._file = file
        self._sealed = isinstance(bucket, OpenedBucket)
        self._parts, self._sure = ([], False) if self._sealed else _parts(bucket, key, facts)
        self._checksum: Checksum = next((name for name in ("sha256", "crc32") if name in facts.checksums), "")
        # More would only take the processors from the threads that fetch.
        self._pool = ThreadPoolExecutor(min(parallel, os.cpu_count() or 1), thread_name_prefix="check")
        self._made: dict[int, Future[Digests]] = {}
        self._missing: list[int] = []
        self._parts_of: dict[int, list[int]] = {}
        for number, (offset, length) in enumerate(self._parts):
            pieces = range(offset // PIECE_BYTES, -(-(offset + length) // PIECE_BYTES))
            self._missing.append(len(pieces))
            for at in pieces:
                self._parts_of.setdefault(at, []).append(number)
            if not pieces:
                self._begin(number)

    def came(self, at: int) -> None:
        """The piece is in the file; to be said once."""
        for number in self._parts_of.pop(at, ()):
            self._missing[number] -= 1
            if not self._missing[number]:
                self._begin(number)

    def _begin(self, number: int) -> None:
        self._made[number] = self._pool.submit(digests_of, FileSpan(self._file, *self._parts[number]), self._checksum)

    def proof(self) -> Proof:
        """What proves that the file is the object; Corrupt where something disproves it. For when all pieces came."""
        if self._sealed:
            return "sealed"
        if not self._parts:
            return "size"
        facts = self._facts
        expected = _expected(facts, [self._made[number].result() for number in range(len(self._parts))])
        opaque = facts.kept.encryption.startswith("aws:kms") or bool(facts.kept.customer_key_md5)
        judged = verdict(facts, expected, etag_is_md5=not opaque and self._sure)
        if judged == "other" and self._sure:
            raise Corrupt("the bytes that came are not those of the object; they were deleted", key=self._key)
        if judged != "same":
            return "size"
        return "etag" if facts.etag == expected.etag else "checksum"

    def close(self) -> None:
        """Ends the threads: the file is closed after this."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _expected(facts: ObjectFacts, made: Sequence[Digests]) -> Expected:
    if "-" in facts.etag:
        return Expected.of_parts(facts.size, made)
    return Expected.of_body(facts.size, made[0])


def _parts(bucket: Bucket, key: str, facts: ObjectFacts) -> tuple[list[tuple[int, int]], bool]:
    """Offset and length of what the ETag is made of, and whether that is known for sure."""
    number = facts.etag.rpartition("-")[2] if "-" in facts.etag else ""
    if not number:
        return [(0, facts.size)], True
    plan = PartPlan.parse(facts.attributes.metadata.get(PARTS, ""))
    if plan is not None:
        cut = [(offset, length) for _, offset, length in plan.cut(facts.size)]
        if len(cut) == int(number if number.isdecimal() else 0):
            return cut, True
    try:
        first = bucket.head(key, version_id=facts.version_id, part_number=1)
        length, count = (first.size, first.parts) if first.parts else guessed_parts(facts.size, facts.etag)
    except StoreError:
        length, count = guessed_parts(facts.size, facts.etag)
    if not length or -(-facts.size // length) != count:
        return [], False
    return [(at, min(length, facts.size - at)) for at in range(0, facts.size, length)], False


def _lines(listed: Path) -> list[object]:
    """The lines that can be read: a crash may cut one."""
    found: list[object] = []
    with suppress(FileNotFoundError):
        for line in listed.read_bytes().split(b"\n"):
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
