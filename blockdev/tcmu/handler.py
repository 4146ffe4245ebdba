"""The rim of the TCMU door: sysfs, UIO files, the shared memory, the netlink socket; and which device is which volume's.

One rule: whatever happens to a device, its writer never hangs and the others go on. Every event about a device of ours is
answered, a failure with its errno; at the start all that may still wait for a dead handler is answered too.

    a device comes       netlink ADDED, or it is there when we start: open, map, serve, answer
    a device goes        REMOVED, or its UIO file fails: let go of it, answer
    we stop in order     what was taken is answered, then the files are closed; commands that come wait in the ring for the
                         next handler, at most the device's `cmd_time_out`
    we are killed        the next start finds entries in the ring that no longer say which commands are open, and has the kernel
                         reset it: those commands end with BUSY, and initiators send them again

Everything runs on the loop that `start` is called on. Files under /sys and the socket are small and local: they are read and
written in place.
"""

import asyncio
import errno
import logging
import mmap
import os
import socket
import subprocess
import time
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockdev.errors import NotReady
from blockdev.scsi.device import LogicalUnit
from blockdev.tcmu import netlink
from blockdev.tcmu.device import Device
from blockdev.tcmu.names import device_config, volume_of
from blockdev.tcmu.netlink import Command, Event
from blockdev.tcmu.ring import Ring, RingBroken

log = logging.getLogger(__name__)

UIO_CLASS = Path("/sys/class/uio")
UIO_FILES = Path("/dev")
CONFIG_CORE = Path("/sys/kernel/config/target/core")
MODULE = "target_core_user"

NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
RECEIVE_BYTES = 64 * 1024
REPLY_PATIENCE_S = 5.0
BUSY_PATIENCE_S = 5.0
"""A UIO file has one user: the last one may still be on its way out."""
BUSY_RETRY_S = 0.1
STRANGER_PATIENCE_S = 3.0
"""A device of our kind for a volume we do not serve is another process's to answer; if nobody did by then, we refuse it."""


class NoTcmu(NotReady):
    """This kernel has no user space backstore to offer, or not to us. The hint says what to do."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a device is found: `uio` is its UIO file's name, `hba` and `name` those of its configfs directory."""

    uio: str
    hba: str
    name: str
    volume: str

    @property
    def configfs(self) -> Path:
        return CONFIG_CORE / f"user_{self.hba}" / self.name


def _place(uio: str, uio_name: str) -> _Place | None:
    volume = volume_of(uio_name)
    if volume is None:
        return None
    _, hba, name, _ = uio_name.split("/", 3)
    return _Place(uio, hba, name, volume)


def devices_there() -> Iterator[_Place]:
    """The devices of our kind that the kernel has now, whoever serves them."""
    if not UIO_CLASS.is_dir():
        return
    for entry in sorted(UIO_CLASS.iterdir()):
        try:
            found = _place(entry.name, (entry / "name").read_text(encoding="utf-8", errors="surrogateescape"))
        except OSError as error:
            log.debug("%s went away: %s", entry, error)
            continue
        if found is not None:
            yield found


