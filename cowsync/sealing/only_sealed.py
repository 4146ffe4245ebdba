"""The bucket of an encrypted mirror: what is not sealed is not put there, whoever forgets to seal it.

One rule: it seals nothing; it looks at what is about to leave this host. Whoever is stopped here has a fault, so the error is
no answer of a store that could be tried again or passed over: it ends the program.
"""

from collections.abc import Sequence
from itertools import islice
from typing import NoReturn

from cowsync.sealing.format import MAGIC
from cowsync.sealing.keys import MIRROR_SLOTS, OWN
from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, CopySource, Written
from s3core.bucket_wrapper import BucketWrapper
from s3core.content import byte_views
from s3core.digests import NO_DIGESTS, Digests
from s3core.store import Buffer
from s3core.write_options import NO_OPTIONS, WriteOptions

PROBES = f"{OWN}probe/"
"""What a doctor, or a look at what the server honours, writes: made-up bytes."""


class OnlySealed(BucketWrapper):
    """Below `prefix` an object begins as a sealed one, key slots and probes excepted; the server copies nothing there from
    elsewhere. RuntimeError for anything else."""

    def __init__(self, inner: Bucket, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._free = tuple(prefix + own for own in (MIRROR_SLOTS, PROBES))

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
        self._check(key, data)
        return super().put(
            key, data, attributes=attributes, if_match=if_match, if_absent=if_absent, options=options, digests=digests
        )

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
        if number == 1:
            self._check(key, data)
        return super().upload_part(key, upload_id, number, data, options=options, digests=digests)

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        self._check_source(source, key)
        return super().copy(source, key, attributes=attributes, options=options)

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
        self._check_source(source, key)
        return super().copy_part(key, upload_id, number, source, offset=offset, length=length, options=options)

    def _check(self, key: str, data: Buffer | Sequence[Buffer]) -> None:
        first = bytes(islice((byte for view in byte_views(data) for byte in view), len(MAGIC)))
        if first != MAGIC and not key.startswith(self._free):
            _refuse(key)

    def _check_source(self, source: CopySource, key: str) -> None:
        if source.bucket != self.inner.properties.name or not source.key.startswith(self._prefix):
            _refuse(key)


def _refuse(key: str) -> NoReturn:
    raise RuntimeError(f"{key}: was about to be put on an encrypted mirror without being sealed; nothing was sent")
