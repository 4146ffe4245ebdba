"""Quick verification: keys, signatures, pins, heads, the newest records and the checkpoints behind them; a few GETs a writer.

What it does not read is told as coverage: an old record that was changed in the store is found by `full`, or by whoever reads
it. What it does find is every cut, every other history than the one that was pinned or sealed, and every wrong key.

One rule: a failure in one writer's log does not end the work: all logs are judged, each by itself. Pins are proposed, and
moved by the caller, only of logs in which nothing was found amiss.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from integrity.errors import Malformed, Rejected
from integrity.layout import LEDGER_WRITER, checkpoint_key, kept_checkpoint_key, origin_of
from integrity.log_reader import LANES, Altered, LogReader, read_object
from integrity.record import decode, timestamp, unix_of
from integrity.tlog.checkpoint import peek_checkpoint
from integrity.tlog.cosignature import cosignatures
from integrity.tlog.note import open_note, parse_vkey
from integrity.tlog.tiles import WIDTH
from integrity.verification.evidence import Evidence
from integrity.verification.findings import EMPTY, Finding, Kind, LogResult, Outcome, count, who_of
from integrity.verification.pins import Pin, Pins
from integrity.verification.trust import (
    Head,
    Log,
    Member,
    Members,
    check_epoch,
    ledger_log,
    read_members,
    writer_log,
)
from integrity.verification.walk import named_checkpoint, signing_epoch
from s3core.errors import NotFound, StoreError

CHECKPOINTS_BACK_MAX = 64
"""So many checkpoints behind the newest are followed in a quick verification, at most back to the pin."""


CLOSE = {"what": "close"}
"""What a writer that ends records of it (`control`)."""


def quick(evidence: Evidence) -> tuple[Outcome, Pins]:
    """The outcome, and the pins as they should be from now on. NotFound where there is no ledger and none is pinned."""
    outcome = Outcome("quick")
    pins = evidence.pins
    after = Pins(evidence.origin, evidence.vkey, timestamp(evidence.now), dict(pins.logs), pins.members)
    opened = open_ledger_log(evidence, outcome)
    if opened is None:
        outcome.coverage.append(
            "nothing of the writers' logs was looked at: who the writers are is told by the ledger's log"
        )
        outcome.settle()
        return outcome, pins
    ledger, members, result = opened
    newest_state(evidence, outcome, ledger, result, pins.logs.get(LEDGER_WRITER))
    if not outcome.of(Kind.TAMPERED):
        after.logs[LEDGER_WRITER] = ledger.pin(after.at)
        after.members = members.facts()
    ledger.reader.close()
    with ThreadPoolExecutor(LANES, thread_name_prefix="verify") as threads:
        for name, found, pin in threads.map(lambda member: _one(evidence, member), members.by_name.values()):
            outcome.results += found.results
            outcome.add(*found.findings)
            if pin is not None:
                after.logs[name] = pin
    cosigned(evidence, outcome, ledger)
    outcome.coverage.append(
        "read: keys, signatures, consistency with pins and heads, the newest records and checkpoints. Not read: "
        f"{count(sum(one.skipped for one in outcome.results), 'record')} (--full reads all)"
    )
    outcome.settle()
    return outcome, after


def _one(evidence: Evidence, member: Member) -> tuple[str, Outcome, Pin | None]:
    """One writer, by itself, and the pin where nothing is amiss."""
    outcome = Outcome("quick")
    log, result = open_writer(evidence, outcome, member)
    if log is None:
        return member.writer, outcome, None
    with log.reader:
        newest_state(evidence, outcome, log, result, evidence.pins.logs.get(member.writer))
    amiss = outcome.of(Kind.TAMPERED) or outcome.of(Kind.UNREAD)
    return member.writer, outcome, None if amiss else log.pin(timestamp(evidence.now))


def open_ledger_log(
    evidence: Evidence, outcome: Outcome, heads: dict[str, list[Head]] | None = None
) -> tuple[Log, Members, LogResult] | None:
    """The ledger's log, its writers as of now, and its row; None where that was not possible, which is told as a finding.
    With `heads` all of its records are read, not only those behind the pin, and all heads of each writer put there. Where its
    records do not hold, that is told, and its writers are those up to there."""
    pin = evidence.pins.logs.get(LEDGER_WRITER)
    result = LogResult(LEDGER_WRITER)
    outcome.results.append(result)
    try:
        log = ledger_log(evidence.store, evidence.origin, evidence.vkey, pin, whole=heads is not None)
        result.size, result.root = log.checkpoint.size, log.checkpoint.root.hex()
    except Altered as error:
        outcome.add(finding_of(evidence, error, pin))
        return None
    except NotFound:
        raise
    except StoreError as error:
        outcome.add(Finding(Kind.UNREAD, LEDGER_WRITER, f"could not be read: {error}", where=error.key))
        return None
    members = Members.from_facts(evidence.pins.members if pin is not None and heads is None else {})
    incidents: list[tuple[int, dict[str, Any]]] = []
    try:
        read_members(log, members, heads, incidents)
    except Altered as error:
        outcome.add(finding_of(evidence, error, pin, reader=log.reader))
    except StoreError as error:
        outcome.add(Finding(Kind.UNREAD, LEDGER_WRITER, f"could not be read: {error}", where=error.key))
        return None
    if heads is None:
        outcome.add(*(incident_of(LEDGER_WRITER, number, record) for number, record in incidents))
    if members.sealed:
        result.age_s = evidence.now - unix_of(members.sealed)
    if any(not member.retired for member in members.by_name.values()):
        # Before the first sealing it is as new as its newest writer.
        at = members.sealed or max(member.enrolled for member in members.by_name.values())
        _fresh(evidence, outcome, LEDGER_WRITER, at, "the newest heads of the writers are")
    return log, members, result


def open_writer(
    evidence: Evidence, outcome: Outcome, member: Member, *, whole: bool = False
) -> tuple[Log | None, LogResult]:
    """A writer's log and its row; None where there is nothing to read, which is told in the row or as a finding."""
    result = LogResult(member.writer)
    outcome.results.append(result)
    pin = evidence.pins.logs.get(member.writer)
    try:
        log = writer_log(evidence.store, evidence.origin, member, pin, whole=whole)
    except Altered as error:
        outcome.add(finding_of(evidence, error, pin, member))
        return None, result
    except StoreError as error:
        outcome.add(Finding(Kind.UNREAD, member.writer, f"could not be read: {error}", where=error.key))
        return None, result
    if log is None:
        result.state, result.note = EMPTY, "enrolled, and nothing was published yet"
        return None, result
    result.size, result.root, result.epoch = log.checkpoint.size, log.checkpoint.root.hex(), log.epoch
    if member.retired:
        result.note = f"retired {member.retired}"
        sealed = member.head.size if member.head is not None else 0
        if log.checkpoint.size > sealed:
            outcome.add(
                Finding(
                    Kind.ANOMALY,
                    member.writer,
                    f"{count(log.checkpoint.size - sealed, 'record')} after the last that were sealed when it was retired",
                    first=sealed,
                    last=log.checkpoint.size - 1,
                    since=member.retired,
                )
            )
    return log, result


