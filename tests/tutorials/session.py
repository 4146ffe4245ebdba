"""The blocks of a page in one bash, as somebody types them: in an empty home directory, with this tree's commands.

One rule: whatever a page started is gone when `run` returns, and what it left running is told.
"""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.architecture.tree import ROOT
from tests.tutorials.page import Block

_MARK: Final = "BUCKETWORKS_TUTORIAL"
"""A variable that whatever a page starts inherits, also what leaves the session's process group."""
_GRACE_S: Final = 20.0

# Sourced and not piped in, so that every block sees the variables, functions and background jobs of those before it, and bash
# names the page's own lines.
_SESSION: Final = """\
set -euo pipefail
at=none
trap 'echo "$at $?" > "$RESULTS/ended"' EXIT
{blocks}
at=end
"""
_BLOCK: Final = """\
at={number}
source "$RESULTS/{number}/{name}" > "$RESULTS/{number}/output" 2>&1
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a page. `outputs` has what each block that was begun printed (both streams), in order."""

    outputs: list[str]
    status: int | None
    """Exit status of the block that ended the session, or 0; None: the time was over."""
    left: list[str]
    """Command lines of what was still running after the last block."""

    @property
    def complete(self) -> bool:
        return self.status == 0


def run(
    name: str, blocks: Sequence[Block], directory: Path, *, environment: Mapping[str, str], limit_s: float
) -> Outcome:
    """`directory` must be empty. `name` is the page's, for messages of bash."""
    results, home = directory / "results", directory / "home"
    home.mkdir(parents=True)
    for number, block in enumerate(blocks):
        folder = results / str(number)
        folder.mkdir(parents=True)
        (folder / name).write_text("\n" * (block.line - 1) + block.text, encoding="utf-8")
    script = results / "session"
    script.write_text(
        _SESSION.format(blocks="".join(_BLOCK.format(number=n, name=name) for n in range(len(blocks)))),
        encoding="utf-8",
    )
    mark = uuid4().hex
    path = f"{commands(directory / 'bin')}:{os.environ['PATH']}"
    surroundings = {
        key: value for key, value in os.environ.items() if not key.startswith(("BUCKETWORKS_", "AWS_", "XDG_"))
    }
    surroundings |= {
        "HOME": str(home),
        "PATH": path,
        "COLUMNS": "160",
        "LC_ALL": "C.UTF-8",
        "RESULTS": str(results),
        "BUCKETWORKS_CONFIG": str(home / "config.toml"),
        "BUCKETWORKS_SPENDING_DIR": str(directory / "spending"),
        _MARK: mark,
        **environment,
    }
    with (results / "log").open("wb") as log:
        session = subprocess.Popen(
            ["bash", str(script)], cwd=home, env=surroundings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            session.wait(timeout=limit_s)
            status: int | None = session.returncode
        except subprocess.TimeoutExpired:
            status = None
    left = end_all(mark)
    session.wait(timeout=_GRACE_S)
    outputs = [
        file.read_text(encoding="utf-8", errors="replace")
        for number in range(len(blocks))
        if (file := results / str(number) / "output").exists()
    ]
    said = (results / "log").read_text(errors="replace")
    if said and outputs:
        outputs[-1] += said
    return Outcome(outputs, status, [] if status is None else left)


def commands(directory: Path) -> Path:
    """A folder with every console script of pyproject.toml, each running this tree with this tree's entry points, whatever is
    installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = directory / f"bucketworks-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bucketworks\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    (metadata / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in groups.items()
        )
    )
    for command, target in project["scripts"].items():
        module, _, function = target.partition(":")
        script = directory / command
        script.write_text(
            f"#!{sys.executable}\nimport sys\n\nsys.path[:1] = [{str(ROOT)!r}, {str(directory)!r}]\n"
            f"from {module} import {function}\n\nsys.exit({function}())\n",
            encoding="utf-8",
        )
        script.chmod(0o755)
    return directory


def end_all(mark: str) -> list[str]:
    """End what carries `mark` in its environment, in order if it can be, else by force; the command lines of what was ended."""
    found = marked(mark)
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = marked(mark)
        for pid in left:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it has ended by itself in between
        give_up = time.monotonic() + _GRACE_S
        while marked(mark) and time.monotonic() < give_up:
            time.sleep(0.05)
    return list(found.values())


def marked(mark: str) -> dict[int, str]:
    """Command lines of running processes with `mark` in their environment, by pid; zombies have none."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"{_MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found[int(folder.name)] = b" ".join(words).decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended in between, or is another user's and so none of ours
    return found
