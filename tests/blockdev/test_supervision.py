"""What the daemon tells the service manager: sd_notify(3)."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blockdev import daemon, supervision
from blockdev.daemon import RunningVolume, ServedVolume
from blockdev.engine import link
from blockdev.supervision import Supervision, told
from s3core.service_manager import ServiceManager
from s3core.settings import Config, VolumeSettings

PATIENCE_S = 120.0
COMMAND = (sys.executable, "-c", "import sys; from blockdev.cli import main; sys.exit(main())")


@contextmanager
def listening(place: Path) -> Iterator[Callable[[], str]]:
    """A service manager at that socket; what is called gives the next message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(PATIENCE_S)
        yield lambda: manager.recv(4096).decode()


def watched(place: Path, seconds: float) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": str(place), "WATCHDOG_USEC": str(int(seconds * 1e6))})


def test_while_volumes_attach_it_lives_and_the_host_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "READY_PATIENCE_S", 0.2)
    with listening(tmp_path / "n") as heard:
        one = Supervision(watched(tmp_path / "n", 0.3), ["vm1", "vm2"])
        one.begin()
        seen = [heard()]
        while "READY=1" not in seen:
            seen.append(heard())
        assert seen[0] == "STATUS=attaching vm1, vm2"
        assert "STATUS=still attaching vm1, vm2; initiators cannot log in yet" in seen
        assert "WATCHDOG=1" in seen, "attaching takes as long as it takes"
        one.serving()
        one.end()
        one.stopping()
        rest = heard()
        while rest != "STOPPING=1":
            assert rest != "READY=1", "it is said once"
            rest = heard()


def test_a_worker_that_hangs_ends_the_signs_of_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(tmp_path / "n") as heard:
        one = Supervision(watched(tmp_path / "n", 10), ["vm1", "vm2"])
        one.turn("serving", {"vm1": 0.0, "vm2": 4.9})
        assert [heard(), heard()] == ["WATCHDOG=1", "STATUS=serving"]
        one.turn("serving still", {"vm1": 5.1, "vm2": 0.0})
        assert heard() == "STATUS=serving still"
        assert "vm1: its worker has not been heard of for 5 s" in caplog.text
        one.turn("serving again", {"vm1": 0.2, "vm2": 0.0})
        assert [heard(), heard()] == ["WATCHDOG=1", "STATUS=serving again"]
        assert "vm1: its worker is heard of again" in caplog.text


def test_a_stop_that_goes_on_is_life_too(tmp_path: Path) -> None:
    with listening(tmp_path / "n") as heard:
        Supervision(watched(tmp_path / "n", 10), ["vm1"]).stop_goes_on("stopping: 1.0 MiB")
        assert [heard(), heard(), heard()] == [
            "WATCHDOG=1",
            "EXTEND_TIMEOUT_USEC=120000000",
            "STATUS=stopping: 1.0 MiB",
        ]


@pytest.mark.parametrize(
    ("sessions", "behind", "away", "line"),
    [
        (0, 0, False, "serving vm1, 0 sessions, the bucket has everything"),
        (1, 4096, False, "serving vm1, 1 session, less than 1 MiB behind"),
        (3, 12 << 20, True, "serving vm1, 3 sessions, 12 MiB behind, the store does not answer"),
    ],
)
def test_a_line_for_people(sessions: int, behind: int, away: bool, line: str) -> None:
    assert told(["vm1"], sessions, behind, store_is_away=away) == line


class StoppingFront:
    """A front whose worker carries what is left; `durable` grows for as long as `moves` says."""

    worker_counters: dict[str, float]

    def __init__(self, moves: int, *, ends: bool) -> None:
        self.worker_counters = {}
        self._moves, self._ends, self.durable = moves, ends, 0

    def detach(self, done: Callable[[Exception | None], None]) -> None:
        async def carry() -> None:
            for _ in range(self._moves):
                await asyncio.sleep(0.1)
                self.durable += 1
            if self._ends:
                done(None)

        self._task = asyncio.ensure_future(carry())


