"""From the ledger's public key to the keys and heads of its writers.

The ledger's log is signed by the ledger key. Its records tell who is a writer, with what first key, and, every minute, size
and root of every writer's newest checkpoint (its *head*). A writer's later keys are each introduced by the one before.

One rule: every step is shown by the one before it, from a key that was configured or a state that was pinned; the first one
that does not hold is `Altered`, and nothing behind it is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from integrity.errors import Malformed, Rejected
from integrity.keys import Introduction, open_introduction
from integrity.layout import LEDGER_WRITER, check_writer, checkpoint_key, epoch_key, origin_of
from integrity.log_reader import Altered, LogReader, read_object
from integrity.record import decode
from integrity.tlog.checkpoint import Checkpoint
from integrity.tlog.note import parse_vkey
from integrity.verification.pins import Pin
from integrity.verification.walk import signing_epoch
from s3core.errors import NotFound
from s3core.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Head:
    """What the ledger's log says of a writer: that its log had this size and root, signed by that epoch's key. `record` is the
    number of the record in the ledger's log, `at` its time."""

    size: int
    root: str
    epoch: int
    vkey: str
    at: str
    record: int


@dataclass(frozen=True, slots=True)
class Member:
    """A writer: its first key, when it was enrolled and retired ("" as long as it is not), and its newest head."""

    writer: str
    vkey: str
    enrolled: str
    retired: str = ""
    head: Head | None = None


@dataclass(slots=True)
class Members:
    """All writers that were ever enrolled, as of `size` records of the ledger's log."""

    size: int = 0
    sealed: str = ""
    """When the newest heads were recorded."""
    by_name: dict[str, Member] = field(default_factory=dict)

    def apply(self, number: int, record: Mapping[str, Any]) -> list[tuple[str, Head]]:
        """Take in the next record of the ledger's log; the heads in it. Malformed where it is not of its kind."""
        detail = record.get("detail", {})
        at = str(record["at"])
        heads = []
        try:
            match record["op"]:
                case "enrol":
                    name = check_writer(detail["writer"])
                    if name in self.by_name:
                        raise ValueError(f"{name} is enrolled already, and a name is never used again")
                    self.by_name[name] = Member(name, parse_vkey(detail["vkey"]).vkey, at)
                case "retire":
                    self.by_name[detail["writer"]] = replace(self.by_name[detail["writer"]], retired=at)
                case "heads":
                    self.sealed = at
                    for name, head in heads_of(number, record):
                        _check_head(self.by_name[name], head)
                        heads.append((name, head))
                        self.by_name[name] = replace(self.by_name[name], head=head)
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"record {number:,} of the ledger's log is no {record['op']}: {error!r}") from error
        self.size = number + 1
        return heads

    def facts(self) -> dict[str, Any]:
        """As a file of pins holds it."""
        return {"size": self.size, "sealed": self.sealed, "writers": [asdict(one) for one in self.by_name.values()]}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Members":
        """The reverse; empty for {}. Malformed for what is none."""
        if not facts:
            return cls()
        try:
            members = [
                Member(**{**one, "head": Head(**one["head"]) if one["head"] else None}) for one in facts["writers"]
            ]
            return cls(int(facts["size"]), str(facts["sealed"]), {one.writer: one for one in members})
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"not what pins hold of a ledger's writers: {error!r}") from error


def _check_head(member: Member, head: Head) -> None:
    """ValueError where the ledger's log contradicts itself: a log that was sealed at a size has that size for good."""
    before = member.head
    if before is None:
        return
    if head.size < before.size or head.epoch < before.epoch:
        raise ValueError(
            f"the head of {member.writer} goes back: {before.size} records of epoch {before.epoch} were sealed by record "
            f"{before.record}, and now {head.size} of epoch {head.epoch}"
        )
    if head.size == before.size and head.root != before.root:
        raise ValueError(
            f"{member.writer} was sealed with another root at {head.size} records by record {before.record}"
        )


def heads_of(number: int, record: Mapping[str, Any]) -> list[tuple[str, Head]]:
    """The heads in a record of the ledger's log, by writer. KeyError, TypeError, ValueError where they are none."""
    return [
        (
            check_writer(one["writer"]),
            Head(int(one["size"]), str(one["root"]), int(one["epoch"]), str(one["vkey"]), str(record["at"]), number),
        )
        for one in record["detail"]["heads"]
    ]


@dataclass(slots=True)
class Log:
    """A log whose newest checkpoint is believed. `keys` are its epochs' vkeys, `epoch` is the one that signed. `ends` has the
    size at which each key but the newest signed its last checkpoint."""

    reader: LogReader
    checkpoint: Checkpoint
    keys: list[str]
    ends: list[int]
    epoch: int = 0
    introductions: list[Introduction] = field(default_factory=list)
    """The notes of the epochs that were read, the newest last."""

    @property
    def writer(self) -> str:
        return self.reader.writer

    def pin(self, at: str) -> Pin:
        return Pin(self.checkpoint.size, self.checkpoint.root.hex(), self.epoch, tuple(self.keys[: self.epoch + 1]), at)


