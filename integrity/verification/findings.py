"""What a verification found, and the one verdict that follows from it.

One rule: what could not be read is never taken for evidence, neither good nor bad: an unreachable store is INCOMPLETE, an
object that a signed size demands and the store says it has not is TAMPERED.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from s3core.exit_codes import ExitCode

FINDINGS_MAX = 200
"""More of them are counted, not kept: a log of which every object was replaced has as many as objects."""


class Verdict(StrEnum):
    VERIFIED = "VERIFIED"
    ANOMALIES = "ANOMALIES"
    TAMPERED = "TAMPERED"
    INCOMPLETE = "INCOMPLETE"


class Kind(StrEnum):
    """TAMPERED: evidence contradicts itself. ANOMALY: it does not, and somebody should look. UNREAD: it could not be had."""

    TAMPERED = "tampered"
    ANOMALY = "anomaly"
    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` happened to `where` (an object's name) in `log`, a writer's name. Records are numbers, `last` included, None
    where it is not about records. `since` and `until` are times as records have them: the window it happened in, as far as the
    evidence tells ("" where it does not). `last_writer` is who the last record before it names."""

    kind: Kind
    log: str
    what: str
    where: str = ""
    first: int | None = None
    last: int | None = None
    since: str = ""
    until: str = ""
    known_good: str = ""
    last_writer: str = ""

    def record(self) -> dict[str, object]:
        """As JSON has it: members that tell nothing are left out."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None)}

    def sentences(self) -> list[str]:
        """For people: what, then what is known around it."""
        lines = [f"{self.kind.value}: {self.log}: {self.what}"]
        if self.where:
            lines.append(f"  object: {self.where}")
        if self.first is not None:
            many = self.last is not None and self.last != self.first
            lines.append(f"  records: {self.first:,} to {self.last:,}" if many else f"  record: {self.first:,}")
        if self.since or self.until:
            lines.append(f"  when: between {self.since or 'the beginning'} and {self.until or 'now'}")
        if self.known_good:
            lines.append(f"  last good state: {self.known_good}")
        if self.last_writer:
            lines.append(f"  last legitimate writer: {self.last_writer}")
        return lines


EMPTY = "empty"
"""The state of a log that nothing was published in yet."""


@dataclass(slots=True)
class LogResult:
    """One row of the answer. `hashed` records were read and hashed to the root, `parsed` of them also read as JSON, `skipped`
    are in the log and were not looked at. `age_s` is the age of its newest signed evidence."""

    log: str
    state: str = "verified"
    size: int = 0
    root: str = ""
    epoch: int = 0
    hashed: int = 0
    parsed: int = 0
    skipped: int = 0
    checkpoints: int = 0
    age_s: float | None = None
    unfinished: int = 0
    note: str = ""


@dataclass(slots=True)
class Outcome:
    """All of a verification. Not for several threads."""

    mode: str
    results: list[LogResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0
    coverage: list[str] = field(default_factory=list)
    """What was read and what was not, in sentences."""
    unfinished: list[dict[str, object]] = field(default_factory=list)
    """Intents without an outcome, or with one that says `unknown`, each by its number and what it was about."""

    def add(self, *found: Finding) -> None:
        for one in found:
            if len(self.findings) < FINDINGS_MAX or not self._told(one):
                self.findings.append(one)
            else:
                self.left_out += 1

    def _told(self, one: Finding) -> bool:
        """Whether the verdict, the row of its log and its pin come to the same without this finding."""
        logs = (None,) if one.kind is Kind.ANOMALY else (one.log,)
        return any(there.kind is one.kind and (None in logs or there.log in logs) for there in self.findings)

    def of(self, kind: Kind, log: str | None = None) -> list[Finding]:
        return [one for one in self.findings if one.kind is kind and log in (None, one.log)]

    @property
    def verdict(self) -> Verdict:
        if self.of(Kind.TAMPERED):
            return Verdict.TAMPERED
        if self.of(Kind.UNREAD):
            return Verdict.INCOMPLETE
        return Verdict.ANOMALIES if self.of(Kind.ANOMALY) else Verdict.VERIFIED

    @property
    def exit_code(self) -> ExitCode:
        match self.verdict:
            case Verdict.TAMPERED:
                return ExitCode.TAMPERED
            case Verdict.INCOMPLETE:
                return ExitCode.PARTIAL if any(one.state != "unread" for one in self.results) else ExitCode.UNAVAILABLE
            case Verdict.ANOMALIES:
                return ExitCode.FINDING
        return ExitCode.OK

    def settle(self) -> None:
        """Give each row the state that its findings make of it, and put the findings in the order in which they are read: what
        is worst first, then as the logs and their records come. A record that was changed comes before the next one, whose
        chain that broke."""
        logs = {result.log: place for place, result in enumerate(self.results)}
        kinds = list(Kind)
        self.findings.sort(
            key=lambda one: (
                kinds.index(one.kind),
                logs.get(one.log, len(logs)),
                -1 if one.first is None else one.first,
            )
        )
        for result in self.results:
            for kind, state in (
                (Kind.TAMPERED, "TAMPERED"),
                (Kind.UNREAD, "unread"),
                (Kind.ANOMALY, "anomalies"),
            ):
                if self.of(kind, result.log):
                    result.state = state
                    break

    def json(self) -> dict[str, object]:
        return {
            "verdict": self.verdict.value,
            "mode": self.mode,
            "logs": [asdict(result) for result in self.results],
            "findings": [finding.record() for finding in self.findings],
            "findings_left_out": self.left_out,
            "unfinished": self.unfinished,
            "coverage": self.coverage,
        }


def count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def who_of(record: Mapping[str, object]) -> str:
    """`backup@pve1`, or the writer's name: the person and host a record names."""
    who = record.get("who")
    facts = who if isinstance(who, dict) else {}
    person = next((str(facts[name]) for name in ("user", "name", "principal", "access_key") if facts.get(name)), "")
    place = next((str(facts[name]) for name in ("host", "ip") if facts.get(name)), "")
    writer = str(record.get("writer", ""))
    told = f"{person}@{place}" if person and place else person or place
    return f"{told} (log {writer})" if told else writer


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The code that says most, of several verifications."""
    order = (ExitCode.OK, ExitCode.FINDING, ExitCode.UNAVAILABLE, ExitCode.PARTIAL, ExitCode.TAMPERED)
    return max(codes, key=order.index, default=ExitCode.OK)
