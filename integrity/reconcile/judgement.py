"""One key: what the ledger expects of it against what the bucket has. Findings, or none.

One rule: what can have a harmless cause that the ledger knows of is no finding: an answer that was lost, a request that
was repeated, two acts whose order nobody can tell. What has one that the ledger does not know of (a lifecycle rule, time
before the ledger) is told as explained.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from integrity.reconcile.acts import NEVER, Act, Expected, Kind, State, expected_of
from integrity.reconcile.findings import Code, Finding
from integrity.reconcile.mentions import bare_version
from integrity.reconcile.rules import aborted, expired, expired_noncurrent, possible
from integrity.record import timestamp
from s3core.bucket import ListedVersion
from s3core.s3_control import LifecycleRule
from s3core.s3_xml import parse_time

_MD5 = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What holds for every key of a comparison. `now` is when the bucket was looked at, `began` the first record about the
    place (0.0: none), `skew_s` how far clocks may differ. `looked` is when the place was compared before (0.0: never).
    `rules` are the bucket's own, None where its key may not read them. `feed` is from when to when any feed told of
    the place. `settle_s`: an act without an outcome is told once it is older than this."""

    now: float
    began: float = 0.0
    skew_s: float = 60.0
    looked: float = 0.0
    rules: Sequence[LifecycleRule] | None = ()
    feed: tuple[float, float] = (0.0, 0.0)
    settle_s: float = 3600.0
    suspected: frozenset[str] = frozenset()
    """Keys that had findings when the place was compared before."""

    def clean_at(self, key: str) -> float:
        """When the key was last seen to be right, by the comparison before."""
        return 0.0 if key in self.suspected else self.looked


@dataclass(slots=True)
class _Case:
    key: str
    acts: Sequence[Act]
    expected: Expected
    actual: Sequence[ListedVersion]
    around: Circumstances
    findings: list[Finding] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    """Acts (by identity) without a version that one in the bucket was taken for."""

    def puts(self) -> list[Act]:
        return [act for act in self.acts if act.kind == "put" and act.state is State.DONE]

    def since(self, until: float) -> float:
        """The last moment before `until` at which the key is known to have been right."""
        moments = [act.high for act in self.acts if act.state is State.DONE and act.high < NEVER]
        return max((one for one in (*moments, self.around.clean_at(self.key)) if one <= until), default=0.0)

    def last_writer(self, until: float) -> Act | None:
        known = [act for act in self.acts if act.state is State.DONE and act.low <= until + 1]
        return max(known, key=lambda act: min(act.high, NEVER - 1), default=None)

    def find(
        self,
        code: Code,
        said: str,
        until: float,
        *,
        version: str = "",
        claims: Iterable[Act] = (),
        explained: str = "",
        about: Act | None = None,
    ) -> None:
        last = self.last_writer(until)
        references = [*(about.references if about else ()), *(last.references if last and last is not about else ())]
        claims = list(claims)
        references += [reference for act in claims for reference in act.references]
        self.findings.append(
            Finding(
                code=code,
                key=self.key,
                said=said,
                version=version,
                since=self.since(until) if code is not Code.DANGLING_INTENT else 0.0,
                until=until,
                last_writer=last.who if last else "",
                records=tuple(dict.fromkeys(references)),
                candidates=tuple(_candidate(act) for act in claims),
                explained=explained or next(filter(None, map(self._said_by_feeds, claims)), ""),
            )
        )

    def _said_by_feeds(self, act: Act) -> str:
        """The rule of its own that the server followed, by a feed's word. Whoever can send notifications can say so: where
        the rules can be read, there must be one that can have done it."""
        cause = act.by_the_server
        if cause == "lifecycle" and self.around.rules is not None:
            written = min((one.low for one in self.acts if one.kind == "put"), default=0.0)
            return cause if possible(self.around.rules, self.key, written, self.around.now) else ""
        return cause


