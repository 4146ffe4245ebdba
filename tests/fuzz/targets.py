"""One function per decoder: bytes from somebody who means harm, into code that must parse them or refuse them by name.

One rule: a target returns for whatever bytes; what it raises is a fault of ours. Its seeds are inputs that get far; a test
says that all targets' seeds together run every function that takes a peer's bytes.
"""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from blockdev.control import Answered, ControlServer
from blockdev.errors import Refused
from blockdev.iscsi import chap, pdu, text
from blockdev.iscsi.chap import ChapTarget, Credentials
from blockdev.iscsi.connection import LOGIN_RECEIVE_BYTES, RECEIVE_BYTES, Connection, State
from blockdev.iscsi.errors import PeerError
from blockdev.iscsi.login import KEYS, Login, Parameters, Request, negotiate, negotiate_later
from blockdev.iscsi.nexus import WINDOW
from blockdev.iscsi.pdu import BHS_BYTES, FINAL, Opcode
from blockdev.scsi import commands
from blockdev.scsi.device import LogicalUnit, absent
from blockdev.scsi.extended_copy import Reach
from blockdev.scsi.inquiry import naa
from blockdev.scsi.operation import NeedData, Response
from blockdev.scsi.perform import perform
from blockdev.tcmu import netlink
from blockdev.tcmu.netlink import NetlinkError
from blockdev.tcmu.ring import HEAD_AT, TAIL_AT, Ring, RingBroken
from cowsync.apply.journal_format import (
    HEADER_BYTES,
    BadRecord,
    Begun,
    Upload,
    decode_header,
    encode_header,
)
from cowsync.apply.journal_format import decode as decode_entry
from cowsync.apply.journal_format import encode as encode_entry
from cowsync.changes import LineResult, Op, Outcome
from cowsync.errors import StateDamaged
from cowsync.plan import format as plan_format
from tests.blockdev.iscsi.initiator import HOST, IQN, LOGIN_KEYS, World
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.test_extended_copy import cdb as copy_cdb
from tests.blockdev.scsi.test_extended_copy import within
from tests.blockdev.tcmu.kernel import CMDR_OFFSET, KernelRing
from tests.formats.test_golden_plan import GOLDEN, HEAD, LINES
from tests.fuzz import archive_decoders, base_decoders, feed_decoders, ledger_decoders
from tests.protocol.conversations import CONVERSATIONS, RECORDED, fresh_world

MEMORY_MAX = 48 << 20
"""What one connection may keep for its initiator."""
_SECRET = b"a secret of 16 b"
_PLAN = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    most: int = 4096
    """Bytes of an input that make sense."""


# --- iSCSI ------------------------------------------------------------------------------------------------------------


def header(data: bytes) -> None:
    """Basic header segments, one after the other."""
    for at in range(0, len(data) - BHS_BYTES + 1, BHS_BYTES):
        with contextlib.suppress(ValueError):
            fields = pdu.unpack(data, at)
            assert 0 <= fields["length"] < 1 << 24
            number = pdu.lun_number(fields.get("lun", 0))
            assert number is None or 0 <= number < 16384


def pairs(data: bytes) -> None:
    """key=value text in parts, and the numbers in it."""
    gathered = text.Gathered()
    try:
        for at in range(0, len(data), 97):
            gathered.add(data[at : at + 97])
        found = gathered.take()
    except PeerError:
        return
    assert text.decode(text.encode(list(found.items()))) == found
    for key, value in found.items():
        with contextlib.suppress(PeerError):
            assert text.number(key, value) >= 0
        if key in KEYS:
            assert len(negotiate(key, value)) <= len(value) + 20
    negotiate_later(Parameters(), found)


def login(data: bytes) -> None:
    """Login requests: a byte of flags, a byte of length (in eights), text; with CHAP or without, by the first byte."""
    world = _credentials_world() if data[:1] > b"\x7f" else World()
    state = Login(world.nodes, world.random_bytes)
    at = 1
    for _ in range(12):
        if at + 2 > len(data):
            return
        flags, length = data[at], data[at + 1] * 8
        request = Request(
            transit=bool(flags & 0x80),
            more=bool(flags & 0x40),
            current_stage=flags >> 2 & 3,
            next_stage=flags & 3,
            version_min=flags >> 4 & 1,
            isid=1,
            tsih=flags >> 5 & 1,
            cid=0,
            text=data[at + 2 : at + 2 + length],
        )
        at += 2 + length
        try:
            reply = state.step(request)
        except PeerError:
            return
        if reply is not None:
            assert len(text.encode(reply.pairs)) <= 8192
        if state.complete:
            assert state.identity.initiator
            assert state.parameters.first_burst <= state.parameters.max_burst
            return


