"""One object from one bucket to another, or to another key: by the server where it can, else through us.

One rule: the target is written in one visible step, the last one (a PUT, a CopyObject, or the completion of a multipart
upload), and only with bytes of the one version of the source that was asked for. Whoever looks sees the old object or
the whole new one.

    route       when                                              memory
    COPY        same endpoint, size up to `copy_bytes_max`        none
    COPY_PARTS  same endpoint, larger: UploadPartCopy             none
    PUT         streamed, up to `part_bytes`                      the object
    PARTS       streamed, larger, or the source had parts         one part

To an encrypted mirror everything is streamed and sealed on its way, which takes the memory twice.

Parts are cut as the source's first part is, so that the ETag comes out equal where the server makes it the usual way.

A crash leaves the target as it was, or with the new object; and perhaps an upload that was begun: `UploadLog` knows it
and the next start aborts it. One that the crash took before it was noted costs room until the bucket's lifecycle rule
(AbortIncompleteMultipartUpload) finds it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from hashlib import md5
from typing import Protocol, TypeVar

from cowsync.sealing.format import TAG_BYTES, Facts, Sealer
from cowsync.sealing.keys import Keyring
from s3core.bucket import Attributes, Bucket, BucketProperties, CopySource, ObjectFacts, Written
from s3core.errors import Denied, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unsupported
from s3core.store import Buffer

MIB = 1024 * 1024
PARTS_MAX = 10_000
"""Parts of one upload (S3 API reference)."""
_COPY_PART_BYTES = 512 * MIB
"""A part that the server copies by itself: nothing of it is in our memory."""

_USUAL_PARTS_MIB = (8, 5, 16, 64, 100, 10, 15, 32, 50, 128, 256, 512, 1024, 20, 25, 200, 500, 6, 7, 12, 24, 48, 96)
"""What clients cut uploads in, the most widespread first."""

SEALED_ATTRIBUTES = Attributes(headers={"content-type": "application/octet-stream"})
"""Of a sealed object, in the clear. What the source's object had is inside."""

T = TypeVar("T")


class SourceMoved(Exception):
    """The source is not, or no longer, the object that was asked for. Nothing was written."""


class TargetChanged(Exception):
    """The target does not hold what `before` says. Nothing was written."""


class Route(StrEnum):
    COPY = "copy"
    COPY_PARTS = "copy_parts"
    PUT = "put"
    PARTS = "parts"


class UploadLog(Protocol):
    """Remembers multipart uploads so that somebody can abort them after a crash."""

    def upload_begun(self, key: str, upload_id: str) -> None: ...

    def upload_over(self, key: str, upload_id: str) -> None:
        """Completed or aborted: it is nobody's business any more."""
        ...


class Pace(Protocol):
    """Waits until it is allowed."""

    def request(self) -> None: ...

    def transfer(self, count: int) -> None:
        """Before `count` bytes go through us."""
        ...


class NoPace:
    def request(self) -> None:
        return

    def transfer(self, count: int) -> None:
        return


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """`part_bytes`: a part where the source tells none, and the largest object that is put in one request.
    `streamed_part_bytes_max`: source parts larger than this are not copied as they are, for the memory's sake.
    `copy_bytes_max` bounds one CopyObject below what the bucket says; 0: as the bucket says. `conditional_puts`: the
    target is known to honour If-Match and If-None-Match on PUT. `keep_parts`: a source with parts is copied in parts
    even where one CopyObject would do, for the ETag's sake; costs a request for each."""

    part_bytes: int = 64 * MIB
    streamed_part_bytes_max: int = 128 * MIB
    copy_bytes_max: int = 0
    conditional_puts: bool = False
    keep_parts: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """What is read: this version, with this ETag and size. `etag` "": not known, then only the size is compared."""

    bucket: Bucket
    key: str
    size: int
    etag: str
    version_id: str = ""


@dataclass(frozen=True, slots=True)
class Sealing:
    """To seal with, and the key relative to the mirror's prefix that the object is put under."""

    keyring: Keyring
    key: str


@dataclass(slots=True)
class Tally:
    """Bytes so far, kept also where the transfer fails: through us, and copied by the server."""

    moved: int = 0
    copied: int = 0