def judge(key: str, acts: Sequence[Act], actual: Sequence[ListedVersion], around: Circumstances) -> list[Finding]:
    """The findings about one key. `actual`: all its versions and delete markers; of a bucket that keeps none its object,
    with the version id "" or "null"."""
    case = _Case(key, acts, expected_of(acts, around.skew_s), actual, around)
    there = {bare_version(one.version_id): one for one in actual}
    extra = []
    for version, one in there.items():
        if version in case.expected.gone:
            _undead(case, one, case.expected.gone[version])
        elif version in case.expected.versions:
            _compare(case, one, [case.expected.versions[version]])
        elif version and version not in case.expected.perhaps:
            extra.append(one)
    for version, act in case.expected.versions.items():
        if version not in there and version not in case.expected.perhaps:
            _missing(case, act)
    null = there.get("")
    extra = _nameless(case, null if null is not None and not null.delete_marker else None, extra)
    for one in extra:
        _unlogged(case, one)
    _false_claims(case, there)
    _dangling(case, actual)
    return case.findings


# --- a version that the ledger knows ---------------------------------------------------------------------------


def _compare(case: _Case, one: ListedVersion, acts: Sequence[Act]) -> bool:
    """What differs between a version and the acts of which one made it."""
    act = acts[0]
    about = f"version {one.version_id} " if bare_version(one.version_id) else ""
    if one.delete_marker != (act.kind == "delete"):
        kinds = ("an object", "a delete marker")
        said = f"{about}is {kinds[one.delete_marker]}, and was recorded as {kinds[act.kind == 'delete']}"
        case.find(Code.ETAG_MISMATCH, said, case.around.now, version=one.version_id, about=act)
        return False
    if not one.delete_marker:
        if act.etag and one.etag != act.etag:
            said = f"{about}has the ETag {one.etag}, and was recorded with {act.etag}"
            case.find(Code.ETAG_MISMATCH, said, case.around.now, version=one.version_id, about=act)
            return False
        if act.size >= 0 and one.size != act.size:
            said = f"{about}has {one.size:,} bytes, and was recorded with {act.size:,}"
            case.find(Code.SIZE_MISMATCH, said, case.around.now, version=one.version_id, about=act)
            return False
    written = parse_time(one.modified)
    if written and not any(act.covers(written, case.around.skew_s) for act in acts):
        spans = " or ".join(_span(act) for act in acts)
        said = f"{about}was written at {timestamp(written)[:19]}, and is recorded as written {spans}"
        case.find(Code.CLOCK, said, written, version=one.version_id, about=act)
    return True


def _span(act: Act) -> str:
    first, last = timestamp(act.low)[:19], timestamp(min(act.high, NEVER))[:19]
    return f"between {first} and {last}" if act.low else f"before {last}"


def _undead(case: _Case, one: ListedVersion, act: Act) -> None:
    if not act.client:
        said = f"is said to have lost version {one.version_id}, and still has it"
        case.find(Code.FORGED_NOTIFICATION, said, case.around.now, version=one.version_id, about=act, claims=[act])
        return
    said = f"has version {one.version_id}, which is recorded as deleted for good"
    case.find(Code.GHOST, said, case.around.now, version=one.version_id, about=act)


def _missing(case: _Case, act: Act) -> None:
    around = case.around
    what = "delete marker" if act.kind == "delete" else "version"
    claims = [one for one in case.expected.claims if one.kind == "purge" and one.version == act.version]
    if not claims and not act.client and len(act.sources) == 1 and not _was_seen(case, act):
        said = f"is said by {_feed(act)} to have got {what} {act.version}, of which there is no trace"
        case.find(Code.FORGED_NOTIFICATION, said, around.now, version=act.version, about=act, claims=[act])
        return
    if not claims and _unseen_by_feeds(case, act):
        said = f"is recorded to have got {what} {act.version}, which neither the bucket nor any feed knows"
        case.find(Code.GHOST, said, around.now, version=act.version, about=act)
        return
    said = f"has lost {what} {act.version} for good outside the ledger"
    if act.kind == "delete":
        said += ", so that what it hid may be visible again"
    case.find(
        Code.VERSION_PURGED,
        said,
        around.now,
        version=act.version,
        about=act,
        claims=claims,
        explained=_by_rule(case, act),
    )


