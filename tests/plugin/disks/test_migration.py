"""Two nodes on one host: a guest moves from one to the other, and its disk follows, under a real QEMU initiator.

Node 1 has its initiators at 127.0.0.1 and other gateways at 127.0.1.1, node 2 at 127.0.0.2 and 127.0.1.2.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.disks import peers, serving
from plugin.disks.verbs import Disks
from plugin.errors import Refused
from tests.plugin.disks import nodes
from tests.plugin.disks.nodes import qemu_io, soon

MIB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("qemu-io") is None, reason="qemu-io (qemu-utils, qemu-block-extra) is not installed"
    ),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Disks, Disks]]:
    port, store = nodes.free_port(), f"file://{tmp_path}/store"
    with nodes.node(tmp_path, 1, store, port) as source, nodes.node(tmp_path, 2, store, port) as target:
        yield source, target


class Guest:
    """A QEMU initiator that writes blocks of rising numbers one after the other, each with a flush, until it is told to
    stop; each answer is looked at."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.written = 0
        self.failure = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _ask(self, order: str, sign: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        while sign not in (line := self._process.stdout.readline()):
            if not line or "failed" in line or "rror" in line:
                raise AssertionError(f"{order}: {line!r}")

    def _write(self) -> None:
        try:
            while not self._stopping.is_set():
                number = self.written
                self._ask(f"write -P {number % 251 + 1} {number % 1024 * 4}k 4k", "wrote 4096")
                self.written += 1
        except Exception as error:  # noqa: BLE001 - told to the test
            self.failure = str(error)

    def until(self, count: int) -> None:
        deadline = time.monotonic() + nodes.SECONDS
        while self.written < count and not self.failure:
            assert time.monotonic() < deadline, f"{self.written} of {count} blocks"
            time.sleep(0.02)
        assert not self.failure

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join(nodes.SECONDS)
        self._process.communicate("quit\n", timeout=nodes.SECONDS)
        assert not self.failure
        return self.written


def require_all(url: str, written: int) -> None:
    """Each block is the last one that was written there."""
    first = max(0, written - 1024)
    orders = [f"read -P {number % 251 + 1} {number % 1024 * 4}k 4k" for number in range(first, written)]
    for begin in range(0, len(orders), 200):
        qemu_io(url, *orders[begin : begin + 200])


def test_a_disk_follows_its_guest_under_writes(cluster: tuple[Disks, Disks]) -> None:
    source, target = cluster
    name = source.alloc(100, "", 8 * MIB, "raw", until=soon())
    source.activate(name, "", kernel_device=False, until=soon())
    there = target.activate(name, "", kernel_device=False, until=soon())["url"]
    volume = next(target.place.run_dir.glob("*.json")).stem
    assert serving.look(target.place.volume_dir(volume)) is None, "two nodes serve it"
    guest = Guest(there)
    try:
        guest.until(50)
        source.deactivate(name, until=soon())
        assert serving.look(source.place.volume_dir(volume)) is None
        guest.until(guest.written + 50)
        assert serving.look(target.place.volume_dir(volume)) is not None
        # And back, while it writes on.
        source.activate(name, "", kernel_device=False, until=soon())
        assert serving.look(source.place.volume_dir(volume)) is None
    finally:
        written = guest.stop()
    require_all(there, written)
    require_all(source.url(name), written)
    target.deactivate(name, until=soon())
    require_all(source.url(name), written)


def test_a_source_that_crashes_serves_on_for_the_target(cluster: tuple[Disks, Disks]) -> None:
    source, target = cluster
    name = source.alloc(100, "", 8 * MIB, "raw", until=soon())
    source.activate(name, "", kernel_device=False, until=soon())
    there = target.activate(name, "", kernel_device=False, until=soon())["url"]
    volume = next(source.place.run_dir.glob("*.json")).stem
    guest = Guest(there)
    try:
        guest.until(20)
        here = serving.look(source.place.volume_dir(volume))
        assert here is not None
        nodes.kill(here.pid)
        guest.until(guest.written + 20)
        assert serving.look(target.place.volume_dir(volume)) is None
    finally:
        written = guest.stop()
    require_all(there, written)


def test_what_is_active_elsewhere_is_not_taken_away(cluster: tuple[Disks, Disks]) -> None:
    source, target = cluster
    name = source.alloc(100, "", 8 * MIB, "raw", until=soon())
    source.activate(name, "", kernel_device=False, until=soon())
    for verb in (
        lambda: target.free(name, until=soon()),
        lambda: target.base(name, until=soon()),
        lambda: target.rollback(name, "x", until=soon()),
    ):
        with pytest.raises(Refused, match="active on node node1"):
            verb()


def test_a_gateway_says_nothing_to_who_does_not_hold_the_secret(cluster: tuple[Disks, Disks]) -> None:
    source, _ = cluster
    name = source.alloc(100, "", 8 * MIB, "raw", until=soon())
    source.activate(name, "", kernel_device=False, until=soon())
    host, port, target = source.place.peer_host, source.place.port, source.target(name)
    assert peers.ask(host, port, peers.read_secret(source.place.secret), target) == "serving"
    with pytest.raises(peers.NotOurs):
        peers.ask(host, port, bytes(32), target)
