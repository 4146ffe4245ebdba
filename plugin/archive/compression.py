"""Which compression an archive has, and decoders that make plain bytes of it as it streams.

One rule: a decoder gives at most about a MiB at a time, whatever the bytes are, and keeps no more than a window and a block.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import zstandard

from plugin.archive import lzo, vma, zstd_frames
from plugin.archive.errors import BadArchive

HEAD_BYTES = 16
"""What `detect` needs."""
OUT_BYTES_MAX = 1 << 20
WINDOW_BYTES_MAX = 32 << 20
"""Of zstd, while an upload is indexed: what levels up to 20 ask for. vzdump's level takes 2 MiB."""
WINDOW_BYTES_PATIENT = 128 << 20
"""For a person who waits: what `zstd` itself accepts without --memory."""
POINT_SPACING = 1 << 20
POINTS_MAX = 1 << 16
_GZIP_STEP = 64 << 10
_SUFFIXES = {"zstd": ".zst", "gzip": ".gz", "lzo": ".lzo", "": ""}


def detect(head: bytes) -> str:
    """zstd, gzip, lzo, or "" for bytes that are not compressed."""
    if head[:4] == zstd_frames.MAGIC or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if head[:9] == lzo.MAGIC:
        return "lzo"
    return ""


def kind_of(plain: bytes | bytearray) -> str:
    """vma, tar, or "" for anything else, from the first 512 plain bytes."""
    if plain[:4] == vma.MAGIC:
        return "vma"
    if plain[257:262] == b"ustar":
        return "tar"
    return ""


def suffix(kind: str, compression: str) -> str:
    """What vzdump calls such a file: `.vma.zst`, `.tar.gz`."""
    return f".{kind}{_SUFFIXES[compression]}"


class Points:
    """Where decompression may begin: (byte of the object, byte of the plain archive), the first one (0, 0). Thinned by
    itself, so that there are never more than `POINTS_MAX`."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []
        self._spacing = POINT_SPACING

    def add(self, stored: int, plain: int) -> None:
        if self.rows and plain - self.rows[-1][1] < self._spacing:
            return
        self.rows.append((stored, plain))
        if len(self.rows) > POINTS_MAX:
            del self.rows[1::2]
            self._spacing *= 2


@dataclass(frozen=True, slots=True)
class Entrance:
    """A place between two blocks of a zstd frame (`stored` of the object, `plain` of the archive) from which decompression was
    seen to give the right bytes up to `until`, with nothing known but the last plain bytes before it (`history`)."""

    stored: int
    plain: int
    until: int
    window: int
    """The window descriptor (RFC 8878 section 3.1.1.1.2)."""

    def opened(self, history: bytes, window_max: int) -> Callable[[bytes | memoryview], bytes]:
        """A decoder for the blocks from here on: a frame of its own, whose first blocks are the history as it is. Ends where
        the frame does. zstandard.ZstdError."""
        engine = zstandard.ZstdDecompressor(max_window_size=window_max).decompressobj()
        engine.decompress(zstd_frames.MAGIC + bytes((0, self.window)))
        for at in range(0, len(history), zstd_frames.BLOCK_BYTES_MAX):
            piece = history[at : at + zstd_frames.BLOCK_BYTES_MAX]
            engine.decompress((len(piece) << 3).to_bytes(3, "little") + piece)
        return engine.decompress


ENTRANCE_SPACING = 32 << 20
ENTRANCE_SHARE = 16
"""Entrances lie at least this part of what came before apart, so that a TB has about 140."""
PROBE_BYTES = 2 << 20
SEEK_BYTES = 32 << 20
"""How far is looked for one entrance; a job of vzdump's level has 8 MiB."""
TRIALS = 3
"""At a time, beside the one that is kept."""
HISTORY_BYTES_MIN = 256 << 10
HISTORY_BYTES_MAX = 1 << 20
HISTORIES_BYTES_MAX = 32 << 20


class _Trial:
    """A second decoder that began at an entrance, and must give what the first one gives."""

    def __init__(self, entrance: Entrance, history: bytes, window_max: int) -> None:
        self.entrance = entrance
        self.history = history
        self._decompress = entrance.opened(history, window_max)

    def gives(self, data: memoryview, plain: bytes) -> bool:
        try:
            return self._decompress(data) == plain
        except zstandard.ZstdError:
            return False


