"""docs/protocol/scsi.md, drawn from the tables the code runs on.

One rule: the page says nothing that is not read off a table here or in the modules it names; a test compares the page
with `render()`. To write it again: `python -m blockdev.scsi.document > docs/protocol/scsi.md`.
"""

import sys
from collections.abc import Iterable, Sequence

from blockdev.errors import (
    AttachRefused,
    BlockError,
    CorruptFormat,
    CorruptJournal,
    Fenced,
    JournalFull,
    LocalDiskFailed,
    MediumError,
    NotReady,
    StoreUnreachable,
)
from blockdev.scsi import inquiry, mode, provisioning
from blockdev.scsi.commands import COMMANDS, Access, Amount, Command
from blockdev.scsi.limits import Limits
from blockdev.scsi.operation import Response, Status
from blockdev.scsi.reservations import TYPES
from blockdev.scsi.sense import Condition, response_for

_OPENING = """\
# The SCSI device

What a volume answers to, through every front door. This page is drawn from the tables in `blockdev/scsi`; change those,
then run `python -m blockdev.scsi.document > docs/protocol/scsi.md`.

A volume is a direct access device (type 00h), thin provisioned, not removable, of SPC-4 and SBC-3, with 512- or
4096-byte sectors on 4096-byte physical blocks. Discarded and unwritten space reads as zeros. The write cache is on
(WCE=1): a write that was acknowledged survives the death of the service; SYNCHRONIZE CACHE or FUA makes it
survive what the volume's flush promise says.

Every address of a portal is a target port of its own; all ports are in one target port group, which is active/optimized. SET
TARGET PORT GROUPS accepts that state and no other: another host gets the volume by taking it over, not by a command.
Names (NAA, serial number) come from the volume's identity: the same on every host, others for a clone.
"""

_COMMANDS_NOTE = """\
Usage: a bit set is a bit looked at; any other bit that is set ends the command with INVALID FIELD IN CDB and a field
pointer. Service actions stand in the second byte.

A reservation held by another nexus:
"""

_ATTENTION_NOTE = """\
Unit attentions are queued for each I_T nexus, oldest first, and end the next command but INQUIRY, REPORT LUNS and
REQUEST SENSE (which reports one as data).
"""

_PROVISIONING_NOTE = """\
With `quota_bytes` a volume has a soft threshold at `quota_warning` of it: thin provisioning soft threshold reached, to every
nexus, once for each crossing, and again only after use fell by 2% of the quota below it. From the quota on a write that would
allocate ends with space allocation failed write protect; writes to what is allocated, discards, zeros, reads and flushes go
on. Thresholds and log page 0Ch count threshold sets of 1 MiB; without a quota there is neither.

Counted is what the map holds, in whole extents, as of the newest commit: before compression, with what a clone shares, without
what only snapshots need. So the count is late by a commit, and a burst overshoots by what the journal takes meanwhile
(`journal_bytes` at most).
"""

