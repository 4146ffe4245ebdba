"""What the records of one key say together: acts, and what the bucket should hold after them.

A put may be told four times: by its intent, by the outcome, by a notification and by an access log; each in another log,
in any order, some twice. They meet by version id, else by request id, else by kind, ETag and time. What nobody told the
end of (an answer that was lost, a process that died) is a `maybe`: with it and without it are both right.

One rule: no order is made up. Versions with an id need none. Of the one version without an id the last act counts, and
where two acts cannot be put in order, by sequencer, by one writer's numbers or by times that do not overlap, the outcome
of either is right. Where an event may be of several acts that leave the same, one of them stands for it, and is put in
order by the event alone: what the writer's own records say of that act may be true of another event.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from integrity.reconcile.mentions import BY_THE_SERVER, CHANGES, CREATES, NO_INTENT, UNKNOWN_SIZE, Mention

Kind = Literal["put", "delete", "purge"]
LATE_S = 900.0
"""How long after we gave up waiting a request may still be carried out."""
OPEN_S = 86_400.0
"""How long after its intent an act without an outcome may still have been under way: an upload in many parts."""
OWN = ("client", "batch-report", "ledger")
"""Sources that tell what we did ourselves. The others are feeds, which tell what they saw."""
NEVER = 253_402_300_799.0
_BEGAN = 0.0


class State(StrEnum):
    """`DONE`: it happened. `MAYBE`: its outcome is unknown. `OPEN`: an intent without an outcome. `CLAIMED`: a feed alone
    tells of it, where feeds alone do not count. `NOT_DONE`: it was tried and refused."""

    DONE = "done"
    MAYBE = "maybe"
    OPEN = "open"
    CLAIMED = "claimed"
    NOT_DONE = "not-done"


@dataclass(slots=True)
class Act:
    """One operation. It took effect between `low` and `high` (Unix seconds, by the clocks of those who told). `size` is
    -1, the texts "" where nobody told them. `client`: one of our tools told it, not a feed alone. `swapped`: it stands for
    an event that may be another act's, so its writer's numbers do not put it in order."""

    kind: Kind
    state: State
    low: float
    high: float
    version: str = ""
    etag: str = ""
    size: int = UNKNOWN_SIZE
    sums: str = ""
    sequencer: str = ""
    requests: set[str] = field(default_factory=set)
    client: bool = False
    in_parts: bool = False
    swapped: bool = False
    told: list[Mention] = field(default_factory=list)

    @property
    def who(self) -> str:
        """In plain words; the client's own word first, since a feed knows a key and an address, not a name."""
        words = [mention.who for mention in sorted(self.told, key=lambda m: m.phase == "observed") if mention.who]
        return words[0] if words else "unknown"

    @property
    def sources(self) -> set[str]:
        return {mention.source for mention in self.told}

    @property
    def by_the_server(self) -> str:
        """The rule that the server followed, "" where it was told to by somebody."""
        return next((mention.kind for mention in self.told if mention.kind in BY_THE_SERVER), "")

    @property
    def references(self) -> list[str]:
        return [mention.reference for mention in self.told]

    @property
    def effective(self) -> bool:
        return self.state in (State.DONE, State.MAYBE, State.OPEN)

    def covers(self, moment: float, slack_s: float) -> bool:
        """Whether it may have taken effect at `moment` (of a clock that tells whole seconds)."""
        return self.begun - slack_s - 1 <= moment <= self.high + slack_s

    @property
    def begun(self) -> float:
        """`low`, or where it is earlier the moment that the object may have for its time: an upload in parts has that of
        its beginning on AWS."""
        return max(0.0, self.low - OPEN_S) if self.in_parts else self.low


def acts_of(mentions: Iterable[Mention], *, observed_counts: bool, skew_s: float) -> list[Act]:
    """The acts that records about one key tell of, in no order of meaning. `observed_counts`: what feeds alone tell is
    done as well as what our own tools say they did."""
    changes = [mention for mention in mentions if mention.op in CHANGES]
    # What a feed saw fail without knowing how is one more perhaps, unless feeds alone do not count.
    acts = _client_acts([one for one in changes if one.phase != "observed" and (observed_counts or one.source in OWN)])
    observed = [mention for mention in changes if mention.phase == "observed"]
    if not observed:
        return acts
    by_version = {(act.kind, act.version): act for act in acts if act.version}
    # Those that name their version first: they leave the others less to choose from. Then those that tell an event from all
    # others: an access log, which fits more acts than that, then finds its own by the request.
    for mention in sorted(observed, key=lambda m: (not m.version, not m.request, not m.sequencer, m.time or m.at)):
        kind = _kind(mention)
        act, alone = by_version.get((kind, mention.version)) if mention.version else None, True
        if act is None:
            act, alone = _same(mention, kind, acts, skew_s)
        if act is not None and (alone or mention.version or act.state is State.CLAIMED):
            _add(act, mention)
        elif act is not None and mention.sequencer and (mention.etag or kind == "delete"):
            # All that it may be leave the same, so which of them it was makes no difference.
            _add(act, mention)
            act.swapped = True
        elif act is not None:
            _point_to(act, mention)
        else:
            act = _observed_act(mention, kind)
            echo = any(other.client and _is_echo(act, other, skew_s) for other in acts)
            # A request that was repeated because its answer was lost leaves two versions, of which one has an outcome.
            act.client = echo
            act.state = State.DONE if echo or observed_counts else State.CLAIMED
            acts.append(act)
        if act.version:
            by_version.setdefault((act.kind, act.version), act)
    return acts


