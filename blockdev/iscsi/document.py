"""docs/protocol/iscsi.md, drawn from the tables the code runs on.

One rule: every name and number on the page is read off a table; the sentences between say what tables cannot. A test
compares. To write it again: `python -m blockdev.iscsi.document > docs/protocol/iscsi.md`.
"""

import sys
from collections.abc import Iterable, Sequence

from blockdev.iscsi import connection, login, nexus, nodes, portal, session, text
from blockdev.iscsi.chap import ALGORITHMS, BINARY_BYTES_MAX
from blockdev.iscsi.errors import LoginStatus
from blockdev.iscsi.login import KEYS, Key, Kind, Where
from blockdev.iscsi.pdu import LAYOUTS, Opcode, Reason, TaskFunction

_OPENING = """\
# The iSCSI target

What the portal speaks: RFC 7143, one connection per session, error recovery level 0. This page is drawn from the tables in
`blockdev/iscsi`; change those, then run `python -m blockdev.iscsi.document > docs/protocol/iscsi.md`. What the
disks behind it answer is in [scsi.md](scsi.md); how an independent tool judges both, in
[iscsi-test-cu.md](iscsi-test-cu.md).

## Order and durability

All that one receive brought is taken in, then what it wrote is committed with one call per volume, then it is answered
with one send. So an acknowledged write has been appended to the journal. Reads that need the object store and flushes
are answered later, out of order. When a commit fails, every write of that batch is answered with the failure.

When the service stops it sends every initiator an asynchronous message that asks for a logout, waits, and drops the rest.
QEMU and libiscsi log out at once and come back when the service does. A session whose service was killed is simply gone:
initiators log in again and repeat what was not answered.

## Portals

Each address in `listen` is a portal group of its own, numbered from 1, and so, with a target's name, a target port: VPD
page 83h and REPORT TARGET PORT GROUPS tell which one a command came through, all of one ALUA group. An initiator that comes
to two of them has two sessions even with one ISID, which is what multipath wants.

SendTargets tells every portal of a target, whichever was asked: multipath and Proxmox VE take all paths from one answer. A
wildcard address is told as the one the initiator came to; a loopback address only to those who came by loopback. With
`advertise` those addresses are told instead. Tell none that cannot be reached: Proxmox VE tries to log in to it every ten
seconds.

Proxmox VE's `iscsi` storage knows a disk by its `scsi-3...` link, which udev makes of the NAA name. Its `iscsidirect`
storage takes the LUNs of all targets at a portal together: give volumes on one portal one `iqn` and different `lun`s. It
shows sizes as `iscsi-ls` prints them, up to one unit (of 1 GiB for 100 GiB) less than they are.

The portal sends no NOP-In of its own: TCP keepalive and a limit on unacknowledged data find hosts that are gone, and an
initiator that only stands still (a suspended machine) keeps its session. NOP-Out is answered.
"""

_NEGOTIATION = """\
## Negotiation

"Least" and "most" pick between the offer and ours; "both" and "either" combine yes and no; of a list the first of the
offer that we know is taken; a declared value is the speaker's own. An unknown key is answered NotUnderstood, an offer
that makes no sense Reject (the default then stays). In discovery sessions keys about data are Irrelevant.
"""

_KINDS = {
    Kind.LIST: "list",
    Kind.MINIMUM: "least",
    Kind.MAXIMUM: "most",
    Kind.AND: "both",
    Kind.OR: "either",
    Kind.DECLARE: "declared",
}

_CHAP = """\
## Authentication

CHAP, one way or mutual, per target (`chap_*`) and, separately, for discovery (`discovery_chap_*`). An initiator that
has not authenticated learns no portal group and gets no transit out of the security stage; one that skips the stage is
refused. Our own challenge sent back to us is refused, and the two secrets of mutual CHAP must differ.
"""

_TASKS = """\
## Task management, logout, reinstatement

Answered only when it is true: staged writes are committed first, and a task that is changing the medium is waited for.
A target cold reset also ends every session. Not offered: CLEAR ACA, TASK REASSIGN. A logout is answered in the same
way.

A login with the name, ISID and portal group of an open session takes its place; one that also gives its TSIH and CID
takes the place of its connection and keeps the TSIH. Both end the tasks, and the initiator gets a unit attention.
"""

