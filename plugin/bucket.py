"""From a storage to its bucket, ready for use: endpoint, retries, limits, counters, ledger, the storage's ways of writing.

    StorageBucket( Recording( Observed( Retrying( Limited( S3Bucket )))))

One rule: who writes through it need not know how the storage keeps its objects. Storage class, encryption by the server and
lock are added here, by the key; what a caller gives goes before. Sidecars and what is our own stay in the bucket's
default class and unlocked: they are read on every listing, rewritten, and must go when their backup goes.
"""

import base64
import random as random_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from prometheus_client import CollectorRegistry

from cowsync.sealing.keys import Keyring
from cowsync.sealing.reading import OpenedBucket
from integrity.recording import recorded_bucket
from plugin.configuration import Storage
from plugin.layout import volume_of_key
from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, CopySource, ObjectFacts, PartsPage, Written
from s3core.bucket_stack import open_bucket as open_stacked
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import Clock, SystemClock
from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests
from s3core.errors import StoreError
from s3core.limit import Limits
from s3core.retry import RetryPolicy
from s3core.settings import Config
from s3core.store import Buffer
from s3core.write_options import NO_OPTIONS, CustomerKey, Encryption, LockMode, Retention, WriteOptions

DAY_S: Final = 86_400
_ENCRYPTION: Final[dict[str, Encryption]] = {"AES256": "AES256", "aws:kms": "aws:kms"}
_LOCK_MODES: Final[dict[str, LockMode]] = {"governance": "GOVERNANCE", "compliance": "COMPLIANCE"}


class StorageBucket(BucketWrapper):
    """The bucket of a storage. Keys are those of the bucket: `prefix` is part of them."""

    def __init__(self, inner: Bucket, storage: Storage, *, clock: Clock | None = None) -> None:
        super().__init__(inner)
        self.storage = storage
        self.prefix = storage.prefix
        self._clock = clock or SystemClock()
        customer = storage.sse == "customer"
        self._customer_key = CustomerKey(base64.b64decode(storage.sse_customer_key)) if customer else None
        self._sidecar = WriteOptions(
            encryption=_ENCRYPTION.get(storage.sse, ""),
            kms_key_id=storage.kms_key_id,
            customer_key=self._customer_key,
        )
        self._volume = replace(self._sidecar, storage_class=storage.storage_class)

    @property
    def upload_options(self) -> WriteOptions:
        """What the volumes of the storage have in common: of `plugin.upload.Uploader`, which chooses a checksum by it where
        ETags will prove nothing. The lock is added by the key, here."""
        return self._volume

    def options_for(self, key: str) -> WriteOptions:
        """How an object of that key is written from now on. A backup's retention counts from this moment."""
        volume = volume_of_key(key.removeprefix(self.prefix)) if key.startswith(self.prefix) else None
        if volume is None:
            return self._sidecar
        mode = _LOCK_MODES.get(self.storage.object_lock)
        if volume.content != "backup" or mode is None or not self.storage.lock_days:
            return self._volume
        until = self._clock.time() + self.storage.lock_days * DAY_S
        return replace(self._volume, retention=Retention(mode, until))

    def _options(self, key: str, given: WriteOptions) -> WriteOptions:
        chosen = given.over(self.options_for(key))
        # An uploader gives the volumes' class with everything.
        return chosen if self._is_volume(key) else replace(chosen, storage_class="")

    def _is_volume(self, key: str) -> bool:
        return key.startswith(self.prefix) and volume_of_key(key.removeprefix(self.prefix)) is not None

    # --- reading ---------------------------------------------------------------------------------------------

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        """Also of objects that were put there without the storage's customer key."""
        given = customer_key or self._customer_key
        try:
            return super().head(key, version_id=version_id, part_number=part_number, customer_key=given)
        except StoreError as refusal:
            if not _is_plain(refusal, given):
                raise
        return super().head(key, version_id=version_id, part_number=part_number)

    def get(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int = -1,
        if_match: str = "",
        version_id: str = "",
        customer_key: CustomerKey | None = None,
    ) -> bytes:
        """As `head`."""
        given = customer_key or self._customer_key
        try:
            return super().get(
                key, offset=offset, length=length, if_match=if_match, version_id=version_id, customer_key=given
            )
        except StoreError as refusal:
            if not _is_plain(refusal, given):
                raise
        return super().get(key, offset=offset, length=length, if_match=if_match, version_id=version_id)

    # --- writing ---------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> Written:
        return super().put(
            key,
            data,
            attributes=attributes,
            if_match=if_match,
            if_absent=if_absent,
            options=self._options(key, options),
            digests=digests,
        )

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        return super().copy(self._readable(source), key, attributes=attributes, options=self._options(key, options))

    def begin_upload(
        self, key: str, *, attributes: Attributes = NO_ATTRIBUTES, options: WriteOptions = NO_OPTIONS
    ) -> str:
        return super().begin_upload(key, attributes=attributes, options=self._options(key, options))

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer | Sequence[Buffer],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> str:
        return super().upload_part(key, upload_id, number, data, options=self._options(key, options), digests=digests)

    def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: CopySource,
        *,
        offset: int,
        length: int,
        options: WriteOptions = NO_OPTIONS,
    ) -> str:
        return super().copy_part(
            key,
            upload_id,
            number,
            self._readable(source),
            offset=offset,
            length=length,
            options=self._options(key, options),
        )

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        return super().complete_upload(key, upload_id, parts, options=self._options(key, options), digests=digests)

    def list_parts(
        self,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        max_parts: int = 1000,
        customer_key: CustomerKey | None = None,
    ) -> PartsPage:
        given = customer_key or self._customer_key
        return super().list_parts(key, upload_id, after=after, max_parts=max_parts, customer_key=given)

    def _readable(self, source: CopySource) -> CopySource:
        if source.customer_key or self._customer_key is None or source.bucket != self.storage.bucket:
            return source
        return replace(source, customer_key=self._customer_key)