def chap_values(data: bytes) -> None:
    """What an initiator answers to our question, as text; nobody gets in who does not know the secret."""
    credentials = Credentials("alice", _SECRET, "disk", b"another secret!!")
    target = ChapTarget(credentials, lambda length: bytes(range(length)))
    with contextlib.suppress(PeerError):
        chap.decode_binary("CHAP_C", data[:200].decode("latin-1"))
    try:
        offer, _, answer = data.partition(b"\0\0")
        target.step(text.decode(offer))
        keys = text.decode(answer)
        proof = chap.response(target._algorithm, target._identifier, _SECRET, target._challenge)
        knows = keys.get("CHAP_N") == "alice" and chap.decode_binary("CHAP_R", keys.get("CHAP_R", "")) == proof
        target.step(keys)
        assert not target.done or knows
    except PeerError:
        return


def before_login(data: bytes) -> None:
    """Anything on the wire, from the first byte on."""
    _converse([data])


def conversation(data: bytes) -> None:
    """A recorded conversation with some of its bytes overwritten: number, then (where, what) in three bytes each."""
    if not data:
        return
    name = sorted(CONVERSATIONS)[data[0] % len(CONVERSATIONS)]
    wire = [bytearray(piece) for piece in RECORDED[name]]
    for at in range(1, len(data) - 3, 4):
        piece = wire[data[at] % len(wire)]
        if piece:
            piece[int.from_bytes(data[at + 1 : at + 3], "big") % min(len(piece), 400)] = data[at + 3]
    _converse([bytes(piece) for piece in wire])


def after_login(data: bytes) -> None:
    """PDUs whose framing and CmdSN are made right, so that they get far: the first byte says how, then 48 bytes of header and
    up to 255 of data each."""
    if not data:
        return
    how, at = data[0], 1
    world = fresh_world()
    world.target.deferred_reads = bool(how & 1)
    digests = bool(how & 2)
    host = world.initiator()
    host.log_in(**({"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"} if digests else {}))
    connection = host.connection
    host.command(bytes(6))
    number, due = count(host.cmd_sn), 0
    while at + BHS_BYTES < len(data) and connection.state is State.FULL:
        head, length = bytearray(data[at : at + BHS_BYTES]), data[at + BHS_BYTES]
        body = data[at + BHS_BYTES + 1 : at + BHS_BYTES + 1 + length]
        at += BHS_BYTES + 1 + length
        head[4:8] = len(body).to_bytes(4, "big")
        opcode = head[0] & 0x3F
        if opcode not in (Opcode.DATA_OUT, Opcode.SNACK) and not how & 4:
            due = due if head[0] & 0x40 and due else next(number)
            head[24:28] = due.to_bytes(4, "big")
        connection.receive(host.frame(bytes(head), body))
        if how & 8:
            world.target.run_all()
        _check(connection, world.target)
    connection.lost()
    world.target.run_all()
    assert world.nodes.sessions == {}
    assert world.target.staged == 0


def _credentials_world() -> World:
    world = World()
    del world.nodes.nodes[IQN]
    world.nodes.serve(IQN, {0: world.target}, credentials=Credentials("alice", _SECRET))
    return world


def _converse(pieces: Sequence[bytes]) -> None:
    world = fresh_world()
    host = world.initiator()
    for piece in pieces:
        host.connection.receive(piece)
        world.target.run_all()
        _check(host.connection, world.target)
    host.connection.lost()
    assert world.nodes.sessions == {}