def newest_state(evidence: Evidence, outcome: Outcome, log: Log, result: LogResult, pin: Pin | None) -> None:
    """The last records of a log, and the checkpoints behind the newest one."""
    size = log.checkpoint.size
    result.skipped = size
    if not size:
        return
    try:
        newest = decode(log.reader.record(size - 1))
        read = (size - 1) % WIDTH + 1
        result.hashed = read
        result.skipped = size - read
        result.checkpoints = 1 + _back(evidence, log, newest, pin)
        at = str(newest["at"])
        if log.writer != LEDGER_WRITER:
            result.age_s = evidence.now - unix_of(at)
            if is_closed(log.reader, newest):
                result.note = result.note or f"closed {at}"
            elif not result.note.startswith("retired"):
                _fresh(evidence, outcome, log.writer, at, "its newest record is")
    except Altered as error:
        outcome.add(finding_of(evidence, error, pin, reader=log.reader))
    except Malformed as error:
        where = checkpoint_key(log.writer)
        outcome.add(
            Finding(Kind.TAMPERED, log.writer, f"its newest record is none: {error}", where, size - 1, size - 1)
        )
    except StoreError as error:
        outcome.add(Finding(Kind.UNREAD, log.writer, f"could not be read: {error}", where=error.key))


def is_closed(reader: LogReader, newest: Mapping[str, object]) -> bool:
    """Whether a log's writer ended in order, and has nothing open any more: it says so before its last checkpoint."""
    number = reader.checkpoint().size - 1
    record = newest
    while number > 0 and record.get("op") in ("checkpoint", "key") and record.get("source") == "ledger":
        number -= 1
        record = decode(reader.record(number))
        if record.get("op") == "checkpoint":
            return False
    return record.get("op") == "control" and record.get("source") == "ledger" and record.get("detail") == CLOSE


