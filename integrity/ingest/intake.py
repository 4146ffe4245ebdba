"""Events into the ledger, each once as far as is known: what both the command and the webhook stand on.

One rule: `take` answers when the ledger's writer has the records on disk and their identities are remembered, in that order.
"""

import base64
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from integrity.ingest.cursor import Cursors, Mark, Place, recover
from integrity.ingest.events import Event, identity_of
from integrity.place import Ledger
from integrity.record import timestamp
from integrity.slots import open_writer
from integrity.wal import sync_folder
from s3core.build import parse_store_url

log = logging.getLogger(__name__)

QUARANTINE_NAME = "quarantine.jsonl"
QUARANTINE_BYTES_MAX = 64 << 20
"""Beyond it the file becomes `quarantine.1.jsonl`, in the place of the one that was there."""
KEPT_BYTES_MAX = 64 << 10
"""Of one entry."""


class Records(Protocol):
    """A writer of the ledger."""

    name: str

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int: ...

    def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """`recorded` events are in the ledger now, `repeated` ones were before, as far as is known. `refused` have a reason
    each; they cannot be records."""

    recorded: int = 0
    repeated: int = 0
    refused: tuple[str, ...] = ()
    own: int = 0
    """Left out: what the ledger's writers put in its own place (`Own`)."""


@dataclass(frozen=True, slots=True)
class Own:
    """Where the ledger itself lies. A feed of all that a server does tells of each record's publishing too; were that
    recorded, it would be published, and told, for ever. What else becomes of the ledger's objects is recorded."""

    bucket: str = ""
    prefix: str = ""

    def holds(self, event: Event) -> bool:
        """Whether the event is a put, or a read, that was done below that place."""
        return (
            bool(self.bucket)
            and event.get("bucket") == self.bucket
            and event.get("op") in ("put", "read")
            and event.get("phase") in ("done", "observed")
            and str(event.get("key", "")).startswith(self.prefix)
        )


def own_place(url: str) -> Own:
    """Of a ledger's `url`; nothing is below it where that is no bucket."""
    place = parse_store_url(url)
    return Own(place.bucket, f"{place.path}/" if place.path else "") if place.scheme == "s3" else Own()


class Intake:
    """For one thread at a time. `begins` is the number that the writer's next record has: from there on a crash is looked
    for (`cursor.recover`, which the caller has called before it opened the writer)."""

    def __init__(self, records: Records, cursors: Cursors, begins: int, own: Own | None = None) -> None:
        self._records = records
        self._own = own or Own()
        self._cursors = cursors
        cursors.commit(mark=Mark(records.name, begins))

    def take(self, events: Iterable[Event], places: Mapping[tuple[str, str], Place] | None = None) -> Taken:
        """Record what is not known, then remember it and move to `places`. LedgerError, OSError, sqlite3.Error: what was
        recorded is found again by `recover`, and places have not moved.

        Crash within: see `cursor`."""
        fresh: dict[bytes, Event] = {}
        given = own = 0
        for event in events:
            if self._own.holds(event):
                own += 1
                continue
            given += 1
            fresh.setdefault(identity_of(event), event)
        known = self._cursors.known(fresh)
        refused: dict[bytes, str] = {}
        last = -1
        for identity, event in fresh.items():
            if identity in known:
                continue
            try:
                number = self._records.record(event, wait=False)
            except ValueError as error:
                refused[identity] = str(error)
                continue
            last = number
        recorded = len(fresh) - len(known) - len(refused)
        if recorded:
            self._records.flush()
        mark = Mark(self._records.name, last + 1) if recorded else None
        if mark is not None or places:
            self._cursors.commit(fresh.keys() - known - refused.keys(), places, mark)
        return Taken(recorded, given - recorded - len(refused), tuple(refused.values()), own)


class Quarantine:
    """Entries that could not be understood, as JSON lines, for this user alone: they are kept as they came, secrets and all."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self.path = folder / QUARANTINE_NAME
        self._now = now

    def put(self, feed: str, where: str, reasons: Sequence[str], data: bytes) -> None:
        """Durable on return. OSError.

        Crash within: the entry is there, or it is read again, since the place in the feed has not moved; its line may be
        torn or there twice."""
        entry: dict[str, object] = {
            "at": timestamp(self._now()),
            "feed": feed,
            "where": where,
            "reasons": list(reasons)[:20],
        }
        kept = data[:KEPT_BYTES_MAX]
        if len(kept) < len(data):
            entry["bytes"] = len(data)
        try:
            entry["text"] = kept.decode()
        except UnicodeDecodeError:
            entry["base64"] = base64.b64encode(kept).decode()
        line = json.dumps(entry).encode() + b"\n"
        fresh = not self.path.exists()
        if not fresh and self.path.stat().st_size + len(line) > QUARANTINE_BYTES_MAX:
            self.path.rename(self.path.with_suffix(".1.jsonl"))
            fresh = True
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        if fresh:
            sync_folder(self.path.parent)


@contextmanager
def opened_intake(ledger: Ledger) -> Iterator[tuple[Intake, Quarantine, Cursors]]:
    """A writer of this process, and what it needs to take events. What a crash left is found before the slot is opened."""
    cursors = Cursors(ledger.state_dir / "feeds")
    with ExitStack() as stack:
        stack.callback(cursors.close)
        found = recover(cursors, ledger.slots)
        if found:
            log.info(
                "ledger %s: %d records of feeds were recorded before a crash and are known now", ledger.name, found
            )
        writer = stack.enter_context(open_writer(ledger))
        yield (
            Intake(writer, cursors, writer.status.size, own_place(ledger.settings.url)),
            Quarantine(cursors.folder, ledger.clock.time),
            cursors,
        )
