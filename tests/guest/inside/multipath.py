"""Device mapper's multipath over several paths to one unit, with `multipathd` and udev as on a host that uses them."""

import json
import os
from pathlib import Path

from tests.guest.inside import initiator
from tests.guest.inside.commands import load, run, wait_until

QUICK = {
    "session__timeo__replacement_timeout": "2",
    "conn[0]__timeo__noop_out_interval": "1",
    "conn[0]__timeo__noop_out_timeout": "1",
}
"""Node settings with which a path that is dead is known to be within seconds, as multipath's manual advises."""

_CONFIGURATION = """
defaults {
    find_multipaths no
    user_friendly_names no
    polling_interval 1
    max_polling_interval 1
    path_grouping_policy multibus
    path_selector "round-robin 0"
    path_checker tur
    failback immediate
    no_path_retry 30
}
blacklist {
    devnode "^nvme"
}
"""


def gather(paths: list[str]) -> str:
    """The device over these paths, once it has all of them."""
    load("dm-multipath", "dm-round-robin", "dm-service-time", "dm-queue-length")
    Path("/etc/multipath.conf").write_text(_CONFIGURATION)
    if not run("pidof", "systemd-udevd", check=False).strip():
        run("/lib/systemd/systemd-udevd", "--daemon")
        run("udevadm", "trigger", "--type=subsystems")
        run("udevadm", "trigger", "--subsystem-match=block")
        run("udevadm", "settle", "--timeout=60", seconds=70)
    if not run("pidof", "multipathd", check=False).strip():
        run("multipathd")
    name = "3" + initiator.naa(paths[0]).removeprefix("naa.")
    device = f"/dev/mapper/{name}"
    wait_until(lambda: os.path.exists(device) and set(_states(name)) == set(paths), f"{device} over {paths}", 60)
    return device


def paths(device: str) -> dict[str, str]:
    """`active` or `failed`, as device mapper has it, by path."""
    return _states(Path(device).name)


def wait_for_states(device: str, states: dict[str, str], seconds: float = 90.0) -> None:
    name = Path(device).name
    wait_until(lambda: _states(name) == states, f"{states} (last seen: {_states(name)})", seconds)


def wait_for_io(paths: list[str], seconds: float = 60.0) -> None:
    """Until each of the paths has carried writes."""
    before = {path: _writes(path) for path in paths}
    wait_until(lambda: all(_writes(path) > before[path] + 20 for path in paths), f"writes by each of {paths}", seconds)


def dissolve(device: str) -> None:
    """The paths are plain disks again."""
    run("multipath", "-f", Path(device).name)
    # It may end before it has answered.
    run("multipathd", "shutdown", check=False)
    wait_until(lambda: not run("pidof", "multipathd", check=False).strip(), "the end of multipathd")


def _writes(path: str) -> int:
    return int(initiator.attribute(path, "stat").split()[4])


def _states(name: str) -> dict[str, str]:
    text = run("multipathd", "show", "map", name, "json", check=False)
    if not text.startswith("{"):
        return {}
    groups = json.loads(text)["map"]["path_groups"]
    return {f"/dev/{path['dev']}": path["dm_st"] for group in groups for path in group["paths"]}
