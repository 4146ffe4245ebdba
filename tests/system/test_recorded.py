"""A served volume that a ledger covers: its life is in the ledger, its data is not, and a broken ledger is no matter of its."""

import contextlib
import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integrity.ledgers import join, ledger_settings, records
from tests.system.machine import MIB, Server, create, qemu_io, s3block

pytestmark = [pytest.mark.initiator]


def status(server: Server) -> Any:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
        line.settimeout(30)
        line.connect(str(server.state_dir / "control"))
        line.sendall(b'{"do": "status"}\n')
        return json.loads(line.makefile("rb").readline())["result"]


def told(server: Server, recorded: int, lost: int = 0) -> bool:
    """Whether so many events were recorded and lost, soon: they are told behind the volume's back, which waits for none."""
    until = time.monotonic() + 60
    while (now := status(server)["ledger"]) != {"recorded": recorded, "lost": lost}:
        if time.monotonic() > until or now["recorded"] > recorded or now["lost"] > lost:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(ledger_settings(tmp_path, f"file://{tmp_path}/store"))
    join(file)
    return file


def test_the_life_of_a_served_volume_is_recorded_and_its_data_is_not(tmp_path: Path, config: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume, size="64M", config=config)
    with Server(tmp_path, volume, config=config).start() as server:
        qemu_io(server.url, "write -P 1 0 1M", "flush")
        server.carry()
        assert told(server, 1), "that it was attached"
        for place in range(8):
            qemu_io(
                server.url, f"write -P {place + 1} {place * MIB} 1M", "flush", f"read -P {place + 1} {place * MIB} 1M"
            )
            server.carry()
        assert status(server)["ledger"] == {"recorded": 1, "lost": 0}
        state = ("--state-dir", str(server.state))
        assert s3block("snapshot", "create", volume, "monday", *state, config=config).code == 0
        assert told(server, 2)
        assert server.stop() == 0
    found = [(one["detail"]["event"], one["phase"], one["who"]["name"]) for one in records(config)]
    assert found == [
        ("create", "intent", "s3block create"),
        ("create", "done", "s3block create"),
        ("attach", "done", "s3block serve"),
        ("snapshot", "done", "s3block serve"),
        ("detach", "done", "s3block serve"),
    ]


def test_a_ledger_that_is_broken_stops_no_volume(tmp_path: Path, config: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume, size="64M", config=config)
    shutil.rmtree(tmp_path / "ledger-state")
    (tmp_path / "ledger-state").write_text("no folder")
    with Server(tmp_path, volume, config=config).start() as server:
        qemu_io(server.url, "write -P 7 0 1M", "flush", "read -P 7 0 1M")
        assert told(server, 0, lost=1)
        assert server.stop() == 0
        assert "is not recorded" in server.log()
    refused = s3block("create", f"file://{tmp_path}/store/vm2", "--size", "64M", config=config)
    assert refused.code == 7, refused.err
    assert not (tmp_path / "store/v1/vm2").exists()
