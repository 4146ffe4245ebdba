"""A store that hangs, under a service manager that watches: the daemon says that it lives, and a stop ends within its bound
with everything that was acknowledged still there."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.servers.radosgw import Radosgw
from tests.system.blackout import relayed
from tests.system.machine import Server, create, qemu_io, read_part

pytestmark = [pytest.mark.slow, pytest.mark.rgw, pytest.mark.initiator, pytest.mark.timeout(900)]

WATCHDOG_S = 30.0
HANGS_S = 45.0
STOP_S = 240.0
"""60 s without progress, 10 s for the map, and a busy host."""


class Manager:
    """Hears what a daemon tells, with the time of each message."""

    def __init__(self, place: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(place))
        self.heard: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except OSError:
                return
            if message == "end":
                return
            self.heard.append((time.monotonic(), message))

    def longest_silence(self, since: float, until: float) -> float:
        beats = [since, *(at for at, said in list(self.heard) if said == "WATCHDOG=1" and since < at < until), until]
        return max(later - earlier for earlier, later in pairwise(beats))

    def said(self, text: str) -> bool:
        return any(text in message for _, message in list(self.heard))

    def close(self, place: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"end", str(place))
        self._thread.join()
        self._socket.close()


@contextmanager
def released(event: threading.Event) -> Iterator[None]:
    """Whoever still waits for it goes on at the end, so that the relay's threads end."""
    try:
        yield
    finally:
        event.set()


def test_a_store_that_hangs_kills_nobody_and_holds_up_no_stop(
    radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "n"
    manager = Manager(place)
    goes_on = threading.Event()
    with relayed(radosgw, tmp_path) as (relay, volume), released(goes_on):
        create(volume.volume, size="64M", config=volume.config)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
        with Server(
            tmp_path, volume.volume, "--commit-interval", "1s", "--lease", "10min", config=volume.config
        ) as server:
            server.start()

            def hang(asked: str) -> None:
                goes_on.wait()

            relay.before = hang
            qemu_io(server.url, "write -P 7 0 4M", "flush")
            began = time.monotonic()
            time.sleep(HANGS_S)
            assert manager.longest_silence(began, time.monotonic()) < WATCHDOG_S
            assert "has not been heard of" not in server.log()
            assert manager.said("READY=1")
            assert manager.said(", 4 MiB behind")

            asked = time.monotonic()
            server.terminate()
            assert server.wait(STOP_S) != 0, "the bucket does not have everything"
            assert time.monotonic() - asked > 50, "it was patient"
            assert manager.said("STOPPING=1")
            assert manager.said("EXTEND_TIMEOUT_USEC=120000000")
            assert manager.said("STATUS=stopping: 4.0 MiB are still to be put into the bucket")
            assert "the bucket took nothing more for 60 s" in server.log()

            goes_on.set()
            monkeypatch.delenv("NOTIFY_SOCKET")
            server.start()
            assert read_part(server.url, 0, 4 << 20, tmp_path / "read") == b"\x07" * (4 << 20)
            assert server.stop() == 0
    manager.close(place)
