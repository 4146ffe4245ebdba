"""The daemon: configuration to volumes to front doors. The only place that builds the real thing out of its parts.

One thread runs sockets, SCSI, journal and cache of all its volumes; each volume has a worker process and a flush thread.
One volume that fails does not stop the others; when the last one has stopped, so does the daemon.
"""

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from blockdev.control import Answered, ControlServer, rebuilt_error
from blockdev.engine import link
from blockdev.engine.assembly import Orders
from blockdev.engine.attach import open_volume_file
from blockdev.engine.cache import ReadCache, open_cache
from blockdev.engine.front import Front
from blockdev.engine.misses import GUESSES_MAX
from blockdev.engine.process import SWITCH_INTERVAL_S
from blockdev.engine.socket_link import SocketLink
from blockdev.engine.state_directory import StateDirectory
from blockdev.engine.syncer import ThreadSyncer
from blockdev.errors import NotReady
from blockdev.events import events_for
from blockdev.iscsi.chap import Credentials
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.portal import Address, Portal
from blockdev.journal.file import keep_freed_memory
from blockdev.journal.journal import Journal, open_journal
from blockdev.keys import unlock
from blockdev.latency import Latency
from blockdev.memory_pressure import become_io_flusher
from blockdev.metrics import MetricsServer, Status
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.provisioning import Quota
from blockdev.segments import paths
from blockdev.segments.key_slot import Secret
from blockdev.segments.volume_file import VolumeFile
from blockdev.supervision import TURN_S, Supervision, told
from blockdev.target import BlockTarget
from blockdev.tcmu.handler import Handler
from blockdev.tcmu.names import device_config
from s3core.build import build_store, parse_store_url
from s3core.console import write_line
from s3core.credentials import read_secret, secret_path
from s3core.endpoint import Prices
from s3core.logs import configure_logging
from s3core.prefixed import sub_store
from s3core.service_manager import ServiceManager
from s3core.settings import Config, ConfigError, S3BlockSettings, VolumeSettings, settings_to_endpoint

log = logging.getLogger(__name__)

TICK_S = 0.05
STOP_PATIENCE_S = 60.0
"""An orderly stop goes on while the bucket takes something. When it took nothing for so long, the journal keeps what is left,
and the next start goes on."""

SCRAPE_PATIENCE_S = 5.0
"""A scrape fails when the front's thread has not told its numbers by then."""

MAP_PATIENCE_S = 10.0
"""How long the worker may take to sync its map at the end; without that the next start rebuilds it from the bucket."""


@dataclass(frozen=True, slots=True)
class ServedVolume:
    """A volume to serve. `settings` hold everything, defaults and the command line's overrides included."""

    name: str
    store_url: str
    settings: VolumeSettings
    state_dir: Path
    secret: Secret | None = None
    """What opens it, if it is encrypted."""
    data_key: bytes = field(default=b"", repr=False)
    """What `serve` found with it."""


