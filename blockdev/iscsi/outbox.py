"""What waits to be sent: a list of buffers for one `sendmsg`, and how PDUs get into it.

One rule: header, data, pad and digests of a PDU enter together, in order; nothing is copied. Buffers lent by a target stay
good only within the turn in which they were put here (see `blockdev.target`).
"""

from collections.abc import Iterable, Iterator

from blockdev.iscsi.digest import digest
from blockdev.iscsi.pdu import PADS
from blockdev.target import Buffer


class Outbox:
    """Owned by one connection. `parts` and `size` (bytes) may be read and appended to by the session's fast path."""

    __slots__ = ("data_digest", "header_digest", "hold_seconds", "parts", "size")

    def __init__(self) -> None:
        self.parts: list[Buffer] = []
        self.size = 0
        self.hold_seconds = 0.0
        """Not 0: for so long the rim should read nothing more, then call `Connection.release`."""
        self.header_digest = False
        self.data_digest = False

    def put(self, header: bytes, data: Iterable[Buffer] = (), length: int = 0) -> None:
        """One PDU; `length` is the data segment's, as the header says too."""
        parts = self.parts
        parts.append(header)
        if self.header_digest:
            parts.append(digest((header,)))
            self.size += 4
        self.size += len(header) + length
        if not length:
            return
        start = len(parts)
        parts.extend(data)
        if length & 3:
            parts.append(PADS[-length & 3])
            self.size += -length & 3
        if self.data_digest:
            parts.append(digest(parts[start:]))
            self.size += 4

    def take(self) -> list[Buffer]:
        parts, self.parts, self.size = self.parts, [], 0
        return parts


class Cutter:
    """Takes a list of buffers apart into runs of given lengths, by views."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._left: Iterator[Buffer] = iter(buffers)
        self._rest: memoryview = memoryview(b"")

    def take(self, length: int) -> list[Buffer]:
        """The next `length` bytes. The caller does not ask for more than there is."""
        found: list[Buffer] = []
        while length:
            if not self._rest:
                self._rest = memoryview(next(self._left))
                continue
            part = self._rest[:length]
            found.append(part)
            self._rest = self._rest[length:]
            length -= len(part)
        return found