def _is_plain(refusal: StoreError, given: CustomerKey | None) -> bool:
    """Whether a customer's key was refused because the object has none (400 InvalidRequest, "The encryption parameters are not
    applicable to this object")."""
    return given is not None and ("not applicable" in str(refusal) or "not encrypted with" in str(refusal))


def open_bucket(
    storage: Storage,
    config: Config,
    *,
    deadline_s: float = 0.0,
    registry: CollectorRegistry | None = None,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    limits: Limits | None = None,
    around: Callable[[Bucket], Bucket] | None = None,
    tool: str = "pve-s3",
) -> StorageBucket:
    """The bucket of a storage; asks the server nothing yet. `config` is the node's; the storage's endpoint is joined to it
    here. `deadline_s` > 0: a call with all its retries ends within that time, give or take a slow answer; else as the
    storage says (bw-connection-timeout; twice that, a minute at least, with retries). What is done through it is recorded
    where a `[ledger]` covers the place: then a change that cannot be recorded is refused (`NotRecorded`). `around` sees each
    attempt and counts it (`Counters.wrap` of plugin.counters). Close it at the end. ConfigError, CredentialsError,
    Misconfigured."""
    joined = storage.join(config)
    clock = clock or SystemClock()
    endpoint = joined.endpoint(storage.endpoint_name)
    policy = None
    if deadline_s:
        # The last attempt may begin at half of it, and then has as long as the first one.
        wait_s = deadline_s / 2
        settings = joined.endpoints[storage.endpoint_name]
        hasty = settings.model_copy(
            update={
                "connect_timeout_s": min(settings.connect_timeout_s, wait_s),
                "read_timeout_s": min(settings.read_timeout_s, wait_s),
            }
        )
        joined = joined.model_copy(update={"endpoints": {**joined.endpoints, storage.endpoint_name: hasty}})
        policy = RetryPolicy(attempts_max=endpoint.retries + 1, deadline_s=wait_s)
    stacked, _ = open_stacked(
        storage.url,
        joined,
        clock=clock,
        random=random,
        registry=registry,
        policy=policy,
        limits=limits,
        around=around,
        counted_elsewhere=around is not None,
    )
    try:
        recorded = recorded_bucket(stacked, storage.url, joined, tool=tool)
    except BaseException:
        stacked.close()
        raise
    return StorageBucket(recorded, storage, clock=clock)


def readable(bucket: Bucket, storage: Storage, keyring: Keyring | None) -> Bucket:
    """The bucket as its objects read in plain: itself, or, with a keyring (`plugin.keys`), a view that opens what is sealed and
    that nothing is written through. The two share connections: close the first."""
    if keyring is None:
        return bucket
    return OpenedBucket(bucket, keyring, lambda named, key: key == storage.prefix + named)
