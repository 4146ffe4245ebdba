"""nbdkit's S3 plugin (objects of 64 KiB), plain and below its cache filter: NBD without a kernel module.

One rule: the cache is as large as everybody's; what it holds is not kept over a restart, so a flush is what makes it safe.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Self

from bench.peers.systems import DRAIN_S_MAX, Account, Place, family, kill_all, peak_of, shown
from bench.processes import PATIENCE_S, BenchFailed, start, tail

NAME = "nbdkit S3"
NAME_CACHED = "nbdkit S3 + cache"
OBJECT_BYTES = 64 * 1024


def missing() -> str:
    if shutil.which("nbdkit") is None:
        return "nbdkit not installed"
    done = subprocess.run(["nbdkit", "S3", "--dump-plugin"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"nbdkit has no S3 plugin that runs: {done.stderr.strip()[-200:]}"


def version() -> str:
    done = subprocess.run(["nbdkit", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def command(place: Place, socket: str, *, cached: bool) -> list[str]:
    # The plugin advertises its objects as the smallest blocks, though it takes any; libnbd would refuse 4 KiB then.
    filters = ["--filter=blocksize-policy"]
    settings = ["blocksize-minimum=1"]
    if cached:
        filters.append("--filter=cache")
        settings += [f"cache-max-size={place.cache_bytes}", "cache-on-read=true"]
    return [
        *("nbdkit", "-f", "-U", socket, *filters, "S3"),
        f"endpoint-url=http://127.0.0.1:{place.store.port}",
        *("access-key=bench", "secret-key=bench"),
        *(f"size={place.size_bytes}", f"object-size={OBJECT_BYTES}", f"bucket={place.bucket}", "key=disk"),
        *settings,
    ]


class Nbdkit:
    path = None

    def __init__(self, place: Place, name: str, *, cached: bool) -> None:
        self.name = name
        self.bucket = place.bucket
        self._place = place
        self._cached = cached
        self._account = Account()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = place.directory / "nbd"
        self._log = place.directory / "nbdkit.log"
        place.directory.mkdir(parents=True, exist_ok=True)

    @property
    def settings(self) -> str:
        return shown(command(self._place, "SOCKET", cached=self._cached), self._place)

    @property
    def url(self) -> str:
        return f"nbd+unix:///?socket={self._socket}" if self._process is not None else ""

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        # The cache is a file without a name in TMPDIR: on the run's disk, like everybody's.
        environment = ["env", f"TMPDIR={self._place.directory}", "AWS_DEFAULT_REGION=us-east-1"]
        self._process = start([*environment, *command(self._place, str(self._socket), cached=self._cached)], self._log)
        give_up = time.monotonic() + PATIENCE_S
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise BenchFailed(f"nbdkit does not listen:\n{tail(self._log)}")
            time.sleep(0.02)

    def pids(self) -> Sequence[int]:
        return family(self._process)

    def front_pids(self) -> Sequence[int]:
        return []

    def cpu_s(self) -> float:
        return self._account.total(self.pids())

    def peak_bytes(self) -> int:
        return peak_of(self.pids())

    def drain(self) -> None:
        # Its cache is written back for a flush, and for nothing else.
        flush = ["qemu-io", "-f", "raw", "-t", "none", "-c", "flush", self.url]
        done = subprocess.run(flush, capture_output=True, text=True, check=False, timeout=DRAIN_S_MAX)
        if done.returncode or "failed" in done.stdout:
            raise BenchFailed(f"the flush of nbdkit failed: {done.stderr}{done.stdout}\n{tail(self._log)}")

    def stop(self) -> None:
        if self._process is None:
            return
        self.drain()
        process = self._process
        process.send_signal(signal.SIGTERM)
        code = self._account.wait(process)
        self._process = None
        if code:
            raise BenchFailed(f"nbdkit ended with {code}:\n{tail(self._log)}")

    def forget(self) -> None:
        """Nothing to do: its cache ends with its process."""

    def kill(self) -> None:
        if self._process is not None:
            kill_all(family(self._process))
            self._account.wait(self._process)
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._place.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
