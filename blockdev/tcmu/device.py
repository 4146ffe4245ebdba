"""One TCMU device as a front door of a volume: commands out of the ring, SCSI, answers into the ring.

One rule: as at the portal, everything a wake-up brought is taken in before anything it wrote is acknowledged: one commit, then
the answers, then one word to the kernel. Data of a write is staged where the kernel put it (the data area stays as it is until
the command is answered), data of a read is copied there once.

The kernel has done without us: login, LUN mapping, ACLs, REPORT LUNS, reservations, ordering of task management, and unit
attentions that come of those. It passes every other command on, without a word about who sent it: all initiators are one
nexus here. So reservations that it passed on would protect nobody, and are refused.

    read answered at once, write staged: no object of its own
    read that is waited for, every other operation: `_Open` until it is answered; the kernel's timer and task management
    do not end it for us, and the kernel drops an answer that comes too late

`BlockTarget` and this object run on one thread. Next: `handler.py`.
"""

import logging
from collections.abc import Callable, Sequence

from blockdev.errors import BlockError
from blockdev.latency import OTHER, READ, WRITE
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import Buffer, NeedData, Operation, Response, Status
from blockdev.scsi.perform import KIND_OF, MODIFYING, perform
from blockdev.scsi.sense import TRANSFER_LENGTH_MISMATCH, Condition, check, response_for
from blockdev.tcmu.ring import Request, Ring

log = logging.getLogger(__name__)

NEXUS = "lio"
"""All initiators, as the logical unit sees them."""
BATCH_COMMANDS = 128
"""So many commands are taken in before the first of them is acknowledged."""
BATCHES_PER_TURN = 4
"""Then the other devices and sockets have their turn."""

KERNELS_OWN = frozenset((0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F))
"""RESERVE, RELEASE (6 and 10), PERSISTENT RESERVE IN and OUT: the kernel's business, see above."""

Vectors = tuple[tuple[int, int], ...]
_NOTHING = Request(0, b"", (), 0, False)


class _Open:
    """A command that has no answer yet; called with the outcome."""

    __slots__ = ("answer", "began", "kind", "modifies", "request")

    def __init__(self, request: Request, began: int, kind: int, answer: "Callable[[_Open, object], None]") -> None:
        self.request = request
        self.began = began
        self.kind = kind
        self.modifies = False
        self.answer = answer

    def __call__(self, outcome: object) -> None:
        self.answer(self, outcome)


