"""What docs/upgrade.md says of a restart, on a real daemon and an initiator that goes on writing."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from tests.runbook.world import World
from tests.system.machine import WROTE, qemu_io, read_back

pytestmark = [pytest.mark.slow, pytest.mark.rgw, pytest.mark.initiator]

BLOCK_BYTES = 64 * 1024
BLOCKS = 500
PROMPT = b"qemu-io> "
MORE = 20
"""Writes before the restart, and after it."""


class SteadyWriter:
    """QEMU's initiator, one write and one flush after the other until it is told to stop. Each write has a stamp of its own."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[tuple[int, int]] = []
        """Block and stamp of every write that was flushed."""
        self.longest_s = 0.0
        self.said = b""
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self._stopped.set()
        self._thread.join(200)
        self._process.kill()
        self._process.wait()

    def wait_for(self, count: int, *, seconds: float = 180.0) -> None:
        give_up = time.monotonic() + seconds
        while len(self.acknowledged) < count:
            assert self._thread.is_alive(), self.said[-2000:]
            assert time.monotonic() < give_up, (
                f"{len(self.acknowledged)} of {count} were written: {self.said[-2000:]!r}"
            )
            time.sleep(0.05)

    def _work(self) -> None:
        self._answer()
        while not self._stopped.is_set():
            number = len(self.acknowledged)
            block, stamp = number % BLOCKS, 1 + number % 251
            begun = time.monotonic()
            wrote = self._ask(f"write -P {stamp} {block * BLOCK_BYTES} {BLOCK_BYTES}")
            if not WROTE.search(wrote) or b"fail" in self._ask("flush"):
                return
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            self.acknowledged.append((block, stamp))

    def _ask(self, line: str) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return self._answer()

    def _answer(self) -> bytes:
        """Until it asks for the next command: it reads one line at a time and would miss a second one."""
        assert self._process.stdout is not None
        answer = b""
        while not answer.endswith(PROMPT) and (piece := os.read(self._process.stdout.fileno(), 65536)):
            answer += piece
        self.said += answer
        return answer


def test_a_volume_is_written_to_over_a_restart(world: World, tmp_path: Path) -> None:
    world.make_volume()
    world.serve()
    qemu_io(world.target, "read 0 4k")
    with SteadyWriter(world.target) as writer:
        writer.wait_for(MORE)
        world.play_marked("docs/upgrade.md", "restart")
        writer.wait_for(len(writer.acknowledged) + MORE)
    print(f"{len(writer.acknowledged)} writes, the longest took {writer.longest_s:.1f} s")
    assert world.do("journalctl -u s3block@vm1").count("serving ") == 2
    back = read_back(world.target, tmp_path / "back.raw")
    newest = dict(writer.acknowledged)
    wrong = [
        block
        for block, stamp in newest.items()
        if back[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] != bytes([stamp]) * BLOCK_BYTES
    ]
    assert wrong == [], "acknowledged writes are lost"
