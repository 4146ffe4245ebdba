"""What the agent must not forget: whether the home is restored, whether it is fenced, and the newest snapshot.

One rule: `restored` becomes true only after every file of the snapshot is in place and durable. It is the sentinel; without
it no backup is made, whatever else is on the disk.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from envctl.agent.places import Places, read_json, replace


@dataclass
class Memory:
    """Owned by the process that holds the lock. `save` after each change."""

    environment: str = ""
    generation: int = 0
    restored: bool = False
    fenced: str = ""
    """Why this machine may never write again; empty: it may."""
    number: int | None = None
    """The newest snapshot of this home: the parent of the next."""
    trees: list[str] = field(default_factory=list)
    """What the next tree is made from; and where `committed`, that of `number`."""
    committed: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    last_backup_at: float = 0.0
    """Unix seconds at which the home was last known to be in the bucket as it is here."""
    refused_at: float = 0.0
    """Unix seconds at which the console found a backup malformed: the same is not made again before an interval is over."""
    last_error: str = ""
    problems: list[str] = field(default_factory=list)
    """What the last backup had to tell: it is good, and something is not in it."""
    left_out: list[str] = field(default_factory=list)
    """The first LEFT_OUT_TOLD_MAX paths of the snapshot that this machine could not make when it got its home."""
    left_out_count: int = 0
    mounted: list[str] = field(default_factory=list)
    """Directories of the home that were volumes of their own at the last backup."""
    restored_number: int | None = None
    """The snapshot that this machine's home was made from: it may be older than `number`."""
    restoring: dict[str, Any] = field(default_factory=dict)
    """A restore under way (envctl.agent.restore): resumed after a crash before anything else."""


def load(places: Places) -> Memory:
    """What was saved; a new Memory where nothing was. A file that cannot be read is an error: forgetting `fenced` would be
    worse."""
    found = read_json(places.memory)
    if found is None:
        return Memory()
    known = Memory.__dataclass_fields__
    return Memory(**{name: value for name, value in found.items() if name in known})


def save(places: Places, memory: Memory) -> None:
    """Durable once this returns."""
    replace(places.memory, json.dumps(asdict(memory), indent=1).encode("utf-8"))
