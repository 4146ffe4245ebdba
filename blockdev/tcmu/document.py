"""docs/protocol/tcmu.md, drawn from the tables the code runs on.

One rule: every name and number on the page is read off a table; the sentences between say what tables cannot. A test
compares. To write it again: `make docs`.
"""

from collections.abc import Iterable, Sequence

from blockdev.scsi.commands import COMMANDS
from blockdev.tcmu import handler, netlink, ring
from blockdev.tcmu.device import BATCH_COMMANDS, BATCHES_PER_TURN, KERNELS_OWN
from blockdev.tcmu.names import device_config

_OPENING = f"""\
# Behind the kernel's target (LIO)

What passes between the kernel (`target_core_user`) and a volume served with `--door lio`. This page is drawn from the tables in
`blockdev/tcmu`. What the disk answers is in [scsi.md](scsi.md); the kernel's side is described in Linux,
`Documentation/target/tcmu-design.rst`.

A volume's device has the configuration string `{device_config("NAME")}`; its UIO file is called `tcm-user/HBA/DEVICE/` and
that. A handler serves one device of each of its volumes.

## Netlink
"""

_RING_NOTE = """\
## The shared memory

Numbers are the machine's own. Offsets in the mailbox count from its beginning, offsets in an entry from the entry's, offsets of
data and CDBs from the beginning of the map.
"""

_LATER = f"""\
## Order, batches, durability

A wake-up takes in up to {BATCH_COMMANDS} commands, then one commit appends what they wrote to the journal, then they are
answered, and the kernel is told once. After {BATCHES_PER_TURN} such batches other devices and sockets have their turn. Reads
that need the bucket and flushes are answered later, out of order: the next answer goes into the oldest slot that is owed to
the kernel, under its own command's number.

A handler that finds entries in the ring when it starts (the last one was killed, or commands came while there was none) has
the kernel reset the ring: those commands end with BUSY, and initiators send them again. What had been written is in the
journal; writing it again changes nothing.

## What the kernel does without us

Login, CHAP, ACLs, LUN mapping, REPORT LUNS, task management and the unit attentions that come of those, and reservations: it
passes commands on without saying who sent them, so all initiators are one nexus here, and no reservation of ours could tell
them apart. These are therefore refused if the kernel is told to pass them on:
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def render() -> str:
    """The page, as Markdown."""
    commands = _table(("command", "number"), ((each.name, str(each.value)) for each in netlink.Command))
    attributes = _table(("attribute", "number"), ((each.name, str(each.value)) for each in netlink.Attribute))
    layout = _table(
        ("what", "where", "fields"),
        (
            ("mailbox", "0", "version (u16), flags (u16), cmdr_off (u32), cmdr_size (u32)"),
            ("mailbox", str(ring.HEAD_AT), "cmd_head (u32): the kernel's"),
            ("mailbox", str(ring.TAIL_AT), "cmd_tail (u32): the handler's"),
            ("entry", "0", "len_op (u32), cmd_id (u16), kernel flags (u8), user flags (u8)"),
            (
                "request",
                str(ring.HEADER.size),
                "iov_cnt, iov_bidi_cnt, iov_dif_cnt (u32), four bytes of nothing, cdb_off (u64)",
            ),
            ("request", str(ring.IOV_AT), f"vectors of {ring.IOVEC.size} bytes: offset, length (u64)"),
            ("response", str(ring.RESPONSE_AT), "status (u8), three bytes of nothing, read_len (u32)"),
            ("response", str(ring.RESPONSE_AT + 8), f"sense, {ring.SENSE_BYTES} bytes"),
            ("task management", str(ring.HEADER.size), "function (u8), three bytes of nothing, cmd_cnt (u32)"),
            ("task management", str(ring.TMR_IDS_AT), "cmd_ids (u16)"),
        ),
    )
    names = _table(
        ("name", "kind", "value"),
        [(each.name, "len_op, low three bits", str(each.value)) for each in ring.Op]
        + [(each.name, "user flags", str(each.value)) for each in ring.Flag]
        + [(each.name, "mailbox flags", str(each.value)) for each in ring.MailboxFlag],
    )
    waits = _table(
        ("wait", "seconds"),
        (
            ("for a UIO file that somebody is about to let go of", f"{handler.BUSY_PATIENCE_S:g}"),
            ("before a device of a volume that nobody serves is refused", f"{handler.STRANGER_PATIENCE_S:g}"),
            ("for the kernel's answer to a request, at the start", f"{handler.REPLY_PATIENCE_S:g}"),
        ),
    )
    refused = sorted({command.name for command in COMMANDS if command.opcode in KERNELS_OWN})
    return "\n".join(
        (
            _OPENING,
            f"Generic netlink, family `{netlink.FAMILY}`, version {netlink.VERSION}, group `{netlink.GROUP}`. The handler"
            "\nsays with SET_FEATURES that it answers; from then on whoever makes, removes or changes a device sleeps until"
            "\nthe answer is there. Every event about a device of ours is answered, failures too; at the start also those that"
            "\na dead handler owes.\n",
            commands,
            attributes,
            waits,
            _RING_NOTE,
            layout,
            names,
            _LATER,
            ", ".join(refused) + ".\n",
        )
    )
