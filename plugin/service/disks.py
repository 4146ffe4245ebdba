"""The disks' methods (`plugin.disks.methods`), put into the core's table.

One rule: the core lends its threads, its configuration and its deadlines; what a disk is, it does not know.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from plugin.configuration import Storage
from plugin.disks import methods
from plugin.errors import PluginError
from plugin.properties import DISKS
from plugin.service.keeper import Status
from plugin.service.server import Call, Result, Served
from plugin.service.storages import Storages
from s3core.credentials import CredentialsError
from s3core.errors import StoreError
from s3core.settings import Config, ConfigError

log = logging.getLogger(__name__)

NUMBERS_AGE_S = 10.0
SWEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Context:
    """What `plugin.disks.methods` wants of a call."""

    storage: Storage
    config: Config
    root: Path
    deadline: float | None


class DiskMethods:
    """For `Server` and `Files`. Threads are safe."""

    def __init__(self, storages: Storages, root: Path) -> None:
        self._storages = storages
        self._root = root
        self._lock = threading.Lock()
        self._numbers: dict[str, tuple[float, Result]] = {}
        self._stop = threading.Event()

    def table(self) -> dict[str, Served]:
        return {name: Served(self._handler(method)) for name, method in methods.METHODS.items()}

    def start(self) -> None:
        """Go on with deletions that somebody began, now and each SWEEP_S."""
        threading.Thread(target=self._sweep_for_ever, name="sweep", daemon=True).start()

    def stop(self) -> None:
        """Nothing new is begun. Does not wait."""
        self._stop.set()

    def numbers(self, storage: Storage, told: Status) -> Status:
        """`told` with the sizes of the disks, at most NUMBERS_AGE_S old; asks no store."""
        with self._lock:
            at, found = self._numbers.get(storage.id, (-math.inf, {}))
            if time.monotonic() - at > NUMBERS_AGE_S:
                found = methods.status(Context(storage, self._storages.config, self._root, None))
                self._numbers[storage.id] = time.monotonic(), found
        return replace(told, total=found["total"], avail=found["avail"], used=found["used"])

    def _handler(self, method: methods.Method) -> Callable[[Call], Result]:
        def carry_out(call: Call) -> Result:
            storage = self._storages.named(call.storage).storage
            deadline = None if math.isinf(call.deadline) else call.deadline
            return method(Context(storage, self._storages.config, self._root, deadline), call.args)

        return carry_out

    def _sweep_for_ever(self) -> None:
        while not self._stop.is_set():
            for attached in self._storages.all():
                if attached.storage.type == DISKS and not attached.storage.disabled:
                    self._sweep(attached.storage)
            self._stop.wait(SWEEP_S)

    def _sweep(self, storage: Storage) -> None:
        try:
            for volume in methods.sweep(storage, self._storages.config, self._root):
                log.info("storage %s: volume %s is deleted", storage.id, volume)
        except (PluginError, StoreError, ConfigError, CredentialsError, OSError) as error:
            log.warning("storage %s: deletions wait: %s", storage.id, error)
        except Exception:
            log.exception("storage %s: deletions wait for an error of ours", storage.id)
