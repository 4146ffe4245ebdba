"""A report as one value: what was asked, what was read and what not, the verdict, and the figures. docs/integrity/audit.md
has its members.

One rule: the verdict is worked out here and nowhere else, with the words and the order of `integrity.verification.findings`:
where something could not be read it is INCOMPLETE, whatever else was seen, unless something that was read contradicts
itself: that is TAMPERED.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import orjson

from integrity.reports.choose import Choice
from integrity.reports.digest import KINDS, Digest
from integrity.verification.findings import Verdict
from s3core.exit_codes import ExitCode

VERSION = 1
FINDINGS_MAX = 100_000
_CODES: Final[Mapping[Verdict, ExitCode]] = {
    Verdict.VERIFIED: ExitCode.OK,
    Verdict.ANOMALIES: ExitCode.FINDING,
    Verdict.TAMPERED: ExitCode.TAMPERED,
    Verdict.INCOMPLETE: ExitCode.PARTIAL,
}
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Part:
    """What was read of one writer. `size` and `root` (hex) are its verified checkpoint's, None and "" where there was none
    that could be believed; `first` up to but not including `last` are the numbers that were read; `said` is what is
    worth a word."""

    writer: str
    size: int | None
    root: str
    first: int
    last: int
    newest_at: str = ""
    state: str = "enrolled"
    said: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not as it should be, or not known. `where` names the object or record, `known_good` the last state that
    is known to be right."""

    kind: Literal["tampered", "unread", "anomaly"]
    where: str
    said: str
    known_good: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Which ledger, made where and when, over which time. `number` is the report's ULID."""

    number: str
    name: str
    origin: str
    vkey: str
    url: str
    made_at: str
    program: str
    choice: Choice


def ulid(unix_s: float, randomness: int | None = None) -> str:
    """26 characters that sort as their times do (github.com/ulid/spec)."""
    value = (int(unix_s * 1000) << 80) | (secrets.randbits(80) if randomness is None else randomness)
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def build(
    subject: Subject,
    parts: Sequence[Part],
    problems: Sequence[Problem],
    digest: Digest,
    reconciled: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The document. `digest` is finished here; `reconciled` is what `findings.taken` made of a reconciliation, None where there
    was none."""
    unfinished = digest.finish()
    findings = list(reconciled["findings"]) if reconciled else []
    open_findings = sum(not finding["explained"] for finding in findings)
    read = sum(part.last - part.first for part in parts)
    unread = [
        f"{part.writer}: {part.said or 'nothing that can be believed was found'}" for part in parts if part.size is None
    ]
    cut = bool(reconciled and not reconciled["complete"])
    verdict = _verdict(problems, open_findings, cut)
    code = _CODES[verdict]
    if verdict is Verdict.INCOMPLETE and not read:
        code = ExitCode.UNAVAILABLE
    return {
        "v": VERSION,
        "id": subject.number,
        "made": {"at": subject.made_at, "by": subject.program},
        "ledger": {"name": subject.name, "origin": subject.origin, "vkey": subject.vkey, "url": subject.url},
        "asked": {"since": subject.choice.since, "until": subject.choice.until},
        "verdict": {"word": verdict.value, "code": int(code), "said": _said(verdict, problems, open_findings)},
        "problems": [asdict(problem) for problem in problems],
        "read": {
            "records": read,
            "counted": sum(digest.records.values()),
            "housekeeping": digest.housekeeping,
        },
        "not_read": [*_never_read(reconciled is not None), *_left_out(parts, subject.choice), *unread],
        "writers": [{**asdict(part), "records": digest.records[part.writer]} for part in parts],
        "totals": {kind: digest.totals[kind] for kind in KINDS},
        "timeline": digest.timeline.shown(),
        "operations": digest.operations.shown(),
        "who": digest.actors.shown(),
        "buckets": digest.buckets.shown(),
        "errors": digest.errors.shown(),
        "days": digest.days.shown(by_name=True),
        "findings": findings[:FINDINGS_MAX],
        "findings_left_out": max(0, len(findings) - FINDINGS_MAX) + (reconciled or {}).get("left_out", 0),
        "reconciled": {k: v for k, v in reconciled.items() if k != "findings"} if reconciled else {},
        "unfinished": unfinished,
        "unfinished_left_out": digest.forgotten,
    }


def encode(document: Mapping[str, Any]) -> bytes:
    """The document's canonical JSON (RFC 8785; ASCII names, no floats), which is what is signed."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _verdict(problems: Sequence[Problem], open_findings: int, cut: bool) -> Verdict:
    kinds = {problem.kind for problem in problems}
    if "tampered" in kinds:
        return Verdict.TAMPERED
    if "unread" in kinds or cut:
        return Verdict.INCOMPLETE
    return Verdict.ANOMALIES if open_findings or "anomaly" in kinds else Verdict.VERIFIED


def _said(verdict: Verdict, problems: Sequence[Problem], open_findings: int) -> str:
    match verdict:
        case Verdict.TAMPERED:
            found = sum(problem.kind == "tampered" for problem in problems)
            return f"The ledger itself was changed: {_some(found, 'contradiction')} in what is signed and chained."
        case Verdict.INCOMPLETE:
            return "Not everything could be read. This says neither that all is well nor that anything was changed."
        case Verdict.ANOMALIES if open_findings:
            return f"The ledger is whole. The bucket is not what it says: {_some(open_findings, 'finding')}."
        case Verdict.ANOMALIES:
            return "Every record that was read is the one that was written. Something beside them needs a look."
    return "Every record that was read is the one that was written, in its order, and none is missing."


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _never_read(reconciled: bool) -> list[str]:
    left = [] if reconciled else ["the bucket itself: what it holds was not compared with the ledger"]
    return [*left, "objects' contents, unless the comparison says that it read them"]


def _left_out(parts: Sequence[Part], choice: Choice) -> list[str]:
    said = []
    for part in parts:
        if part.size is None or (part.first == 0 and part.last == part.size):
            continue
        if part.first:
            said.append(
                f"{part.writer}: the first {_some(part.first, 'record')}, before {choice.since or 'what was asked for'}"
            )
        if part.last < part.size:
            left = _some(part.size - part.last, "record")
            said.append(f"{part.writer}: the last {left}, {'after ' + choice.until if choice.until else 'not read'}")
    return said