class Device:
    """`kick` tells the kernel that there are answers; `later(seconds, callback)` and `soon(callback)` call back on this thread;
    `clock` gives nanoseconds. Nothing is durable here but what the target makes so."""

    def __init__(
        self,
        ring: Ring,
        logical: LogicalUnit,
        *,
        kick: Callable[[], None],
        later: Callable[[float, Callable[[], None]], object],
        soon: Callable[[Callable[[], None]], object],
        clock: Callable[[], int],
    ) -> None:
        self.ring = ring
        self.logical = logical
        self._target = logical.target
        self._sector_bytes = logical.target.sector_bytes
        self._kick = kick
        self._later = later
        self._soon = soon
        self._clock = clock
        self._running = False
        self._closed = False
        self._staged: list[int] = []
        """Numbers of writes that are staged and wait for the commit."""
        self._late: list[tuple[_Open, Response]] = []
        """Other commands that staged something, with their answers."""
        self._intake = 0
        """Bytes staged since the target was last asked whether to hold answers back."""
        self._kept: list[tuple[list[int], list[tuple[_Open, Response]], int]] = []
        """Committed, the answers held back until `_release`; and when they came."""
        self._began = 0
        self._reads = 0
        """Answered at once by the batch under way; their latency is one and the same."""
        self._spare = self._read_slot()
        self.commands = self.wake_ups = self.task_management = 0
        logical.nexus_opened(NEXUS)
        logical.take_attention(NEXUS)  # of resets the kernel's target tells its initiators itself

    # ---- what the rim calls

    def run(self) -> None:
        """The kernel may have put something in the ring. Raises RingBroken; the device is of no use then."""
        if self._closed:
            return
        ring = self.ring
        self._running = True
        self.wake_ups += 1
        try:
            for _ in range(BATCHES_PER_TURN):
                self._began = self._clock()
                requests = ring.take(BATCH_COMMANDS)
                for request in requests:
                    self._command(request)
                self._settle()
                if self._reads:
                    self.logical.latency.record(READ, self._clock() - self._began, self._reads)
                    self._reads = 0
                if ring.management:
                    self._note_task_management()
                if not requests:
                    break
                self.commands += len(requests)
                self._publish()
            else:
                self._soon(self.run)
        finally:
            self._running = False
        self._publish()

    def close(self) -> None:
        """Answers that come after this go nowhere: the shared memory is about to go. The kernel keeps what is unanswered."""
        self._closed = True
        self.logical.nexus_closed(NEXUS)
        self._staged.clear()
        self._late.clear()
        self._kept.clear()
        self.ring.close()

    def snapshot(self) -> dict[str, int]:
        """Counters since the device was taken over."""
        return {
            "commands": self.commands,
            "wake_ups": self.wake_ups,
            "task_management": self.task_management,
            "open": 0 if self._closed else self.ring.open,
        }

    # ---- commands

    def _command(self, request: Request) -> None:
        admitted = self.logical.admit(request.cdb, NEXUS)
        if admitted is not None:
            kind, lba, count, fua = admitted
            if count * self._sector_bytes == request.length and not request.bidirectional:
                if kind and not fua:
                    self._write_now(request, lba)
                    return
                if not kind:
                    self._read_now(request, lba, count)
                    return
        self._settle()
        self._any(request)

    def _write_now(self, request: Request, lba: int) -> None:
        try:
            self._target.write(lba, self._data(request.iovecs))
        except BlockError as error:
            self._answer(request, response_for(error))
            return
        self._staged.append(request.id)
        self._intake += request.length

    def _read_now(self, request: Request, lba: int, count: int) -> None:
        task = self._spare
        task.request = request
        try:
            buffers = self._target.read(lba, count, task)
        except BlockError as error:
            # The target commits staged writes before a read; had that failed, `_settle` must not acknowledge them.
            self._fail_staged(error)
            self._answer(request, response_for(error))
            return
        if buffers is None:
            task.began = self._began
            self._spare = self._read_slot()
            return
        self._reads += 1
        scatter(self.ring.view, request.iovecs, buffers)
        self.ring.answer(request.id, Status.GOOD)

    def _read_slot(self) -> _Open:
        """Made ahead: most reads are answered at once and leave it unused."""
        return _Open(_NOTHING, 0, READ, self._read_arrived)

    def _read_arrived(self, task: _Open, outcome: object) -> None:
        if self._closed:
            return
        if isinstance(outcome, Exception):
            self._answer(task.request, response_for(outcome))
        else:
            assert isinstance(outcome, list)
            scatter(self.ring.view, task.request.iovecs, outcome)
            self.ring.answer(task.request.id, Status.GOOD)
            self.logical.latency.record(READ, self._clock() - task.began)
        self._told()

    def _any(self, request: Request) -> None:
        """A command off the fast path."""
        task = _Open(request, self._began, OTHER, self._performed)
        answer: Operation | Response | NeedData
        if request.cdb[0] in KERNELS_OWN:
            answer = check(Condition.INVALID_OPERATION_CODE)
        elif request.bidirectional:
            answer = TRANSFER_LENGTH_MISMATCH
        else:
            answer = self.logical.begin(request.cdb, NEXUS)
        if isinstance(answer, NeedData):
            if answer.exact and request.length != answer.length:
                answer = TRANSFER_LENGTH_MISMATCH
            else:
                # A copy: an operation may look at its data after other commands have been answered.
                answer = answer.then(b"".join(self._data(request.iovecs))[: answer.length])
        if isinstance(answer, Response):
            self._finish(task, answer)
            return
        task.kind = KIND_OF.get(type(answer), OTHER)
        task.modifies = isinstance(answer, MODIFYING)
        perform(answer, self._target, task)

    def _performed(self, task: _Open, outcome: object) -> None:
        assert isinstance(outcome, Response)
        if self._closed:
            return
        if task.modifies and outcome.status == Status.GOOD:
            self._late.append((task, outcome))
            self._intake += task.request.length
        else:
            self._finish(task, outcome)
        if not self._running:
            self._settle()
        self._told()

    # ---- acknowledging

    def _settle(self) -> None:
        """Commit what is staged, then answer it, or keep the answers where the target asks for that. Crash before the commit
        returns: nothing was acknowledged, and the kernel gives the commands to the next handler; after it: the writes are
        in the journal, and doing them again changes nothing."""
        if not self._staged and not self._late:
            return
        staged, self._staged = self._staged, []
        late, self._late = self._late, []
        try:
            self._target.commit()
        except BlockError as error:
            self._fail(staged, late, error)
            return
        seconds = self._target.hold_back(self._intake)
        self._intake = 0
        if seconds:
            self._kept.append((staged, late, self._began))
            self._later(seconds, self._release)
        else:
            self._acknowledge(staged, late, self._began)

    def _release(self) -> None:
        """Answer the oldest of what was held back."""
        if self._closed or not self._kept:
            return
        staged, late, began = self._kept.pop(0)
        try:
            self._target.commit()  # asked again: a volume may have been taken over meanwhile
        except BlockError as error:
            self._fail(staged, late, error)
        else:
            self._acknowledge(staged, late, began)
        self._told()

    def _acknowledge(self, staged: list[int], late: list[tuple[_Open, Response]], began: int) -> None:
        if staged:
            self.logical.latency.record(WRITE, self._clock() - began, len(staged))
            answer = self.ring.answer
            for number in staged:
                answer(number, Status.GOOD)
        for task, response in late:
            self._finish(task, response)

    def _fail_staged(self, error: BlockError) -> None:
        staged, self._staged = self._staged, []
        late, self._late = self._late, []
        self._fail(staged, late, error)

    def _fail(self, staged: list[int], late: list[tuple[_Open, Response]], error: BlockError) -> None:
        response = response_for(error)
        for number in staged:
            self.ring.answer(number, response.status, response.sense)
        for task, _ in late:
            self._finish(task, response)

    def _finish(self, task: _Open, response: Response) -> None:
        if response.status == Status.GOOD:
            self.logical.latency.record(task.kind, self._clock() - task.began)
        self._answer(task.request, response)

    def _answer(self, request: Request, response: Response) -> None:
        """With its data-in. The kernel does not clear the pages of the data area: what is not filled would be somebody
        else's."""
        length = -1
        if response.data:
            given = scatter(self.ring.view, request.iovecs, response.data)
            if given < request.length and self.ring.reports_length:
                length = given
        self.ring.answer(request.id, response.status, response.sense, length)

    # ---- inside

    def _data(self, iovecs: Vectors) -> list[Buffer]:
        view = self.ring.view
        return [view[start : start + length] for start, length in iovecs]

    def _note_task_management(self) -> None:
        found, self.ring.management = self.ring.management, []
        self.task_management += len(found)
        for each in found:
            log.info(
                "%s: task management %d by the kernel, %d commands", self._target.name, each.function, len(each.ids)
            )

    def _told(self) -> None:
        """Something was answered, perhaps outside of `run`."""
        if not self._running:
            self._publish()

    def _publish(self) -> None:
        if not self._closed and self.ring.publish():
            self._kick()


def scatter(view: memoryview, iovecs: Vectors, buffers: Sequence[Buffer]) -> int:
    """Copy `buffers` to where `iovecs` point, as much as fits, and zeros behind them. Returns the bytes copied."""
    if len(iovecs) == 1 and len(buffers) == 1:
        start, room = iovecs[0]
        buffer = buffers[0]
        size = len(buffer)
        if size == room:
            view[start : start + room] = buffer
            return size
    copied = 0
    parts = iter(buffers)
    part = memoryview(b"")
    for start, room in iovecs:
        end = start + room
        while start < end:
            if not part:
                following = next(parts, None)
                if following is None:
                    view[start:end] = bytes(end - start)
                    break
                part = memoryview(following).cast("B")
                continue
            size = min(len(part), end - start)
            view[start : start + size] = part[:size]
            part = part[size:]
            start += size
            copied += size
    return copied
