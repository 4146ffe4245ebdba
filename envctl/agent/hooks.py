"""Programs of the machine's owner, run before and after each backup: a database writes its copy, a service is paused.

One rule: a hook can delay a backup by its time limit and no longer, and can never prevent one. What went wrong is told in the
status. Only files of root that nobody else may write are run: the agent is root.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Final

SAID_BYTES: Final = 4096


def run(folder: str, timeout_s: float, environment: Mapping[str, str]) -> list[str]:
    """Run the programs in `folder` in order of their names, each for at most `timeout_s`. Returns what went wrong, a line
    each."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{folder} cannot be read: {error.strerror}"]
    return [problem for name in names for problem in _run_one(os.path.join(folder, name), timeout_s, environment)]


def _run_one(path: str, timeout_s: float, environment: Mapping[str, str]) -> list[str]:
    try:
        status = os.stat(path)
    except OSError as error:
        return [f"{path} was not run: {error.strerror}"]
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o100:
        return []
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return [f"{path} was not run: it must belong to root, and nobody else may write it"]
    # Into a file: a pipe would be waited for as long as a service that the program started holds it open.
    try:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return [f"{path} was ended after {timeout_s:g} s"]
            errors.seek(-min(errors.seek(0, os.SEEK_END), SAID_BYTES), os.SEEK_END)
            said = errors.read()
    except OSError as error:
        return [f"{path} could not be run: {error.strerror}"]
    if process.returncode:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        return [f"{path} ended with {process.returncode}{': ' + last[0] if last else ''}"]
    return []