def _back(evidence: Evidence, log: Log, newest: dict[str, object], pin: Pin | None) -> int:
    """Follow the checkpoint records back to the pin; how many were looked at. Each must have its note, by the right key,
    with the root that the tree has there."""
    floor = pin.size if pin is not None else 0
    # The newest one must be kept too: it is what the next one will name.
    check_kept(evidence, log, log.checkpoint.size, log.checkpoint.root)
    followed = 0
    record, number = newest, log.checkpoint.size - 1
    while followed < CHECKPOINTS_BACK_MAX and record.get("op") == "checkpoint":
        named = named_checkpoint(record)
        if named is None or named[0] <= floor:
            break
        size, root = named
        if size > number:
            raise Altered(
                f"{log.writer}: a checkpoint record names one of {size:,} records, which would be after it",
                log=log.writer,
                where=checkpoint_key(log.writer),
                first=number,
                last=number,
            )
        if log.reader.root_at(size) != root:
            raise Altered(
                f"{log.writer}: a checkpoint record names another root for size {size:,} than the tree has",
                log=log.writer,
                where=checkpoint_key(log.writer),
                first=size,
                last=size,
            )
        check_kept(evidence, log, size, root)
        followed += 1
        number = size - 1
        record = decode(log.reader.record(number))
    return followed


def check_kept(evidence: Evidence, log: Log, size: int, root: bytes) -> None:
    """Altered where the note kept for that size is missing, has another root, or is by another epoch's key than was then."""
    key = kept_checkpoint_key(log.writer, size)
    found = log.reader.kept_checkpoint(size, [parse_vkey(one) for one in log.keys])
    check_epoch(log.writer, size, signing_epoch(read_object(evidence.store, key, log.writer), log.keys), log.ends, key)
    if found.root != root:
        raise Altered(
            f"{log.writer}: the checkpoint kept for size {size:,} has another root than the tree: somebody with the key signed "
            "another history",
            log=log.writer,
            where=key,
        )


def cosigned(evidence: Evidence, outcome: Outcome, log: Log) -> None:
    """Told as an anomaly where too few witnesses cosigned the ledger's newest checkpoint. Called at the end: a checkpoint that
    was just sealed gets its cosignatures a moment later, and is read again then."""
    if not evidence.cosignatures_needed:
        return
    held, reason = _held(evidence, log.reader.note)
    if held < evidence.cosignatures_needed:
        try:
            again = evidence.store.get(checkpoint_key(LEDGER_WRITER)).data
            if peek_checkpoint(again).size >= log.checkpoint.size:
                held, reason = max((held, reason), _held(evidence, again))
        except (StoreError, Malformed) as error:
            reason = str(error)
    if held < evidence.cosignatures_needed:
        outcome.add(
            Finding(
                Kind.ANOMALY,
                LEDGER_WRITER,
                f"{count(held, 'witness', 'witnesses')} cosigned the newest checkpoint, "
                f"{evidence.cosignatures_needed} are needed{f': {reason}' if reason else ''}",
                where=checkpoint_key(LEDGER_WRITER),
            )
        )


