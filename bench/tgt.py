"""tgt beside us: Linux's user-space iSCSI target in C, as the yardstick of the same run.

One rule: it runs as its packages make it (backing store rdwr, 16 threads), without a network but loopback, and is ended
by its process id. On a file of its own, which is in memory, its flushes cost nothing; ours are an fdatasync on a disk. On a
file that it is given (`backing`), it is the front end of whoever stands behind that file.
"""

import shutil
import subprocess
import time
from pathlib import Path

from bench.processes import PATIENCE_S, BenchFailed, end, free_port, start, tail

IQN = "iqn.2025-01.internal.bucketworks:tgt"
MEMORY = Path("/dev/shm")


def missing() -> str:
    """Why tgt cannot be measured here on a file in memory; empty if it can."""
    return missing_program() or ("" if MEMORY.is_dir() else f"{MEMORY} is not there: no place in memory for its file")


def missing_program() -> str:
    """Why tgt cannot run here at all; empty if it can."""
    absent = [name for name in ("tgtd", "tgtadm") if shutil.which(name, path=PATH) is None]
    return f"{' and '.join(absent)} not installed (package tgt)" if absent else ""


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Tgt:
    """A tgtd of our own with one logical unit; a context manager. `backing`: a file that is there and stays; none: one of
    `size_bytes` in memory, gone at the end."""

    def __init__(
        self, directory: Path, size_bytes: int, *, read_only: bool = False, backing: Path | None = None
    ) -> None:
        self._read_only = read_only
        self._port = free_port()
        # A short in tgtd; no two ports that are free for all (32768 and up) share one.
        self._control = str(self._port % 32_768 or 1)
        self._own = None if backing else MEMORY / f"bucketworks-bench-{self._port}.raw"
        self._log = directory / "tgtd.log"
        if self._own is not None:
            with self._own.open("wb") as file:
                file.truncate(size_bytes)
        self._file = backing or self._own
        tgtd = shutil.which("tgtd", path=PATH) or "tgtd"
        self._process = start([tgtd, "-f", "--iscsi", f"portal=127.0.0.1:{self._port}", "-C", self._control], self._log)
        self.url = f"iscsi://127.0.0.1:{self._port}/{IQN}/1"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> "Tgt":
        try:
            self._until_ready()
            self._tell("--op", "new", "--mode", "target", "--tid", "1", "-T", IQN)
            unit = ("--tid", "1", "--lun", "1", "--bstype", "rdwr", "-b", str(self._file))
            self._tell("--op", "new", "--mode", "logicalunit", *unit)
            if self._own is None:
                # Without it tgt offers no UNMAP; with it a discard becomes a hole in the file.
                of_unit = ("--tid", "1", "--lun", "1", "--params", "thin_provisioning=1")
                self._tell("--op", "update", "--mode", "logicalunit", *of_unit)
            if self._read_only:
                of_unit = ("--tid", "1", "--lun", "1", "--params", "readonly=1")
                self._tell("--op", "update", "--mode", "logicalunit", *of_unit)
            self._tell("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # tgtd ignores SIGTERM while it has targets; its file is thrown away in any case.
        self._process.kill()
        end(self._process)
        if self._own is not None:
            self._own.unlink(missing_ok=True)
        for leftover in Path("/var/run/tgtd").glob(f"socket.{self._control}*"):
            leftover.unlink(missing_ok=True)

    def _until_ready(self) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                break
            if self._ask("--op", "show", "--mode", "target").returncode == 0:
                return
            time.sleep(0.05)
        raise BenchFailed(f"tgtd does not answer:\n{tail(self._log)}")

    def _tell(self, *words: str) -> None:
        done = self._ask(*words)
        if done.returncode:
            raise BenchFailed(f"tgtadm {' '.join(words)}: {done.stderr or done.stdout}\n{tail(self._log)}")

    def _ask(self, *words: str) -> "subprocess.CompletedProcess[str]":
        tgtadm = shutil.which("tgtadm", path=PATH) or "tgtadm"
        command = [tgtadm, "-C", self._control, "--lld", "iscsi", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)