class RunningVolume:
    """One attached volume: state directory, worker process, front."""

    def __init__(self, served: ServedVolume, config: Config, *, accept_loss: bool, host_is_off: bool) -> None:
        self.served = served
        self._host_is_off = host_is_off
        self._config = config
        self._accept_loss = accept_loss
        self._directory = StateDirectory(served.state_dir)
        self._lock = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._link: SocketLink | None = None
        self._journal: Journal | None = None
        self._cache: ReadCache | None = None
        self._syncer: ThreadSyncer | None = None
        self.front: Front | None = None
        self._closed = False
        self.stopped = asyncio.Event()
        self.failure: Exception | None = None
        self._detached = False
        self._detaching = False
        self._heard = time.monotonic()
        self._progress = 0
        self._control = ControlServer(served.state_dir, self._operate)
        self._epoch = 0
        self._began = time.monotonic()
        self.latency = Latency()
        self._prices = prices_of(config, served.store_url)
        self.nodes: Nodes | None = None
        """Of the portal that serves it, once there is one."""
        self.portals: tuple[str, ...] = ()
        """Where that portal listens, with the ports that were given to it."""
        self.handler: Handler | None = None
        """Of the kernel's target, where that is its door, once there is one."""
        self._events = events_for(config, served.store_url, served.name, tool="s3block serve")

    async def start(self, volume: VolumeFile) -> Front:
        """Lock, start the worker, wait until it has attached, recover the journal. Raises what the worker met."""
        served, settings = self.served, self.served.settings
        self._directory.prepare()
        self._lock = self._directory.lock()
        cache_bytes = settings.cache_bytes or 0
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[link.Ready] = loop.create_future()
        self._link = SocketLink(loop, ours, lambda: self._worker_gone(answer))

        def attached(message: Any) -> None:
            if isinstance(message, link.Happened):
                self._happened(message)
            elif answer.done():
                return
            if isinstance(message, link.Ready):
                answer.set_result(message)
            elif isinstance(message, link.Failed):
                answer.set_exception(rebuilt_error(message.kind, message.message))

        self._link.on_message = attached
        orders = Orders(
            config=str(self._config.path.resolve()) if self._config.path.exists() else "",
            store_url=served.store_url,
            name=served.name,
            state_dir=str(served.state_dir),
            journal_bytes=settings.journal_bytes or 0,
            objects_bytes=cache_bytes // 4,
            commit_bytes=settings.commit_bytes,
            commit_interval_s=settings.commit_interval_s,
            commits_per_hour_max=settings.commits_per_hour_max,
            accept_loss=self._accept_loss,
            flush=settings.flush,
            lease_s=settings.lease_s,
            processes=(os.getpid(),),
            outwait=not self._host_is_off,
            unfenced=settings.unfenced,
            log_level=self._config.s3block.log_level,
            log_format=self._config.s3block.log_format,
            cache_file=str(self._directory.cache_path / "cache"),
            data_key=served.data_key.hex(),
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "blockdev.engine.process", str(theirs.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(theirs.fileno(), self._lock),
        )
        theirs.close()
        assert self._process.stdin is not None
        self._process.stdin.write(orders.dumps())
        self._process.stdin.close()
        try:
            ready = await answer
            self.front = self._open_front(volume, ready, cache_bytes - cache_bytes // 4)
            self._epoch = ready.epoch
            await self._control.start()
        except BaseException:
            self.close()
            raise
        return self.front

    def _open_front(self, volume: VolumeFile, ready: link.Ready, cache_bytes: int) -> Front:
        assert self._link is not None
        self._journal = open_journal(self._directory.journal_path)
        self._cache = open_cache(
            self._directory.cache_path,
            identity=uuid4(),
            volume=volume.identity,
            frame_bytes=volume.geometry.frame_bytes,
            size_bytes=cache_bytes,
        )
        loop = asyncio.get_running_loop()
        post = loop.call_soon_threadsafe
        self._syncer = ThreadSyncer(self._journal, post)
        front = Front(
            name=volume.name,
            identity=volume.identity,
            geometry=volume.geometry,
            journal=self._journal,
            cache=self._cache,
            link=self._link,
            syncer=self._syncer,
            post=post,
            soon=loop.call_soon,
            read_only=self.served.settings.read_only,
            flush_to=self.served.settings.flush,
            requests_ahead_max=requests_ahead(self._config, self.served.store_url),
        )
        front.start(ready)
        front.on_stopped = self._front_stopped
        front.on_happened = self._happened
        self._heard = time.monotonic()
        self._link.on_message = self._take
        return front

    def _take(self, message: Any) -> None:
        if isinstance(message, link.Alive):
            self._heard = time.monotonic()
            self._progress = message.progress
        else:
            assert self.front is not None
            self.front.on_message(message)

    def _happened(self, message: link.Happened) -> None:
        if self._events is not None:
            self._events(message.event, message.detail)

    def _front_stopped(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.stopped.set()

    def _worker_gone(self, answer: "asyncio.Future[link.Ready]") -> None:
        if self._closed:
            return
        gone = NotReady(f"the worker of volume {self.served.name} ended unexpectedly", hint="see its last log lines")
        if not answer.done():
            answer.set_exception(gone)
        elif self.front is not None:
            self.front.stop(gone)

    async def detach(self) -> Exception | None:
        """Carry everything to the bucket and leave it clean; the error if that cannot be done in time."""
        if self.front is None or self.stopped.is_set():
            return self.failure
        self._detaching = True
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def finished(error: Exception | None) -> None:
            self._detached = error is None
            if not done.done():
                done.set_result(error)

        self.front.detach(finished)
        moved, since = self._moved, time.monotonic()
        while not done.done():
            await asyncio.wait({done}, timeout=TURN_S)
            if self._moved != moved:
                moved, since = self._moved, time.monotonic()
            elif not done.done() and time.monotonic() - since > STOP_PATIENCE_S:
                return NotReady(
                    f"volume {self.served.name}: the bucket took nothing more for {STOP_PATIENCE_S:.0f} s",
                    hint=f"the rest is safe in {self._directory.journal_path}; serve the volume on this host again",
                )
        return done.result()

    @property
    def _moved(self) -> tuple[int, int]:
        return self._progress, self.front.durable if self.front is not None else 0

    @property
    def worker_silent_s(self) -> float:
        """How long a worker that should be at work has not been heard of. One that ends, ends its volume at once."""
        at_work = self.front is not None and not self.stopped.is_set() and not self._closed
        return time.monotonic() - self._heard if at_work else 0.0

    @property
    def behind_bytes(self) -> float:
        """What was written and the bucket does not have."""
        return self.front.snapshot()["rpo_bytes"] if self.front is not None else 0

    @property
    def store_is_away(self) -> bool:
        return self.front is not None and not self.front.worker_counters.get("store_reachable", 1.0)

    # --- for people ----------------------------------------------------------------------------------------------

    def _operate(self, name: str, arguments: dict[str, Any], answered: Answered) -> None:
        """What the control socket is asked for. Raises BlockError."""
        if name == "status":
            answered(self.status())
            return
        if self.front is None:
            raise NotReady(f"volume {self.served.name} is still attaching")
        self.front.operate(name, arguments, answered)

    @property
    def state(self) -> str:
        """attaching, ready, stopping (carrying the rest to the bucket) or stopped."""
        if self.front is None:
            return "attaching"
        if self.stopped.is_set() or self._closed:
            return "stopped"
        return "stopping" if self._detaching else "ready"

    def status(self) -> dict[str, Any]:
        """What is to be told of the volume now; numbers of `front` and `worker` count from the attachment on."""
        served, front = self.served, self.front
        settings = served.settings
        sessions = self.nodes.sessions_of(str(settings.iqn)) if self.nodes is not None else []
        told: dict[str, Any] = {
            "name": served.name,
            "url": f"{served.store_url}/{served.name}",
            "state": self.state,
            "failure": str(self.failure or ""),
            "pid": os.getpid(),
            "uptime_seconds": time.monotonic() - self._began,
            "flush": settings.flush,
            "read_only": settings.read_only,
            "door": settings.door,
            "quota_bytes": settings.quota_bytes,
            "iqn": str(settings.iqn),
            "lun": settings.lun,
            "portals": list(self.portals),
            "epoch": self._epoch,
            "lease_seconds": settings.lease_s,
            "journal_bytes": settings.journal_bytes or 0,
            "cache_bytes": settings.cache_bytes or 0,
            "sessions": [{"initiator": session.identity.initiator} for session in sessions],
            "latency": self.latency.snapshot(),
            "prices": asdict(self._prices),
        }
        # Where the directory is gone under the daemon, everything else is still told, and this is not.
        with contextlib.suppress(OSError):
            told["state_free_bytes"] = shutil.disk_usage(served.state_dir).free
        if self.handler is not None:
            told["lio"] = self.handler.status(served.name)
        if self._events is not None:
            told["ledger"] = {"recorded": self._events.recorded, "lost": self._events.lost}
        if front is not None:
            told |= {
                "identity": str(front.identity),
                "size_bytes": front.sector_count * front.sector_bytes,
                "sector_bytes": front.sector_bytes,
                "allocated_bytes": front.allocated_bytes,
                "commit_sequence": front.sequence,
                "front": front.snapshot(),
                "worker": dict(front.worker_counters),
            }
        return told

    def close(self) -> None:
        """End the worker and give back files. Idempotent."""
        self._closed = True
        self._control.close()
        if self._syncer is not None:
            self._syncer.close()
        if self._process is not None:
            # A worker that detached closes its map and ends; any other has nothing of its own to lose: what counts is
            # in the journal and the log.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(MAP_PATIENCE_S if self._detached else 0)
            self._process.kill()
            self._process.wait()
        if self._link is not None:
            self._link.close()
        for part in (self._cache, self._journal):
            if part is not None:
                part.close()
        self._cache = self._journal = self._syncer = self._process = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._events is not None:
            self._events.close()


def _credentials(settings: VolumeSettings | S3BlockSettings, prefix: str) -> Credentials | None:
    """Of the settings that begin with `prefix`; None where they ask for no CHAP."""

    def setting(name: str) -> str:
        return str(getattr(settings, f"{prefix}_{name}"))

    def secret(name: str) -> bytes:
        return read_secret(secret_path(setting(name), os.environ)).encode()

    if not setting("user"):
        return None
    if not setting("mutual_user"):
        return Credentials(setting("user"), secret("secret_file"))
    return Credentials(setting("user"), secret("secret_file"), setting("mutual_user"), secret("mutual_secret_file"))


def _quota(settings: VolumeSettings) -> Quota | None:
    return Quota(settings.quota_bytes, settings.quota_warning) if settings.quota_bytes else None


def prices_of(config: Config, store_url: str) -> Prices:
    """What requests and bytes cost at the store; nothing where nobody charges."""
    place = parse_store_url(store_url)
    settings = config.endpoints.get(place.name) if place.scheme == "s3" else None
    return settings_to_endpoint(place.name, settings, path=config.path).prices if settings is not None else Prices()


def requests_ahead(config: Config, store_url: str) -> int:
    """Requests at once for what nobody waits for yet: half of what the store may be asked, if that is less than usual."""
    place = parse_store_url(store_url)
    settings = config.endpoints.get(place.name) if place.scheme == "s3" else None
    return min(GUESSES_MAX, max(1, settings.concurrency // 2)) if settings is not None else GUESSES_MAX


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return Address(host.strip("[]"), int(port))


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    return tuple(map(_address, texts))


class Daemon:
    def __init__(
        self,
        config: Config,
        volumes: Sequence[ServedVolume],
        *,
        accept_loss: bool,
        host_is_off: bool = False,
        supervision: Supervision | None = None,
    ) -> None:
        """`supervision` has begun, where there is a service manager to tell."""
        self._config = config
        self._supervision = supervision or Supervision(ServiceManager({}), [served.name for served in volumes])
        self._running = [
            RunningVolume(served, config, accept_loss=accept_loss, host_is_off=host_is_off) for served in volumes
        ]
        self._portals: list[Portal] = []
        self._handler: Handler | None = None
        self._metrics: MetricsServer | None = None
        self._stopping = asyncio.Event()
        self._bug: Exception | None = None

    async def run(self, files: Sequence[VolumeFile]) -> None:
        """Serve until SIGTERM or SIGINT, or until every volume has failed (then the first failure is raised)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.set_exception_handler(self._unexpected)
        ticker: asyncio.Task[None] | None = None
        try:
            await self._try_doors()
            await self._open_metrics()
            if not await self._attach(files):
                return
            await self._open_portals()
            await self._open_handler()
            sys.stdout.flush()
            gc.collect()
            gc.freeze()
            ticker = asyncio.create_task(self._tick())
            self._supervision.serving()
            await self._until_stopped()
        finally:
            if ticker is not None:
                ticker.cancel()
            self._supervision.end()
            await self._close_doors()
            if self._metrics is not None:
                await asyncio.to_thread(self._metrics.close)
            for running in self._running:
                running.close()

    async def _open_metrics(self) -> None:
        """Raises Refused. The server has threads of its own: the front's thread only tells the numbers."""
        own = (running.served.settings.metrics_listen for running in self._running)
        listen = next((one for one in own if one is not None), self._config.s3block.metrics_listen)
        if not listen:
            return
        loop = asyncio.get_running_loop()

        async def told() -> list[Status]:
            return [running.status() for running in self._running]

        def statuses() -> list[Status]:
            return asyncio.run_coroutine_threadsafe(told(), loop).result(SCRAPE_PATIENCE_S)

        address = _address(listen)
        self._metrics = await asyncio.to_thread(MetricsServer, address.host, address.port, statuses)
        log.info("metrics at %s", self._metrics.url)

    async def _try_doors(self) -> None:
        """Raises PortalError for an address that cannot be listened on, NoTcmu where the kernel lacks its part, before a
        volume is attached and an epoch spent."""
        if self._behind("lio"):
            await Handler.check()
        listen: set[str] = set()
        for addresses, (advertise, _) in self._portal_groups().items():
            # The constructor says whether the two fit each other.
            Portal(Nodes(), listen=_addresses(addresses), advertise=_addresses(advertise))
            listen.update(addresses)
        await Portal(Nodes(), listen=_addresses(sorted(listen))).try_addresses()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised what nobody expected: stop rather than serve from a state nobody understands. The journal
        has everything that was acknowledged, and the next start goes on from it."""
        loop.default_exception_handler(context)
        error = context.get("exception")
        if isinstance(error, Exception) and self._bug is None:
            self._bug = error
            self._stopping.set()

    async def _attach(self, files: Sequence[VolumeFile]) -> bool:
        """False: a signal came first."""

        async def start_all() -> None:
            for running, volume in zip(self._running, files, strict=True):
                await running.start(volume)

        starting = asyncio.create_task(start_all())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        stopping.cancel()
        await starting
        return True

    def _portal_groups(self) -> dict[tuple[str, ...], tuple[tuple[str, ...], list[RunningVolume]]]:
        """Addresses to listen on -> those to advertise, and the volumes there. Raises ConfigError."""
        groups: dict[tuple[str, ...], tuple[tuple[str, ...], list[RunningVolume]]] = {}
        for running in self._behind("portal"):
            settings = running.served.settings
            listen, advertise = tuple(settings.listen or ()), tuple(settings.advertise or ())
            told, members = groups.setdefault(listen, (advertise, []))
            if told != advertise:
                raise ConfigError(
                    f"{members[0].served.name} and {running.served.name} listen on {', '.join(listen)}, but advertise "
                    f"{', '.join(told) or 'nothing else'} and {', '.join(advertise) or 'nothing else'}",
                    hint="give volumes of one portal the same `advertise`, or each its own `listen`",
                )
            members.append(running)
        return groups

    async def _open_portals(self) -> None:
        together: list[Nodes] = []
        for listen, (advertise, members) in self._portal_groups().items():
            nodes = Nodes(
                together=together,
                portal_groups=tuple(range(1, len(listen) + 1)),
                discovery_credentials=_credentials(self._config.s3block, "discovery_chap"),
            )
            together.append(nodes)
            targets: dict[str, dict[int, RunningVolume]] = {}
            for running in members:
                settings = running.served.settings
                units = targets.setdefault(str(settings.iqn), {})
                if settings.lun in units:
                    raise ConfigError(
                        f"two volumes want lun {settings.lun} of {settings.iqn}", hint="give one another lun"
                    )
                units[settings.lun] = running
                running.nodes = nodes
            for iqn, units in targets.items():
                settings = next(iter(units.values())).served.settings
                fronts: dict[int, BlockTarget] = {lun: r.front for lun, r in units.items() if r.front is not None}
                nodes.serve(
                    iqn,
                    fronts,
                    latencies={lun: r.latency for lun, r in units.items()},
                    quotas={lun: _quota(r.served.settings) for lun, r in units.items()},
                    credentials=_credentials(settings, "chap"),
                    initiators=frozenset(settings.initiators) if settings.initiators else None,
                    later=asyncio.get_running_loop().call_later,
                )
            portal = Portal(nodes, listen=_addresses(listen), advertise=_addresses(advertise))
            await portal.start()
            self._portals.append(portal)
            for running in members:
                running.portals = tuple(map(str, portal.addresses))
            for iqn, units in targets.items():
                for lun, running in units.items():
                    for address in portal.addresses:
                        write_line(f"serving {running.served.name} at iscsi://{address}/{iqn}/{lun}")

    async def _open_handler(self) -> None:
        """The kernel's target, for the volumes whose door it is. Raises NoTcmu."""
        units: dict[str, LogicalUnit] = {}
        members = self._behind("lio")
        for running in members:
            assert running.front is not None
            settings = running.served.settings
            units[running.served.name] = LogicalUnit(
                running.front,
                lun=settings.lun,
                latency=running.latency,
                later=asyncio.get_running_loop().call_later,
                keeps_reservations=False,
                quota=_quota(settings),
            )
        if not units:
            return
        self._handler = handler = Handler(units)
        await handler.start()
        for running in members:
            running.handler = handler
            write_line(f"serving {running.served.name} behind LIO as {device_config(running.served.name)}")

    def _behind(self, door: str) -> list[RunningVolume]:
        return [running for running in self._running if running.served.settings.door == door]

    async def _close_doors(self) -> None:
        portals, self._portals = self._portals, []
        for portal in portals:
            await portal.stop()
        handler, self._handler = self._handler, None
        if handler is not None:
            await handler.stop()

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        tell_at = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            devices = self._handler.device_count if self._handler is not None else 0
            alone = sum(portal.connection_count for portal in self._portals) + devices <= 1
            now = loop.time()
            for running in self._running:
                if running.front is not None:
                    running.front.inline_flush = alone
                    running.front.tick(now)
            if now >= tell_at:
                tell_at = now + TURN_S
                self._tell()

    def _tell(self) -> None:
        behind = sum(running.behind_bytes for running in self._running)
        if self._stopping.is_set():
            self._supervision.stop_goes_on(f"stopping: {behind / 1024**2:,.1f} MiB are still to be put into the bucket")
            return
        names = [running.served.name for running in self._running if not running.stopped.is_set()]
        count = sum(portal.connection_count for portal in self._portals)
        if self._handler is not None:
            count += self._handler.device_count
        line = told(names, count, behind, store_is_away=any(running.store_is_away for running in self._running))
        self._supervision.turn(line, {r.served.name: r.worker_silent_s for r in self._running})

    async def _all_failed(self) -> None:
        for running in self._running:
            await running.stopped.wait()

    async def _until_stopped(self) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        everything = asyncio.create_task(self._all_failed())
        await asyncio.wait({stopping, everything}, return_when=asyncio.FIRST_COMPLETED)
        if not self._stopping.is_set():
            stopping.cancel()
            raise next(running.failure for running in self._running if running.failure is not None)
        everything.cancel()
        self._supervision.stopping()
        if self._bug is not None:
            raise self._bug
        await self._close_doors()
        problems = await asyncio.gather(*(running.detach() for running in self._running))
        for running, problem in zip(self._running, problems, strict=True):
            if problem is None:
                log.info("volume %s: detached, the bucket has everything", running.served.name)
            else:
                log.error("volume %s: not detached: %s", running.served.name, problem)
        for problem in problems:
            if problem is not None:
                raise problem


def serve(config: Config, volumes: Sequence[ServedVolume], *, accept_loss: bool, host_is_off: bool = False) -> None:
    """Serve the volumes until SIGTERM or SIGINT. Writes one line per volume and portal, or volume behind LIO, to standard
    output when it listens. Raises what made a volume fail to attach; then nothing is served."""
    configure_logging(config.s3block.log_level, config.s3block.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keep_freed_memory()
    become_io_flusher()  # before there are threads and workers, which inherit it
    files = []
    unlocked = []
    supervision = Supervision(ServiceManager(os.environ), [served.name for served in volumes])
    supervision.begin()
    try:
        for served in volumes:
            store = build_store(served.store_url, config=config)
            try:
                own = sub_store(store, paths.volume_prefix(served.name))
                files.append(open_volume_file(own, served.name))
                unlocked.append(replace(served, data_key=unlock(own, files[-1], served.secret)))
            finally:
                store.close()

        async def main() -> None:
            await Daemon(
                config, unlocked, accept_loss=accept_loss, host_is_off=host_is_off, supervision=supervision
            ).run(files)

        asyncio.run(main())
    finally:
        supervision.end()
