"""A stream sealed on its way to the bucket, with its size unknown until its end (docs/formats/sealed-object.md).

One rule: pure, and each frame is sealed once: what was sealed cannot be written over. Some plain bytes are held back, so that
a writer that goes back a little still can, and so that a short stream is sealed with its size (version 1).
"""

from collections.abc import Callable, Iterator

from cowsync.sealing.format import (
    FACTS_UNIT,
    FRAME_SHIFT,
    HEADER,
    TAG_BYTES,
    Facts,
    StreamSealer,
    facts_units,
    frame_count,
    sealed_bytes,
)
from cowsync.sealing.keys import Keyring
from s3core.store import Buffer

HELD_BYTES = 4 << 20
"""Plain bytes that are held back at least, and sealed at the end."""


class SealedStream:
    """Takes plain bytes, gives sealed ones. `facts` is asked when the first frame is sealed. Not for two threads at once."""

    def __init__(self, keyring: Keyring, facts: Callable[[], Facts], held_bytes: int = HELD_BYTES) -> None:
        self._keyring = keyring
        self._facts = facts
        self._held_bytes = held_bytes
        self._sealer: StreamSealer | None = None
        self._held = bytearray()
        self._sealed_plain = 0

    @property
    def sealed_plain(self) -> int:
        """Plain bytes that were sealed: from here on they can be written over."""
        return self._sealed_plain

    @property
    def size(self) -> int:
        """Plain bytes in all."""
        return self._sealed_plain + len(self._held)

    def add(self, data: Buffer) -> Iterator[bytes]:
        """Append; gives the sealed bytes that are ripe."""
        self._held += data
        frame = 1 << self._keyring.frame_shift
        ripe = (len(self._held) - self._held_bytes) // frame * frame
        if ripe <= 0:
            return
        if self._sealer is None:
            self._sealer = self._keyring.stream_sealer(self._facts())
            yield self._sealer.head
        with memoryview(self._held) as held:
            for at in range(0, ripe, frame):
                yield self._sealer.frame(held[at : at + frame])
        del self._held[:ripe]
        self._sealed_plain += ripe

    def overwrite(self, offset: int, data: Buffer) -> None:
        """Bytes that are held; `offset` counts plain bytes."""
        begin = offset - self._sealed_plain
        if begin < 0 or begin + len(data) > len(self._held):
            raise ValueError("these bytes are sealed, or not there")
        self._held[begin : begin + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that are held."""
        begin = offset - self._sealed_plain
        if begin < 0:
            raise ValueError("these bytes are sealed")
        return bytes(self._held[begin : begin + length])

    def cut(self, size: int) -> None:
        """Forget held bytes from `size` on; of a stream that began to leave at least one stays, which is the last frame's."""
        keep = size - self._sealed_plain
        if not (0 if self._sealer is None else 1) <= keep <= len(self._held):
            raise ValueError("these bytes are sealed, or not there")
        del self._held[keep:]

    def end(self) -> Iterator[bytes]:
        """The rest."""
        frame = 1 << self._keyring.frame_shift
        held = bytes(self._held)
        whole = self._keyring.sealer(len(held), self._facts()) if self._sealer is None else None
        if whole is not None:
            yield whole.head
        for at in range(0, max(1, len(held)), frame):
            piece = held[at : at + frame]
            if whole is not None:
                yield whole.frame(piece)
            elif self._sealer is not None:
                yield self._sealer.frame(piece, last=at + frame >= len(held))
        self._sealed_plain += len(held)
        self._held.clear()


def plain_bytes(key: str, sealed: int, frame_shift: int = FRAME_SHIFT) -> int | None:
    """How many bytes lie sealed in an object of the plugin's with `sealed` bytes, in a listing say, without asking for it:
    `key` is relative to the storage's prefix. None where no object of that key can have that length."""
    head = HEADER.size + facts_units(Facts(key)) * FACTS_UNIT
    frames = -(-(sealed - head) // ((1 << frame_shift) + TAG_BYTES))
    size = sealed - head - frames * TAG_BYTES
    fits = frames > 0 and size >= 0 and frame_count(size, 1 << frame_shift) == frames
    return size if fits and sealed_bytes(size, facts_units(Facts(key)), frame_shift) == sealed else None
