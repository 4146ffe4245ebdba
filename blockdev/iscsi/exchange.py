"""What an initiator sends in full feature phase besides commands and data: NOP, text, logout, task management
(RFC 7143 11.5, 11.10, 11.14, 11.18).

One rule: task management and logout answer only when it is true: staged writes are committed and answered first, tasks
that wait for data are dropped at once, and a task that the target is still carrying out and that changes the medium is
waited for, so that nothing of it lands after the initiator was told it is gone.
"""

from collections.abc import Callable

from blockdev.iscsi.discovery import send_targets
from blockdev.iscsi.errors import PeerError
from blockdev.iscsi.login import negotiate_later
from blockdev.iscsi.nexus import AtTarget, DataOut, Task
from blockdev.iscsi.pdu import CONTINUE, FINAL, NO_TAG, Opcode, Reason, TaskAnswer, TaskFunction, serial_less, unpack
from blockdev.iscsi.session import Session
from blockdev.iscsi.text import Gathered, encode
from blockdev.scsi.device import LogicalUnit, ResetCause
from blockdev.scsi.sense import Condition

Header = dict[str, int]

_FUNCTIONS = frozenset(map(int, TaskFunction))
_LOGOUT_OK, _LOGOUT_NO_CID, _LOGOUT_NO_RECOVERY = 0, 1, 2
_CLOSE_SESSION, _CLOSE_CONNECTION = 0, 1


