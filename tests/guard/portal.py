"""iSCSI commands through a real socket, the real portal, session, front, journal and cache, in one thread.

One rule: the loop is moved by hand. What is counted is one turn of the portal, from a readable socket to the bytes that the
initiator has; the initiator is not in it.
"""

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVarTuple, Unpack

from blockdev.engine.cache import ReadCache
from blockdev.engine.cache_table import CacheLayout, encode_header
from blockdev.engine.front import Front
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.pdu import Opcode
from blockdev.iscsi.portal import Address, Portal
from blockdev.journal.file import PosixFile
from blockdev.journal.journal import Journal, create_journal
from blockdev.target import Buffer
from blockdev.units import KIB, MIB, Geometry
from tests.blockdev.front_world import CACHE, JOURNAL, VOLUME, DelayedSyncer
from tests.blockdev.iscsi import initiator
from tests.blockdev.iscsi.initiator import FLUSH, IQN, READ, WRITE, Initiator, read10, write10
from tests.blockdev.scripted_worker import Bucket, ScriptedWorker

SECTORS_4K = 8
DEPTH = 32
FILLED_BYTES = 2 * MIB
GOOD = 0
TURNS_MAX = 10_000
Count = Callable[[], AbstractContextManager[None]]


_Ts = TypeVarTuple("_Ts")


