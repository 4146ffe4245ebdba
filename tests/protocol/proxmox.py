"""What Proxmox VE's two iSCSI storages make of the text that initiators' tools print, as pure functions.

One rule: as strict as Proxmox VE 9 is, no stricter: what these do not find in a tool's output, a node does not find either.
Written from what its storage plugins `iscsi` and `iscsidirect` were seen to expect; a line they pass over is passed over here.

    iscsi          iscsiadm --mode discovery --type sendtargets   HOST:PORT,TAG NAME, every portal of a target from any of them
                   iscsiadm --mode session                        tcp: [SID] HOST:PORT,TAG NAME (...)
                   /dev/disk/by-id                                scsi-* or dm-uuid-mpath-*, not of a partition
    iscsidirect    iscsi-ls -s                                    Lun:N Type:... (Size:N[kMGT]), whatever target it is under
"""

import re
from collections.abc import Iterable

_PORTAL = re.compile(r"(\S+:\d+),\S+\s+(\S+)\s*")
_SESSION = re.compile(r"tcp:\s+\[(\S+)\]\s+(\S+:\d+),\S+\s+(\S+)\s+\S+?\s*")
_UNIT = re.compile(r"Lun:(\d+)\s+[A-Za-z0-9\-_.:]*\s+\(Size:([0-9.]*)([kMGT])\)")
_VOLUME = re.compile(r"\d+\.\d+\.\d+\.([^/\s]+)")
_UNITS = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def discovered(output: str) -> dict[str, list[str]]:
    """Target -> its portals, of `iscsiadm --mode discovery --type sendtargets` or `--mode node`."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if match := _PORTAL.fullmatch(line):
            found.setdefault(match[2], []).append(match[1])
    return found


def sessions(output: str) -> dict[str, list[tuple[str, str]]]:
    """Target -> (session number, portal), of `iscsiadm --mode session`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in output.splitlines():
        if match := _SESSION.fullmatch(line):
            found.setdefault(match[3], []).append((match[1], match[2]))
    return found


def logs_in_again(portals: Iterable[str], logged_in: Iterable[tuple[str, str]]) -> list[str]:
    """The portals without a session: while there is one, a node tries to log in every few seconds, so a portal that is told
    of must be one that can be reached."""
    reached = {portal for _, portal in logged_in}
    return [portal for portal in portals if portal not in reached]


def stable_links(names: Iterable[str]) -> list[str]:
    """Those of /dev/disk/by-id by which a disk may be known; one without such a link is not listed."""
    return [
        name
        for name in sorted(names)
        if not re.search(r"-part\d+$", name) and name.startswith(("scsi-", "dm-uuid-mpath-"))
    ]


def volume_name(channel: int, target: int, lun: int, link: str) -> str:
    """Of a disk of an `iscsi` storage. ValueError if the node could not read it back."""
    name = f"{channel}.{target}.{lun}.{link}"
    if not _VOLUME.fullmatch(name):
        raise ValueError(f"{name!r} is not a volume name of an iscsi storage")
    return name


def direct_units(output: str) -> dict[str, float]:
    """Disk name -> bytes, of `iscsi-ls -s` at a portal. Units of every target there are thrown together: two targets with
    a LUN 0 are one disk to it."""
    found: dict[str, float] = {}
    for line in output.splitlines():
        if match := _UNIT.search(line.strip()):
            found[f"lun{match[1]}"] = float(match[2]) * _UNITS[match[3]]
    return found


# --- udev ----------------------------------------------------------------------------------------------------------------

_NAA_KINDS = (0x6, 0x5, 0x2, 0x3)


def scsi_id(page: bytes) -> str:
    """The ID_SERIAL that udev's scsi_id makes of VPD page 83h and puts behind `scsi-` in /dev/disk/by-id: of the
    designators of the logical unit the best, an NAA name as `3` and its hexadecimal digits, with NAA 6h before 5h before
    the others, then EUI-64 as `2`, then T10 vendor identification as `1`. ValueError if there is none."""
    if len(page) < 4 or page[1] != 0x83:
        raise ValueError("not page 83h")
    found: list[tuple[int, str]] = []
    at, end = 4, 4 + int.from_bytes(page[2:4], "big")
    while at + 4 <= end:
        code_set, kind, length = page[at] & 0xF, page[at + 1], page[at + 3]
        value = page[at + 4 : at + 4 + length]
        at += 4 + length
        if kind & 0x30:
            continue  # of the port or the device, not of the unit
        match kind & 0xF:
            case 3 if code_set == 1 and value[0] >> 4 in _NAA_KINDS:
                found.append((_NAA_KINDS.index(value[0] >> 4), "3" + value.hex()))
            case 2 if code_set == 1:
                found.append((10, "2" + value.hex()))
            case 1 if code_set == 2:
                found.append((20, "1" + re.sub(r"\s+", "_", value.decode("ascii").strip())))
    if not found:
        raise ValueError("page 83h names no logical unit in a way udev knows")
    return min(found)[1]
