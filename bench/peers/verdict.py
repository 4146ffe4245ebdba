"""What we set out to reach beside the peers, and what one run says of it: one row for each target.

One rule: every row is a pure function of the run, names both figures that it compares, and is "not measured" (None) where
one of them is not there. Medians decide; where the runs overlap, the row says so.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.peers import names
from bench.peers.figures import CPU_US, DOLLARS_PER_GIB, P50_US, P99_US, P999_US, PEAK_MIB, PUTS_PER_GIB, Figure, Run

REFERENCE_MS: Final = 20
"""The distance of the store that targets name: another region, or a provider's bucket over the internet."""
S3BACKER_TIMES: Final = 50
PUTS_SHARE: Final = 1 / 50
BARE_SHARE: Final = 0.95
COWSYNC_TIMES: Final = 10
COWSYNC_MEMORY_SHARE: Final = 1 / 10
P99_MAX_US: Final = 100
ALSO_TOLD: Final[Mapping[str, Sequence[str]]] = {names.S3BACKER_TUNED: (names.S3BACKER_PACKAGED,)}
"""Whom a row names beside the peer that decides: other settings of the same program may suit the load better."""
DISK_FLUSHES: Final = "disk_flushes_per_s"
"""As bench.peers.warm tells it beside rows with flushes."""
COLD_DEPTHS: Final = (8, 32)
WARM_DEPTHS: Final = (1, 8, 32)
QEMU_IMG_TARGETS: Final[Mapping[str, int]] = {
    names.warm_read(32): 70_000,
    names.warm_write(32): 50_000,
    names.warm_write(1, names.FLUSH_EACH): 4_000,
    names.warm_write(16, names.FLUSH_PER_16): 25_000,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`figure`: what was seen, short. `met` None: not measured. `said`: which figures these are, and what they rest on."""

    target: str
    figure: str
    met: bool | None
    said: str

    @property
    def word(self) -> str:
        return {True: "met", False: "not met", None: "not measured"}[self.met]


Target = Callable[[Run], Verdict]

WHERE_THE_TIME_GOES: Final[dict[str, str]] = {
    **{
        f"1 MiB sequential writes{given}: 95 % of a bare client's rate at every latency": (
            "The load is a burst of about 128 MiB that the journal takes in a fifth of a second. The rate is the same at every "
            "distance and on the link: most of what was timed is the last piece, which waits for the end of its commit's "
            "interval of five seconds. Longer writes are bound by the worker's processor time, about 4 ms for each MiB: "
            "`python -m bench speed` has their rate; a second process that compresses would change it"
        )
        for given in (", link of 100 MiB/s", "")
    },
    "the same, no flush: faster than tgt on a local file": (
        "The worker compresses and sends meanwhile: the processors are shared with it, with fio and with the hop before it; "
        "beside tgt there is no such work. Without that hop, under qemu-img, see the warm writes below"
    ),
    "1 MiB cold sequential reads: 95 % of a bare client's rate at every latency": (
        "The bare client neither unpacks nor checks nor keeps what it gets. For each MiB the worker takes about 1.5 ms of "
        "processor time (unpacking, checksums, writing to the cache's file), the front 1 ms: two processors are full"
    ),
    f"cold 4K random reads, QD32: depth / latency ({32 * 1000 // REFERENCE_MS:,}/s at {REFERENCE_MS} ms)": (
        "Each read costs the worker about 0.4 ms and the front 0.15 ms of processor time, and fio and the hop before it "
        "theirs. A leaner message between front and worker would change it"
    ),
    "warm 4K reads, QD1: ahead of tgt": (
        "One command at a time is two wake-ups and little else; which of the two is ahead changes from run to run"
    ),
    f"QD1 while the destager works: p99 below {P99_MAX_US} us": (
        "The initiator's own wake-ups are in it, about as much as in tgt's; the rest is waiting for a processor beside the "
        "worker"
    ),
    "cowsync: 10 x rclone's keys a second": (
        "Near the store a third of the time is the start of Python and its modules. At a distance each process lists its "
        "ranges one page after another and waits in between, where rclone has 16 checkers: more ranges at once would change it"
    ),
}
"""For a target that is not met, by its words: where the time goes, and what would change it. Shown only then."""


def verdicts(run: Run) -> list[Verdict]:
    """All targets in their order."""
    found = []
    for target in TARGETS:
        one = target(run)
        reason = WHERE_THE_TIME_GOES.get(one.target, "") if one.met is False else ""
        found.append(Verdict(one.target, one.figure, one.met, f"{one.said}. {reason}" if reason else one.said))
    return found


def summary(rows: Sequence[Verdict]) -> str:
    """`14 of 23 targets are met, 5 are not, 4 were not measured`."""
    met, failed, unknown = (sum(row.met is kind for row in rows) for kind in (True, False, None))
    return f"{met} of {len(rows)} targets are met, {failed} are not, {unknown} were not measured"


# --- figures -------------------------------------------------------------------------------------------------


def near(run: Run, load: str, system: str, latency_ms: int) -> Figure | None:
    """The figure at that latency; of a system that does not know the store, the one at the nearest latency."""
    exact = run.find(load, system, latency_ms)
    if exact or system != names.TGT:
        return exact
    found = [figure for figure in run.figures(load) if figure.system == system]
    return min(found, key=lambda figure: abs(figure.latency_ms - latency_ms), default=None)


def overlap(one: Figure, other: Figure) -> bool:
    """Whether some run of either lies among the runs of the other."""
    return min(one.values) <= max(other.values) and min(other.values) <= max(one.values)


def _rate(figure: Figure) -> str:
    return f"{figure.system}: {number(figure.value)} {figure.unit}"


def number(value: float) -> str:
    """Three digits that count: `12,345`, `123`, `12.3`, `0.0123`."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.3g}"
    return f"{value:.2g}" if abs(value) >= 0.0001 else f"{value:.1e}"


def times(value: float) -> str:
    return f"{number(value)} x"


def _not_measured(target: str, load: str, *systems: str) -> Verdict:
    return Verdict(target, "-", None, f"needs *{load}* of {' and '.join(systems)}")


def _cpu(figure: Figure) -> str:
    """What the processor allows, where it was counted."""
    spent = figure.facts.get(CPU_US)
    if not spent:
        return ""
    return f"; {number(spent)} us of CPU for each, {spent * figure.value / 1e6:.0%} of one processor"


# --- rates beside a peer -------------------------------------------------------------------------------------


def ahead(load: str, peer: str, target: str, *, factor: float = 1.0, latency_ms: int = REFERENCE_MS) -> Target:
    """More than `factor` times the peer's rate (at least, where it is not 1)."""

    def ask(run: Run) -> Verdict:
        ours, theirs = near(run, load, names.OURS, latency_ms), near(run, load, peer, latency_ms)
        if ours is None or theirs is None:
            return _not_measured(target, load, names.OURS, peer)
        if not theirs.value:
            return Verdict(target, "-", None, f"{peer} did nothing under *{load}*")
        ratio = ours.value / theirs.value
        met = ratio > 1 if factor == 1 else ratio >= factor
        said = f"{_rate(ours)}; {_rate(theirs)}"
        for name in ALSO_TOLD.get(peer, ()):
            if other := near(run, load, name, latency_ms):
                said += f"; {_rate(other)}"
        if factor == 1 and overlap(ours, theirs):
            said += "; their runs overlap"
        return Verdict(target, times(ratio), met, said if met else said + _cpu(ours))

    return ask


def fewer_puts(load: str, peer: str, target: str) -> Target:
    def ask(run: Run) -> Verdict:
        ours, theirs = run.find(load, names.OURS, REFERENCE_MS), run.find(load, peer, REFERENCE_MS)
        mine, other = (figure.facts.get(PUTS_PER_GIB) if figure else None for figure in (ours, theirs))
        if ours is None or theirs is None or mine is None or not other:
            return _not_measured(target, load + "' PUTs", names.OURS, peer)
        said = f"PUTs for each GiB written: {ours.system} {number(mine)}; {theirs.system} {number(other)}"
        dollars = [(figure.system, figure.facts.get(DOLLARS_PER_GIB)) for figure in (ours, theirs)]
        money = [f"{system} ${number(cost)}" for system, cost in dollars if cost is not None]
        if money:
            said += f"; requests cost {', '.join(money)} a GiB"
        return Verdict(target, f"1/{number(other / mine)}" if mine else "0", mine <= other * PUTS_SHARE, said)

    return ask


def side_by_side(load: str, target: str) -> Target:
    """Ahead of tgt where both met the load one right after the other; what fio saw of both, at other moments, is told too."""
    decides = ahead(load + names.QEMU_IMG, names.TGT, target, latency_ms=0)

    def ask(run: Run) -> Verdict:
        found = decides(run)
        ours, theirs = near(run, load, names.OURS, 0), near(run, load, names.TGT, 0)
        if found.met is None or ours is None or theirs is None:
            return found
        said = f"{found.said}; under fio, not side by side: {number(ours.value)} and {number(theirs.value)}"
        return Verdict(target, found.figure, found.met, said)

    return ask


# --- beside what the store gives -----------------------------------------------------------------------------


def near_bare(load: str, target: str) -> Target:
    """At every latency that was measured, at least `BARE_SHARE` of the bare client's rate."""

    def ask(run: Run) -> Verdict:
        pairs = []
        for ours in run.figures(load):
            bare = run.find(load, names.BARE_CLIENT, ours.latency_ms)
            if ours.system == names.OURS and bare is not None and bare.value:
                pairs.append((ours.value / bare.value, ours, bare))
        if not pairs:
            return _not_measured(target, load, names.OURS, names.BARE_CLIENT)
        pairs.sort(key=lambda pair: pair[1].latency_ms)
        worst = min(pairs, key=lambda pair: pair[0])
        said = "; ".join(
            f"{ours.latency_ms} ms: {number(ours.value)} of {number(bare.value)} {ours.unit}" for _, ours, bare in pairs
        )
        figure = f"{worst[0]:.0%} at {worst[1].latency_ms} ms"
        met = worst[0] >= BARE_SHARE
        return Verdict(target, figure if len(pairs) == 1 else f"{figure}, the least", met, said)

    return ask


def by_depth(depth: int, target: str) -> Target:
    """Cold reads: what `depth` requests in flight can be at each latency above 0, or more."""

    def ask(run: Run) -> Verdict:
        load = names.cold_read(depth)
        found = [one for one in run.figures(load) if one.system == names.OURS and one.latency_ms > 0]
        if not found:
            return _not_measured(target, load, names.OURS)
        found.sort(key=lambda one: one.latency_ms)
        share = {one.latency_ms: one.value * one.latency_ms / 1000 / depth for one in found}
        worst = min(share, key=share.__getitem__)
        said = "; ".join(
            f"{one.latency_ms} ms: {number(one.value)} of {number(depth * 1000 / one.latency_ms)} op/s" for one in found
        )
        return Verdict(target, f"{share[worst]:.0%} at {worst} ms", share[worst] >= 1, said)

    return ask


# --- alone ---------------------------------------------------------------------------------------------------


def at_least(load: str, aim: int, target: str) -> Target:
    def ask(run: Run) -> Verdict:
        found = [one for one in run.figures(load) if one.system == names.OURS]
        if not found:
            return _not_measured(target, load, names.OURS)
        best = max(found, key=lambda one: one.value)
        theirs = near(run, load, names.TGT, best.latency_ms)
        said = f"{_rate(best)} with the store at {best.latency_ms} ms"
        if theirs:
            said += f"; {_rate(theirs)}"
        if disk := best.facts.get(DISK_FLUSHES):
            said += f"; that disk alone: {number(disk)} fdatasyncs a second"
        met = best.value >= aim
        return Verdict(target, f"{number(best.value)} {best.unit}", met, said if met else said + _cpu(best))

    return ask


def quick_answers(target: str) -> Target:
    def ask(run: Run) -> Verdict:
        loads = [one for load in (names.PROBE, names.PROBE_READ) for one in run.figures(load)]
        found = [one for one in loads if one.system == names.OURS and P99_US in one.facts]
        if not found:
            return _not_measured(target, names.PROBE, names.OURS)
        worst = max(found, key=lambda one: one.facts[P99_US])
        parts = [(name, worst.facts.get(fact)) for name, fact in (("p50", P50_US), ("p99", P99_US), ("p99.9", P999_US))]
        said = ", ".join(f"{name} {number(value)} us" for name, value in parts if value is not None)
        theirs = near(run, worst.load, names.TGT, worst.latency_ms)
        if theirs and P99_US in theirs.facts:
            said += f"; {theirs.system}: p99 {number(theirs.facts[P99_US])} us"
        p99 = worst.facts[P99_US]
        return Verdict(
            target, f"{number(p99)} us", p99 < P99_MAX_US, f"with the store at {worst.latency_ms} ms: {said}"
        )

    return ask


# --- mirrors -------------------------------------------------------------------------------------------------


def pairs_of_mirrors(run: Run) -> list[tuple[Figure, Figure, Figure]]:
    """For each load in keys/s and latency that both met: cowsync's fastest, rclone's fastest, and rclone's most frugal."""
    loads: dict[tuple[str, int], list[Figure]] = {}
    for part in run.parts:
        for figure in part.figures:
            if figure.unit == names.KEYS:
                loads.setdefault((figure.load, figure.latency_ms), []).append(figure)
    found = []
    for figures in loads.values():
        ours = _of(figures, names.COWSYNC)
        theirs = _of(figures, names.RCLONE)
        if ours and theirs:
            frugal = min(theirs, key=lambda one: one.facts.get(PEAK_MIB, float("inf")))
            found.append((max(ours, key=lambda one: one.value), max(theirs, key=lambda one: one.value), frugal))
    return found


def decisive(pairs: Sequence[tuple[Figure, Figure, Figure]]) -> tuple[Figure, Figure, Figure]:
    """The bucket and latency at which cowsync is ahead by least."""
    return min(pairs, key=lambda pair: pair[0].value / pair[1].value)


def _of(figures: Iterable[Figure], system: str) -> list[Figure]:
    return [figure for figure in figures if figure.system.startswith(system)]


def _where(figure: Figure) -> str:
    return f"{figure.load} at {figure.latency_ms} ms"


def faster_mirror(target: str) -> Target:
    def ask(run: Run) -> Verdict:
        pairs = pairs_of_mirrors(run)
        if not pairs:
            return _not_measured(target, names.WHAT_CHANGED, names.COWSYNC, names.RCLONE)
        ours, theirs, _ = decisive(pairs)
        ratio = ours.value / theirs.value
        said = f"{_where(ours)}: {_rate(ours)}; {_rate(theirs)} (its fastest)"
        met = ratio >= COWSYNC_TIMES
        return Verdict(target, times(ratio), met, said if met else said + _cpu(ours))

    return ask


def smaller_mirror(target: str) -> Target:
    def ask(run: Run) -> Verdict:
        pairs = [pair for pair in pairs_of_mirrors(run) if pair[0].facts.get(PEAK_MIB) and pair[2].facts.get(PEAK_MIB)]
        if not pairs:
            return _not_measured(target, names.WHAT_CHANGED + "' memory", names.COWSYNC, names.RCLONE)
        # The largest bucket decides: that is where memory counts.
        ours, _, theirs = max(pairs, key=lambda pair: pair[2].facts[PEAK_MIB])
        mine, other = ours.facts[PEAK_MIB], theirs.facts[PEAK_MIB]
        said = f"{_where(ours)}: {ours.system} {number(mine)} MiB; {theirs.system} {number(other)} MiB (its least)"
        return Verdict(target, f"1/{number(other / mine)}", mine <= other * COWSYNC_MEMORY_SHARE, said)

    return ask


# --- the table -----------------------------------------------------------------------------------------------

_WRITE: Final = names.random_write(1)
_FLUSHES: Final = {
    "no flush": "",
    "a flush after each": names.FLUSH_EACH,
    "a flush after 16": names.FLUSH_PER_16,
}

TARGETS: Final[Sequence[Target]] = (
    ahead(
        _WRITE,
        names.S3BACKER_TUNED,
        f"4K random writes, QD1, store at 20 ms: {S3BACKER_TIMES} x s3backer tuned",
        factor=S3BACKER_TIMES,
    ),
    *(
        ahead(
            names.random_write(1, flush),
            names.TGT,
            f"the same, {words}: faster than tgt on a local file",
        )
        for words, flush in _FLUSHES.items()
    ),
    fewer_puts(_WRITE, names.S3BACKER_TUNED, "PUTs for each GiB of such writes: 1/50 of s3backer tuned's"),
    *(
        near_bare(load + link, f"{words}{given}: 95 % of a bare client's rate at every latency")
        for load, words in (
            (names.SEQUENTIAL_WRITE, "1 MiB sequential writes"),
            (names.SEQUENTIAL_READ, "1 MiB cold sequential reads"),
        )
        for link, given in ((names.LIMITED, ", link of 100 MiB/s"), ("", ""))
    ),
    *(
        by_depth(
            depth,
            f"cold 4K random reads, QD{depth}: depth / latency ({depth * 1000 // REFERENCE_MS:,}/s at {REFERENCE_MS} ms)",
        )
        for depth in COLD_DEPTHS
    ),
    *(
        side_by_side(load(depth), f"warm 4K {words}, QD{depth}: ahead of tgt")
        for words, load in (("reads", names.warm_read), ("writes", names.warm_write))
        for depth in WARM_DEPTHS
    ),
    *(at_least(load + names.QEMU_IMG, aim, f"{load}: {aim:,} a second") for load, aim in QEMU_IMG_TARGETS.items()),
    quick_answers(f"QD1 while the destager works: p99 below {P99_MAX_US} us"),
    faster_mirror(f"cowsync: {COWSYNC_TIMES} x rclone's keys a second"),
    smaller_mirror("cowsync: a tenth of rclone's memory"),
)
