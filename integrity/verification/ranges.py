"""Some records of a ledger, read and believed: a range of one writer's, or all that were recorded since a time.

One rule: what is not in the range is told as not read; signatures, pins and heads are verified as `quick` does it, before.
"""

from dataclasses import replace

from integrity.errors import Malformed
from integrity.log_reader import Altered, LogReader
from integrity.record import decode
from integrity.tlog.tiles import WIDTH, tile_at
from integrity.verification.evidence import Evidence
from integrity.verification.findings import Finding, Kind, LogResult, Outcome, count
from integrity.verification.full import Advance
from integrity.verification.pins import Pins
from integrity.verification.quick import finding_of, quick
from integrity.verification.trust import believed
from s3core.errors import StoreError


def since(evidence: Evidence, at: str, advance: Advance) -> tuple[Outcome, Pins]:
    """`quick`, and every record with an `at` of that time or later is read, hashed, chained and read as JSON."""
    outcome, pins = quick(evidence)
    outcome.mode = f"since {at}"
    if outcome.findings and outcome.of(Kind.TAMPERED):
        return outcome, pins
    ledger, _, logs = believed(evidence.store, evidence.origin, evidence.vkey, evidence.pins.logs)
    for log in (ledger, *logs):
        with log.reader as reader:
            try:
                first = first_since(reader, at)
            except (Altered, Malformed) as error:
                _tell(evidence, outcome, reader, error)
                continue
            _read(evidence, outcome, reader, first, reader.checkpoint().size, advance)
    return _done(outcome), pins


def between(evidence: Evidence, writer: str, first: int, last: int, advance: Advance) -> tuple[Outcome, Pins]:
    """`quick`, and records `first` to `last` of one writer, both included, are read, hashed, chained and read as JSON.
    ValueError where there is no such writer or no such record."""
    outcome, pins = quick(evidence)
    outcome.mode = f"range {writer}:{first}-{last}"
    ledger, members, logs = believed(evidence.store, evidence.origin, evidence.vkey, evidence.pins.logs)
    found = next((log for log in (ledger, *logs) if log.writer == writer), None)
    if found is None:
        raise ValueError(
            f"{writer} is no writer of this ledger; known are ledger, {', '.join(sorted(members.by_name))}"
        )
    with found.reader as reader:
        size = reader.checkpoint().size
        if not 0 <= first <= last < size:
            raise ValueError(f"{writer} has records 0 to {size - 1:,}; {first:,} to {last:,} are not among them")
        _read(evidence, outcome, reader, first, last + 1, advance)
    return _done(outcome), pins


def first_since(reader: LogReader, at: str) -> int:
    """The first record of that time or later; the log's size where there is none. One bundle for each halving."""
    low, high = 0, reader.checkpoint().size
    while low < high:
        middle = (low + high) // 2
        if str(decode(reader.alone(middle))["at"]) < at:
            low = middle + 1
        else:
            high = middle
    return low


def _read(evidence: Evidence, outcome: Outcome, reader: LogReader, first: int, last: int, advance: Advance) -> None:
    result = next((one for one in outcome.results if one.log == reader.writer), LogResult(reader.writer))
    read = 0
    try:
        for number, data in reader.records(first, last):
            record = decode(data)
            if record["n"] != number or record["writer"] != reader.writer:
                raise reader.altered(
                    f"the record calls itself {record['writer']!r} {record['n']:,}", number // WIDTH, number, number
                )
            read += 1
            if read % 1000 == 0:
                advance(1000)
    except (Altered, Malformed) as error:
        _tell(evidence, outcome, reader, error, first + read)
    except StoreError as error:
        what = f"could not be read from record {first + read:,} on: {error}"
        outcome.add(Finding(Kind.UNREAD, reader.writer, what, error.key, first + read, last - 1))
    advance(read % 1000)
    result.hashed = result.parsed = read
    result.skipped = result.size - read


def _tell(
    evidence: Evidence, outcome: Outcome, reader: LogReader, error: Altered | Malformed, number: int | None = None
) -> None:
    if isinstance(error, Malformed):
        where = "" if number is None else tile_at(reader.checkpoint().size, -1, number // WIDTH).path
        error = Altered(str(error), log=reader.writer, where=where, first=number, last=number)
    outcome.add(finding_of(evidence, error, evidence.pins.logs.get(reader.writer), reader=reader))


def _done(outcome: Outcome) -> Outcome:
    results = outcome.results
    outcome.coverage = [
        f"read, hashed and read as JSON: {count(sum(one.parsed for one in results), 'record')}; not read: "
        f"{count(sum(one.skipped for one in results), 'record')} (--full reads all)"
    ]
    outcome.results = [replace(one) for one in results]
    outcome.settle()
    return outcome
