"""What a Proxmox VE node's core does with open-iscsi for containers (`plugin.disks.kernel`), on a real kernel with udev."""

import os
import time
from pathlib import Path

from plugin.disks import kernel
from tests.guest.inside import initiator
from tests.guest.inside.commands import run, wait_until

UDEVD = "/lib/systemd/systemd-udevd"
MOUNTPOINT = Path("/mnt/pve-kernel")


def used_as_a_container_does(portal: str, target: str) -> list[str]:
    """Log in twice, put a file system on it, be refused while it is mounted, log out twice. What was not as it must be."""
    initiator.prepare()
    if not run("pidof", "systemd-udevd", check=False).strip():
        run(UDEVD, "--daemon")
    wrong = []
    found = kernel.login(portal, target, until=time.monotonic() + 60)
    if kernel.login(portal, target, until=time.monotonic() + 60) != found:
        wrong.append("a second login has another device")
    record = run("iscsiadm", "-m", "node", "-T", target, "-p", portal)
    for setting in ("node.startup = manual", f"node.session.timeo.replacement_timeout = {kernel.REPLACEMENT_S}"):
        if setting not in record:
            wrong.append(f"the node record is without {setting}")
    run("mkfs.ext4", "-q", found, seconds=120)
    MOUNTPOINT.mkdir(exist_ok=True)
    run("mount", found, MOUNTPOINT)
    (MOUNTPOINT / "file").write_text("content")
    try:
        kernel.logout(portal, target, until=time.monotonic() + 60)
        wrong.append("it was logged out below a mounted file system")
    except kernel.KernelRefused as refusal:
        if "is in use on this node" not in str(refusal):
            wrong.append(str(refusal))
    if (MOUNTPOINT / "file").read_text() != "content":
        wrong.append("the file is another one")
    run("umount", MOUNTPOINT)
    kernel.logout(portal, target, until=time.monotonic() + 60)
    wait_until(lambda: not os.path.lexists(found), f"{found} is gone")
    kernel.logout(portal, target, until=time.monotonic() + 60)
    if target in run("iscsiadm", "-m", "node", check=False):
        wrong.append("the node record is still there")
    return wrong
