"""Two hosts, one volume: the second takes it over while the first is frozen, cut off from the store, or well and writing.

One rule: from the moment the second one serves, the first one answers nothing but errors, whatever it was doing.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from s3core.exit_codes import ExitCode
from tests.servers.radosgw import Radosgw
from tests.system.blackout import relayed
from tests.system.conftest import Place, write_endpoint
from tests.system.machine import Server, create, qemu_io, s3block
from tests.system.raw_initiator import GOOD, Answer, Gone, RawInitiator

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

LEASE_S = 3
LEASE = ("--lease", f"{LEASE_S}s", "--commit-interval", "300ms")


def group_signal(server: Server, number: int) -> None:
    """To daemon and worker."""
    assert server.pid
    os.killpg(server.pid, number)


def answers(disk: RawInitiator, seconds: float) -> list[Answer]:
    """Everything that is answered in that time, until the connection ends."""
    found: list[Answer] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found += disk.poll(max(0.0, min(0.2, until - time.monotonic())))
        except Gone:
            break
    return found


def refused_all(found: list[Answer]) -> None:
    assert all(answer.status != GOOD for answer in found), found


def wait_for_end(server: Server) -> None:
    assert server.wait(60) == ExitCode.REFUSED
    assert "taken over" in server.log()


def test_a_frozen_writer_answers_nothing_when_it_wakes(file_place: Place, tmp_path: Path) -> None:
    """SIGSTOP with commands in flight and in the socket; SIGCONT when the other one serves."""
    create(file_place.volume, size="64M")
    with (
        Server(tmp_path, file_place.volume, *LEASE) as first,
        Server(tmp_path, file_place.volume, *LEASE, state="other") as second,
    ):
        first.start()
        disk = RawInitiator(first.url)
        assert disk.wait(disk.write(0, b"a" * 4096)).status == GOOD
        assert disk.wait(disk.flush()).status == GOOD
        first.carry()
        group_signal(first, signal.SIGSTOP)
        for number in range(8):
            disk.write(8 * number, bytes([number]) * 4096)
        disk.flush()
        disk.read(0, 8)
        began = time.monotonic()
        second.start("--accept-loss")
        assert time.monotonic() - began > LEASE_S, "it did not wait for the lease"
        qemu_io(second.url, "read -P 0x61 0 4k", "write -P 7 1M 4k", "flush")
        group_signal(first, signal.SIGCONT)
        refused_all(answers(disk, 20.0))
        wait_for_end(first)
        disk.close()
        qemu_io(second.url, "read -P 0x61 0 4k", "read -P 7 1M 4k")
        assert second.stop() == 0


def test_a_writer_that_is_well_says_that_it_has_stopped(file_place: Place, tmp_path: Path) -> None:
    """So that the other one need not wait for a lease of ten minutes; nothing is written meanwhile."""
    create(file_place.volume, size="64M")
    with (
        Server(tmp_path, file_place.volume, "--lease", "45s") as first,
        Server(tmp_path, file_place.volume, "--lease", "45s", state="other") as second,
    ):
        first.start()
        qemu_io(first.url, "write -P 5 0 4k", "flush")
        first.carry()
        second.start("--accept-loss")
        assert "epoch 1 has said that it stopped" in second.log()
        wait_for_end(first)
        qemu_io(second.url, "read -P 5 0 4k")
        assert second.stop() == 0


@pytest.mark.rgw
def test_a_writer_that_is_cut_off_stops_by_itself(radosgw: Radosgw, tmp_path: Path) -> None:
    """It goes on while its lease lasts; then writes, flushes and reads are answered BUSY, and when the way to the store is
    open again it learns that another one has the volume."""
    with relayed(radosgw, tmp_path) as (relay, place):
        direct = tmp_path / "direct"
        direct.mkdir()
        create(place.volume, size="64M", config=place.config)
        with (
            Server(tmp_path, place.volume, *LEASE, config=place.config) as first,
            Server(tmp_path, place.volume, *LEASE, state="other", config=write_endpoint(radosgw, direct)) as second,
        ):
            first.start()
            disk = RawInitiator(first.url)
            assert disk.wait(disk.write(0, b"a" * 4096)).status == GOOD
            assert disk.wait(disk.flush()).status == GOOD
            first.carry()
            relay.cut()
            cut_at = time.monotonic()
            acknowledged: list[float] = []
            while (sent_at := time.monotonic()) - cut_at < LEASE_S + 3:
                if disk.wait(disk.write(8, b"b" * 4096)).status == GOOD:
                    acknowledged.append(sent_at)
                time.sleep(0.1)
            assert acknowledged, "it stopped at once, not with its lease"
            assert acknowledged[-1] - cut_at < LEASE_S
            refused_all([disk.wait(disk.flush()), disk.wait(disk.read(0, 8))])
            second.start("--accept-loss")
            qemu_io(second.url, "read -P 0x61 0 4k", "write -P 7 1M 4k", "flush")
            for _ in range(10):
                refused_all([disk.wait(disk.write(16, b"c" * 4096)), disk.wait(disk.flush())])
            relay.mend()
            wait_for_end(first)
            disk.close()
            qemu_io(second.url, "read -P 0x61 0 4k", "read -P 7 1M 4k")
            assert second.stop() == 0


def test_a_volume_that_flushes_to_the_bucket_is_taken_over_without_loss(file_place: Place, tmp_path: Path) -> None:
    """There is nothing to accept, and the lineage stays: the host is killed, its journal is gone."""
    create(file_place.volume, size="64M")
    options = ("--flush", "s3", *LEASE)
    with (
        Server(tmp_path, file_place.volume, *options) as first,
        Server(tmp_path, file_place.volume, *options, state="other") as second,
    ):
        first.start()
        qemu_io(first.url, "write -P 5 0 1M", "flush", "write -P 6 1M 4k", "flush")
        lineage = s3block("info", file_place.volume, "--json").out.partition('"lineage": "')[2][:36]
        first.kill()
        second.start()
        qemu_io(second.url, "read -P 5 0 1M", "read -P 6 1M 4k")
        assert second.stop() == 0
        assert lineage in s3block("info", file_place.volume, "--json").out


def test_the_host_that_lost_the_volume_is_refused_with_its_journal(file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume, size="64M")
    with (
        Server(tmp_path, file_place.volume, *LEASE) as first,
        Server(tmp_path, file_place.volume, *LEASE, state="other") as second,
    ):
        first.start()
        qemu_io(first.url, "write -P 5 0 4k", "flush")
        first.kill()
        began = time.monotonic()
        second.start("--accept-loss")
        assert time.monotonic() - began < 30, "the processes are gone: nothing to wait for"
        qemu_io(second.url, "write -P 9 0 4k", "flush")
        second.kill()
        refused = s3block("serve", file_place.volume, "--listen", "127.0.0.1:0", "--state-dir", str(first.state))
        assert refused.code == ExitCode.REFUSED
        assert "its journal is not here" in refused.err
        second.start()
        qemu_io(second.url, "read -P 9 0 4k")
        assert second.stop() == 0
