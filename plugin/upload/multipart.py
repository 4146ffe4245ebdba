"""One upload in parts: begun when the first part leaves, parts from many threads, completed and then looked at.

One rule: the object is believed in when HEAD shows our token, our size and the ETag (or checksum) made here of the bytes that
were sent; a completion whose answer was lost is looked for until `verify_s` passed, then aborted, so that it cannot come later.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from plugin.upload.context import TOKEN, Context, marked, new_token
from plugin.upload.journal import Journal, SentPart
from plugin.upload.plan import PartPlan
from plugin.upload.spool import PIECE_BYTES
from s3core.bucket import Attributes, CopySource, ObjectFacts
from s3core.content import LazyBody
from s3core.digests import Digests, Expected, digests_of, verdict
from s3core.errors import Corrupt, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable
from s3core.store import Buffer
from s3core.write_options import CustomerKey, WriteOptions

log = logging.getLogger(__name__)
_LOOK_S = 0.5
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A verified object. `size` and `etag` are those in the bucket, `plain_bytes` what was written (less than `size`
    where it was sealed). `proof`: "etag", "checksum", or "size" where the server's ETags say nothing (SSE-KMS, SSE-C) and it
    keeps no checksum: then each part was compared by Content-MD5 when it came in."""

    key: str
    size: int
    plain_bytes: int
    etag: str
    version_id: str
    modified: float
    proof: str


