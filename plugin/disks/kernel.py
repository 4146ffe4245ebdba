"""A disk as a block device of this node's kernel, by open-iscsi: what containers and raw exports need.

One rule: nothing of open-iscsi's own is relied on to remember: each login makes its node record (started by hand only, so
that a boot never waits for us), each logout removes it.
"""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from plugin.errors import DeadlineOver, PluginError

BY_PATH: Final = Path("/dev/disk/by-path")
REPLACEMENT_S: Final = 600
"""How long the kernel keeps requests while the session is away; as long as a volume goes on without its store."""
NO_OBJECTS: Final = 21
EXISTS: Final = 15
"""iscsiadm's exit codes (iscsi_err.h): no records or sessions found; session is logged in already."""
POLL_S: Final = 0.1


class KernelRefused(PluginError):
    """open-iscsi is not there, or said no."""

    code = "unsupported"


def device(portal: str, target: str) -> Path:
    """Where udev puts the disk's device."""
    host, _, port = portal.rpartition(":")
    return BY_PATH / f"ip-{host}:{port}-iscsi-{target}-lun-0"


def login(portal: str, target: str, *, until: float) -> Path:
    """The block device, which is there on return. Raises KernelRefused, DeadlineOver."""
    if shutil.which("iscsiadm") is None:
        raise KernelRefused(
            "containers and raw exports need the kernel's iSCSI initiator, which is not installed",
            hint="apt install open-iscsi; machines (QEMU) do without it",
        )
    found = device(portal, target)
    node = ("-m", "node", "-T", target, "-p", portal)
    _run(node, ("-o", "new"), until=until)
    for name, value in (("node.startup", "manual"), ("node.session.timeo.replacement_timeout", str(REPLACEMENT_S))):
        _run(node, ("-o", "update", "-n", name, "-v", value), until=until)
    _run(node, ("--login",), until=until, fine=(EXISTS,))
    if shutil.which("udevadm") is not None:
        subprocess.run(["udevadm", "settle", "--timeout=10"], check=False, capture_output=True)
    while not found.exists():
        if time.monotonic() > until:
            raise DeadlineOver(f"the kernel is logged in to {target}, and there is no {found}", hint="does udev run?")
        time.sleep(POLL_S)
    return found


def logout(portal: str, target: str, *, until: float) -> None:
    """Also when it is logged out already. Raises KernelRefused where the device is in use."""
    if shutil.which("iscsiadm") is None:
        return
    _require_unused(device(portal, target))
    node = ("-m", "node", "-T", target, "-p", portal)
    _run(node, ("--logout",), until=until, fine=(NO_OBJECTS,))
    _run(node, ("-o", "delete"), until=until, fine=(NO_OBJECTS,))


def _require_unused(found: Path) -> None:
    """open-iscsi may log out under a mounted file system: the kernel itself is asked. Raises KernelRefused."""
    try:
        os.close(os.open(found, os.O_RDONLY | os.O_EXCL))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise KernelRefused(
                f"{found} is in use on this node", hint="is it mounted? stop the container first"
            ) from error


def rescan(portal: str, target: str, *, until: float) -> None:
    """See the disk's new size."""
    if shutil.which("iscsiadm") is not None:
        _run(("-m", "node", "-T", target, "-p", portal), ("-R",), until=until, fine=(NO_OBJECTS,))


def _run(node: Sequence[str], words: Sequence[str], *, until: float, fine: Sequence[int] = ()) -> None:
    try:
        told = subprocess.run(
            ["iscsiadm", *node, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=max(0.1, until - time.monotonic()),
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineOver(f"iscsiadm {' '.join(words)} was not done in time") from error
    if told.returncode not in (0, *fine):
        reason = " ".join((told.stderr or told.stdout).split())
        raise KernelRefused(f"iscsiadm {' '.join(words)}: {reason}", hint="is iscsid running, the device in use?")
