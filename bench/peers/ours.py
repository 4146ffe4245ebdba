"""`s3block` among the systems: the program as an operator runs it, with default settings but the size of its cache."""

import http.client
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bench import volume
from bench.peers.systems import DRAIN_S_MAX, Account, Place, family, kill_all, peak_of
from bench.processes import BenchFailed, free_port, start, tail, wait_for_line

NAME = "s3block"
NAME_S3 = "s3block flush=s3"
VOLUME = "v"
_RPO = re.compile(rb"^bucketworks_volume_rpo_bytes\{[^}]*\} (\S+)$", re.MULTILINE)


def missing() -> str:
    return ""


def version() -> str:
    done = subprocess.run([*volume.COMMAND, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


class S3Block:
    path = None

    def __init__(
        self, place: Place, name: str = NAME, settings: Mapping[str, str] | None = None, journal_bytes: int = 0
    ) -> None:
        """`journal_bytes` 0: the default. `settings`: what else is not the default."""
        self.name = name
        self.bucket = place.bucket
        self.url = ""
        self._place = place
        self._given = dict(settings or {})
        self._journal_bytes = journal_bytes
        self._account = Account()
        self._state = place.directory / "state"
        self._log = place.directory / "serve.log"
        self._config: Path | None = None
        self._metrics = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.joins = False
        """The volume is there already: another host made it."""
        self._killed = self._lost = False
        place.directory.mkdir(parents=True, exist_ok=True)

    @property
    def settings(self) -> str:
        given = "".join(f", {key} = {value}" for key, value in self._given.items())
        return f"default settings (flush = local unless said), cache_bytes = {self._place.cache_bytes // 2**20}M{given}"

    def start(self) -> None:
        if self._config is None:
            self._metrics = free_port()
            place = self._place
            settings = {**self._given, "metrics_listen": f"127.0.0.1:{self._metrics}"}
            where = (place.directory, VOLUME, place.store.port)
            caches = place.cache_bytes
            if self.joins:
                self._config = volume.configure(*where, cache_bytes=caches, bucket=place.bucket, settings=settings)
            else:
                size = place.size_bytes
                self._config = volume.create(*where, size, cache_bytes=caches, bucket=place.bucket, settings=settings)
        self._log.unlink(missing_ok=True)
        options = [
            "--config",
            str(self._config),
            "--state-dir",
            str(self._state),
            "--listen",
            f"127.0.0.1:{free_port()}",
        ]
        # Who killed the host and took its disk knows that it is off and what is lost; nobody else may say so.
        if self._lost:
            options += ["--host-is-off", "--accept-loss"]
        self._process = start([*volume.COMMAND, "serve", VOLUME, *options], self._log)
        self.url = wait_for_line(self._log, "iscsi://", self._process).split()[-1]
        self._killed = self._lost = False

    def pids(self) -> Sequence[int]:
        return family(self._process)

    def front_pids(self) -> Sequence[int]:
        return []

    def cpu_s(self) -> float:
        return self._account.total(self.pids())

    def peak_bytes(self) -> int:
        return peak_of(self.pids())

    def drain(self) -> None:
        give_up = time.monotonic() + DRAIN_S_MAX
        while self._rpo_bytes():
            if time.monotonic() > give_up:
                raise BenchFailed(f"s3block has not carried everything to the bucket within {DRAIN_S_MAX:.0f} s")
            time.sleep(0.02)

    def _rpo_bytes(self) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics, timeout=60)
        try:
            connection.request("GET", "/metrics")
            found = _RPO.search(connection.getresponse().read())
        finally:
            connection.close()
        if found is None:
            raise BenchFailed("s3block does not say how much the bucket lacks")
        return float(found[1])

    def stop(self) -> None:
        if self._process is None:
            return
        process = self._process
        process.send_signal(signal.SIGTERM)
        code = self._account.wait(process, DRAIN_S_MAX)
        self._process = None
        if code:
            raise BenchFailed(f"s3block serve ended with {code}:\n{tail(self._log)}")

    def forget(self) -> None:
        shutil.rmtree(self._state, ignore_errors=True)
        self._lost = self._killed

    def kill(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        self._killed = True
        kill_all(family(process))
        self._account.wait(process)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._place.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
