"""Verified records of all writers, for people: by time, from the newest back, and as they are published.

    with Readings(evidence) as readings:
        for record in readings.merged(choice): ...
        readings.problems, readings.parts()

Records of several writers are put in the order of `at`, which is what each writer's host took for the time. That is no total
order: clocks differ. Within one writer the order is exact.

One rule: only records that were shown to be under a signed root are handed on. What ends a log early is kept as a `Problem` and
ends that log alone; nobody who has not looked at `problems` has read a whole ledger.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from integrity.errors import Malformed, NotEnrolled
from integrity.layout import LEDGER_WRITER, tile_key
from integrity.log_reader import Altered, in_words
from integrity.record import decode, timestamp
from integrity.reports.choose import Choice
from integrity.reports.digest import Digest
from integrity.reports.document import Part, Problem
from integrity.tlog.tiles import WIDTH, entries_path
from integrity.verification.evidence import Evidence
from integrity.verification.findings import Finding, Outcome
from integrity.verification.pins import Pin, Pins
from integrity.verification.quick import open_ledger_log, open_writer
from integrity.verification.trust import Log, Members
from s3core.errors import StoreError

AHEAD = 16 * WIDTH
"""Records that are read at a time to find the outcomes of intents."""
BACK_BUNDLES = 4
"""So many bundles are read at once, at first, when records are looked for from the end."""
SLACK = WIDTH
"""Records before and behind the time asked for that are looked at too: a clock that is set makes small steps back."""


@dataclass(slots=True)
class _Reading:
    """One log, and how far it was read."""

    writer: str
    state: str
    log: Log | None
    said: str = ""
    first: int = 0
    last: int = 0
    newest_at: str = ""
    broken: bool = False

    @property
    def size(self) -> int:
        return self.log.checkpoint.size if self.log else 0


@dataclass(slots=True)
class Readings:
    """All logs of a ledger, opened at their newest checkpoints. NotFound where there is no ledger, NotEnrolled
    where it knows no such writer. Not for several threads."""

    evidence: Evidence
    writers: str = ""
    """Read this writer's log alone."""
    problems: list[Problem] = field(default_factory=list)
    members: Members = field(default_factory=Members)
    _ledger_pin: Pin | None = None
    _readings: list[_Reading] = field(default_factory=list)

    def __post_init__(self) -> None:
        outcome = Outcome("report")
        opened = open_ledger_log(self.evidence, outcome)
        if opened is None:
            self._readings.append(_Reading(LEDGER_WRITER, "ledger", None, "could not be opened", broken=True))
        else:
            log, self.members, _ = opened
            self._ledger_pin = log.pin(timestamp(self.evidence.now))
            if self.writers not in ("", LEDGER_WRITER) and self.writers not in self.members.by_name:
                log.reader.close()
                raise NotEnrolled(f"the ledger knows no writer {self.writers}; `s3integrity status` shows all")
            if self.writers in ("", LEDGER_WRITER):
                self._readings.append(_Reading(LEDGER_WRITER, "ledger", log))
            else:
                log.reader.close()
            for member in self.members.by_name.values():
                if self.writers not in ("", member.writer):
                    continue
                found, result = open_writer(self.evidence, outcome, member)
                state = f"retired {member.retired[:10]}" if member.retired else "enrolled"
                said = "" if found else result.note or "could not be opened"
                self._readings.append(
                    _Reading(member.writer, state, found, said, broken=found is None and not result.note)
                )
        self.problems += [problem_of(finding) for finding in outcome.findings]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the readers' threads."""
        for reading in self._readings:
            if reading.log is not None:
                reading.log.reader.close()

    def heads(self) -> list[str]:
        """Up to which checkpoint of each log records are shown, in words."""
        return [in_words(reading.log.checkpoint) for reading in self._readings if reading.log is not None]

    def sizes(self) -> dict[str, int]:
        """The size of each log that could be opened."""
        return {reading.writer: reading.size for reading in self._readings if reading.log is not None}

    def keys(self, writer: str) -> list[str]:
        """The vkeys of a writer's epochs, as they are believed; none where its log could not be opened."""
        return [key for one in self._readings if one.writer == writer and one.log is not None for key in one.log.keys]

    def pins(self) -> Pins:
        """What was believed here, as pins: whoever opens the ledger with them sees it go on from here, or that it does not."""
        if self._ledger_pin is None:
            return self.evidence.pins
        at = timestamp(self.evidence.now)
        logs = {one.writer: one.log.pin(at) for one in self._readings if one.log is not None and not one.broken}
        logs = self.evidence.pins.logs | logs | {LEDGER_WRITER: self._ledger_pin}
        return Pins(self.evidence.origin, self.evidence.vkey, at, logs, self.members.facts())

    def parts(self) -> list[Part]:
        """What was read of each log up to now."""
        return [
            Part(
                one.writer,
                one.size if one.log and not one.broken else 0 if not one.broken else None,
                one.log.checkpoint.root.hex() if one.log else "",
                one.first,
                one.last,
                one.newest_at,
                one.state,
                one.said,
            )
            for one in self._readings
        ]

    # --- forwards ------------------------------------------------------------------------------------------------

    def merged(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """What `choice` lets through, oldest first."""
        streams = [self._stream(one, *self._range(one, choice)) for one in self._open()]
        chosen = [(record for record in stream if choice.passes(record)) for stream in streams]
        return heapq.merge(*chosen, key=lambda record: str(record["at"]))

    def into(self, digest: Digest) -> None:
        """Give it the records of the time it counts, and further ones while intents wait for their outcome."""
        for one in self._open():
            first, last = self._range(one, digest.choice)
            for record in self._stream(one, first, last):
                digest.add(record)
            at = last
            while at < one.size and digest.open_of(one.writer) and not one.broken:
                for _, record in self._verified(one, at, min(one.size, at + AHEAD)):
                    digest.add(record)
                at += AHEAD

    def new_since(self, sizes: dict[str, int], choice: Choice) -> Iterator[dict[str, Any]]:
        """What `choice` lets through of the records that came to each log since it had that size."""
        streams = [self._stream(one, min(sizes.get(one.writer, 0), one.size), one.size) for one in self._open()]
        chosen = [(record for record in stream if choice.passes(record)) for stream in streams]
        return heapq.merge(*chosen, key=lambda record: str(record["at"]))

    # --- backwards -----------------------------------------------------------------------------------------------

    def newest(self, choice: Choice, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` records that `choice` lets through, oldest first. Logs are read from their ends back, as far as
        that needs."""
        found = [self._back(one, choice, limit) for one in self._open()]
        merged: Iterable[dict[str, Any]] = heapq.merge(*found, key=lambda record: str(record["at"]))
        return list(deque(merged, maxlen=limit))

    def _back(self, one: _Reading, choice: Choice, limit: int) -> list[dict[str, Any]]:
        begin, end = self._range(one, choice)
        found: deque[dict[str, Any]] = deque()
        bundles = BACK_BUNDLES
        at = end
        while at > begin and len(found) < limit and not one.broken:
            first = max(begin, (at - 1) // WIDTH * WIDTH - (bundles - 1) * WIDTH)
            found.extendleft(reversed([record for record in self._stream(one, first, at) if choice.passes(record)]))
            at, bundles = first, bundles * 2
        one.first, one.last = at, end
        return list(found)[-limit:]

    # --- one log -------------------------------------------------------------------------------------------------

    def _open(self) -> Sequence[_Reading]:
        return [one for one in self._readings if one.log is not None]

    def _range(self, one: _Reading, choice: Choice) -> tuple[int, int]:
        """The records that can be of the time asked for: where `at` rises, with some slack."""
        first = max(0, self._bisect(one, choice.since) - SLACK) if choice.since else 0
        last = min(one.size, self._bisect(one, choice.until) + SLACK) if choice.until else one.size
        return first, max(first, last)

    def _bisect(self, one: _Reading, moment: str) -> int:
        """A number such that the record there is not before `moment`, and the one at the bundle before it is."""
        low, high = 0, -(-one.size // WIDTH)
        while low < high:
            middle = (low + high) // 2
            _, record = next(self._verified(one, middle * WIDTH, middle * WIDTH + 1), (0, None))
            if record is None:
                return 0
            low, high = (middle + 1, high) if record["at"] < moment else (low, middle)
        return min(low * WIDTH, one.size)

    def _stream(self, one: _Reading, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Records that count as read."""
        one.first, one.last = first, first
        for number, record in self._verified(one, first, last):
            one.last, one.newest_at = number + 1, record["at"]
            yield record

    def _verified(self, one: _Reading, first: int, last: int) -> Iterator[tuple[int, dict[str, Any]]]:
        if one.log is None or one.broken:
            return
        kind: Literal["tampered", "unread"]
        number = first
        try:
            for number, data in one.log.reader.records(first, last):
                record = decode(data)
                if record["n"] != number or record["writer"] != one.writer:
                    raise Malformed(f"it calls itself {record['writer']} {record['n']}")
                yield number, record
                number += 1
            return
        except Malformed as error:
            kind, said = "tampered", f"what was signed is not a record: {error}"
            where = tile_key(one.writer, entries_path(number // WIDTH))
        except Altered as error:
            kind, said, where = "tampered", str(error), error.where
        except StoreError as error:
            kind, said, where = "unread", str(error), error.key
        one.broken = True
        one.said = f"read up to record {number:,}, and not further"
        good = f"{one.writer}: records {first:,} to {number - 1:,}" if number > first else ""
        self.problems.append(Problem(kind, where or one.writer, said, good))


def problem_of(finding: Finding) -> Problem:
    """A verification's finding as a report tells it."""
    said = finding.what
    if finding.since or finding.until:
        said += f"; between {finding.since or 'the beginning'} and {finding.until or 'now'}"
    if finding.last_writer:
        said += f"; last legitimate writer: {finding.last_writer}"
    kind: Literal["tampered", "unread", "anomaly"] = finding.kind.value
    return Problem(kind, finding.where or finding.log, said, finding.known_good)
