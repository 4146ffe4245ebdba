"""The process of one mount: takes away what a dead predecessor left, mounts, serves, drains, unmounts.

One rule: it ends in order. After SIGTERM nothing new is opened, what is open has `drain_s` to end, then the mount point is
taken away; a writer that is cut off there gets an error, and nothing of its file is an object.

What `kill -9` leaves: a mount point that answers ENOTCONN until the next start takes it away; parts that no object names,
spool files and scratch directories, which the next start removes; the objects that were finished.
"""

import ctypes
import errno
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from plugin.mount import library
from plugin.mount.control import Control
from plugin.mount.filesystem import Filesystem
from s3core.errors import Unavailable
from s3core.service_manager import ServiceManager
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

DRAIN_S: Final = 300.0
READY_S: Final = 20.0
TICK_S: Final = 0.5
UPKEEP_S: Final = 600.0
MNT_DETACH: Final = 2
MOUNTS: Final = Path("/proc/self/mountinfo")
GUARDED: Final = Path("/mnt/pve")
"""Mount points below it are Proxmox VE's and ours, and kept empty."""
GET_FLAGS: Final = 0x80086601
SET_FLAGS: Final = 0x40086602
IMMUTABLE: Final = 0x10
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_IMMUTABLE_FL of linux/fs.h, on machines of 64 bits."""


@dataclass(frozen=True, slots=True)
class MountSettings:
    """`drain_s`: how long what is open is waited for when the process is asked to stop."""

    storage: str
    mountpoint: Path
    socket: Path
    version: str
    drain_s: float = DRAIN_S
    digest: str = ""
    """Of the storage as it was when this process read it (`Storage.digest`)."""


class MountProcess:
    """`run` once, in the main thread (it takes SIGTERM, SIGINT and SIGHUP)."""

    def __init__(
        self,
        filesystem: Filesystem,
        settings: MountSettings,
        *,
        environ: Mapping[str, str],
        upkeep: Callable[[], object] = lambda: None,
    ) -> None:
        self._filesystem = filesystem
        self._settings = settings
        self._manager = ServiceManager(environ)
        self._upkeep = upkeep
        self._stop = threading.Event()
        self._retiring = threading.Event()
        self._given_up = threading.Event()
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._started = time.time()

    def run(self) -> None:
        """Until it is told to stop or the mount is taken away by somebody else. ConfigError where it cannot be mounted."""
        library.check_device()
        library.load()
        clear_mountpoint(self._settings.mountpoint)
        if self._settings.mountpoint.parent == GUARDED:
            keep_empty(self._settings.mountpoint)
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, lambda *_: self._stop.set()))
            control = Control(
                self._settings.socket,
                {
                    "status": self.status,
                    "stop": self._asked,
                    "stop_idle": self._asked_if_idle,
                    "retire": self._retired,
                },
            )
            control.start()
            stack.callback(control.stop)
            thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
            thread.start()
            self._wait_ready()
            _read_ahead(self._settings.mountpoint)
            self._manager.ready()
            log.info("storage %s is mounted at %s", self._settings.storage, self._settings.mountpoint)
            self._live()
            self._manager.stopping()
            self._drain()
            self._filesystem.abort()
            unmount(self._settings.mountpoint)
            if self._given_up.is_set() and self._settings.mountpoint.parent == GUARDED:
                with suppress(OSError):  # of the directory nothing is needed any more
                    let_go(self._settings.mountpoint)
            thread.join(timeout=2.0)  # longer where files are still open: they end with the process
        if self._failure is not None and not self._stop.is_set():
            raise Unavailable(f"the mount of {self._settings.storage} ended by itself: {self._failure}")

    def status(self) -> dict[str, Any]:
        found = self._filesystem.open_files()
        return {
            "storage": self._settings.storage,
            "mountpoint": str(self._settings.mountpoint),
            "pid": os.getpid(),
            "version": self._settings.version,
            "since": self._started,
            "stopping": self._stop.is_set(),
            "retiring": self._retiring.is_set(),
            "settings": self._settings.digest,
            "idle": not found,
            "open": [asdict(one) for one in found],
        }

    def _asked(self) -> dict[str, Any]:
        """By a person, or because the storage goes. A signal is systemd's: the node goes down, or the process comes back."""
        self._given_up.set()
        self._stop.set()
        return {"stopping": True}

    def _asked_if_idle(self) -> dict[str, Any]:
        """Nothing may be opened between the look and the stop."""
        self._filesystem.drain()
        if self._filesystem.open_files():
            self._filesystem.resume()
            return {"stopping": False}
        return self._asked()

    def _retired(self) -> dict[str, Any]:
        """The storage's settings have changed: what is open goes on, nothing new is opened, and it ends when all is closed."""
        self._filesystem.drain()
        self._retiring.set()
        return {"stopping": not self._filesystem.open_files()}

    def _serve(self) -> None:
        try:
            library.serve(self._filesystem, self._settings.mountpoint, self._settings.storage, ready=self._ready.set)
        except (RuntimeError, OSError) as error:
            self._failure = error
        finally:
            self._ended.set()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self._ready.wait(0.05):
            if self._ended.is_set() or time.monotonic() > deadline:
                raise ConfigError(
                    f"storage {self._settings.storage} cannot be mounted at {self._settings.mountpoint}"
                    f" ({self._failure or 'the kernel does not answer'})",
                    hint="is it root who mounts, and is something else mounted there? see the lines above",
                )

    def _live(self) -> None:
        next_upkeep = time.monotonic() + UPKEEP_S
        beat = self._manager.watchdog_s / 3 if self._manager.watchdog_s else 0.0
        next_beat = time.monotonic()
        while not self._stop.wait(TICK_S) and not self._ended.is_set():
            if self._retiring.is_set() and not self._filesystem.open_files():
                self._stop.set()
            now = time.monotonic()
            if beat and now >= next_beat:
                self._manager.alive()
                next_beat = now + beat
            if now >= next_upkeep:
                next_upkeep = now + UPKEEP_S
                self._filesystem.forget_abandoned()
                threading.Thread(target=self._upkeep, name="upkeep", daemon=True).start()

    def _drain(self) -> None:
        self._filesystem.drain()
        deadline = time.monotonic() + self._settings.drain_s
        told = 0
        while not self._ended.is_set():
            found = self._filesystem.open_files()
            if not found:
                return
            if time.monotonic() >= deadline:
                names = ", ".join(sorted({one.path for one in found})[:5])
                log.error(
                    "stopping with %d files open after %.0f s (%s): who has them open gets errors, and nothing that was"
                    " not finished is in the bucket",
                    len(found),
                    self._settings.drain_s,
                    names,
                )
                return
            if len(found) != told:
                told = len(found)
                log.info("waiting for %d open files before stopping", told)
                self._manager.status(f"stopping: waiting for {told} open files")
            if self._manager.watchdog_s:
                self._manager.alive()
            time.sleep(0.1)


