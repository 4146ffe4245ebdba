"""The memory that the kernel and a TCMU handler share: mailbox, command ring and data area (tcmu-design.rst).

    0                 cmdr_off                cmdr_off + cmdr_size                        end of the map
    | mailbox ... | ring of entries, 8-byte aligned | data area: what iovecs point into ... |

The kernel writes entries and moves `cmd_head`; the handler takes them, answers, and moves `cmd_tail`.

One rule: commands may end in any order, answers go into slots in order. `take` copies every request out and remembers its
slot; `answer` writes the next answer into the oldest slot that is still owed to the kernel, under its own command's number;
what was there is not needed any more. So between `cmd_tail` and `cmd_head` the ring does not tell which commands are open:
whoever takes over from a dead handler must have the kernel reset the ring (`handler.py`), never go on from `cmd_tail`.

Memory order: entries are complete before `cmd_head` moves, and ours before `cmd_tail` does; in between lies a system call (the
read and the write of the UIO file) on the thread that looks, and stores of 32 bits are not torn.
"""

import ctypes
from collections import deque
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

MAILBOX = Struct("=HHII")
"""version, flags, cmdr_off, cmdr_size at 0."""
HEAD_AT, TAIL_AT = 12, 64
"""Of `cmd_head` and `cmd_tail`; they lie in cache lines of their own."""
VERSION = 2

HEADER = Struct("=IHBB")
"""len_op, cmd_id, kernel flags, user flags."""
REQUEST = Struct("=IIIxxxxQ")
"""iov_cnt, iov_bidi_cnt, iov_dif_cnt, cdb_off, at 8 of an entry."""
IOV_AT = 48
IOVEC = Struct("=QQ")
"""Offset from the start of the map, length."""
RESPONSE = Struct("=BxxxI96s")
"""scsi_status, read_len, sense, at 8 of an entry: it lies over the request."""
RESPONSE_AT = 8
SENSE_BYTES = 96
TMR_HEADER = Struct("=BxxxI")
"""type, cmd_cnt, at 8 of an entry."""
TMR_IDS_AT = 32
ENTRY_ALIGN = 8
OP_MASK = ENTRY_ALIGN - 1
CDB_BYTES = 16
"""Of a CDB so many bytes are taken out; behind a shorter one there is whatever comes next."""


class Op(IntEnum):
    """`enum tcmu_opcode`."""

    PAD = 0
    CMD = 1
    TMR = 2


class Flag(IntEnum):
    """What a handler may say in `uflags`."""

    UNKNOWN_OP = 1
    READ_LEN = 2


class MailboxFlag(IntEnum):
    """What the kernel can do."""

    OUT_OF_ORDER = 1
    READ_LEN = 2
    TMR = 4


class RingBroken(Exception):
    """The shared memory says what cannot be: nothing more may be read from it or written to it."""


class Request(NamedTuple):
    """A command taken out of the ring. `iovecs`: (offset in the map, length) of its data; `bidirectional`: there are more for
    the other direction, which this handler does not serve."""

    id: int
    cdb: bytes
    iovecs: tuple[tuple[int, int], ...]
    length: int
    bidirectional: bool


class TaskManagement(NamedTuple):
    """A task management function the kernel carries out; the commands must still be answered."""

    function: int
    ids: tuple[int, ...]


