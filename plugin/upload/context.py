"""What all uploads of a storage share: settings, bucket, threads, spool; and how long trouble is borne."""

import logging
import random as random_module
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cowsync.sealing.format import Facts
from cowsync.sealing.keys import Keyring
from plugin.upload.plan import PARTS_MAX
from plugin.upload.spool import Room, Spool
from s3core.bucket import Attributes, Bucket
from s3core.clock import Clock
from s3core.errors import StoreError, Unavailable
from s3core.write_options import WriteOptions

log = logging.getLogger(__name__)
MIB = 1 << 20
TOKEN = "bucketworks-upload"
"""User metadata: which upload made the object, so that one whose completion was never answered is known again."""
PARTS = "bucketworks-parts"
"""User metadata: `PartPlan.text`, so that the ETag can be made again from the bytes."""
_DELAY_FIRST_S = 0.2
_DELAY_MAX_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """`part_bytes`: 5 MiB to 5,120 MiB, the size of the first parts (bw-part-size). `uploads`: parts under way at once,
    1 to 20 (bw-uploads), of all uploads of the storage together. `memory_bytes`: parts that wait in memory; the others lie
    in the spool directory, `spool_bytes` at most. `patience_s`: how long nothing may move, not a MiB, before an upload fails
    and a `write` that waits for room raises. `verify_s`: how long completion and verification may take, unknown outcomes
    included. `equal_parts`: the server wants all parts but the last equally long (R2)."""

    part_bytes: int = 16 * MIB
    uploads: int = 4
    memory_bytes: int = 80 * MIB
    spool_bytes: int = 2048 * MIB
    patience_s: float = 600.0
    verify_s: float = 120.0
    equal_parts: bool = False

    def __post_init__(self) -> None:
        if not 5 * MIB <= self.part_bytes <= 5120 * MIB:
            raise ValueError(f"a part has 5 to 5,120 MiB, not {self.part_bytes / MIB:g}")
        if not 1 <= self.uploads <= 20:
            raise ValueError(f"1 to 20 parts are under way at once, not {self.uploads}")
        if 2 * self.part_bytes > max(self.memory_bytes, self.spool_bytes):
            raise ValueError(
                f"the spool ({self.spool_bytes / MIB:g} MiB) must hold two parts of {self.part_bytes / MIB:g} MiB:"
                " make it larger, or the parts smaller"
            )


class Moved:
    """When anything last went forward, by the clock's monotonic reading; of all uploads of the storage."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at = clock.monotonic()

    def now(self) -> None:
        self.at = self._clock.monotonic()


@dataclass(frozen=True, slots=True)
class Context:
    """`bucket` is the plain one; `options_for` gives those of an object by its key. With `keyring` objects are sealed, under
    their keys relative to `prefix`."""

    bucket: Bucket
    options_for: Callable[[str], WriteOptions]
    settings: UploadSettings
    directory: Path
    spool: Spool
    pool: Executor
    clock: Clock
    random: random_module.Random
    moved: Moved
    keyring: Keyring | None = None
    prefix: str = ""

    def options(self, key: str) -> WriteOptions:
        """With a checksum, where ETags will prove nothing and the server keeps one."""
        options = self.options_for(key)
        if options.checksum or options.etag_is_md5 or "crc32" not in self.bucket.properties.checksums:
            return options
        return replace(options, checksum="crc32")

    def facts(self, key: str) -> Facts:
        """What is sealed with an object: its key and nothing else, so that the plain size follows from the sealed one
        (`plugin.upload.sealing.plain_bytes`)."""
        return Facts(key.removeprefix(self.prefix))

    def patience(self, failed: Callable[[], StoreError | None] = lambda: None) -> "Patience":
        return Patience(self.clock, self.random, self.settings.patience_s, failed, self.moved)

    def room(self, capacity: int, failed: Callable[[], StoreError | None]) -> Room:
        """See `Spool.room`."""
        return self.spool.room(capacity, self.settings.patience_s, failed, lambda: self.moved.at)


def marked(attributes: Attributes, token: str, plan: str) -> Attributes:
    """With what tells whose upload made the object, and of which parts ("": one PUT)."""
    metadata = {**attributes.metadata, TOKEN: token} | ({PARTS: plan} if plan else {})
    return replace(attributes, metadata=metadata)


def new_token() -> str:
    return secrets.token_hex(8)


class Patience:
    """Tries again until `seconds` passed without any progress of this upload. Shared by its threads."""

    def __init__(
        self,
        clock: Clock,
        random: random_module.Random,
        seconds: float,
        failed: Callable[[], StoreError | None],
        anything: Moved,
    ) -> None:
        self._clock = clock
        self._random = random
        self._seconds = seconds
        self._failed = failed
        self._anything = anything
        self._lock = threading.Lock()
        self._moved = clock.monotonic()  # under _lock

    def progress(self) -> None:
        self._anything.now()
        with self._lock:
            self._moved = self._clock.monotonic()

    @property
    def left_s(self) -> float:
        with self._lock:
            return self._moved + self._seconds - self._clock.monotonic()

    def persist(self, action: Callable[[], T]) -> T:
        """`action` until it answers: what it raises, once that is not temporary or nothing moved for too long. Only for what
        may be done twice."""
        failures = 0
        while True:
            failed = self._failed()
            if failed is not None:
                raise failed
            try:
                answer = action()
            except StoreError as error:
                failures += 1
                delay = self._random.uniform(0.0, min(_DELAY_MAX_S, _DELAY_FIRST_S * 2.0 ** min(failures, 30)))
                if not error.temporary or delay > self.left_s:
                    raise
                log.warning("will try again: wait_s=%.1f error=%s", delay, error)
                self._clock.sleep(delay)
                continue
            self.progress()
            return answer


def too_large(largest: int) -> StoreError:
    return StoreError(
        f"more than {largest:,} bytes do not fit {PARTS_MAX:,} parts of this upload",
        hint="make bw-part-size or the spool larger",
    )


def over(what: str) -> Unavailable:
    return Unavailable(f"the upload is over: {what}")
