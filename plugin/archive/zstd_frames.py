"""Where frames and blocks of zstd begin (RFC 8878 section 3.1), found without decompressing, and the seekable format
(contrib/seekable_format in zstd: a table of frames in a skippable frame at the end).

A frame depends on nothing before it, so decompression may begin at any; a block needs what came before it in its frame. What
`zstd` writes on its own is one frame, however large, with `--rsyncable` and threads too: nothing in the middle of it can be
read without all that precedes it. What we compress has a frame for every 4 MiB.

One rule: a scanner keeps one header, never data, however the bytes are cut.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zstandard

from plugin.archive.errors import BadArchive

MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of the magic number of a skippable frame; byte 0 is 0x50 to 0x5f."""
BLOCK_BYTES_MAX = 128 << 10
"""What one block holds at most once decompressed."""
SEEK_MAGIC = 0x8F92EAB1
SEEK_FRAME = 0x184D2A5E
FRAME_BYTES = 4 << 20
"""Of plain bytes in one frame of ours: what a read in the middle decompresses for nothing is half of it."""
_FRAMES_MAX = 0x8000000
"""Of one seek table, by the format's own limit (ZSTD_SEEKABLE_MAXFRAMES)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """`at` is where it begins; `content` is the plain size that its header states, or None."""

    at: int
    content: int | None
    skippable: bool
    window: int
    """Bytes that a decoder must keep."""
    head: bytes
    """The header as it stands. What a decoder is begun with."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes for a decoder, or the header of a frame (`frame`, without `data`). `last`: the frame is whole behind them. A
    decoder puts out at most `Scanner.slice_max` bytes and one block for them."""

    data: memoryview
    frame: Frame | None
    last: bool
    between: bool = False
    """A block of the same frame begins behind them."""


class Scanner:
    """Compressed bytes in order, in pieces of any size; out come the same bytes, cut so that no input makes a decoder put
    out more than `slice_max` and one block at a call. BadArchive where they are not zstd."""

    def __init__(self, slice_max: int = 1 << 20, *, inside: bool = False) -> None:
        """`inside`: the bytes begin between two blocks of a frame, whose end is then not to be passed."""
        self.at = 0
        self.slice_max = slice_max
        self._held = bytearray()
        """Bytes of a header that is not whole."""
        self._need = 3 if inside else 5
        self._state = "block" if inside else "frame"
        self._left = 0
        """Bytes of the block, checksum or skippable frame that are still to come."""
        self._plain = 0
        """What the blocks since the last cut hold at most."""
        self._last = False
        self._checksum = False

    @property
    def whole(self) -> bool:
        """Whether the bytes end where a frame does."""
        return self._state == "frame" and not self._held

    def feed(self, data: bytes | memoryview) -> Iterator[Slice]:
        """To be exhausted before the next call."""
        view = memoryview(data)
        place = begun = 0
        while place < len(view):
            step = min(self._left or self._need - len(self._held), len(view) - place)
            frame, done = None, False
            if self._left:
                self._left -= step
            else:
                self._held += view[place : place + step]
            place += step
            self.at += step
            if self._left or (self._held and len(self._held) < self._need):
                continue
            if self._held and self._state == "frame":
                frame = self._frame()
                if frame is None:
                    continue
                self._held.clear()
                self._expect("block", 3)
                if frame.skippable:
                    self._state, self._left = "skip", frame.content or 0
                    # An empty one is whole with its header, and has no other slice to say so.
                    done = not self._left
            elif self._held:
                self._plain += self._block()
                self._held.clear()
                done = not self._left and self._behind()
            else:
                done = self._behind()
            if done:
                self._expect("frame", 5)
            between = self._state == "block" and not self._left and not self._held
            if frame is not None or done or (between and self._plain >= self.slice_max):
                yield Slice(view[begun:place] if frame is None else view[:0], frame, done, between)
                begun, self._plain = place, 0
        if place > begun and self._state != "frame":
            yield Slice(view[begun:place], None, False)

    def _expect(self, state: str, need: int) -> None:
        self._state, self._need, self._left = state, need, 0

    def _frame(self) -> Frame | None:
        """None where more of the header must come."""
        head = self._held
        at = self.at - len(head)
        if head[1:4] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
            if self._need < 8:
                self._need = 8
                return None
            return Frame(at, int.from_bytes(head[4:8], "little"), True, 0, bytes(head))
        if head[:4] != MAGIC:
            raise BadArchive("there is no zstd frame where one must begin", at)
        flags = head[4]
        if flags & 0x08:
            raise BadArchive("a zstd frame with a reserved bit", at)
        single, dictionary = flags >> 5 & 1, (0, 1, 2, 4)[flags & 3]
        size_bytes = (single, 2, 4, 8)[flags >> 6]
        need = 5 + (1 - single) + dictionary + size_bytes
        if len(head) < need:
            self._need = need
            return None
        if dictionary and any(head[6 - single : 6 - single + dictionary]):
            raise BadArchive("a zstd frame that needs a dictionary", at)
        content = int.from_bytes(head[need - size_bytes : need], "little") if size_bytes else None
        if content is not None and size_bytes == 2:
            content += 256
        if single:
            window = content or 0
        else:
            base = 1 << 10 + (head[5] >> 3)
            window = base + (base >> 3) * (head[5] & 7)
        self._checksum = bool(flags & 0x04)
        return Frame(at, content, False, window, bytes(head))

    def _block(self) -> int:
        """Reads a block's header; what it holds at most once decompressed."""
        head = int.from_bytes(self._held, "little")
        self._last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == 3:
            raise BadArchive("a zstd block of a reserved kind", self.at - 3)
        if size > BLOCK_BYTES_MAX:
            raise BadArchive(f"a zstd block of {size:,} bytes", self.at - 3)
        self._state, self._left = "data", 1 if kind == 1 else size
        return size if kind != 2 else BLOCK_BYTES_MAX

    def _behind(self) -> bool:
        """Behind a block, a checksum or a skippable frame: whether the frame is whole."""
        if self._state == "data" and not self._last:
            self._expect("block", 3)
            return False
        if self._state == "data" and self._checksum:
            self._state, self._left = "checksum", 4
            return False
        return True


