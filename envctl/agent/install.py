"""Puts the agent's units in their places: `envctl-agent install`, as cloud-init or the maker of a template runs it.

One rule: it may be repeated, and after an upgrade is. Units that are there are replaced; what a person put beside them (`*.d/`)
stays.

    /etc/systemd/system/envctl-*.service, .timer
    /etc/systemd/system/user@.service.d/50-envctl.conf   what users' managers write last is saved too
    /usr/local/bin/envctl-agent                          a link to the agent
"""

from __future__ import annotations

import os
import pkgutil
import subprocess

AGENT_FILE = "/usr/local/lib/envctl/envctl-agent.pyz"
COMMAND = "/usr/local/bin/envctl-agent"
UNITS_FOLDER = "/etc/systemd/system"
UNITS = (
    "envctl-restore.service",
    "envctl-final.service",
    "envctl-agent.service",
    "envctl-backup.service",
    "envctl-backup.timer",
)
ENABLED = ("envctl-restore.service", "envctl-final.service", "envctl-agent.service", "envctl-backup.timer")
_USERS = (
    "# So that at the end users' managers stop before the final backup begins.\n[Unit]\nAfter=envctl-final.service\n"
)


def files() -> dict[str, bytes]:
    """What is installed, by path."""
    found = {}
    for unit in UNITS:
        text = pkgutil.get_data("envctl.agent", "units/" + unit)
        if text is None:
            raise FileNotFoundError(unit)
        found[UNITS_FOLDER + "/" + unit] = text
    found[UNITS_FOLDER + "/user@.service.d/50-envctl.conf"] = _USERS.encode()
    return found


def links() -> dict[str, str]:
    """What `systemctl enable` would make, and the command: path to destination. For images that are not running."""
    found = {COMMAND: AGENT_FILE}
    for unit in ENABLED:
        found[UNITS_FOLDER + "/multi-user.target.wants/" + unit] = "../" + unit
    required = UNITS_FOLDER + "/systemd-user-sessions.service.requires/envctl-restore.service"
    found[required] = "../envctl-restore.service"
    return found


def install(root: str = "/") -> None:
    """Write all that below `root`. For the running system also have systemd read it and queue what starts at boot; nothing is
    waited for, as this runs while the machine boots. OSError."""
    for path, content in files().items():
        place = os.path.join(root, path.lstrip("/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place + ".new", "wb") as out:
            out.write(content)
            os.fchmod(out.fileno(), 0o644)
        os.replace(place + ".new", place)
    for path, destination in links().items():
        place = os.path.join(root, path.lstrip("/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.lexists(place + ".new"):
            os.unlink(place + ".new")
        os.symlink(destination, place + ".new")
        os.replace(place + ".new", place)
    if os.path.abspath(root) == "/" and os.path.isdir("/run/systemd/system"):
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "start", "--no-block", *ENABLED], check=True)
