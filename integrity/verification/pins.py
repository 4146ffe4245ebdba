"""Pins: what this host has verified of a ledger, kept outside of the bucket, so that nobody who owns the bucket and its keys
can show a shorter or another history to a verifier that has seen the first.

    {"v": 1, "origin": "example.com/ledger", "vkey": "...", "at": "2026-11-22T06:00:00.000000Z",
     "logs": {"ledger": {"size": 120, "root": "<hex>", "epoch": 0, "keys": []}, "pve1.1": {...}},
     "members": {...}}                                     what the ledger's log told up to its pin (`trust`)

One rule: pins move only forwards, and only to what was just verified.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from integrity.errors import LedgerError
from integrity.layout import check_writer
from integrity.place import Ledger

VERSION = 1


class PinMoved(LedgerError):
    """The pins were moved on by another process meanwhile, further than these."""


class PinsDamaged(LedgerError):
    """The file of pins cannot be read. Without it nothing is known of before; it is not thrown away by itself."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A verified state of a log: its size and root (hex), the epoch whose key signed it, and the vkeys of the epochs up to
    it (empty for the ledger's own log)."""

    size: int
    root: str
    epoch: int = 0
    keys: tuple[str, ...] = ()
    at: str = ""
    """When it was verified."""


@dataclass(slots=True)
class Pins:
    """All of a ledger. `members` belongs to `trust`."""

    origin: str
    vkey: str
    at: str = ""
    logs: dict[str, Pin] = field(default_factory=dict)
    members: dict[str, Any] = field(default_factory=dict)


def pins_path(ledger: Ledger) -> Path:
    """Where this host keeps the pins of a ledger."""
    return ledger.state_dir / "pins.json"


def load_pins(path: Path, origin: str, vkey: str) -> Pins:
    """The pins in that file; empty ones where there is none. PinsDamaged where it is no such file, or one of another ledger
    (its origin or key is another one)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Pins(origin, vkey)
    try:
        facts = json.loads(data)
        if facts["v"] != VERSION:
            raise ValueError(f"it is of version {facts['v']}; this program knows {VERSION}")
        logs = {check_writer(name): _pin(one) for name, one in facts["logs"].items()}
        found = Pins(str(facts["origin"]), str(facts["vkey"]), str(facts["at"]), logs, dict(facts["members"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PinsDamaged(
            f"{path}: not a file of pins: {error}",
            hint="restore it from a backup; `pins forget` begins anew, and believes what the bucket shows then",
        ) from error
    for what, kept, wanted in (("origin", found.origin, origin), ("key", found.vkey, vkey)):
        if kept != wanted:
            raise PinsDamaged(
                f"{path}: pins of a ledger with the {what} {kept}, and the configuration says {wanted}",
                hint="if it was changed on purpose: `pins forget`",
            )
    return found


def save_pins(path: Path, pins: Pins) -> None:
    """Replace the file: written beside it, synced, renamed, the folder synced. A crash leaves the old file or the new one,
    and perhaps a `.pins-*` beside it, which the next save removes. LedgerError where a pin would move backwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        before = load_pins(path, pins.origin, pins.vkey)
        for log, pin in before.logs.items():
            now = pins.logs.get(log)
            if now is None or now.size < pin.size:
                raise PinMoved(
                    f"{path}: the pin of {log} at {pin.size:,} records would move backwards",
                    hint="another verification was faster, and has seen more: verify again",
                )
        _write(path, pins)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time looks at the file and replaces it, and tidies up beside it."""
    handle = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, pins: Pins) -> None:
    for left in path.parent.glob(".pins-*"):
        with contextlib.suppress(FileNotFoundError):
            left.unlink()
    facts = {
        "v": VERSION,
        "origin": pins.origin,
        "vkey": pins.vkey,
        "at": pins.at,
        "logs": {log: asdict(pin) for log, pin in sorted(pins.logs.items())},
        "members": pins.members,
    }
    handle, name = tempfile.mkstemp(prefix=".pins-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(facts, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def forget_pins(path: Path, log: str | None = None, *, origin: str, vkey: str) -> list[str]:
    """Forget one log's pin, or the whole file; the names of what was forgotten. What is shown next will be believed."""
    try:
        pins = load_pins(path, origin, vkey)
    except PinsDamaged:
        if log is not None:
            raise
        path.unlink()
        return ["all"]
    if log is None:
        path.unlink(missing_ok=True)
        return sorted(pins.logs)
    if log not in pins.logs:
        return []
    del pins.logs[log]
    if log == "ledger":
        pins.members = {}
    _write(path, pins)
    return [log]


def _pin(facts: dict[str, Any]) -> Pin:
    pin = Pin(int(facts["size"]), str(facts["root"]), int(facts["epoch"]), tuple(facts["keys"]), str(facts["at"]))
    if len(bytes.fromhex(pin.root)) != 32 or pin.size < 0:
        raise ValueError(f"{pin.root!r} at {pin.size} is no root")
    return pin
