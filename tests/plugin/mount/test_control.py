"""The socket of a mount, and what is asked of the kernel."""

import os
import socket
import stat
from pathlib import Path

import pytest

from plugin.errors import NotServed
from plugin.mount.control import Control, call, socket_path
from plugin.mount.handles import clean_local
from plugin.mount.library import check_device, find_library
from plugin.mount.process import clear_mountpoint, is_ours
from s3core.settings import ConfigError


def test_a_call_and_its_answer(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "s3")
    path.write_text("what a dead process left")
    control = Control(path, {"status": lambda: {"idle": True}})
    control.start()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert call(path, "status") == {"idle": True}
    with pytest.raises(NotServed, match="there is no method"):
        call(path, "other")
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))
        raw.sendall(b"not json\n")
        assert b"version 1" in raw.recv(1000)
    control.stop()
    with pytest.raises(NotServed, match="no mount answers"):
        call(path, "status")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="libfuse3 is not installed"):
        find_library(("libno.so.9",), {})
    with pytest.raises(ConfigError, match="modprobe fuse"):
        check_device(tmp_path / "fuse")


def test_mounts_of_the_kernel(tmp_path: Path) -> None:
    told = tmp_path / "mountinfo"
    told.write_text(
        "30 1 0:27 / /mnt/pve/a\\040b rw,nosuid - fuse.bucketworks bucketworks:s3 rw\n"
        "31 1 0:28 / /mnt/pve/c rw - fuse.other x rw\n"
    )
    assert is_ours(Path("/mnt/pve/a b"), told)
    assert not is_ours(Path("/mnt/pve/c"), told)
    assert not is_ours(Path("/mnt/pve"), told)


def test_a_mountpoint_is_made_and_has_to_be_a_directory(tmp_path: Path) -> None:
    clear_mountpoint(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="directory"):
        clear_mountpoint(tmp_path / "file")


def test_what_a_dead_mount_kept_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x.tmp/etc").mkdir(parents=True)
    (tmp_path / "1-a.iso").write_text("x")
    assert clean_local(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []
    assert clean_local(tmp_path / "absent") == 0
