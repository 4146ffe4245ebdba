"""The oracle: what a volume may contain, known from nothing but the calls made and the answers given.

One rule: the oracle never looks at journal, map or bucket. It knows the list of writes and zeroes in the order they
were made, how many of them were acknowledged, covered by a flush, reported to be in the bucket; and it judges a device image.

Every sector written carries the number of its write, so an image can be read back as "which write is this from". An image
is legal if there is one number P such that every sector is as after the first P operations: a prefix, never a mixture.

Where each promise of docs/durability.md is checked:

| row | checked by |
| --- | --- |
| server process killed; host loses power; host and its disks are gone | `World._die` sets the bound, `World._compare` judges |
| nothing vanishes with a host unless somebody accepts it | `held`, `World._found`; the lineage: `World._take_over` |
| orderly stop | `World._settle`: the bucket by itself, and the live map against the log |
| store unreachable | faults of every life; minutes of it: `test_blackout` |
| a second host attaches, the first did not stop | `World._take_over`, `Initiators._answered` |
| the first is frozen, stopped in a write, cut off, deaf | `World._befall` |
| the first host comes back after another one wrote | `World._must_be_refused` |
| two hosts attach at the same moment | `bucket.History.advance`: one chain, epochs that grow |
| a snapshot is taken | `snapshots.Snapshots.judge` after every life, byte for byte, through its root alone |
| a volume is rolled back; cut off; grown | `became`, `World._roll_back`, `World._operate_offline`, `Initiators.grow` |
| clones, and what parents must keep for them | `family` |
| cache or local object copy damaged; fdatasync fails | `cache_flips`, `sync_fails`, `test_faults` |
| object in the bucket damaged | `test_faults` |
| trimmed log: the newest root and the one before are whole | `bucket.check_root`, `World._check_previous_root` |
| nothing is left over once nobody needs it | `World._find_leaks` |
| what a crash leaves, at every point of a life with operations | `test_crash` |
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from s3core.store import Buffer

_STAMP = struct.Struct("<8sQQQ")
_MAGIC = b"written!"
_ZEROS = bytes(4096)
ZERO = 0
"""The token of a sector that reads as zeros."""
WHOLE = -1
"""Of an operation that says for each sector what it holds: see `Model.became`."""


class Violation(AssertionError):
    """A promise was broken."""


def stamp(token: int, lba: int, sector_bytes: int) -> bytes:
    """Content of a sector: says which write and which place it belongs to, down to its last byte."""
    unit = _STAMP.pack(_MAGIC, token, lba, token * 0x9E3779B97F4A7C15 + lba & (1 << 64) - 1)
    return unit * (sector_bytes // len(unit))


def token_of(data: Buffer, lba: int) -> int:
    """The write a sector's content is from, ZERO for zeros. Raises Violation for anything no write ever wrote there."""
    data = bytes(data)
    if data == _ZEROS[: len(data)]:
        return ZERO
    magic, token, place, _ = _STAMP.unpack_from(data)
    if magic != _MAGIC or data != stamp(token, place, len(data)):
        raise Violation(f"sector {lba} holds bytes nobody wrote: {data[:32].hex()}")
    if place != lba:
        raise Violation(f"sector {lba} holds what was written to sector {place} by write {token}")
    return int(token)


@dataclass(frozen=True, slots=True)
class Operation:
    """`token` ZERO: zeroes or a discard."""

    token: int
    lba: int
    count: int

    def __str__(self) -> str:
        kind = {ZERO: "zeroes", WHOLE: "exchange"}.get(self.token, f"write {self.token}")
        return f"{kind} of [{self.lba}, {self.lba + self.count})"


@dataclass(slots=True)
class Read:
    """A read under way: what each sector held when it was asked for."""

    lba: int
    count: int
    begun: int


