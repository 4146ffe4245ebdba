"""What a daemon tells of itself while it works: the control socket, and whoever reads it."""

from pathlib import Path

import pytest

from blockdev.control import ControlClient, NotServed
from blockdev.errors import Refused
from tests.system.machine import MIB, Server, create, qemu_io


@pytest.mark.initiator
def test_status_tells_of_a_served_volume(tmp_path: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    with Server(tmp_path, volume) as server:
        server.start()
        qemu_io(server.url, "write -P 5 0 1M", "write -P 6 3M 64k", "read -P 5 0 1M", "flush")
        with ControlClient(server.state_dir, timeout_s=10.0) as client:
            told = client.ask("status")
            with pytest.raises(Refused, match="no operation 'dance'"):
                client.ask("dance")
        assert (told["name"], told["url"], told["state"], told["failure"]) == ("vm1", volume, "ready", "")
        assert (told["size_bytes"], told["epoch"], told["sessions"]) == (256 * MIB, 1, [])
        front = told["front"]
        assert front["write_bytes"] == MIB + 65536
        assert front["read_bytes"] >= MIB
        assert front["flushes"] >= 1
        assert server.stop() == 0
    with pytest.raises(NotServed):
        ControlClient(server.state_dir)
    assert not (server.state_dir / "control").exists()
