"""`s3block lio ...` on a model of LIO: what the command line, the configuration and the daemon make of it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from blockdev import lio_commands
from blockdev.lio import kernel, saved
from blockdev.lio.kernel import Kernel
from s3core.exit_codes import ExitCode
from tests.blockdev.command import Command, Said, command
from tests.blockdev.lio.model import Model

IQN = "iqn.2025-01.internal.bucketworks:vm1"
HOST = "iqn.2024-01.org.example:host1"
STATUS = {
    "state": "ready",
    "door": "lio",
    "failure": "",
    "identity": "0b9c7a3e-0000-4000-8000-000000000001",
    "size_bytes": 64 << 20,
    "sector_bytes": 512,
}


class Host:
    """A host: its configuration, its daemon's status, its LIO."""

    def __init__(self, run: Command, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.status: dict[str, Any] | None = dict(STATUS)
        self.model = Model()
        self.folder = folder
        self._run = run
        patch.setattr(lio_commands, "Kernel", lambda: self.model)
        patch.setattr(lio_commands, "look", lambda: self.model.found)
        patch.setattr(lio_commands, "_status", lambda directory: self.status)
        patch.setattr(saved, "folder", lambda: folder)
        self.configure('listen = ["127.0.0.1:3260", "[::1]:3260"]')

    def configure(self, *lines: str) -> None:
        text = f'[volume.vm1]\nurl = "file://{self.folder}/store"\nstate_dir = "{self.folder}/state"\ndoor = "lio"\n'
        (self.folder / "config.toml").write_text(text + "\n".join(lines) + "\n")

    def lio(self, *words: str) -> Said:
        return self._run("lio", *words, "--config", self.folder / "config.toml")


@pytest.fixture
def host(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(command(capsys), tmp_path, monkeypatch)


def test_attach_tells_what_it_did_and_where_the_volume_is(host: Host) -> None:
    said = host.lio("attach", "vm1")
    assert said.code == ExitCode.OK, said.err
    assert said.out.splitlines() == [
        f"volume vm1 is LUN 0 of target {IQN} at 127.0.0.1:3260",
        f"volume vm1 is LUN 0 of target {IQN} at [::1]:3260",
    ]
    assert "make device vm1" in said.err
    assert "was attached already" in host.lio("attach", "vm1").err
    assert host.lio("attach", "vm1", "--json").answer["changed"] == 0


def test_portals_of_the_command_line_stand_in_for_listen(host: Host) -> None:
    host.lio("attach", "vm1", "--portal", "localhost:4000")
    assert {portal.port for portal in host.model.group(IQN).portals} == {4000}
    said = host.lio("attach", "vm1")
    assert said.code == ExitCode.REFUSED
    assert "listens on 127.0.0.1:4000, too" in said.err
    assert host.lio("attach", "vm1", "--replace").code == ExitCode.OK
    assert {portal.port for portal in host.model.group(IQN).portals} == {3260}


@pytest.mark.parametrize("portal", ["127.0.0.1", "127.0.0.1:x", ":3260", "127.0.0.1:70000"])
def test_a_portal_that_is_none_is_a_usage_error(host: Host, portal: str) -> None:
    assert host.lio("attach", "vm1", "--portal", portal).code == ExitCode.USAGE
    assert not host.model.steps


def test_initiators_and_chap_come_from_the_settings(host: Host) -> None:
    for name in ("one", "two"):
        (host.folder / name).write_text(f"secret-of-{name}\n")
        (host.folder / name).chmod(0o600)
    host.configure(
        f'initiators = "{HOST}"',
        'chap_user = "joe"',
        f'chap_secret_file = "{host.folder}/one"',
        'chap_mutual_user = "target"',
        f'chap_mutual_secret_file = "{host.folder}/two"',
        "lun = 5",
        f'iqn = "{IQN}-other"',
    )
    said = host.lio("attach", "vm1")
    assert said.code == ExitCode.OK, said.err
    assert "secret-of" not in said.out + said.err
    acl = host.model.acl(f"{IQN}-other", HOST)
    assert (acl.chap.user, acl.chap.secret) == ("joe", "secret-of-one")
    assert (acl.chap.mutual_user, acl.chap.mutual_secret) == ("target", "secret-of-two")
    assert acl.mapped == {5: 5}


def test_attach_needs_a_daemon_that_serves_the_volume_for_lio(host: Host) -> None:
    host.status = None
    said = host.lio("attach", "vm1")
    assert said.code == ExitCode.REFUSED
    assert "systemctl start s3block@vm1" in said.err
    host.status = STATUS | {"state": "attaching"}
    assert "is attaching" in host.lio("attach", "vm1", "--wait", "0.3s").err
    host.status = STATUS | {"door": "portal"}
    assert 'door = "lio"' in host.lio("attach", "vm1").err
    assert not host.model.steps


def test_detach_names_who_is_in_the_way(host: Host) -> None:
    host.lio("attach", "vm1")
    host.model.log_in(IQN, HOST)
    said = host.lio("detach", "vm1")
    assert said.code == ExitCode.REFUSED
    assert HOST in said.err
    assert host.lio("detach", "vm1", "--force").code == ExitCode.OK
    assert host.model.found.devices == ()
    assert "was not attached" in host.lio("detach", "vm1").err


def test_status_ends_with_a_finding_until_all_is_well(host: Host) -> None:
    said = host.lio("status")
    assert said.code == ExitCode.FINDING
    assert "PROBLEM  it is not attached; s3block lio attach vm1" in said.out
    host.lio("attach", "vm1")
    rows = host.lio("status", "vm1", "--json").answer
    assert rows[0]["targets"][0]["portals"] == ["127.0.0.1:3260", "[::1]:3260"]
    # The model has no UIO files and saves nothing in a folder: both are told.
    assert len(rows[0]["problems"]) == 2
    host.status = STATUS | {"size_bytes": 96 << 20}
    assert "it has 96 MiB, its device 64 MiB" in host.lio("status").out


def test_a_device_of_a_volume_that_is_not_configured_any_more_is_shown(host: Host) -> None:
    host.lio("attach", "vm1")
    (host.folder / "config.toml").write_text("")
    said = host.lio("status")
    assert "no daemon serves it" in said.out


def test_without_root_or_rtslib_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Exception, match="only root"):
        Kernel().prepare()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setitem(sys.modules, "rtslib_fb", None)
    with pytest.raises(Exception, match=r"bucketworks\[lio\]"):
        Kernel().prepare()


def test_a_kernel_without_the_module_says_what_to_do() -> None:
    with pytest.raises(Exception, match="no_such_module"):
        kernel.load("no_such_module")