@dataclass(slots=True)
class Model:
    """Operations are numbered from 1 in the order they were staged; a prefix is named by how many it has."""

    sectors: int
    operations: list[Operation] = field(default_factory=list)
    acknowledged: int = 0
    flushed: int = 0
    in_bucket: int = 0
    held: int = 0
    """So many may not vanish with a host unless somebody accepts it: a flush was answered for them, or, where flushes are
    local, they were acknowledged."""
    tokens: int = 0
    _history: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """sector -> (operation's number, token) of each operation that touched it."""
    _positions: list[tuple[int, int]] = field(default_factory=list)
    """(journal position, operations before it), ascending."""

    # --- what happens --------------------------------------------------------------------------------------------

    def new_token(self) -> int:
        self.tokens += 1
        return self.tokens

    def staged(self, operation: Operation) -> None:
        self.operations.append(operation)
        number = len(self.operations)
        for lba in range(operation.lba, operation.lba + operation.count):
            self._history.setdefault(lba, []).append((number, operation.token))

    def became(self, image: Sequence[int]) -> None:
        """One step turns the whole volume into `image`: a rollback, or the snapshot a clone begins with."""
        now = [self.token_at(lba) for lba in range(len(image))]
        self.operations.append(Operation(WHOLE, 0, len(image)))
        number = len(self.operations)
        for lba, token in enumerate(image):
            if token != now[lba]:
                self._history.setdefault(lba, []).append((number, token))

    def settled(self) -> None:
        """Everything so far was acknowledged and is in the bucket."""
        self.acknowledged = self.flushed = self.in_bucket = len(self.operations)

    def refused(self) -> None:
        """The newest operation was not taken: nothing of it was kept."""
        operation = self.operations.pop()
        for lba in range(operation.lba, operation.lba + operation.count):
            self._history[lba].pop()

    def acknowledge(self, position: int) -> None:
        """All that was staged has been committed; the journal's head is now `position`."""
        self.acknowledged = len(self.operations)
        self._positions.append((position, len(self.operations)))

    def flush_begun(self) -> int:
        return self.acknowledged

    def flush_done(self, begun: int, *, to_bucket: bool = False) -> None:
        """A flush that began when `begun` operations were acknowledged was answered."""
        self.flushed = max(self.flushed, begun)
        self.held = max(self.held, begun)
        if to_bucket:
            self.in_bucket = max(self.in_bucket, begun)

    def reported_durable(self, position: int) -> None:
        """The volume said: everything before this journal position is in the bucket."""
        covered = max((count for place, count in self._positions if place <= position), default=0)
        self.in_bucket = max(self.in_bucket, covered)

    def token_at(self, lba: int) -> int:
        """What the sector holds after all operations."""
        history = self._history.get(lba)
        return history[-1][1] if history else ZERO

    # --- judging -------------------------------------------------------------------------------------------------

    def read_begun(self, lba: int, count: int) -> Read:
        return Read(lba, count, len(self.operations))

    def read_done(self, read: Read, data: Sequence[bytes | bytearray | memoryview], sector_bytes: int) -> None:
        """Each sector must be as it was when the read began or as an operation made it since. Raises Violation."""
        blob = b"".join(data)
        if len(blob) != read.count * sector_bytes:
            raise Violation(f"a read of {read.count} sectors brought {len(blob)} bytes")
        for index in range(read.count):
            lba = read.lba + index
            token = token_of(blob[index * sector_bytes : (index + 1) * sector_bytes], lba)
            legal = self._legal_since(lba, read.begun)
            if token not in legal:
                raise Violation(f"a read of sector {lba} brought write {token}; legal were {sorted(legal)}")

    def _legal_since(self, lba: int, begun: int) -> set[int]:
        history = self._history.get(lba, [])
        before = [token for number, token in history if number <= begun]
        since = [token for number, token in history if number > begun]
        return {before[-1] if before else ZERO, *since}

    def prefixes(self, image: Iterable[int]) -> int:
        """The legal prefixes of an image (a token per sector) as a bit set: bit P for "the first P operations".

        Raises Violation naming the first sector that fits no prefix all sectors before it fit."""
        total = len(self.operations)
        possible = (1 << total + 1) - 1
        for lba, token in enumerate(image):
            mask = self._when(lba, token, total)
            if not possible & mask:
                raise Violation(
                    f"sector {lba} holds write {token}, which is so after {_ranges(mask)} operations; "
                    f"the sectors before it are so after {_ranges(possible)}: no prefix of the {total} operations"
                )
            possible &= mask
        return possible

    def _when(self, lba: int, token: int, total: int) -> int:
        """Bit set of the prefixes after which the sector holds `token`."""
        mask = 0
        begin, current = 0, ZERO
        for number, next_token in self._history.get(lba, ()):
            if current == token:
                mask |= _span(begin, number)
            begin, current = number, next_token
        if current == token:
            mask |= _span(begin, total + 1)
        return mask

    def judge(self, image: Sequence[int], at_least: int, promise: str) -> int:
        """The longest prefix the image equals. Raises Violation if there is none, or none with `at_least` operations."""
        possible = self.prefixes(image)
        best = possible.bit_length() - 1
        if best < at_least:
            raise Violation(
                f"{promise}: the image is that after {_ranges(possible)} operations, {at_least} were promised; "
                f"the first one missing is the {self.operations[best]}"
            )
        return best

    def recovered(self, prefix: int) -> None:
        """The volume goes on from this prefix: later operations never happened, and what is left is acknowledged and
        durable on this host, as recovery syncs what it found."""
        if prefix < len(self.operations):
            for operation in self.operations[prefix:]:
                for lba in range(operation.lba, operation.lba + operation.count):
                    history = self._history.get(lba, [])
                    while history and history[-1][0] > prefix:
                        history.pop()
            del self.operations[prefix:]
        self._positions = [(place, count) for place, count in self._positions if count <= prefix]
        self.acknowledged = self.flushed = prefix
        self.held = min(self.held, prefix)
        self.in_bucket = min(self.in_bucket, prefix)


def _span(begin: int, end: int) -> int:
    return (1 << end) - (1 << begin)


def _ranges(mask: int) -> str:
    """A bit set for people: "3-5, 9"."""
    parts = []
    at = 0
    while mask >> at:
        if mask >> at & 1:
            begin = at
            while mask >> at & 1:
                at += 1
            parts.append(str(begin) if at - begin == 1 else f"{begin}-{at - 1}")
        else:
            at += 1
    return ", ".join(parts) or "no number of"