def clear_mountpoint(mountpoint: Path) -> None:
    """A directory to mount on. A dead predecessor's mount is taken away, however deep they lie; one that lives is not.
    ConfigError."""
    for _ in range(16):
        try:
            mountpoint.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Not stat(2): the kernel answers it from its cache for a while after the process has died.
            os.statvfs(mountpoint)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise ConfigError(f"{mountpoint}: {error.strerror}", hint="it has to be a directory") from error
            log.warning("%s: the process of the last mount is dead; taking its mount away", mountpoint)
            unmount(mountpoint)
            continue
        if is_ours(mountpoint):
            raise ConfigError(
                f"{mountpoint} is mounted by a living process already",
                hint="`pve-s3 mounts` tells which; stop it first",
            )
        return
    raise ConfigError(f"{mountpoint}: dead mounts stay there", hint=f"umount -l {mountpoint}")


def keep_empty(mountpoint: Path) -> bool:
    """Make the directory below the mount one in which nobody can make anything, not even root, so that what is written while
    nothing is mounted fails and does not fill the node's disk under a green task (an upload that another node sends by scp
    asks no plugin). Whether the file system can do that (FS_IMMUTABLE_FL, ioctl_iflags(2)). Only of an empty directory
    that is no mount."""
    return _flag(mountpoint, IMMUTABLE)


def let_go(mountpoint: Path) -> bool:
    """Take that back."""
    return _flag(mountpoint, 0)


def _flag(mountpoint: Path, value: int) -> bool:
    with os.scandir(mountpoint) as inside:
        if value and any(inside):
            return False
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        held = bytearray(8)  # the call is declared for a long, and takes an int
        fcntl.ioctl(descriptor, GET_FLAGS, held)
        flags = int.from_bytes(held[:4], sys.byteorder)
        wanted = flags & ~IMMUTABLE | value
        if wanted != flags:
            held[:4] = wanted.to_bytes(4, sys.byteorder)
            fcntl.ioctl(descriptor, SET_FLAGS, held)
        return True
    except OSError as error:
        log.info("%s: its file system does not keep it empty while nothing is mounted: %s", mountpoint, error.strerror)
        return False
    finally:
        os.close(descriptor)


def is_ours(mountpoint: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a mount of this kind lies there, alive or dead (proc_pid_mountinfo(5)); asks the kernel, not the mount."""
    wanted = str(mountpoint.absolute())
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, kind = line.partition(" - ")
        at = fields.split(" ")[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        if at == wanted and kind.startswith("fuse.bucketworks "):
            return True
    return False


def unmount(mountpoint: Path) -> None:
    """Take the mount away from new callers now, from those inside when they end (umount2(2), MNT_DETACH). Nothing where
    none is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), MNT_DETACH) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            log.error("%s cannot be unmounted: %s; umount -l it", mountpoint, os.strerror(code))


def _read_ahead(mountpoint: Path) -> None:
    """Let the kernel read ahead more than its 128 KiB: every request costs a turn through this process."""
    with suppress(OSError):  # slower, not wrong
        device = os.stat(mountpoint).st_dev
        path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        path.write_text(str(library.READ_AHEAD_KIB), encoding="ascii")