def _check(connection: Connection, target: RamTarget) -> None:
    """Memory is bounded, nothing is left staged, and the connection goes on or ends."""
    size = len(connection._rx)
    assert size in (LOGIN_RECEIVE_BYTES, RECEIVE_BYTES)
    session = connection.session
    assert session is not None or size == LOGIN_RECEIVE_BYTES
    if session is not None:
        size += session._held_bytes
        assert len(session.held) <= 2 * WINDOW
        assert len(session.tasks) <= 3 * WINDOW
        for task in session.tasks.values():
            size += sum(len(burst.buffer or b"") for burst in getattr(task, "bursts", []))
    assert size <= MEMORY_MAX
    assert target.staged == 0, "what was staged is committed when a receive ends"
    if connection.state is not State.CLOSING:
        assert sum(map(len, connection.buffers())) > 0
    connection.take()


# --- SCSI -------------------------------------------------------------------------------------------------------------


def command(data: bytes) -> None:
    """Commands: a CDB of 16 bytes, two bytes of length, parameter data; by two initiators in turn."""
    target = RamTarget(4096)
    units: list[LogicalUnit] = []
    unit = LogicalUnit(
        target,
        lun=0,
        luns=lambda: (0,),
        abort_tasks=lambda nexus: None,
        find_unit=lambda name, nexus: Reach(units[0], str(nexus)) if name == naa(target.identity) else None,
    )
    units.append(unit)
    nexuses = [f"iqn.x:{number},i,0x{number:012x},t,0x0001" for number in range(2)]
    for nexus in nexuses:
        unit.nexus_opened(nexus)
        unit.take_attention(nexus)
    at = turn = 0
    while at + 18 <= len(data):
        cdb, length = data[at : at + 16], int.from_bytes(data[at + 16 : at + 18], "big") & 0xFFF
        parameters = data[at + 18 : at + 18 + length]
        at += 18 + length
        turn += 1
        nexus = nexuses[turn & 1]
        target.deferred_reads = bool(turn & 1)
        commands.expected_transfer(cdb, 512)
        assert isinstance(absent(cdb, (0,)), Response)
        admitted = unit.admit(cdb, nexus)
        if admitted is not None:
            assert 0 <= admitted[1] < target.sector_count
            assert admitted[1] + admitted[2] <= target.sector_count
        answer = unit.begin(cdb, nexus)
        if isinstance(answer, NeedData):
            answer = answer.then(parameters[: answer.length])
        if not isinstance(answer, Response):
            told: list[Response] = []
            perform(answer, target, told.append)
            target.run_all()
            assert len(told) == 1
            target.commit()


# --- this host --------------------------------------------------------------------------------------------------------


def control(data: bytes) -> None:
    """Lines of the control socket."""

    def operate(name: str, arguments: dict[str, object], answered: Answered) -> None:
        if name == "refuse":
            raise Refused("no")
        answered({"name": name, "arguments": sorted(arguments)})

    async def body() -> None:
        server = ControlServer(Path("unused"), operate)
        for line in data.split(b"\n"):
            document = await server._answer(line)
            assert isinstance(document["ok"], bool)
            json.dumps(document)

    asyncio.run(body())


def netlink_datagram(data: bytes) -> None:
    """What comes from the kernel's TCM-USER family."""
    try:
        for message in netlink.messages(data):
            for read in (netlink.decode_family, netlink.decode_event, netlink.error_number):
                with contextlib.suppress(NetlinkError):
                    read(message)
    except NetlinkError:
        return


def ring(data: bytes) -> None:
    """A ring with some of its bytes overwritten, (where, what) in three bytes each; `cmd_head` and the mailbox too."""
    kernel = KernelRing(data_pages=4)
    for number in range(3):
        kernel.queue(bytes((0x2A, 0, 0, 0, 0, number, 0, 0, 8, 0)), data=bytes(4096))
    memory = kernel.memory
    used = 1024
    for at in range(0, len(data) - 2, 3):
        where = int.from_bytes(data[at : at + 2], "big") % (128 + used)
        place = where if where < 128 else CMDR_OFFSET + where - 128
        if place < len(memory):
            memory[place] = data[at + 2]
    try:
        found = Ring(memoryview(memory))
    except RingBroken:
        return
    try:
        for request in found.take(8):
            assert len(request.cdb) == 16
            assert all(start + length <= len(memory) for start, length in request.iovecs)
            found.answer(request.id, 0)
        found.publish()
        assert 0 <= found.pending < len(memory)
    except RingBroken:
        return
    finally:
        found.close()


