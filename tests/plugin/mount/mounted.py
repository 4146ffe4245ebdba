"""A file system of tests, really mounted: this process serves it in a thread, other processes use it.

One rule: what could wait for the mount runs in another process, so that a test that fails does not hang here."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plugin.mount import library, process
from plugin.mount.filesystem import Filesystem
from s3core.settings import ConfigError


def why_not() -> str:
    """Why nothing can be mounted here; "" where it can."""
    try:
        library.check_device()
        library.find_library()
    except ConfigError as error:
        return str(error)
    return ""


needs_fuse = pytest.mark.skipif(bool(why_not()), reason=f"cannot mount: {why_not()}")


@contextmanager
def mounted(filesystem: Filesystem, mountpoint: Path, name: str = "tests") -> Iterator[Path]:
    process.clear_mountpoint(mountpoint)
    ready = threading.Event()
    thread = threading.Thread(
        target=library.serve, args=(filesystem, mountpoint, name), kwargs={"ready": ready.set}, daemon=True
    )
    thread.start()
    try:
        assert ready.wait(20), "the kernel has no mount after 20 s"
        yield mountpoint
    finally:
        process.unmount(mountpoint)
        thread.join(10)
        assert not thread.is_alive(), "the mount was taken away, and libfuse serves on"


def run(command: str, *, timeout_s: float = 60.0, **values: object) -> subprocess.CompletedProcess[str]:
    """A shell command with `{name}` filled in; its exit code is the caller's to look at."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.format(**values)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def done(command: str, *, timeout_s: float = 60.0, **values: object) -> str:
    """What a shell command that must succeed wrote."""
    result = run(command, timeout_s=timeout_s, **values)
    assert result.returncode == 0, f"{command}: {result.returncode}: {result.stderr}"
    return result.stdout
