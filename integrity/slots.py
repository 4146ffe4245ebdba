"""The slots of this host: each is a log, a key and a lock, and one process at a time has it.

    STATE_DIR/slots/HOST.1/{lock, key.json, base.json, wal/, open}

One rule: the lock is flock(2), so a process that dies gives its slot back at once, and whoever takes it next goes on with its
log. `open` is there from the first record on until everything is published: a slot without a process that has one was left by a
crash, or by a store that did not answer.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from integrity.errors import Behind, LedgerError, NotEnrolled, SlotsTaken
from integrity.keys import Keys, LedgerKey, SlotKeys
from integrity.layout import LEDGER_WRITER, check_writer, origin_of
from integrity.place import Ledger
from integrity.wal import make_private, sync_folder
from integrity.writer import Fold, Writer

log = logging.getLogger(__name__)

_LOOK_S = 0.05
_LOOKS = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """A folder whose lock this process holds until `release`."""

    writer: str
    folder: Path
    lock: int

    @property
    def key(self) -> Path:
        return self.folder / "key.json"

    def release(self) -> None:
        os.close(self.lock)

    def mark(self) -> None:
        """Say that there may be something left to publish; durable on return."""
        marker = self.folder / "open"
        if not marker.exists():
            os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_folder(self.folder)

    def unmark(self) -> None:
        """Say that there is nothing left. Crash: the mark stays, and somebody looks once more."""
        (self.folder / "open").unlink(missing_ok=True)


def slot_folder(ledger: Ledger, writer: str) -> Path:
    return ledger.slots / check_writer(writer)


def writers_here(ledger: Ledger) -> list[str]:
    """The writers whose slots are on this host, in the order in which they are taken; the ledger's own log is none, nor is a
    folder that is not called HOST.NUMBER: somebody's copy."""
    if not ledger.slots.is_dir():
        return []
    found = [path.name for path in ledger.slots.iterdir() if _number(path.name) and (path / "key.json").exists()]
    return sorted(found, key=lambda name: (name.rpartition(".")[0], _number(name), name))


def try_lock(ledger: Ledger, writer: str) -> Slot | None:
    """The slot, locked; None while another process (or another part of this one) has it."""
    folder = slot_folder(ledger, writer)
    make_private(folder)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return Slot(writer, folder, lock)


def is_taken(ledger: Ledger, writer: str) -> bool:
    """Whether a process has the slot now."""
    slot = try_lock(ledger, writer)
    if slot is None:
        return True
    slot.release()
    return False


class OpenWriter(Writer):
    """A writer that gives its slot back when it is closed. With `with` it is closed at the end of the block."""

    slot: Slot

    def close(self, *, say: bool = True) -> None:
        if self._closed:
            return
        try:
            super().close(say=say)
            if self.clean:
                self.slot.unmark()
        finally:
            self.slot.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_writer(ledger: Ledger, writer: str = "", *, background: bool = True) -> OpenWriter:
    """A writer for this process, in the first free slot, or in that of `writer`. It is this process's own: after a fork the
    child opens another. A slot that is behind the store (`Behind`) is told and passed over, since it stays so until somebody
    retires it, and the others can record. SlotsTaken; NotEnrolled where this host has no slots; and as `Writer.open`."""
    names = [writer] if writer else writers_here(ledger)
    if not names or (writer and not (slot_folder(ledger, writer) / "key.json").exists()):
        raise NotEnrolled(
            f"this host is no writer of ledger {ledger.name}: there are no keys in {ledger.slots}",
            hint=f"s3integrity join {ledger.name}",
        )
    behind: dict[str, Behind] = {}
    for attempt in range(_LOOKS):
        if attempt:
            # Somebody who only looks has a lock for a moment too.
            time.sleep(_LOOK_S)
        for name in names:
            slot = try_lock(ledger, name) if name not in behind else None
            if slot is None:
                continue
            try:
                return open_slot(ledger, slot, background=background)
            except Behind as error:
                behind[name] = error
                if not writer and len(behind) < len(names):
                    log.warning("ledger %s: %s; another slot is taken", ledger.name, error)
    if behind:
        raise next(iter(behind.values()))
    raise SlotsTaken(
        f"all {len(names)} slots of this host in ledger {ledger.name} are in use by other processes"
        if not writer
        else f"writer {writer} of ledger {ledger.name} is in use by another process",
        hint="" if writer else f"raise `slots` in [ledger.{ledger.name}], then: s3integrity join {ledger.name}",
    )


def open_slot(ledger: Ledger, slot: Slot, *, background: bool = False) -> OpenWriter:
    """The writer of a slot that is locked already; it has the lock from now on, and lets it go if it cannot be opened."""
    try:
        keys = SlotKeys.load(slot.key)
        if keys.signer.name != origin_of(ledger.origin, slot.writer):
            raise LedgerError(
                f"the key in {slot.key} is of {keys.signer.name}, not of {origin_of(ledger.origin, slot.writer)}",
                hint="remove the folder: it is a copy of another slot, and what is recorded there would be nobody's word",
            )
        return _opened(ledger, slot, keys, None, background=background)
    except BaseException:
        slot.release()
        raise


@contextmanager
def ledger_log(ledger: Ledger, fold: Fold, *, wait_s: float = 30.0, key: Path | None = None) -> Iterator[OpenWriter]:
    """The ledger's own log, to be written: where the ledger key is. `fold` is filled with what the log says. NotEnrolled
    without the key; SlotsTaken when another process has it for longer than `wait_s`."""
    keys = LedgerKey.load(key or ledger.key_file)
    if keys.signer.name != ledger.origin:
        raise LedgerError(
            f"the key in {key or ledger.key_file} is of ledger {keys.signer.name}, not of {ledger.origin}",
            hint=f"set `origin` of [ledger.{ledger.name}] to what `init` wrote",
        )
    until = time.monotonic() + wait_s
    while (slot := try_lock(ledger, LEDGER_WRITER)) is None:
        if time.monotonic() >= until:
            raise SlotsTaken(f"the log of ledger {ledger.name} itself is being written by another process")
        time.sleep(_LOOK_S)
    try:
        writer = _opened(ledger, slot, keys, fold, background=False)
    except BaseException:
        slot.release()
        raise
    try:
        yield writer
    finally:
        writer.close(say=False)


def _opened(ledger: Ledger, slot: Slot, keys: Keys, fold: Fold | None, *, background: bool) -> OpenWriter:
    slot.mark()
    writer = OpenWriter.open(
        slot.folder,
        slot.writer,
        origin_of(ledger.origin, slot.writer),
        ledger.store,
        keys,
        ledger.settings,
        clock=ledger.clock,
        fold=fold,
        background=background,
    )
    writer.slot = slot
    return writer


def _number(name: str) -> int:
    with suppress(ValueError):
        return int(name.rpartition(".")[2])
    return 0