def _by_rule(case: _Case, act: Act) -> str:
    """The lifecycle rule that may have deleted a version for good."""
    around = case.around
    later = [other.low for other in case.acts if other.version and other.kind != "purge" and other.low > act.low]
    written = [parse_time(one.modified) for one in case.actual]
    replaced = min((moment for moment in (*later, *written) if moment > act.low), default=0.0)
    if replaced:
        return _rule(expired_noncurrent(around.rules or (), case.key, replaced, around.now))
    if act.kind == "delete":  # a marker with nothing below it goes with the rule that made it lonely
        return _rule(expired(around.rules or (), case.key, act.low, around.now))
    return ""


def _rule(name: str) -> str:
    return f"lifecycle: {name}" if name else ""


def _was_seen(case: _Case, act: Act) -> bool:
    return case.around.clean_at(case.key) > act.high


def _unseen_by_feeds(case: _Case, act: Act) -> bool:
    """Whether feeds told of the place before and after, and not of this."""
    first, last = case.around.feed
    skew_s = case.around.skew_s
    told = any(mention.phase == "observed" for mention in act.told)
    return (
        act.client and not told and first + skew_s < act.low and act.high < last - skew_s and not _was_seen(case, act)
    )


# --- the version without an id, and acts whose version nobody told -----------------------------------------------


def _nameless(case: _Case, null: ListedVersion | None, extra: list[ListedVersion]) -> list[ListedVersion]:
    """Judges the version without an id; returns those of `extra` that no act explains."""
    extra = [one for one in extra if not _made_by_some_act(case, one)]
    last = case.expected.last
    made = [act for act in last if act is not None and act.kind == "put"]
    if null is None:
        if len(made) < len(last) or not made or any(id(act) in case.used or _may_be_purged(case, act) for act in made):
            return extra
        _gone(case, made)
        return extra
    fitting = [act for act in made if _fits(act, null)]
    if fitting:
        _compare(case, null, fitting)
    else:
        _another(case, null, made, last)
    return extra


def _made_by_some_act(case: _Case, one: ListedVersion) -> bool:
    """Whether an act may have made this version beside the one it named, or without naming one."""
    kind: Kind = "delete" if one.delete_marker else "put"
    fitting = [act for act in case.acts if act.kind == kind and act.effective and _may_be(act, one, case.around.skew_s)]
    # Of several it may be any: none of them is missed for it.
    case.used.update(id(act) for act in fitting if not act.version)
    return bool(fitting)


def _may_be_purged(case: _Case, act: Act) -> bool:
    """Whether what a nameless act left may be a version that was deleted by its id, which nobody told to have put."""
    named = {one.version for one in case.acts if one.kind != "purge"}
    return any(
        one.kind == "purge"
        and one.effective
        and one.version
        and one.version not in named
        and one.high + case.around.skew_s >= act.low
        for one in case.acts
    )


def _may_be(act: Act, one: ListedVersion, skew_s: float) -> bool:
    written = parse_time(one.modified)
    return (act.kind == "delete") == one.delete_marker and (
        (one.delete_marker or (act.kind == "put" and _fits(act, one))) and act.covers(written, skew_s)
    )


def _fits(act: Act, one: ListedVersion) -> bool:
    if (act.etag and act.etag != one.etag) or 0 <= act.size != one.size:
        return False
    md5 = _md5_of(act)
    return not (md5 and _MD5.match(one.etag)) or md5 == one.etag


def _md5_of(act: Act) -> str:
    """The MD5 that was recorded, in hex; "" for none."""
    sums: Mapping[str, object] = orjson.loads(act.sums) if act.sums else {}
    text = str(sums.get("md5", ""))
    if len(text) == 24:
        try:
            return base64.b64decode(text, validate=True).hex()
        except binascii.Error:
            return ""
    return text.lower() if _MD5.match(text.lower()) else ""


def _gone(case: _Case, made: list[Act]) -> None:
    around = case.around
    act = max(made, key=lambda act: act.high)
    claims = [one for one in case.expected.claims if one.kind != "put"]
    if not claims and not act.client and len(act.sources) == 1 and not _was_seen(case, act):
        before = [one for one in case.puts() if one is not act]
        said = f"is said by {_feed(act)} to have been put, and is not there"
        if not before:
            case.find(Code.FORGED_NOTIFICATION, said, around.now, about=act, claims=[act])
            return
    if not claims and _unseen_by_feeds(case, act):
        said = "is recorded as put, and neither the bucket nor any feed knows of it"
        case.find(Code.GHOST, said, around.now, about=act)
        return
    case.find(
        Code.UNLOGGED_DELETE,
        "is gone, and was deleted outside the ledger",
        around.now,
        about=act,
        claims=claims,
        explained=_rule(expired(around.rules or (), case.key, act.low, around.now)),
    )