def seek_table(frames: Iterable[tuple[int, int]]) -> bytes:
    """A skippable frame with (compressed, plain) sizes of all frames before it; no checksums, the frames have their own."""
    rows = [struct.pack("<II", *row) for row in frames]
    body = b"".join(rows) + struct.pack("<IBI", len(rows), 0, SEEK_MAGIC)
    return struct.pack("<II", SEEK_FRAME, len(body)) + body


def seek_table_size(footer: bytes) -> int | None:
    """Bytes of the whole skippable frame at the end of an object, from its last 9; None where there is none."""
    if len(footer) != 9:
        return None
    count, flags, magic = struct.unpack("<IBI", footer)
    if magic != SEEK_MAGIC or flags & 0x7C or count > _FRAMES_MAX:
        return None
    return 8 + int(count) * (12 if flags & 0x80 else 8) + 9


def decode_seek_table(data: bytes) -> list[tuple[int, int]]:
    """(compressed, plain) sizes of frames, from the bytes that `seek_table_size` counts. BadArchive."""
    size = seek_table_size(data[-9:])
    if size != len(data) or struct.unpack_from("<II", data) != (SEEK_FRAME, size - 8):
        raise BadArchive("the seek table at the end is damaged", 0)
    row = struct.Struct("<II4x" if data[-5] & 0x80 else "<II")
    return [(int(stored), int(plain)) for stored, plain in row.iter_unpack(data[8:-9])]


class SeekableWriter:
    """Plain bytes in, zstd in the seekable format out: a frame with its checksum for every `frame_bytes`, the table last.
    Any zstd reads it. Memory: one frame, and 8 bytes of table for each."""

    def __init__(self, level: int = 3, frame_bytes: int = FRAME_BYTES) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._frame_bytes = frame_bytes
        self._held = bytearray()
        self._frames: list[tuple[int, int]] = []

    def feed(self, data: bytes | memoryview) -> bytes:
        self._held += data
        out = []
        while len(self._held) >= self._frame_bytes:
            with memoryview(self._held) as view:
                out.append(self._frame(bytes(view[: self._frame_bytes])))
            del self._held[: self._frame_bytes]
        return b"".join(out)

    def finish(self) -> bytes:
        last = self._frame(bytes(self._held)) if self._held or not self._frames else b""
        self._held.clear()
        return last + seek_table(self._frames)

    def _frame(self, plain: bytes) -> bytes:
        frame = self._compressor.compress(plain)
        self._frames.append((len(frame), len(plain)))
        return frame
