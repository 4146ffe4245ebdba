"""The real daemon when its store is away, refuses or is slow, and when the journal is too small for that: real radosgw
behind a relay that is cut, QEMU and the harness's own initiator at work."""

import random
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay
from tests.system import blackout
from tests.system.blackout import SIZE_MIB, PacedLoad, paced_writes, relayed, status
from tests.system.conftest import Place
from tests.system.machine import MIB, Server, Stamps, Write, create, qemu_io, read_back, s3block
from tests.system.raw_initiator import BUSY, GOOD, RawInitiator

pytestmark = [pytest.mark.slow, pytest.mark.initiator, pytest.mark.rgw]

SECTOR = 512


def test_a_blackout_of_half_a_minute(radosgw: Radosgw, tmp_path: Path) -> None:
    report = blackout.run(radosgw, tmp_path, 30.0, pause_ms=50, journal="256M")
    print("\n".join(report.lines()))
    assert report.writes_during > 60
    assert report.rpo_seconds_max > 29
    assert report.cached_reads >= 5
    assert report.cached_read_s_max < 5
    assert report.writes_while_draining > 5, "the backlog drains beside new writes"
    assert report.commits_while_draining >= 2
    assert "trying again until it works" in report.log
    assert "answers again after" in report.log


@pytest.mark.parametrize(("refuse_every", "delay_s"), [(2, 0.0), (0, 2.0)], ids=["every second answer is 503", "slow"])
def test_a_store_that_is_in_trouble(radosgw: Radosgw, tmp_path: Path, refuse_every: int, delay_s: float) -> None:
    seconds, pause_ms = 20.0, 20
    writes = paced_writes(9, int(seconds * 1.5 * 1000 / pause_ms))
    with relayed(radosgw, tmp_path) as (relay, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        options = ("--commit-bytes", "1M", "--journal-size", "256M")
        with Server(tmp_path, place.volume, *options, config=place.config) as server:
            server.start()
            with PacedLoad(server.url, writes, pause_ms, tmp_path) as load:
                before = status(server)["worker"].get("commits", 0)
                passed = relay.requests
                relay.refuse_every, relay.delay_s = refuse_every, delay_s
                time.sleep(seconds)
                during = status(server)
                assert relay.requests - passed > 5
                relay.refuse_every, relay.delay_s = 0, 0.0
                said = load.finish(120)
            assert "failed" not in said
            assert "error" not in said.lower()
            made = during["worker"]["commits"] - before
            print(
                f"{made} commits in {seconds} s, {relay.refused} requests refused, rpo {during['front']['rpo_seconds']}"
            )
            assert made >= 2, "commits go on, slowly"
            assert (relay.refused > 5) == bool(refuse_every)
            assert server.stop() == 0
        content = _exported(place, tmp_path)
    stamps = Stamps(SIZE_MIB * MIB)
    for write in writes:
        stamps.settle(write)
    stamps.check(content)


# --- a journal that is too small -------------------------------------------------------------------------------------


class Flood:
    """One connection that always has `depth` writes under way, each to a place of its own, BUSY ones sent again. From the
    disk's end it goes back to its beginning: how far it comes depends on the machine."""

    def __init__(self, url: str, *, depth: int = 8, length: int = 64 * 1024, begin: int = 0) -> None:
        self.fill = 0.0
        self.latencies: list[tuple[float, float]] = []
        """(fill of the journal when it was sent, seconds)."""
        self.busy_at: list[float] = []
        self.settled: list[Write] = []
        self._initiator = RawInitiator(url)
        self._depth = depth
        self._length = length
        self._begin = self._next = begin
        self._under_way: dict[int, tuple[float, float, Write]] = {}
        self._again: list[Write] = []
        self._source = random.Random(4)
        self._quiet_until = 0.0

    def go_on(self, server: Server, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            while len(self._under_way) < self._depth and self._initiator.window and now >= self._quiet_until:
                self._send()
            self._hear()
        self.fill = status(server)["front"]["journal_fill"]

    def end(self) -> None:
        """Until everything that was sent is answered GOOD."""
        while self._under_way or self._again:
            while self._again and time.monotonic() >= self._quiet_until:
                self._send()
            self._hear()
        self._initiator.close()

    def _send(self) -> None:
        if self._again:
            write = self._again.pop()
        else:
            if self._next + self._length > SIZE_MIB * MIB:
                self._next = self._begin
            write = Write(self._next, self._length, self._source.randrange(1, 256))
            self._next += self._length
        tag = self._initiator.write(write.offset // SECTOR, bytes([write.stamp]) * write.length)
        self._under_way[tag] = (time.monotonic(), self.fill, write)

    def _hear(self) -> None:
        for answer in self._initiator.poll(0.05):
            sent, fill, write = self._under_way.pop(answer.tag)
            if answer.status == BUSY:
                self.busy_at.append(self.fill)
                self._again.append(write)
                self._quiet_until = time.monotonic() + 0.2
                continue
            assert answer.status == GOOD, answer
            self.latencies.append((fill, time.monotonic() - sent))
            self.settled.append(write)

    def median(self, low: float, high: float) -> float:
        return statistics.median(taken for fill, taken in self.latencies if low <= fill < high)


def test_a_small_journal_fills_slows_answers_busy_and_recovers(radosgw: Radosgw, tmp_path: Path) -> None:
    with relayed(radosgw, tmp_path) as (relay, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        with Server(tmp_path, place.volume, "--journal-size", "32M", config=place.config) as server:
            server.start()
            flood = Flood(server.url)
            relay.cut()
            begun = time.monotonic()
            while len(flood.busy_at) < 10:
                flood.go_on(server, 0.1)
                assert time.monotonic() - begun < 120, f"not full yet: {flood.fill}"
            full_after = time.monotonic() - begun
            _print_latencies(flood)
            relay.mend()
            while flood.fill > 0.4:
                flood.go_on(server, 0.2)
                assert time.monotonic() - begun < 180, "it does not recover"
            refused = len(flood.busy_at)
            flood.end()
            print(f"full after {full_after:.1f} s, BUSY {refused} times, at a fill of {min(flood.busy_at):.2f} or more")
            assert min(flood.busy_at) > 0.9, "BUSY comes last"
            assert flood.median(0.8, 0.95) > 10 * flood.median(0.0, 0.5), "it slows before it refuses"
            assert max(taken for _, taken in flood.latencies) < 5
            assert status(server)["front"]["writes_held_seconds"] > 1
            _judge(flood.settled, read_back(server.url, tmp_path / "back.raw"))
            assert server.stop() == 0
        _judge(flood.settled, _exported(place, tmp_path))


def _print_latencies(flood: Flood) -> None:
    bands = [(0.0, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.95), (0.95, 1.01)]
    for low, high in bands:
        found = sorted(taken for fill, taken in flood.latencies if low <= fill < high)
        if found:
            print(
                f"fill {low:.2f} to {high:.2f}: {len(found)} writes, median {statistics.median(found) * 1000:.1f} ms,"
                f" longest {found[-1] * 1000:.0f} ms"
            )


def _judge(writes: list[Write], content: bytes) -> None:
    stamps = Stamps(SIZE_MIB * MIB)
    for write in writes:
        stamps.settle(write)
    stamps.check(content)


def _exported(place: Place, directory: Path) -> bytes:
    target = directory / "bucket.raw"
    made = s3block("export", place.volume, str(target), "--force", config=place.config)
    assert made.code == 0, made.err
    return target.read_bytes()


# --- flush = s3 ------------------------------------------------------------------------------------------------------

NEVER_BY_ITSELF = ("--flush", "s3", "--commit-interval", "1h", "--commit-bytes", "64M", "--journal-size", "256M")


def test_what_was_flushed_to_s3_is_in_the_bucket(radosgw: Radosgw, tmp_path: Path) -> None:
    with relayed(radosgw, tmp_path) as (_, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        with Server(tmp_path, place.volume, *NEVER_BY_ITSELF, config=place.config) as server:
            server.start()
            writes = paced_writes(3, 40)
            for number, write in enumerate(writes):
                qemu_io(server.url, str(write), "flush")  # it would not wait for the interval of an hour
                if number % 20 == 19:
                    _judge(writes[: number + 1], _exported(place, tmp_path))
            server.kill()
        _judge(writes, _exported(place, tmp_path))


def test_a_flush_to_s3_waits_for_the_store_and_writes_do_not(radosgw: Radosgw, tmp_path: Path) -> None:
    with relayed(radosgw, tmp_path) as (relay, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        with Server(tmp_path, place.volume, *NEVER_BY_ITSELF, config=place.config) as server:
            server.start()
            relay.cut()
            qemu = subprocess.Popen(
                ["qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 5 0 1M", "-c", "flush", server.url],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            flood = Flood(server.url, depth=1, length=4096, begin=2 * MIB)
            for _ in range(20):
                flood.go_on(server, 0.25)
            assert qemu.poll() is None, "the flush waits"
            assert len(flood.settled) > 10, "writes go on"
            relay.mend()
            begun = time.monotonic()
            said, _ = qemu.communicate(timeout=60)
            waited = time.monotonic() - begun
            assert qemu.returncode == 0, said
            assert b"error" not in said.lower()
            flood.end()
            print(f"flush answered {waited:.1f} s after the store was back; {len(flood.settled)} writes meanwhile")
            server.kill()
        content = _exported(place, tmp_path)
        assert content[:MIB] == bytes([5]) * MIB


def test_flushes_that_wait_together_share_commits(radosgw: Radosgw, tmp_path: Path) -> None:
    """Each of 16 initiators writes and flushes in turn: a commit serves all that came while the one before was made."""
    rounds, count = 12, 16
    with relayed(radosgw, tmp_path) as (relay, place):
        create(place.volume, size=f"{SIZE_MIB}M", config=place.config)
        with Server(tmp_path, place.volume, *NEVER_BY_ITSELF, config=place.config) as server:
            server.start()
            _slow_enough_to_meet(relay)
            initiator = RawInitiator(server.url)
            before = status(server)["worker"].get("commits", 0)
            begun = time.monotonic()
            flushing = {_write_and_flush(initiator, lane, 1): (lane, 1) for lane in range(count)}
            done = 0
            while flushing:
                for answer in initiator.poll(30.0):
                    assert answer.status == GOOD
                    lane, turn = flushing.pop(answer.tag, (-1, 0))
                    if lane < 0:
                        continue  # a write's
                    done += 1
                    if turn < rounds:
                        flushing[_write_and_flush(initiator, lane, turn + 1)] = (lane, turn + 1)
            initiator.close()
            taken = time.monotonic() - begun
            time.sleep(1.1)
            made = status(server)["worker"]["commits"] - before
            print(f"{done} flushes in {taken:.1f} s by {made} commits")
            assert done == rounds * count
            assert made <= rounds * 4
            server.kill()
        content = _exported(place, tmp_path)
        for lane in range(count):
            assert content[lane * MIB : lane * MIB + 4096] == bytes([rounds]) * 4096


def _slow_enough_to_meet(relay: Relay) -> None:
    relay.delay_s = 0.05


def _write_and_flush(initiator: RawInitiator, lane: int, turn: int) -> int:
    initiator.write(lane * MIB // SECTOR, bytes([turn]) * 4096)
    return initiator.flush()