def stopped(tmp_path: Path, front: Any) -> Exception | None:
    async def main() -> Exception | None:
        settings = VolumeSettings(url="file:///nowhere")
        running = RunningVolume(
            ServedVolume("vm1", "file:///nowhere", settings, tmp_path), Config(), accept_loss=False, host_is_off=False
        )
        running.front = front
        return await running.detach()

    return asyncio.run(main())


def test_a_stop_goes_on_while_the_bucket_takes_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STOP_PATIENCE_S", 2.0)
    monkeypatch.setattr(daemon, "TURN_S", 0.02)
    began = time.monotonic()
    assert stopped(tmp_path, StoppingFront(30, ends=True)) is None
    assert time.monotonic() - began > 2.9, "longer than the patience with a bucket that takes nothing"


def test_a_stop_ends_when_the_bucket_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "STOP_PATIENCE_S", 0.5)
    monkeypatch.setattr(daemon, "TURN_S", 0.02)
    problem = stopped(tmp_path, StoppingFront(2, ends=False))
    assert "vm1: the bucket took nothing more for 0 s" in str(problem)
    assert "is safe in" in str(problem)


def test_requests_that_succeed_are_progress_too(tmp_path: Path) -> None:
    async def main() -> None:
        settings = VolumeSettings(url="file:///nowhere")
        served = ServedVolume("vm1", "file:///nowhere", settings, tmp_path)
        running = RunningVolume(served, Config(), accept_loss=False, host_is_off=False)
        before = running._moved
        running._take(link.Alive(7))
        assert running._moved != before

    asyncio.run(main())


@pytest.mark.slow
def test_the_command_tells_from_attaching_to_its_end(tmp_path: Path) -> None:
    """The real process: ready when it listens; a worker that is stopped (SIGSTOP) ends the signs of life; a stop says so."""
    volume = f"file://{tmp_path}/store/vm1"
    subprocess.run([*COMMAND, "create", volume, "--size", "64M"], check=True, capture_output=True)
    with listening(tmp_path / "n") as heard:
        served = subprocess.Popen(
            [
                *COMMAND,
                "serve",
                volume,
                "--journal-size",
                "64M",
                "--cache-size",
                "64M",
                "--listen",
                "127.0.0.1:0",
                "--state-dir",
                tmp_path / "s",
            ],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "6000000"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            seen = [heard()]
            while "READY=1" not in seen:
                seen.append(heard())
            assert served.stdout is not None
            assert served.stdout.readline().startswith("serving vm1 at iscsi://"), "it listens by then"
            while "WATCHDOG=1" not in seen[seen.index("READY=1") :]:
                seen.append(heard())
            while "STATUS=serving vm1, 0 sessions, the bucket has everything" not in seen:
                seen.append(heard())
            (worker,) = map(int, Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split())
            os.kill(worker, signal.SIGSTOP)
            assert served.stderr is not None
            while "its worker has not been heard of" not in (line := served.stderr.readline()):
                assert line, "it ended"
            os.kill(worker, signal.SIGCONT)
            while "its worker is heard of again" not in (line := served.stderr.readline()):
                assert line, "it ended"
            served.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in seen:
                seen.append(heard())
            assert served.wait(PATIENCE_S) == 0
        finally:
            if served.poll() is None:
                served.kill()
            served.communicate()


def test_a_volume_whose_state_directory_is_gone_is_still_told(tmp_path: Path) -> None:
    gone = ServedVolume(
        "vm1", f"file://{tmp_path}/disks", VolumeSettings(url=f"file://{tmp_path}/disks"), tmp_path / "gone"
    )
    running = RunningVolume(gone, Config(), accept_loss=False, host_is_off=False)
    told_of_it = running.status()
    assert (told_of_it["name"], told_of_it["state"], "state_free_bytes" in told_of_it) == ("vm1", "attaching", False)
