"""An iSCSI initiator on a real socket: many commands in flight, and exact knowledge of what was acknowledged.

One rule: it shares no code with the target; headers are packed here, from RFC 7143 section 11. What arrived before the
connection broke still counts: `poll` gives every whole answer before it says that the target is gone.
"""

import select
import socket
import struct
from dataclasses import dataclass

_BHS = struct.Struct(">BBBBI8sIIII16s")
_COMMAND, _LOGIN, _NOP_OUT = 0x01, 0x43, 0x40
_RESPONSE, _LOGIN_RESPONSE, _DATA_IN, _NOP_IN, _R2T = 0x21, 0x23, 0x25, 0x20, 0x31
_FINAL, _READ, _WRITE = 0x80, 0x40, 0x20
_STATUS_HERE = 0x01
_NO_TAG = 0xFFFFFFFF
_KEYS = {
    "InitiatorName": "iqn.1993-08.org.debian:01:torture",
    "SessionType": "Normal",
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "262144",
    "ErrorRecoveryLevel": "0",
}
WRITE_BYTES_MAX = 256 * 1024
"""What goes as immediate data in one PDU."""
GOOD, CHECK_CONDITION, BUSY = 0x00, 0x02, 0x08
UNIT_ATTENTION, NOT_READY = 0x06, 0x02
PATIENCE_S = 60.0


class Gone(Exception):
    """The connection has ended."""


@dataclass(frozen=True, slots=True)
class Answer:
    tag: int
    status: int
    data: bytes = b""
    sense: tuple[int, int, int] = (0, 0, 0)
    """Sense key, ASC, ASCQ."""


def _sense(data: bytes) -> tuple[int, int, int]:
    """Of a SCSI Response's data segment, fixed or descriptor format (SPC-4 4.5)."""
    body = data[2:]
    if len(body) < 4:
        return 0, 0, 0
    if body[0] & 0x7F >= 0x72:
        return body[1] & 0xF, body[2], body[3]
    return body[2] & 0xF, body[12], body[13]


