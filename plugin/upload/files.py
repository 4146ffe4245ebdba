"""A file sent as an object: parts read from the file itself, and after a crash only those that S3 does not have.

A journal is taken up again when it is for the same key and the file is the one it was (path, inode, size, mtime, as rsync and
rclone judge); what S3 has is then asked for (ListParts) and compared. Where objects are sealed the whole file is sealed again
with the same salt, and each part that may have left is compared first: other bytes under the same salt are never sent.

One rule: a file that changes while it is sent becomes no object.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cowsync.sealing.format import SALT_BYTES, Sealer, facts_units, sealed_bytes
from cowsync.sealing.keys import Keyring
from plugin.errors import Refused
from plugin.upload.context import Context, new_token
from plugin.upload.journal import Journal, Record, SealedWith, SentPart, Source, journals
from plugin.upload.multipart import Multipart, Uploaded, put_whole
from plugin.upload.plan import plan_known
from plugin.upload.spool import FileSpan, read_exactly
from s3core.bucket import PART_BYTES_MAX, Attributes, ListedPart
from s3core.content import LazyBody
from s3core.digests import Digests, digests_of
from s3core.errors import Corrupt, NotFound
from s3core.store import Buffer

log = logging.getLogger(__name__)
KEPT_S = 7 * 86_400.0
_WHOLE_BYTES = 32 << 20
"""A sealed file up to this is sealed in memory and put in one request."""
Progress = Callable[[int, int], None] | None


@dataclass(frozen=True, slots=True)
class Resumable:
    """Whether a dead process's upload is worth keeping."""

    worth_keeping: bool

    @classmethod
    def of(cls, record: Record, now: float) -> "Resumable":
        source = record.source
        if source is None or record.completing or not record.upload_id or now - record.began > KEPT_S:
            return cls(False)
        try:
            return cls(Source.of(Path(source.path), os.stat(source.path)) == source)
        except OSError:
            return cls(False)