class Multipart:
    """`journal` is None for none. Threads may share it; `complete` is for one, after `wait`."""

    def __init__(
        self, context: Context, key: str, plan: PartPlan, attributes: Attributes, token: str, journal: Journal | None
    ) -> None:
        self.key = key
        self.plan = plan
        self.patience = context.patience(lambda: self.failure)
        self._context = context
        self._bucket = context.bucket
        self._options = context.options(key)
        self._attributes = marked(attributes, token, plan.text)
        self._token = token
        self._journal = journal
        self._beginning = threading.Lock()
        self._changed = threading.Condition()
        self._upload_id = journal.record.upload_id if journal else ""  # once, under _beginning
        self._parts: dict[int, SentPart] = {}  # this and all below under _changed
        self._etags_are_md5 = self._options.etag_is_md5
        self._under_way = 0
        self._failure: StoreError | None = None
        self._over = False
        self.done = False
        """Completed and verified."""

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> StoreError | None:
        """Why this upload cannot go on."""
        return self._failure

    @property
    def bytes_sent(self) -> int:
        with self._changed:
            return sum(part.size for part in self._parts.values())

    def fail(self, error: StoreError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    @property
    def options(self) -> WriteOptions:
        return self._options

    def adopt(self, part: SentPart) -> None:
        """A part that S3 has from before."""
        with self._changed:
            self._parts[part.number] = part

    def leave(
        self,
        number: int,
        size: int,
        body: Callable[[], Buffer | LazyBody],
        release: Callable[[], None],
        digests: Digests | None = None,
    ) -> None:
        """Send a part in one of the threads; `release` is called once nobody needs the body."""
        with self._changed:
            if not self._under_way:
                self.patience.progress()  # a writer may pause as long as it likes
            self._under_way += 1

        def send() -> None:
            try:
                if self._failure is None:
                    self.send(number, size, body(), digests)
            finally:
                release()

        try:
            self._context.pool.submit(send).add_done_callback(self._left)
        except RuntimeError:  # the threads were ended
            release()
            with self._changed:
                self._under_way -= 1
            raise

    def send(self, number: int, size: int, body: Buffer | LazyBody, digests: Digests | None = None) -> None:
        """Send a part now. StoreError: it did not get there."""
        made = digests or digests_of(body, self._options.checksum)
        upload_id = self._begun()
        watched = _Watched(body, size, self.patience.progress)
        etag = self.patience.persist(
            lambda: self._bucket.upload_part(self.key, upload_id, number, watched, options=self._options, digests=made)
        )
        part = SentPart(number, size, etag, made)
        with self._changed:
            self._parts[number] = part
            # The server compared the MD5 we sent along: an ETag that is another is none.
            self._etags_are_md5 = self._etags_are_md5 and etag == made.md5.hex()
        if self._journal is not None:
            self._journal.sent(part)

    def wait(self, under_way: int = 0) -> None:
        """Until no more than `under_way` parts are. Raises why the upload failed; Unavailable where nothing moves for
        `patience_s`."""
        with self._changed:
            while self._failure is None and self._under_way > under_way:
                if self.patience.left_s < -self._context.settings.verify_s:
                    # `persist` gives up earlier; this is for requests that never come back.
                    raise Unavailable("the store has not answered for too long", key=self.key)
                self._changed.wait(_POLL_S)
            if self._failure is not None:
                raise self._failure

    def _left(self, future: "Future[None]") -> None:
        error = None if future.cancelled() else future.exception()
        with self._changed:
            self._under_way -= 1
            if error is not None:
                if not isinstance(error, StoreError):
                    log.error("a part could not be sent: key=%s error=%r", self.key, error)
                    error = StoreError(f"a part could not be sent: {error}", key=self.key)
                self._failure = self._failure or error
            self._changed.notify_all()
            last = self._over and not self._under_way
        if last:
            self._abort_now()

    def _begun(self) -> str:
        with self._beginning:
            if not self._upload_id:
                self._upload_id = self.patience.persist(
                    lambda: self._bucket.begin_upload(self.key, attributes=self._attributes, options=self._options)
                )
                if self._journal is not None:
                    self._journal.begun(self._upload_id)
            return self._upload_id

    # --- the end ---------------------------------------------------------------------------------------------------

    def complete(self, plain_bytes: int) -> Uploaded:
        """Make the object visible and look at it. On return the journal is gone. Raises NotFound where somebody aborted the
        upload, Corrupt where the store has other bytes (they were deleted), PreconditionFailed where somebody else put an
        object there meanwhile, OutcomeUnknown where even aborting was not answered."""
        parts = [part for _, part in sorted(self._parts.items())]
        for place, part in enumerate(parts, 1):
            if part.number != place:
                raise RuntimeError(f"part {place} of {self.key} was never sent")
        size = sum(part.size for part in parts)
        expected = Expected.of_parts(size, [part.digests for part in parts])
        if self._journal is not None:
            self._journal.completing()
        until = self._context.clock.monotonic() + self._context.settings.verify_s
        facts = self._completed(parts, until)
        done = verified(self._context, facts, expected, self._token, plain_bytes, self._etags_are_md5)
        self.done = True
        if self._journal is not None:
            self._journal.remove()
        return done

    def _completed(self, parts: list[SentPart], until: float) -> ObjectFacts:
        clock, unknown = self._context.clock, False
        listed = [(part.number, part.etag) for part in parts]
        digests = {part.number: part.digests for part in parts}
        while True:
            try:
                self._bucket.complete_upload(self.key, self._upload_id, listed, options=self._options, digests=digests)
                return looked_at(self._context, self.key, until, self._options.customer_key)
            except NotFound:
                if not unknown:
                    raise
            except StoreError as error:
                if not error.temporary:
                    raise
                unknown = unknown or isinstance(error, OutcomeUnknown)
                log.warning("completion not answered: key=%s error=%s", self.key, error)
            facts = self._ours()
            if facts is not None:
                return facts
            if clock.monotonic() + _LOOK_S > until:
                return self._settled(unknown)
            clock.sleep(_LOOK_S)

    def _settled(self, unknown: bool) -> ObjectFacts:
        """Nobody told. Once the upload is aborted no request that is still under way can complete it: the look after that
        is the last."""
        try:
            self._bucket.abort_upload(self.key, self._upload_id)
            facts = self._ours(strict=True)
        except StoreError as error:
            text = f"whether the upload was completed is not known: {error}"
            raise OutcomeUnknown(text, key=self.key, hint="look again when the store answers") from error
        if facts is None:
            raise Unavailable("the store did not complete the upload in time; it was aborted", key=self.key)
        return facts

    def _ours(self, *, strict: bool = False) -> ObjectFacts | None:
        """What is there, if this upload made it."""
        try:
            facts = self._bucket.head(self.key, customer_key=self._options.customer_key)
        except NotFound:
            return None
        except StoreError:
            if strict:
                raise
            return None
        return facts if facts.attributes.metadata.get(TOKEN) == self._token else None

    def leave_off(self) -> None:
        """Send nothing more and keep what S3 has, for who takes the journal up again."""
        self.fail(Unavailable("the upload was left off", key=self.key))
        with self._changed:
            while self._under_way and self.patience.left_s > -self._context.settings.verify_s:
                self._changed.wait(_POLL_S)
        if self._journal is not None:
            self._journal.close()

    def abort(self) -> None:
        """Send nothing more and forget the parts, once those under way are out of the way. Does not wait, raises nothing:
        what fails here is left to `clean_up`."""
        with self._changed:
            self._failure = self._failure or Unavailable("the upload was aborted", key=self.key)
            self._over, idle = True, not self._under_way
            self._changed.notify_all()
        if idle:
            try:
                self._context.pool.submit(self._abort_now)
            except RuntimeError:
                self._abort_now()

    def _abort_now(self) -> None:
        if self._upload_id:
            try:
                self._bucket.abort_upload(self.key, self._upload_id)
            except StoreError as error:
                log.warning("not aborted, clean_up will: key=%s error=%s", self.key, error)
                if self._journal is not None:
                    self._journal.close()
                return
        if self._journal is not None:
            self._journal.remove()

    # --- another name ----------------------------------------------------------------------------------------------

    def copied(self, source: Uploaded, key: str) -> Uploaded:
        """The object that this upload made, copied by the server to `key` in the same parts, verified; then the first one is
        deleted. A crash leaves the first one, perhaps both."""
        context, bucket, options = self._context, self._bucket, self._options
        parts = [part for _, part in sorted(self._parts.items())]
        copy = Multipart(context, key, self.plan, self._attributes, self._token, None)
        origin = CopySource(bucket.properties.name, self.key, source.version_id, source.etag, options.customer_key)
        upload_id = copy._begun()

        def one(part: SentPart, offset: int) -> None:
            etag = copy.patience.persist(
                lambda: bucket.copy_part(
                    key, upload_id, part.number, origin, offset=offset, length=part.size, options=options
                )
            )
            copy.adopt(SentPart(part.number, part.size, etag, part.digests))

        try:
            for part in parts:
                one(part, self.plan.offset(part.number))
            with copy._changed:
                copy._etags_are_md5 = self._etags_are_md5
            done = copy.complete(source.plain_bytes)
        except BaseException:
            copy.abort()
            raise
        try:
            bucket.delete(self.key)
        except StoreError as error:
            log.warning("the object under its first name was not deleted: key=%s error=%s", self.key, error)
        return done


class _Watched(LazyBody):
    """A body that tells when more of it left than ever before. The first pieces of each attempt fill this host's buffers
    alone, so that a second attempt at them is no progress."""

    def __init__(self, body: Buffer | LazyBody, size: int, moved: Callable[[], None]) -> None:
        self._body = body
        self._size = size
        self._moved = moved
        self._furthest = -1

    @property
    def byte_count(self) -> int:
        return self._size

    def __len__(self) -> int:
        return -(-self._size // PIECE_BYTES)

    def piece(self, at: int) -> Buffer:
        if at > self._furthest:
            self._furthest = at
            self._moved()
        return self._piece(at)

    def peek(self) -> Iterator[Buffer]:
        return map(self._piece, range(len(self)))

    def _piece(self, at: int) -> Buffer:
        if isinstance(self._body, LazyBody):
            return self._body.piece(at)
        return memoryview(self._body)[at * PIECE_BYTES : (at + 1) * PIECE_BYTES]


def put_whole(
    context: Context,
    key: str,
    body: Buffer | LazyBody,
    size: int,
    plain_bytes: int,
    attributes: Attributes,
    digests: Digests | None = None,
) -> Uploaded:
    """An object in one request, verified. A crash leaves nothing, or the object."""
    options, token = context.options(key), new_token()
    made = digests or digests_of(body, options.checksum)
    patience = context.patience()
    written = patience.persist(
        lambda: context.bucket.put(key, body, attributes=marked(attributes, token, ""), options=options, digests=made)
    )
    until = context.clock.monotonic() + context.settings.verify_s
    # The server compared the MD5 we sent along: an ETag that is another is none.
    is_md5 = options.etag_is_md5 and written.etag == made.md5.hex()
    facts = looked_at(context, key, until, options.customer_key)
    return verified(context, facts, Expected.of_body(size, made), token, plain_bytes, is_md5)


def looked_at(context: Context, key: str, until: float, customer_key: CustomerKey | None) -> ObjectFacts:
    """HEAD, until it is answered; OutcomeUnknown once `until` passed: the object is whole, but nobody saw it."""
    while True:
        try:
            return context.bucket.head(key, customer_key=customer_key)
        except StoreError as error:
            if not (error.temporary or isinstance(error, NotFound)) or context.clock.monotonic() + _LOOK_S > until:
                raise OutcomeUnknown(f"it was written and could not be verified: {error}", key=key) from error
            context.clock.sleep(_LOOK_S)


def verified(
    context: Context, facts: ObjectFacts, expected: Expected, token: str, plain_bytes: int, etag_is_md5: bool
) -> Uploaded:
    """Green, or an error. A wrong object of ours is deleted: it must not be taken for a good one."""
    key = facts.key
    if facts.attributes.metadata.get(TOKEN) != token:
        raise PreconditionFailed("somebody else has put another object there meanwhile", key=key)
    judged = verdict(facts, expected, etag_is_md5=etag_is_md5)
    if judged == "other":
        text = (
            f"the store has {facts.size:,} bytes with ETag {facts.etag}; sent were {expected.size:,} with"
            f" {expected.etag or expected.checksums}"
        )
        try:
            context.bucket.delete(key)
        except StoreError as error:
            raise Corrupt(f"{text}; and it could not be deleted: {error}", key=key) from error
        raise Corrupt(f"{text}; it was deleted again", key=key)
    proof = "size" if judged == "size" else "etag" if facts.etag == expected.etag else "checksum"
    return Uploaded(key, facts.size, plain_bytes, facts.etag, facts.version_id, facts.modified, proof)