class RawInitiator:
    def __init__(self, url: str) -> None:
        """Log in to `iscsi://HOST:PORT/IQN/LUN`. Raises Gone when the target ends meanwhile."""
        address, iqn, lun = url.removeprefix("iscsi://").split("/")
        host, _, port = address.rpartition(":")
        self._lun = bytes((0, int(lun))) + bytes(6)
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in = bytearray()
        self._out = bytearray()
        self._tag = 0
        self._cmd_sn = 1
        self._max_cmd_sn = 1
        self._stat_sn = 0
        self._reads: dict[int, bytearray] = {}
        self._gone: Exception | None = None
        self._login(iqn)
        self.sector_bytes, self.sectors = self._capacity()

    def _login(self, iqn: str) -> None:
        text = b"".join(f"{key}={value}\0".encode() for key, value in {**_KEYS, "TargetName": iqn}.items())
        header = struct.pack(
            ">BBBBI6sHIHHII16s", _LOGIN, 0x87, 0, 0, len(text), b"\0\2\x3d\0\0\1", 0, 0, 0, 0, 1, 0, b""
        )
        self._out += header + text + bytes(-len(text) % 4)
        while True:
            for opcode, head, data in self._receive(PATIENCE_S):
                assert opcode == _LOGIN_RESPONSE, f"a PDU of opcode {opcode:#x} answers the login"
                assert head[36:38] == b"\0\0", f"login refused: {head[36:38].hex()} {data!r}"
                assert head[1] & 0x83 == 0x83, "the login goes on, which nobody asked for"
                return

    def _capacity(self) -> tuple[int, int]:
        for _ in range(4):
            answer = self.do(bytes((0x9E, 0x10)) + bytes(8) + (32).to_bytes(4, "big") + bytes(2), expected=32)
            if answer.status == GOOD:
                last, sector = struct.unpack_from(">QI", answer.data)
                return sector, last + 1
            assert answer.sense[0] == UNIT_ATTENTION, answer
        raise AssertionError("one unit attention after the other")

    # --- commands

    @property
    def window(self) -> int:
        """Commands that may be sent now (RFC 7143 4.2.2.1)."""
        return (self._max_cmd_sn - self._cmd_sn + 1) & 0xFFFFFFFF

    def send(self, cdb: bytes, data: bytes = b"", *, expected: int = 0) -> int:
        """Queue a command; its tag. `expected`: bytes to read."""
        self._tag += 1
        flags = _FINAL | (_WRITE if data else 0) | (_READ if expected else 0)
        self._out += _BHS.pack(
            _COMMAND,
            flags,
            0,
            0,
            len(data),
            self._lun,
            self._tag,
            expected or len(data),
            self._cmd_sn,
            self._stat_sn,
            cdb,
        )
        self._out += data
        self._out += bytes(-len(data) % 4)
        self._cmd_sn += 1
        if expected:
            self._reads[self._tag] = bytearray(expected)
        self._push()
        return self._tag

    def write(self, lba: int, data: bytes, *, fua: bool = False) -> int:
        count = len(data) // self.sector_bytes
        return self.send(struct.pack(">BBQIBB", 0x8A, 8 if fua else 0, lba, count, 0, 0), data)

    def read(self, lba: int, count: int) -> int:
        return self.send(struct.pack(">BBQIBB", 0x88, 0, lba, count, 0, 0), expected=count * self.sector_bytes)

    def flush(self) -> int:
        return self.send(struct.pack(">BBQIBB", 0x91, 0, 0, 0, 0, 0))

    def unmap(self, lba: int, count: int) -> int:
        block = struct.pack(">HH4xQI4x", 22, 16, lba, count)
        return self.send(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(block), 0), block)

    def do(self, cdb: bytes, *, expected: int = 0) -> Answer:
        """One command, and its answer, with nothing else in flight."""
        tag = self.send(cdb, expected=expected)
        return self.wait(tag)

    def wait(self, tag: int) -> Answer:
        while True:
            for answer in self.poll(PATIENCE_S):
                assert answer.tag == tag
                return answer

    def read_all(self, *, step_bytes: int = WRITE_BYTES_MAX) -> bytes:
        """The whole disk. With nothing else in flight."""
        step = step_bytes // self.sector_bytes
        parts = []
        for lba in range(0, self.sectors, step):
            while True:
                answer = self.wait(self.read(lba, min(step, self.sectors - lba)))
                if answer.status != BUSY:
                    break
            assert answer.status == GOOD, f"reading sector {lba}: status {answer.status:#x}, sense {answer.sense}"
            parts.append(answer.data)
        return b"".join(parts)

    # --- the wire

    def poll(self, seconds: float) -> list[Answer]:
        """Answers that have come; waits up to `seconds` for the first. Raises Gone once nothing more can come."""
        answers = []
        for opcode, head, data in self._receive(seconds):
            (tag,) = struct.unpack_from(">I", head, 16)
            if opcode == _RESPONSE:
                read = self._reads.pop(tag, bytearray())
                answers.append(Answer(tag, head[3], bytes(read), _sense(data)))
            elif opcode == _DATA_IN:
                (offset,) = struct.unpack_from(">I", head, 40)
                self._reads[tag][offset : offset + len(data)] = data
                if head[1] & _STATUS_HERE:
                    answers.append(Answer(tag, head[3], bytes(self._reads.pop(tag))))
            elif opcode == _NOP_IN and head[20:24] != b"\xff\xff\xff\xff":
                target_tag = struct.unpack_from(">I", head, 20)[0]
                self._out += _BHS.pack(
                    _NOP_OUT, _FINAL, 0, 0, 0, head[8:16], _NO_TAG, target_tag, self._cmd_sn, self._stat_sn, b""
                )
            assert opcode != _R2T, "asked for data that was sent as immediate data"
        if self._gone is not None and not answers:
            raise Gone(str(self._gone))
        return answers

    def _ready(self, events: int, seconds: float) -> int:
        """Which of these, or what is wrong, the socket has within that time. (poll, since select knows 1,024 files.)"""
        waiting = select.poll()
        waiting.register(self._socket, events)
        return next((found for _, found in waiting.poll(seconds * 1000)), 0)

    def _push(self) -> None:
        try:
            while self._out and self._ready(select.POLLOUT, 0.0):
                del self._out[: self._socket.send(self._out)]
        except OSError:
            self._out.clear()  # broken; what had been answered before may still be read, and then recv says so

    def _receive(self, seconds: float) -> list[tuple[int, bytes, bytes]]:
        """Whole PDUs: (opcode, header, data)."""
        self._push()
        found = self._parse()
        if found or self._gone is not None:
            return found
        events = self._ready(select.POLLIN | (select.POLLOUT if self._out else 0), seconds)
        writable = events & select.POLLOUT
        self._push()
        if events & ~select.POLLOUT:
            try:
                got = self._socket.recv(1 << 20)
            except OSError as error:
                self._gone = error
            else:
                self._in += got
                if not got:
                    self._gone = ConnectionError("the target closed the connection")
        elif seconds >= PATIENCE_S and not writable and not self._out:
            raise AssertionError(f"no answer within {seconds} s")
        return self._parse()

    def _parse(self) -> list[tuple[int, bytes, bytes]]:
        found = []
        while len(self._in) >= 48:
            length = int.from_bytes(self._in[5:8], "big")
            whole = 48 + length + -length % 4
            if len(self._in) < whole:
                break
            head, data = bytes(self._in[:48]), bytes(self._in[48 : 48 + length])
            del self._in[:whole]
            opcode = head[0] & 0x3F
            if opcode != _R2T and not (opcode == _DATA_IN and not head[1] & _STATUS_HERE):
                self._stat_sn = (int.from_bytes(head[24:28], "big") + 1) & 0xFFFFFFFF
            self._max_cmd_sn = int.from_bytes(head[32:36], "big")
            found.append((opcode, head, data))
        return found

    def close(self) -> None:
        self._socket.close()
