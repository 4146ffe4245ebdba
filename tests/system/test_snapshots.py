"""Snapshots, clones and growing while a real initiator has the disk, through the commands that a user has."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from s3core.exit_codes import ExitCode
from tests.system.machine import MIB, Server, create, environment, qemu_io, s3block, tool


def answer(*arguments: str) -> Any:
    said = s3block(*arguments, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


@pytest.mark.initiator
def test_a_served_volume_is_snapshot_cloned_and_grown_under_its_initiator(tmp_path: Path) -> None:
    volume, clone = (f"file://{tmp_path}/store/{name}" for name in ("vm1", "vm2"))
    create(volume, size="64M")
    with Server(tmp_path, volume) as server:
        state = ("--state-dir", str(server.state))
        server.start()
        qemu_io(server.url, "write -P 1 0 1M", "write -P 1 63M 1M")
        answer("snapshot", "create", volume, "one", *state)
        # No flush in between: what was acknowledged before the snapshot is in it, what came after is not.
        qemu_io(server.url, "write -P 2 0 512k", "discard 63M 1M")
        answer("snapshot", "create", volume, "two", *state)
        changed = answer("diff", volume, "one", "two")["ranges"]
        assert changed == [{"offset": 0, "length": MIB // 2}, {"offset": 63 * MIB, "length": MIB}]

        refused = s3block("rollback", volume, "one", "--yes", *state)
        assert refused.code == ExitCode.REFUSED
        assert "is being served on this host" in refused.err

        # The clone is served beside its origin, written to, and neither sees the other.
        answer("clone", volume, "one", "vm2")
        with Server(tmp_path, clone, state="state2") as second:
            second.start()
            qemu_io(second.url, "read -P 1 0 1M", "read -P 1 63M 1M", "write -P 9 1M 1M", "write -P 9 0 64k", "flush")
            qemu_io(server.url, "read -P 2 0 512k", "read -P 1 512k 512k", "read -P 0 1M 1M")
            assert second.stop() == 0
        qemu_io(_served_again(second), "read -P 9 0 64k", "read -P 1 64k 960k", "read -P 9 1M 1M", "read -P 1 63M 1M")
        assert second.stop() == 0
        assert s3block("check", clone, "--deep").code == 0

        _grows_under_an_open_initiator(server, volume, state)
        assert server.stop() == 0
    said = s3block("rollback", volume, "one", "--yes", *state)
    assert said.code == 0, said.err
    with Server(tmp_path, volume) as server:
        server.start()
        qemu_io(server.url, "read -P 1 0 1M", "read -P 1 63M 1M", "length")
        assert server.stop() == 0
    assert s3block("check", volume, "--deep").code == 0


def _served_again(server: Server) -> str:
    return server.start().url


def _grows_under_an_open_initiator(server: Server, volume: str, state: tuple[str, ...]) -> None:
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", "-t", "none", server.url],
        env=environment(None),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as initiator:
        assert initiator.stdin is not None
        assert initiator.stdout is not None
        initiator.stdin.write("write -P 3 2M 4k\n")
        initiator.stdin.flush()
        while "wrote 4096/4096" not in (line := initiator.stdout.readline()):
            assert line, "qemu-io ended"
        answer("resize", volume, "128M", *state)
        assert "16777216" not in tool("iscsi-readcapacity16", server.url)
        # The open session gets the unit attention, and goes on.
        out, _ = initiator.communicate("write -P 4 3M 4k\nread -P 3 2M 4k\nread -P 4 3M 4k\n", timeout=60)
    assert initiator.returncode == 0, out
    assert "wrote 4096/4096 bytes at offset 3145728" in out
    assert "failed" not in out
    qemu_io(server.url, "read -P 0 100M 1M", "write -P 5 127M 1M", "flush", "read -P 5 127M 1M")
