"""Serves a RAM disk over iSCSI, for trying initiators by hand and for measuring the portal alone.

    python -m tests.protocol.ram_portal --port 3260 --mib 1024 --fast

Prints one line with the URL when it listens, and stops on SIGTERM or SIGINT. `--fast` serves `FlatTarget`, whose reads
and writes are one slice each; without it the RamTarget of the tests, which checks every promise and is slow.
"""

import argparse
import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from blockdev.iscsi.chap import Credentials
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.portal import Address, Portal
from blockdev.target import BlockTarget, Buffer
from tests.blockdev.ram_target import RamTarget

IQN = "iqn.2004-10.com.example:ram"


class FlatTarget:
    """The least a BlockTarget can cost: one bytearray. Staged writes are applied by `commit`; a read lends views."""

    name = "flat"
    identity = UUID("0e7f4a0c-5c55-4a41-9b3a-3a8f7c1d2e90")
    read_only = False

    def __init__(self, size_bytes: int, sector_bytes: int = 512) -> None:
        self.sector_bytes = sector_bytes
        self.sector_count = size_bytes // sector_bytes
        self._content = memoryview(bytearray(size_bytes))
        self._staged: list[tuple[int, Sequence[Buffer]]] = []
        self.kept_reservations: dict[str, Any] | None = None
        self.allocated_bytes = size_bytes

    def read(self, lba: int, count: int, done: Callable[[list[Buffer] | Exception], None]) -> list[Buffer] | None:
        if self._staged:
            self.commit()
        start = lba * self.sector_bytes
        return [self._content[start : start + count * self.sector_bytes]]

    def write(self, lba: int, data: Sequence[Buffer]) -> None:
        self._staged.append((lba * self.sector_bytes, data))

    def write_atomic(self, lba: int, data: Sequence[Buffer]) -> None:
        self.write(lba, data)

    def write_zeroes(self, lba: int, count: int, *, may_unmap: bool = True) -> None:
        self.write(lba, (bytes(count * self.sector_bytes),))

    def unmap(self, ranges: Sequence[tuple[int, int]]) -> None:
        for lba, count in ranges:
            self.write_zeroes(lba, count)

    def commit(self) -> None:
        content = self._content
        for start, data in self._staged:
            for part in data:
                content[start : start + len(part)] = part
                start += len(part)
        self._staged.clear()

    def hold_back(self, bytes: int) -> float:
        return 0.0

    def flush(self, done: Callable[[Exception | None], None]) -> None:
        self.commit()
        done(None)

    def keep_reservations(self, state: dict[str, Any] | None, done: Callable[[Exception | None], None]) -> None:
        self.kept_reservations = state
        done(None)

    def allocated(self, lba: int, count: int, done: Callable[[list[tuple[int, int, bool]] | Exception], None]) -> None:
        done([(lba, count, True)])


async def serve(target: BlockTarget, port: int, credentials: Credentials | None) -> None:
    nodes = Nodes()
    nodes.serve(IQN, {0: target}, credentials=credentials, later=asyncio.get_running_loop().call_later)
    portal = Portal(nodes, listen=(Address("127.0.0.1", port),))
    await portal.start()
    gc.collect()
    gc.freeze()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    print(f"iscsi://{portal.addresses[0]}/{IQN}/0", flush=True)
    await stopping.wait()
    await portal.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--sector", type=int, default=512, help="bytes")
    parser.add_argument("--read-only", action="store_true", help="a disk that refuses writes (not with --fast)")
    parser.add_argument("--user")
    parser.add_argument("--secret", default="")
    parser.add_argument("--log", default="warning")
    options = parser.parse_args()
    logging.basicConfig(level=options.log.upper(), format="%(levelname)s %(name)s: %(message)s")
    size = options.mib << 20
    target: BlockTarget = (
        FlatTarget(size, options.sector)
        if options.fast
        else RamTarget(size // options.sector, sector_bytes=options.sector, read_only=options.read_only)
    )
    credentials = Credentials(options.user, options.secret.encode()) if options.user else None
    asyncio.run(serve(target, options.port, credentials))


if __name__ == "__main__":
    main()
