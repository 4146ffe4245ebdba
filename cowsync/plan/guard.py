"""Whether a plan may be carried out as it is: the whole plan is judged before anything moves.

One rule: pure. What is known comes as arguments, what is decided goes out as a verdict with its reasons, and the same
facts give the same verdict. A held plan stays as it is; an approval names its digest. Limits are `GuardSettings`
(`[mirror.NAME.guard]`). The base teaches what is ordinary: no list of bad suffixes is kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from statistics import median

from cowsync.changes import Op, PlanLine
from cowsync.plan.carried import NOTHING, Carried
from cowsync.plan.census import PREFIXES_MAX, SUFFIXES_MAX, Census, suffix_of, top_prefix
from cowsync.plan.plan_file import SHOWN_DIGEST
from s3core.quantities import shown_duration, shown_size
from s3core.settings import GuardSettings

NAMED_MAX = 5
"""Prefixes or canaries that reasons name; the others are counted."""
NEW_SUFFIXES_MAX = 10_000
KNOWN_AFTER = 100
"""A suffix is known to the base when this many times its keys are not fewer than those added in one run."""


class Decision(StrEnum):
    """HOLD waits for an approval by digest. REFUSE cannot be approved: what the plan rests on is not true."""

    PASS = "pass"
    HOLD = "hold"
    REFUSE = "refuse"


class Order(StrEnum):
    """How keys came from the source. SORTED: not in order, and sorted here before they were compared. BROKEN: not in
    order, and compared all the same."""

    ASCENDING = "ascending"
    SORTED = "sorted"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Reason:
    """`limit` is the setting that decided, "" where none can; `message` a sentence with figures and what to do."""

    decision: Decision
    limit: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    decision: Decision
    reasons: tuple[Reason, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {"decision": self.decision.value, "reasons": [asdict(one) for one in self.reasons]}

    def text(self) -> str:
        return "".join(f"{one.decision}: {one.message}\n" for one in self.reasons) or "pass\n"


@dataclass(frozen=True, slots=True)
class PastRun:
    """What an earlier run that was carried out tells: keys the source had, how many were modified, how they came."""

    keys: int
    modified: int
    order: Order = Order.ASCENDING


@dataclass(frozen=True, slots=True)
class PrefixLoss:
    prefix: str
    vanished: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What the lines of a plan come to. `revived` are those of the modified keys that had vanished. `losses` are
    prefixes with vanished keys, the largest first. `renamed` are vanished keys that are there again with a new suffix,
    `new_suffixes` added keys by suffixes the base hardly knows."""

    added: int = 0
    modified: int = 0
    revived: int = 0
    vanished: int = 0
    vanished_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    returned: int = 0
    losses: tuple[PrefixLoss, ...] = ()
    new_suffixes: tuple[tuple[str, int], ...] = ()
    renamed: int = 0
    renamed_to: str = ""
    canaries_vanished: tuple[str, ...] = ()
    canaries_modified: tuple[str, ...] = ()
    canaries_added: tuple[str, ...] = ()

    def keys_after(self, base: Census) -> int:
        """How many keys the source has now."""
        return base.keys - self.vanished + self.added + self.returned + self.revived


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a verdict rests on. `base` is None on a first run. `canaries_known` are those of the configured canaries
    that the base has as present. `gap` says which keys the listing does not cover, "" when it is complete.
    `clock_skew_s` is our clock less the source's, None where the source told no time. `mirror` is the name that
    commands in reasons are given. `moved` are the places that have another URL in the configuration than in the base: what
    it is, URL then, URL now. `versions`: lines are about versions."""

    digest: str
    base: Census | None
    changes: Changes
    canaries_known: frozenset[str] = frozenset()
    gap: str = ""
    order: Order = Order.ASCENDING
    clock_skew_s: float | None = None
    mirror: str = ""
    moved: tuple[tuple[str, str, str], ...] = ()
    versions: bool = False


def judge(facts: Facts, settings: GuardSettings, history: Sequence[PastRun]) -> Verdict:
    """The verdict on a whole plan. `history` are earlier runs that were carried out, the newest last."""
    reasons = [*_refusals(facts), *_moved(facts), *_canaries(facts, settings), *_clock(facts, settings)]
    if facts.base is not None and facts.base.keys:
        reasons += _losses(facts, facts.base, settings)
        reasons += _overwrites(facts, facts.base, settings, history)
        reasons += _names(facts, facts.base, settings, history)
        reasons += _order(facts, history)
    decisions = {one.decision for one in reasons}
    for decision in (Decision.REFUSE, Decision.HOLD):
        if decision in decisions:
            return Verdict(decision, tuple(one for one in reasons if one.decision is decision))
    return Verdict(Decision.PASS)


@dataclass(slots=True)
class ChangesTally:
    """Makes `Changes` of lines that stream by in ascending order of key, in bounded memory, and of
    those that were `carried` out before them since `base`. One owner.

    Lines about versions count by key, by what becomes of its current object from the first line to the last: versions on
    top of an object are one overwrite, a delete marker on top of one is a key that is gone."""

    base: Census | None
    settings: GuardSettings
    carried: Carried = NOTHING
    _counts: dict[Op, list[int]] = field(default_factory=lambda: {op: [0, 0] for op in Op})
    _revived: int = 0
    _prefix: str = ""
    _prefix_vanished: int = 0
    _rootless_vanished: int = 0
    _losses: list[PrefixLoss] = field(default_factory=list)
    _prefixes: dict[str, int] = field(default_factory=dict)
    _suffixes: dict[str, int] = field(default_factory=dict)
    _suffixes_beyond: int = 0
    _vanished_above: list[str] = field(default_factory=list)
    _renamed: dict[str, int] = field(default_factory=dict)
    _canaries: dict[Op, list[str]] = field(default_factory=lambda: {op: [] for op in Op})
    _version: PlanLine | None = None
    """The first line that turns the current object of the key whose versions are coming; `_size_after` is of the last."""
    _size_after: int | None = None

    def watch(self, lines: Iterable[PlanLine]) -> Iterator[PlanLine]:
        """The same lines, counted on their way."""
        for line in lines:
            self.add(line)
            yield line

    def add(self, line: PlanLine) -> None:
        if not line.ordinal:
            self._count(line)
            return
        if self._version is not None and self._version.key != line.key:
            self._end_key()
        before, after = line.turn
        if before is None and after is None:
            return
        if self._version is None:
            self._version = line
        self._size_after = after

    def _end_key(self) -> None:
        """Count the key whose versions came last, as a line of current versions."""
        line, self._version = self._version, None
        if line is None:
            return
        before, after = line.turn[0], self._size_after
        if before is not None:
            op = Op.VANISH if after is None else Op.MODIFY
        elif after is None:
            return
        else:
            op = Op.RETURN if line.mirror_version else Op.ADD
        self._count(replace(line, op=op, ordinal=0, gone=0, size=before or 0 if after is None else after))

    def _count(self, line: PlanLine) -> None:
        count = self._counts[line.op]
        count[0] += 1
        count[1] += line.size
        if line.key in self.settings.canaries:
            self._canaries[line.op].append(line.key)
        if line.op is Op.VANISH:
            self._vanish(line.key)
        elif line.op is Op.ADD:
            self._add(line.key)
        elif line.op is Op.MODIFY and line.gone:
            self._revived += 1

    def changes(self) -> Changes:
        """Of what was added so far, and carried; the versions of a key must not be added in part."""
        self._end_key()
        carried = self.carried
        losses = [
            *self._losses,
            PrefixLoss(self._prefix, self._prefix_vanished),
            PrefixLoss("", self._rootless_vanished),
        ]
        if carried.prefixes:
            here = {one.prefix: one.vanished for one in losses}
            losses = [PrefixLoss(*one) for one in _added({**self._prefixes, **here}, carried.prefixes).items()]
        known = self.base.suffixes if self.base is not None else {}
        suffixes = _added(self._suffixes, carried.suffixes)
        new = {name: count for name, count in suffixes.items() if known.get(name, 0) * KNOWN_AFTER < count}
        if self._suffixes_beyond:
            new["(others)"] = self._suffixes_beyond
        # Compressing old files renames them too, but into a suffix that is old.
        renames = _added(self._renamed, carried.renamed)
        renamed = {name: count for name, count in renames.items() if known.get(name, 0) < count}
        counts = self._sums()
        return Changes(
            added=counts[Op.ADD][0],
            modified=counts[Op.MODIFY][0],
            revived=self._revived + carried.revived,
            vanished=counts[Op.VANISH][0],
            vanished_bytes=counts[Op.VANISH][1],
            removed=counts[Op.REMOVE][0],
            removed_bytes=counts[Op.REMOVE][1],
            returned=counts[Op.RETURN][0],
            losses=tuple(sorted((one for one in losses if one.vanished), key=lambda one: (-one.vanished, one.prefix))),
            new_suffixes=tuple(sorted(new.items(), key=lambda one: (-one[1], one[0]))[:NAMED_MAX])
            + tuple(_rest(new, NAMED_MAX)),
            renamed=sum(renamed.values()),
            renamed_to=max(renamed, key=lambda name: (renamed[name], name)) if renamed else "",
            canaries_vanished=tuple(self._canaries[Op.VANISH] + self._canaries[Op.REMOVE]),
            canaries_modified=tuple(self._canaries[Op.MODIFY]),
            canaries_added=tuple(self._canaries[Op.ADD] + self._canaries[Op.RETURN]),
        )

    def carry(self) -> Carried:
        """All that was added and carried, for the next plan. Bounded: what does not fit is not carried on."""
        self._end_key()
        carried = self.carried
        return Carried(
            self._sums(),
            self._revived + carried.revived,
            _added(self._prefixes, carried.prefixes, PREFIXES_MAX),
            _added(self._suffixes, carried.suffixes, SUFFIXES_MAX),
            _added(self._renamed, carried.renamed, SUFFIXES_MAX),
        )

    def _sums(self) -> dict[Op, tuple[int, int]]:
        carried = self.carried
        return {op: (keys + carried.objects(op), size + carried.bytes(op)) for op, (keys, size) in self._counts.items()}

    def _vanish(self, key: str) -> None:
        prefix = top_prefix(key)
        if prefix in self._prefixes or len(self._prefixes) < PREFIXES_MAX:
            self._prefixes[prefix] = self._prefixes.get(prefix, 0) + 1
        if not prefix:
            self._rootless_vanished += 1
        elif prefix == self._prefix:
            self._prefix_vanished += 1
        else:
            # Keys of one prefix come together. What is below the floor can never hold, and there may be millions.
            if self._prefix_vanished >= max(self.settings.floor_keys, 1):
                self._losses.append(PrefixLoss(self._prefix, self._prefix_vanished))
            self._prefix, self._prefix_vanished = prefix, 1
        # Vanished keys that this one begins with: each is longer than the one below it, so there are at most 1,024.
        while self._vanished_above and not key.startswith(self._vanished_above[-1]):
            self._vanished_above.pop()
        self._vanished_above.append(key)

    def _add(self, key: str) -> None:
        suffix = suffix_of(key)
        if suffix in self._suffixes or len(self._suffixes) < NEW_SUFFIXES_MAX:
            self._suffixes[suffix] = self._suffixes.get(suffix, 0) + 1
        elif self.base is None or suffix not in self.base.suffixes:
            self._suffixes_beyond += 1
        while self._vanished_above and not key.startswith(self._vanished_above[-1]):
            self._vanished_above.pop()
        appended = any(key[len(old)] == "." and "/" not in key[len(old) :] for old in self._vanished_above)
        if appended and (suffix in self._renamed or len(self._renamed) < NEW_SUFFIXES_MAX):
            self._renamed[suffix] = self._renamed.get(suffix, 0) + 1


def _added(here: Mapping[str, int], carried: Mapping[str, int], most: int = 0) -> dict[str, int]:
    """Sums by name; with `most` the largest so many."""
    sums = {name: here.get(name, 0) + carried.get(name, 0) for name in [*here, *(carried.keys() - here.keys())]}
    if most and len(sums) > most:
        return dict(sorted(sums.items(), key=lambda one: (-one[1], one[0]))[:most])
    return sums


def _rest(new: dict[str, int], named: int) -> Iterator[tuple[str, int]]:
    beyond = sorted(new.values(), reverse=True)[named:]
    if beyond:
        yield "(others)", sum(beyond)


def _refusals(facts: Facts) -> Iterator[Reason]:
    if facts.gap:
        yield Reason(
            Decision.REFUSE,
            "",
            f"the listing of the source is incomplete ({facts.gap}), so what it lacks may exist:"
            " nothing is to approve, run `cowsync plan` again",
        )
    if facts.order is Order.BROKEN:
        yield Reason(
            Decision.REFUSE,
            "",
            "the source lists its keys out of order, so keys may be missing from the comparison:"
            " nothing is to approve, run `cowsync plan` again, which sorts them",
        )


def _moved(facts: Facts) -> Iterator[Reason]:
    for what, then, now in facts.moved:
        yield Reason(
            Decision.HOLD,
            "",
            f"the {what} is {now} by the configuration, and what is known is of {then}: where that is the same place under"
            f" another name, {_approve(facts)}; else give this mirror a `state_dir` and a `state` of its own",
        )


def _canaries(facts: Facts, settings: GuardSettings) -> Iterator[Reason]:
    changes = facts.changes
    gone = set(changes.canaries_vanished)
    there = facts.canaries_known.union(changes.canaries_added, changes.canaries_modified) - gone
    for keys, what in (
        ([one for one in settings.canaries if one not in there], "missing from the source"),
        ([one for one in settings.canaries if one in changes.canaries_modified], "changed"),
    ):
        if keys:
            more = f" and {len(keys) - NAMED_MAX} more" if len(keys) > NAMED_MAX else ""
            named = ", ".join(repr(one) for one in keys[:NAMED_MAX])
            yield Reason(
                Decision.HOLD,
                "canaries",
                f"of {len(settings.canaries)} canary objects {len(keys)} {'is' if len(keys) == 1 else 'are'} {what}"
                f" ({named}{more}): find out who did that, put them back,"
                f" or {_approve(facts)} and change `canaries`",
            )


def _clock(facts: Facts, settings: GuardSettings) -> Iterator[Reason]:
    skew = facts.clock_skew_s
    if skew is not None and settings.clock_skew_s and abs(skew) > settings.clock_skew_s:
        yield Reason(
            Decision.HOLD,
            "clock_skew_s",
            f"this host's clock is {shown_duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the source's"
            f" (limit {shown_duration(settings.clock_skew_s)}), so ages are not to be trusted:"
            " set the clock and run `cowsync plan` again",
        )


def _losses(facts: Facts, base: Census, settings: GuardSettings) -> Iterator[Reason]:
    changes = facts.changes
    now = changes.keys_after(base)
    if now <= 0:
        yield _hold(facts, "", f"the source is empty; it had {base.keys:,} keys", Op.VANISH)
        return
    for op, keys, size, of, word in (
        (Op.VANISH, changes.vanished, changes.vanished_bytes, base.keys, "gone"),
        (
            Op.REMOVE,
            changes.removed,
            changes.removed_bytes,
            base.keys + changes.removed,
            "to be removed from the mirror",
        ),
    ):
        if settings.vanished_keys and keys > settings.vanished_keys:
            yield _hold(facts, "vanished_keys", f"{keys:,} keys are {word} (limit {settings.vanished_keys:,})", op)
        if settings.vanished_bytes and size > settings.vanished_bytes:
            told = f"{shown_size(size)} are {word} (limit {shown_size(settings.vanished_bytes)})"
            yield _hold(facts, "vanished_bytes", told, op)
        if keys >= settings.floor_keys and _exceeds(keys, of, settings.vanished_percent):
            told = f"{keys:,} of {of:,} keys are {word} ({_of(keys, of, settings.vanished_percent)})"
            yield _hold(facts, "vanished_percent", told, op)
    fewer = base.keys - now
    if fewer >= settings.floor_keys and _exceeds(fewer, base.keys, settings.shrink_percent):
        told = f"the source has {now:,} keys and had {base.keys:,} ({_of(fewer, base.keys, settings.shrink_percent)})"
        yield _hold(facts, "shrink_percent", told, Op.VANISH)
    # A bucket whose keys are all below one prefix has been judged above.
    hit = [
        (loss, base.prefixes[loss.prefix])
        for loss in changes.losses
        if settings.floor_keys <= loss.vanished
        and loss.prefix in base.prefixes
        and base.prefixes[loss.prefix] < base.keys
        and _exceeds(loss.vanished, base.prefixes[loss.prefix], settings.prefix_vanished_percent)
    ]
    for loss, of in hit[:NAMED_MAX]:
        where = f"below {loss.prefix!r}" if loss.prefix else "without a prefix"
        figures = _of(loss.vanished, of, settings.prefix_vanished_percent)
        told = f"{loss.vanished:,} of {of:,} keys {where} are gone ({figures})"
        yield _hold(facts, "prefix_vanished_percent", told, Op.VANISH)
    if len(hit) > NAMED_MAX:
        yield _hold(facts, "prefix_vanished_percent", f"so it is with {len(hit) - NAMED_MAX} more prefixes", Op.VANISH)


def _overwrites(facts: Facts, base: Census, settings: GuardSettings, history: Sequence[PastRun]) -> Iterator[Reason]:
    changes = facts.changes
    if changes.modified < max(settings.floor_keys, 1):
        return
    if settings.all_changed and changes.modified + changes.vanished >= base.keys:
        told = f"all {base.keys:,} keys have changed: {changes.modified:,} overwritten, {changes.vanished:,} gone"
        yield _hold(facts, "all_changed", told, Op.MODIFY)
        return
    past = [100 * run.modified / run.keys for run in history if run.keys][-settings.modified_runs :]
    usual = median(past) if past else 0.0
    spread = median(abs(one - usual) for one in past) if past else 0.0
    limit = usual + max(settings.modified_spread * spread, settings.modified_percent)
    if _exceeds(changes.modified, base.keys, limit):
        told = (
            f"{changes.modified:,} of {base.keys:,} keys are overwritten ({_of(changes.modified, base.keys, limit)};"
            f" usual is {_percent(usual)})"
        )
        yield _hold(facts, "modified_percent", told, Op.MODIFY)


def _names(facts: Facts, base: Census, settings: GuardSettings, history: Sequence[PastRun]) -> Iterator[Reason]:
    changes = facts.changes
    now = changes.keys_after(base)
    # What the last run saw and did not carry out (it was stopped) is added now, and no news.
    carried = max(history[-1].keys - base.keys, 0) if history else 0
    new = max(min(sum(count for _, count in changes.new_suffixes), changes.added - carried), 0)
    if changes.added > base.keys and changes.vanished + changes.modified < settings.floor_keys:
        new = 0  # Somebody fills a bucket: nothing that was there is touched.
    # A bucket with more suffixes than are counted has names that say nothing about kinds of files.
    if not base.full_suffixes and new >= settings.floor_keys and _exceeds(new, now, settings.suffix_percent):
        named = ", ".join(
            f"{count:,} {'.' + name if name and name != '(others)' else name or 'without'}"
            for name, count in changes.new_suffixes
        )
        told = f"{new:,} of {now:,} keys have suffixes that are new here ({_of(new, now, settings.suffix_percent)}: {named})"
        yield _hold(facts, "suffix_percent", told, Op.ADD)
    if changes.renamed >= settings.floor_keys and _exceeds(changes.renamed, base.keys, settings.rename_percent):
        told = (
            f"{changes.renamed:,} of {base.keys:,} keys are gone and there again with a suffix"
            f" {'.' + changes.renamed_to if changes.renamed_to else 'more'}"
            f" ({_of(changes.renamed, base.keys, settings.rename_percent)}), as ransomware does"
        )
        yield _hold(facts, "rename_percent", told, Op.VANISH)


def _order(facts: Facts, history: Sequence[PastRun]) -> Iterator[Reason]:
    if facts.order is Order.SORTED and history and history[-1].order is Order.ASCENDING:
        told = "the source lists its keys out of order and did not before; they were sorted here"
        yield _hold(facts, "", told, Op.VANISH)


def _hold(facts: Facts, limit: str, told: str, op: Op) -> Reason:
    # Of all versions a key goes by a delete marker, or because its versions are gone.
    ops = f"{Op.REMOVE} --op {op}" if facts.versions and op is Op.VANISH else str(op)
    show = f"`{_command('show', facts)} {facts.digest[:SHOWN_DIGEST]} --op {ops}`"
    return Reason(Decision.HOLD, limit, f"{told}: look with {show}, then {_approve(facts)}")


def _approve(facts: Facts) -> str:
    return f"`{_command('apply', facts)} --approve {facts.digest[:SHOWN_DIGEST]}`"


def _command(name: str, facts: Facts) -> str:
    return f"cowsync {name} {facts.mirror}".rstrip()


def _exceeds(part: int, whole: int, limit_percent: float) -> bool:
    return part * 100 > limit_percent * whole


def _of(part: int, whole: int, limit_percent: float) -> str:
    return f"{_percent(100 * part / whole if whole else 100.0)}, limit {_percent(limit_percent)}"


def _percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + " %"
