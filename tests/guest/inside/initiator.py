"""open-iscsi, as an administrator uses it: discovery, login, rescan, logout, and which device a unit became.

One rule: a device is found by target, portal and unit in sysfs, never by guessing the letter of /dev/sdX.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.guest.inside.commands import CommandFailed, load, run, wait_until


def prepare() -> None:
    """Modules and `iscsid`; does nothing the second time."""
    load("iscsi_tcp", "sd_mod", "sg")
    Path("/run/lock/iscsi").mkdir(parents=True, exist_ok=True)
    if not run("pidof", "iscsid", check=False).strip():
        run("iscsid")


def discover(portal: str) -> list[tuple[str, str]]:
    """What SendTargets answers at `HOST:PORT`: target names with their portals, as the answer has them."""
    prepare()
    lines = run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", portal).splitlines()
    return [(line.split()[1], line.split()[0].split(",")[0]) for line in lines]


def log_in(portal: str, target: str, settings: Mapping[str, str] | None = None, lun: int = 0) -> str:
    """Logs in and returns the device of unit `lun`, such as /dev/sda. CommandFailed if the target refuses.

    `settings` are those of the node record, such as `node.session.auth.authmethod`."""
    prepare()
    node = ("iscsiadm", "-m", "node", "-T", target, "-p", portal)
    run(*node, "-o", "new")
    # A refused login is to be told soon. Not at once: now and then this kernel loses a login of its own by a race ("Login/Text
    # in progress. Cannot start new task").
    for name, value in ({"node.session.initial_login_retry_max": "3"} | dict(settings or {})).items():
        run(*node, "-o", "update", "-n", name, "-v", value)
    run(*node, "--login")
    return device(portal, target, lun)


def log_out(portal: str, target: str) -> None:
    """Ends the session and forgets the node."""
    node = ("iscsiadm", "-m", "node", "-T", target, "-p", portal)
    run(*node, "--logout")
    run(*node, "-o", "delete")


def rescan() -> None:
    """As an administrator does after a volume has grown."""
    run("iscsiadm", "-m", "session", "--rescan")


def device(portal: str, target: str, lun: int = 0, seconds: float = 30.0) -> str:
    """The device of a unit behind one portal, once the kernel has made it. CommandFailed."""
    found: list[str] = []

    def look() -> bool:
        found[:] = devices(portal, target, lun)
        return bool(found)

    wait_until(look, f"a device for unit {lun} of {target} at {portal}", seconds)
    if len(found) > 1:
        raise CommandFailed(f"several devices for unit {lun} of {target} at {portal}: {found}")
    return found[0]


def devices(portal: str, target: str, lun: int) -> list[str]:
    """Devices in /dev of one unit, by every session to that portal."""
    host, _, port = portal.rpartition(":")
    found = []
    for session in Path("/sys/class/iscsi_session").glob("session*"):
        if (session / "targetname").read_text().strip() != target:
            continue
        number = session.name.removeprefix("session")
        connection = Path("/sys/class/iscsi_connection") / f"connection{number}:0"
        at = (
            (connection / "persistent_address").read_text().strip(),
            (connection / "persistent_port").read_text().strip(),
        )
        if at != (host, port):
            continue
        for block in (session / "device").glob(f"target*/*:*:*:{lun}/block/*"):
            if (Path("/dev") / block.name).exists():
                found.append(f"/dev/{block.name}")
    return found


def attribute(device: str, name: str) -> str:
    """One file of the device's folder in sysfs, such as `queue/logical_block_size` or `device/state`."""
    return (Path("/sys/block") / Path(device).name / name).read_text().strip()


def size_of(device: str) -> int:
    """In bytes, as the kernel has it now."""
    return int(attribute(device, "size")) * 512


def forget(portal: str, target: str) -> None:
    """The node record of a target that refused."""
    run("iscsiadm", "-m", "node", "-T", target, "-p", portal, "-o", "delete")


def naa(device: str) -> str:
    """The name of the unit by which all paths to it are known (SPC-4 section 7.8.6), such as `naa.6...`."""
    return attribute(device, "device/wwid")


def log_out_everywhere() -> None:
    """Ends all sessions, and forgets all nodes."""
    if run("iscsiadm", "-m", "session", check=False).startswith("tcp:"):
        run("iscsiadm", "-m", "node", "--logout")
    run("iscsiadm", "-m", "node", "-o", "delete", check=False)


def be_patient(device: str, limit_s: int) -> None:
    """How long the kernel waits for an answer before it aborts a command; 30 s are short for an emulated daemon's start."""
    (Path("/sys/block") / Path(device).name / "device/timeout").write_text(f"{limit_s}\n")