def _another(case: _Case, null: ListedVersion, made: list[Act], last: list[Act | None]) -> None:
    """The version without an id is not what any of the last acts left."""
    around, skew_s = case.around, case.around.skew_s
    written = parse_time(null.modified)
    earlier = [act for act in case.puts() if act not in made and _fits(act, null)]
    deleted = [act for act in last if act is not None and act.kind != "put"]
    claims = [one for one in case.expected.claims if one.kind == "put" and _fits(one, null)]
    newest = max([*made, *deleted], key=lambda act: act.high, default=None)
    # What the bucket has was there before the newest act, which so never was, or was undone behind S3's back.
    still = newest is not None and written < newest.low - skew_s - 1
    if still and newest is not None and not newest.client:
        said = f"is said by {_feed(newest)} to have been {_done(newest)}, and is as it was before"
        case.find(Code.FORGED_NOTIFICATION, said, around.now, about=newest, claims=[newest])
    elif made and any(act.etag == null.etag for act in made) and all(act.size != null.size for act in made):
        said = f"has {null.size:,} bytes, and was recorded with {made[0].size:,}"
        case.find(Code.SIZE_MISMATCH, said, around.now, about=made[0])
    elif made and any(act.covers(written, skew_s) for act in made):
        said = f"has the ETag {null.etag}, and was recorded with {made[0].etag}, though it was not written since"
        case.find(Code.ETAG_MISMATCH, said, around.now, about=made[0], claims=claims)
    elif still and newest is not None and (earlier or deleted):
        said = f"is recorded to have been {_done(newest)}, and is as it was before"
        case.find(Code.GHOST, said, around.now, about=newest)
    elif earlier:
        act = max(earlier, key=lambda act: act.high)
        said = f"has the bytes of {_when(act)} again, put back outside the ledger"
        case.find(Code.RESTORED_OLD, said, written, about=act, claims=claims)
    elif made:
        case.find(Code.UNLOGGED_OVERWRITE, "was replaced outside the ledger", written, claims=claims)
    else:
        _put_unlogged(case, "was put outside the ledger", written, "", claims)


def _put_unlogged(case: _Case, said: str, written: float, version: str, claims: Sequence[Act]) -> None:
    """What no act can have left. If nothing of the key was told by then, it may be older than the ledger."""
    around = case.around
    # Where clocks and whole seconds leave it open, it was not there before.
    older = not around.began or written + 1 <= around.began - around.skew_s
    told = any(act.low <= written + 1 + around.skew_s for act in case.acts if act.effective)
    old = "there before the ledger" if not claims and not told and older else ""
    case.find(Code.UNLOGGED_PUT, said, written, version=version, claims=claims, explained=old)


def _done(act: Act) -> str:
    return "put" if act.kind == "put" else "deleted"


def _when(act: Act) -> str:
    moment = timestamp(act.low if act.high >= NEVER else act.high)[:19].replace("T", " ")
    return f"what {act.who} put at {moment} UTC"


# --- versions that no act made -----------------------------------------------------------------------------------