@dataclass(slots=True)
class Expected:
    """What the bucket should hold of one key. `versions`: those with an id that must be there, `gone` those that must not
    (deleted by their id), `perhaps` those that may be either. `last`: acts of which one is the last that touched the
    version without an id; None among them: it may be absent. `nameless`: acts whose version nobody told, or that had none.
    `claims`: what feeds alone tell. `open`: of some act nobody said how it ended."""

    versions: dict[str, Act] = field(default_factory=dict)
    gone: dict[str, Act] = field(default_factory=dict)
    perhaps: set[str] = field(default_factory=set)
    last: list[Act | None] = field(default_factory=list)
    nameless: list[Act] = field(default_factory=list)
    claims: list[Act] = field(default_factory=list)
    open: bool = False

    @property
    def settled(self) -> bool:
        """Whether only one state is right, so that lines can be compared."""
        unsure = any(act.state is not State.DONE for act in self.nameless)
        return not (self.open or unsure or self.perhaps or self.claims) and len(self.last) == 1 and _known(self)

    @property
    def live(self) -> list[tuple[str, Act]]:
        """What must be there, by version id: all of it where `settled`."""
        null = [("", act) for act in self.last if act is not None and act.kind == "put"]
        return [*self.versions.items(), *null]


def expected_of(acts: Sequence[Act], skew_s: float) -> Expected:
    found = Expected()
    for act in acts:
        found.open = found.open or act.state is State.OPEN
        if act.state is State.CLAIMED:
            found.claims.append(act)
        elif not act.effective:
            continue
        elif act.kind == "purge" and act.version:
            if act.state is State.DONE:
                found.gone[act.version] = act
            else:
                found.perhaps.add(act.version)
        elif act.version and act.state is State.DONE:
            found.versions[act.version] = act
        else:
            found.nameless.append(act)
    for version in found.gone:
        found.versions.pop(version, None)
        found.perhaps.discard(version)
    found.last = _last(found.nameless, skew_s)
    return found


def before(one: Act, other: Act, skew_s: float) -> bool:
    """Whether `one` surely took effect before `other`."""
    if one.sequencer and other.sequencer:
        # S3 User Guide: hexadecimal texts of one key, the shorter padded with zeros on its right.
        width = max(len(one.sequencer), len(other.sequencer))
        return one.sequencer.ljust(width, "0").upper() < other.sequencer.ljust(width, "0").upper()
    mine = [mention.n for mention in one.told if mention.phase != "observed" and not one.swapped]
    theirs = [mention.n for mention in other.told if mention.phase != "observed" and not other.swapped]
    if mine and theirs and one.state is State.DONE and one.told[0].writer == other.told[0].writer:
        return max(mine) < min(theirs)
    return one.high + skew_s < other.low


def _last(acts: list[Act], skew_s: float) -> list[Act | None]:
    if not acts:
        return [None]
    certain = [act for act in acts if act.state is State.DONE]
    candidates: list[Act | None] = [
        act for act in acts if not any(other is not act and before(act, other, skew_s) for other in certain)
    ]
    if not certain:
        candidates.append(None)
    if all(act is None or act.kind != "put" for act in candidates):
        return candidates[:1]  # absent, whoever was the last to delete it
    return candidates


def _known(expected: Expected) -> bool:
    return all(act.kind == "delete" or (act.etag and act.size >= 0) for _, act in expected.live)


# --- from records to acts ----------------------------------------------------------------------------------


def _kind(mention: Mention) -> Kind:
    if mention.op in CREATES:
        return "put"
    return "purge" if mention.op == "delete-version" else "delete"


_RANK = {"intent": 0, "unknown": 1, "not-done": 2, "done": 3}
_STATES = {"intent": State.OPEN, "unknown": State.MAYBE, "not-done": State.NOT_DONE, "done": State.DONE}


