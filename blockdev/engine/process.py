"""The worker as a process of its own: `python -m blockdev.engine.process`, started by the daemon and by nothing else.

One rule: it lives and dies with the daemon. Its orders come as JSON on standard input (never as arguments: those are public),
messages over the inherited socket; when the socket closes it stops at once, leaving all to the journal and the log.
"""

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from blockdev.engine import link
from blockdev.engine.assembly import Orders, assemble
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.socket_link import SocketLink
from blockdev.engine.worker import Worker
from blockdev.errors import BlockError
from s3core.errors import StoreError
from s3core.logs import configure_logging

if TYPE_CHECKING:
    from s3core.settings import Config

log = logging.getLogger(__name__)

THREADS = 32
NICE = 19
"""The front must never wait for the worker's CPU time: beside a worker at equal priority it loses two thirds of its
speed. While the journal fills or commits fall behind, the worker is raised to 0 (where permitted): a host whose guests use
all of its CPU must not let the RPO grow without bound."""
NICE_READING = 0
"""Of the loop's own thread, which fetches, while a host waits for a read: whatever else runs on a busy host would come before
it otherwise. What compresses and sends stays where it is."""
LATE_INTERVALS = 3
"""Commits are behind when the oldest unsaved write is so many commit intervals old."""
STEER_S = 0.5
BEAT_S = 1.0
SWITCH_INTERVAL_S = 0.0005
PR_SET_PDEATHSIG = 1


def _set_priority(nice: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)
        except ProcessLookupError:
            continue  # a thread that ended since the listing
        except PermissionError as error:
            log.debug("priority stays as it is: %s", error)
            return


class ReadPriority:
    """The priority of the thread that it was made on: raised by a read that waits, lowered by the next look after the last."""

    def __init__(self) -> None:
        self._thread = threading.get_native_id()
        self._raised = False
        self._asked = False
        self._permitted = True

    def asked(self) -> None:
        """A host waits for a fetch."""
        self._asked = True
        if not self._raised and self._permitted:
            self._raised = self._set(NICE_READING)
            self._permitted = self._raised

    def look(self, nice: int) -> None:
        """Now and then: back to `nice`, the others' priority, unless somebody asked since the last look."""
        if self._raised and not self._asked:
            self._raised = False
            self._set(nice)
        self._asked = False

    def kept(self) -> None:
        """All threads were given a priority: what was raised is raised again."""
        if self._raised:
            self._raised = self._set(NICE_READING)

    def _set(self, nice: int) -> bool:
        try:
            os.setpriority(os.PRIO_PROCESS, self._thread, nice)
        except PermissionError as error:
            log.debug("priority stays as it is: %s", error)
            return False
        return True


def _config(orders: Orders) -> "Config | None":
    """What names the endpoint, for a store that has one; to import the settings takes longer than all the rest."""
    if not orders.store_url.startswith("s3:"):
        return None
    from s3core.settings import Config, load_config

    return load_config(Path(orders.config)) if orders.config else Config()


def _failures() -> tuple[type[Exception], ...]:
    """What the daemon is told of."""
    from s3core.settings import ConfigError

    return BlockError, StoreError, ConfigError, OSError, ValueError


class Host:
    """One worker on this process's loop."""

    def __init__(self, orders: Orders, sock: socket.socket) -> None:
        self._orders = orders
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._link = SocketLink(self._loop, sock, self._closed)
        self._reading = ReadPriority()
        self._nice = NICE
        self._execution = ThreadExecution(THREADS, self._begin_thread)

    def _begin_thread(self) -> None:
        """A thread inherits the priority of the one that began it: the loop's, which a read may have raised just now."""
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        except OSError as error:
            log.debug("priority stays as it is: %s", error)

    def _closed(self) -> None:
        # The daemon is dead. Whatever is under way may finish or not: the log decides, and the next attach looks.
        os._exit(0)

    async def run(self) -> None:
        try:
            assembly = await assemble(self._orders, _config(self._orders), self._execution, self._link.send)
            worker = assembly.worker
            await worker.start()
        except _failures() as error:
            log.debug("attach failed", exc_info=True)
            self._link.send(link.Failed(type(error).__name__, str(error)))
            await asyncio.sleep(3600)  # the daemon reads the message and closes the link
            return

        def receive(message: link.ToWorker) -> None:
            if isinstance(message, link.Fetch) and message.awaited:
                self._reading.asked()
            worker.receive(message)

        self._link.on_message = receive
        gc.collect()
        gc.freeze()
        beside = [asyncio.create_task(self._steer(worker)), asyncio.create_task(self._beat(worker))]
        await worker.run()
        for task in beside:
            task.cancel()
        assembly.close()
        while self._link.unsent:
            await asyncio.sleep(0.01)

    async def _beat(self, worker: Worker) -> None:
        """Signs of life, for the daemon: whatever waits for the store leaves this loop turning, or the worker hangs."""
        while True:
            self._link.send(link.Alive(worker.progress))
            await asyncio.sleep(BEAT_S)

    async def _steer(self, worker: Worker) -> None:
        """Raise or lower the priority with the backlog."""
        while True:
            await asyncio.sleep(STEER_S)
            late = worker.lag_seconds() > LATE_INTERVALS * self._orders.commit_interval_s and not worker.saves_commits
            wanted = 0 if worker.urgent or worker.detaching or late else NICE
            if wanted != self._nice:
                self._nice = wanted
                _set_priority(wanted)
                self._reading.kept()
            self._reading.look(wanted)


async def _main(orders: Orders, sock: socket.socket) -> None:
    await Host(orders, sock).run()


def main() -> None:
    # Dies with the daemon even where the daemon is killed before the socket closes; a worker must never outlive the lock.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = Orders(**json.loads(sys.stdin.buffer.read()))
    configure_logging(orders.log_level, orders.log_format)
    logging.getLogger("s3core.retry").setLevel(logging.ERROR)  # `Persistence` tells of outages, once
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _set_priority(NICE)
    sock = socket.socket(fileno=int(sys.argv[1]))
    asyncio.run(_main(orders, sock))


if __name__ == "__main__":
    main()
