"""Nodes for tests: places of one store with directories, addresses and gateways of their own."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugin.disks.place import DiskPlace
from plugin.disks.verbs import Disks
from s3core.settings import Config

SECONDS = 60.0


def soon() -> float:
    """A deadline that only a hang reaches."""
    return time.monotonic() + SECONDS


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def place(root: Path, number: int, store_url: str, port: int, config: Config | None = None) -> DiskPlace:
    home = root / f"node{number}"
    return DiskPlace(
        storage="disks",
        store_url=store_url,
        config=config or Config(),
        state_dir=home / "state",
        run_dir=home / "run" / "disks" / "disks",
        secret=root / "pve" / "gateway.key",
        node=f"node{number}",
        port=port,
        local_host=f"127.0.0.{number}",
        peer_host=f"127.0.1.{number}",
        cache_bytes=8 << 20,
        journal_bytes=16 << 20,
    )


@contextmanager
def node(root: Path, number: int, store_url: str, port: int, config: Config | None = None) -> Iterator[Disks]:
    """A node; what it started is ended, by process id, when it is left."""
    made = place(root, number, store_url, port, config)
    try:
        yield Disks(made)
    finally:
        end_all(made)


def end_all(made: DiskPlace) -> None:
    """Kill whatever runs for the place, by process id: gateways first, since they start disks again. What was served is of
    no use any more."""
    deadline = soon()
    while found := gateway_pids(made) or pids(made):
        assert time.monotonic() < deadline, f"processes {found} do not end"
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                kill(pid)


def pids(made: DiskPlace) -> list[int]:
    """Of the processes that have a directory of the place in their words, whoever began them."""
    return [pid for pid, words in _processes() if any(_within(made, word) for word in words)]


def gateway_pids(made: DiskPlace) -> list[int]:
    return [
        pid
        for pid, words in _processes()
        if "plugin.disks.gateway" in words and any(_within(made, word) for word in words)
    ]


def _within(made: DiskPlace, word: str) -> bool:
    return any(Path(word).is_relative_to(folder) for folder in (made.state_dir, made.run_dir.parent))


def _processes() -> Iterator[tuple[int, list[str]]]:
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(cmdline.parent.name)
        with contextlib.suppress(OSError):
            words = cmdline.read_bytes().decode(errors="replace").split("\0")
            if pid != os.getpid() and words != [""]:  # a zombie has no words
                yield pid, words


def kill(pid: int) -> None:
    """As a crash does, with what it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    descriptor = os.pidfd_open(pid)
    for one in (pid, *map(int, children)):
        os.kill(one, signal.SIGKILL)
    select.select([descriptor], [], [], SECONDS)  # its sockets are closed then
    os.close(descriptor)


def qemu_io(url: str, *orders: str, read_only: bool = False) -> str:
    """What `qemu-io` says, after it has done these. Raises CalledProcessError, and AssertionError for a wrong pattern."""
    words = [word for order in orders for word in ("-c", order)]
    told = subprocess.run(
        ["qemu-io", *(["-r"] if read_only else []), "-f", "raw", *words, url],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    said = told.stdout + told.stderr
    assert "verification failed" not in said, said
    assert "error" not in said.lower(), said
    return said
