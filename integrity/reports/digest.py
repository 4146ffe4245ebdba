"""Records to what a report counts: operations, who, days, a timeline, and what was begun and has no end.

Operations are counted once, by how they ended: an intent that got its outcome counts as that outcome, one that got none as
unfinished. What a feed observed is counted beside what our own tools did, since both may tell of one operation.

One rule: memory is bounded whatever the records hold. A ledger may name a million actors or the year 9999.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from integrity.record import unix_of
from integrity.reports import told
from integrity.reports.choose import Choice, is_housekeeping

KINDS: Final = ("done", "not-done", "unknown", "observed", "unfinished")
"""How an operation is counted, in the order in which it is shown."""
NAMES_MAX = 10_000
"""Distinct actors, days or buckets that are counted by name; further ones are counted together as `OTHERS`."""
OTHERS: Final = "(others)"
UNFINISHED_MAX = 100_000
"""Intents that are remembered while they have no outcome."""
BINS_MAX = 240
STEPS_S: Final = (60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 604_800, 2_419_200, 29_030_400)
"""Widths of a bin; each divides the next, so that finer bins can be added up."""


class Timeline:
    """Counts over time in at most `BINS_MAX` bins, of the narrowest width that allows it."""

    def __init__(self) -> None:
        self._step = 0
        self.bins: dict[int, Counter[str]] = {}
        self._first = self._last = 0

    @property
    def step_s(self) -> int:
        """The width of a bin in seconds."""
        return STEPS_S[self._step] if self._step < len(STEPS_S) else STEPS_S[-1] << (self._step - len(STEPS_S) + 1)

    def add(self, unix_s: float, kind: str) -> None:
        index = int(unix_s // self.step_s)
        if not self.bins:
            self._first = self._last = index
        self.bins.setdefault(index, Counter())[kind] += 1
        self._first, self._last = min(self._first, index), max(self._last, index)
        while self._last - self._first >= BINS_MAX:
            self._coarsen()

    def shown(self) -> dict[str, Any]:
        """For the document: the start of the first bin in Unix seconds, the step, and a count per kind for every bin."""
        if not self.bins:
            return {"begins": 0, "step_s": self.step_s, "bins": []}
        first, last = self._first, self._last
        nothing: Counter[str] = Counter()
        bins = [[self.bins.get(i, nothing)[kind] for kind in KINDS] for i in range(first, last + 1)]
        return {"begins": first * self.step_s, "step_s": self.step_s, "bins": bins}

    def _coarsen(self) -> None:
        before = self.step_s
        self._step += 1
        factor = self.step_s // before
        old, self.bins = self.bins, {}
        for index, counts in old.items():
            self.bins.setdefault(index // factor, Counter()).update(counts)
        self._first, self._last = self._first // factor, self._last // factor


@dataclass(slots=True)
class Tally:
    """A table of counts: one row for each name, one column for each kind."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, name: str, kind: str) -> None:
        if name not in self.rows and len(self.rows) >= NAMES_MAX:
            name = OTHERS
        self.rows.setdefault(name, Counter())[kind] += 1

    def shown(self, *, by_name: bool = False) -> list[dict[str, Any]]:
        """The rows, largest first or by name, with every kind."""
        rows = [{"name": name, **{kind: counts[kind] for kind in KINDS}} for name, counts in self.rows.items()]
        if by_name:
            return sorted(rows, key=lambda row: str(row["name"]))
        return sorted(rows, key=lambda row: (-sum(int(row[kind]) for kind in KINDS), str(row["name"])))


class Digest:
    """Give it the records of each writer in their order (writers may be mixed), then `finish`.

    `choice` says which operations are counted. A record that ends an intent must be given even where it lies after the time
    asked for; it ends the intent and is not counted itself. So a range is read on while there are `open_of` its writer."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.operations, self.actors, self.days, self.buckets = Tally(), Tally(), Tally(), Tally()
        self.timeline = Timeline()
        self.records = Counter[str]()
        self.housekeeping = 0
        self.totals: Counter[str] = Counter()
        self.errors = Tally()
        self.unknown: list[dict[str, Any]] = []
        self.forgotten = 0
        self._open: dict[tuple[str, int], Mapping[str, Any]] = {}
        self._waiting = Counter[str]()

    def open_of(self, writer: str) -> int:
        """How many of that writer's intents still wait for their outcome."""
        return self._waiting[writer]

    def add(self, record: Mapping[str, Any]) -> None:
        phase = record["phase"]
        intent = self._open.pop((record["writer"], record["intent"]), None) if "intent" in record else None
        if intent is not None:
            self._waiting[record["writer"]] -= 1
        if not self.choice.in_time(record):
            if intent is not None:
                self._count(intent, phase)
                self._note_unknown(intent, phase)
            return
        self.records[record["writer"]] += 1
        if is_housekeeping(record):
            self.housekeeping += 1
            return
        if phase == "intent":
            if not self.choice.passes(record):
                return
            if len(self._open) < UNFINISHED_MAX:
                self._open[record["writer"], record["n"]] = record
                self._waiting[record["writer"]] += 1
            else:
                self.forgotten += 1
            return
        # An outcome need not repeat what its intent said: who and where are taken from both.
        whole = {**intent, **record} if intent is not None else record
        if self.choice.passes(whole):
            self._count(whole, phase)
            self._note_unknown(whole, phase)

    def finish(self) -> list[dict[str, Any]]:
        """Count what is left open as unfinished; what has no certain end, oldest first, one row each."""
        for record in self._open.values():
            self._count(record, "unfinished")
        left = [_row(record, "unfinished") for record in self._open.values()]
        self._open.clear()
        return sorted([*self.unknown, *left], key=lambda row: (str(row["at"]), str(row["writer"]), int(row["n"])))

    def _count(self, record: Mapping[str, Any], kind: str) -> None:
        self.totals[kind] += 1
        self.operations.add(record["op"], kind)
        self.actors.add(told.actor(record) or "(not told)", kind)
        self.days.add(record["at"][:10], kind)
        if record.get("bucket"):
            self.buckets.add(told.visible(record["bucket"]), kind)
        if kind == "not-done" and record.get("error", {}).get("code"):
            self.errors.add(told.visible(str(record["error"]["code"])), kind)
        self.timeline.add(unix_of(record["at"]), kind)

    def _note_unknown(self, record: Mapping[str, Any], phase: str) -> None:
        if phase != "unknown":
            return
        if len(self.unknown) < UNFINISHED_MAX:
            self.unknown.append(_row(record, "unknown"))
        else:
            self.forgotten += 1


def _row(record: Mapping[str, Any], state: str) -> dict[str, Any]:
    return {
        "writer": record["writer"],
        "n": record["n"],
        "at": record["at"],
        "op": record["op"],
        "bucket": record.get("bucket", ""),
        "key": record.get("key", ""),
        "who": told.actor(record),
        "state": state,
    }
