"""Which processes have a volume, so that a later one on the same machine can tell that they are gone.

One rule: "surely dead" needs proof. The boot id says that it is the same running kernel (a machine's name or id may be that of
a clone), the namespace that process numbers mean the same, the start time that a number was not given out again.
Everything else is not known, and then the lease is waited for.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_START_FIELD = 19
"""Of what follows the command's name in /proc/PID/stat (proc(5): field 22, starttime)."""


AFTER = "after"
"""Member of a fence record's note: the same of the writer that it had to wait for."""


def whereabouts(note: Mapping[str, Any]) -> dict[str, Any]:
    """What `surely_dead` needs of a note."""
    return {key: note[key] for key in ("boot", "pid_namespace", "processes", AFTER) if key in note}


def started_at(pid: int) -> int:
    """When the process started, in clock ticks since boot. Raises ProcessLookupError when there is no such process, or
    only what its parent has not asked about yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
    if fields[0] in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    return int(fields[_START_FIELD])


def here(*pids: int) -> dict[str, Any]:
    """For a fence record: where these processes run."""
    return {
        "boot": _boot_id(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "processes": [[pid, started_at(pid)] for pid in pids],
    }


def surely_dead(note: Mapping[str, Any]) -> bool:
    """Whether every process of that note has ended, for sure; and those of the writer it took over from, if nothing tells
    that it waited for them."""
    processes = note.get("processes")
    if not processes or note.get("boot") != _boot_id() or note.get("pid_namespace") != os.readlink("/proc/self/ns/pid"):
        return False
    if any(_runs(int(pid), int(started)) for pid, started in processes):
        return False
    return AFTER not in note or surely_dead(note[AFTER])


def _runs(pid: int, started: int) -> bool:
    try:
        return started_at(pid) == started
    except ProcessLookupError:
        return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
