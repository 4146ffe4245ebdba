"""A volume whose store goes away: `python -m tests.system.blackout --seconds 300`, or `make blackout`.

QEMU writes all the time, at a pace that the journal bridges. The way to a real radosgw is cut for so many seconds and opened
again. Nobody may be told of an error, what is local must be readable, the backlog must drain while writing goes on, and in
the end the bucket alone must hold every byte.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockdev.control import ControlClient
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw
from tests.servers.relay import Relay
from tests.system.conftest import Place, make_bucket
from tests.system.machine import BLOCK, MIB, Server, Stamps, Write, create, qemu_io, read_back, s3block

SIZE_MIB = 128
CACHED_MIB = 8
"""At the front of the disk; written first, then only read."""
WRITE_BYTES = 64 * 1024
FLUSH_EVERY = 16
WARM_UP_S = 5.0
AFTER_S = 15.0
"""Writing goes on for so long after the store is back, at least."""
DRAIN_S_MAX = 120.0


@dataclass(slots=True)
class Report:
    """What was seen. Times in seconds from the moment the store went away."""

    seconds: float
    writes_before: int = 0
    writes_during: int = 0
    writes_while_draining: int = 0
    commits_while_draining: int = 0
    drained_after_s: float = 0.0
    fill_max: float = 0.0
    rpo_seconds_max: float = 0.0
    rpo_bytes_max: int = 0
    cached_read_s_max: float = 0.0
    cached_reads: int = 0
    log: str = ""
    samples: list[tuple[float, float, float, int]] = field(default_factory=list)
    """(time, fill, rpo_seconds, writes acknowledged)."""

    def lines(self) -> Iterator[str]:
        yield f"store away for {self.seconds:.0f} s"
        yield f"writes acknowledged: {self.writes_before} before, {self.writes_during} during, no error"
        yield f"most at risk: {self.rpo_bytes_max / MIB:.1f} MiB, {self.rpo_seconds_max:.1f} s old, fill {self.fill_max:.2f}"
        yield f"{self.cached_reads} runs of qemu-io read cached data meanwhile, the slowest in {self.cached_read_s_max:.2f} s"
        yield (
            f"drained {self.drained_after_s:.1f} s after the store was back, by {self.commits_while_draining} commits, "
            f"beside {self.writes_while_draining} new writes"
        )


def write_relayed_endpoint(relay: Relay, directory: Path) -> Path:
    """A configuration file with the endpoint `rgw`, reached over the relay."""
    config = directory / "config.toml"
    config.write_text(
        "[endpoint.rgw]\n"
        'preset = "ceph"\n'
        f'url = "{relay.url}"\n'
        'region = "us-east-1"\n'
        'addressing = "path"\n'
        f'access_key = "{ACCESS_KEY}"\n'
        f'secret_key = "{SECRET_KEY}"\n'
        "connect_timeout_s = 2\n"
        "read_timeout_s = 10\n"
    )
    config.chmod(0o600)
    return config


@contextmanager
def relayed(radosgw: Radosgw, directory: Path) -> Iterator[tuple[Relay, Place]]:
    """A bucket that is reached over a relay."""
    relay = Relay(radosgw.http_port)
    try:
        yield relay, Place(f"s3://rgw/{make_bucket(radosgw)}/disks/vm", write_relayed_endpoint(relay, directory))
    finally:
        relay.stop()


def status(server: Server) -> dict[str, Any]:
    with ControlClient(server.state_dir, timeout_s=10.0) as client:
        return client.ask("status")


def paced_writes(seed: int, count: int) -> list[Write]:
    source = random.Random(seed)
    places = range(CACHED_MIB * MIB // WRITE_BYTES, SIZE_MIB * MIB // WRITE_BYTES)
    return [Write(source.choice(places) * WRITE_BYTES, WRITE_BYTES, source.randrange(1, 256)) for _ in range(count)]


class PacedLoad:
    """QEMU writing one after the other with a pause after each, a flush now and then; its words go to a file."""

    def __init__(self, url: str, writes: list[Write], pause_ms: int, directory: Path) -> None:
        self._said = directory / "load.out"
        script = directory / "load.qemu-io"
        lines = []
        for number, write in enumerate(writes, 1):
            lines += [str(write), f"sleep {pause_ms}"]
            if number % FLUSH_EVERY == 0:
                lines.append("flush")
        script.write_text("\n".join(lines) + "\n")
        with script.open("rb") as commands, self._said.open("wb") as said:
            self.process = subprocess.Popen(
                ["qemu-io", "-f", "raw", "-t", "none", url], stdin=commands, stdout=said, stderr=subprocess.STDOUT
            )

    def finish(self, seconds: float) -> str:
        code = self.process.wait(seconds)
        said = self._said.read_text(errors="replace")
        assert code == 0, said[-2000:]
        return said

    def __enter__(self) -> "PacedLoad":
        return self

    def __exit__(self, *what: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def run(radosgw: Radosgw, directory: Path, seconds: float, *, pause_ms: int, journal: str) -> Report:
    """Raises AssertionError for whatever a blackout must not do."""
    report = Report(seconds)
    # What a write takes besides its pause makes the load last longer, never shorter.
    writes = paced_writes(7, int((WARM_UP_S + seconds + AFTER_S) * 1000 / pause_ms))
    with relayed(radosgw, directory) as (relay, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        options = ("--commit-bytes", "4M", "--journal-size", journal)
        with Server(directory, place.volume, *options, config=place.config) as server:
            server.start()
            qemu_io(server.url, f"write -P 77 0 {CACHED_MIB}M", "flush", f"read -P 77 0 {CACHED_MIB}M")
            with PacedLoad(server.url, writes, pause_ms, directory) as load:
                time.sleep(WARM_UP_S)
                _black_out(report, relay, server)
                _recover(report, relay, server)
                assert load.process.poll() is None, "the load ended too early to show that writing goes on"
                said = load.finish(seconds + 120)
            assert said.count(f"wrote {WRITE_BYTES}/{WRITE_BYTES} bytes") == len(writes)
            assert "failed" not in said
            assert "error" not in said.lower()
            _judge(writes, read_back(server.url, directory / "back.raw"))
            report.log = server.log()
            assert server.stop() == 0
        exported = s3block("export", place.volume, str(directory / "bucket.raw"), "--force", config=place.config)
        assert exported.code == 0, exported.err
        _judge(writes, (directory / "bucket.raw").read_bytes())
    return report


def _black_out(report: Report, relay: Relay, server: Server) -> None:
    before = status(server)["front"]
    report.writes_before = int(before["writes"])
    relay.cut()
    begun = time.monotonic()
    next_read = 0.0
    while (now := time.monotonic() - begun) < report.seconds:
        _sample(report, server, now)
        if now >= next_read:
            asked = time.monotonic()
            qemu_io(server.url, f"read -P 77 {random.Random(now).randrange(CACHED_MIB)}M 1M")
            report.cached_read_s_max = max(report.cached_read_s_max, time.monotonic() - asked)
            report.cached_reads += 1
            next_read = now + 5.0
        time.sleep(0.5)
    report.writes_during = report.samples[-1][3] - report.writes_before


def _recover(report: Report, relay: Relay, server: Server) -> None:
    at_end = status(server)
    relay.mend()
    mended = time.monotonic()
    while True:
        now = status(server)
        if now["front"]["rpo_seconds"] < report.seconds / 3:
            break
        assert time.monotonic() - mended < DRAIN_S_MAX, f"the backlog does not drain: {now['front']}"
        time.sleep(0.1)
    report.drained_after_s = time.monotonic() - mended
    time.sleep(1.1)  # the worker's counters come once a second
    now = status(server)
    report.writes_while_draining = int(now["front"]["writes"] - at_end["front"]["writes"])
    report.commits_while_draining = int(now["worker"]["commits"] - at_end["worker"].get("commits", 0))


def _sample(report: Report, server: Server, now: float) -> None:
    front = status(server)["front"]
    report.samples.append((now, front["journal_fill"], front["rpo_seconds"], int(front["writes"])))
    report.fill_max = max(report.fill_max, front["journal_fill"])
    report.rpo_seconds_max = max(report.rpo_seconds_max, front["rpo_seconds"])
    report.rpo_bytes_max = max(report.rpo_bytes_max, int(front["rpo_bytes"]))


def _judge(writes: list[Write], content: bytes) -> None:
    stamps = Stamps(SIZE_MIB * MIB)
    stamps.settle(Write(0, CACHED_MIB * MIB, 77))
    for write in writes:
        stamps.settle(write)
    assert len(content) == len(stamps.may) * BLOCK
    stamps.check(content)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.blackout", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--pause-ms", type=int, default=50, help="between two writes of 64 KiB")
    parser.add_argument("--journal", default="1G")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="blackout-") as name:
        radosgw = Radosgw(Path(name) / "radosgw")
        try:
            report = run(radosgw, Path(name), options.seconds, pause_ms=options.pause_ms, journal=options.journal)
        finally:
            radosgw.stop()
    for line in report.lines():
        print(line)
    print("\n".join(line for line in report.log.splitlines() if "store:" in line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
