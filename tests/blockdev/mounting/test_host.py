"""The rim: what this very host answers, where that needs no privileges, and names as systemd itself writes them."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from blockdev.errors import NotReady
from blockdev.memory_pressure import become_io_flusher
from blockdev.mounting.host import Mounted, RealHost, parse_mountinfo
from blockdev.mounting.initiator import with_values
from blockdev.mounting.plan import MakeFileSystem
from blockdev.mounting.units import MountUnit, check_directory, check_options, escaped
from tests.architecture.tree import ROOT

PR_GET_IO_FLUSHER = 58
CAP_SYS_RESOURCE = 24


def test_programs_that_are_missing_fail_or_hang_are_answers() -> None:
    host = RealHost()
    assert host.run("sh", "-c", "echo a; echo b >&2; exit 3").status == 3
    assert host.run("no-such-program").status == 127
    assert host.run("sleep", "60", timeout_s=0.2).status < 0
    assert host.has("sh")
    assert not host.has("no-such-program")


def test_files_are_whole_with_their_mode(tmp_path: Path) -> None:
    host = RealHost()
    place = tmp_path / "new" / "file"
    assert host.text(place) is None
    host.write(place, "one", 0o600)
    host.write(place, "two", 0o640)
    assert (host.text(place), place.stat().st_mode & 0o777) == ("two", 0o640)
    assert host.entries(place.parent) == ["file"]
    host.remove(place)
    host.remove(place)
    assert host.entries(tmp_path / "absent") is None
    host.write(tmp_path / "file", "", 0o600)
    with pytest.raises(NotADirectoryError):
        host.entries(tmp_path / "file")


class Served(RealHost):
    """A daemon says so of a volume that nothing was written to; a file is its disk."""

    def daemon(self, state_dir: Path) -> dict[str, Any] | None:
        return {
            "identity": "one",
            "size_bytes": 64 << 20,
            "allocated_bytes": 0,
            "commit_sequence": 1,
            "front": {"rpo_bytes": 0},
            "worker": {"extents_mapped": 0, "commit_sequence": 1},
        }


@pytest.mark.parametrize("size", [None, 32 << 20, 128 << 20])
def test_no_file_system_is_made_where_the_volumes_disk_is_not(tmp_path: Path, size: int | None) -> None:
    """blkid says of a disk that is gone or cannot be read what it says of a blank one."""
    disk = tmp_path / "disk"
    if size is not None:
        disk.touch()
        os.truncate(disk, size)
    assert Served().run("blkid", "-p", str(disk)).status == 2
    with pytest.raises(NotReady, match="cannot be read, or is not the volume of 67108864 bytes"):
        MakeFileSystem("vm1", disk, "ext4", tmp_path / "state").act(Served())
    assert not (tmp_path / "state").exists()
    assert size is None or not any(disk.read_bytes())


def test_a_file_system_is_made_once(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 64 << 20)
    step = MakeFileSystem("vm1", disk, "ext4", tmp_path / "state")
    assert not step.done(Served())
    step.act(Served())
    assert step.done(Served())
    assert not (tmp_path / "state" / "mkfs-begun").exists()


def test_one_at_a_time_changes_the_mounts_of_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockdev.mounting.host.TURN", tmp_path / "run" / "mount.lock")
    waited, order = threading.Event(), []

    def second() -> None:
        with RealHost().turn(waited.set):
            order.append("second")

    with RealHost().turn(lambda: order.append("nobody is to be waited for")):
        other = threading.Thread(target=second)
        other.start()
        assert waited.wait(60)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_mounts_are_read_with_their_odd_characters() -> None:
    line = r"36 35 98:0 / /srv/my\040data rw,noatime master:1 - ext4 /dev/disk\134x rw,errors=continue"
    assert parse_mountinfo(line + "\n") == [Mounted("/srv/my data", "/dev/disk\\x", "ext4")]
    assert any(one.directory == "/" or one.directory == "/proc" for one in RealHost().mounted())


def test_an_address_that_is_taken_is_known() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not RealHost().can_listen("127.0.0.1", taken.getsockname()[1])
    assert RealHost().can_listen("127.0.0.1", 0)


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="needs systemd-escape, of Debian's systemd")
@pytest.mark.parametrize(
    "path", ["/", "/srv/data", "/srv/a-b/.hidden", "/.x/ö %", "/dev/disk/by-path/ip-127.0.0.1:860-iscsi-i.q:v"]
)
def test_names_of_units_are_systemds(path: str) -> None:
    theirs = subprocess.run(
        ["systemd-escape", "--path", path], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert escaped(path) == theirs


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, of Debian's systemd")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    made = MountUnit("vm1", Path("/dev/disk/by-path/ip-127.0.0.1:860-iscsi-i.q:vm1-lun-0"), "/srv/my data", "noatime")
    (tmp_path / made.name).write_text(made.text())
    for unit in ("s3block@.service", "s3block-initiator@.service"):
        text = (ROOT / "deploy/systemd" / unit).read_text().replace("=s3block ", "=/bin/true ")
        (tmp_path / unit.replace("@.", "@vm1.")).write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *sorted(tmp_path.iterdir())],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in said.stderr.splitlines() if str(tmp_path) in line or "vm1" in line]
    assert ours == []


@pytest.mark.parametrize("directory", ["srv/data", "/", "/srv/../etc", "/srv/a\nb", "/srv/a\\", "/srv/a\\/", "/srv/a "])
def test_what_is_no_mount_point(directory: str) -> None:
    with pytest.raises(ValueError, match=r"place to mount at|no unit can hold"):
        check_directory(directory)
    assert check_directory("//srv//data/") == "/srv/data"


@pytest.mark.parametrize("options", ["noatime\nExecStart=/bin/true", "noatime\\", "noatime "])
def test_what_are_no_options(options: str) -> None:
    with pytest.raises(ValueError, match="no unit can hold"):
        check_options(options)
    assert check_options("noatime,x-a=%b") == "noatime,x-a=%b"


def test_a_node_record_keeps_what_is_not_set() -> None:
    record = "# BEGIN RECORD 2.1.8\nnode.name = x\nnode.startup = automatic\n# END RECORD\n"
    assert with_values(record, {"node.startup": "manual", "new": "1"}) == (
        "# BEGIN RECORD 2.1.8\nnode.name = x\nnode.startup = manual\nnew = 1\n# END RECORD\n"
    )


def test_the_daemons_unit_may_do_what_a_mount_on_this_host_needs() -> None:
    text = (ROOT / "deploy/systemd/s3block@.service").read_text()
    (allowed,) = (line for line in text.splitlines() if line.startswith("CapabilityBoundingSet="))
    assert {"CAP_NET_BIND_SERVICE", "CAP_SYS_RESOURCE"} <= set(allowed.partition("=")[2].split())


def test_an_io_flusher_is_one_and_so_are_its_children() -> None:
    """In a child, since it cannot be asked back from the threads that pytest has."""
    capabilities = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    may = bool(int(capabilities.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    child = os.fork()
    if child == 0:
        made = become_io_flusher()
        asked = ctypes.CDLL(None).prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0)
        flags = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6])
        # PF_MEMALLOC_NOIO
        fine = (made, asked == 1, bool(flags & 0x80000)) == ((True, True, True) if may else (False, asked == 1, False))
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