class _Serving:
    """One device that is open. `problem` is called when it cannot go on."""

    def __init__(self, handler: "Handler", place: _Place, logical: LogicalUnit) -> None:
        self.place = place
        self._loop = handler.loop
        self._handler = handler
        self.file = os.open(UIO_FILES / place.uio, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = int((UIO_CLASS / place.uio / "maps" / "map0" / "size").read_text(), 16)
            self._map = mmap.mmap(self.file, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            ring = Ring(memoryview(self._map))
            if ring.pending:
                _reset(place)
                ring.reread()
            self.device = Device(
                ring,
                logical,
                kick=self._kick,
                later=self._loop.call_later,
                soon=self._loop.call_soon,
                clock=time.monotonic_ns,
            )
        except BaseException:
            os.close(self.file)
            raise
        self._loop.add_reader(self.file, self._readable)
        self._loop.call_soon(self._run)

    def _kick(self) -> None:
        os.write(self.file, b"\0\0\0\0")

    def _readable(self) -> None:
        try:
            os.read(self.file, 4)  # before the ring is looked at: what comes after it makes the file readable again
        except BlockingIOError:
            return
        except OSError as error:
            log.info("volume %s: the device %s is gone: %s", self.place.volume, self.place.name, error.strerror)
            self._handler.lost(self)
            return
        self._run()

    def _run(self) -> None:
        try:
            self.device.run()
        except (RingBroken, OSError) as error:
            log.error("volume %s: device %s cannot be served: %s", self.place.volume, self.place.name, error)
            self._handler.lost(self)

    def close(self) -> None:
        self._loop.remove_reader(self.file)
        self.device.close()
        try:
            self._map.close()
        except BufferError:
            # Something still holds a view of it, such as a write that failed half-way: the memory goes with the last view.
            log.warning("volume %s: the shared memory of %s is still in use", self.place.volume, self.place.name)
        os.close(self.file)


def _reset(place: _Place) -> None:
    """Have the kernel end everything in the ring with BUSY. Nothing new gets in meanwhile. OSError."""
    log.info("volume %s: an earlier handler left commands in the ring of %s: reset", place.volume, place.name)
    actions = place.configfs / "action"
    for action, value in (("block_dev", "1"), ("reset_ring", "1"), ("block_dev", "0")):
        (actions / action).write_text(value)


class Handler:
    """Serves every device of `volumes` (by volume name) from `start` until `stop`."""

    def __init__(self, volumes: Mapping[str, LogicalUnit]) -> None:
        self._volumes = dict(volumes)
        self.loop = asyncio.get_running_loop()
        self._serving: dict[str, _Serving] = {}
        """By volume."""
        self._problems: dict[str, str] = {}
        """The last thing that went wrong with a volume's device."""
        self._socket: socket.socket | None = None
        self._family = netlink.Family(0, 0)
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, take over what is there, and let everybody go on who waits for it. Raises NoTcmu."""
        self._socket = await self._listen()
        self.loop.add_reader(self._socket, self._receive)
        for place in devices_there():
            if place.volume in self._volumes:
                error = await self._open(place)
                self._answer_waiting(place, Command.ADDED_DONE, error)

    @classmethod
    async def check(cls) -> None:
        """Raises NoTcmu where `start` would, as far as that can be known before."""
        (await cls({})._connect()).close()

    async def stop(self) -> None:
        """Let go of every device, after what its commands staged has been answered. Commands that wait for the bucket are left
        to the next handler."""
        if self._socket is not None:
            self.loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for task in self._tasks:
            task.cancel()
        for serving in list(self._serving.values()):
            serving.close()
        self._serving.clear()

    def status(self, volume: str) -> dict[str, object]:
        """What people are told of the volume's device: `device` (its name in configfs), `uio`, counters; empty strings and no
        counters where there is none; `problem` in words."""
        serving = self._serving.get(volume)
        told: dict[str, object] = {"problem": self._problems.get(volume, ""), "device": "", "uio": ""}
        if serving is not None:
            told |= {"device": f"user_{serving.place.hba}/{serving.place.name}", "uio": serving.place.uio}
            told |= serving.device.snapshot()
        return told

    @property
    def device_count(self) -> int:
        return len(self._serving)

    # ---- devices

    async def _open(self, place: _Place) -> int:
        """Serve it: 0, or a negative errno."""
        there = self._serving.get(place.volume)
        if there is not None:
            if there.place == place:
                return 0
            self._problem(place, f"{there.place.name} is the device of this volume already; {place.name} is refused")
            return -errno.EBUSY
        patience = self.loop.time() + BUSY_PATIENCE_S
        while True:
            try:
                self._serving[place.volume] = _Serving(self, place, self._volumes[place.volume])
            except RingBroken as error:
                self._problem(place, str(error))
                return -errno.EIO
            except OSError as error:
                if error.errno == errno.EBUSY and self.loop.time() < patience:
                    await asyncio.sleep(BUSY_RETRY_S)
                    continue
                self._problem(place, f"cannot open {place.uio}: {error.strerror or error}")
                return -(error.errno or errno.EIO)
            break
        self._problems.pop(place.volume, None)
        log.info("volume %s: serves device user_%s/%s (%s)", place.volume, place.hba, place.name, place.uio)
        return 0

    def _problem(self, place: _Place, text: str) -> None:
        log.error("volume %s: %s", place.volume, text)
        self._problems[place.volume] = text

    def lost(self, serving: _Serving) -> None:
        """The device is gone, or of no use any more."""
        if self._serving.get(serving.place.volume) is serving:
            del self._serving[serving.place.volume]
            serving.close()

    # ---- netlink

    async def _listen(self) -> socket.socket:
        sock = await self._connect()
        try:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, self._family.group)
            self._ask(sock, netlink.set_features(self._family.number, self._next()))
        except (OSError, netlink.NetlinkError) as error:
            sock.close()
            hint = "run it as root" if isinstance(error, PermissionError) else ""
            raise NoTcmu(f"the kernel's user space backstore does not take a handler: {error}", hint=hint) from error
        sock.setblocking(False)
        return sock

    async def _connect(self) -> socket.socket:
        """A netlink socket, the family known, its module loaded."""
        cure = "serve the volume with --door portal"
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        except OSError as error:
            raise NoTcmu(f"this system has no generic netlink: {error.strerror}", hint=cure) from error
        try:
            sock.bind((0, 0))
            sock.settimeout(REPLY_PATIENCE_S)
            try:
                self._family = self._find_family(sock)
            except FileNotFoundError:
                await asyncio.to_thread(_load_module)
                self._family = self._find_family(sock)
        except FileNotFoundError as error:
            sock.close()
            raise NoTcmu(
                f"this kernel has no {MODULE}, the user space backstore of its target",
                hint=f"install the distribution's full kernel, run `modprobe {MODULE}` as root, or {cure}",
            ) from error
        except (OSError, netlink.NetlinkError) as error:
            sock.close()
            raise NoTcmu(f"the kernel's target cannot be asked: {error}", hint=cure) from error
        return sock

    def _find_family(self, sock: socket.socket) -> netlink.Family:
        found = self._ask(sock, netlink.find_family(self._next()))
        if found is None:
            raise netlink.NetlinkError(f"no answer about the family {netlink.FAMILY}")
        return netlink.decode_family(found)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _ask(self, sock: socket.socket, request: bytes) -> netlink.Message | None:
        """Send a request and wait for its acknowledgement; what came before that. Only before `start` listens. OSError with
        the kernel's errno."""
        sock.send(request)
        answer = None
        while True:
            for message in netlink.messages(sock.recv(RECEIVE_BYTES)):
                if message.sequence != self._sequence:
                    self._event(message)
                elif message.kind == netlink.NLMSG_ERROR:
                    number = netlink.error_number(message)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return answer
                else:
                    answer = message

    def _receive(self) -> None:
        assert self._socket is not None
        while self._socket is not None:
            try:
                datagram = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # ENOBUFS: events were lost. Looking at what there is makes up for it.
                log.warning("netlink: %s; looking at all devices again", error.strerror)
                self._begin(self._look_again())
                return
            try:
                for message in netlink.messages(datagram):
                    self._event(message)
            except netlink.NetlinkError as error:
                log.error("netlink: %s", error)

    def _event(self, message: netlink.Message) -> None:
        if message.kind == netlink.NLMSG_ERROR:
            number = netlink.error_number(message)
            if number:
                log.debug("netlink: an answer was too late or not wanted: %s", os.strerror(number))
            return
        event = netlink.decode_event(message) if message.kind == self._family.number else None
        if event is not None:
            place = _place(f"uio{event.minor}", event.uio_name)
            if place is not None:
                self._begin(self._handle(event, place))

    async def _handle(self, event: Event, place: _Place) -> None:
        status = 0
        if place.volume not in self._volumes:
            if event.command != Command.ADDED:
                return
            await asyncio.sleep(STRANGER_PATIENCE_S)
            status = -errno.ENODEV
        elif event.command == Command.ADDED:
            status = await self._open(place)
        elif event.command == Command.REMOVED:
            serving = self._serving.get(place.volume)
            if serving is not None and serving.place == place:
                self.lost(serving)
        elif event.config not in (None, device_config(place.volume)):
            # A device cannot become another volume's while it is served.
            status = -errno.EINVAL
        # A new size or write cache mode: the volume itself says what they are, so any value may stand there.
        self._reply(event.reply, event.device_id, status)

    def _reply(self, command: Command, device_id: int, status: int) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(netlink.done(self._family.number, self._next(), command, device_id, status))
        except OSError as error:
            log.error("netlink: %s for device %d cannot be sent: %s", command.name, device_id, error)

    def _answer_waiting(self, place: _Place, command: Command, status: int) -> None:
        """Somebody may have been waiting for a handler that died. Nobody is, mostly: then the kernel says ENODEV."""
        try:
            number = int((place.configfs / "statistics" / "scsi_dev" / "indx").read_text())
        except (OSError, ValueError) as error:
            log.debug("%s has no number: %s", place.configfs, error)
            return
        self._reply(command, number, status)

    async def _look_again(self) -> None:
        for place in devices_there():
            if place.volume in self._volumes:
                self._answer_waiting(place, Command.ADDED_DONE, await self._open(place))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("netlink: an event was not dealt with", exc_info=task.exception())


def _load_module() -> None:
    """modprobe, where there is one. Whether it helped shows afterwards."""
    try:
        done = subprocess.run(["modprobe", MODULE], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("modprobe %s: %s", MODULE, error)
        return
    if done.returncode:
        log.warning("modprobe %s: %s", MODULE, done.stderr.strip())