class Entrances:
    """Finds where a single zstd frame can be entered. `zstd` compresses in jobs of some MiB, each of which refers to little
    before it (with level 3 the last 256 KiB) and to no table of an earlier one; the format does not tell where they begin.
    So places between blocks are tried: a second decoder that begins there runs beside the first until the next entrance
    is found, and what is kept was compared byte for byte. Where there are no jobs hardly any is found."""

    def __init__(self, window_max: int) -> None:
        self.found: list[tuple[Entrance, bytes]] = []
        """With their histories, packed."""
        self._window_max = window_max
        self._window: int | None = None
        self._history_bytes = 0
        self._packed_bytes = 0
        self._recent: deque[bytes] = deque()
        self._recent_bytes = 0
        self._running: _Trial | None = None
        self._tried: list[_Trial] = []
        self._grid = 0
        self._last = 0
        self._seeks = False

    @property
    def seeking(self) -> bool:
        """Whether every place between blocks is of interest."""
        return self._window is not None and self._seeks

    def begin(self, frame: zstd_frames.Frame, plain: int) -> None:
        """A frame begins, whose first byte is `plain` of the archive."""
        self._window, self._running, self._tried, self._seeks = None, None, [], False
        self._last = self._grid = plain
        self._recent.clear()
        self._recent_bytes = 0
        descriptor = frame.head[5] if not frame.head[4] & 0x20 else max(0, (frame.window - 1).bit_length() - 10) << 3
        self._history_bytes = max(HISTORY_BYTES_MIN, frame.window >> 3)
        if self._history_bytes <= HISTORY_BYTES_MAX and self._packed_bytes < HISTORIES_BYTES_MAX:
            self._window = descriptor

    def saw(self, data: memoryview, plain: bytes, stored: int, at: int, between: bool) -> None:
        """The first decoder made `plain` of `data`; `stored` and `at` are the bytes behind them, and `between` says that a
        block begins there."""
        if self._window is None:
            return
        if self._running is not None and not self._running.gives(data, plain):
            self._end(at - len(plain))
        self._tried = [trial for trial in self._tried if trial.gives(data, plain)]
        self._recent.append(plain)
        self._recent_bytes += len(plain)
        while self._recent_bytes - len(self._recent[0]) >= self._history_bytes:
            self._recent_bytes -= len(self._recent.popleft())
        if self._tried and at - self._tried[0].entrance.plain >= PROBE_BYTES:
            self._end(at)
            self._running, self._tried = self._tried[0], []
            self._last = self._running.entrance.plain
        due = self._last + max(ENTRANCE_SPACING, at // ENTRANCE_SHARE)
        if at >= due + SEEK_BYTES:
            # There are no jobs here, or their ends look like nothing: later again.
            self._last, self._tried = at, []
        self._seeks = at >= due and self._last != at
        if self._seeks and between:
            self._try(stored, at, len(plain))

    def _try(self, stored: int, at: int, block: int) -> None:
        """A job ends with a short block, or after a whole number of MiB; such places go before others."""
        if block < zstd_frames.BLOCK_BYTES_MAX:
            self._grid = at
        if len(self._tried) == TRIALS:
            if (at - self._grid) % (1 << 20):
                return
            del self._tried[0]
        history = b"".join(self._recent)[-self._history_bytes :]
        assert self._window is not None
        self._tried.append(_Trial(Entrance(stored, at, at, self._window), history, self._window_max))

    def end(self, at: int) -> None:
        """The frame ended: what ran to here is right to here."""
        self._end(at)
        if self._tried:
            self._running = self._tried[0]
            self._end(at)
        self._window, self._running, self._tried, self._seeks = None, None, [], False

    def _end(self, until: int) -> None:
        trial, self._running = self._running, None
        if trial is not None and until - trial.entrance.plain >= PROBE_BYTES:
            packed = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(trial.history)
            self._packed_bytes += len(packed)
            self.found.append((replace(trial.entrance, until=until), packed))
            if self._packed_bytes >= HISTORIES_BYTES_MAX:
                self._window = None


class Decoder(Protocol):
    points: Points
    """Found so far, in terms of the bytes that were fed, counted from `start` as the decoder was told."""

    @property
    def whole(self) -> bool:
        """Whether the bytes end where a compressed stream may."""
        ...

    def feed(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Plain bytes. To be exhausted before the next call, or never used again. BadArchive."""
        ...


class _Plain:
    whole = True

    def __init__(self, start: tuple[int, int]) -> None:
        self.points = Points()
        self.points.add(*start)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        yield data


class _Zstd:
    def __init__(
        self,
        start: tuple[int, int],
        window_max: int,
        entrance: tuple[Entrance, bytes] | None,
        entrances: Entrances | None,
    ) -> None:
        self.points = Points()
        self._start, self._plain = start
        self._scanner = zstd_frames.Scanner(OUT_BYTES_MAX, inside=entrance is not None)
        self._window_max = window_max
        self._entrances = entrances
        self._open: Callable[[memoryview], bytes] | None = None
        if entrance is not None:
            self._start, self._plain = entrance[0].stored, entrance[0].plain
            self._open = entrance[0].opened(entrance[1], window_max)

    @property
    def whole(self) -> bool:
        return self._scanner.whole

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        for each in self._scanner.feed(data):
            frame, piece = each.frame, each.data
            if frame is not None and not frame.skippable:
                if frame.window > self._window_max:
                    raise BadArchive(f"zstd with a window of {frame.window:,} bytes, more than is kept here", frame.at)
                self.points.add(self._start + frame.at, self._plain)
                engine = zstandard.ZstdDecompressor(max_window_size=self._window_max)
                if self._entrances is not None:
                    self._entrances.begin(frame, self._plain)
                self._open = engine.decompressobj().decompress
                piece = memoryview(frame.head)
            elif frame is not None:
                self._open = None
            if self._open is not None:
                try:
                    plain = self._open(piece)
                except zstandard.ZstdError as error:
                    raise BadArchive(f"zstd: {error}", self._start + self._scanner.at) from None
                self._plain += len(plain)
                if self._entrances is not None and frame is None:
                    self._watched(self._entrances, each, plain)
                if plain:
                    yield plain
            if each.last:
                self._open = None

    def _watched(self, entrances: Entrances, piece: zstd_frames.Slice, plain: bytes) -> None:
        entrances.saw(piece.data, plain, self._start + self._scanner.at, self._plain, piece.between)
        if piece.last:
            entrances.end(self._plain)
        # A place between blocks is only seen where the bytes are cut there.
        self._scanner.slice_max = 1 if entrances.seeking else OUT_BYTES_MAX


class _Gzip:
    def __init__(self, start: tuple[int, int]) -> None:
        self.points = Points()
        self._at, self._plain = start
        self._begin()

    def _begin(self) -> None:
        self.points.add(self._at, self._plain)
        self._engine = zlib.decompressobj(31)
        self._fresh = True

    @property
    def whole(self) -> bool:
        return self._fresh or self._engine.eof

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        # In small pieces, since what is not consumed is copied for each MiB that comes out.
        for begin in range(0, len(data), _GZIP_STEP):
            yield from self._piece(bytes(data[begin : begin + _GZIP_STEP]))

    def _piece(self, rest: bytes) -> Iterator[bytes]:
        while rest:
            if self._engine.eof:
                # Zeros behind a member are padding (RFC 1952 says nothing of them, gzip takes them).
                stripped = rest.lstrip(b"\0")
                self._at += len(rest) - len(stripped)
                rest = stripped
                if not rest:
                    return
                self._begin()
            self._fresh = False
            try:
                plain = self._engine.decompress(rest, OUT_BYTES_MAX)
            except zlib.error as error:
                raise BadArchive(f"gzip: {error}", self._at) from None
            left = self._engine.unused_data if self._engine.eof else self._engine.unconsumed_tail
            self._at += len(rest) - len(left)
            self._plain += len(plain)
            if plain:
                yield plain
            rest = left


class _Lzop:
    def __init__(self, start: tuple[int, int], flags: int | None) -> None:
        self.points = Points()
        self._at, self._plain = start
        self._flags = flags
        self._held = bytearray()
        self._ended = False

    @property
    def whole(self) -> bool:
        return self._ended

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        if self._ended:
            return
        self._held += data
        if self._flags is None:
            header = lzo.decode_header(bytes(self._held[: lzo.HEADER_BYTES_MAX]))
            if header is None:
                return
            self._flags = header.flags
            self._take(header.size)
        while not self._ended:
            block = lzo.decode_block(bytes(self._held[:32]), self._flags, self._at)
            if block is None or len(self._held) < block.head + block.stored:
                return
            if not block.plain:
                self._ended = True
                return
            self.points.add(self._at, self._plain)
            with memoryview(self._held) as view:
                stored = bytes(view[block.head : block.head + block.stored])
            plain = lzo.block_content(block, stored, self._at)
            self._take(block.head + block.stored)
            self._plain += len(plain)
            for place in range(0, len(plain), OUT_BYTES_MAX):
                yield plain[place : place + OUT_BYTES_MAX]

    def _take(self, size: int) -> None:
        del self._held[:size]
        self._at += size


def decoder(
    compression: str,
    *,
    start: tuple[int, int] = (0, 0),
    window_max: int = WINDOW_BYTES_MAX,
    lzop_flags: int | None = None,
    entrance: tuple[Entrance, bytes] | None = None,
    entrances: Entrances | None = None,
) -> Decoder:
    """For bytes from `start` (byte of the object, byte of the plain archive), which must be one of an archive's points; of
    zstd also from an entrance, with its history, and up to its `until`. Within an lzop file the flags of its header must be
    told. `entrances` gathers those of zstd."""
    if compression == "zstd":
        return _Zstd(start, window_max, entrance, entrances)
    if compression == "gzip":
        return _Gzip(start)
    if compression == "lzo":
        return _Lzop(start, lzop_flags)
    return _Plain(start)