_NUMBERS = """\
## Commands and numbers

Commands are taken in CmdSN order. Those outside the window, and duplicates, are ignored; one that comes early is kept
until its turn. Data-Out that is out of sequence ends its command with ABORTED COMMAND 47h/05h and leaves the session
alone. A data digest that does not match is answered with a Reject and the end of the connection, a header digest with
its end alone: what was not answered is repeated in the next session. SNACK is rejected. Anything else that breaks the
protocol ends the connection, with a Reject where there is a PDU to reject, and a line in the log that names the field.
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _key(name: str, key: Key) -> tuple[str, ...]:
    limits = f"{key.low} to {key.high}" if key.high else ""
    where = "also later" if key.where is Where.ANY else ""
    return name, _KINDS[key.kind], key.default, key.ours, limits, where


def _bytes(count: int) -> str:
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} bytes"


def _limits() -> list[tuple[str, str]]:
    return [
        ("sessions", str(nodes.SESSIONS_MAX)),
        ("of these, discovery sessions", str(nodes.DISCOVERIES_MAX)),
        ("connections, those still logging in included", str(portal.CONNECTIONS_MAX)),
        ("time to log in", f"{portal.LOGIN_SECONDS:.0f} s"),
        ("discovery session", f"{portal.DISCOVERY_SECONDS:.0f} s"),
        ("without a sign of life from the peer", f"{portal.DEAD_SECONDS} s"),
        ("sending the rest after the end of a session", f"{portal.LINGER_SECONDS:.0f} s"),
        ("iSCSI name", _bytes(login.NAME_BYTES_MAX)),
        ("key=value pairs in one text", str(text.PAIRS_MAX)),
        ("one value", _bytes(text.VALUE_BYTES_MAX)),
        ("binary CHAP value", _bytes(BINARY_BYTES_MAX)),
        ("commands that came before their turn, per session", _bytes(session.HELD_BYTES_MAX)),
        ("commands under way per session", str(nexus.WINDOW)),
        ("receive buffer before login", _bytes(connection.LOGIN_RECEIVE_BYTES)),
        ("receive buffer after login", _bytes(connection.RECEIVE_BYTES)),
        ("data segment before login", _bytes(connection.LOGIN_SEGMENT_MAX)),
        ("key=value text of one exchange", _bytes(text.TEXT_BYTES_MAX)),
        ("data asked for by R2T and not yet written, per connection", _bytes(nexus.SOLICITED_BYTES_MAX)),
        ("data of reads that wait for the object store, per connection", _bytes(nexus.READING_BYTES_MAX)),
        ("answers waiting before reading pauses", _bytes(connection.OUTBOX_BYTES_HIGH)),
        ("LUNs per target", str(nodes.LUNS_MAX)),
    ]


def render() -> str:
    refused = {TaskFunction.CLEAR_ACA, TaskFunction.TASK_REASSIGN}
    parts = [
        _OPENING,
        _NEGOTIATION,
        _table(
            ("key", "kind", "default", "ours", "range", "when"),
            [_key(name, key) for name, key in KEYS.items()],
        ),
        _CHAP,
        _table(
            ("CHAP_A", "hash", "challenge"),
            [(str(number), name, f"{size} bytes") for number, (name, size) in ALGORITHMS.items()],
        ),
        f"Binary values are hexadecimal or base64, {BINARY_BYTES_MAX} bytes at most.\n",
        "## Login status\n",
        _table(("status", "meaning"), [(f"{status:04x}h", _words(status.name)) for status in LoginStatus]),
        _NUMBERS,
        _table(("reason", "rejected for"), [(f"{reason:02x}h", _words(reason.name)) for reason in Reason]),
        _TASKS,
        _table(
            ("function", "name"),
            [(str(int(function)), _words(function.name)) for function in TaskFunction if function not in refused],
        ),
        "## Limits\n",
        _table(("what", "at most"), _limits()),
        "## Headers\n",
        "Fields from byte 2 on, as `blockdev.iscsi.pdu` names them; - is reserved.\n",
        _table(
            ("opcode", "PDU", "fields"),
            [
                (f"{opcode:02x}h", _words(opcode.name), ", ".join(name or "-" for name in names))
                for opcode, names in ((opcode, LAYOUTS[opcode]) for opcode in Opcode)
            ],
        ),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
