"""Where the agent keeps things, and how a file is replaced so that a crash leaves the old or the new one.

/etc/envctl/seed.json                      what the machine was told at its first boot (0600)
/etc/envctl/pre.d, post.d                  programs run before and after each backup
/var/lib/envctl-agent/identity.json        the key of this machine (0600), and whom it speaks to
                      state.json           restored, fenced, the newest snapshot and its trees
                      scan.cache, scan.next    what stat saw (envctl.agent.scan); may be lost
                      trees/<sha256>       segments of the newest snapshot; may be lost
/run/envctl/status.json, status.txt        for everybody to read
/run/envctl/agent.lock                     one run at a time
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple


class Places(NamedTuple):
    etc: str = "/etc/envctl"
    state: str = "/var/lib/envctl-agent"
    run: str = "/run/envctl"
    base: bytes = b"/"
    """What the paths of a tree are relative to; another one in tests."""

    @property
    def seed(self) -> str:
        return os.path.join(self.etc, "seed.json")

    @property
    def identity(self) -> str:
        return os.path.join(self.state, "identity.json")

    @property
    def memory(self) -> str:
        return os.path.join(self.state, "state.json")

    @property
    def cache(self) -> str:
        return os.path.join(self.state, "scan.cache")

    @property
    def next_cache(self) -> str:
        return os.path.join(self.state, "scan.next")

    @property
    def trees(self) -> str:
        return os.path.join(self.state, "trees")

    @property
    def lock(self) -> str:
        return os.path.join(self.run, "agent.lock")

    def make(self) -> None:
        os.makedirs(self.trees, mode=0o700, exist_ok=True)
        os.chmod(self.state, 0o700)
        os.makedirs(self.run, exist_ok=True)
        os.chmod(self.run, 0o755)


def replace(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write `path` anew. Durable once this returns; a crash before leaves the old file, and perhaps `path`.PID.new."""
    # Of this process: two that write at once must not write into one file.
    temporary = f"{path}.{os.getpid()}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: str) -> dict[str, Any] | None:
    """What is in `path`; None if there is no such file. ValueError if it is not an object of JSON."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold an object")
    return found
