"""A stream of bytes of unknown length that becomes an object.

    write -> (sealed) -> room for one part in the spool -> a thread sends it, and gives the room back
                                                        `-> a full one leaves when the byte after it comes

A stream that ends within its first part is one PUT.

One rule: bytes leave in order and once, so what was sent cannot be written again; until `finish` returns nothing of it is
visible under its name that was not verified.
"""

import threading
from collections.abc import Callable
from functools import partial

from plugin.errors import PluginError
from plugin.upload.context import Context, new_token, over, too_large
from plugin.upload.journal import Journal, Record
from plugin.upload.multipart import Multipart, Uploaded, put_whole
from plugin.upload.plan import PartPlan
from plugin.upload.sealing import SealedStream
from plugin.upload.spool import Room
from s3core.bucket import Attributes
from s3core.errors import NotFound, StoreError
from s3core.store import Buffer

HEAD_BYTES = 64 << 10
_ZEROS = bytes(1 << 20)

KeyChoice = str | Callable[[bytes], str]

__all__ = ["CannotRewind", "KeyChoice", "StreamingUpload", "Uploaded"]


class CannotRewind(PluginError):
    """These bytes are on their way to S3, and an object is not written over in part."""

    code = "unsupported"


class StreamingUpload:
    """For one writing thread at a time; `abort` may come from any. `closed` is called once when it is over."""

    def __init__(
        self, context: Context, key: KeyChoice, plan: PartPlan, attributes: Attributes, closed: Callable[[], None]
    ) -> None:
        self._context = context
        self._key = key
        self._plan = plan
        self._attributes = attributes
        self._closed = closed
        self._lock = threading.RLock()  # whoever writes, finishes or clears up
        self._head = bytearray()
        self._size = 0  # bytes that were written
        self._stated = 0  # what `truncate` said it will have at least
        self._sealed: SealedStream | None = None
        self._multipart: Multipart | None = None
        self._room: Room | None = None
        self._filled = 0  # bytes in it
        self._number = 1  # the part that fills
        self._offset = 0  # bytes in parts that left, as the bucket will have them
        self._aborted = threading.Event()
        self._over = ""  # why nothing more can be done

    @property
    def size(self) -> int:
        """As of a file: one past the last byte, written or stated by `truncate`."""
        return max(self._size, self._stated)

    @property
    def head(self) -> bytes:
        """The first bytes that were written, up to 64 KiB, also when they are sent: what a key is predicted from."""
        return bytes(self._head)

    @property
    def sent(self) -> int:
        """Bytes that cannot be written over any more: a write before this offset is CannotRewind."""
        return self._sealed.sealed_plain if self._sealed is not None else self._offset

    @property
    def key(self) -> str:
        """Under which its parts lie; "" while nothing has left."""
        return self._multipart.key if self._multipart is not None else ""

    def write(self, data: Buffer) -> int:
        """Append; blocks while the spool is full. Raises what made the upload fail, or Unavailable after `patience_s`
        in which nothing moved; the upload is then over: `abort` it. OSError where the spool's disk is full."""
        with self._lock:
            self._zeros(self._stated - self._size)
            return self._append(data)

    def _append(self, data: Buffer) -> int:
        with memoryview(data) as given, given.cast("B") as view:
            self._check()
            largest = self._plan.object_bytes_max
            if self._size + len(view) > largest:
                raise too_large(largest)
            if len(self._head) < HEAD_BYTES:
                self._head += view[: HEAD_BYTES - len(self._head)]
            if self._context.keyring is None:
                self._store(view)
            else:
                for sealed in self._sealing().add(view):
                    self._store(sealed)
            self._size += len(view)
            return len(view)

    def write_at(self, offset: int, data: Buffer) -> int:
        """As a file takes it: at the end, beyond it (the gap is zeros), or over bytes that have not left the spool.
        CannotRewind for what left; the upload stays usable."""
        with self._lock, memoryview(data) as given, given.cast("B") as view:
            if offset >= self._size:
                self._check()
                self._zeros(offset - self._size)
                return self._append(view)
            self._check()
            if offset < self.sent:
                raise self._cannot("write", offset)
            inside = min(len(view), self._size - offset)
            if offset < HEAD_BYTES:
                upto = min(inside, HEAD_BYTES - offset)
                self._head[offset : offset + upto] = view[:upto]
            if self._sealed is not None:
                self._sealed.overwrite(offset, view[:inside])
            elif self._room is not None:
                self._room.write(offset - self._offset, view[:inside])
            if inside < len(view):
                self._append(view[inside:])
            return len(view)

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes that have not left the spool, or are in `head`; fewer at the end. CannotRewind for others."""
        with self._lock:
            zeros = max(0, min(offset + length, self.size) - max(offset, self._size))
            length = max(0, min(length, self._size - offset))
            if zeros:
                return (self.read_at(offset, length) if length else b"") + bytes(zeros)
            if offset + length <= len(self._head):
                return bytes(self._head[offset : offset + length])
            if offset < self.sent:
                raise self._cannot("read", offset)
            if self._sealed is not None:
                return self._sealed.read(offset, length)
            return self._room.read(offset - self._offset, length) if self._room is not None else b""

    def truncate(self, size: int) -> None:
        """Longer: zeros, where nothing is written until `finish`; nothing is stored before, so a writer that states the size
        first and then begins at the front (qemu-img) may. Shorter: only what has not left the spool, else CannotRewind."""
        with self._lock:
            self._check()
            if size > self._plan.object_bytes_max:
                raise too_large(self._plan.object_bytes_max)
            if size >= self._size:
                self._stated = size
                return
            # A sealed stream that began to leave needs a byte for its last frame.
            if size < self.sent + (1 if self._sealed is not None and self.sent else 0):
                raise self._cannot("cut it", size)
            if self._sealed is not None:
                self._sealed.cut(size)
            else:
                self._filled = size - self._offset
            self._size = self._stated = size
            del self._head[size:]

    def finish(self, key: str = "") -> Uploaded:
        """Complete under `key` ("": the key it began with), verify. Another key than it began with: where parts have left,
        the object is completed under the first key, copied by the server, verified and the first one deleted; not where it
        is sealed, since the key is sealed with it, nor where the first key has an object, which would be lost (CannotRewind,
        before anything is visible). StoreErrors as of the bucket;
        Corrupt where the store holds other bytes (then deleted); OutcomeUnknown after `verify_s`. Whatever is raised but
        CannotRewind, the upload is over: `abort` it."""
        with self._lock:
            self._check()
            self._zeros(self._stated - self._size)
            if self._multipart is None:
                self._key = key or self._chosen()
            elif key and key != self._multipart.key and self._sealed is not None:
                raise CannotRewind(
                    f"{self._multipart.key} cannot become {key} any more: the name is sealed with the bytes",
                    hint="choose the final name before the first part leaves",
                )
            elif key and key != self._multipart.key and self._is_there(self._multipart.key):
                raise CannotRewind(
                    f"{key} would be made by way of {self._multipart.key}, where another object lies",
                    hint="write it again under a name of its own, or give it the name it was begun for",
                )
            if self._context.keyring is not None:
                for sealed in self._sealing().end():
                    self._store(sealed)
            self._over = "it was finished"
            try:
                done = self._finished(key)
            finally:
                self._release()
            self._closed()
            return done

    def abort(self) -> None:
        """Forget it; gives the spool back. Never raises StoreError: what cannot be aborted now `clean_up` aborts. Nothing
        happens to what is finished."""
        self._aborted.set()
        if self._multipart is not None:
            self._multipart.fail(over("it was aborted"))
        with self._lock:
            finished = self._over == "it was finished"
            self._over = self._over or "it was aborted"
            self._release()
            if self._multipart is not None and not self._multipart.done:
                self._multipart.abort()
        if not finished:
            self._closed()

    # --- under the lock ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        error = self._failure()
        if error is not None:
            raise error
        if self._over:
            raise over(self._over)

    def _failure(self) -> StoreError | None:
        if self._aborted.is_set():
            return over("it was aborted")
        return self._multipart.failure if self._multipart is not None else None

    def _sealing(self) -> SealedStream:
        if self._sealed is None:
            assert self._context.keyring is not None
            self._sealed = SealedStream(self._context.keyring, lambda: self._context.facts(self._chosen()))
        return self._sealed

    def _chosen(self) -> str:
        if not isinstance(self._key, str):
            self._key = self._key(self.head)
        return self._key

    def _zeros(self, count: int) -> None:
        while count > 0:
            count -= self._append(_ZEROS[:count])

    def _store(self, data: Buffer) -> None:
        """Bytes as the bucket will have them, into parts."""
        view = memoryview(data)
        while view:
            if self._room is not None and self._filled == self._room.capacity:
                self._leave()
            if self._room is None:
                capacity = self._plan.size(self._number)
                self._room = self._context.room(capacity, self._failure)
                self._filled = 0
            taken = view[: self._room.capacity - self._filled]
            self._room.write(self._filled, taken)
            self._filled += len(taken)
            view = view[len(taken) :]

    def _leave(self) -> None:
        room, self._room = self._room, None
        if room is None:
            return
        try:
            multipart = self._begun()
        except BaseException:
            room.release()
            raise
        multipart.leave(self._number, self._filled, partial(room.body, self._filled), room.release)
        self._number += 1
        self._offset += self._filled

    def _begun(self) -> Multipart:
        if self._multipart is None:
            context, token = self._context, new_token()
            record = Record(token, self._chosen(), self._plan, context.clock.time())
            journal = Journal.create(context.directory, record)
            self._multipart = Multipart(context, record.key, self._plan, self._attributes, token, journal)
        return self._multipart

    def _finished(self, key: str) -> Uploaded:
        if self._multipart is None:
            body = self._room.body(self._filled) if self._room is not None else b""
            size = self._filled if self._room is not None else 0
            return put_whole(self._context, self._chosen(), body, size, self._size, self._attributes)
        multipart = self._multipart
        if self._room is not None and self._filled:
            self._leave()
        multipart.wait()
        done = multipart.complete(self._size)
        return multipart.copied(done, key) if key and key != done.key else done

    def _is_there(self, key: str) -> bool:
        try:
            self._context.bucket.head(key, customer_key=self._context.options(key).customer_key)
        except NotFound:
            return False
        return True

    def _release(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.release()

    def _cannot(self, what: str, offset: int) -> CannotRewind:
        return CannotRewind(
            f"cannot {what} at offset {offset:,}: the first {self.sent:,} bytes are on their way to the bucket",
            hint="write the file from front to back, or write it elsewhere and copy it here",
        )