def plan_file(data: bytes) -> None:
    """A plan's head (first byte 0), index (1) or lines (any other)."""
    kind, raw = data[:1], data[1:]
    with contextlib.suppress(StateDamaged):
        if kind == b"\0":
            assert plan_format.encode_head(plan_format.decode_head(raw)) == raw
        elif kind == b"\1":
            index = plan_format.decode_index(raw)
            assert plan_format.decode_index(plan_format.encode_index(index)) == index
            assert sum(frame.lines for frame in index.frames) == index.lines
        else:
            first = plan_format.decode_line(raw.partition(b"\n")[0], 7)
            frame = plan_format.Frame(0, len(raw), len(raw), 7, raw.count(b"\n"), "", first.key)
            before = ""
            for line in plan_format.decode_lines(raw, frame):
                assert line.key > before
                assert plan_format.decode_line(plan_format.encode_line(line)[:-1], 0) == line
                before = line.key


# --- seeds ------------------------------------------------------------------------------------------------------------


def _login_seed(steps: Sequence[tuple[int, dict[str, str]]], first: int = 0) -> bytes:
    out = bytearray((first,))
    for flags, keys in steps:
        body = text.encode(list(keys.items()))
        body += bytes(-len(body) % 8)
        out += bytes((flags, len(body) // 8)) + body
    return bytes(out)


_NAMES = {"InitiatorName": HOST, "TargetName": IQN, "SessionType": "Normal"}
_CHAP_ANSWER = {"CHAP_N": "alice", "CHAP_R": "0x" + "ab" * 16, "CHAP_I": "3", "CHAP_C": "0b" + "q80" * 8}


def _right_answer() -> bytes:
    challenge = bytes(range(16))
    proof = chap.encode_binary(chap.response(5, 0, _SECRET, challenge))
    return b"CHAP_A=5\0\0" + text.encode(list((_CHAP_ANSWER | {"CHAP_R": proof}).items()))


def _wire(opcode: int, flags: int = FINAL, body: bytes = b"", **at: bytes) -> bytes:
    """A header for `after_login`: fields by their first byte, as `b20=...`."""
    head = bytearray(BHS_BYTES)
    head[0], head[1] = opcode, flags
    for name, value in at.items():
        start = int(name[1:])
        head[start : start + len(value)] = value
    return bytes(head) + bytes((len(body),)) + body


def _scsi(cdb: bytes, flags: int = FINAL, body: bytes = b"", expected: int = 0, itt: int = 1) -> bytes:
    numbers = {"b16": itt.to_bytes(4, "big"), "b20": expected.to_bytes(4, "big"), "b32": cdb}
    return _wire(0x01, flags, body, **numbers)


def _after_login_seeds() -> list[bytes]:
    ready = _scsi(bytes(6))
    write = bytes((0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0))
    unmap = bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0))
    copying = within(0, 100, 8)
    elsewhere = copying[:34] + bytes((copying[34] ^ 1,)) + copying[35:]
    said = [
        ready,
        _scsi(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0)), 0xC0, expected=512, itt=2),
        _scsi(write, 0xA0, bytes(255), expected=512, itt=3),
        _scsi(unmap, 0xA0, bytes(24), expected=24, itt=4),
        _scsi(write[:8] + bytes((0,)), 0x20, bytes(200), expected=512, itt=5),
        *(_scsi(copy_cdb(len(copy)), 0xA0, copy, expected=len(copy), itt=6) for copy in (copying, elsewhere)),
        _scsi(bytes(6), FINAL | 0x40, itt=7),
        _wire(0x05, FINAL, bytes(100), b16=(5).to_bytes(4, "big"), b20=b"\xff" * 4, b40=(200).to_bytes(4, "big")),
        _wire(0x05, FINAL, bytes(100), b16=(3).to_bytes(4, "big"), b20=(1).to_bytes(4, "big")),
        _wire(0x40, FINAL, b"ping", b16=(9).to_bytes(4, "big"), b20=b"\xff" * 4),
        _wire(0x44, FINAL, b"SendTargets=\0", b16=(9).to_bytes(4, "big"), b20=b"\xff" * 4),
        _wire(0x44, 0x40, b"MaxRecvDataSegmentLength=512\0", b16=(9).to_bytes(4, "big"), b20=b"\xff" * 4),
        *(
            _wire(0x42, FINAL | function, b16=(20 + function).to_bytes(4, "big"), b20=(3).to_bytes(4, "big"))
            for function in range(1, 9)
        ),
        _wire(0x10, FINAL, b16=(9).to_bytes(4, "big")),
        _wire(0x46, FINAL, b16=(9).to_bytes(4, "big")),
    ]
    return [bytes((how,)) + b"".join(said) for how in (0, 1, 2, 3, 8, 10, 4)] + [b"\0" + one for one in said]


