"""What tests of uploads share: a bucket in memory, an uploader with small parts, bytes that are not zeros."""

import random
import time
from pathlib import Path
from uuid import UUID

from cowsync.sealing.format import FRAME_SHIFT_MIN, DataKey
from cowsync.sealing.keys import Keyring
from cowsync.sealing.reading import OpenedBucket
from plugin.upload.context import MIB
from plugin.upload.uploader import Uploader, UploadSettings
from s3core.bucket import Bucket
from s3core.clock import Clock
from s3core.memory_bucket import MemoryBucket
from s3core.write_options import NO_OPTIONS, WriteOptions

SETTINGS = UploadSettings(
    part_bytes=5 * MIB, uploads=3, memory_bytes=15 * MIB, spool_bytes=25 * MIB, patience_s=20, verify_s=5
)
PART = SETTINGS.part_bytes
KEY = DataKey(UUID(int=7 << 64), bytes(range(32)))
KEYRING = Keyring(KEY, {KEY.id: KEY}, random.Random(5).randbytes, FRAME_SHIFT_MIN)
PREFIX = "pve/"


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def uploader(
    bucket: Bucket,
    directory: Path,
    settings: UploadSettings = SETTINGS,
    keyring: Keyring | None = None,
    options: WriteOptions = NO_OPTIONS,
    clock: Clock | None = None,
) -> Uploader:
    return Uploader(
        bucket,
        directory,
        settings,
        keyring=keyring,
        prefix=PREFIX,
        options_for=lambda key: options,
        random=random.Random(3),
        clock=clock,
    )


def opened(bucket: Bucket) -> OpenedBucket:
    """As a reader with the key sees it."""
    return OpenedBucket(bucket, KEYRING, lambda name, key: PREFIX + name == key)


def journals_left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def uploads_left(bucket: MemoryBucket) -> list[str]:
    return [upload.key for upload in bucket.list_uploads().uploads]


class HastyClock:
    """A hundred seconds in one."""

    def monotonic(self) -> float:
        return time.monotonic() * 100

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / 100)
