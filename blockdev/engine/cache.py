"""The read cache: frames of the committed volume in slots of a local file. Format: docs/formats/cache.md.

One rule: a block is handed out only if its bit is set in `valid` and its checksum holds. The front owns this
bookkeeping; the worker writes the content of slots lent to it (`lend`) and nothing else.

What makes a bit true. A slot is filled as of a journal position `covered`: every write before it is in the content,
every later one is in the front's local index, which is asked first. When the journal gives up a record, its blocks
leave the index, so `forget` clears their bits in every slot filled before it. Over a restart the
bits are not kept at all: a slot named by the table is *unverified* and must be lent again with the commit its content
is from. The worker answers "kept" only if no commit since then touched the frame, and every record given up before
the restart was in such a commit; so the bits that the table still shows set, though they had been cleared in memory,
can come back only if clearing them had been needless.

Order at a fill: content (worker), then the table's entry. Crash between: the entry names what was there before; its
checksums do not hold for the new content, and the slot is dropped on first touch. Nothing here is ever synced.

Eviction is S3-FIFO's three queues: new frames enter a small queue and reach the main one only by being used again, or
by coming back soon after eviction (ghosts). Being used again means two *generations* (of an eighth of the small queue's
insertions each) after the fill, since a sequential reader touches each frame sixteen times at once and never again. A
hit costs one byte store.
"""

import os
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from blockdev.checksum import crc32c, first_bad_block
from blockdev.engine.cache_table import (
    HEADER_BYTES,
    CacheEntry,
    CacheLayout,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
)
from blockdev.errors import CorruptFormat, LocalDiskFailed
from blockdev.journal.file import DurableFile, PosixFile
from blockdev.units import BLOCK_BYTES

ZERO_FRAMES_MAX = 1 << 18
"""Frames remembered as unwritten: 16 GiB of them at 64 KiB, about 30 MB of memory."""
_SWEEP_STEP = 1024
_LOAD_ENTRIES = 4096
_SPARED_MAX = 64
"""Used frames one eviction passes over before it takes the next one anyway: a bound on its time."""