def ledger_log(store: ObjectStore, origin: str, vkey: str, pin: Pin | None, *, whole: bool = False) -> Log:
    """The ledger's own log; `whole` as for `writer_log`. NotFound where there is none, and none is pinned; Altered where it
    does not hold or does not go on from the pin."""
    reader = LogReader(store, LEDGER_WRITER, origin, [parse_vkey(vkey)])
    try:
        checkpoint = reader.checkpoint()
    except NotFound as error:
        if pin is None:
            raise
        raise _gone(LEDGER_WRITER, origin, pin.size, pin.root, "pinned", pin.at) from error
    if pin is not None:
        goes_on(reader, pin.size, pin.root, "the pin", pin.at, size_only=whole)
    return Log(reader, checkpoint, [vkey], [])


def read_members(
    log: Log,
    members: Members,
    heads: dict[str, list[Head]] | None = None,
    incidents: list[tuple[int, dict[str, Any]]] | None = None,
) -> Members:
    """Take in all records of the ledger's log from `members.size` on; into `heads` all heads of each writer, into `incidents`
    what sealing refused. Altered; `members` has then what came before."""
    for number, data in log.reader.records(members.size):
        try:
            record = decode(data)
            for writer, head in members.apply(number, record):
                if heads is not None:
                    heads.setdefault(writer, []).append(head)
        except Malformed as error:
            raise Altered(
                str(error), log=LEDGER_WRITER, where=checkpoint_key(LEDGER_WRITER), first=number, last=number
            ) from error
        if incidents is not None and is_incident(record):
            incidents.append((number, record))
    return members


def is_incident(record: Mapping[str, Any]) -> bool:
    """Whether a log tells by it that the store did not hold what it should: a head that sealing refused, a checkpoint that was
    put back."""
    return record.get("op") == "error" and record.get("source") == "ledger"


def writer_log(
    store: ObjectStore, ledger_origin: str, member: Member, pin: Pin | None, *, whole: bool = False
) -> Log | None:
    """A writer's log: signed by the key of the right epoch, going on from its pin and its newest head. None where it has no
    checkpoint, and neither head nor pin says that it ever had one. `whole`: every epoch's note is read again, not only those
    behind the pin, and roots are left to whoever reads all records. Altered where anything does not hold."""
    writer, head = member.writer, member.head
    origin = origin_of(ledger_origin, writer)
    key = checkpoint_key(writer)
    floor = max((one for one in (pin, head) if one is not None), key=lambda one: one.size, default=None)
    try:
        note = read_object(store, key, writer)
    except NotFound as error:
        if floor is None:
            return None
        what = "pinned" if floor is pin else "told by the ledger's log"
        raise _gone(writer, origin, floor.size, floor.root, what, floor.at) from error
    keys, introductions = epoch_keys(store, writer, origin, member.vkey, () if pin is None or whole else pin.keys)
    if pin is not None and list(pin.keys) != keys[: len(pin.keys)]:
        raise Altered(
            f"{writer}: its keys are not those that were pinned",
            log=writer,
            where=epoch_key(writer, len(pin.keys) - 1),
            known_good=f"{pin.size:,} records, {pin.at}",
        )
    # Epochs that ended before the pin are not asked for again: only what is newer than the pin is judged by them.
    ends = [0] * (len(keys) - 1 - len(introductions)) + [one.size for one in introductions]
    if head is not None and head.epoch >= len(keys):
        raise Altered(
            f"{writer}: the note that introduces the key of epoch {len(keys)} is missing; the ledger's log names epoch "
            f"{head.epoch}",
            log=writer,
            where=epoch_key(writer, len(keys)),
            known_good=f"{head.size:,} records at {head.at}",
        )
    try:
        epoch = signing_epoch(note, keys)
    except (Malformed, Rejected) as error:
        raise Altered(f"{writer}: the checkpoint does not hold: {error}", log=writer, where=key) from error
    reader = LogReader(store, writer, origin, [parse_vkey(keys[epoch])])
    reader.take(note)
    checkpoint = reader.checkpoint()
    if head is not None and head.size > 0:
        if epoch < head.epoch and checkpoint.size >= head.size:
            raise Altered(
                f"{writer}: the checkpoint of size {checkpoint.size:,} is signed by the key of epoch {epoch}, and epoch "
                f"{head.epoch} had begun: whoever signed it has an old key",
                log=writer,
                where=key,
                known_good=f"{head.size:,} records at {head.at}",
            )
        if keys[head.epoch] != head.vkey:
            raise Altered(
                f"{writer}: the key of epoch {head.epoch} is not the one that the ledger's log names",
                log=writer,
                where=epoch_key(writer, head.epoch),
                known_good=f"{head.size:,} records at {head.at}",
            )
    check_epoch(writer, checkpoint.size, epoch, ends, key)
    if pin is not None:
        goes_on(reader, pin.size, pin.root, "the pin", pin.at, size_only=whole)
    if head is not None:
        goes_on(reader, head.size, head.root, "the newest head in the ledger's log", head.at, size_only=whole)
    return Log(reader, checkpoint, keys, ends, epoch, introductions)


