"""s3backer as Debian packages it (1.5.4): a FUSE file, with tgt in front so that an initiator meets it.

One rule: its own way of being fast is left to it. `tuned` is what its manual recommends for latency, `packaged` its defaults,
`sync` the settings under which an answered write is in the bucket. What to know when reading its figures: its FUSE fsync
returns at once without writing anything, so its flush rows cost it nothing and promise nothing but under `sync`.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench import tgt
from bench.peers.systems import DRAIN_S_MAX, Account, Place, family, kill_all, peak_of, shown, until_quiet
from bench.processes import PATIENCE_S, BenchFailed, start, tail

PACKAGED = "s3backer packaged"
TUNED = "s3backer tuned"
TUNED_FILE = "s3backer tuned, its file"
SYNC = "s3backer sync"
TUNED_BLOCK_BYTES = 64 * 1024
PACKAGED_BLOCK_BYTES = 4 * 1024
_DIRTY = re.compile(r"^block_cache_dirty_ratio\s+(\S+)$", re.MULTILINE)


def missing() -> str:
    if shutil.which("s3backer") is None:
        return "s3backer not installed"
    return "" if Path("/dev/fuse").exists() else "/dev/fuse is not there"


def missing_with_tgt() -> str:
    return missing() or tgt.missing_program()


def version() -> str:
    done = subprocess.run(["s3backer", "--version"], capture_output=True, text=True, check=False)
    return " ".join((done.stdout + done.stderr).split()[:3])


def tuned(place: Place) -> list[str]:
    # Without big_writes, FUSE hands it each write in pieces of 4 KiB.
    return [
        f"--blockSize={TUNED_BLOCK_BYTES // 1024}k",
        f"--blockCacheFile={place.directory / 'cache'}",
        f"--blockCacheSize={place.cache_bytes // TUNED_BLOCK_BYTES}",
        "--blockCacheRecoverDirtyBlocks",
        "--listBlocks",
        "--md5CacheSize=0",
        "--md5CacheTime=0",
        "--minWriteDelay=0",
        "--blockCacheThreads=64",
        "--compress",
        *("-o", "big_writes"),
    ]


def packaged(place: Place) -> list[str]:
    """All defaults but the size of the cache: that of every other system, in place of 1,000 blocks of 4 KiB."""
    return [f"--blockCacheSize={place.cache_bytes // PACKAGED_BLOCK_BYTES}"]


def sync(place: Place) -> list[str]:
    return [*tuned(place), "--blockCacheWriteDelay=0", "--blockCacheSync"]


def command(place: Place, options: Sequence[str], mount: Path, access: Path) -> list[str]:
    return [
        "s3backer",
        f"--baseURL=http://127.0.0.1:{place.store.port}/",
        f"--accessFile={access}",
        f"--size={place.size_bytes}",
        "--quiet",
        *options,
        "-f",
        place.bucket,
        str(mount),
    ]


class S3Backer:
    def __init__(self, place: Place, name: str, options: Sequence[str], *, front: bool = True) -> None:
        """`front`: tgt before its file."""
        self.name = name
        self.bucket = place.bucket
        self._place = place
        self._options = list(options)
        self._front = front
        self._account = Account()
        self._process: subprocess.Popen[bytes] | None = None
        self._target: tgt.Tgt | None = None
        self._killed = False
        self._log = place.directory / "s3backer.log"
        self._mount = place.directory / "mount"
        self._access = place.directory / "access"
        self.path: Path = self._mount / "file"
        self._mount.mkdir(parents=True, exist_ok=True)
        self._access.touch(mode=0o600)
        self._access.write_text("bench:bench\n")

    @property
    def settings(self) -> str:
        through = "; through tgt, backing store rdwr" if self._front else "; its file itself"
        return shown(["s3backer", *self._options], self._place) + through

    @property
    def url(self) -> str:
        return self._target.url if self._target is not None else ""

    def start(self) -> None:
        try:
            self._start()
        except BenchFailed as error:
            # Its bucket says that somebody has it mounted. Who killed that somebody knows better; nobody else may say so.
            if not (self._killed and "already mounted" in str(error)):
                raise
            self._reset()
            self._start()
        self._killed = False

    def _reset(self) -> None:
        done = subprocess.run(
            [*command(self._place, self._options, self._mount, self._access)[:-3], "--reset-mounted-flag", self.bucket],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchFailed(f"s3backer --reset-mounted-flag: {done.stderr}{done.stdout}")

    def _start(self) -> None:
        self._log.unlink(missing_ok=True)
        self._process = start(command(self._place, self._options, self._mount, self._access), self._log)
        give_up = time.monotonic() + PATIENCE_S
        while not self._mount.is_mount() or not self.path.exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise BenchFailed(f"s3backer does not serve its file:\n{tail(self._log)}")
            time.sleep(0.02)
        if self._front:
            self._target = tgt.Tgt(self._place.directory, self._place.size_bytes, backing=self.path).__enter__()

    def pids(self) -> Sequence[int]:
        return family(self._process)

    def front_pids(self) -> Sequence[int]:
        """tgtd, where it stands before."""
        return [self._target.pid] if self._target is not None else []

    def cpu_s(self) -> float:
        return self._account.total(self.pids())

    def peak_bytes(self) -> int:
        return peak_of(self.pids())

    def drain(self) -> None:
        # What tgt wrote may wait in the kernel's cache of the FUSE file; a synced file has handed it over.
        give_up = time.monotonic() + DRAIN_S_MAX
        while True:
            found = _DIRTY.search((self._mount / "stats").read_text())
            if found is None:
                raise BenchFailed("s3backer does not say how much of its cache is dirty")
            if float(found[1]) == 0.0:
                break
            if time.monotonic() > give_up:
                raise BenchFailed(f"s3backer has not written its cache back within {DRAIN_S_MAX:.0f} s")
            time.sleep(0.02)
        # The ratio is rounded to four digits: of more than 20,000 blocks the last few do not show.
        until_quiet(self._place.store, self.bucket)

    def stop(self) -> None:
        if self._process is None:
            return
        self._end_front()
        give_up = time.monotonic() + PATIENCE_S
        while (done := _unmount(self._mount)).returncode:
            if time.monotonic() > give_up:
                raise BenchFailed(f"umount: {done.stderr}\n{tail(self._log)}")
            time.sleep(0.05)
        code = self._account.wait(self._process, DRAIN_S_MAX)
        self._process = None
        if code:
            raise BenchFailed(f"s3backer ended with {code}:\n{tail(self._log)}")

    def forget(self) -> None:
        for file in self._place.directory.glob("cache*"):
            file.unlink()

    def kill(self) -> None:
        self._end_front()
        if self._process is not None:
            kill_all(family(self._process))
            self._account.wait(self._process)
            self._process = None
            self._killed = True
        if _mounted(self._mount):
            _unmount(self._mount, "-l")

    def _end_front(self) -> None:
        if self._target is not None:
            target, self._target = self._target, None
            target.__exit__()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._place.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mounted(folder: Path) -> bool:
    """Also of a mount whose process is gone, of which `is_mount` knows nothing."""
    return any(line.split()[4] == str(folder) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _unmount(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["umount", *options, str(folder)], capture_output=True, text=True, check=False)
