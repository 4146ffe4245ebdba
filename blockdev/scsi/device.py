"""A logical unit: the state SCSI adds to a volume, and where a command starts.

One rule: `begin` never touches data and never raises; it answers, asks for data-out, or names an operation. The state
is unit attentions per nexus and reservations, and it lives on the volume's front thread like everything else.
Next: `commands.py` for what is known, `blocks.py` and `primary.py` for what it means, `perform.py` for the deed.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import Enum

from blockdev.latency import Latency
from blockdev.scsi import blocks, commands, extended_copy, inquiry, primary, provisioning
from blockdev.scsi.keeping import Keeper
from blockdev.scsi.limits import Limits
from blockdev.scsi.operation import (
    Allocating,
    Buffer,
    CompareAndWrite,
    Later,
    NeedData,
    Operation,
    OrWrite,
    Response,
    Write,
    WriteAndVerify,
    WriteSame,
)
from blockdev.scsi.ports import Port
from blockdev.scsi.reservations import Reservations
from blockdev.scsi.sense import RESERVATION_CONFLICT, Condition, check, fixed_sense, invalid_field
from blockdev.target import BlockTarget

Outcome = Operation | Response | NeedData
Handler = Callable[["LogicalUnit", Buffer, Hashable], Outcome]

_DEFAULT_LIMITS = Limits()


class ResetCause(Enum):
    """Why a logical unit is reset, with the unit attention each nexus is told (SAM-5, resets)."""

    LOGICAL_UNIT = Condition.DEVICE_RESET
    TARGET_WARM = Condition.BUS_RESET
    TARGET_COLD = Condition.POWER_ON


HANDLERS: dict[str, Handler] = {
    "test_unit_ready": primary.test_unit_ready,
    "request_sense": primary.request_sense,
    "log_sense": provisioning.log_sense,
    "inquiry": primary.inquiry_data,
    "mode_sense": primary.mode_sense,
    "mode_select": primary.mode_select,
    "prevent_allow": primary.prevent_allow,
    "reserve": primary.reserve,
    "release": primary.release,
    "persistent_reserve_in": primary.persistent_reserve_in,
    "persistent_reserve_out": primary.persistent_reserve_out,
    "report_luns": primary.report_luns,
    "report_target_port_groups": primary.report_target_port_groups,
    "set_target_port_groups": primary.set_target_port_groups,
    "report_supported_operation_codes": primary.report_supported_operation_codes,
    "read": blocks.read,
    "write": blocks.write,
    "write_atomic": blocks.write_atomic,
    "write_and_verify": blocks.write_and_verify,
    "orwrite": blocks.orwrite,
    "compare_and_write": blocks.compare_and_write,
    "verify": blocks.verify,
    "write_same": blocks.write_same,
    "unmap": blocks.unmap,
    "synchronize_cache": blocks.synchronize_cache,
    "prefetch": blocks.prefetch,
    "get_lba_status": blocks.get_lba_status,
    "read_capacity_10": blocks.read_capacity_10,
    "read_capacity_16": blocks.read_capacity_16,
    "read_defect_data_10": blocks.read_defect_data_10,
    "read_defect_data_12": blocks.read_defect_data_12,
    "start_stop": blocks.start_stop,
    "extended_copy": extended_copy.extended_copy,
    "receive_copy_results": extended_copy.receive_copy_results,
}
"""The handler column of the command table, resolved."""


class LogicalUnit:
    """One logical unit over a volume.

    A nexus is any hashable; `str(nexus)` is its lasting name, by which reservations know it after a reconnect, and
    should be "initiator-name,i,0xISID" as in an iSCSI TransportID (a further ",t,0x..." is ignored there).
    `port` and `port_group` are the relative target port and target port group identifiers that VPD 83h and
    REPORT TARGET PORT GROUPS tell, or, with several, `ports`: the name of a nexus tells which one it goes through.
    `keeps_reservations` False: somebody before this unit does persistent reservations, so what is kept is left alone.
    `luns` gives the target's LUNs for REPORT LUNS. `abort_tasks(nexus)` is called when PREEMPT AND ABORT ends the tasks of an
    open nexus. `find_unit` says which other units an initiator of this one can reach, for EXTENDED COPY; `later` lets something
    long give others their turn, and without it nothing waits. `quota`: how much the volume may hold.
    """

    def __init__(
        self,
        target: BlockTarget,
        *,
        lun: int,
        vendor: str = "BUCKETWK",
        product: str = "S3 BLOCK VOLUME",
        revision: str = "0.1",
        limits: Limits = _DEFAULT_LIMITS,
        port: int = 1,
        port_group: int = 1,
        ports: Sequence[Port] = (),
        keeps_reservations: bool = True,
        luns: Callable[[], Iterable[int]] | None = None,
        abort_tasks: Callable[[Hashable], None] | None = None,
        latency: Latency | None = None,
        find_unit: extended_copy.FindUnit = lambda designator, nexus: None,
        later: Later | None = None,
        quota: provisioning.Quota | None = None,
    ) -> None:
        self.target = target
        self.latency = latency if latency is not None else Latency()
        """Where doors count how long the unit's commands took."""
        self.lun = lun
        self.ports = tuple(ports) if ports else (Port(port, port_group),)
        self.limits = limits
        self.identity = inquiry.Unit(
            target.identity,
            vendor,
            product,
            revision,
            target.sector_bytes,
            limits,
            self.ports,
            self.ports[0],
            provisioning.threshold_exponent(target.sector_bytes) if quota is not None else 0,
        )
        self.luns: Callable[[], Iterable[int]] = luns if luns is not None else lambda: (lun,)
        self.reservations = Reservations(self._attention_by_name, self._abort_by_name, self.ports)
        self.keeper = Keeper(self.reservations, target if keeps_reservations else None)
        self.space = provisioning.Space(quota) if quota is not None else None
        self.copies = extended_copy.Copies(limits.copies_at_once)
        self.find_unit = find_unit
        self.later = later
        self._abort_tasks = abort_tasks
        self._transfer_sectors = limits.transfer_bytes // target.sector_bytes
        self._open: dict[str, Hashable] = {}
        self._attentions: dict[Hashable, list[Condition]] = {}
        """Pending unit attentions, oldest first; a nexus without any has no entry."""
        self._told_sectors = target.sector_count
        """The capacity every open nexus knows or has a unit attention about."""

    # ---- commands

    def admit(self, cdb: Buffer, nexus: Hashable) -> tuple[int, int, int, bool] | None:
        """The fast path: what `commands.decode_read_write` says of a READ or WRITE that may run at once (no
        unit attention pending for this nexus, the capacity as it was told, no reservation held by anybody, at least one
        sector, in range, within the limits, not a write to a read-only volume). None: call `begin`, which decides."""
        sectors = self.target.sector_count
        if nexus in self._attentions or sectors != self._told_sectors or not self.reservations.free:
            return None
        decoded = commands.decode_read_write(cdb)
        if decoded is None:
            return None
        kind, lba, count, _ = decoded
        if not 0 < count <= self._transfer_sectors or lba + count > sectors:
            return None
        if kind and self.target.read_only:
            return None
        if self.space is not None:
            self._look_at_space(self.space)
            if nexus in self._attentions or (kind and self.space.full):
                return None
        return decoded

    def begin(self, cdb: Buffer, nexus: Hashable) -> Outcome:
        """Start a command. In this order: unit attention, unknown code, reservation, bits that must be zero, and
        then what the command itself checks. Trailing bytes after the CDB (iSCSI always sends 16) are not looked at."""
        self._look_at_capacity()
        if self.space is not None:
            self._look_at_space(self.space)
        command = commands.find(cdb)
        if nexus in self._attentions and (command is None or command.reports_attention):
            return check(self.take_attention(nexus) or Condition.POWER_ON_OR_RESET)
        if command is None:
            if len(cdb) > 1 and cdb[0] in commands.BY_SERVICE_ACTION:
                return invalid_field(1, 4)
            return check(Condition.INVALID_OPERATION_CODE)
        if not self.reservations.free and self.reservations.conflicts(str(nexus), command.access):
            return RESERVATION_CONFLICT
        if len(cdb) < command.length:
            return invalid_field(len(cdb))
        misused = commands.misused_bit(command, cdb)
        if misused is not None:
            return invalid_field(*misused)
        outcome = HANDLERS[command.handler](self, cdb, nexus)
        if self.space is not None and self.space.full:
            return _within_quota(outcome)
        return outcome

    @staticmethod
    def data_in(data: bytes, allocation: int) -> Response:
        return primary.cut(data, allocation)

    # ---- events

    def nexus_opened(self, nexus: Hashable) -> None:
        """A session has begun. Its first command is told that there may have been a reset it did not see."""
        self._look_at_capacity()
        self._open[str(nexus)] = nexus
        self._attentions[nexus] = [Condition.POWER_ON_OR_RESET]

    def nexus_closed(self, nexus: Hashable) -> None:
        """I_T nexus loss: pending unit attentions and a RESERVE(6) reservation end; registrations stay."""
        self._open.pop(str(nexus), None)
        self._attentions.pop(nexus, None)
        self.reservations.nexus_lost(str(nexus))
        self.copies.nexus_lost(str(nexus))

    def capacity_changed(self) -> None:
        """The volume has another size: CAPACITY DATA HAS CHANGED (2Ah/09h, SBC-4 4.10) to every nexus. Need not be
        called: the next command of any nexus finds it out from `target.sector_count`."""
        self._told_sectors = self.target.sector_count
        self.attention_to_all(Condition.CAPACITY_CHANGED)

    def _look_at_capacity(self) -> None:
        if self.target.sector_count != self._told_sectors:
            self.capacity_changed()

    def _look_at_space(self, space: provisioning.Space) -> None:
        used = self.target.allocated_bytes
        if used != space.used and space.look(used):
            self.attention_to_all(Condition.THRESHOLD_REACHED)

    def reset(self, cause: ResetCause = ResetCause.LOGICAL_UNIT) -> None:
        """Logical unit or target reset; ending the tasks is the door's part. Older unit attentions give way (SAM-5),
        RESERVE(6) ends, persistent reservations stay."""
        self.reservations.reset()
        self.copies.reset()
        self._attentions.clear()
        self.attention_to_all(cause.value)

    def attention_to_all(self, condition: Condition, *, but: Hashable | None = None) -> None:
        for nexus in self._open.values():
            if but is None or nexus != but:
                self._establish(nexus, condition)

    def take_attention(self, nexus: Hashable) -> Condition | None:
        """The oldest pending unit attention of that nexus, which thereby counts as reported; None if there is none."""
        pending = self._attentions.get(nexus)
        if not pending:
            return None
        condition = pending.pop(0)
        if not pending:
            del self._attentions[nexus]
        return condition

    def _establish(self, nexus: Hashable, condition: Condition) -> None:
        # A condition that is already pending is not reported twice, so the queue is bounded.
        pending = self._attentions.setdefault(nexus, [])
        if condition not in pending:
            pending.append(condition)

    def _attention_by_name(self, name: str, condition: Condition) -> None:
        nexus = self._open.get(name)
        if nexus is not None:
            self._establish(nexus, condition)

    def _abort_by_name(self, name: str) -> None:
        nexus = self._open.get(name)
        if nexus is not None and self._abort_tasks is not None:
            self._abort_tasks(nexus)


