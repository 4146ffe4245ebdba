"""The story of one key in plain words: what was done to it, by whom, as far as anybody told, and what does not fit.

One rule: the newest first, each sentence with the records it stands on, so that it can be proved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from integrity.reconcile.acts import NEVER, Act, State
from integrity.reconcile.findings import Finding, shown
from integrity.reconcile.mentions import CHANGES, Mention
from integrity.record import timestamp


@dataclass(frozen=True, slots=True)
class Line:
    """`at` in Unix seconds orders the lines. `records` can be given to `s3integrity prove`."""

    at: float
    said: str
    records: tuple[str, ...]
    version: str = ""
    finding: str = ""

    def as_record(self) -> dict[str, object]:
        return {
            "at": shown(self.at),
            "said": self.said,
            "version": self.version,
            "finding": self.finding,
            "records": list(self.records),
        }


def story(acts: Sequence[Act], mentions: Iterable[Mention], findings: Sequence[Finding]) -> list[Line]:
    """Everything that is known of a key, the newest first."""
    lines = [_told(act) for act in acts]
    lines += [_aside(mention) for mention in mentions if mention.op not in CHANGES]
    lines += [
        Line(
            finding.until,
            finding.sentence + (f" ({finding.explained})" if finding.explained else ""),
            finding.records,
            finding.version,
            finding.code.value,
        )
        for finding in findings
    ]
    return sorted(lines, key=lambda line: (line.at, bool(line.finding)), reverse=True)


_VERBS = {"put": ("put", "put"), "delete": ("deleted", "delete"), "purge": ("deleted a version for good", "purge")}


def _told(act: Act) -> Line:
    done, plain = _VERBS[act.kind]
    moment = act.high if act.high < NEVER and act.state is State.DONE else act.low
    times = [mention.time for mention in act.told if mention.time]
    if act.told and all(mention.phase == "observed" for mention in act.told):
        moment = times[0] if times else act.told[0].at
    match act.state:
        case State.DONE:
            words = f"{act.who} {done}{' it' if act.kind != 'purge' else ''}"
        case State.CLAIMED:
            words = f"{act.who} {done}{' it' if act.kind != 'purge' else ''}, by the word of a feed alone"
        case State.NOT_DONE:
            words = f"{act.who} tried to {plain} it, and was refused"
        case State.OPEN:
            words = f"{act.who} began to {plain} it, and nobody said how it ended"
        case State.MAYBE:
            words = f"{act.who} may have {done} it: the answer was lost"
    facts = [
        f"{act.size:,} bytes" if act.size >= 0 and act.kind == "put" else "",
        f"ETag {act.etag}" if act.etag else "",
        f"version {act.version}" if act.version else "",
    ]
    beside = ", ".join(fact for fact in facts if fact)
    feeds = sorted(act.sources - {"client"})
    words += f" ({beside})" if beside else ""
    words += f"; seen by {', '.join(feeds)}" if feeds and act.client else ""
    return Line(moment, words, tuple(act.references), act.version)


def _aside(mention: Mention) -> Line:
    moment = mention.time or mention.at
    what = {"acl": "who may read it", "tag": "its tags", "retention": "its retention"}.get(mention.op, "")
    said = f"{mention.who or 'somebody'} changed {what}" if what else f"{mention.op} by {mention.who or 'somebody'}"
    return Line(moment, f"{said} ({mention.phase})", (mention.reference,), mention.version)


def headline(key: str, findings: Sequence[Finding], acts: Sequence[Act]) -> str:
    """The answer in one sentence."""
    counted = [finding for finding in findings if not finding.explained]
    if counted:
        return max(counted, key=lambda finding: finding.until).sentence
    if findings:
        return f"`{key}`: {findings[0].said}; explained: {findings[0].explained}"
    done = [act for act in acts if act.state is State.DONE]
    if not done:
        return f"`{key}`: no record tells of it, and nothing is there"
    last = max(done, key=lambda act: min(act.high, NEVER - 1))
    verb = _VERBS[last.kind][0]
    moment = timestamp(last.high if last.high < NEVER else last.low)[:19].replace("T", " ")
    return f"`{key}` is as the ledger says: last {verb} by {last.who} at {moment} UTC"
