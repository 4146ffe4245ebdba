"""The processes that mount files storages (`pve-s3 mount STORAGE`): started, found dead and started again, stopped.

One rule: nothing here touches a file below a mount: the kernel is asked (mountinfo), and the process's own socket. A process
that hangs is left alone: who has files open there may yet come through, and killing it is a person's decision.

Where systemd runs, each process is the unit bucketworks-mount@STORAGE.service; elsewhere a child in a session of its own. Both
outlive this service.
"""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from plugin.configuration import Storage
from plugin.errors import Busy, DeadlineOver, NotServed
from plugin.mount.control import call, socket_path
from plugin.mount.process import is_ours, unmount

log = logging.getLogger(__name__)

UNIT = "bucketworks-mount@{}.service"
SYSTEMD = Path("/run/systemd/system")
ASK_S = 1.0
AGAIN_S = 5.0
"""Between two starts of one mount."""
START_WAIT_S = 4.0
LOOK_S = 0.05
SYSTEMCTL_S = 10.0

Runner = Callable[[Sequence[str]], None]


class Mounts:
    """`command` starts a process where systemd does not run; the storage's id is put behind it. `run_dir` has the sockets."""

    def __init__(
        self,
        run_dir: Path,
        *,
        command: Sequence[str] = (sys.executable, "-c", "from plugin.cli import main; main()", "mount"),
        systemd: bool | None = None,
        systemctl: Runner | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._command = tuple(command)
        self._systemd = SYSTEMD.is_dir() if systemd is None else systemd
        self._systemctl = systemctl or _systemctl
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def state(self, storage: Storage) -> tuple[bool, str]:
        """Whether it is mounted by a living process, and if not why not, in a line. Within ASK_S."""
        mounted = is_ours(Path(storage.path))
        try:
            told = call(socket_path(self._run_dir, storage.id), "status", timeout_s=ASK_S)
        except NotServed as error:
            if isinstance(error.__cause__, TimeoutError):
                return mounted, "the mount's process does not answer"
            return False, "the mount's process does not run"
        if told.get("stopping"):
            return mounted, "the mount is being taken away"
        if told.get("settings", storage.digest) != storage.digest or told.get("retiring"):
            files = len(told.get("open", []))
            return False, f"its settings have changed, and {files} files are open under the old ones"
        return mounted, "" if mounted else "the mount's process has not mounted it yet"

    def activate(self, storage: Storage, deadline: float) -> tuple[bool, str]:
        """Have it mounted: at once where it is, else a process is started, and waited for a moment. Whether it is, and why not.
        Never waits for a process that hangs, nor for a store."""
        mounted, reason = self.state(storage)
        if mounted or reason.endswith(("does not answer", "taken away", "yet")):
            return mounted, reason
        if reason.startswith("its settings"):
            # A mount that goes on with an old key or address would fill another bucket than the one that is listed.
            log.warning("storage %s: %s; nothing new is opened there", storage.id, reason)
            try:
                told = call(socket_path(self._run_dir, storage.id), "retire", timeout_s=ASK_S)
            except NotServed as error:
                return False, f"the mount's settings have changed, and it cannot be told: {error}"
            if not told.get("stopping"):
                return False, reason
            until = min(deadline - 0.2, time.monotonic() + START_WAIT_S)
            while is_ours(Path(storage.path)) and time.monotonic() < until:
                time.sleep(LOOK_S)
        self._start(storage)
        until = min(deadline - 0.2, time.monotonic() + START_WAIT_S)
        while time.monotonic() < until:
            mounted, reason = self.state(storage)
            if mounted:
                return True, ""
            child = self._children.get(storage.id)
            if child is not None and child.poll() is not None:
                return False, f"the mount ended with exit code {child.returncode}; its log tells why"
            time.sleep(LOOK_S)
        return False, reason

    def deactivate(self, storage: Storage, deadline: float) -> None:
        """Have it taken away. Busy where files are open there."""
        socket = socket_path(self._run_dir, storage.id)
        try:
            told = call(socket, "stop_idle", timeout_s=ASK_S)
        except NotServed as error:
            if isinstance(error.__cause__, TimeoutError):
                raise Busy(f"the mount of {storage.id} does not answer", hint="see its log") from error
            if is_ours(Path(storage.path)):
                unmount(Path(storage.path))  # a process that was killed left it, and nobody will take it away
            return
        if not told.get("stopping"):
            files = call(socket, "status", timeout_s=ASK_S).get("open", [])
            raise Busy(f"{len(files)} files are open below {storage.path}", hint="`pve-s3 mounts` tells which")
        until = min(deadline - 0.2, time.monotonic() + 15.0)
        while is_ours(Path(storage.path)):
            if time.monotonic() >= until:
                raise DeadlineOver(f"{storage.path} is still mounted")
            time.sleep(LOOK_S)
        self._reap()

    def _start(self, storage: Storage) -> None:
        """Once in AGAIN_S."""
        with self._lock:
            now = time.monotonic()
            if now - self._started.get(storage.id, -AGAIN_S) < AGAIN_S:
                return
            self._started[storage.id] = now
            self._reap()
            log.info("storage %s: starting its mount at %s", storage.id, storage.path)
            if self._systemd:
                self._systemctl(("start", "--no-block", UNIT.format(storage.id)))
                return
            child = self._children.get(storage.id)
            if child is not None and child.poll() is None:
                return  # it is about to mount, or to end
            self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            with (self._run_dir / f"mount-{storage.id}.log").open("ab") as output:
                self._children[storage.id] = subprocess.Popen(
                    [*self._command, storage.id],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )

    def _reap(self) -> None:
        for id, child in list(self._children.items()):
            if child.poll() is not None:
                log.info("storage %s: its mount ended with exit code %d", id, child.returncode)
                del self._children[id]


def _systemctl(arguments: Sequence[str]) -> None:
    """OSError with what systemctl said."""
    told = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False, env=_environment()
    )
    if told.returncode:
        raise OSError(errno.EIO, f"systemctl {' '.join(arguments)}: {told.stderr.strip() or told.returncode}")


def _environment() -> dict[str, str]:
    return os.environ | {"LC_ALL": "C"}