def send_file(context: Context, path: Path, key: str, attributes: Attributes, progress: Progress) -> Uploaded:
    """See `Uploader.file`."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        source = Source.of(path, os.fstat(file))
        if source.size <= min(context.settings.part_bytes, _WHOLE_BYTES if context.keyring else PART_BYTES_MAX):
            return _small(context, file, source, key, attributes, progress)
        while True:
            sending = _Sending(context, file, source, key, attributes, progress)
            try:
                return sending.carry_out()
            except _Restart as stale:
                log.info("begins again: key=%s reason=%s", key, stale)
    finally:
        os.close(file)


class _Restart(Exception):
    """What S3 has of an earlier attempt is of no use; it was aborted."""


def _small(
    context: Context, file: int, source: Source, key: str, attributes: Attributes, progress: Progress
) -> Uploaded:
    body: Buffer | LazyBody = FileSpan(file, 0, source.size)
    size = source.size
    if context.keyring is not None:
        sealer = context.keyring.sealer(source.size, context.facts(key))
        size = sealer.header.sealed_bytes
        body = b"".join(_sealed(sealer, file))
    digests = digests_of(body, context.options(key).checksum)
    _check_same(file, source)  # and what is sent is compared with the digests by the server
    done = put_whole(context, key, body, size, source.size, attributes, digests)
    if progress is not None:
        progress(source.size, source.size)
    return done


class _Sending:
    """One attempt at one file, new or taken up again."""

    def __init__(
        self, context: Context, file: int, source: Source, key: str, attributes: Attributes, progress: Progress
    ) -> None:
        self._context = context
        self._file = file
        self._source = source
        self._progress = progress
        self._journal, self._resumed = self._taken(key)
        record = self._journal.record
        self._size = source.size
        if context.keyring is not None:
            self._size = sealed_bytes(source.size, facts_units(context.facts(key)), context.keyring.frame_shift)
        self._multipart = Multipart(context, key, record.plan, attributes, record.token, self._journal)

    def carry_out(self) -> Uploaded:
        """The upload is left as it is where this raises, for the next call, but where it can never become the object."""
        multipart = self._multipart
        try:
            held = self._held() if self._resumed else {}
            for part in held.values():
                multipart.adopt(part)
            self._show()
            if self._context.keyring is None:
                self._send_plain(held)
            else:
                self._send_sealed(self._context.keyring, held)
            multipart.wait()
            self._show()
            _check_same(self._file, self._source)
            return multipart.complete(self._source.size)
        except (_Restart, Refused, Corrupt):
            multipart.abort()
            raise
        except NotFound as gone:
            multipart.abort()
            if not gone.key or not self._resumed:
                raise
            raise _Restart(str(gone)) from gone
        except BaseException:
            multipart.leave_off()
            raise

    def _taken(self, key: str) -> tuple[Journal, bool]:
        """The journal of a dead process's attempt at the same, else a new one."""
        context, found = self._context, None
        for journal in journals(context.directory):
            record = journal.record
            fits = (record.key, record.source) == (key, self._source) and record.upload_id and not record.completing
            if fits and found is None and self._can_seal(record):
                found = journal
            else:
                journal.close()
        if found is not None:
            return found, True
        sealing, size = None, self._source.size
        if context.keyring is not None:
            sealing = SealedWith(str(context.keyring.current.id), context.keyring.random(SALT_BYTES).hex())
            size = sealed_bytes(size, facts_units(context.facts(key)), context.keyring.frame_shift)
        plan = plan_known(size, context.settings.part_bytes)
        if context.keyring is not None and plan.first > context.spool.largest:
            raise Refused(f"{key}: parts of {plan.first:,} bytes do not fit the spool", hint="make the spool larger")
        record = Record(new_token(), key, plan, context.clock.time(), self._source, sealing)
        return Journal.create(context.directory, record), False

    def _can_seal(self, record: Record) -> bool:
        keyring = self._context.keyring
        if keyring is None or record.sealing is None:
            return keyring is None and record.sealing is None
        return record.sealing.key_id == str(keyring.current.id)

    def _held(self) -> dict[int, SentPart]:
        """The parts that S3 has and that are the ones they must be."""
        context, record = self._context, self._journal.record
        held, after = {}, 0
        lengths = {number: length for number, _, length in record.plan.cut(self._size)}
        while True:
            page = context.bucket.list_parts(
                record.key, record.upload_id, after=after, customer_key=self._multipart.options.customer_key
            )
            for listed in page.parts:
                part = self._judged(listed, lengths.get(listed.number, -1))
                if part is not None:
                    held[part.number] = part
            if not page.next_number:
                return held
            after = page.next_number

    def _judged(self, listed: ListedPart, length: int) -> SentPart | None:
        if listed.size != length:
            return None
        known = self._journal.record.parts.get(listed.number)
        if known is not None and known.etag == listed.etag:
            return known
        if self._context.keyring is not None:
            digest = self._journal.record.sending.get(listed.number, "")
            if digest != listed.etag or self._multipart.options.checksum:
                return None
            return SentPart(listed.number, listed.size, listed.etag, Digests(bytes.fromhex(digest)))
        # S3 had it and the journal did not come to say so: the file tells.
        offset = self._journal.record.plan.offset(listed.number)
        digests = digests_of(FileSpan(self._file, offset, length), self._multipart.options.checksum)
        if digests.md5.hex() != listed.etag:
            return None
        return SentPart(listed.number, listed.size, listed.etag, digests)

    def _send_plain(self, held: Mapping[int, SentPart]) -> None:
        for number, offset, length in self._journal.record.plan.cut(self._size):
            if number not in held:
                self._wait_for_turn()
                body = partial(FileSpan, self._file, offset, length)
                self._multipart.leave(number, length, body, _nothing)

    def _send_sealed(self, keyring: Keyring, held: Mapping[int, SentPart]) -> None:
        """Everything is sealed, also what S3 has: only so it is known that the file is the one that was sealed before."""
        record, context = self._journal.record, self._context
        if record.sealing is None:
            raise RuntimeError("a journal without its salt")
        salt = bytes.fromhex(record.sealing.salt)
        facts = context.facts(record.key)
        sealer = Sealer(keyring.current, self._source.size, facts, lambda _: salt, keyring.frame_shift)
        pieces, left = _sealed(sealer, self._file), b""
        for number, _, length in record.plan.cut(self._size):
            self._wait_for_turn()
            room = context.room(length, lambda: self._multipart.failure)
            try:
                filled = 0
                while filled < length:
                    view = memoryview(left or next(pieces))
                    taken = view[: length - filled]
                    room.write(filled, taken)
                    filled, left = filled + len(taken), bytes(view[len(taken) :])
                digests = digests_of(room.body(length), self._multipart.options.checksum)
                before = record.sending.get(number) or (held[number].digests.md5.hex() if number in held else "")
                if before and before != digests.md5.hex():
                    raise _Restart(f"part {number} is sealed to other bytes than before: the file changed")
                if number in held:
                    room.release()
                    continue
                if not before:
                    self._journal.sending(number, digests.md5.hex())
            except BaseException:
                room.release()
                raise
            self._multipart.leave(number, length, partial(room.body, length), room.release, digests)

    def _wait_for_turn(self) -> None:
        self._multipart.wait(self._context.settings.uploads)
        self._show()

    def _show(self) -> None:
        if self._progress is not None:
            self._progress(min(self._multipart.bytes_sent, self._source.size), self._source.size)


def _sealed(sealer: Sealer, file: int) -> Iterator[bytes]:
    header = sealer.header
    yield sealer.head
    for number in range(1, header.frames + 1):
        plain = read_exactly(file, (number - 1) * header.frame_bytes, header.frame_length(number))
        yield sealer.frame(plain)


def _check_same(file: int, source: Source) -> None:
    now = os.fstat(file)
    if (now.st_size, now.st_mtime_ns) != (source.size, source.mtime_ns):
        raise Refused(
            f"{source.path} changed while it was sent; no object was made",
            hint="send it once nobody writes to it any more",
        )


def _nothing() -> None:
    """A part that is read from the file holds nothing that could be given back."""
