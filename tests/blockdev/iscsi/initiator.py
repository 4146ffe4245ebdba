"""An initiator for tests: the other end of a Connection, without a socket.

One rule: it knows the wire only, through `pdu` and its own digests, and says exactly what it is told to say, right or wrong.
`World` is a portal's inside: nodes, one RAM disk per LUN, and any number of initiators.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from crc32c import crc32c

from blockdev.iscsi.connection import Connection
from blockdev.iscsi.nexus import BufferPool
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.pdu import BHS_BYTES, CONTINUE, FINAL, NO_TAG, Opcode, lun_field, pack, unpack
from blockdev.iscsi.text import decode, encode
from tests.blockdev.ram_target import RamTarget

IQN = "iqn.2004-10.com.example:disk"
HOST = "iqn.1993-08.org.debian:01:host"
R, W = 0x40, 0x20

LOGIN_KEYS = {
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
}


@dataclass(frozen=True)
class Pdu:
    """One PDU from the target. Fields by their names in `pdu.LAYOUTS`."""

    fields: dict[str, int]
    data: bytes

    def __getattr__(self, name: str) -> int:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def text(self) -> dict[str, str]:
        return decode(self.data)

    @property
    def sense(self) -> tuple[int, int, int]:
        """Sense key, ASC, ASCQ of a SCSI Response."""
        assert int.from_bytes(self.data[:2], "big") == len(self.data) - 2
        return self.data[4] & 0xF, self.data[14], self.data[15]


class World:
    def __init__(self, *targets: RamTarget, **options: object) -> None:
        self.targets = targets or (RamTarget(),)
        self.nodes = Nodes(**options)  # type: ignore[arg-type]  # whatever a test wants to set
        self.node = self.nodes.serve(IQN, dict(enumerate(self.targets)))
        self.pool = BufferPool()
        self.now = 0
        """Nanoseconds, which go on only where a test says so."""
        self._seed = count(1)

    @property
    def target(self) -> RamTarget:
        return self.targets[0]

    def random_bytes(self, length: int) -> bytes:
        """Never the same twice, always the same in every run."""
        return next(self._seed).to_bytes(length, "big")

    def initiator(self, name: str = HOST, *, isid: int = 0x00023D000001, portal_group: int = 1) -> "Initiator":
        return Initiator(self, name, isid, portal_group)

    def logged_in(self, name: str = HOST, **keys: str) -> "Initiator":
        """In full feature phase, with the unit attention of LUN 0 taken."""
        found = self.initiator(name)
        answer = found.log_in(**keys)
        assert answer.status_word == 0
        assert found.command(bytes(6)).status == 0x02
        return found


class Initiator:
    def __init__(self, world: World, name: str, isid: int, portal_group: int = 1) -> None:
        self.name = name
        self.isid = isid
        self.notified = 0
        self.connection = Connection(
            world.nodes,
            random_bytes=world.random_bytes,
            pool=world.pool,
            addresses=["192.0.2.1:3260,1"],
            portal_group=portal_group,
            notify=self._notified,
            clock=lambda: world.now,
        )
        self.cmd_sn = 1
        self.itt = 0
        self.header_digest = False
        self.data_digest = False
        self._wire = bytearray()
        self._collected: bytearray | None = None

    def _notified(self) -> None:
        self.notified += 1

    # ---- bytes

    def frame(self, header: bytes, data: bytes = b"") -> bytes:
        """A PDU as it goes over the wire, with pad and the digests agreed on."""
        out = bytearray(header)
        if self.header_digest:
            out += int(crc32c(header)).to_bytes(4, "little")
        if data:
            padded = data + bytes(-len(data) % 4)
            out += padded
            if self.data_digest:
                out += int(crc32c(padded)).to_bytes(4, "little")
        return bytes(out)

    def send(self, opcode: Opcode, flags: int = FINAL, data: bytes = b"", *, cdb: bytes = b"", **fields: int) -> None:
        immediate = bool(fields.pop("immediate", 0))
        header = pack(opcode, flags, immediate=immediate, cdb=cdb, length=len(data), **fields)
        self.deliver(self.frame(header, data))

    def deliver(self, wire: bytes) -> None:
        if self._collected is not None:
            self._collected += wire
        else:
            self.connection.receive(wire)

    @contextmanager
    def collected(self) -> Iterator[bytearray]:
        """What is said inside is not sent but gathered, for the test to deliver as it likes."""
        self._collected = wire = bytearray()
        try:
            yield wire
        finally:
            self._collected = None

    def heard(self) -> list[Pdu]:
        """All PDUs sent since the last time; checks the framing."""
        self._wire += b"".join(self.connection.take())
        found: list[Pdu] = []
        while self._wire:
            header = bytes(self._wire[:BHS_BYTES])
            fields = unpack(header)
            at = BHS_BYTES
            if self.header_digest:
                assert int(crc32c(header)).to_bytes(4, "little") == self._wire[at : at + 4]
                at += 4
            length = fields["length"]
            data = bytes(self._wire[at : at + length])
            assert len(data) == length
            padded = length + -length % 4
            if self.data_digest and length:
                assert (
                    int(crc32c(self._wire[at : at + padded])).to_bytes(4, "little")
                    == (self._wire[at + padded : at + padded + 4])
                )
                padded += 4
            del self._wire[: at + padded]
            found.append(Pdu(fields, data))
        return found

    def one(self) -> Pdu:
        found = self.heard()
        assert len(found) == 1, found
        return found[0]

    # ---- login

    def login(
        self,
        keys: dict[str, str],
        *,
        stage: int = 1,
        to: int | None = 3,
        more: bool = False,
        tsih: int = 0,
        cid: int = 0,
        version_min: int = 0,
    ) -> Pdu:
        """One login request and its answer."""
        flags = stage << 2 | (0 if to is None else FINAL | to) | (CONTINUE if more else 0)
        data = encode(list(keys.items()))
        self.send(
            Opcode.LOGIN,
            flags,
            data,
            immediate=1,
            isid_tsih=self.isid << 16 | tsih,
            itt=0,
            cid=cid << 16,
            cmd_sn=self.cmd_sn,
            version_min=version_min,
        )
        return self.one()

    def names(self, target: str = IQN) -> dict[str, str]:
        return {"InitiatorName": self.name, "TargetName": target, "SessionType": "Normal"}

    def log_in(self, **keys: str) -> Pdu:
        """The shortest login: operational stage, straight to full feature phase."""
        answer = self.login(self.names() | LOGIN_KEYS | keys)
        if answer.status_word == 0:
            self.header_digest = answer.text.get("HeaderDigest") == "CRC32C"
            self.data_digest = answer.text.get("DataDigest") == "CRC32C"
        return answer

    # ---- commands

    def next_tag(self) -> int:
        self.itt += 1
        return self.itt

    def ask(
        self,
        cdb: bytes,
        *,
        expected: int = 0,
        flags: int = FINAL,
        data: bytes = b"",
        lun: int = 0,
        cmd_sn: int | None = None,
        immediate: bool = False,
        itt: int | None = None,
    ) -> int:
        """Sends a SCSI command; returns its task tag."""
        tag = self.next_tag() if itt is None else itt
        number = self.cmd_sn if cmd_sn is None else cmd_sn
        self.send(
            Opcode.SCSI_COMMAND,
            flags,
            data,
            cdb=cdb,
            lun=lun_field(lun),
            itt=tag,
            expected_length=expected,
            cmd_sn=number,
            immediate=immediate,
        )
        if cmd_sn is None and not immediate:
            self.cmd_sn += 1
        return tag

    def command(self, cdb: bytes, **options: int | bytes) -> Pdu:
        """A command that is answered at once by one PDU."""
        tag = self.ask(cdb, **options)  # type: ignore[arg-type]  # the options of `ask`
        answer = self.one()
        assert answer.itt == tag
        return answer

    def data_out(
        self, itt: int, ttt: int, data: bytes, *, offset: int = 0, data_sn: int = 0, final: bool = True
    ) -> None:
        self.send(Opcode.DATA_OUT, FINAL if final else 0, data, itt=itt, ttt=ttt, data_sn=data_sn, offset=offset)

    def manage(self, function: int, *, lun: int = 0, referenced: int = NO_TAG, ref_cmd_sn: int = 0) -> int:
        tag = self.next_tag()
        self.send(
            Opcode.TASK_MANAGEMENT,
            FINAL | function,
            immediate=1,
            lun=lun_field(lun),
            itt=tag,
            referenced_itt=referenced,
            cmd_sn=self.cmd_sn,
            ref_cmd_sn=ref_cmd_sn,
        )
        return tag


def read10(lba: int, count: int) -> bytes:
    return bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def write10(lba: int, count: int, *, fua: bool = False) -> bytes:
    return bytes((0x2A, 8 if fua else 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


FLUSH = bytes((0x35,)) + bytes(9)
READ, WRITE = FINAL | R, FINAL | W
