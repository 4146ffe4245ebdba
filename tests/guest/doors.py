"""The two doors of a volume, each with its daemon where it belongs, for one list of tests.

`PortalDoor`: the daemon and its portal on this host, the initiator in the guest reaches them at 10.0.2.2.
`GuestDoor`: the daemon in the guest, as the handler of its kernel's target (or with its own portal), the initiator reaches it
on the guest's loopback.

One rule: a test sees portals, targets and devices, and asks for commands and counters; it does not know where they run.
"""

import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.guest.guest import HOST, Guest
from tests.guest.inside import cli, commands, control, initiator, lio
from tests.servers.processes import end, free_port, start, tail, wait_for_port
from tests.servers.tcp_relay import TcpRelay
from tests.system.machine import S3BLOCK, environment

MIB = 1 << 20
IQN = "iqn.2025-01.internal.bucketworks"
CONFIG_IN_GUEST = "/etc/bucketworks/config.toml"


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume to serve. Volumes with the same `target` are units of it; `settings` are lines of TOML."""

    name: str
    size_mib: int
    target: str
    lun: int = 0
    sector_bytes: int = 512
    settings: Sequence[str] = ()

    @property
    def iqn(self) -> str:
        return f"{IQN}:{self.target}"


def configuration(door: str, store: str, state: str, listen: Sequence[str], volumes: Sequence[Volume]) -> str:
    """A configuration file; `store` is the URL of the folder that volumes lie in."""
    lines = ["[s3block]", f'state_dir = "{state}"', f"listen = [{', '.join(repr(one) for one in listen)}]"]
    lines += ['journal_bytes = "32M"', 'cache_bytes = "32M"']
    for volume in volumes:
        lines += [
            f"[volume.{volume.name}]",
            f'url = "{store}"',
            f"size_bytes = {volume.size_mib * MIB}",
            f"sector_bytes = {volume.sector_bytes}",
            f'iqn = "{volume.iqn}"',
            f"lun = {volume.lun}",
            f'door = "{door}"',
            *volume.settings,
        ]
    return "\n".join(lines) + "\n"


class Door(ABC):
    """Volumes that are served. `portals`: where the guest's initiator finds them; the second one is another path."""

    def __init__(self, guest: Guest, volumes: Sequence[Volume]) -> None:
        self.guest = guest
        self.volumes = {volume.name: volume for volume in volumes}
        self.portals: list[str] = []

    @property
    def portal(self) -> str:
        return self.portals[0]

    @abstractmethod
    def status(self, volume: str) -> dict[str, Any]:
        """What the daemon tells of the volume."""

    @abstractmethod
    def resize(self, volume: str, size: int) -> None:
        """As an administrator does it; initiators have only to look again."""

    @abstractmethod
    def cut_second_path(self) -> None:
        """`portals[1]` is dead from now on."""

    @abstractmethod
    def mend_second_path(self) -> None:
        """It is alive again."""

    @abstractmethod
    def stop(self) -> None:
        """Everybody is logged out, the daemon ends in order. AssertionError if it does not end well."""

    def log_in(self, volume: str, portal: str = "", **settings: str) -> str:
        """The device that the volume has become in the guest; settings as in the node record, `__` for a dot."""
        one = self.volumes[volume]
        record = {f"node.{name.replace('__', '.')}": value for name, value in settings.items()}
        found = self.guest.call(
            initiator.log_in, portal=portal or self.portal, target=one.iqn, settings=record, lun=one.lun
        )
        return str(found)

    def log_out(self, volume: str, portal: str = "") -> None:
        self.guest.call(initiator.log_out, portal=portal or self.portal, target=self.volumes[volume].iqn)

    def device(self, volume: str) -> str:
        """The same for a unit of a target that is logged in to."""
        one = self.volumes[volume]
        return str(self.guest.call(initiator.device, portal=self.portal, target=one.iqn, lun=one.lun))


