"""Any system's disk as a file, and ext4 on that file: QEMU's storage daemon and fuse2fs, both by FUSE, no kernel modules.

One rule: every system is met through the same two programs, so what they cost is in every figure alike. Both pass what a
disk is asked on: `fsync` on a file below the mount becomes a flush of the disk, a hole punched into the file a discard.
They carry one request at a time, and fuse2fs has no journal and writes in blocks: the loads are what a slow host would ask.

Everything ends by its process id, and whatever happens the mounts go: once the storage daemon is gone, the kernel answers
all that waits below it with an error.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from bench.processes import PATIENCE_S, BenchFailed, end, start, tail

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_GRACE_S = 10.0
"""For a storage daemon or a file system to end by itself; what its disk does not answer must not hold up the run."""
PACKAGES = {
    "qemu-storage-daemon": "qemu-system-common",
    "fuse2fs": "fuse2fs",
    "fusermount": "fuse3",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "fallocate": "util-linux",
    "tar": "tar",
}


def missing(*programs: str) -> str:
    """Why a load with these programs cannot run here; empty if it can."""
    absent = [f"{name} (package {PACKAGES[name]})" for name in programs if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse cannot be opened here"


def environment() -> dict[str, str]:
    """Of a program that stands where only root's path leads."""
    return {**os.environ, "PATH": _PATH}


def block_device(url: str) -> str:
    """What QEMU's `--blockdev` has to be told for iscsi://HOST:PORT/IQN/LUN, nbd://HOST:PORT/NAME,
    nbd+unix:///NAME?socket=PATH, or a file. ValueError for another door."""
    common = "node-name=disk,discard=unmap"
    parts = urlsplit(url)
    if not parts.scheme:
        return f"driver=file,filename={url},{common}"
    name = parts.path.lstrip("/")
    if parts.scheme == "iscsi":
        iqn, _, lun = name.rpartition("/")
        return f"driver=iscsi,transport=tcp,portal={parts.netloc},target={iqn},lun={lun},{common}"
    export = f"export={name}," if name else ""
    if parts.scheme == "nbd":
        where = f"server.type=inet,server.host={parts.hostname},server.port={parts.port or 10809}"
        return f"driver=nbd,{where},{export}{common}"
    if parts.scheme == "nbd+unix":
        return f"driver=nbd,server.type=unix,server.path={parse_qs(parts.query)['socket'][0]},{export}{common}"
    raise ValueError(f"{url}: no door that QEMU's storage daemon is used with here")


class DiskFile:
    """A disk as the file `file`, in `directory`; a context manager. One at a time in a directory."""

    def __init__(self, url: str, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "disk"
        self._log = directory / "storage-daemon.log"
        self.file.touch()
        export = f"type=fuse,id=export,node-name=disk,mountpoint={self.file},writable=on,growable=off"
        self._process = start(["qemu-storage-daemon", "--blockdev", block_device(url), "--export", export], self._log)

    def __enter__(self) -> "DiskFile":
        try:
            self._until_there()
        except BaseException:
            self.kill()
            raise
        return self

    def _until_there(self) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                break
            if self.file.stat().st_size:
                return
            time.sleep(0.02)
        raise BenchFailed(f"the storage daemon shows no disk:\n{tail(self._log)}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def size_bytes(self) -> int:
        return self.file.stat().st_size

    def close(self) -> None:
        """Flush and end it; at once if it cannot."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """At once, flushing nothing: whoever waits for the disk is told of an error."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        unmount(self.file, lazily=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill() if kind is not None else self.close()


class Ext4:
    """The ext4 in a file, mounted on `path` by fuse2fs; a context manager. Raises BenchFailed where it cannot be."""

    def __init__(self, disk: DiskFile, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._disk = disk
        self._log = disk.file.with_name("fuse2fs.log")
        fuse2fs = shutil.which("fuse2fs", path=_PATH) or "fuse2fs"
        self._process = start([fuse2fs, "-f", "-o", "fakeroot", str(disk.file), str(path)], self._log)

    def __enter__(self) -> "Ext4":
        give_up = time.monotonic() + PATIENCE_S
        while not mounted(self.path):
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                raise BenchFailed(f"fuse2fs does not mount:\n{tail(self._log)}")
            time.sleep(0.02)
        return self

    def close(self, seconds: float = PATIENCE_S) -> float:
        """Unmount; how long until all of it was on the disk. BenchFailed if it takes longer than `seconds`."""
        begin = time.monotonic()
        unmount(self.path, lazily=False)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise BenchFailed(f"unmounting took more than {seconds:.0f} s") from error
        return time.monotonic() - begin

    def kill(self) -> None:
        """At once; the disk goes with it, since a file system that waits for it could not be ended otherwise."""
        self._disk.kill()
        if self._process.poll() is None:
            self._process.kill()
        end(self._process)
        unmount(self.path, lazily=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()
        elif mounted(self.path):
            self.close()


def mounted(path: Path) -> bool:
    """Whether something is mounted there; asks the kernel's table, never the mount itself, which may not answer."""
    wanted = str(path.absolute()).replace(" ", "\\040")
    return any(line.split(" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_text().splitlines())


def unmount(path: Path, *, lazily: bool) -> None:
    """Ends a FUSE mount, if it is there. BenchFailed if that is refused."""
    if not mounted(path):
        return
    tool = shutil.which("fusermount3") or shutil.which("fusermount") or "fusermount"
    done = subprocess.run(
        [tool, "-uz" if lazily else "-u", str(path)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    if done.returncode and mounted(path):
        raise BenchFailed(f"{path} cannot be unmounted: {done.stderr.strip()}")