def _parameter_seeds() -> list[bytes]:
    """One of every command of the table, and of those with parameter data some that is right."""

    def asked(cdb: bytes, parameters: bytes = b"") -> bytes:
        return cdb.ljust(16, b"\0") + len(parameters).to_bytes(2, "big") + parameters

    seeds = []
    for row in commands.COMMANDS:
        cdb = bytearray(16)
        cdb[0] = row.opcode
        if row.service_action is not None:
            cdb[1] = row.service_action
        if row.opcode in (0x7F, 0x9E, 0x9F, 0xA3, 0xA4):
            cdb[10:14] = (512).to_bytes(4, "big")
        elif row.length == 6:
            cdb[4] = 24
        elif row.length == 10:
            cdb[7:9] = (24).to_bytes(2, "big")
        elif row.length == 12:
            cdb[6:10] = (1).to_bytes(4, "big")
        else:
            cdb[10:14] = (1).to_bytes(4, "big")
        seeds.append(asked(bytes(cdb), bytes(1024)))
    unmap = bytes((0, 22, 0, 16, 0, 0, 0, 0)) + (8).to_bytes(8, "big") + (8).to_bytes(4, "big") + bytes(4)
    seeds.append(asked(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 24)), unmap))
    caching = bytes((0, 0, 0, 0, 0x08, 0x12, 0x04)) + bytes(17)
    seeds.append(asked(bytes((0x15, 0x10, 0, 0, 24)), caching))
    seeds.append(asked(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 28)), bytes(4) + caching))
    for action in range(8):
        registration = bytes(8) + (1).to_bytes(8, "big") + bytes(8)
        register = asked(bytes((0x5F, 0)) + bytes(5) + (24).to_bytes(4, "big"), registration)
        then = asked(bytes((0x5F, action, 1)) + bytes(4) + (24).to_bytes(4, "big"), registration[8:16] + bytes(16))
        seeds.append(register * 2 + then)
    for action in range(5):
        copying = within(0, 100, 8)
        copy = asked(bytes((0x83,)) + bytes(9) + len(copying).to_bytes(4, "big"), copying)
        seeds.append(copy + asked(bytes((0x84, action, 1)) + bytes(7) + (512).to_bytes(4, "big")))
    seeds += [asked(bytes((opcode,))) for opcode in (0x25, 0x1B, 0x1E, 0x16, 0x17, 0x56, 0x57)]
    seeds.append(asked(bytes((0x28, 0)) + bytes(5) + bytes((0, 1))))
    for key in (0, 1):
        seeds.append(asked(bytes((0x4D, 0, 0x40)) + bytes(4) + bytes((key, 0))))
    for page in (0x00, 0x80, 0x83, 0x86, 0x88, 0x8F, 0xB0, 0xB1, 0xB2):
        seeds.append(asked(bytes((0x12, 1, page, 1, 0))))
    for page in (0x3F, 0x08, 0x0A, 0x1C):
        seeds.append(asked(bytes((0x1A, 0, page, 0xFF, 255))))
    # COMPARE AND WRITE, VERIFY with data, ORWRITE, WRITE SAME, of what is there and of what is not.
    zeros = bytes(1024)
    seeds.append(asked(bytes((0x89, 0)) + bytes(8) + bytes((0, 0, 0, 1)), zeros))
    seeds.append(asked(bytes((0x89, 0)) + bytes(8) + bytes((0, 0, 0, 1)), b"x" + zeros[1:]))
    seeds.append(asked(bytes((0x2F, 2)) + bytes(5) + bytes((0, 1)), b"x" + zeros[:511]))
    seeds.append(asked(bytes((0x8B, 0)) + bytes(8) + bytes((0, 0, 0, 1)), b"x" * 512))
    seeds.append(asked(bytes((0x2E, 2)) + bytes(5) + bytes((0, 1)), b"x" * 512))
    seeds.append(asked(bytes((0x41, 0)) + bytes(5) + bytes((0, 8)), b"x" * 512))
    groups = bytes(4) + bytes((0, 0, 0, 1))
    seeds.append(asked(bytes((0xA4, 0x0A)) + bytes(4) + len(groups).to_bytes(4, "big"), groups))
    return seeds


