"""Programs of the machine's owner, run before and after each backup: a database writes its copy, a service is paused.

One rule: a hook can delay a backup by its time limit and no longer, and can never prevent one. What went wrong is told in the
status. Only files of root that nobody else may write are run: the agent is root.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Mapping


def run(folder: str, timeout_s: float, environment: Mapping[str, str]) -> list[str]:
    """Run the programs in `folder` in order of their names, each for at most `timeout_s`. Returns what went wrong, a line
    each."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [problem for name in names for problem in _run_one(os.path.join(folder, name), timeout_s, environment)]


def _run_one(path: str, timeout_s: float, environment: Mapping[str, str]) -> list[str]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o100:
        return []
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return [f"{path} was not run: it must belong to root, and nobody else may write it"]
    try:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return [f"{path} could not be run: {error.strerror}"]
    try:
        _, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return [f"{path} was ended after {timeout_s:g} s"]
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        return [f"{path} ended with {process.returncode}{': ' + last[0] if last else ''}"]
    return []