class PortalDoor(Door):
    def __init__(self, guest: Guest, volumes: Sequence[Volume], directory: Path) -> None:
        super().__init__(guest, volumes)
        ports = [free_port(), free_port()]
        self._config = directory / "config.toml"
        self._state = directory / "state"
        listen = [f"127.0.0.1:{port}" for port in ports]
        self._config.write_text(configuration("portal", f"file://{directory}/store", str(self._state), listen, volumes))
        for volume in volumes:
            self._s3block("create", volume.name)
        self._log = directory / "serve.log"
        self._daemon = start(
            [S3BLOCK, "serve", "--config", str(self._config), *self.volumes], self._log, environment(self._config)
        )
        try:
            for port in ports:
                wait_for_port(port, self._daemon, self._log)
            self._relay = TcpRelay(ports[1])
        except BaseException:
            end(self._daemon)
            raise
        self.portals = [f"{HOST}:{ports[0]}", f"{HOST}:{self._relay.port}"]

    def status(self, volume: str) -> dict[str, Any]:
        return control.ask(str(self._state / volume), "status")

    def resize(self, volume: str, size: int) -> None:
        self._s3block("resize", volume, str(size))

    def cut_second_path(self) -> None:
        self._relay.cut()

    def mend_second_path(self) -> None:
        self._relay.mend()

    def stop(self) -> None:
        self.guest.call(initiator.log_out_everywhere)
        self._relay.cut()
        end(self._daemon, signal.SIGTERM)
        assert self._daemon.returncode == 0, tail(self._log)

    def kill(self) -> None:
        """The daemon's process, where a test has failed."""
        if self._daemon.poll() is None:
            end(self._daemon)

    def _s3block(self, *words: str) -> None:
        done = subprocess.run(
            [S3BLOCK, *words, "--config", str(self._config)],
            env=environment(self._config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout


class GuestDoor(Door):
    SECOND = "10.9.0.1"
    """An address of the guest's loopback that can be taken away, which is how its path dies."""

    def __init__(
        self,
        guest: Guest,
        volumes: Sequence[Volume],
        *,
        door: Literal["portal", "lio"] = "lio",
        store: str = "file:///root/store",
        endpoint: str = "",
        listen: Sequence[str] = ("127.0.0.1:3260", f"{SECOND}:3260"),
    ) -> None:
        """`endpoint` is the table of the store's endpoint, where it has one."""
        super().__init__(guest, volumes)
        self._lio = door == "lio"
        self._state = "/root/state"
        self.mend_second_path()
        guest.write(CONFIG_IN_GUEST, endpoint + configuration(door, store, self._state, listen, volumes))
        self._several(*(["create", name] for name in self.volumes))
        self.serve()
        if self._lio:
            self._several(*(["lio", "attach", name] for name in self.volumes))
        self.portals = list(listen)

    def serve(self) -> None:
        """Starts the daemon, also anew after `kill`; returns when it serves."""
        self._daemon = self.guest.begin(cli.one, words=["serve", *self.volumes])
        for name in self.volumes:
            self._daemon.wait_for(f"serving {name} ", seconds=180)

    def kill(self) -> None:
        """SIGKILL to the daemon and its workers."""
        self._daemon.signal(signal.SIGKILL)
        assert self._daemon.wait(check=False).status == -signal.SIGKILL

    def end(self) -> None:
        """SIGTERM to the daemon; it carries everything to the store and ends well."""
        self._daemon.signal(signal.SIGTERM)
        self._daemon.wait(180)

    @property
    def log(self) -> str:
        """What the newest daemon has said."""
        return self._daemon.output

    def status(self, volume: str) -> dict[str, Any]:
        found: dict[str, Any] = self.guest.call(control.ask, state_dir=f"{self._state}/{volume}", what="status")
        return found

    def resize(self, volume: str, size: int) -> None:
        attach = [["lio", "attach", volume]] if self._lio else []
        self._several(["resize", volume, str(size)], *attach)

    def cut_second_path(self) -> None:
        self.guest.run("ip", "addr", "del", f"{self.SECOND}/32", "dev", "lo")

    def mend_second_path(self) -> None:
        self.guest.run("ip", "addr", "replace", f"{self.SECOND}/32", "dev", "lo")

    def stop(self) -> None:
        self.guest.call(initiator.log_out_everywhere)
        if self._lio:
            self._several(*(["lio", "detach", name] for name in self.volumes))
        self.end()
        assert not self.guest.call(commands.still_hung)
        if self._lio:
            assert self.guest.call(lio.left_behind) == []

    def _several(self, *lines: list[str]) -> None:
        self.guest.call(cli.several, seconds=60 + 60 * len(lines), commands=list(lines))