def choose_route(
    size: int, etag: str, source: BucketProperties, target: BucketProperties, settings: TransferSettings
) -> Route:
    if source.endpoint and source.endpoint == target.endpoint:
        most = min(settings.copy_bytes_max or target.copy_bytes_max, target.copy_bytes_max)
        in_parts = size > most or (settings.keep_parts and "-" in etag and size > 0)
        return Route.COPY_PARTS if in_parts else Route.COPY
    return _streamed_route(size, etag, settings)


def _streamed_route(size: int, etag: str, settings: TransferSettings) -> Route:
    return Route.PARTS if size > settings.part_bytes or ("-" in etag and size) else Route.PUT


def part_size(size: int, first: int, parts: int, *, least: int, most: int, default: int) -> int:
    """Bytes of each part but the last of an object of `size` bytes, whose source has `parts` parts (0: not known) with
    `first` bytes in the first: as the source's where that is allowed, else `default` or what 10,000 parts need."""
    if 0 < parts <= PARTS_MAX and 0 < first <= most and -(-size // first) == parts and (first >= least or parts == 1):
        return first
    needed = -(-size // PARTS_MAX)
    return max(least, default, -(-needed // MIB) * MIB if needed > default else 0)


def guessed_parts(size: int, etag: str, ours: int = 0) -> tuple[int, int]:
    """Bytes of the first part and number of parts where the server does not tell (Ceph before Reef): the number is the
    end of the ETag, and clients cut in a few usual sizes; `ours` is tried first. Wrong at worst, which gives another
    ETag; (0, 0): no idea."""
    _, _, suffix = etag.rpartition("-")
    parts = int(suffix) if suffix.isascii() and suffix.isdigit() else 0
    if parts == 1:
        return size, 1
    usual = (ours, *(mib * MIB for mib in _USUAL_PARTS_MIB))
    first = next((length for length in usual if parts and length and -(-size // length) == parts), 0)
    return first, parts if first else 0


def multipart_etag(part_etags: list[str]) -> str:
    """What S3 calls an object of these parts where their ETags are MD5, else ""."""
    try:
        digests = [bytes.fromhex(etag) for etag in part_etags]
    except ValueError:
        return ""
    if any(len(digest) != 16 for digest in digests):
        return ""
    return f"{md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


class Transfer:
    """One worker's hands; not for two threads at once. Retries are the bucket's own, below the port."""

    def __init__(self, settings: TransferSettings, uploads: UploadLog, pace: Pace | None = None) -> None:
        self._settings = settings
        self._uploads = uploads
        self._pace: Pace = pace or NoPace()
        self._server_copies = True

    def ask(self, call: Callable[[], T]) -> T:
        """One request, when its turn has come."""
        self._pace.request()
        return call()

    def look(self, bucket: Bucket, key: str) -> ObjectFacts | None:
        """What is there now; None: nothing."""
        try:
            return self.ask(lambda: bucket.head(key))
        except NotFound as error:
            _require_bucket(error)
            return None

    def same_attributes(self, subject: Subject, held: ObjectFacts) -> bool:
        """Whether `held`, which has the subject's bytes, also has its headers, metadata and number of tags. True where
        the source has moved on: then nothing better can be had."""
        try:
            facts = self._from_source(lambda: subject.bucket.head(subject.key, version_id=subject.version_id))
        except SourceMoved:
            return True
        if facts.etag != subject.etag:
            return True
        return (facts.attributes, facts.tag_count) == (held.attributes, held.tag_count)

    def route(
        self, subject: Subject, target: Bucket, *, keep_parts: bool = False, sealing: Sealing | None = None
    ) -> Route:
        if sealing is not None:
            return _streamed_route(subject.size, subject.etag, self._settings)
        settings = replace(self._settings, keep_parts=True) if keep_parts else self._settings
        if self._server_copies:
            return choose_route(subject.size, subject.etag, subject.bucket.properties, target.properties, settings)
        return _streamed_route(subject.size, subject.etag, self._settings)

    def guarded_put(self, subject: Subject, target: Bucket, sealing: Sealing | None = None) -> bool:
        """Whether `before` costs no request of its own, since the PUT itself carries the condition."""
        return self._settings.conditional_puts and self.route(subject, target, sealing=sealing) is Route.PUT

    def copy(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        tally: Tally,
        *,
        before: str | None = None,
        keep_parts: bool = False,
        sealing: Sealing | None = None,
    ) -> Written:
        """Durably there when this returns, with headers, metadata and tags.

        `before` is the ETag that the target holds, "" for nothing, None for whatever. A PUT carries it as a condition
        where the target honours that; a multipart upload looks again before it is completed; for a CopyObject the
        caller has just looked. `keep_parts` is the setting, for this object. With `sealing` it is sealed.
        Raises SourceMoved, TargetChanged (nothing written, no upload left), StoreError (not written) and OutcomeUnknown
        (only after looking did not tell)."""
        route, refused = self.route(subject, target, keep_parts=keep_parts, sealing=sealing), False
        if route in (Route.COPY, Route.COPY_PARTS):
            try:
                if route is Route.COPY:
                    return self._server_copy(subject, target, key, tally, before)
                return self._by_parts(subject, target, key, tally, before, by_server=True)
            except (Unsupported, Denied) as error:
                # Copying needs one identity that may read there and write here; streaming needs two.
                refused = isinstance(error, Unsupported)
                route = _streamed_route(subject.size, subject.etag, self._settings)
        if route is Route.PUT:
            written = self._put(subject, target, key, tally, before, sealing)
        else:
            written = self._by_parts(subject, target, key, tally, before, by_server=False, sealing=sealing)
        if refused:
            # It was not this object that was refused (one in an archive tier is, either way), but copying.
            self._server_copies = False
        return written

    def _server_copy(self, subject: Subject, target: Bucket, key: str, tally: Tally, before: str | None) -> Written:
        try:
            written = self._from_source(lambda: target.copy(_copy_source(subject), key))
        except OutcomeUnknown as error:
            # A CopyObject makes one object without parts: the ETag of a source with parts is not to be expected.
            expected = "" if "-" in subject.etag else subject.etag
            written = self._settle(subject, target, key, expected, before, error)
        tally.copied += subject.size
        return written

    def _put(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        tally: Tally,
        before: str | None,
        sealing: Sealing | None = None,
    ) -> Written:
        attributes, cut = self._attributes(subject)
        data = b""
        if subject.size:
            self._pace.transfer(subject.size)
            data = self._from_source(
                lambda: subject.bucket.get(subject.key, if_match=subject.etag, version_id=subject.version_id)
            )
        if len(data) != subject.size:
            raise SourceMoved(f"{len(data)} bytes came, the plan says {subject.size}")
        tally.moved += len(data)
        body: list[Buffer] = [data]
        if sealing is not None:
            sealer = _sealer(subject, attributes, cut, sealing)
            body, attributes = [sealer.head, *_frames(sealer, data)], SEALED_ATTRIBUTES
            subject = replace(subject, size=sealer.header.sealed_bytes)
        conditional = self._settings.conditional_puts and before is not None
        try:
            return self.ask(
                lambda: target.put(
                    key,
                    body,
                    attributes=attributes,
                    if_match=(before or "") if conditional else "",
                    if_absent=conditional and not before,
                )
            )
        except OutcomeUnknown as error:
            expected = md5(usedforsecurity=False)
            for piece in body:
                expected.update(piece)
            return self._settle(subject, target, key, expected.hexdigest(), before, error)
        except PreconditionFailed as error:
            raise TargetChanged("it holds another object by now") from error
        except NotFound as error:
            # If-Match on a key that is not there is 404 on some servers.
            _require_bucket(error)
            raise TargetChanged("its object is gone") from error

    def _by_parts(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        tally: Tally,
        before: str | None,
        *,
        by_server: bool,
        sealing: Sealing | None = None,
    ) -> Written:
        attributes, (first, parts) = self._attributes(subject)
        limits = target.properties
        sealer, size = None, subject.size
        if sealing is not None:
            # The ETag is another one anyway, so the parts are as we like them.
            sealer = _sealer(subject, attributes, (first, parts), sealing)
            attributes, first, parts, size = SEALED_ATTRIBUTES, 0, 0, sealer.header.sealed_bytes
        length = part_size(
            size,
            first,
            parts,
            least=limits.part_bytes_min,
            most=limits.copy_bytes_max if by_server else self._settings.streamed_part_bytes_max,
            default=max(self._settings.part_bytes, _COPY_PART_BYTES) if by_server else self._settings.part_bytes,
        )
        upload_id = self.ask(lambda: target.begin_upload(key, attributes=attributes))
        # Crash before this line: an upload nobody knows. After it: the next start aborts it.
        self._uploads.upload_begun(key, upload_id)
        try:
            etags: list[str] = []
            if sealer is not None:
                upload = partial(self._upload_part, target, key, upload_id)
                # No name holds a part that has gone while the next one is made.
                etags.extend(map(upload, itertools.count(1), self._sealed_parts(subject, sealer, length, tally)))
                subject = replace(subject, size=size)
            else:
                for offset in range(0, subject.size, length):
                    count = min(length, subject.size - offset)
                    carry = self._copy_part if by_server else self._stream_part
                    etags.append(carry(subject, target, key, upload_id, len(etags) + 1, offset, count, tally))
            if before is not None:
                held = self.look(target, key)
                if (held.etag if held else "") != before:
                    raise TargetChanged("its object changed while the new one was uploaded")
            written = self._complete(subject, target, key, upload_id, etags, before, len(attributes.tags))
        except Exception:
            self.abort(target, key, upload_id)
            raise
        self._uploads.upload_over(key, upload_id)
        return written

    def abort(self, target: Bucket, key: str, upload_id: str) -> bool:
        """Whether it is gone. Where not, the log still knows it, and the next start tries again."""
        try:
            self.ask(lambda: target.abort_upload(key, upload_id))
        except StoreError:
            return False
        self._uploads.upload_over(key, upload_id)
        return True

    def _complete(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        upload_id: str,
        etags: list[str],
        before: str | None,
        tag_count: int,
    ) -> Written:
        listed = list(enumerate(etags, 1))
        expected = multipart_etag(etags)
        try:
            return self.ask(lambda: target.complete_upload(key, upload_id, listed))
        except OutcomeUnknown as error:
            try:
                return self._settle(subject, target, key, expected, before, error, tag_count)
            except OutcomeUnknown:
                # Once aborted it can no longer be completed by a request that is still under way: this look is final.
                self.ask(lambda: target.abort_upload(key, upload_id))
                return self._settle(subject, target, key, expected, before, error, tag_count)

    def _copy_part(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        upload_id: str,
        number: int,
        offset: int,
        length: int,
        tally: Tally,
    ) -> str:
        source = _copy_source(subject)
        etag = self._from_source(lambda: target.copy_part(key, upload_id, number, source, offset=offset, length=length))
        tally.copied += length
        return etag

    def _stream_part(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        upload_id: str,
        number: int,
        offset: int,
        length: int,
        tally: Tally,
    ) -> str:
        return self._upload_part(target, key, upload_id, number, [self._read(subject, offset, length, tally)])

    def _sealed_parts(self, subject: Subject, sealer: Sealer, length: int, tally: Tally) -> Iterator[list[Buffer]]:
        """The sealed object in pieces of exactly `length` bytes and a rest (some servers want parts of one size), made from
        as many whole frames at a time as a piece takes."""
        header = sealer.header
        waiting, held, number = deque([memoryview(sealer.head)]), len(sealer.head), 1
        while number <= header.frames:
            count = max(1, -(-(length - held) // (header.frame_bytes + TAG_BYTES)))
            offset = (number - 1) * header.frame_bytes
            plain = min(count * header.frame_bytes, subject.size - offset)
            for frame in _frames(sealer, self._read(subject, offset, plain, tally) if plain else b""):
                waiting.append(memoryview(frame))
                held += len(frame)
            number += count
            while held >= length:
                yield _taken(waiting, length)
                held -= length
        if held:
            yield _taken(waiting, held)

    def _upload_part(self, target: Bucket, key: str, upload_id: str, number: int, body: list[Buffer]) -> str:
        return self.ask(lambda: target.upload_part(key, upload_id, number, body))

    def _read(self, subject: Subject, offset: int, length: int, tally: Tally) -> bytes:
        self._pace.transfer(length)
        data = self._from_source(
            lambda: subject.bucket.get(
                subject.key, offset=offset, length=length, if_match=subject.etag, version_id=subject.version_id
            )
        )
        if len(data) != length:
            raise SourceMoved(f"{len(data)} bytes came from offset {offset}, the plan says {length}")
        tally.moved += length
        return data

    def _attributes(self, subject: Subject) -> tuple[Attributes, tuple[int, int]]:
        """What is kept beside the bytes; size of the first part and number of parts, where there are any."""
        with_parts = "-" in subject.etag
        facts = self._from_source(
            lambda: subject.bucket.head(subject.key, version_id=subject.version_id, part_number=1 if with_parts else 0)
        )
        if subject.etag and facts.etag != subject.etag:
            raise SourceMoved(f"its ETag is {facts.etag}, the plan says {subject.etag}")
        if not facts.parts and facts.size != subject.size and not with_parts:
            raise SourceMoved(f"it has {facts.size} bytes, the plan says {subject.size}")
        tags: dict[str, str] = {}
        if facts.tag_count:
            tags = self._from_source(lambda: subject.bucket.tags(subject.key, version_id=subject.version_id))
        attributes = Attributes(facts.attributes.headers, facts.attributes.metadata, tags)
        if with_parts and not facts.parts:
            return attributes, guessed_parts(subject.size, subject.etag, self._settings.part_bytes)
        return attributes, (facts.size, facts.parts)

    def _from_source(self, call: Callable[[], T]) -> T:
        try:
            return self.ask(call)
        except NotFound as error:
            _require_bucket(error)
            raise SourceMoved("the source has it no longer") from error
        except PreconditionFailed as error:
            raise SourceMoved("the source has another object there by now") from error

    def _settle(
        self,
        subject: Subject,
        target: Bucket,
        key: str,
        expected: str,
        before: str | None,
        error: OutcomeUnknown,
        tag_count: int | None = None,
    ) -> Written:
        """Look whether a write whose answer was lost is there. Raises `error` where that cannot be seen."""
        try:
            held = self.look(target, key)
        except StoreError as unseen:
            raise error from unseen
        if held is None or held.size != subject.size or held.etag == before:
            raise error
        # Without an ETag to expect, only a look before tells that this one is new.
        if held.etag != expected if expected else before is None:
            raise error
        # Some servers are given the tags of an upload in parts by a request of its own, which may be the one that failed.
        if tag_count is not None and held.tag_count != tag_count:
            raise error
        return Written(held.etag, held.version_id)


def _sealer(subject: Subject, attributes: Attributes, cut: tuple[int, int], sealing: Sealing) -> Sealer:
    """A new one, with a salt of its own, for one attempt at one object."""
    first, parts = cut if cut[1] else (0, 0)
    facts = Facts(sealing.key, subject.etag, subject.version_id, first, parts, attributes)
    return sealing.keyring.sealer(subject.size, facts)


def _frames(sealer: Sealer, plain: bytes) -> Iterator[bytes]:
    """`plain`, which are whole frames but for the object's last, sealed."""
    view, step = memoryview(plain), sealer.header.frame_bytes
    for at in range(0, max(1, len(plain)), step):
        yield sealer.frame(view[at : at + step])


def _taken(waiting: deque[memoryview], length: int) -> list[Buffer]:
    """The first `length` bytes, which are there."""
    taken: list[Buffer] = []
    while length:
        piece = waiting.popleft()
        if len(piece) > length:
            waiting.appendleft(piece[length:])
            piece = piece[:length]
        taken.append(piece)
        length -= len(piece)
    return taken


def _copy_source(subject: Subject) -> CopySource:
    return CopySource(subject.bucket.properties.name, subject.key, subject.version_id, subject.etag)


def _require_bucket(error: StoreError) -> None:
    """A NotFound without a key is about the bucket: then nothing is known of any object."""
    if not error.key:
        raise error