_RESERVATIONS_NOTE = """\
With APTPL=1 registrations and reservation are in the bucket before PERSISTENT RESERVE OUT is answered: they survive a restart,
and whoever serves the volume next has them. With APTPL=0 they end with the process; a registration that switches from 1 to 0
is answered when the bucket keeps none. At most 1024 registrations. While the store is away such a command waits. A clone
begins with none; a rollback leaves them as they are.

ALL_TG_PT=1 registers the initiator port through every port of the target, as if it had registered through each. SPEC_I_PT is
refused: each initiator registers itself. Behind LIO the kernel does all of this, and keeps what it keeps in its own files.
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _data(command: Command) -> str:
    if command.amount is Amount.NOTHING:
        return "-"
    return f"{command.direction.value}, {command.amount.value}"


def _reservation_legend() -> str:
    return "".join(f"- {access.name.lower()}: {access.value}\n" for access in Access)


def _commands() -> str:
    return _table(
        ("Command", "Code", "Usage", "Data", "Reservation", "Standard"),
        (
            (
                command.name,
                f"{command.opcode:02X}h"
                + ("" if command.service_action is None else f"/{command.service_action:02X}h"),
                f"`{command.usage.hex(' ')}`",
                _data(command),
                command.access.name.lower(),
                command.standard,
            )
            for command in COMMANDS
        ),
    )


def _pages() -> str:
    rows = [("VPD", f"{code:02X}h", name) for code, (name, _) in inquiry.PAGES.items()]
    rows += [
        ("mode", f"{code:02X}h", f"{name}: `{parameters.hex(' ')}`") for code, (name, parameters) in mode.PAGES.items()
    ]
    rows += [
        (
            "mode",
            f"{mode.INFORMATIONAL_EXCEPTIONS:02X}h/{mode.PROVISIONING:02X}h",
            "Logical Block Provisioning, with a quota",
        ),
        ("log", f"{provisioning.SUPPORTED_LOG_PAGES:02X}h", "Supported Log Pages"),
        ("log", f"{provisioning.PROVISIONING_LOG_PAGE:02X}h", "Logical Block Provisioning, with a quota"),
    ]
    return _table(("Kind", "Code", "Page"), rows)


def _size(length: int) -> str:
    return f"{length // 1024} KiB" if length < 1024 * 1024 else f"{length // (1024 * 1024)} MiB"


def _limits() -> str:
    limits = Limits()
    return _table(
        ("Block Limits field", "Value"),
        (
            ("MAXIMUM TRANSFER LENGTH, MAXIMUM PREFETCH LENGTH", _size(limits.transfer_bytes)),
            ("OPTIMAL TRANSFER LENGTH", _size(limits.optimal_transfer_bytes)),
            ("OPTIMAL TRANSFER LENGTH GRANULARITY", _size(limits.granularity_bytes)),
            ("MAXIMUM COMPARE AND WRITE LENGTH", f"{_size(limits.compare_and_write_bytes)}, at most 255 sectors"),
            ("MAXIMUM WRITE SAME LENGTH", f"{_size(limits.write_same_bytes)}; a count of zero is refused (WSNZ)"),
            ("MAXIMUM ATOMIC TRANSFER LENGTH", f"{_size(limits.atomic_write_bytes)}, at any place, without boundary"),
            (
                "MAXIMUM UNMAP LBA COUNT",
                "no limit" if limits.unmap_sectors == 0xFFFFFFFF else str(limits.unmap_sectors),
            ),
            ("MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT", str(limits.unmap_descriptors)),
            ("OPTIMAL UNMAP GRANULARITY", f"{_size(limits.unmap_granularity_bytes)}, aligned at sector 0"),
            (
                "EXTENDED COPY (no field of this page)",
                f"{limits.copy_targets} CSCD descriptors (E4h), {limits.copy_segments} segments (02h) of at most "
                f"{_size(limits.copy_segment_bytes)}, {limits.copies_at_once} commands at once",
            ),
        ),
    )


def _sense() -> str:
    return _table(
        ("Key", "ASC/ASCQ", "Condition"),
        (
            (condition.key.name.replace("_", " "), f"{condition.asc:02X}h/{condition.ascq:02X}h", condition.text)
            for condition in Condition
        ),
    )


def _said(response: Response) -> str:
    if response.status is not Status.CHECK_CONDITION:
        return response.status.name.replace("_", " ")
    key, asc, ascq = response.sense[2], response.sense[12], response.sense[13]
    found = next(each for each in Condition if (each.key, each.asc, each.ascq) == (key, asc, ascq))
    information = "; INFORMATION is the sector" if response.sense[0] & 0x80 else ""
    return f"{found.key.name.replace('_', ' ')}, {found.text}{information}"


def _failures() -> str:
    failures: tuple[BlockError, ...] = (
        JournalFull(""),
        StoreUnreachable(""),
        NotReady(""),
        Fenced(""),
        MediumError("", lba=1),
        LocalDiskFailed(""),
        CorruptJournal(""),
        CorruptFormat(""),
        AttachRefused(""),
    )
    rows = [(f"`{type(each).__name__}`", _said(response_for(each))) for each in failures]
    return _table(("Failure of the volume", "Answer"), rows)


def render() -> str:
    """The page, as Markdown."""
    types = ", ".join(f"{name} ({code:X}h)" for code, name in TYPES.items())
    return "\n".join(
        (
            _OPENING,
            "## Commands\n",
            _COMMANDS_NOTE,
            _reservation_legend(),
            _commands(),
            "## Pages\n",
            _pages(),
            "## Limits\n",
            _limits(),
            "## Failures\n",
            _failures(),
            "## Sense\n",
            _ATTENTION_NOTE,
            _sense(),
            "## Thin provisioning\n",
            _PROVISIONING_NOTE,
            "## Persistent reservations\n",
            f"Types: {types}.\n",
            _RESERVATIONS_NOTE,
        )
    )


if __name__ == "__main__":
    sys.stdout.write(render())
