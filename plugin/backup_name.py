"""Proxmox VE's name for an archive that somebody made elsewhere: `vzdump-qemu-100-2026_01_31-04_05_06.vma.zst`.

One rule: pure, and the same file always gets the same name: its time is that of its last change, so that sending it again finds
it there.
"""

import re
import time

from plugin.archive.compression import suffix
from plugin.layout import parse_volname

SUBTYPES = {"vma": "qemu", "tar": "lxc"}
_TOLD = re.compile(r"vzdump-(?:qemu|lxc|openvz)-.*")


def backup_name(file_name: str, vmid: int, kind: str, compression: str, modified: float) -> str:
    """Of a file with that name, kind and compression (`plugin.archive`). One of PVE's stays. ValueError says why the file
    cannot be a backup of that guest."""
    if _TOLD.fullmatch(file_name):
        volume = parse_volname(f"backup/{file_name}")
        if volume.vmid and volume.vmid != vmid:
            raise ValueError(
                f"{file_name} is a backup of guest {volume.vmid} by its name, not of {vmid}: give that --vmid"
            )
        if volume.vmid:
            return file_name
    if kind not in SUBTYPES:
        raise ValueError(
            f"{file_name} is neither a VMA nor a tar archive, so Proxmox VE could not restore it;"
            " an ISO image, template or disk image goes there with `pve-s3 upload`"
        )
    moment = time.strftime("%Y_%m_%d-%H_%M_%S", time.localtime(modified))
    return f"vzdump-{SUBTYPES[kind]}-{vmid}-{moment}{suffix(kind, compression)}"
