"""`pve-s3 serve`: the core of a node, until it is told to stop.

One rule: it keeps nothing that is not on disk, so it may be killed and started at any time. Mounts and active disks are
processes of their own and go on.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

from plugin.arguments import RootOption, pve_root
from plugin.configuration import ROOT_VARIABLE
from plugin.properties import FILES
from plugin.protocol import SOCKET_NAME
from plugin.service.bucket_side import look_after_bucket
from plugin.service.collecting import Collecting
from plugin.service.disks import DiskMethods
from plugin.service.files import Files, bring_snippets
from plugin.service.metrics import MetricsPage, PveCollector
from plugin.service.mounts import Mounts
from plugin.service.server import Server
from plugin.service.storages import Attached, Storages
from s3core.console import program_version
from s3core.endpoint_commands import ConfigOption
from s3core.logs import configure_logging
from s3core.service_manager import ServiceManager
from s3core.settings import PATH_VARIABLE, Config, load_config

log = logging.getLogger(__name__)

SLICE_S = 0.2
STATUS_S = 10.0


class Core:
    """Everything wired."""

    def __init__(
        self,
        load: Callable[[], Config],
        root: Path,
        *,
        mounts: Mounts | None = None,
        storages: Storages | None = None,
    ) -> None:
        """Nothing is begun. ConfigError."""
        config = load()
        self.settings = config.pve
        run_dir = Path(self.settings.run_dir)
        self.mounts = mounts or Mounts(run_dir)
        self.storages = storages or Storages(load, root, node=self.settings.node, after=_after)
        self._disks = DiskMethods(self.storages, root)
        self._collecting = Collecting(self.storages)
        files = Files(
            self.storages,
            self.mounts,
            version=program_version(),
            pid=os.getpid(),
            disk_numbers=self._disks.numbers,
        )
        self.server = Server(run_dir / SOCKET_NAME, files.table() | self._disks.table())
        self._page: MetricsPage | None = None

    def start(self) -> None:
        """Storages are read, then calls are taken. ConfigError where another core serves, or an address cannot be had."""
        self.storages.start()
        self.server.start()
        self._disks.start()
        self._collecting.start()
        if self.settings.metrics_listen:
            self._page = MetricsPage(
                self.settings.metrics_listen, PveCollector(self.server, self.storages, self._mounted)
            )
            log.info("metrics at %s", self._page.url)

    @property
    def metrics_url(self) -> str:
        return self._page.url if self._page else ""

    def stop(self) -> None:
        self.server.close()
        self._disks.stop()
        self._collecting.stop()
        if self._page is not None:
            self._page.close()
        self.storages.stop()

    def text(self) -> str:
        """One line for `systemctl status`."""
        known = self.storages.all()
        active = sum(one.keeper.status().active for one in known)
        troubled = len(self.storages.troubles())
        return f"{active} of {len(known)} storages active" + (f", {troubled} unusable" if troubled else "")

    def _mounted(self, attached: Attached) -> bool | None:
        return self.mounts.state(attached.storage)[0] if attached.storage.type == FILES else None


def serve(root: RootOption = None, config_path: ConfigOption = None) -> None:
    """Answer Proxmox VE: status, listings, attributes, deletes, local copies, mounts of all storages of this node."""
    chosen = pve_root(root)
    # What is started here reads the same configuration.
    os.environ[ROOT_VARIABLE] = str(chosen)
    if config_path is not None:
        os.environ[PATH_VARIABLE] = str(config_path)
    settings = load_config(config_path).pve
    configure_logging(settings.log_level, settings.log_format)
    stop = threading.Event()
    with ExitStack() as stack:
        core = Core(partial(load_config, config_path), chosen)
        for number in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, number, signal.signal(number, partial(_stopped, stop)))
        stack.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, partial(_poked, core)))
        core.start()
        stack.callback(core.stop)
        _live(core, stop, ServiceManager(os.environ))
    log.info("stopped")


def _live(core: Core, stop: threading.Event, manager: ServiceManager) -> None:
    manager.ready()
    log.info("serving at %s", core.server.path)
    told = beat = -STATUS_S
    # Not `stop.wait`: the signal's handler sets the event in this thread, which would hold the event's own lock.
    while not stop.is_set():
        now = time.monotonic()
        if now - told >= STATUS_S:
            told = now
            manager.status(core.text())
        if manager.watchdog_s and now - beat >= manager.watchdog_s / 3:
            beat = now
            manager.alive()
        time.sleep(SLICE_S)
    manager.stopping()


def _after(attached: Attached) -> None:
    if attached.storage.type == FILES:
        bring_snippets(attached)
        look_after_bucket(attached.place)


def _stopped(stop: threading.Event, number: int, frame: FrameType | None) -> None:
    stop.set()


def _poked(core: Core, number: int, frame: FrameType | None) -> None:
    # A handler must not take locks: the thread that it interrupts may hold them.
    threading.Thread(target=core.storages.poke, daemon=True).start()
