"""A file system on a bucket in memory, without FUSE."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from plugin.catalogue import Catalogue
from plugin.mount.filesystem import Filesystem, World
from plugin.range_reader import ReadPool
from plugin.refresh import entry_of
from plugin.upload.uploader import Uploader, UploadSettings
from s3core.bucket import Bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.errors import NotFound, StoreError
from s3core.memory_bucket import MemoryService
from s3core.wrapper import Call, T

PREFIX = "site/"
UPLOADS = UploadSettings(
    part_bytes=5 << 20, uploads=2, memory_bytes=32 << 20, spool_bytes=64 << 20, patience_s=5.0, verify_s=1.0
)


class AlwaysFresh:
    """A catalogue that needs no refresh."""

    known = True

    def ensure(self) -> None:
        return


class Faults(BucketWrapper):
    """`errors` are raised by the operations of those names (`s3core.wrapper.Operation`), and nothing is done."""

    def __init__(self, inner: Bucket) -> None:
        super().__init__(inner)
        self.errors: dict[str, StoreError] = {}

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation in self.errors:
            raise self.errors[call.operation]
        return action()


class MountWorld:
    """`bucket` is bare; what the file system does goes through `faults`."""

    def __init__(self, folder: Path, *, bucket: Bucket | None = None, quota: int = 0) -> None:
        self.bucket = bucket or MemoryService("memory").bucket("b")
        self.faults = used = Faults(self.bucket)
        self.now = 1_000_000.0
        self.catalogue = Catalogue(folder / "catalogue.sqlite")
        self.catalogue.finish_listing(
            listing := self.catalogue.begin_listing(), {}, self.catalogue.doubtful(listing, {}), {}
        )
        self.sender = Uploader(used, folder / "uploads", UPLOADS)
        self.pool = ReadPool(used, wait_s=5.0)
        self.fresh = AlwaysFresh()
        self.world = World(
            prefix=PREFIX,
            bucket=used,
            catalogue=self.catalogue,
            sender=self.sender,
            readers=self.pool,
            fresh=self.fresh,
            scratch=folder / "scratch",
            incoming=folder / "incoming",
            quota=quota,
        )
        self.fs = Filesystem(self.world, now=lambda: self.now)

    def again(self, **changes: object) -> Filesystem:
        """Another file system on the same things, with some of them changed."""
        self.world = replace(self.world, **changes)  # type: ignore[arg-type]  # names of its fields
        self.fs = Filesystem(self.world, now=lambda: self.now)
        return self.fs

    def hurry(self) -> None:
        """Uploads give up at once: for stores that fail on purpose."""
        self.sender.close()
        hasty = replace(UPLOADS, patience_s=0.3, verify_s=0.3)
        self.sender = Uploader(self.faults, self.world.scratch.parent / "hasty", hasty)
        self.again(sender=self.sender)

    def write(self, path: str, data: bytes, *, close: bool = True, piece: int = 1 << 20) -> int:
        fh = self.fs.create(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for at in range(0, len(data), piece):
            assert self.fs.write(fh, data[at : at + piece], at) == len(data[at : at + piece])
        if close:
            self.close(fh)
        return fh

    def close(self, fh: int) -> None:
        """As close(2): the release comes also where the flush fails."""
        try:
            self.fs.flush(fh)
        finally:
            self.fs.release(fh)

    def read(self, path: str) -> bytes:
        fh = self.fs.open(path, os.O_RDONLY)
        try:
            data = b""
            while piece := self.fs.read(fh, 1 << 20, len(data)):
                data += piece
            return data
        finally:
            self.fs.release(fh)

    def object(self, path: str) -> bytes | None:
        try:
            return self.bucket.get(PREFIX + path)
        except NotFound:
            return None

    def objects(self) -> list[str]:
        return [key.decode().removeprefix(PREFIX) for key in self.bucket.list_page(prefix=PREFIX).keys]

    def put(self, path: str, data: bytes) -> None:
        """By another host; the catalogue has heard of it."""
        self.bucket.put(PREFIX + path, data)
        self.catalogue.written(entry_of(self.bucket, PREFIX + path))

    def pending(self) -> list[str]:
        """Keys of uploads that are neither completed nor aborted."""
        return [one.key.removeprefix(PREFIX) for one in self.bucket.list_uploads().uploads]

    def wait_for_pending(self, path: str) -> None:
        """An upload of that name has begun, in the background."""
        deadline = time.monotonic() + 10
        while path not in self.pending() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path in self.pending()

    def wait_until_nothing_is_open(self) -> None:
        """The kernel releases a file a moment after its last close."""
        deadline = time.monotonic() + 10
        while self.fs.open_files() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.fs.open_files() == []

    def wait_until_nothing_is_pending(self) -> None:
        """Aborting goes on for a moment after the file is gone."""
        deadline = time.monotonic() + 10
        while self.pending() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.pending() == [], "parts that nothing names any more"

    def end(self) -> None:
        self.pool.close()
        self.sender.close()
        self.catalogue.close()