class HandLoop(asyncio.SelectorEventLoop):
    """Readers are kept, and called by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[int, Callable[[], Any]] = {}

    def add_reader(self, fd: Any, callback: Callable[[Unpack[_Ts]], Any], *args: *_Ts) -> None:
        self.readers[fd if isinstance(fd, int) else fd.fileno()] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd if isinstance(fd, int) else fd.fileno(), None) is not None


class Wire:
    """What an `Initiator` takes for its connection: a socket, with the portal at the other end."""

    def __init__(self, world: "PortalWorld", sock: socket.socket) -> None:
        self.world = world
        self.sock = sock
        self.session = None

    def receive(self, data: Buffer) -> None:
        self.sock.sendall(data)
        self.world.turn()

    def take(self) -> list[bytes]:
        found: list[bytes] = []
        try:
            while True:
                found.append(self.sock.recv(4 * MIB, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return found


class PortalWorld:
    """A volume of 64 MiB, 2 MiB of which are in the read cache. `count` is entered around each of the portal's turns."""

    def __init__(self, folder: Path) -> None:
        self.count: Count = nullcontext
        geometry = Geometry(64 * MIB)
        self.journal = create_journal(
            folder / "journal", journal=JOURNAL, volume=VOLUME, ring_bytes=32 * MIB, sector_bytes=geometry.sector_bytes
        )
        file = PosixFile(folder / "journal")
        self.journal.close()
        self.journal = Journal.open(file)
        layout = CacheLayout(CACHE, VOLUME, geometry.frame_bytes, 8 * MIB // geometry.frame_bytes)
        content = PosixFile.create(folder / "cache", layout.content_bytes)
        table = PosixFile.create(folder / "cache.table", layout.table_bytes)
        table.pwritev([encode_header(layout)], 0)
        self.posted: list[Callable[[], None]] = []
        self.worker = ScriptedWorker(Bucket(geometry, self.journal.head), file, content)
        self.syncer = DelayedSyncer(self.journal)
        self.front = Front(
            name="vol",
            identity=VOLUME,
            geometry=geometry,
            journal=self.journal,
            cache=ReadCache(content, table, layout),
            link=self.worker,
            syncer=self.syncer,
            post=self.posted.append,
            read_ahead_bytes=0,
            flush_to="local",
            clock=lambda: 0.0,
        )
        self.worker.attach()
        self.loop = HandLoop()
        nodes = Nodes()
        nodes.serve(IQN, {0: self.front})
        self.portal = Portal(nodes, listen=[Address("127.0.0.1", 0)], login_seconds=3600)
        self.loop.run_until_complete(self.portal.start())
        (listener,) = list(self.loop.readers)
        client = socket.create_connection(("127.0.0.1", self.portal.addresses[0].port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            client.setsockopt(socket.SOL_SOCKET, option, 4 * MIB)
        self.loop.readers[listener]()
        self.number = next(number for number in self.loop.readers if number != listener)
        self.reader = self.loop.readers[self.number]
        self.client = client
        self.host = Initiator(initiator.World(), initiator.HOST, 0x00023D000001)
        self.host.connection = Wire(self, client)  # type: ignore[assignment]  # the two calls of it that an initiator makes
        assert self.host.log_in().status_word == GOOD
        self.host.command(bytes(6))
        self.write(0, bytes(range(256)) * (FILLED_BYTES // 256))
        self.flush()
        self.worker.commit()
        # Of the journal the volume now needs nothing; reads fill the cache.
        self.front.tick(1e9)
        for lba in range(0, FILLED_BYTES // 512, 256 * KIB // 512):
            self.read(lba, 256 * KIB // 512)

    def turn(self) -> None:
        """The portal's part of whatever the initiator has sent, and of what that sets going."""
        while select.select([self.number], (), (), 0)[0]:
            with self.count():
                self.reader()
        while self.posted or self.syncer.waiting:
            with self.count():
                if self.syncer.waiting:
                    self.syncer.run()
                else:
                    self.posted.pop(0)()
        while self.worker.fetches:
            self.worker.serve()

    def read(self, lba: int, sectors: int) -> bytes:
        self.host.ask(read10(lba, sectors), expected=sectors * 512, flags=READ)
        return b"".join(pdu.data for pdu in self._until(1))

    def write(self, lba: int, data: bytes) -> None:
        """With immediate data and then what the portal asks for."""
        size = len(data)
        for at in range(0, size, 16 * MIB):
            piece = data[at : at + 16 * MIB]
            first = piece[: 64 * KIB]
            tag = self.host.ask(
                write10(lba + at // 512, len(piece) // 512), expected=len(piece), flags=WRITE, data=first
            )
            done = False
            for _ in range(TURNS_MAX):
                if done:
                    break
                self.turn()
                for pdu in self.host.heard():
                    if pdu.opcode == Opcode.R2T:
                        with self.host.collected() as wire:
                            asked = piece[pdu.offset : pdu.offset + pdu.desired]
                            self.host.data_out(tag, pdu.ttt, asked, offset=pdu.offset)
                        self.host.deliver(bytes(wire))
                    else:
                        assert (pdu.opcode, pdu.status) == (Opcode.SCSI_RESPONSE, GOOD)
                        done = True
            assert done, f"no answer to a write of {len(piece)} bytes"

    def flush(self) -> None:
        self.host.ask(FLUSH)
        self._until(1)

    def batch(self, reads: bool) -> None:
        """32 commands that arrive at once."""
        data = bytes(4096)
        with self.host.collected() as wire:
            for number in range(DEPTH):
                lba = number * 17 % DEPTH * SECTORS_4K
                if reads:
                    self.host.ask(read10(lba, SECTORS_4K), expected=4096, flags=READ)
                else:
                    self.host.ask(write10(lba, SECTORS_4K), expected=4096, flags=WRITE, data=data)
        self.host.deliver(bytes(wire))
        self._until(DEPTH)

    def _until(self, answers: int) -> list[initiator.Pdu]:
        found: list[initiator.Pdu] = []
        for _ in range(TURNS_MAX):
            found += self.host.heard()
            # A read's status comes with its last Data-In.
            done = sum(1 for pdu in found if pdu.opcode == Opcode.SCSI_RESPONSE or pdu.fields.get("flags", 0) & 1)
            if done >= answers:
                assert done == answers
                return found
            self.turn()
            select.select([self.number], (), (), 0.01)
        raise AssertionError(f"{answers} answers were expected, these came: {found}")

    def close(self) -> None:
        self.client.close()
        self.loop.run_until_complete(self.portal.stop(drain_seconds=0))
        self.loop.close()


@contextmanager
def portal_world(folder: Path) -> Iterator[PortalWorld]:
    world = PortalWorld(folder)
    try:
        yield world
    finally:
        world.close()