def _held(evidence: Evidence, note: bytes) -> tuple[int, str]:
    """How many witnesses cosigned it; two keys of one are one."""
    try:
        open_note(note, [parse_vkey(evidence.vkey)])
        return len({one.name for one in cosignatures(note, evidence.cosigners)}), ""
    except (Malformed, Rejected) as error:
        return 0, str(error)


def _fresh(evidence: Evidence, outcome: Outcome, log: str, at: str, what: str) -> None:
    age = evidence.now - unix_of(at)
    if age > evidence.silence_s:
        outcome.add(
            Finding(
                Kind.ANOMALY,
                log,
                f"stale: {what} {_shown(age)} old (silence_s is {_shown(evidence.silence_s)}): whoever writes it is down, or "
                "newer evidence is being withheld",
                since=at,
            )
        )
    elif age < -evidence.silence_s:
        outcome.add(Finding(Kind.ANOMALY, log, f"{what} from {_shown(-age)} in the future: a clock is wrong", since=at))


def incident_of(log: str, number: int, record: Mapping[str, Any]) -> Finding:
    """What a log tells of the store (`trust.is_incident`), as a finding: it may have been made good since, and happened."""
    detail, error = record.get("detail", {}), record.get("error", {})
    told = (
        error.get("message") or f"the store held {detail.get('found')} of {detail.get('published')} published records"
    )
    about = f"{detail['writer']}: " if "writer" in detail else ""
    at = str(record.get("at", ""))
    return Finding(Kind.ANOMALY, log, f"recorded at {at}: {about}{told}", first=number, last=number, until=at)


def finding_of(
    evidence: Evidence,
    error: Altered,
    pin: Pin | None = None,
    member: Member | None = None,
    reader: LogReader | None = None,
) -> Finding:
    """An `Altered` as a finding, with the window and the last legitimate writer as far as the evidence tells."""
    head = member.head if member is not None else None
    since = max((one.at for one in (pin, head) if one is not None), default="")
    good = error.known_good
    if not good and pin is not None:
        good = f"{origin_of(evidence.origin, error.log)} at {pin.size:,} records, root {pin.root[:16]}, {pin.at}"
    found = Finding(
        Kind.TAMPERED,
        error.log,
        str(error).removeprefix(f"{error.log}: "),
        error.where,
        error.first,
        error.last,
        since=since,
        until=timestamp(evidence.now),
        known_good=good,
    )
    return found if reader is None else placed(found, reader)


def placed(finding: Finding, reader: LogReader) -> Finding:
    """The finding with the records around it asked for its time window and the last legitimate writer: what was done to a
    record was done after the one before it was written, and not later than now. Records that cannot be believed or read tell
    nothing: then the window begins with the log, since a pin does not say that this record was read."""
    first = finding.first
    if first is None:
        return finding
    finding = replace(finding, since="")
    for number in (first - 1, first // WIDTH * WIDTH - 1):
        before = _said(reader, number)
        if before is not None:
            return replace(finding, since=str(before["at"]), last_writer=who_of(before))
    return finding


def _said(reader: LogReader, number: int) -> dict[str, object] | None:
    if not 0 <= number < reader.checkpoint().size:
        return None
    try:
        return decode(reader.alone(number))
    except (Altered, Malformed, StoreError):
        return None


def _shown(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36_000
        else f"{seconds / 3600:.0f} h"
    )