def _netlink_seeds() -> list[bytes]:
    def attribute(kind: int, data: bytes) -> bytes:
        return netlink._attribute(kind, data)

    group = attribute(1, attribute(1, netlink.GROUP.encode() + b"\0") + attribute(2, (7).to_bytes(4, sys.byteorder)))
    family = attribute(1, (30).to_bytes(2, sys.byteorder)) + attribute(7, group)
    event = b"".join(
        attribute(kind, value)
        for kind, value in (
            (netlink.Attribute.DEVICE, b"uio0\0"),
            (netlink.Attribute.MINOR, (0).to_bytes(4, sys.byteorder)),
            (netlink.Attribute.DEVICE_ID, (3).to_bytes(4, sys.byteorder)),
            (netlink.Attribute.DEV_CFG, b"bucketworks/vm1\0"),
        )
    )
    return [
        netlink._request(0x10, 1, 1, 2, family),
        *(netlink._request(30, 2, int(kind), 2, event) for kind in netlink.Command if kind.value),
        netlink._request(2, 3, 0, 0, bytes(4)),
        netlink.find_family(1) + netlink.set_features(30, 2),
    ]


# --- what lies on our own disk ----------------------------------------------------------------------------------------


def apply_journal(data: bytes) -> None:
    """Bytes of an apply journal: header, then records until one is not whole. What decodes is written back the same."""
    with contextlib.suppress(BadRecord):
        assert encode_header(decode_header(data)) == data[:HEADER_BYTES]
    at = HEADER_BYTES
    with contextlib.suppress(BadRecord):
        while True:
            entry, end, synced = decode_entry(data, at, at, _PLAN)
            assert at < end <= len(data)
            again = encode_entry(entry, at, synced, _PLAN)
            assert decode_entry(bytes(at) + again, at, at, _PLAN).entry == entry
            at = end