def _unlogged(case: _Case, one: ListedVersion) -> None:
    around = case.around
    written = parse_time(one.modified)
    claims = [
        act
        for act in case.expected.claims
        if act.version == one.version_id or (not act.version and _may_be(act, one, around.skew_s))
    ]
    if one.delete_marker:
        made = max((act.low for act in case.puts() if act.low <= written), default=0.0)
        case.find(
            Code.UNLOGGED_DELETE,
            "was deleted (hidden by a delete marker) outside the ledger",
            written,
            version=one.version_id,
            claims=claims,
            explained=_rule(expired(around.rules or (), case.key, made, written)),
        )
        return
    by = written + 1 + around.skew_s
    puts = sorted((act for act in case.puts() if act.low <= by), key=lambda act: act.high)
    if not any(act.low <= by for act in case.acts if act.effective):
        _put_unlogged(case, "was put outside the ledger", written, one.version_id, claims)
        return
    earlier = [act for act in puts[:-1] if act.etag == one.etag and act.etag != puts[-1].etag]
    newest = max(
        (act for act in case.acts if act.state is State.DONE and act.kind != "purge" and act.low <= by),
        key=lambda act: act.high,
        default=None,
    )
    if newest is not None and newest.kind == "delete":
        earlier = [act for act in puts if act.etag == one.etag]
    if earlier:
        said = f"has the bytes of {_when(earlier[-1])} again, put back outside the ledger"
        case.find(Code.RESTORED_OLD, said, written, version=one.version_id, about=earlier[-1], claims=claims)
    elif newest is None or newest.kind == "delete":
        said = "was put outside the ledger, where the ledger has it deleted" if newest else "was put outside the ledger"
        case.find(Code.UNLOGGED_PUT, said, written, version=one.version_id, claims=claims)
    else:
        same = ", with the same bytes" if puts and puts[-1].etag == one.etag else ""
        under = "" if one.latest else ", and by the ledger again since"
        said = f"was replaced outside the ledger{same}{under}"
        case.find(Code.UNLOGGED_OVERWRITE, said, written, version=one.version_id, claims=claims)


# --- what feeds alone tell, and what nobody told the end of --------------------------------------------------------


def _false_claims(case: _Case, there: Mapping[str, ListedVersion]) -> None:
    """Claims that the bucket contradicts. One that it bears out is a candidate of the finding about it."""
    around = case.around
    for act in case.expected.claims:
        if act.kind == "purge":
            false = act.version in there
            if false:
                said = f"is said by {_feed(act)} to have lost version {act.version}, and still has it"
        elif act.version:
            purged = any(one.kind == "purge" and one.version == act.version for one in case.acts)
            false = act.version not in there and not purged and not _rule(_by_rule(case, act))
            said = f"is said by {_feed(act)} to have got version {act.version}, of which there is no trace"
        else:
            false = _nameless_claim_is_false(case, act, there)
            said = f"is said by {_feed(act)} to have been {_done(act)}, and is as it was before"
        if false:
            case.find(Code.FORGED_NOTIFICATION, said, around.now, version=act.version, about=act, claims=[act])


def _nameless_claim_is_false(case: _Case, act: Act, there: Mapping[str, ListedVersion]) -> bool:
    skew_s = case.around.skew_s
    later = [
        other for other in case.acts if other is not act and other.kind != "purge" and other.high + skew_s >= act.low
    ]
    if later:
        return False  # what it left may have been replaced since
    if any(_may_be(act, one, skew_s) for one in there.values()):
        return False
    null = there.get("")
    if null is None or null.delete_marker:
        return act.kind == "put" and not there
    return parse_time(null.modified) < act.low - skew_s


def _dangling(case: _Case, actual: Sequence[ListedVersion]) -> None:
    around = case.around
    for act in case.acts:
        if act.state is not State.OPEN or around.now - act.low < around.settle_s:
            continue
        intent = act.told[0]
        made = any(_may_be(act, one, around.skew_s) for one in actual) and act.kind != "purge"
        seen = "the bucket has what it would have left" if made else "the bucket shows nothing of it"
        said = f"has a {intent.op} that {act.who} began and nobody said how it ended; {seen}"
        rule = aborted(around.rules or (), case.key, act.low, around.now) if not made else ""
        case.find(Code.DANGLING_INTENT, said, act.low, about=act, explained=f"multipart-abort: {rule}" if rule else "")


def _feed(act: Act) -> str:
    return " and ".join(sorted(act.sources)) or "a feed"


def _candidate(act: Act) -> str:
    told = act.told[0]
    words = [f"{told.source}: {told.op} by {act.who}"]
    if told.time:
        words.append(f"at {timestamp(told.time)[:19].replace('T', ' ')} UTC")
    if act.requests:
        words.append(f"request {min(act.requests)}")
    return ", ".join(words)
