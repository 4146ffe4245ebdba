"""How long single commands take, seen by an initiator that is cheap enough to see it: raw sockets, headers packed ahead.

One rule: it shares no code with the target (RFC 7143 section 11), and meets tgt with the same bytes. Its own share is in every
figure: about 15 us a command on a machine that does 10,000 of QD1 a second, of which most are the two wake-ups.
"""

import gc
import random
import socket
import struct
import time
from dataclasses import dataclass

from bench.processes import BenchFailed

BLOCK_BYTES = 4096
PATIENCE_S = 60.0
_BHS = struct.Struct(">BBBBI8sIIII16s")
_ITT = struct.Struct(">I")
_KEYS = {
    "InitiatorName": "iqn.2025-01.internal.bucketworks:probe",
    "SessionType": "Normal",
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
    "ErrorRecoveryLevel": "0",
}
_NO_TAG = 0xFFFFFFFF
_RESPONSE, _LOGIN_RESPONSE, _NOP_IN, _DATA_IN = 0x21, 0x23, 0x20, 0x25


@dataclass(frozen=True, slots=True)
class Probe:
    """Blocks of 4 KiB at random places, `depth` under way. Of `writes_of_ten` writes in ten commands; what counts are the
    reads, unless all are writes."""

    name: str
    depth: int
    writes_of_ten: int


@dataclass(frozen=True, slots=True)
class Latencies:
    """Microseconds of the `count` commands that count, and commands a second over all `commands`."""

    p50: float
    p99: float
    p999: float
    rate: float
    count: int
    commands: int


PROBES = (
    Probe("4K read QD1, one write in ten", 1, 1),
    Probe("4K write QD1", 1, 10),
    Probe("4K read QD32, one write in ten", 32, 1),
    Probe("4K write QD32", 32, 10),
)


class Session:
    """Logged in to `iscsi://HOST:PORT/IQN/LUN`; a context manager. Raises BenchFailed for whatever is not GOOD."""

    def __init__(self, url: str) -> None:
        address, iqn, lun = url.removeprefix("iscsi://").split("/")
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lun = bytes((0, int(lun))) + bytes(6)
        self._cmd_sn = 1
        self._buffer = memoryview(bytearray(1 << 20))
        self._have = 0
        text = b"".join(f"{key}={value}\0".encode() for key, value in {**_KEYS, "TargetName": iqn}.items())
        isid = b"\0\2\x3d\0\0\2"
        header = struct.pack(">BBBBI6sHIHHII16s", 0x43, 0x87, 0, 0, len(text), isid, 0, 0, 0, 0, 1, 0, b"")
        self._socket.sendall(header + text + bytes(-len(text) % 4))
        ((opcode, head, _),) = self._wait()
        if opcode != _LOGIN_RESPONSE or head[36] or head[1] & 0x83 != 0x83:
            raise BenchFailed(f"{url}: the login was refused: {bytes(head).hex()}")
        for _ in range(4):
            self._socket.sendall(self._command(bytes(6), 1, 0x80, 0))
            ((_, head, _),) = self._wait()
            if not head[3]:
                return
        raise BenchFailed(f"{url}: one unit attention after the other")

    def run(self, probe: Probe, blocks: int, seconds: float) -> Latencies:
        """For so long, over the first `blocks` blocks."""
        source = random.Random(5)
        choice = [source.randrange(blocks) for _ in range(4096)]
        payload = source.randbytes(BLOCK_BYTES // 2) + bytes(BLOCK_BYTES // 2)
        began: dict[int, int] = {}
        took: list[int] = []
        counted = 0x40 if probe.writes_of_ten < 10 else 0x20
        kinds: dict[int, int] = {}
        clock, tag, total, failed = time.perf_counter_ns, 2, 0, ""
        gc.collect()
        gc.disable()
        try:
            begin = clock()
            end = begin + int(seconds * 1e9)
            while True:
                now = clock()
                if now < end:
                    out = []
                    while len(began) < probe.depth:
                        tag += 1
                        place = choice[tag & 4095] * (BLOCK_BYTES // 512)
                        write = tag % 10 < probe.writes_of_ten
                        cdb = struct.pack(">BBIBHB", 0x2A if write else 0x28, 0, place, 0, BLOCK_BYTES // 512, 0)
                        kinds[tag] = flags = 0x20 if write else 0x40
                        out.append(self._command(cdb, tag, 0x80 | flags, BLOCK_BYTES, BLOCK_BYTES if write else 0))
                        if write:
                            out.append(payload)
                        began[tag] = now
                    if out:
                        self._socket.sendall(b"".join(out))
                elif not began:
                    break
                for _, head, status in self._wait():
                    answered = clock()
                    if status is None:
                        continue
                    (itt,) = _ITT.unpack_from(head, 16)
                    if status:
                        failed = f"status {status:#04x} in {probe.name}"
                    started = began.pop(itt)
                    if kinds.pop(itt) == counted:
                        took.append(answered - started)
                    total += 1
            elapsed = clock() - begin
        finally:
            gc.enable()
        if failed or not took:
            raise BenchFailed(failed or f"nothing came back in {probe.name}")
        took.sort()

        def share(part: float) -> float:
            return took[min(len(took) - 1, int(len(took) * part))] / 1000

        return Latencies(share(0.5), share(0.99), share(0.999), total * 1e9 / elapsed, len(took), total)

    def _command(self, cdb: bytes, tag: int, flags: int, expected: int, length: int = 0) -> bytes:
        number = self._cmd_sn
        self._cmd_sn = (number + 1) & 0xFFFFFFFF
        return _BHS.pack(0x01, flags, 0, 0, length, self._lun, tag, expected, number, 0, cdb)

    def _wait(self) -> list[tuple[int, memoryview, int | None]]:
        """All whole PDUs that are here, at least one: opcode, header, and the status if it carries one. Headers are good
        until the next call."""
        found: list[tuple[int, memoryview, int | None]] = []
        buffer, start = self._buffer, 0
        while not found:
            count = self._socket.recv_into(buffer[self._have :])
            if not count:
                raise BenchFailed("the target closed the connection")
            self._have += count
            while self._have - start >= 48:
                length = int.from_bytes(buffer[start + 5 : start + 8], "big")
                size = 48 + (length + 3 & ~3)
                if self._have - start < size:
                    break
                head = buffer[start : start + 48]
                opcode = head[0] & 0x3F
                ends = opcode in (_RESPONSE, _LOGIN_RESPONSE) or (opcode == _DATA_IN and head[1] & 1)
                found.append((opcode, head if start else memoryview(bytes(head)), head[3] if ends else None))
                start += size
        rest = self._have - start
        if rest and start:
            found = [(opcode, memoryview(bytes(head)), status) for opcode, head, status in found]
            buffer[:rest] = bytes(buffer[start : self._have])
        self._have = rest
        return found

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def measure(url: str, probe: Probe, volume_bytes: int, seconds: float) -> Latencies:
    """One session, for one probe."""
    with Session(url) as session:
        return session.run(probe, volume_bytes // BLOCK_BYTES, seconds)
