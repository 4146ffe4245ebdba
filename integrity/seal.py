"""Sealing: the newest checkpoint of every writer into the ledger's own log.

One rule: a head is recorded after its signature, its epoch and its consistency with the head before were shown, from the key in
the `enrol` record on. One that does not hold is recorded as such, and is never put in the place of the good one before.

Crash at any point: the records are in the local log of this host, or not; the next sealing goes on from what is there.
"""

import logging
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from integrity.enrolment import Roster
from integrity.errors import LedgerError
from integrity.log_reader import Altered
from integrity.place import Ledger
from integrity.record import timestamp
from integrity.slots import ledger_log
from integrity.tlog.checkpoint import Checkpoint
from integrity.verification.pins import Pin
from integrity.verification.trust import Log, Member, Members, writer_log
from integrity.writer import Event, Writer
from s3core.errors import StoreError

LANES = 8
HEADS_PER_RECORD = 100
"""Each is about 400 bytes; a record has at most 65,535."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sealed:
    """What a sealing came to. `writers` are the members as of now, retired ones too."""

    checkpoint: Checkpoint
    members: Members
    changed: list[str] = field(default_factory=list)
    unread: dict[str, StoreError] = field(default_factory=dict)
    """Writers whose logs could not be read this time; their heads stay as they are."""
    altered: dict[str, Altered] = field(default_factory=dict)
    """Writers whose logs do not hold, recorded as that."""


@dataclass(frozen=True, slots=True)
class _Look:
    member: Member
    found: Log | None = None
    unread: StoreError | None = None
    altered: Altered | None = None


def seal(
    ledger: Ledger,
    *,
    key: Path | None = None,
    known: MutableMapping[str, Pin] | None = None,
    inside: Callable[[Writer, Roster], object] | None = None,
) -> Sealed:
    """Record the writers' heads and publish the ledger's own log: both durable in the store on return. `known` saves a process
    that seals often the reading of old epochs' notes; it is filled. `inside` records more before it is published, such as a
    retirement.

    NotEnrolled where the ledger key is not here; SlotsTaken while another process seals; StoreError where the store does not
    answer at all: then what was recorded is published next time. Writers that do not hold are in `Sealed.altered`; whoever
    asked raises that."""
    roster = Roster()
    known = {} if known is None else known
    with ledger_log(ledger, roster, key=key) as own:
        members = [one for one in roster.members.by_name.values() if not one.retired]
        with ThreadPoolExecutor(LANES, thread_name_prefix="seal") as pool:
            looks = list(pool.map(lambda member: _look(ledger, member, known.get(member.writer)), members))
        unread = {look.member.writer: look.unread for look in looks if look.unread is not None}
        if unread and len(unread) == len(members):
            raise next(iter(unread.values()))
        altered = {look.member.writer: look.altered for look in looks if look.altered is not None}
        for writer, error in altered.items():
            _record_altered(own, roster, writer, error)
        now = timestamp(ledger.clock.time())
        heads = []
        for look in looks:
            if look.found is None:
                continue
            known[look.member.writer] = look.found.pin(now)
            before, checkpoint = look.member.head, look.found.checkpoint
            if before is None or (before.size, before.epoch) != (checkpoint.size, look.found.epoch):
                heads.append(_head(look.found))
        # One without heads too: it says that there is nothing new, and when that was.
        batches = [heads[at : at + HEADS_PER_RECORD] for at in range(0, len(heads), HEADS_PER_RECORD)] or [[]]
        events: list[Event] = [{"op": "heads", "source": "ledger", "detail": {"heads": batch}} for batch in batches]
        own.record_all(events)
        if inside is not None:
            inside(own, roster)
        checkpoint_now = own.publish(force=True)
        assert checkpoint_now is not None
        changed = [str(head["writer"]) for head in heads]
        return Sealed(checkpoint_now, roster.members, changed, unread, altered)


def raise_altered(sealed: Sealed) -> None:
    """Raise the first thing that does not hold, if any."""
    for error in sealed.altered.values():
        raise error


def _look(ledger: Ledger, member: Member, pin: Pin | None) -> _Look:
    try:
        return _Look(member, writer_log(ledger.store, ledger.origin, member, pin))
    except StoreError as error:
        log.warning("ledger %s: the log of %s could not be read: %s", ledger.name, member.writer, error)
        return _Look(member, unread=error)
    except Altered as error:
        log.error("ledger %s: the log of %s does not hold: %s", ledger.name, member.writer, error)
        return _Look(member, altered=error)
    except LedgerError as error:
        log.error("ledger %s: the log of %s does not hold: %s", ledger.name, member.writer, error)
        return _Look(member, altered=Altered(str(error), log=member.writer, where=""))


def _record_altered(own: Writer, roster: Roster, writer: str, error: Altered) -> None:
    """Once for each finding, not with every sealing."""
    found = str(error)[:1000]
    if roster.refused.get(writer) == found:
        return
    event = {
        "op": "error",
        "phase": "observed",
        "source": "ledger",
        "error": {"code": "head-refused", "message": found},
        "detail": {"writer": writer, "found": found, "where": error.where},
    }
    own.record(event)


def _head(found: Log) -> dict[str, object]:
    checkpoint = found.checkpoint
    return {
        "writer": found.writer,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "epoch": found.epoch,
        "vkey": found.keys[found.epoch],
    }