def _client_acts(mentions: list[Mention]) -> list[Act]:
    """Each intent with its outcome. Of two outcomes (unknown, and later found done) the one that knows more counts."""
    acts: dict[tuple[str, int], Act] = {}
    ranks: dict[tuple[str, int], int] = {}
    for mention in sorted(mentions, key=lambda m: (m.writer, m.n)):
        place = mention.writer, mention.n if mention.phase == "intent" else mention.intent
        if mention.intent == NO_INTENT and mention.phase != "intent":
            place = mention.writer, -mention.n - 2  # nobody said that it was about to be done
        act = acts.get(place)
        if act is None:
            low = mention.at if mention.phase == "intent" else mention.time
            act = acts[place] = Act(_kind(mention), State.OPEN, low, NEVER, client=mention.source in OWN)
        rank = _RANK[mention.phase]
        _add(act, mention)
        if rank >= ranks.get(place, -1):
            ranks[place] = rank
            act.state = _STATES[mention.phase]
            late = {"intent": OPEN_S, "unknown": LATE_S}.get(mention.phase, 0.0)
            act.high = mention.at + late
            if mention.phase == "unknown" and act.low:
                # After a crash it is only said when the slot is opened again, be it a month later.
                act.high = min(act.high, act.low + OPEN_S)
    return list(acts.values())


def _observed_act(mention: Mention, kind: Kind) -> Act:
    low, high = _moments(mention)
    act = Act(kind, State.CLAIMED, low, high)
    _add(act, mention)
    return act


def _moments(mention: Mention) -> tuple[float, float]:
    """When it happened: by its own time, else some time before it was recorded."""
    return (mention.time, mention.time) if mention.time else (_BEGAN, mention.at)


def _add(act: Act, mention: Mention) -> None:
    act.told.append(mention)
    act.version = act.version or mention.version
    act.etag = act.etag or mention.etag
    if act.size < 0:
        act.size = mention.size
    act.sums = act.sums or mention.sums
    act.sequencer = act.sequencer or mention.sequencer
    act.in_parts = act.in_parts or mention.parts > 0
    if mention.request:
        act.requests.add(mention.request)
    if mention.phase == "observed" and act.state in (State.MAYBE, State.OPEN):
        # Somebody saw it happen, so its outcome is known after all.
        act.state = State.DONE
        if mention.time:
            act.high = max(act.low, min(act.high, mention.time + LATE_S))


def _point_to(act: Act, mention: Mention) -> None:
    """Keep the event beside an act that it may be, of several that may have left different things: nothing is concluded."""
    act.told.append(mention)
    if mention.request:
        act.requests.add(mention.request)


def _same(mention: Mention, kind: Kind, acts: list[Act], skew_s: float) -> tuple[Act | None, bool]:
    """The act that the event most likely is, where it may be one at all, and whether it can be no other."""
    low, high = _moments(mention)
    alike = [
        act
        for act in acts
        if act.kind == kind
        and _agree(act.version, mention.version)
        and _agree(act.etag, mention.etag)
        and (act.size < 0 or mention.size < 0 or act.size == mention.size)
        and act.state is not State.NOT_DONE
        and (mention.request in act.requests or (act.low - skew_s <= high and low <= act.high + skew_s))
    ]
    fitting = [act for act in alike if mention.request in act.requests or not _other_event(act, mention)]
    if not fitting:
        return None, False
    middle = mention.time or mention.at
    act = min(
        fitting,
        key=lambda act: (
            mention.request not in act.requests if mention.request else False,
            not (act.version and act.version == mention.version),
            any(told.source == mention.source for told in act.told),
            # What surely happened has an event, though its clock be off; what may never have happened can do without.
            act.state is not State.DONE,
            # Events come by time: where each takes what ends first, as many of these as can be have one.
            act.high if act.state is State.DONE else 0.0,
            max(act.low - middle, middle - act.high, 0.0),
            act.high,
        ),
    )
    # An act that another event was taken for may be this one for all that, unless that event is all there is of it.
    rivals = [one for one in alike if one in fitting or any(told.phase != "observed" for told in one.told)]
    named = any(told.phase != "observed" and told.request == mention.request != "" for told in act.told)
    return act, named or len(rivals) == 1


def _other_event(act: Act, mention: Mention) -> bool:
    """Whether the act was told as another event already: a sequencer is of one event only."""
    return bool(mention.sequencer) and any(told.sequencer not in ("", mention.sequencer) for told in act.told)


def _agree(one: str, other: str) -> bool:
    return not one or not other or one == other


def _is_echo(act: Act, other: Act, skew_s: float) -> bool:
    return (
        act.kind == other.kind
        and other.state is not State.NOT_DONE
        and act.kind != "purge"
        and _agree(act.etag, other.etag)
        and (act.size < 0 or other.size < 0 or act.size == other.size)
        and other.low - skew_s <= act.high
        and act.low <= other.high + skew_s
    )
