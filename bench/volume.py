"""A real volume on the benchmark's store: made and served by the product's own command line, as an operator would.

One rule: nothing of the product is imported; what is measured is the program `s3block`, its worker process included.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import (
    PATIENCE_S,
    BenchFailed,
    children,
    cpu_seconds,
    end,
    free_port,
    peak_memory_bytes,
    start,
    tail,
)
from bench.processes import wait_for_line as wait

MIB = 1024 * 1024
COMMAND = (sys.executable, "-c", "from blockdev.cli import main; main()")
"""`s3block`, whether or not it is installed on the path."""
BUCKET = "bench"


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far."""

    front: float
    worker: float

    def __sub__(self, before: "Cpu") -> "Cpu":
        return Cpu(self.front - before.front, self.worker - before.worker)


def create(
    directory: Path,
    name: str,
    store_port: int,
    size_bytes: int,
    journal_bytes: int = 0,
    cache_bytes: int = 0,
    *,
    bucket: str = BUCKET,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """Make a volume; the configuration file for it. 0: the default size of journal or cache. `settings`: texts, beside."""
    config = configure(directory, name, store_port, journal_bytes, cache_bytes, bucket=bucket, settings=settings)
    done = subprocess.run(
        [*COMMAND, "create", name, "--size", str(size_bytes), "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchFailed(f"s3block create {name} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return config


def configure(
    directory: Path,
    name: str,
    store_port: int,
    journal_bytes: int = 0,
    cache_bytes: int = 0,
    *,
    bucket: str = BUCKET,
    settings: Mapping[str, str] | None = None,
) -> Path:
    """The configuration of a volume, with default settings but for the sizes that are not 0 and those given."""
    sizes = {"journal_bytes": journal_bytes, "cache_bytes": cache_bytes}
    lines = "".join(f"{key} = {value}\n" for key, value in sizes.items() if value)
    lines += "".join(f'{key} = "{value}"\n' for key, value in (settings or {}).items())
    config = directory / f"{name}.toml"
    config.write_text(
        f"""
[endpoint.bench]
url = "http://127.0.0.1:{store_port}"
region = "us-east-1"
addressing = "path"
credentials = "none"

[volume.{name}]
url = "s3://bench/{bucket}/{name}"
{lines}"""
    )
    return config


@dataclass(frozen=True, slots=True)
class Drained:
    """How long a detach took, and the CPU time of both processes at their end, to within 10 ms."""

    seconds: float
    cpu: Cpu


class Served:
    """The volume while it is served; `detach` (or leaving the context) carries everything to the bucket."""

    def __init__(self, config: Path, name: str, *, state: str) -> None:
        """`state` names the folder of journal and cache: a new name is a new host."""
        self._state = config.parent / state
        self._log = config.parent / f"{state}.log"
        self._log.unlink(missing_ok=True)
        port = free_port()
        begin = time.monotonic()
        self._process = start(
            [
                *COMMAND,
                "serve",
                name,
                *("--config", str(config), "--state-dir", str(self._state), "--listen", f"127.0.0.1:{port}"),
            ],
            self._log,
        )
        line = wait(self._log, "iscsi://", self._process)
        self.attach_s = time.monotonic() - begin
        self.url = line.split()[-1]
        found = children(self.pid)
        if len(found) != 1:
            raise BenchFailed(f"s3block serve has {len(found)} worker processes, not one:\n{tail(self._log)}")
        self._worker = found[0]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        return self._worker

    def cpu(self) -> Cpu:
        return Cpu(cpu_seconds(self.pid), cpu_seconds(self._worker))

    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes(self.pid) + peak_memory_bytes(self._worker)

    def detach(self) -> Drained:
        """End it in good order, everything carried to the bucket. Raises BenchFailed if it did not get there."""
        begin = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        cpu = Cpu(0.0, 0.0)
        while self._process.poll() is None and time.monotonic() - begin < PATIENCE_S:
            # The account of a process ends with it, so it is read until then.
            with contextlib.suppress(OSError):
                cpu = self.cpu()
            time.sleep(0.01)
        if end(self._process):
            raise BenchFailed(f"s3block serve ended with {self._process.returncode}:\n{tail(self._log)}")
        return Drained(time.monotonic() - begin, cpu)

    def forget(self) -> None:
        """Remove journal and cache, as a host that is gone."""
        shutil.rmtree(self._state)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.detach()
            return
        self._process.kill()
        self._process.wait()