def _within_quota(outcome: Outcome) -> Outcome:
    """The same, but that what allocates is asked for first whether it does."""
    match outcome:
        case NeedData(length, then, exact):
            return NeedData(length, lambda data: _within_quota_now(then(data)), exact)
        case _:
            return _within_quota_now(outcome)


def _within_quota_now(outcome: Operation | Response) -> Operation | Response:
    match outcome:
        case WriteSame(pattern=None):
            return outcome
        case Write() | WriteSame() | CompareAndWrite() | OrWrite() | WriteAndVerify():
            return Allocating(outcome)
        case _:
            return outcome


def absent(cdb: Buffer, luns: Iterable[int]) -> Response:
    """The answer to a command sent to a LUN where there is no logical unit (SAM-5, incorrect logical unit numbers):
    REPORT LUNS, INQUIRY and REQUEST SENSE are answered, every other command ends with LOGICAL UNIT NOT SUPPORTED.
    Never raises."""
    command = commands.find(cdb)
    if command is not None and len(cdb) >= command.length:
        misused = commands.misused_bit(command, cdb)
        match command.handler:
            case "report_luns" | "inquiry" | "request_sense" if misused is not None:
                return invalid_field(*misused)
            case "report_luns":
                return primary.lun_inventory(cdb, luns)
            case "inquiry":
                if cdb[1] & 0x01 or cdb[2]:
                    return invalid_field(2)
                return primary.cut(inquiry.absent(), int.from_bytes(cdb[3:5], "big"))
            case "request_sense":
                missing = Condition.LOGICAL_UNIT_NOT_SUPPORTED
                return primary.cut(fixed_sense(missing.key, missing.asc, missing.ascq), cdb[4])
    return check(Condition.LOGICAL_UNIT_NOT_SUPPORTED)
