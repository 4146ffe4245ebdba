"""Everything that sends objects of one storage: settings, threads, spool and journals, shared by all its uploads.

One rule: what `finish`, `put` and `file` return was seen in the bucket by a HEAD with the size and the ETag (or checksum)
that our bytes must have. What raises left nothing under the final name, but for OutcomeUnknown: then the store stopped
answering around the completion, and whether the (whole) object is there nobody could see.
"""

import logging
import random as random_module
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cowsync.apply.transfer import SEALED_ATTRIBUTES
from cowsync.sealing.keys import Keyring
from plugin.bucket import StorageBucket
from plugin.upload.context import Context, Moved, UploadSettings
from plugin.upload.files import Resumable, send_file
from plugin.upload.journal import Record, journals
from plugin.upload.multipart import Uploaded, put_whole
from plugin.upload.plan import plan_stream
from plugin.upload.sealing import SealedStream
from plugin.upload.spool import Spool
from plugin.upload.stream import KeyChoice, StreamingUpload
from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket
from s3core.clock import Clock, SystemClock, system_random
from s3core.errors import StoreError
from s3core.store import Buffer
from s3core.write_options import NO_OPTIONS, WriteOptions

log = logging.getLogger(__name__)

UNHEARD_S = 60.0
"""So close to the moment that a journal tells, an upload of its key is taken for its own."""

__all__ = ["UploadSettings", "Uploader"]


class Uploader:
    """`bucket` is the plain one, retries below it; with `keyring` objects are sealed here, under their keys relative to
    `prefix` ("" or ending with `/`); then `attributes` still lie in the clear. `options_for` gives how an object is kept,
    by its key; a `StorageBucket` knows that itself. `directory` (`…/uploads`) holds journals and spool files and is made.
    Safe for many threads."""

    def __init__(
        self,
        bucket: Bucket,
        directory: Path,
        settings: UploadSettings | None = None,
        *,
        options_for: Callable[[str], WriteOptions] | None = None,
        keyring: Keyring | None = None,
        prefix: str = "",
        clock: Clock | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        settings, clock = settings or UploadSettings(), clock or SystemClock()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(settings.uploads, thread_name_prefix="upload")
        self._lock = threading.Lock()
        self._streams: set[StreamingUpload] = set()  # under _lock
        self._context = Context(
            bucket,
            options_for or (bucket.options_for if isinstance(bucket, StorageBucket) else _as_the_bucket_has_it),
            settings,
            directory,
            Spool(settings.memory_bytes, settings.spool_bytes, directory, parallel=settings.uploads, clock=clock),
            self._pool,
            clock,
            random or system_random(),
            Moved(clock),
            keyring,
            prefix,
        )

    @property
    def spooled(self) -> tuple[int, int]:
        """Bytes of the spool that are given out: in memory, on disk."""
        return self._context.spool.used

    def stream(
        self, key: KeyChoice, *, attributes: Attributes = NO_ATTRIBUTES, expected_bytes: int = 0
    ) -> StreamingUpload:
        """Begin a stream. `key` is the final key, or a function of the first bytes (up to 64 KiB, fewer where the stream
        is shorter) that is asked once, when the first part is about to leave. Nothing is sent before. `expected_bytes`: how
        many may come at most, where somebody knows; more is no error."""
        context, settings = self._context, self._context.settings
        plan = plan_stream(
            settings.part_bytes, context.spool.largest, equal=settings.equal_parts, expected=expected_bytes
        )
        with self._lock:
            stream = StreamingUpload(context, key, plan, self._shown(attributes), lambda: self._forget(stream))
            self._streams.add(stream)
        return stream

    def put(self, key: str, data: Buffer, *, attributes: Attributes = NO_ATTRIBUTES) -> Uploaded:
        """A small object in one request, verified."""
        context, body, plain = self._context, data, len(data)
        if context.keyring is not None:
            sealed = SealedStream(context.keyring, lambda: context.facts(key), held_bytes=plain + 1)
            body = b"".join([*sealed.add(data), *sealed.end()])
        return put_whole(context, key, body, len(body), plain, self._shown(attributes))

    def file(
        self,
        path: Path,
        key: str,
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        progress: Callable[[int, int], None] | None = None,
    ) -> Uploaded:
        """Send a file; goes on where a killed process stopped. `progress`: bytes that S3 has, bytes in all. Refused where
        the file changes meanwhile. A failure leaves what the next call goes on with."""
        return send_file(self._context, path, key, self._shown(attributes), progress)

    def clean_up(self) -> list[str]:
        """Abort the uploads that dead processes left; their keys. Those of files that are still there, unchanged, and began
        less than a week ago are kept for their resume. Journals of living processes are left alone."""
        aborted = []
        for journal in journals(self._context.directory):
            record = journal.record
            if Resumable.of(record, self._context.clock.time()).worth_keeping:
                journal.close()
                continue
            try:
                upload_id = record.upload_id or self._begun_unheard(record)
                if upload_id:
                    self._context.bucket.abort_upload(record.key, upload_id)
            except StoreError as error:
                log.warning("not aborted, the next time: key=%s error=%s", record.key, error)
                journal.close()
                continue
            journal.remove()
            aborted.append(record.key)
        return aborted

    def _begun_unheard(self, record: Record) -> str:
        """The upload of a process that died before it knew its id; "" where there is none, or it cannot be told from another
        node's of the same key: that one's is worth more than a few bytes, which a lifecycle rule removes."""
        bucket = self._context.bucket
        began = record.began - (bucket.properties.clock_skew_s or 0.0)
        found = [
            one.upload_id
            for one in bucket.list_uploads(prefix=record.key).uploads
            if one.key == record.key and began - UNHEARD_S <= one.initiated <= began + UNHEARD_S
        ]
        return found[0] if len(found) == 1 else ""

    def close(self) -> None:
        """Abort the streams under way, end the threads. Waits for the parts that are being sent."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.abort()
        self._pool.shutdown(wait=True)

    def _forget(self, stream: StreamingUpload) -> None:
        with self._lock:
            self._streams.discard(stream)

    def _shown(self, attributes: Attributes) -> Attributes:
        if self._context.keyring is None:
            return attributes
        return Attributes(SEALED_ATTRIBUTES.headers, attributes.metadata, attributes.tags)


def _as_the_bucket_has_it(key: str) -> WriteOptions:
    return NO_OPTIONS
