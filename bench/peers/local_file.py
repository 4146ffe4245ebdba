"""tgt on a file on the run's disk: what a local disk behind iSCSI does here, with no object store at all.

One rule: the file is on the same disk as our journal and the peers' caches, never in memory; tgt's flush is an fsync of it.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench import tgt
from bench.peers.systems import Account, Place, peak_of
from bench.processes import BenchFailed

NAME = "tgt, local file"


def missing() -> str:
    return tgt.missing_program()


def version() -> str:
    done = subprocess.run(["tgtadm", "--version"], capture_output=True, text=True, check=False, env={"PATH": tgt.PATH})
    return f"tgt {done.stdout.strip()}"


class LocalFile:
    name = NAME
    bucket = ""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._account = Account()
        self._target: tgt.Tgt | None = None
        place.directory.mkdir(parents=True, exist_ok=True)
        self.path: Path = place.directory / "disk.raw"

    @property
    def settings(self) -> str:
        return "tgtd, backing store rdwr (16 threads, write cache on) on a preallocated file on the run's disk"

    @property
    def url(self) -> str:
        return self._target.url if self._target is not None else ""

    def start(self) -> None:
        if not self.path.exists():
            with self.path.open("wb") as file:
                # Sparse, each first write would also allocate.
                for _ in range(self._place.size_bytes // (1 << 20)):
                    file.write(bytes(1 << 20))
        self._target = tgt.Tgt(self._place.directory, self._place.size_bytes, backing=self.path).__enter__()

    def pids(self) -> Sequence[int]:
        return [self._target.pid] if self._target is not None else []

    def front_pids(self) -> Sequence[int]:
        return []

    def cpu_s(self) -> float:
        return self._account.total(self.pids())

    def peak_bytes(self) -> int:
        return peak_of(self.pids())

    def drain(self) -> None:
        """Everything is where it stays."""

    def stop(self) -> None:
        self.kill()

    def forget(self) -> None:
        raise BenchFailed(f"{NAME} has no other place than this host")

    def kill(self) -> None:
        if self._target is not None:
            self._account.ends(self.pids())
            target, self._target = self._target, None
            target.__exit__()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._place.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
