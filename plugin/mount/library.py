"""libfuse3 and its binding: found, checked, and told what this file system does.

One rule: the only module that knows FUSE. mfusepy binds whatever library it finds when it is imported, libfuse 2 first,
whose writes are 4 KiB; so the library is found here, and named to it before that.

Debian 12 has libfuse3.so.3 (3.14), Debian 13 libfuse3.so.4 (3.17): the binding knows the layouts of both.
"""

import ctypes
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from plugin.mount import tree
from plugin.mount.filesystem import Filesystem
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

LIBRARIES: Final = ("libfuse3.so.4", "libfuse3.so.3")
DEVICE: Final = Path("/dev/fuse")
THREADS: Final = 48
"""Of libfuse, each holds one request: reads that wait for a slow store must leave some for getattr. libfuse's own
default is 10."""
THREADS_IDLE: Final = 16
READ_AHEAD_KIB: Final = 1024
_RENAME_NOREPLACE: Final = 1

T = TypeVar("T")


def find_library(names: tuple[str, ...] = LIBRARIES, environ: dict[str, str] | None = None) -> str:
    """The name under which the loader finds libfuse3. ConfigError where it is missing."""
    given = (os.environ if environ is None else environ).get("FUSE_LIBRARY_PATH", "")
    for name in (given, *names) if given else names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise ConfigError(
        f"libfuse3 is not installed ({' or '.join(names)})", hint="apt install fuse3, and start the mount again"
    )


def check_device(device: Path = DEVICE) -> None:
    """ConfigError where FUSE cannot be used."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{device} is not there", hint="modprobe fuse; in a container, give it the device (features: fuse=1)"
        ) from error
    except OSError as error:
        raise ConfigError(f"{device}: {error.strerror}", hint="the mount needs root") from error


def load() -> Any:
    """The binding, on libfuse3. ConfigError."""
    os.environ["FUSE_LIBRARY_PATH"] = find_library()
    import mfusepy

    if mfusepy.fuse_version_major != 3:
        raise ConfigError(
            f"libfuse {mfusepy.fuse_version_major} was loaded before this mount could choose",
            hint="unset FUSE_LIBRARY_PATH",
        )
    return mfusepy


def serve(
    filesystem: Filesystem, mountpoint: Path, name: str, *, ready: Callable[[], None], threads: int = THREADS
) -> None:
    """Mount, and serve until it is unmounted. `ready` is called, in another thread, when the kernel has the mount. Signals
    stay the caller's: run it in a thread that is not the main one. RuntimeError where mounting failed; libfuse has said
    why on standard error."""
    binding = load()
    operations = _operations(binding, filesystem, ready)

    class Mounted(binding.FUSE):  # type: ignore[misc,name-defined]  # mfusepy has no types
        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            """The binding forgets the flags, and would take an exchange for a rename."""
            if flags & ~_RENAME_NOREPLACE:
                raise OSError(errno.EINVAL, "exchange")
            return int(self.rename_fuse_2(old, new) or 0)

    options: dict[str, Any] = {
        "foreground": True,
        "fsname": f"bucketworks:{name}",
        "subtype": "bucketworks",
        "allow_other": True,
        "default_permissions": True,
        "hard_remove": True,
        # Each look by name asks this process, so nothing deleted in the bucket by the core is seen a moment longer.
        "entry_timeout": 0,
        "negative_timeout": 0,
        "attr_timeout": 1,
    }
    if binding.fuse_version_minor >= 12:
        options["max_threads"] = threads
        options["max_idle_threads"] = THREADS_IDLE  # unset, 3.14 complains of its own default
    Mounted(operations, str(mountpoint), **options)


def _operations(binding: Any, filesystem: Filesystem, ready: Callable[[], None]) -> Any:
    def pid() -> int:
        return int(binding.fuse_get_context()[2])

    class Operations(binding.Operations):  # type: ignore[misc]  # mfusepy has no types
        use_ns = True
        # Both: paths are not looked up for what has a handle.
        flag_nopath = True
        flag_nullpath_ok = True

        def init_with_config(self, conn_info: Any, config_3: Any) -> None:
            ready()

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            return _stat(_told(lambda: filesystem.getattr(path, fh)))

        def opendir(self, path: str) -> int:
            return _told(lambda: filesystem.opendir(path))

        def readdir(self, path: str | None, fh: int) -> list[str]:
            return [".", "..", *_told(lambda: filesystem.readdir_of(fh))]

        def releasedir(self, path: str | None, fh: int) -> None:
            filesystem.releasedir(fh)

        def statfs(self, path: str) -> dict[str, int]:
            space = _told(filesystem.statfs)
            block = tree.BLOCK_BYTES
            free = space.free // block
            return {
                "f_bsize": block,
                "f_frsize": block,
                "f_blocks": space.total // block,
                "f_bfree": free,
                "f_bavail": free,
                "f_namemax": 255,
            }

        def create(self, path: str, mode: int, flags: int) -> int:
            return _told(lambda: filesystem.create(path, flags, mode, pid()))

        def open(self, path: str, flags: int) -> int:
            return _told(lambda: filesystem.open(path, flags, pid=pid()))

        def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
            return _told(lambda: filesystem.read(fh, size, offset))

        def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
            return _told(lambda: filesystem.write(fh, data, offset))

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            _told(lambda: filesystem.truncate(path, length, fh))

        def flush(self, path: str | None, fh: int) -> None:
            _told(lambda: filesystem.flush(fh))

        def fsync(self, path: str | None, datasync: int, fh: int) -> None:
            _told(lambda: filesystem.fsync(fh))

        def release(self, path: str | None, fh: int) -> None:
            _told(lambda: filesystem.release(fh))

        def rename(self, old: str, new: str) -> None:
            _told(lambda: filesystem.rename(old, new))

        def unlink(self, path: str) -> None:
            _told(lambda: filesystem.unlink(path))

        def mkdir(self, path: str, mode: int) -> None:
            _told(lambda: filesystem.mkdir(path, mode))

        def rmdir(self, path: str) -> None:
            _told(lambda: filesystem.rmdir(path))

        def link(self, target: str, source: str) -> None:
            filesystem.link(target)

        def symlink(self, target: str, source: str) -> None:
            filesystem.link(target)

        def mknod(self, path: str, mode: int, dev: int) -> None:
            filesystem.link(path)

        def chmod(self, path: str | None, mode: int) -> None:
            filesystem.set_mode(path, mode)

        def chown(self, path: str | None, uid: int, gid: int) -> None:
            filesystem.set_owner(path, uid, gid)

        def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> None:
            filesystem.set_times(path, times)

    return Operations()


def _told(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError:
        raise
    except Exception as error:
        log.exception("an error nobody foresaw; please report it")
        raise OSError(errno.EIO, str(error)) from error


def _stat(told: tree.Attributes | os.stat_result) -> dict[str, int]:
    if isinstance(told, tree.Attributes):
        at = int(told.modified * 1e9)
        times = {"st_atime": at, "st_mtime": at, "st_ctime": at}
        facts = {"st_mode": told.mode, "st_nlink": told.links, "st_size": told.size, "st_blocks": told.blocks}
        return facts | times | {"st_uid": 0, "st_gid": 0, "st_blksize": 1 << 20}
    times = {"st_atime": told.st_atime_ns, "st_mtime": told.st_mtime_ns, "st_ctime": told.st_ctime_ns}
    names = ("st_mode", "st_nlink", "st_size", "st_blocks", "st_uid", "st_gid", "st_blksize")
    return {name: getattr(told, name) for name in names} | times
