"""The kernel's side of a TCMU ring, as target_core_user.c has it, over plain memory: the other end for tests of ours.

One rule: it checks what the kernel checks and what the kernel would not forgive. Data pages are handed out again without
being cleared, entries are merged into as few vectors as fit, the ring is padded at its end, and answers are looked up by the
command's number in the order of the slots.
"""

import random
from dataclasses import dataclass, field
from struct import pack_into, unpack_from

CMDR_OFFSET = 128
HEAD_AT, TAIL_AT = 12, 64
FLAGS = 0b111
PAGE = 4096
PAD, CMD, TMR = 0, 1, 2
ENTRY_MIN = 112


@dataclass
class Completion:
    """What the initiator would be told. `data`: data-in, as much as the kernel passes on."""

    status: int
    data: bytes
    sense: bytes
    unknown: bool = False


@dataclass
class _Queued:
    vectors: list[tuple[int, int]]
    pages: list[int]
    length: int
    reads: bool


@dataclass
class KernelRing:
    """`ring_bytes`: of the command ring, a multiple of 8. `data_pages`: pages of the data area."""

    ring_bytes: int = 4096 - CMDR_OFFSET
    data_pages: int = 256
    seed: int = 1
    flags: int = FLAGS
    completed: dict[int, Completion] = field(default_factory=dict)
    pads: int = 0
    kicks: int = 0

    def __post_init__(self) -> None:
        self.data_at = (CMDR_OFFSET + self.ring_bytes + PAGE - 1) // PAGE * PAGE
        # Full of what must never be seen.
        self.memory = bytearray(b"\xee") * (self.data_at + self.data_pages * PAGE)
        self.memory[:CMDR_OFFSET] = bytes(CMDR_OFFSET)
        pack_into("=HHII", self.memory, 0, 2, self.flags, CMDR_OFFSET, self.ring_bytes)
        self.random = random.Random(self.seed)
        self.free = list(range(self.data_pages))
        self.queued: dict[int, _Queued] = {}
        self.cleaned = 0
        self.next_id = 1

    @property
    def head(self) -> int:
        return int(unpack_from("=I", self.memory, HEAD_AT)[0])

    @property
    def tail(self) -> int:
        return int(unpack_from("=I", self.memory, TAIL_AT)[0])

    def _set_head(self, value: int) -> None:
        pack_into("=I", self.memory, HEAD_AT, value % self.ring_bytes)

    def _room(self, need: int) -> bool:
        used = (self.head - self.cleaned) % self.ring_bytes
        free = self.ring_bytes - used
        to_end = self.ring_bytes - self.head
        if need > to_end:
            need += to_end  # the pad
        return free > need

    def _pad(self, need: int) -> None:
        to_end = self.ring_bytes - self.head
        if need > to_end:
            pack_into("=IHBB", self.memory, CMDR_OFFSET + self.head, to_end | PAD, 0, 0, 0)
            self.pads += 1
            self._set_head(self.head + to_end)

    def queue(self, cdb: bytes, data: bytes | None = None, *, reads: int = 0, bidirectional: int = 0) -> int | None:
        """A command with data-out, or room for `reads` bytes of data-in. Its number; None: the ring or the data area is full,
        and nothing was queued."""
        length = len(data) if data is not None else reads
        wanted = -(-length // PAGE)
        if wanted > len(self.free):
            return None
        pages = [self.free.pop(self.random.randrange(len(self.free))) for _ in range(wanted)]
        vectors: list[tuple[int, int]] = []
        left = length
        for page in pages:
            start, size = self.data_at + page * PAGE, min(PAGE, left)
            left -= size
            if vectors and sum(vectors[-1]) == start:
                vectors[-1] = (vectors[-1][0], vectors[-1][1] + size)
            else:
                vectors.append((start, size))
        shown = vectors + [(self.data_at, 0)] * bidirectional
        base = max(ENTRY_MIN, 48 + 16 * len(shown))
        need = base + (len(cdb) + 7) // 8 * 8
        if not self._room(need):
            self.free += pages
            return None
        self._pad(need)
        at = CMDR_OFFSET + self.head
        number, self.next_id = self.next_id, self.next_id % 0xFFFF + 1
        self.memory[at : at + need] = b"\xdd" * need
        pack_into("=IHBB", self.memory, at, need | CMD, number, 0, 0)
        pack_into("=IIIIQQQ", self.memory, at + 8, len(vectors), bidirectional, 0, 0, at + base, 0, 0)
        for index, vector in enumerate(shown):
            pack_into("=QQ", self.memory, at + 48 + 16 * index, *vector)
        self.memory[at + base : at + base + len(cdb)] = cdb
        if data is not None:
            done = 0
            for start, size in vectors:
                self.memory[start : start + size] = data[done : done + size]
                done += size
        self.queued[number] = _Queued(vectors, pages, length, data is None)
        self._set_head(self.head + need)
        return number

    def queue_odd(self, op: int, length: int = 64) -> bool:
        """A task management entry, or one of an operation nobody knows."""
        if not self._room(length):
            return False
        self._pad(length)
        at = CMDR_OFFSET + self.head
        self.memory[at : at + length] = bytes(length)
        pack_into("=IHBB", self.memory, at, length | op, 0, 0, 0)
        if op == TMR:
            pack_into("=BxxxI", self.memory, at + 8, 1, 2)
            pack_into("=HH", self.memory, at + 32, 7, 9)
        self._set_head(self.head + length)
        return True

    def kick(self) -> None:
        """The handler says there are answers: `tcmu_handle_completions`."""
        self.kicks += 1
        tail = self.tail
        assert tail % 8 == 0
        assert tail < self.ring_bytes
        while self.cleaned != tail:
            at = CMDR_OFFSET + self.cleaned
            len_op, number, _, uflags = unpack_from("=IHBB", self.memory, at)
            op, length = len_op & 7, len_op & ~7
            if op == CMD:
                self._complete(at, number, uflags)
            self.cleaned = (self.cleaned + length) % self.ring_bytes

    def _complete(self, at: int, number: int, uflags: int) -> None:
        queued = self.queued.pop(number, None)
        assert queued is not None, f"cmd_id {number} not found, ring is broken"
        status, read_length = unpack_from("=BxxxI", self.memory, at + 8)
        data = b""
        if queued.reads:
            data = b"".join(self.memory[start : start + size] for start, size in queued.vectors)
            if uflags & 2 and read_length:
                data = data[:read_length]
        self.free += queued.pages
        self.completed[number] = Completion(status, data, bytes(self.memory[at + 16 : at + 112]), bool(uflags & 1))

    def reset(self) -> None:
        """`action/reset_ring` = 1: everything ends with BUSY."""
        for number, queued in self.queued.items():
            self.free += queued.pages
            self.completed[number] = Completion(8, b"", bytes(96))
        self.queued.clear()
        self.cleaned = 0
        pack_into("=I", self.memory, HEAD_AT, 0)
        pack_into("=I", self.memory, TAIL_AT, 0)
