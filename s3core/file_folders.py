"""The directories behind a `file://` store: those that hold objects, and the one a writer stages files in.

One rule: whoever gets a `Folder` may rely on it being reachable after a power loss: every directory above it
was synced after the entry that leads to it was made. The descriptor is the proof: a folder that somebody
removed and made again is another inode, in which the old descriptor can create nothing (ENOENT), so a stale
proof cannot be used by mistake.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import secrets
import threading
from collections import OrderedDict

log = logging.getLogger(__name__)

FOLDER_MODE = 0o700
FILE_MODE = 0o600
_OPEN_FOLDERS_MAX = 128
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """An open directory; the descriptor is closed when the last user lets go of this object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Folders:
    """Durable folders below `top`, made on demand; the last used are kept open. `lock` guards the cache."""

    def __init__(self, top: str) -> None:
        self._top = top
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Folder] = OrderedDict()

    def durable(self, relative: str) -> Folder:
        """The folder `relative` (empty, or with `/` at its end) below `top`, made where it is missing.
        FileNotFoundError when somebody removes it meanwhile: `forget` it and ask again."""
        with self._lock:
            known = self._open.get(relative)
            if known is not None:
                self._open.move_to_end(relative)
                return known
        folder = self._make(relative)
        with self._lock:
            self._open[relative] = folder
            while len(self._open) > _OPEN_FOLDERS_MAX:
                self._open.popitem(last=False)
        return folder

    def forget(self, relative: str) -> None:
        """Drop `relative` and the folders above it from the cache."""
        with self._lock:
            for above in [relative, *_above(relative)]:
                self._open.pop(above, None)

    def prune(self, relative: str) -> None:
        """Remove `relative` and the folders above it as far as they are empty, `top` excepted. Nothing is
        synced: a crash may bring an empty folder back, which no listing shows."""
        for folder in [relative, *_above(relative)]:
            if not folder:
                return
            try:
                os.rmdir(self._top + "/" + folder)
            except OSError:
                # Not empty, or somebody else was here first: both mean that there is nothing left to do.
                return
            with self._lock:
                self._open.pop(folder, None)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _make(self, relative: str) -> Folder:
        if not relative:
            make_directories(self._top)
            root = os.path.dirname(self._top)
            sync_directory(root)
            with contextlib.suppress(PermissionError):
                # The store's entry in a directory that is not ours to read was made by whoever owns it.
                sync_directory(os.path.dirname(root))
            return Folder(os.open(self._top, _DIRECTORY))
        parent_name, name = _split(relative)
        parent = self.durable(parent_name)
        # crash here leaves: nothing, or an empty folder that no listing shows.
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, FOLDER_MODE, dir_fd=parent.fd)
        folder = Folder(os.open(name, _DIRECTORY, dir_fd=parent.fd))
        # Synced also when the folder was there: whoever made it may not have come to that yet.
        os.fsync(parent.fd)
        return folder


class Staging:
    """A writer's own directory below `root`/staging, held by `flock` as long as this object lives.

    The lock goes with it, and with the process, however that ends; the next writer to open the store
    removes the directories nobody holds. Files in here are no objects and no listing shows them.
    """

    def __init__(self, root: str) -> None:
        self._above = root + "/staging"
        make_directories(self._above)
        self.swept_files = self._sweep()
        self._number = itertools.count()
        while True:
            self._path = f"{self._above}/{secrets.token_hex(8)}"
            os.mkdir(self._path, FOLDER_MODE)
            try:
                held = Folder(os.open(self._path, _DIRECTORY))
            except FileNotFoundError:
                continue  # another writer swept it before it could be held
            fcntl.flock(held.fd, fcntl.LOCK_EX)
            if os.fstat(held.fd).st_nlink > 0:
                break
        self._held: Folder | None = held

    def create(self) -> tuple[int, str]:
        """A new empty file: its descriptor (the caller closes it) and its path."""
        # The process number keeps the children of a fork apart.
        path = f"{self._path}/{os.getpid()}-{next(self._number)}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), path

    def close(self) -> None:
        """Let go; what is still staged is swept by the next writer."""
        with contextlib.suppress(OSError):
            os.rmdir(self._path)
        self._held = None

    def _sweep(self) -> int:
        removed = 0
        for name in os.listdir(self._above):
            path = f"{self._above}/{name}"
            try:
                fd = os.open(path, _DIRECTORY)
            except FileNotFoundError:
                continue  # its owner closed the store, or another writer sweeps too
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in os.listdir(fd):
                    os.unlink(left, dir_fd=fd)
                    removed += 1
                os.rmdir(path)
            except BlockingIOError:
                continue  # its owner lives
            except FileNotFoundError:
                continue
            finally:
                os.close(fd)
        if removed:
            log.info("removed files that an interrupted writer left: path=%s files=%d", self._above, removed)
        return removed


def make_directories(path: str) -> None:
    """`path` and the directories above it, durably (each new entry's directory is synced)."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, FOLDER_MODE)
    sync_directory(parent)


def sync_directory(path: str) -> None:
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _split(relative: str) -> tuple[str, str]:
    """`a/b/` into `a/` and `b`."""
    at = relative.rfind("/", 0, len(relative) - 1) + 1
    return relative[:at], relative[at:-1]


def _above(relative: str) -> list[str]:
    """`a/b/` has `a/` and the top (the empty name) above it."""
    found = []
    while relative:
        relative = _split(relative)[0]
        found.append(relative)
    return found
