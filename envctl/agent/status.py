"""What the agent is doing, for everybody on the machine: `/run/envctl/status.json`, and the same in words.

One rule: nothing secret goes in. It is written for whoever sits in the machine and asks whether the work of the last hour is
safe.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from envctl.agent.places import Places, read_json


def write(places: Places, facts: dict[str, Any]) -> None:
    """Replace both files. They are in memory (`/run`): lost at a reboot, and written anew then."""
    for name, text in (("status.json", json.dumps(facts, indent=1) + "\n"), ("status.txt", words(facts) + "\n")):
        path = os.path.join(places.run, name)
        with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path + ".new", 0o644)
        os.replace(path + ".new", path)


def read(places: Places) -> dict[str, Any] | None:
    return read_json(os.path.join(places.run, "status.json"))


def words(facts: dict[str, Any]) -> str:
    """The status in sentences, as any terminal can show them."""
    return _sentences(facts).encode("utf-8", "backslashreplace").decode("utf-8")


def _sentences(facts: dict[str, Any]) -> str:
    if facts.get("fenced"):
        return (
            "Nothing is saved from this machine any more: another one has this home.\n"
            f"{facts['fenced']}\nCopy what you need to the new machine yourself."
        )
    lines = [f"Environment {facts.get('environment') or '(not enrolled yet)'}: {facts.get('phase', 'unknown')}."]
    if facts.get("message"):
        lines.append(str(facts["message"]))
    if facts.get("last_backup_at"):
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(facts["last_backup_at"]))
        lines.append(f"Last good backup: {when}, snapshot {facts.get('number')}.")
    elif facts.get("restored"):
        lines.append("There is no backup yet.")
    else:
        lines.append("The home is not restored yet; nothing is backed up until it is.")
    if facts.get("last_error"):
        lines.append(f"Last problem: {facts['last_error']}")
    lines += [f"Of the last backup: {each}" for each in facts.get("problems") or []]
    return "\n".join(lines)