def _apply_journal_seed() -> bytes:
    data = encode_header(_PLAN)
    for entry in (
        Begun(Op.ADD, 0, 64),
        LineResult(7, Outcome.DONE, "9e107d9d372bb6826bd81d3542a419d6", "v1", 12, 0, 3),
        LineResult(8, Outcome.FAILED, message="no"),
        Upload("a/b", "upload", over=False),
        Upload("a/b", "upload", over=True),
    ):
        data += encode_entry(entry, len(data), HEADER_BYTES, _PLAN)
    return data


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("apply-journal", apply_journal, (_apply_journal_seed(),)),
        Target("archive", archive_decoders.archive, archive_decoders.ARCHIVE_SEEDS, 1 << 17),
        Target("archive-entrances", archive_decoders.entrances, archive_decoders.ENTRANCE_SEEDS, 1 << 14),
        Target("archive-vma-header", archive_decoders.machine_header, archive_decoders.HEADER_SEEDS, 64),
        Target("archive-vma-extents", archive_decoders.machine_extents, archive_decoders.EXTENT_SEEDS, 2048),
        Target("archive-tar", archive_decoders.container_archive, archive_decoders.TAR_SEEDS, 8192),
        Target("archive-lzo", archive_decoders.lzo_stream, archive_decoders.LZO_SEEDS),
        Target("archive-seek-table", archive_decoders.seek_table, archive_decoders.SEEK_SEEDS),
        Target("archive-index", archive_decoders.archive_index, archive_decoders.INDEX_SEEDS),
        Target("archive-index-rows", archive_decoders.index_rows, archive_decoders.ROW_SEEDS),
        *(Target(f"feed-{name}", feed_decoders.feed(name), seeds) for name, seeds in feed_decoders.SEEDS.items()),
        Target("ledger-note", ledger_decoders.signed, ledger_decoders.NOTE_SEEDS),
        Target("ledger-key", ledger_decoders.vkey, ledger_decoders.VKEY_SEEDS),
        Target("ledger-record", ledger_decoders.one_record, ledger_decoders.RECORD_SEEDS),
        Target("ledger-bundle", ledger_decoders.bundle, ledger_decoders.BUNDLE_SEEDS),
        Target("ledger-tile", ledger_decoders.tile, ledger_decoders.TILE_SEEDS, 9000),
        Target("ledger-proof", ledger_decoders.proved, ledger_decoders.PROOF_SEEDS),
        Target("witness-request", ledger_decoders.request, ledger_decoders.REQUEST_SEEDS),
        Target("header", header, (*map(pdu.pack, Opcode), bytes(48))),
        Target(
            "pairs",
            pairs,
            (text.encode(list(LOGIN_KEYS.items())), b"SendTargets=All\0", b"A=1\0\0B=0x10", b"MaxBurstLength=512"),
        ),
        Target(
            "login",
            login,
            (
                _login_seed([(0x87, _NAMES | LOGIN_KEYS)]),
                _login_seed([(0x81, _NAMES | {"AuthMethod": "None"}), (0x87, LOGIN_KEYS)]),
                _login_seed([(0x40, _NAMES), (0x00, {}), (0x87, {})]),
                _login_seed(
                    [(0x00, _NAMES | {"AuthMethod": "CHAP"}), (0x00, {"CHAP_A": "5"}), (0x83, _CHAP_ANSWER)], 0x80
                ),
                _login_seed([(0x87, {"InitiatorName": HOST, "SessionType": "Discovery"})]),
            ),
        ),
        Target(
            "chap",
            chap_values,
            (b"CHAP_A=7,5\0\0" + text.encode(list(_CHAP_ANSWER.items())), _right_answer(), b"0x0102", b"0bAQI="),
        ),
        Target("before-login", before_login, tuple(b"".join(wire) for wire in RECORDED.values()), 1 << 16),
        Target(
            "conversation",
            conversation,
            tuple(bytes((number,)) + bytes(more) for number in range(len(CONVERSATIONS)) for more in (0, 4, 12)),
            64,
        ),
        Target("after-login", after_login, tuple(_after_login_seeds())),
        Target("command", command, tuple(_parameter_seeds())),
        Target(
            "control",
            control,
            (b'{"do": "status"}', b'{"do": "refuse"}', b"[]", b"nothing", b'{"do": 1}\n{"do": "a", "b": [1, {}]}'),
        ),
        Target("netlink", netlink_datagram, tuple(_netlink_seeds())),
        Target(
            "ring",
            ring,
            (
                b"",
                *(bytes((0, place, 0xFF)) for place in range(0, 80, 4)),
                bytes((0, HEAD_AT, 8)),
                bytes((0, TAIL_AT, 8)),
                bytes((0, 128, 2)),
            ),
            96,
        ),
        Target(
            "plan",
            plan_file,
            (
                b"\0" + plan_format.encode_head(HEAD),
                b"\1" + (GOLDEN / "plan-index.v1.json").read_bytes(),
                b"\2" + b"".join(map(plan_format.encode_line, LINES)),
            ),
        ),
        Target("base-segment", base_decoders.segment_file, base_decoders.SEGMENTS),
        Target("base-frame", base_decoders.frame, base_decoders.FRAMES),
        Target("base-snapshot", base_decoders.manifest, base_decoders.MANIFESTS),
        Target("base-head", base_decoders.head, base_decoders.HEADS),
    )
}


def mutated(seed: bytes, dice: random.Random, most: int) -> bytes:
    """`seed` with a few changes of the kinds that decoders trip over."""
    data = bytearray(seed)
    for _ in range(dice.choice((1, 1, 2, 3, 6))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            case 2:
                data[at:at] = dice.randbytes(dice.choice((1, 4, 48)))
            case 3:
                del data[at : at + dice.choice((1, 4, 48))]
            case 4:
                data[at : at + 4] = dice.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 512, 1 << 24)).to_bytes(4, "big")
            case 5:
                data[at:at] = data[at : at + dice.choice((8, 64))]
            case 6:
                del data[at:]
    return bytes(data[:most])
