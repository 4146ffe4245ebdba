"""From a storage and a volume to an archive that can be read in part; and an index put beside it.

One rule: an index is a convenience: where it is missing, damaged or of another object, the archive is read without it, and
it is never put before the archive it tells of is there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cowsync.sealing.format import Facts as SealedFacts
from cowsync.sealing.keys import Keyring
from plugin.archive.errors import IndexDamaged
from plugin.archive.index import ArchiveIndex
from plugin.archive.streams import BytesRanges, Ranges
from plugin.archive.view import ArchiveView
from plugin.bucket import StorageBucket, open_bucket, readable
from plugin.configuration import Storage
from plugin.errors import Archived, BadVolume, NoSuchVolume
from plugin.keys import open_keyring
from plugin.layout import Volume, index_key, parse_volname
from plugin.range_reader import ReadPool
from s3core.bucket import Bucket, ObjectFacts
from s3core.clock import SystemClock
from s3core.errors import Corrupt, NotFound
from s3core.settings import Config, load_config

INDEX_BYTES_MAX = 512 << 20


class ObjectRanges:
    """One version of an object, by ranges, through a bucket that gives plain bytes. Small reads that follow each other cost
    one request for each 256 KiB. StoreErrors: PreconditionFailed where the object is another one by now."""

    _SMALL = 256 << 10

    def __init__(self, bucket: Bucket, facts: ObjectFacts) -> None:
        self.size = facts.size
        self.etag = facts.etag
        self._bucket = bucket
        self._key = facts.key
        self._at, self._held = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if not self._at <= offset < offset + length <= self._at + len(self._held):
            wanted = min(max(length, self._SMALL), self.size - offset)
            held = self._bucket.get(self._key, offset=offset, length=wanted, if_match=self.etag)
            if length >= self._SMALL:
                return held
            self._at, self._held = offset, held
        return self._held[offset - self._at : offset - self._at + length]


@dataclass(frozen=True, slots=True)
class Source:
    """An archive in its bucket. `bucket` writes, `plain` reads. `problem`: why the index that is there was not taken."""

    storage: Storage
    volume: Volume
    bucket: StorageBucket
    plain: Bucket
    keyring: Keyring | None
    facts: ObjectFacts
    ranges: Ranges
    view: ArchiveView
    problem: str = ""


def volume_of(text: str) -> Volume:
    """`STORAGE:backup/NAME`, `backup/NAME` or the bare name of a backup. BadVolume."""
    name = text.partition(":")[2] if ":" in text.partition("/")[0] else text
    try:
        volume = parse_volname(name if "/" in name else f"backup/{name}")
    except ValueError as error:
        raise BadVolume(str(error)) from None
    if volume.content not in ("backup", "vztmpl"):
        raise BadVolume(f"{volume.volname} is no archive: backups and container templates are")
    return volume


def look(
    bucket: StorageBucket,
    plain: Bucket,
    keyring: Keyring | None,
    storage: Storage,
    volume: Volume,
    pool: ReadPool | None = None,
) -> Source:
    """The archive as it is now, with its index. Two requests, and one for the index's head. `pool` reads ahead, for who
    reads much. NoSuchVolume, Archived, StoreErrors."""
    key = storage.prefix + volume.key
    try:
        facts = plain.head(key)
    except NotFound:
        raise NoSuchVolume(f"{storage.id}:{volume.volname} is not in {bucket.url}") from None
    if facts.archived:
        raise Archived(
            f"{storage.id}:{volume.volname} lies in class {facts.storage_class} and cannot be read",
            hint="thaw it first",
        )
    ranges: Ranges = pool.open(key, facts) if pool is not None else ObjectRanges(plain, facts)
    index, problem = None, ""
    try:
        held = plain.head(storage.prefix + index_key(volume.key))
        if held.size > INDEX_BYTES_MAX:
            raise IndexDamaged(f"the index has {held.size:,} bytes")
        index = ArchiveIndex(ObjectRanges(plain, held))
    except NotFound:
        index = None
    except (IndexDamaged, Corrupt) as error:
        problem = f"the index cannot be read: {error}"
    view = ArchiveView(ranges, index, etag=facts.etag)
    if view.stale:
        problem = "the index is of another object of this name"
    return Source(storage, volume, bucket, plain, keyring, facts, ranges, view, problem)


def guest_config(
    bucket: StorageBucket, plain: Bucket, keyring: Keyring | None, storage: Storage, volume: Volume
) -> str:
    """What PVE shows as the configuration of a backup: of the index, else of the head of the archive (128 KiB as a rule).
    NotInArchive, BadArchive and what `look` raises."""
    return look(bucket, plain, keyring, storage, volume).view.guest_config()


@contextmanager
def opened(storage: Storage, text: str, config_path: Path | None = None) -> Iterator[Source]:
    """For commands."""
    volume = volume_of(text)
    config: Config = load_config(config_path)
    bucket = open_bucket(storage, config)
    try:
        keyring = open_keyring(bucket, storage, clock=SystemClock(), random=os.urandom, begin=False)
        plain = readable(bucket, storage, keyring)
        pool = ReadPool(plain)
        try:
            yield look(bucket, plain, keyring, storage, volume, pool)
        finally:
            pool.close()
    finally:
        bucket.close()


def put_index(bucket: Bucket, keyring: Keyring | None, storage: Storage, volume: Volume, data: bytes) -> None:
    """Puts an index beside its archive, sealed where the storage seals. One request; a crash before it leaves an archive
    without an index, which `pve-s3 archive index` makes. StoreErrors."""
    ArchiveIndex(BytesRanges(data))
    name = index_key(volume.key)
    blob = data
    if keyring is not None:
        sealer = keyring.sealer(len(data), SealedFacts(name))
        header, at, frames = sealer.header, 0, [sealer.head]
        for number in range(1, header.frames + 1):
            length = header.frame_length(number)
            frames.append(sealer.frame(data[at : at + length]))
            at += length
        blob = b"".join(frames)
    bucket.put(storage.prefix + name, blob)
