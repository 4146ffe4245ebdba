"""The front against a plain byte array, under random writes, delays, reclaim in a tiny journal, kills and power cuts."""

import random
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blockdev.errors import JournalFull, StoreUnreachable
from blockdev.target import Buffer
from blockdev.units import KIB
from tests.blockdev.front_world import SMALL, World

SECTOR = SMALL.sector_bytes
SECTORS = SMALL.sector_count
lbas = st.one_of(
    st.integers(0, 255),  # most of the traffic meets
    st.integers(0, SECTORS - 1),
    st.integers(0, SECTORS // 8 - 1).map(lambda block: block * 8),
)
counts = st.one_of(st.integers(1, 24), st.sampled_from([8, 8, 8, 16, 24]))
seeds = st.integers(0, 2**32 - 1)


@dataclass
class PendingRead:
    lba: int
    count: int
    allowed: list[bytes]
    """The range as it was at each moment since the read was asked."""
    answers: list[list[Buffer] | Exception] = field(default_factory=list)


class FrontMachine(RuleBasedStateMachine):
    """`model` is the volume with everything staged; `history` what each operation did, to go back at a power cut."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ring_bytes=64 * KIB, slots=8, read_ahead_bytes=64 * KIB)
        self.model = bytearray(SMALL.size_bytes)
        self.history: list[tuple[int, int, int, bytes, bytes]] = []
        self.flushed = 0
        self.pending: list[PendingRead] = []

    # --- what initiators do

    def _change(self, lba: int, data: bytes, before: int) -> None:
        start = lba * SECTOR
        old = bytes(self.model[start : start + len(data)])
        self.model[start : start + len(data)] = data
        self.history.append((before, self.world.journal.tail, lba, old, data))
        for read in self.pending:
            read.allowed.append(self._now(read.lba, read.count))

    def _now(self, lba: int, count: int) -> bytes:
        return bytes(self.model[lba * SECTOR : (lba + count) * SECTOR])

    @rule(lba=lbas, count=counts, seed=seeds, cut=st.integers(0, 24), commit=st.booleans())
    def write(self, lba: int, count: int, seed: int, cut: int, commit: bool) -> None:
        count = min(count, SECTORS - lba)
        data = random.Random(seed).randbytes(count * SECTOR)
        before = self.world.journal.tail
        parts = [data[: cut * 100], data[cut * 100 :]] if 0 < cut * 100 < len(data) else [data]
        try:
            self.world.front.write(lba, parts)
        except JournalFull:
            # A cut block may have committed what was staged, but nothing of this write may be in.
            assert self.world.journal.tail == before
            return
        self._change(lba, data, before)
        if commit:
            self.world.front.commit()

    @rule(lba=lbas, count=st.one_of(counts, st.integers(1, SECTORS)), unmap=st.booleans(), many=st.booleans())
    def discard(self, lba: int, count: int, unmap: bool, many: bool) -> None:
        count = min(count, SECTORS - lba)
        before = self.world.journal.tail
        try:
            if unmap:
                ranges = [(lba, count // 2), (lba + count // 2, count - count // 2)] if many else [(lba, count)]
                self.world.front.unmap(ranges)
            else:
                self.world.front.write_zeroes(lba, count, may_unmap=many)
        except JournalFull:
            assert self.world.journal.tail == before
            return
        self._change(lba, bytes(count * SECTOR), before)

    @rule()
    def commit(self) -> None:
        self.world.front.commit()

    @rule(lba=lbas, count=st.one_of(counts, st.integers(1, 200)))
    def read(self, lba: int, count: int) -> None:
        count = min(count, SECTORS - lba)
        read = PendingRead(lba, count, [self._now(lba, count)])
        local = self.world.front.read(lba, count, read.answers.append)
        if local is not None:
            assert b"".join(local) == read.allowed[0]
        else:
            assert not read.answers, "answered before the call returned"
            self.pending.append(read)

    @rule(wait=st.booleans())
    def flush(self, wait: bool) -> None:
        answers: list[Exception | None] = []
        self.world.front.flush(answers.append)
        head = self.world.journal.head
        if not answers and wait:
            self.world.syncer.run()
        if answers:
            assert answers == [None]
            self.flushed = max(self.flushed, head)

    # --- what the worker and time do

    @rule()
    def worker_looks_up(self) -> None:
        self.world.worker.look_up()

    @rule()
    def worker_delivers(self) -> None:
        self.world.worker.deliver()

    @rule(share=st.floats(0.1, 1))
    def worker_commits(self, share: float) -> None:
        ends = self.world.worker.boundaries()
        if ends:
            self.world.worker.commit(ends[max(0, round(share * len(ends)) - 1)])

    @rule(away=st.booleans())
    def store_comes_and_goes(self, away: bool) -> None:
        self.world.worker.unreachable = away

    @rule(now=st.floats(0, 100))
    def tick(self, now: float) -> None:
        self.world.front.tick(now)

    @rule(slot=st.integers(0, 7), at=st.integers(0, 16 * KIB - 1))
    def cache_rots(self, slot: int, at: int) -> None:
        self.world.content_file.content[slot * 16 * KIB + at] ^= 0x10

    @rule()
    def everything_settles(self) -> None:
        """All reads are answered, the bucket catches up, and the whole volume reads right."""
        self.world.worker.unreachable = False
        self.world.worker.serve()
        self.world.front.commit()
        self.world.front.tick(0.0)
        self.world.worker.commit()
        for lba in range(0, SECTORS, 256):
            assert self.world.read(lba, 256) == self._now(lba, 256)

    # --- what goes wrong

    def _begin_again(self) -> None:
        self.pending.clear()
        self.history = [entry for entry in self.history if entry[1] > self.world.bucket.position]
        self.flushed = max(self.flushed, self.world.journal.head)

    @rule()
    def process_dies(self) -> None:
        """Whatever was committed is there; what was only staged is not."""
        head = self.world.journal.head
        self.world.restart()
        assert self.world.journal.head == head
        self._undo_after(head)
        self._begin_again()

    @rule(seed=seeds)
    def host_loses_power(self, seed: int) -> None:
        """A prefix is left, no shorter than the last acknowledged flush."""
        self.world.power_cut(random.Random(seed))
        head = self.world.journal.head
        assert head >= self.flushed
        self._undo_after(head)
        self._begin_again()

    def _undo_after(self, head: int) -> None:
        doubt: tuple[int, bytes, bytes] | None = None
        while self.history and self.history[-1][1] > head:
            begin, _, lba, old, new = self.history.pop()
            self.model[lba * SECTOR : lba * SECTOR + len(old)] = old
            if begin < head:  # an operation of several records, of which some are there
                doubt = lba, old, new
        if doubt is not None:
            self._settle_doubt(*doubt)

    def _settle_doubt(self, lba: int, old: bytes, new: bytes) -> None:
        count = len(old) // SECTOR
        found = self.world.read(lba, count)
        for index in range(count):
            part = slice(index * SECTOR, (index + 1) * SECTOR)
            assert found[part] in (old[part], new[part])
        self.model[lba * SECTOR : lba * SECTOR + len(found)] = found

    @invariant()
    def answered_reads_are_right(self) -> None:
        self.world.run_posted()
        for read in [read for read in self.pending if read.answers]:
            self.pending.remove(read)
            (answer,) = read.answers
            if isinstance(answer, Exception):
                assert isinstance(answer, StoreUnreachable), answer
                continue
            data = b"".join(answer)
            assert len(data) == read.count * SECTOR
            for start in range(0, len(data), SECTOR):
                sector = data[start : start + SECTOR]
                assert any(sector == allowed[start : start + SECTOR] for allowed in read.allowed)

    @invariant()
    def nothing_stopped(self) -> None:
        assert not self.world.stopped
        # The journal never rots here: a checksum that does not hold means the index pointed at a place given up.
        assert self.world.front.snapshot()["corrupt_journal_blocks"] == 0

    def teardown(self) -> None:
        if not self.world.stopped:
            self.everything_settles()
            self.answered_reads_are_right()
            assert not self.pending, "a read was never answered"


FrontMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestFront = FrontMachine.TestCase