class Exchange:
    """Handles one session's other PDUs. `addresses` are what SendTargets advertises; `close` ends the connection after
    what is in the outbox has been sent."""

    def __init__(self, session: Session, addresses: list[str], close: Callable[[], None]) -> None:
        self._session = session
        self._addresses = addresses
        self._close = close
        self._text = Gathered()
        self._text_tag = 0
        self._text_left = b""

    def receive(self, header: bytes, data: memoryview) -> None:
        """One PDU in its turn. Raises PeerError."""
        fields = unpack(header)
        match fields["opcode"]:
            case Opcode.NOP_OUT:
                self._nop(fields, data)
            case Opcode.TASK_MANAGEMENT:
                self._manage(fields)
            case Opcode.TEXT:
                self._talk(fields, data)
            case Opcode.LOGOUT:
                self._log_out(fields)
            case Opcode.SNACK:
                # Nothing is kept to be sent again at error recovery level 0.
                self._session.reject(Reason.SNACK_REJECT, header)
            case _:
                self._session.reject(Reason.COMMAND_NOT_SUPPORTED, header)

    def _nop(self, fields: Header, data: memoryview) -> None:
        if fields["itt"] == NO_TAG:
            return
        echo = bytes(data[: self._session.parameters.send_segment_max])
        self._session.put(Opcode.NOP_IN, data=echo, itt=fields["itt"], ttt=NO_TAG)

    # ---- text

    def _talk(self, fields: Header, data: memoryview) -> None:
        tag = fields["ttt"]
        if tag == NO_TAG:
            self._text, self._text_left = Gathered(), b""
        elif tag != self._text_tag:
            raise PeerError(f"text request with transfer tag {tag:#x}, which was not given")
        self._text.add(data)
        if fields["flags"] & CONTINUE:
            if fields["flags"] & FINAL:
                raise PeerError("text request with both the F and the C bit")
            self._say(fields["itt"], b"", final=False, more=False)
            return
        keys = self._text.take()
        answer = self._text_left
        if keys:
            answer = encode(self._answer(keys))
        part, self._text_left = self._cut(answer)
        more = bool(self._text_left)
        self._say(fields["itt"], part, final=bool(fields["flags"] & FINAL) and not more, more=more)

    def _cut(self, answer: bytes) -> tuple[bytes, bytes]:
        most = self._session.parameters.send_segment_max
        return answer[:most], answer[most:]

    def _say(self, itt: int, data: bytes, *, final: bool, more: bool) -> None:
        self._text_tag = NO_TAG if final else (self._text_tag + 1) % NO_TAG
        flags = FINAL if final else CONTINUE if more else 0
        self._session.put(Opcode.TEXT_RESPONSE, flags, data, itt=itt, ttt=self._text_tag)

    def _answer(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        session = self._session
        pairs: list[tuple[str, str]] = []
        wanted = keys.pop("SendTargets", None)
        if wanted is not None:
            pairs += send_targets(wanted, session.nodes, session.identity, self._addresses)
        parameters, answers = negotiate_later(session.parameters, keys)
        session.renegotiated(parameters)
        return pairs + answers

    # ---- logout

    def _log_out(self, fields: Header) -> None:
        session = self._session
        session.settle_all()
        reason = fields["flags"] & 0x7F
        response, running = _LOGOUT_OK, list[AtTarget]()
        if reason not in (_CLOSE_SESSION, _CLOSE_CONNECTION):
            response = _LOGOUT_NO_RECOVERY
        elif reason == _CLOSE_CONNECTION and fields["cid"] >> 16 != session.identity.cid:
            response = _LOGOUT_NO_CID
        else:
            running = session.clear_tasks(None)

        def finish() -> None:
            if session.ended:
                return
            session.put(Opcode.LOGOUT_RESPONSE, itt=fields["itt"], response=response)
            if response == _LOGOUT_OK:
                self._close()
            session.told()

        _when_drained(running, finish)

    # ---- task management

    def _manage(self, fields: Header) -> None:
        session = self._session
        session.settle_all()
        function, itt = fields["flags"] & 0x7F, fields["itt"]
        if function in (TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET):
            self._reset_target(itt, cold=function == TaskFunction.TARGET_COLD_RESET)
            return
        place = session.place(fields["lun"])
        if function == TaskFunction.ABORT_TASK:
            self._abort_task(fields)
        elif function == TaskFunction.CLEAR_ACA:
            self._done(itt, TaskAnswer.NOT_SUPPORTED)
        elif function == TaskFunction.TASK_REASSIGN:
            self._done(itt, TaskAnswer.REASSIGNMENT_NOT_SUPPORTED)
        elif function not in _FUNCTIONS:
            self._done(itt, TaskAnswer.REJECTED)
        elif place is None:
            self._done(itt, TaskAnswer.NO_SUCH_LUN)
        elif function == TaskFunction.ABORT_TASK_SET:
            self._answer_drained(itt, session.clear_tasks(place.logical))
        elif function == TaskFunction.CLEAR_TASK_SET:
            running = session.nodes.clear_tasks(place.logical)
            place.logical.attention_to_all(Condition.COMMANDS_CLEARED, but=session.nexus)
            self._answer_drained(itt, running)
        else:
            running = session.nodes.clear_tasks(place.logical)
            place.logical.reset(ResetCause.LOGICAL_UNIT)
            self._answer_drained(itt, running)

    def _abort_task(self, fields: Header) -> None:
        session = self._session
        referenced, ref_cmd_sn = fields["referenced_itt"], fields["ref_cmd_sn"]
        if referenced in session.tasks:

            def this_one(entry: Task) -> bool:
                task = entry.task if isinstance(entry, DataOut) else entry
                return task.itt == referenced

            self._answer_drained(fields["itt"], session.clear_tasks(None, this_one))
        elif not serial_less(ref_cmd_sn, session.exp_cmd_sn) and not serial_less(session.max_cmd_sn, ref_cmd_sn):
            # Not here yet: counts as received and dropped (RFC 7143 11.6.1 case c).
            self._session.skip(ref_cmd_sn)
            self._done(fields["itt"], TaskAnswer.COMPLETE)
        else:
            self._done(fields["itt"], TaskAnswer.NO_SUCH_TASK)

    def _reset_target(self, itt: int, *, cold: bool) -> None:
        session = self._session
        units: list[LogicalUnit] = list(session.node.units.values()) if session.node else []
        running: list[AtTarget] = []
        for logical in units:
            running += session.nodes.clear_tasks(logical)
            logical.reset(ResetCause.TARGET_COLD if cold else ResetCause.TARGET_WARM)
        self._answer_drained(itt, running, then=self._drop_everybody if cold else None)

    def _drop_everybody(self) -> None:
        """A cold reset ends every session of the target (RFC 7143 11.5.1); ours once its answer is out."""
        session = self._session
        for other in session.nodes.sessions_of(session.identity.target):
            if other is not session:
                other.end("target cold reset")
        self._close()

    def _answer_drained(self, itt: int, running: list[AtTarget], then: Callable[[], None] | None = None) -> None:
        def finish() -> None:
            self._done(itt, TaskAnswer.COMPLETE)
            if then is not None:
                then()
            self._session.told()

        _when_drained(running, finish)

    def _done(self, itt: int, answer: TaskAnswer) -> None:
        if not self._session.ended:
            self._session.put(Opcode.TASK_MANAGEMENT_RESPONSE, response=answer, itt=itt)


def _when_drained(running: list[AtTarget], finish: Callable[[], None]) -> None:
    """Call `finish` when the last of those tasks has truly ended; now, if there are none."""
    left = len(running)

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left:
            finish()

    for task in running:
        task.drained = one_less
    if not left:
        finish()
