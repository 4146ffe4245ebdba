"""Full feature phase of one session: commands and their answers (RFC 7143 sections 4 and 11).

One rule: everything that arrived in one receive is taken in before anything it wrote is acknowledged. Writes are staged on
the target; `settle` commits them, once per volume, and only then puts their responses in the outbox. Whatever
could notice the difference (a command off the fast path, task management, logout) settles first.

    READ  on the fast path: admitted, read, Data-In with status; no object unless the data is not at hand
    WRITE on the fast path: admitted, staged from the receive buffer; the response waits for `settle`
    all the rest:           LogicalUnit.begin -> Response | NeedData (DataOut) | Operation (AtTarget, perform)

Initiators number commands (CmdSN) and we take them in that order within the window; we number answers (StatSN). At error
recovery level 0 no answer is ever repeated. Next: `nexus.py` (tasks), `transfer.py` (data), `exchange.py` (the rest).
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from blockdev.errors import BlockError
from blockdev.iscsi.errors import PeerError, SequenceError
from blockdev.iscsi.login import Identity, Parameters
from blockdev.iscsi.nexus import READING_BYTES_MAX, WINDOW, AtTarget, BufferPool, DataOut, Place, Task
from blockdev.iscsi.nodes import Node, Nodes
from blockdev.iscsi.outbox import Outbox
from blockdev.iscsi.pdu import (
    COMMAND,
    COMMAND_READ,
    COMMAND_WRITE,
    FINAL,
    HEADER,
    IMMEDIATE,
    NO_TAG,
    OPCODE_MASK,
    Opcode,
    Reason,
    lun_number,
    pack_fields,
    serial_less,
)
from blockdev.iscsi.transfer import Inbound, put_data_in, residual_flags
from blockdev.latency import OTHER, READ, WRITE
from blockdev.scsi.device import LogicalUnit, absent
from blockdev.scsi.operation import Buffer, Copy, NeedData, Operation, Response, Status
from blockdev.scsi.perform import KIND_OF, MODIFYING, perform
from blockdev.scsi.sense import GOOD, TRANSFER_LENGTH_MISMATCH, Condition, check, response_for

_TASK_SET_FULL = Response(Status.TASK_SET_FULL)
_WORD = 0xFFFFFFFF
HELD_BYTES_MAX = 4 * 1024 * 1024
"""For commands that came before one with a smaller number. On one TCP connection that takes a peer that skips numbers."""

_NOTHING = (b"", b"")
"""In `Session.held`: a number whose command was aborted before it came."""

_unpack_command = COMMAND.unpack_from
_unpack_header = HEADER.unpack_from
_pack_header = HEADER.pack


class Session:
    """One I_T nexus in full feature phase, on its one connection (MaxConnections=1). Owned by the connection.

    `notify` is called when something was put in the outbox outside of a receive; `drop(reason)` ends the connection; `clock`
    gives nanoseconds, to measure commands with."""

    def __init__(
        self,
        nodes: Nodes,
        identity: Identity,
        parameters: Parameters,
        outbox: Outbox,
        pool: BufferPool,
        *,
        cmd_sn: int,
        stat_sn: int,
        notify: Callable[[], None],
        drop: Callable[[str], None],
        clock: Callable[[], int],
    ) -> None:
        self.nodes = nodes
        self.identity = identity
        self.parameters = parameters
        self.outbox = outbox
        self.nexus = f"{identity.initiator},i,0x{identity.isid:012x},t,0x{identity.portal_group:04x}"
        self.node: Node | None = nodes.nodes.get(identity.target)
        self.stat_sn = stat_sn
        self.exp_cmd_sn = cmd_sn
        self.max_cmd_sn = (cmd_sn + WINDOW - 1) & _WORD
        self.tasks: dict[int, Task] = {}
        """Under way, by initiator task tag."""
        self.receiving = False
        """Inside a receive: what is put in the outbox will be sent when it ends."""
        self.ended = False
        self.began = 0
        """When the bytes came that are being parsed."""
        self._clock = clock
        self._notify = notify
        self._drop = drop
        self._pool = pool
        self._inbound = Inbound(outbox, self, parameters, pool)
        self._places: dict[int, Place] = {}
        self._dirty: list[Place] = []
        self._lent: list[bytearray] = []
        """Buffers of staged data: they go back to the pool after the commit."""
        self._kept: list[tuple[Place, list[int], list[tuple[AtTarget, Response]], int]] = []
        """What `Place.staged` and `late` held, and when it came: committed, the answers held back until `release`."""
        self.held: dict[int, tuple[bytes, bytes]] = {}
        """Header and data of what came before its turn, by CmdSN."""
        self._held_bytes = 0
        self._immediate_max = parameters.first_burst if parameters.immediate_data else 0
        self._plain_max = 0 if parameters.header_digest or parameters.data_digest else parameters.send_segment_max
        self._reading = 0
        self._spare = self._read_slot()
        self.tsih = nodes.opened(self)
        for logical in self.node.units.values() if self.node else ():
            logical.nexus_opened(self.nexus)

    # ---- PDUs

    def receive(
        self, rx: bytearray | bytes | memoryview, at: int, data: memoryview, owned: bytearray | None = None
    ) -> bool:
        """A SCSI Command: header at `at` of `rx`, its data segment in `data`. True if it was one and is dealt with;
        other PDUs are the connection's to hand on. `data` must stay as it is until `settle`."""
        _, flags, _, _, _, lun, itt, expected, cmd_sn, _, cdb = _unpack_command(rx, at)
        if cmd_sn != self.exp_cmd_sn or (cmd_sn - self.max_cmd_sn) & _WORD == 1:
            return False
        self.exp_cmd_sn = (cmd_sn + 1) & _WORD
        place = self._places.get(lun)
        if place is not None and itt not in self.tasks:
            admitted = place.admit(cdb, self.nexus)
            if admitted is not None:
                kind, lba, count, fua = admitted
                if count * place.sector_bytes == expected:
                    if kind:
                        if (
                            flags & 0xE0 == 0xA0
                            and len(data) == expected
                            and not fua
                            and expected <= self._immediate_max
                        ):
                            self._write_now(place, itt, lba, data, owned)
                            return True
                    elif flags & 0xE0 == 0xC0 and not data:
                        self._read_now(place, itt, lba, count, expected)
                        return True
        self._command(rx, at, data, owned, counted=True)
        return True

    def numbered(self, rx: bytearray | bytes | memoryview, at: int, data: memoryview) -> bool:
        """Whether a PDU that takes a CmdSN is due now. Immediate ones always are. Duplicates and those outside the window
        are ignored (RFC 7143 4.2.2.1); one that came too early is kept until its turn."""
        words = _unpack_header(rx, at)
        cmd_sn = words[8]
        if words[0] & IMMEDIATE:
            return True
        if cmd_sn == self.exp_cmd_sn and not serial_less(self.max_cmd_sn, cmd_sn):
            self.exp_cmd_sn = (cmd_sn + 1) & _WORD
            self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
            return True
        if not serial_less(cmd_sn, self.exp_cmd_sn) and not serial_less(self.max_cmd_sn, cmd_sn):
            self._hold(cmd_sn, bytes(rx[at : at + 48]), bytes(data))
        return False

    def command_out_of_turn(self, rx: bytearray | bytes | memoryview, at: int, data: memoryview) -> None:
        """A SCSI Command that `receive` did not take: immediate, early, or to be ignored."""
        if rx[at] & IMMEDIATE:
            self._command(rx, at, data, None, counted=False)
        else:
            self.numbered(rx, at, data)

    def next_held(self) -> tuple[bytes, memoryview] | None:
        """A PDU that was kept and is due now."""
        if not self.held:
            return None
        self._pass_over()
        kept = self.held.pop(self.exp_cmd_sn, None)
        if kept is None:
            return None
        header, data = kept
        self._held_bytes -= len(data) + len(header)
        return header, memoryview(data)

    def data_out(self, rx: bytearray | bytes | memoryview, at: int, data: memoryview | None, length: int) -> None:
        """A Data-Out; `data` None if it was received in place. For a task that is gone it is ignored: the task was
        aborted, or answered early."""
        _, flags, _, _, _, _, itt, ttt, _, _, _, data_sn, offset, _ = _unpack_header(rx, at)
        out = self.tasks.get(itt)
        if isinstance(out, DataOut):
            if length > self.parameters.receive_segment_max:
                raise PeerError(f"Data-Out of {length} bytes; {self.parameters.receive_segment_max} were agreed")
            try:
                self._inbound.receive(out, ttt, offset, data_sn, length, data, final=bool(flags & FINAL))
            except SequenceError:
                # The command is over; what else comes for it finds no task and is ignored.
                del self.tasks[itt]
                self._inbound.drop(out)
                self._finish(out.task, check(Condition.PROTOCOL_SERVICE_CRC_ERROR))

    def room(self, header: bytes, length: int) -> memoryview | None:
        """Where the data of this Data-Out may be received in place, with room for pad and digest; None if it is for
        no task that waits for it, or out of sequence (`data_out` will see to that)."""
        words = _unpack_header(header)
        out = self.tasks.get(words[6])
        if isinstance(out, DataOut):
            with suppress(SequenceError):
                return self._inbound.room(out, words[7], words[12], length)
        return None

    # ---- the fast paths

    def _write_now(self, place: Place, itt: int, lba: int, data: memoryview, owned: bytearray | None) -> None:
        try:
            place.target.write(lba, (data,))
        except BlockError as error:
            self._answer(itt, response_for(error), counted=True)
            return
        if not place.staged and not place.late:
            self._dirty.append(place)
        place.staged.append(itt)
        place.intake += len(data)
        if owned is not None:
            self._lent.append(owned)

    def _read_now(self, place: Place, itt: int, lba: int, count: int, expected: int) -> None:
        task = self._spare
        task.place, task.itt, task.expected = place, itt, expected
        try:
            buffers = place.target.read(lba, count, task)
        except BlockError as error:
            # The target commits staged writes before a read; had that failed, `settle` must not acknowledge them.
            self._fail_staged(place, error)
            self._answer(itt, response_for(error), counted=True, underflow=expected)
            return
        if buffers is None:
            task.began = self.began
            self._spare = self._read_slot()
            if self._reading + expected > READING_BYTES_MAX:
                task.done = True
                self._answer(itt, _TASK_SET_FULL, counted=True, underflow=expected)
                return
            self._reading += expected
            self.tasks[itt] = task
        else:
            place.reads += 1
            self._put_read(itt, buffers, expected)

    def _put_read(self, itt: int, buffers: Sequence[Buffer], length: int) -> None:
        self.max_cmd_sn = max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
        if length <= self._plain_max:
            stat_sn = self.stat_sn
            self.stat_sn = (stat_sn + 1) & _WORD
            outbox = self.outbox
            # FINAL | DATA_IN_STATUS; sectors need no padding.
            outbox.parts.append(
                _pack_header(0x25, 0x81, 0, 0, length, 0, itt, NO_TAG, stat_sn, self.exp_cmd_sn, max_cmd_sn, 0, 0, 0)
            )
            outbox.parts += buffers
            outbox.size += 48 + length
        else:
            put_data_in(self.outbox, self, self.parameters, itt, buffers, length, length, Status.GOOD)

    def _read_arrived(self, task: AtTarget, outcome: list[Buffer] | Exception) -> None:
        """The target's late answer to a read of the fast path."""
        if task.done:
            return
        self._reading -= task.expected
        task.done = True
        del self.tasks[task.itt]
        if isinstance(outcome, Exception):
            self._answer(task.itt, response_for(outcome), counted=True, underflow=task.expected)
        else:
            task.place.latency.record(READ, self._clock() - task.began)
            self._put_read(task.itt, outcome, task.expected)
        self.told()

    def _read_slot(self) -> AtTarget:
        """A task made ahead: most reads are answered at once and leave it unused."""
        nowhere: Any = None
        return AtTarget(nowhere, 0, 0, reads=True, writes=False, counted=True, answer=self._read_arrived)

    def settle(self) -> None:
        """Commit what is staged, then answer it, or keep the answers until `release` where a target asks for that.
        Crash before the commit returns: nothing was acknowledged, and the initiator's retry after reconnecting decides;
        after it: the writes are in the journal."""
        if not self._dirty and not self._lent:
            return
        dirty, self._dirty = self._dirty, []
        for place in dirty:
            try:
                place.target.commit()
            except BlockError as error:
                self._fail_staged(place, error)
                continue
            staged, place.staged = place.staged, []
            late, place.late = place.late, []
            seconds = place.target.hold_back(place.intake)
            place.intake = 0
            if seconds:
                self._kept.append((place, staged, late, self.began))
                self.outbox.hold_seconds = max(self.outbox.hold_seconds, seconds)
                continue
            if staged:
                place.writes += len(staged)
                self._acknowledge(staged)
            for task, response in late:
                self._finish(task, response)
        for buffer in self._lent:
            self._pool.give(buffer)
        self._lent.clear()

    def release(self) -> None:
        """Answer what was held back: its time is over, or something comes that must find it answered."""
        kept, self._kept = self._kept, []
        for place, staged, late, began in kept:
            try:
                place.target.commit()  # asked again: a volume may have been taken over meanwhile
            except BlockError as error:
                response = response_for(error)
                for itt in staged:
                    self._answer(itt, response, counted=True)
                for task, _ in late:
                    self._finish(task, response)
                continue
            if staged:
                place.latency.record(WRITE, self._clock() - began, len(staged))
                self._acknowledge(staged)
            for task, response in late:
                self._finish(task, response)

    def settle_all(self) -> None:
        """`settle`, and nothing held back."""
        self.settle()
        self.release()

    def measure(self) -> None:
        """A receive is over: count how long what it brought, and what was answered on the fast path, has taken."""
        clock = self._clock
        elapsed = clock() - self.began
        for place in self._places.values():
            # `Latency.record`, written out: this runs for every receive.
            if reads := place.reads:
                place.reads = 0
                place.read_counts[elapsed.bit_length()] += reads
                place.nanoseconds[READ] += elapsed * reads
            if writes := place.writes:
                place.writes = 0
                place.write_counts[elapsed.bit_length()] += writes
                place.nanoseconds[WRITE] += elapsed * writes

    def _acknowledge(self, staged: list[int]) -> None:
        """SCSI Responses with GOOD, no residual."""
        outbox = self.outbox
        stat_sn, exp_cmd_sn, max_cmd_sn = self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn
        for itt in staged:
            max_cmd_sn = (max_cmd_sn + 1) & _WORD
            header = _pack_header(0x21, 0x80, 0, 0, 0, 0, itt, 0, stat_sn, exp_cmd_sn, max_cmd_sn, 0, 0, 0)
            stat_sn = (stat_sn + 1) & _WORD
            if outbox.header_digest:
                outbox.put(header)
            else:
                outbox.parts.append(header)
                outbox.size += 48
        self.stat_sn, self.max_cmd_sn = stat_sn, max_cmd_sn

    def _fail_staged(self, place: Place, error: BlockError) -> None:
        staged, place.staged = place.staged, []
        late, place.late = place.late, []
        response = response_for(error)
        for itt in staged:
            self._answer(itt, response, counted=True)
        for task, _ in late:
            self._finish(task, response)

    # ---- every other command

    def _command(
        self, rx: bytearray | bytes | memoryview, at: int, data: memoryview, owned: bytearray | None, *, counted: bool
    ) -> None:
        _, flags, _, _, _, lun, itt, expected, _, _, cdb = _unpack_command(rx, at)
        reads, writes, final = bool(flags & COMMAND_READ), bool(flags & COMMAND_WRITE), bool(flags & FINAL)
        if itt in self.tasks:
            if counted:
                self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
            self.reject(Reason.TASK_IN_PROGRESS, bytes(rx[at : at + 48]))
            return
        if not counted and len(self.tasks) >= 2 * WINDOW:
            self.reject(Reason.IMMEDIATE_COMMAND_REJECT, bytes(rx[at : at + 48]))
            return
        if data and not (writes and len(data) <= self._immediate_max):
            raise PeerError(f"{len(data)} bytes of immediate data; {self._immediate_max} are allowed on a write")
        if not final and (not writes or self.parameters.initial_r2t):
            raise PeerError("a command announces unsolicited data that was not agreed on")
        if self.node is None:
            raise PeerError("a SCSI command in a discovery session")
        place = self._place(lun)
        nowhere: Any = place
        task = AtTarget(nowhere, itt, expected, reads=reads, writes=writes, counted=counted, answer=self._performed)
        task.began = self.began
        answer: Operation | Response | NeedData
        if place is None:
            answer = absent(cdb, self._luns())
        elif reads and writes:
            answer = TRANSFER_LENGTH_MISMATCH  # no bidirectional command is supported
        else:
            admitted = place.admit(cdb, self.nexus) if writes else None
            if admitted is not None and admitted[0] and not admitted[3]:
                _, lba, count, _ = admitted
                size = place.sector_bytes
                task.residual = expected - count * size
                task.kind = WRITE
                wanted = min(count * size, expected) // size * size
                self._gather(task, wanted, partial(self._stage, task, lba), data, owned, final)
                return
            self.settle()
            answer = place.logical.begin(cdb, self.nexus)
        if isinstance(answer, NeedData):
            offered = expected if writes else 0
            if answer.exact and offered != answer.length:
                answer = TRANSFER_LENGTH_MISMATCH
            else:
                task.residual = offered - answer.length
                then = partial(self._continue, task, answer.then)
                self._gather(task, min(offered, answer.length), then, data, owned, final)
                return
        if final:
            self._conclude(task, answer)
        else:
            # Answered early, but unsolicited data is on its way: take it in first (RFC 7143 11.4.5.1).
            self._gather(task, 0, partial(self._discard, task, answer), data, owned, final)

    def _gather(
        self,
        task: AtTarget,
        wanted: int,
        then: Callable[[list[Buffer], DataOut | None], None],
        data: memoryview,
        owned: bytearray | None,
        final: bool,
    ) -> None:
        """Call `then` once `wanted` bytes are here, now or later. With a DataOut they lie in its own buffers, else in
        the receive buffer."""
        if final and len(data) >= wanted:
            then([data[:wanted]] if wanted else [], None)
            if owned is not None:
                self._lent.append(owned)
            return
        out = DataOut(task, wanted, lambda out: self._gathered(out, then))
        self.tasks[task.itt] = out
        self._inbound.start(out, data, owned, final=final)

    def _gathered(self, out: DataOut, then: Callable[[list[Buffer], DataOut | None], None]) -> None:
        del self.tasks[out.task.itt]
        then(out.parts(), out)

    def _stage(self, task: AtTarget, lba: int, parts: list[Buffer], out: DataOut | None) -> None:
        """A write whose data is all here."""
        place = task.place
        if parts and any(len(part) % place.sector_bytes for part in parts):
            parts = [b"".join(parts)]
        if parts:
            try:
                place.target.write(lba, parts)
            except BlockError as error:
                self._finish(task, response_for(error))
                return
        self._answer_after_commit(task, GOOD)
        if out is not None:
            self._lent += out.buffers()

    def _answer_after_commit(self, task: AtTarget, response: Response) -> None:
        place = task.place
        if not place.staged and not place.late:
            self._dirty.append(place)
        place.late.append((task, response))
        place.intake += task.expected

    def _continue(
        self,
        task: AtTarget,
        then: Callable[[Buffer], Operation | Response],
        parts: list[Buffer],
        out: DataOut | None,
    ) -> None:
        """What `NeedData` asked for has come. An operation may keep its data longer than this receive: copied, unless
        it lies in buffers of its own (which then are not given back to the pool)."""
        if out is not None and len(parts) == 1:
            data = parts[0]
        else:
            data = b"".join(parts)
        self._conclude(task, then(data))

    def _discard(self, task: AtTarget, answer: Operation | Response, parts: list[Buffer], out: DataOut | None) -> None:
        self._conclude(task, answer)

    def _conclude(self, task: AtTarget, answer: Operation | Response) -> None:
        if isinstance(answer, Response):
            self._finish(task, answer)
            return
        self.settle()
        task.kind = KIND_OF.get(type(answer), OTHER)
        task.modifies = isinstance(answer, MODIFYING)
        if isinstance(answer, Copy):
            task.cancel = answer.progress.cancel
        self.tasks[task.itt] = task
        perform(answer, task.place.target, task)

    def _performed(self, task: AtTarget, response: Response) -> None:
        if task.done:
            if task.modifies:
                self._aborted_but_done(task)
            return
        task.done = True
        del self.tasks[task.itt]
        if task.modifies and response.status == Status.GOOD:
            self._answer_after_commit(task, response)
        else:
            self._finish(task, response)
        if not self.receiving:
            self.settle()
            self.told()

    @staticmethod
    def _aborted_but_done(task: AtTarget) -> None:
        """What an aborted task staged all the same is committed, for nobody else would; then whoever waits for its end
        is told. A failure here has no one to be answered to: the volume has stopped, and says so to the next command."""
        with suppress(BlockError):
            task.place.target.commit()
        if task.drained is not None:
            task.drained()

    # ---- answers

    def next_stat_sn(self) -> int:
        stat_sn = self.stat_sn
        self.stat_sn = (stat_sn + 1) & _WORD
        return stat_sn

    def _finish(self, task: AtTarget, response: Response) -> None:
        """The answer to a command, with its data-in, its residual count and its place in the window back."""
        if task.counted:
            self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
        if response.status == Status.GOOD and task.place is not None:
            task.place.latency.record(task.kind, self._clock() - task.began)
        length = sum(map(len, response.data))
        if not length:
            if task.reads:
                residual = task.expected
            else:
                residual = task.residual if response.status == Status.GOOD else 0
            self._put_response(task.itt, response, residual)
            return
        expected = task.expected if task.reads else 0
        if expected and not response.sense:
            put_data_in(self.outbox, self, self.parameters, task.itt, response.data, length, expected, response.status)
            return
        sent = 0
        if expected:
            sent = put_data_in(self.outbox, self, self.parameters, task.itt, response.data, length, expected, None)
        self._put_response(task.itt, response, expected - length, exp_data_sn=sent)

    def _answer(self, itt: int, response: Response, *, counted: bool, underflow: int = 0) -> None:
        if counted:
            self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
        self._put_response(itt, response, underflow)

    def _put_response(self, itt: int, response: Response, residual: int, *, exp_data_sn: int = 0) -> None:
        bits, count = residual_flags(residual)
        sense = response.sense
        data = len(sense).to_bytes(2, "big") + sense if sense else b""
        self.put(
            Opcode.SCSI_RESPONSE,
            FINAL | bits,
            data,
            itt=itt,
            status=response.status,
            exp_data_sn=exp_data_sn,
            residual=count,
        )

    def put(self, opcode: Opcode, flags: int = FINAL, data: Buffer = b"", **fields: int) -> None:
        """A PDU that uses up a StatSN, with the current numbers."""
        fields["length"] = len(data)
        fields["stat_sn"] = self.next_stat_sn()
        fields["exp_cmd_sn"] = self.exp_cmd_sn
        fields["max_cmd_sn"] = self.max_cmd_sn
        self.outbox.put(pack_fields(opcode, flags, fields), (data,), len(data))

    def reject(self, reason: Reason, header: bytes) -> None:
        """RFC 7143 11.17: the data segment is the header of the PDU in question."""
        self.put(Opcode.REJECT, data=header, reason=reason, itt=NO_TAG)

    # ---- tasks and the end

    def clear_tasks(self, logical: LogicalUnit | None, only: Callable[[Task], bool] | None = None) -> list[AtTarget]:
        """End tasks without a status; see `nodes.OpenSession`. What was staged is answered first: it is done."""
        self.settle_all()
        running: list[AtTarget] = []
        for itt, entry in list(self.tasks.items()):
            task = entry.task if isinstance(entry, DataOut) else entry
            if logical is not None and (task.place is None or task.place.logical is not logical):
                continue
            if only is not None and not only(entry):
                continue
            del self.tasks[itt]
            if task.counted:
                self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD
            if isinstance(entry, DataOut):
                self._inbound.drop(entry)
            else:
                entry.done = True
                if entry.answer == self._read_arrived:
                    self._reading -= entry.expected
                if entry.cancel is not None:
                    entry.cancel()
                if entry.modifies:
                    running.append(entry)
        self.told()
        return running

    def end(self, reason: str) -> None:
        """See `nodes.OpenSession`."""
        self._drop(reason)

    def close(self) -> None:
        """The connection is gone: tasks end, the nexus is lost. Called once by the connection."""
        if self.ended:
            return
        self.ended = True
        self.outbox.take()
        # Staged writes without an answer: committed or not, the initiator cannot know, and may not assume either.
        for place in self._dirty:
            place.staged.clear()
            place.late.clear()
        self._dirty.clear()
        self._kept.clear()
        self.clear_tasks(None)
        self.nodes.closed(self.tsih)
        for logical in self.node.units.values() if self.node else ():
            logical.nexus_closed(self.nexus)

    # ---- inside

    def renegotiated(self, parameters: Parameters) -> None:
        """New parameters from full feature phase: only what the initiator takes in one PDU can change."""
        self.parameters = parameters
        if self._plain_max:
            self._plain_max = parameters.send_segment_max

    def _luns(self) -> list[int]:
        return sorted(self.node.units) if self.node else []

    def _place(self, field: int) -> Place | None:
        place = self._places.get(field)
        if place is None and self.node is not None:
            lun = lun_number(field)
            logical = None if lun is None else self.node.units.get(lun)
            if lun is not None and logical is not None:
                place = self._places[field] = Place(logical, lun)
        return place

    def told(self) -> None:
        """Something was put in the outbox, perhaps outside of a receive."""
        if not self.receiving and not self.ended:
            self._notify()

    def skip(self, cmd_sn: int) -> None:
        """A command that was aborted before it came: its number counts as received, and it as dropped."""
        self.held[cmd_sn] = _NOTHING
        self._pass_over()

    def _pass_over(self) -> None:
        while self.held.get(self.exp_cmd_sn) is _NOTHING:
            del self.held[self.exp_cmd_sn]
            self.exp_cmd_sn = (self.exp_cmd_sn + 1) & _WORD
            self.max_cmd_sn = (self.max_cmd_sn + 1) & _WORD

    def place(self, field: int) -> Place | None:
        """The logical unit an eight-byte LUN field names, or None."""
        return self._place(field)

    def _hold(self, cmd_sn: int, header: bytes, data: bytes) -> None:
        if header[0] & OPCODE_MASK == Opcode.LOGOUT:
            raise PeerError("logout out of order")
        if cmd_sn in self.held:
            return
        self._held_bytes += len(header) + len(data)
        if self._held_bytes > HELD_BYTES_MAX:
            raise PeerError(f"CmdSN {self.exp_cmd_sn} is missing, and {HELD_BYTES_MAX} bytes came after it")
        self.held[cmd_sn] = (header, data)