def epoch_keys(
    store: ObjectStore, writer: str, origin: str, vkey: str, known: Sequence[str] = ()
) -> tuple[list[str], list[Introduction]]:
    """The vkeys of all epochs and the notes that introduced those from 1 on: from the enrolled key, or from the keys that are
    known (pinned), each by the note that the one before signed. One GET each, and one that finds nothing. Altered where a note
    does not hold."""
    if known and known[0] != vkey:
        raise Altered(
            f"{writer}: enrolled with another key than the one that was pinned", log=writer, where=epoch_key(writer, 0)
        )
    keys = list(known) or [vkey]
    introductions: list[Introduction] = []
    while True:
        epoch = len(keys)
        key = epoch_key(writer, epoch)
        try:
            note = read_object(store, key, writer)
        except NotFound:
            return keys, introductions
        try:
            found = open_introduction(note, origin, epoch, parse_vkey(keys[-1]))
        except (Malformed, Rejected) as error:
            raise Altered(
                f"{writer}: the key of epoch {epoch} is not introduced by the one before: {error}",
                log=writer,
                where=key,
            ) from error
        if introductions and found.size <= introductions[-1].size:
            raise Altered(
                f"{writer}: epoch {epoch} begins at {found.size:,} records, and epoch {epoch - 1} at "
                f"{introductions[-1].size:,}: no key ends before it began",
                log=writer,
                where=key,
            )
        keys.append(found.vkey)
        introductions.append(found)


def check_epoch(writer: str, size: int, epoch: int, ends: Sequence[int], where: str) -> None:
    """Altered where the key of `epoch` cannot have signed a checkpoint of that size: it began later, or ended before."""
    begins = ends[epoch - 1] if epoch else 0
    if epoch < len(ends) and size > ends[epoch]:
        raise Altered(
            f"{writer}: the checkpoint of size {size:,} is signed by the key of epoch {epoch}, which ended "
            f"{f'at {ends[epoch]:,}' if ends[epoch] else 'before the pin'}: whoever signed it has an old key",
            log=writer,
            where=where,
        )
    if size < begins or size == begins > 0:
        raise Altered(
            f"{writer}: the checkpoint of size {size:,} is signed by the key of epoch {epoch}, which began at {begins:,}",
            log=writer,
            where=where,
        )


def goes_on(reader: LogReader, size: int, root: str, what: str, at: str, *, size_only: bool = False) -> None:
    """Altered where the log does not go on from that size and root: it was cut, rolled back, or is another history.
    `size_only`: the roots are compared by somebody who reads all records."""
    checkpoint = reader.checkpoint()
    good = f"{reader.origin} at {size:,} records, root {root[:16]}, {at}"
    where = checkpoint_key(reader.writer)
    if checkpoint.size < size:
        raise Altered(
            f"{reader.writer}: cut or rolled back: the store shows {checkpoint.size:,} records, {what} has {size:,}",
            log=reader.writer,
            where=where,
            first=checkpoint.size,
            last=size - 1,
            known_good=good,
        )
    if size and not size_only and reader.root_at(size).hex() != root:
        raise Altered(
            f"{reader.writer}: another history: the first {size:,} records are not those of {what}, and the right key signed "
            "both",
            log=reader.writer,
            where=where,
            known_good=good,
        )


def believed(
    store: ObjectStore,
    origin: str,
    vkey: str,
    pins: Mapping[str, Pin],
    known: Members | None = None,
    *,
    only: str = "",
) -> tuple[Log, Members, Iterable[Log]]:
    """Everything a reader of records needs: the ledger's log, its writers, and their logs, opened one after another as they are
    asked for (`only`: no other than this writer's). Raises at the first thing that does not hold; whoever wants all findings
    asks `quick` or `full`."""
    log = ledger_log(store, origin, vkey, pins.get(LEDGER_WRITER))
    members = read_members(log, known or Members())

    def logs() -> Iterable[Log]:
        for member in members.by_name.values():
            if only and member.writer != only:
                continue
            found = writer_log(store, origin, member, pins.get(member.writer))
            if found is not None:
                yield found

    return log, members, logs()


def _gone(writer: str, origin: str, size: int, root: str, what: str, at: str) -> Altered:
    return Altered(
        f"{writer}: the whole log is gone: the store has no checkpoint, and {size:,} records were {what}",
        log=writer,
        where=checkpoint_key(writer),
        first=0 if size else None,
        last=size - 1 if size else None,
        known_good=f"{origin} at {size:,} records, root {root[:16]}, {at}",
    )