class ReadCache:
    """Owned by the front's thread. `content` and `table` belong to it; see `open_cache`."""

    def __init__(
        self,
        content: DurableFile,
        table: DurableFile,
        layout: CacheLayout,
        *,
        zero_frames_max: int = ZERO_FRAMES_MAX,
    ) -> None:
        """Reads the table; an unreadable one is an empty cache. Raises OSError."""
        slots = layout.slots
        self.layout = layout
        self.valid = array("I", [0]) * slots
        """Per slot, the blocks that may be read."""
        self.zero_frames: OrderedDict[int, int] = OrderedDict()
        """Frames known to be unwritten -> journal position that was true at."""
        self.damaged_blocks = 0
        self.evictions = 0
        self._zero_frames_max = zero_frames_max
        self._content = content
        self._table = table
        self._blocks = layout.blocks_per_frame
        self._every = (1 << self._blocks) - 1
        self._frame_bytes = layout.frame_bytes
        self._slot: dict[int, int] = {}
        self._frame = array("q", [-1]) * slots
        self._as_of = array("q", [-1]) * slots
        self._covered = array("Q", [0]) * slots
        self._held = array("I", [0]) * slots  # blocks whose checksum is known, current or not
        self._checksums = array("I", [0]) * (slots * self._blocks)
        self._whole = array("I", [0]) * slots  # CRC32C over a whole frame, found when its blocks' held; 0: not yet
        self._lent: dict[int, int] = {}  # slot -> the valid bits it had
        self._last = bytearray(slots)  # generation of the last use
        self._mark = bytearray(slots)  # generation of the fill, or of the use that last saved it
        self._generation = 0
        self._queued = bytearray(slots)
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._small_target = max(1, slots // 10)
        self._generation_inserts = max(1, self._small_target // 8)
        self._inserts_left = self._generation_inserts
        self._load()

    def _load(self) -> None:
        layout = self.layout
        for first in range(0, layout.slots, _LOAD_ENTRIES):
            last = min(first + _LOAD_ENTRIES, layout.slots)
            data = memoryview(self._table.pread((last - first) * layout.entry_bytes, layout.entry_offset(first)))
            for slot in range(first, last):
                start = (slot - first) * layout.entry_bytes
                entry = decode_entry(layout, slot, data[start : start + layout.entry_bytes])
                if entry is None:
                    continue
                rival = self._slot.get(entry.frame)
                if rival is not None:
                    # The frame was evicted and came back elsewhere before the first slot was filled anew.
                    if self._as_of[rival] >= entry.as_of:
                        continue
                    # Its content is of this frame: lent for another one it must not count as current (seeds 326, 1356).
                    self._frame[rival] = self._as_of[rival] = -1
                    self._held[rival] = 0
                self._slot[entry.frame] = slot
                self._frame[slot] = entry.frame
                self._as_of[slot] = entry.as_of
                self._held[slot] = entry.blocks
                at = slot * self._blocks
                self._checksums[at : at + self._blocks] = array("I", entry.checksums)
        for slot in range(layout.slots):
            if self._frame[slot] >= 0:
                self._enqueue(slot, self._main)
        self._free = [slot for slot in range(layout.slots - 1, -1, -1) if self._frame[slot] < 0]

    # --- reading ------------------------------------------------------------------------------------------------

    def find(self, frame: int) -> int:
        """The slot of a frame, -1 if it has none. Which of its blocks may be read is in `valid[slot]`."""
        return self._slot.get(frame, -1)

    def read_block(self, frame: int, index: int) -> bytes | None:
        """Block `index` of a frame, or None if it must be fetched."""
        slot = self._slot.get(frame)
        if slot is None or not self.valid[slot] >> index & 1:
            return None
        try:
            data = self._content.pread(BLOCK_BYTES, slot * self._frame_bytes + index * BLOCK_BYTES)
        except OSError:
            data = b""
        if crc32c(data) != self._checksums[slot * self._blocks + index]:
            self._damaged(slot)
            return None
        self._last[slot] = self._generation
        return data

    def read_run(self, slot: int, first: int, count: int) -> bytes | None:
        """`count` blocks of a slot from index `first`, all of them valid; None if they turn out damaged."""
        try:
            data = self._content.pread(count * BLOCK_BYTES, slot * self._frame_bytes + first * BLOCK_BYTES)
        except OSError:
            data = b""
        at = slot * self._blocks + first
        if len(data) != count * BLOCK_BYTES or first_bad_block(memoryview(data), self._checksums[at : at + count]) >= 0:
            self._damaged(slot)
            return None
        self._last[slot] = self._generation
        return data

    def whole_frames(self, first: int, last: int) -> int:
        """How many of the frames `first` to `last` - 1, from `first` on, are here whole and in slots that follow each other."""
        slots, valid, every = self._slot, self.valid, self._every
        slot = slots.get(first, -1)
        if slot < 0:
            return 0
        frame = first
        while frame < last and slots.get(frame) == slot and valid[slot] == every:
            frame += 1
            slot += 1
        return frame - first

    def read_frames(self, first: int, count: int) -> bytes | None:
        """So many frames of which `whole_frames` has just said that they are here, with one read; None if that fails, or one of
        them turns out damaged. Which one cannot be read is for `read_run` to find out.

        One checksum over a frame costs half of what its blocks' cost. It is taken from bytes that the blocks' checksums held
        for, so what holds against the one holds against the others."""
        size, slot, whole = self._frame_bytes, self._slot[first], self._whole
        try:
            data = self._content.pread(count * size, slot * size)
        except OSError:
            return None
        if len(data) != count * size:
            return None
        view = memoryview(data)
        for start in range(0, count * size, size):
            frame = view[start : start + size]
            checksum = crc32c(frame)
            if checksum != whole[slot] or not checksum:
                at = slot * self._blocks
                if first_bad_block(frame, self._checksums[at : at + self._blocks]) >= 0:
                    self._damaged(slot)
                    return None
                whole[slot] = checksum
            self._last[slot] = self._generation
            slot += 1
        return data

    def _damaged(self, slot: int) -> None:
        """A bit flipped, or a crash left content and table apart: forget the slot; the bucket has the frame."""
        self.damaged_blocks += 1
        self._vacate(slot)

    # --- filling ------------------------------------------------------------------------------------------------

    def lend(self, frame: int) -> tuple[int, int] | None:
        """A slot to fetch `frame` into, and the commit its present content is from if it holds that frame (else -1).

        Until `fill`, `keep`, `zero` or `give_back` the slot's content is the worker's and no block of it is read.
        None: every slot is lent."""
        slot = self._slot.get(frame, -1)
        if slot < 0:
            slot = self._free.pop() if self._free else self._evict()
            if slot < 0:
                return None
            self._frame[slot] = frame
            self._slot[frame] = slot
        if slot in self._lent:
            raise ValueError(f"slot {slot} is lent already")
        self._lent[slot] = self.valid[slot]
        self.valid[slot] = 0
        return slot, self._as_of[slot]

    def fill(self, slot: int, checksums: tuple[int, ...], as_of: int, covered: int, *, current: bool = True) -> None:
        """The worker has written the slot's frame. `current` False: it is whole but out of date (see `FetchFrame`)."""
        blocks = len(checksums)
        if blocks > self._blocks:
            raise ValueError(f"{blocks} checksums for a frame of {self._blocks} blocks")
        fresh = self._as_of[slot] < 0
        del self._lent[slot]
        held = (1 << blocks) - 1
        self._held[slot] = held
        self.valid[slot] = held if current else 0
        self._as_of[slot] = as_of
        self._covered[slot] = covered
        at = slot * self._blocks
        self._checksums[at : at + blocks] = array("I", checksums)
        self._whole[slot] = 0
        frame = self._frame[slot]
        padded = checksums + (0,) * (self._blocks - blocks)
        # A table that cannot be written costs this slot's content after a restart, nothing else.
        with suppress(OSError):
            self._table.pwritev(
                [encode_entry(self.layout, slot, CacheEntry(frame, as_of, held, padded))],
                self.layout.entry_offset(slot),
            )
        self.zero_frames.pop(frame, None)
        if fresh:
            self._insert(slot, frame)

    def keep(self, slot: int, covered: int, *, current: bool = True) -> None:
        """The worker says that the slot's content is what the bucket has."""
        del self._lent[slot]
        self.valid[slot] = self._held[slot] if current else 0
        self._covered[slot] = covered
        self._last[slot] = self._generation

    def zero(self, slot: int, covered: int, *, current: bool = True) -> None:
        """The slot's frame is unwritten: remember that without a slot."""
        frame = self._frame[slot]
        self.drop(slot)
        if current:
            self.zero_frames[frame] = covered
            if len(self.zero_frames) > self._zero_frames_max:
                self.zero_frames.popitem(last=False)

    def give_back(self, slot: int) -> None:
        """The fetch failed and the slot was not touched: it holds what it held."""
        bits = self._lent.pop(slot)
        if self._as_of[slot] < 0:
            self._vacate(slot)
        else:
            self.valid[slot] = bits

    def drop(self, slot: int) -> None:
        """The fetch failed and the content is not to be used."""
        del self._lent[slot]
        self._vacate(slot)

    def _vacate(self, slot: int) -> None:
        frame = self._frame[slot]
        if frame >= 0:
            del self._slot[frame]
        self._frame[slot] = self._as_of[slot] = -1
        self.valid[slot] = self._held[slot] = 0
        if not self._queued[slot]:
            self._free.append(slot)

    # --- invalidation -------------------------------------------------------------------------------------------

    def forget(self, frame: int, blocks: int, end: int) -> None:
        """The journal gives up a record that ends at `end` and wrote these blocks (a mask) of the frame."""
        slot = self._slot.get(frame)
        if slot is not None:
            self._forget_slot(slot, blocks, end)
        covered = self.zero_frames.get(frame)
        if covered is not None and covered < end:
            del self.zero_frames[frame]

    def forget_zeroed(self, frame: int, blocks: int, end: int) -> None:
        """The same for a record that zeroed these blocks: a frame known as unwritten stays so."""
        slot = self._slot.get(frame)
        if slot is not None:
            self._forget_slot(slot, blocks, end)

    def forget_range(self, first: int, last: int, end: int) -> Iterator[None]:
        """The same for all blocks of the frames first to last - 1 which now read as zeros; yields between bounded
        steps, and counts only once it is exhausted. Frames known as unwritten stay so."""
        whole = self._every
        if last - first <= self.layout.slots:
            for frame in range(first, last):
                slot = self._slot.get(frame)
                if slot is not None:
                    self._forget_slot(slot, whole, end)
                if frame % _SWEEP_STEP == 0:
                    yield
            return
        for slot, frame in enumerate(self._frame):
            if first <= frame < last:
                self._forget_slot(slot, whole, end)
            if slot % _SWEEP_STEP == 0:
                yield

    def _forget_slot(self, slot: int, blocks: int, end: int) -> None:
        if slot in self._lent:
            self._lent[slot] &= ~blocks
        elif self._covered[slot] < end:
            self.valid[slot] &= ~blocks

    # --- eviction -----------------------------------------------------------------------------------------------

    def _enqueue(self, slot: int, queue: deque[int]) -> None:
        queue.append(slot)
        self._queued[slot] = 1

    def _insert(self, slot: int, frame: int) -> None:
        self._last[slot] = self._mark[slot] = self._generation
        if frame in self._ghosts:
            del self._ghosts[frame]
            self._enqueue(slot, self._main)
        else:
            self._enqueue(slot, self._small)
        self._inserts_left -= 1
        if not self._inserts_left:
            self._inserts_left = self._generation_inserts
            self._generation = (self._generation + 1) & 0xFF

    def _evict(self) -> int:
        """A slot taken from its frame, or -1 if all are lent."""
        turn = (self._small, self._main)
        if len(self._small) <= self._small_target and self._main:
            turn = (self._main, self._small)
        for queue in turn:
            spared = 0
            for _ in range(len(queue) + _SPARED_MAX):
                if not queue:
                    break
                slot = queue.popleft()
                if slot in self._lent:
                    queue.append(slot)
                    continue
                frame = self._frame[slot]
                used = (self._last[slot] - self._mark[slot]) & 0xFF > 1
                if frame >= 0 and used and spared < _SPARED_MAX:
                    self._mark[slot] = self._last[slot]
                    self._main.append(slot)
                    spared += 1
                    continue
                self._queued[slot] = 0
                if frame >= 0:
                    if queue is self._small:
                        self._remember(frame)
                    self.evictions += 1
                    del self._slot[frame]
                    self._frame[slot] = self._as_of[slot] = -1
                    self.valid[slot] = self._held[slot] = 0
                return slot
        return -1

    def _remember(self, frame: int) -> None:
        self._ghosts[frame] = None
        if len(self._ghosts) > self.layout.slots:
            self._ghosts.popitem(last=False)

    def close(self) -> None:
        self._content.close()
        self._table.close()


def open_cache(
    directory: str | os.PathLike[str], *, identity: UUID, volume: UUID, frame_bytes: int, size_bytes: int
) -> ReadCache:
    """The cache in `directory` (files `cache` and `cache.table`), made anew if there is none or it is another volume's,
    of another geometry or size, or unreadable. `identity` is random and used for a new one only.

    `size_bytes` is rounded down to whole frames, at least 16. Raises LocalDiskFailed (no room: how much is missing)."""
    place = Path(directory)
    wanted = CacheLayout(identity, volume, frame_bytes, max(16, size_bytes // frame_bytes))
    try:
        kept = _open_kept(place, wanted)
        if kept is not None:
            return kept
        for name in ("cache", "cache.table"):
            (place / name).unlink(missing_ok=True)
        content = PosixFile.create(place / "cache", wanted.content_bytes)
        try:
            table = PosixFile.create(place / "cache.table", wanted.table_bytes)
            # Crash before this: the table has no header, so the next start makes the cache anew.
            table.pwritev([encode_header(wanted)], 0)
        except BaseException:
            content.close()
            raise
        return ReadCache(content, table, wanted)
    except OSError as error:
        raise LocalDiskFailed(f"cannot open the read cache in {place}: {error.strerror or error}") from error


def _open_kept(place: Path, wanted: CacheLayout) -> ReadCache | None:
    try:
        table = PosixFile(place / "cache.table")
    except FileNotFoundError:
        return None
    content = None
    try:
        found = decode_header(table.pread(HEADER_BYTES, 0))
        if (found.volume, found.frame_bytes, found.slots) == (wanted.volume, wanted.frame_bytes, wanted.slots):
            content = PosixFile(place / "cache")
            if content.size() >= found.content_bytes and table.size() >= found.table_bytes:
                return ReadCache(content, table, found)
    except (CorruptFormat, FileNotFoundError):
        pass  # not a cache of ours, or half of one: nothing in it is needed
    if content is not None:
        content.close()
    table.close()
    return None