class Ring:
    """One device's shared memory. `view` is all of the map, writable. Raises RingBroken when it is of another version or
    cannot be right."""

    def __init__(self, view: memoryview) -> None:
        if len(view) < 4096:
            raise RingBroken(f"a map of {len(view)} bytes")
        self.view = view
        mailbox: tuple[int, int, int, int] = MAILBOX.unpack_from(view, 0)
        version, self.flags, self._offset, self._size = mailbox
        if version != VERSION:
            raise RingBroken(f"mailbox version {version}; this handler knows {VERSION}")
        if not self.flags & MailboxFlag.OUT_OF_ORDER:
            raise RingBroken("this kernel takes no answers out of order (it is older than 4.9)")
        if self._offset % ENTRY_ALIGN or self._size % ENTRY_ALIGN or not 0 < self._size <= len(view) - self._offset:
            raise RingBroken(f"a ring of {self._size} bytes at {self._offset} in a map of {len(view)}")
        self._head = ctypes.c_uint32.from_buffer(view, HEAD_AT)
        self._tail = ctypes.c_uint32.from_buffer(view, TAIL_AT)
        self._next = self._write = self._tail.value
        if self._next >= self._size or self._next % ENTRY_ALIGN:
            raise RingBroken(f"cmd_tail is {self._next} in a ring of {self._size} bytes")
        self._slots: deque[tuple[int, int]] = deque()
        """(place, len_op) of entries taken and not given back, oldest first."""
        self.open = 0
        """Commands taken and not answered."""
        self.management: list[TaskManagement] = []
        """Task management functions seen since somebody last took them away."""

    @property
    def reports_length(self) -> bool:
        """Whether the kernel takes READ_LEN: how much of the data-in there is."""
        return bool(self.flags & MailboxFlag.READ_LEN)

    @property
    def pending(self) -> int:
        """Bytes of entries between what the kernel wrote and what was given back."""
        used: int = (self._head.value - self._tail.value) % self._size
        return used

    def reread(self) -> None:
        """After the kernel has reset the ring: everything in it is gone."""
        self._next = self._write = self._tail.value
        self._slots.clear()
        self.open = 0

    def take(self, most: int) -> list[Request]:
        """The commands that have come, at most `most`, in the kernel's order. Raises RingBroken."""
        view, head = self.view, self._head.value
        if head >= self._size or head % ENTRY_ALIGN:
            raise RingBroken(f"cmd_head is {head} in a ring of {self._size} bytes")
        at = self._next
        found: list[Request] = []
        while at != head and len(found) < most:
            place = self._offset + at
            len_op, number, _, _ = HEADER.unpack_from(view, place)
            op, length = len_op & OP_MASK, len_op & ~OP_MASK
            if not HEADER.size <= length <= min(self._size - at, (head - at) % self._size):
                raise RingBroken(f"an entry of {length} bytes at {at} in a ring of {self._size}, cmd_head is {head}")
            if op == Op.CMD:
                found.append(self._request(place, length, number))
                self.open += 1
            elif op == Op.TMR:
                self.management.append(self._management(place, length))
            elif op != Op.PAD:
                view[place + 7] = Flag.UNKNOWN_OP
            self._slots.append((place, len_op))
            at = (at + length) % self._size
        self._next = at
        return found

    def _request(self, place: int, length: int, number: int) -> Request:
        view = self.view
        count, bidirectional, protection, cdb_at = REQUEST.unpack_from(view, place + HEADER.size)
        if length < RESPONSE_AT + RESPONSE.size or IOV_AT + (count + bidirectional + protection) * IOVEC.size > length:
            raise RingBroken(f"command {number}: {count} vectors in an entry of {length} bytes")
        if not 0 < cdb_at <= len(view) - CDB_BYTES:
            raise RingBroken(f"command {number}: its CDB is at {cdb_at} in a map of {len(view)} bytes")
        vectors = tuple(IOVEC.iter_unpack(view[place + IOV_AT : place + IOV_AT + count * IOVEC.size]))
        total = 0
        for start, size in vectors:
            if start + size > len(view):
                raise RingBroken(f"command {number}: {size} bytes at {start} in a map of {len(view)}")
            total += size
        return Request(number, bytes(view[cdb_at : cdb_at + CDB_BYTES]), vectors, total, bool(bidirectional))

    def _management(self, place: int, length: int) -> TaskManagement:
        function, count = TMR_HEADER.unpack_from(self.view, place + HEADER.size)
        if TMR_IDS_AT + 2 * count > length:
            raise RingBroken(f"task management of {count} commands in an entry of {length} bytes")
        ids = self.view[place + TMR_IDS_AT : place + TMR_IDS_AT + 2 * count].cast("H")
        return TaskManagement(function, tuple(ids))

    def answer(self, number: int, status: int, sense: bytes = b"", read_length: int = -1) -> None:
        """The end of command `number`. Its data is in place. The kernel sees it after `publish`. `read_length`: bytes of
        data-in, where that is less than was asked for."""
        view, slots = self.view, self._slots
        while True:
            place, len_op = slots.popleft()
            if len_op & OP_MASK == Op.CMD:
                break
            self._write = self._after(place, len_op)
        HEADER.pack_into(view, place, len_op, number, 0, Flag.READ_LEN if read_length >= 0 else 0)
        RESPONSE.pack_into(view, place + RESPONSE_AT, status, max(read_length, 0), sense)
        self._write = self._after(place, len_op)
        self.open -= 1

    def _after(self, place: int, len_op: int) -> int:
        return (place - self._offset + (len_op & ~OP_MASK)) % self._size

    def publish(self) -> bool:
        """Give back what was answered. True if that is anything, so that the kernel must be told (one write to the UIO
        file)."""
        slots = self._slots
        while slots and slots[0][1] & OP_MASK != Op.CMD:
            self._write = self._after(*slots.popleft())
        if self._tail.value == self._write:
            return False
        self._tail.value = self._write
        return True

    def close(self) -> None:
        """Lets go of the memory; the map can be closed then."""
        del self._head, self._tail
        self.view.release()
