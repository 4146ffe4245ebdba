"""A run beside the peers as a page, and as tables on a terminal.

One rule: nothing is measured here and nothing is left out in silence: a dash is what was not measured, and `missing` says why.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.peers import figures as facts
from bench.peers import names
from bench.peers.figures import Figure, Part, Run
from bench.peers.plots import Plot
from bench.peers.verdict import REFERENCE_MS, Verdict, number, summary, verdicts

DASH: Final = "-"
TITLE: Final = "Beside its peers"
FACTS: Final[Mapping[str, str]] = {
    facts.PUTS_PER_GIB: "PUTs for each GiB",
    facts.GETS_PER_GIB: "GETs for each GiB",
    facts.REQUESTS: "requests",
    facts.UP_PER_BYTE: "bytes sent to the store for each byte written",
    facts.DOWN_PER_BYTE: "bytes fetched from the store for each byte read",
    facts.P50_US: "median time of one operation, microseconds",
    facts.P99_US: "99th percentile, microseconds",
    facts.P999_US: "99.9th percentile, microseconds",
    facts.CPU_US: "CPU microseconds for each operation",
    facts.CPU_S_PER_GIB: "CPU seconds for each GiB",
    facts.PEAK_MIB: "most memory, MiB",
    facts.DOLLARS_PER_GIB: "dollars of requests for each GiB",
    "puts": "PUTs",
    "gets": "GETs",
    "deletes": "DELETEs",
    "up_mib": "MiB sent to the store",
    "mib_up": "MiB sent to the store",
    "down_mib": "MiB fetched from the store",
    "mib_down": "MiB fetched from the store",
    "mib_left": "MiB left in the bucket",
    "objects_left": "objects left in the bucket",
    "drained_s": "seconds until the bucket had everything",
    "flush_p50_us": "median time of a flush, microseconds",
    "flush_p99_us": "99th percentile of flushes, microseconds",
    "cpu_s": "CPU seconds",
}
"""What is told of a load beside its rate, in the order of the page. In all of them less is better."""
OTHER_FACTS: Final[Mapping[str, str]] = {
    "cpu_front_us": "CPU microseconds for each operation of tgtd, before a file that is not its own",
    "cpu_behind_us": "CPU microseconds for each operation, of the processes that speak to the bucket",
    "cpu_initiator_us": "CPU microseconds for each operation of the initiator",
    "cpu_console_s": "CPU seconds of the console",
    "store_busy": "share of a processor that the store took",
    "store_cpu": "share of a processor that the store took",
    "client_cpu": "share of a processor that the client took",
    "server_cpu_us": "CPU microseconds of the server, for each key",
    "disk_flushes_per_s": "appends of 4 KiB with fdatasync a second, of the disk alone",
    "mib_s": "MiB a second",
}
"""What explains a figure; none is the best. Facts with other names follow under those."""
HOW_TO_READ: Final = (
    "**Ratios, not figures.** All systems met the same loads on the same store in one run, so ratios travel; the figures"
    " belong to this machine, whose processors store, system and load generator share.",
    "**± is half the distance** from the slowest to the fastest run, as a share of the median. Where it is large, trust"
    " the row less. Best of a row in bold; a dash was not measured, and the last section says why.",
    "**s3backer's flush does nothing.** Its FUSE file system has no flush: a program that calls `fsync` is told yes while the"
    " data is in a queue. Its rows *flush each* and *flush per 16* are therefore rows without a flush. Only *s3backer sync*"
    " keeps what it acknowledges, and its equal here is *s3block flush=s3*. By default s3block's flush is on this host's"
    " disk, in its journal. The table of correctness says what each system had after a kill.",
    "**s3backer is measured twice**: as Debian packages it (blocks of 4 KiB, defaults), and tuned for this load. The MD5 cache"
    " and write delay of its defaults hold back writes to a block that was just written; tuned, both are off. A write of 4 KiB"
    " into a block of 64 KiB that is not here fetches that block first, which packaged it need not: the overview and the"
    " verdict name both, wherever both were measured. Version 1.5.4"
    " knows FUSE only, so tgt serves its file by iSCSI; *its file* is without tgt.",
    "**nbdkit's S3 plugin** has no lock and no order across objects; with `--filter=cache` it answers from a local file"
    " and keeps what was written there until a flush.",
    "**tgt on a local file** is no peer but a ceiling: the same protocol with the data on this host's disk and no bucket.",
    "**The bare client** does nothing but the requests: as many at once as s3block may have, at least as many bytes. What it"
    " gets is what the store gives. It packs nothing, and s3block does (the data is half compressible): behind a full link"
    " s3block can so be ahead of it.",
    "**Latency** is what the store waits before each answer. 0 ms is a server in the same rack, 5 ms the same region, 20 ms"
    " another one, 50 ms another continent.",
    "**Dollars** are requests alone, at the prices of `bench/cost.py`; storage and traffic come on top.",
)


_OPTION: Final = re.compile(r"(?<![\w-])(--[A-Za-z][\w.-]*(?:=[^\s|,;]*)?)")


@dataclass(frozen=True, slots=True)
class Grid:
    """One table. The first column is words, the others are figures; `bold`: cells (row, column) that are the best."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> list[str]:
        lines = [_line(self.header), _line(["---", *["---:"] * (len(self.header) - 1)])]
        for number_of_row, row in enumerate(self.rows):
            lines.append(
                _line(
                    [f"**{cell}**" if (number_of_row, column) in self.bold else cell for column, cell in enumerate(row)]
                )
            )
        return lines

    def table(self) -> Table:
        drawn = Table(title=self.title, title_justify="left")
        for column, name in enumerate(self.header):
            drawn.add_column(name, justify="right" if column else "left")
        for number_of_row, row in enumerate(self.rows):
            cells = [
                Text(cell, style="bold green" if (number_of_row, column) in self.bold else "")
                for column, cell in enumerate(row)
            ]
            drawn.add_row(*cells)
        return drawn


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(prose(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def prose(text: str) -> str:
    """Words of a run as Markdown shows them: options as code, or what draws pages makes dashes of them."""
    return text if "`" in text else _OPTION.sub(r"`\1`", text)


# --- tables --------------------------------------------------------------------------------------------------


def columns(part: Part) -> list[str]:
    """The systems of a part that have figures: those with a place in `names` first."""
    seen = list(dict.fromkeys(figure.system for figure in part.figures))
    order = {system: place for place, system in enumerate(names.SYSTEMS)}
    return sorted(seen, key=lambda system: order.get(system, len(order)))


def latencies(part: Part) -> list[int]:
    return sorted({figure.latency_ms for figure in part.figures})


def reference(part: Part) -> int:
    """The latency at which facts are told: `REFERENCE_MS`, or the nearest that has most figures' facts."""
    return min(latencies(part), key=lambda latency_ms: abs(latency_ms - REFERENCE_MS), default=0)


def rates(part: Part, latency_ms: int) -> Grid:
    """Rows are loads, columns are systems."""
    chosen = [figure for figure in part.figures if figure.latency_ms == latency_ms]
    systems = [system for system in columns(part) if any(figure.system == system for figure in chosen)]
    title = f"{part.title}: store at {latency_ms} ms" if len(latencies(part)) > 1 or latency_ms else part.title
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for load, of_load in _by_load(chosen).items():
        first = next(iter(of_load.values()))
        best = best_of(of_load)
        rows.append([load, first.unit + (", less is better" if first.less_is_better else "")])
        for column, system in enumerate(systems):
            figure = of_load.get(system)
            rows[-1].append(_value(figure))
            if figure is not None and system in best:
                bold.add((len(rows) - 1, column + 2))
    return Grid(title, ["load", "unit", *systems], rows, frozenset(bold))


def _by_load(chosen: Iterable[Figure]) -> dict[str, dict[str, Figure]]:
    found: dict[str, dict[str, Figure]] = {}
    for figure in chosen:
        found.setdefault(figure.load, {}).setdefault(figure.system, figure)
    return found


def best_of(of_load: Mapping[str, Figure]) -> set[str]:
    """The systems with the best median; none where one system alone was measured. The bare client is no system."""
    ranked = {system: figure for system, figure in of_load.items() if system != names.BARE_CLIENT}
    if len(ranked) < 2:
        return set()
    less = any(figure.less_is_better for figure in ranked.values())
    choose: Callable[[Iterable[float]], float] = min if less else max
    best = choose(figure.value for figure in ranked.values())
    return {system for system, figure in ranked.items() if figure.value == best}


def _value(figure: Figure | None) -> str:
    if figure is None or not figure.values:
        return DASH
    if len(figure.values) < 2:
        return number(figure.value)
    return f"{number(figure.value)} ±{figure.spread / 2:.0%}"


def fact_tables(part: Part) -> list[Grid]:
    """One table for each fact that some figure has, at the reference latency (at each, where loads were measured at
    one other only)."""
    known = [name for name in FACTS if any(name in figure.facts for figure in part.figures)]
    others = sorted({name for figure in part.figures for name in figure.facts} - set(FACTS))
    at = reference(part)
    found = []
    for name in [*known, *others]:
        with_fact = [figure for figure in part.figures if name in figure.facts]
        wanted = min({figure.latency_ms for figure in with_fact}, key=lambda ms: abs(ms - at))
        chosen = [figure for figure in with_fact if figure.latency_ms == wanted]
        systems = [system for system in columns(part) if any(figure.system == system for figure in chosen)]
        words = FACTS.get(name) or OTHER_FACTS.get(name, name.replace("_", " "))
        title = words[0].upper() + words[1:] + (f", store at {wanted} ms" if len(latencies(part)) > 1 else "")
        rows: list[list[str]] = []
        bold: set[tuple[int, int]] = set()
        for load, of_load in _by_load(chosen).items():
            seen = {system: of_load[system].facts[name] for system in of_load}
            least = min(seen.values())
            ranked = [system for system in seen if system != names.BARE_CLIENT]
            for column, system in enumerate(systems):
                if name in FACTS and len(ranked) > 1 and seen.get(system) == least and system in ranked:
                    bold.add((len(rows), column + 1))
            rows.append([load, *(number(seen[system]) if system in seen else DASH for system in systems)])
        found.append(Grid(title, ["load", *systems], rows, frozenset(bold)))
    return found


def correctness(run: Run) -> Grid | None:
    """Questions by systems."""
    outcomes = [outcome for part in run.parts for outcome in part.outcomes]
    if not outcomes:
        return None
    seen = list(dict.fromkeys(outcome.system for outcome in outcomes))
    order = {system: place for place, system in enumerate(names.SYSTEMS)}
    systems = sorted(seen, key=lambda system: order.get(system, len(order)))
    asked = {(outcome.question, outcome.system): outcome for outcome in outcomes}
    words = {True: "yes", False: "NO", None: DASH}
    rows: list[list[str]] = []
    for question in dict.fromkeys(outcome.question for outcome in outcomes):
        cells = [asked.get((question, system)) for system in systems]
        rows.append([question, *(words[cell.passed] if cell else DASH for cell in cells)])
    return Grid("Correctness", ["question", *systems], rows)


# --- the page ------------------------------------------------------------------------------------------------


def markdown(run: Run, plots: Sequence[Plot] = (), folder: str = "") -> str:
    """The whole page. `folder`: where the plots are, seen from the page (`peers/` or nothing)."""
    rows = verdicts(run)
    lines = [f"# {TITLE}", "", *_top(run), "", "## Verdict", "", f"{summary(rows)}.", "", *_verdict_lines(rows), ""]
    if plots:
        lines += ["## In pictures", ""]
        for plot in plots:
            lines += [f"![{plot.title}]({folder}{plot.name}.svg)", "", f"*{plot.words}*", ""]
    lines += ["## Systems", "", "| system | version and settings |", "| --- | --- |"]
    lines += [_line([system, settings]) for system, settings in run.systems.items()]
    lines.append("")
    grid = correctness(run)
    if grid:
        lines += ["## Correctness", "", *grid.markdown(), "", *_outcome_lines(run), ""]
    for part in run.parts:
        if part.figures:
            lines += _part_lines(part)
    lines += ["## How to read it", "", *(f"- {line}" for line in HOW_TO_READ), ""]
    lines += _profile_lines(run)
    lines += _missing_lines(run)
    return "\n".join(lines).rstrip("\n") + "\n"


def _top(run: Run) -> list[str]:
    facts_of_machine = "; ".join(f"{name}: {value}" for name, value in run.machine.items())
    measured = ", ".join(part.name for part in run.parts if part.figures or part.outcomes or part.profiles)
    distances = sorted({figure.latency_ms for part in run.parts for figure in part.figures})
    lines = [
        "Bucketworks and what else does its work: the same loads, on the same store, on the same machine, in one run.",
        "`make bench-peers` repeats it on yours. *seen* is ours beside the figure that the target names; every figure is"
        " the median of its runs.",
        "",
        f"- **When**: {run.date}; it took {run.seconds / 60:.0f} minutes",
        f"- **Machine**: {facts_of_machine}",
        f"- **Measured**: {measured}",
    ]
    counts = {len(figure.values) for part in run.parts for figure in part.figures}
    if counts:
        several = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
        lines.append(
            f"- **Runs of each load**: {several}" + ("; of one run no spread can be told" if min(counts) < 2 else "")
        )
    if distances:
        lines.append(
            "- **Store**: a loopback server of the benchmark's own that keeps S3's conditions, and waits"
            f" {_and(f'{one}' for one in distances)} ms before each answer"
        )
    if run.systems:
        lines.append(f"- **Beside each other**: {_and(run.systems)}; settings [below](#systems)")
    lines.append(
        "- **Traps**: [how to read it](#how-to-read-it); what is missing, and why: [at the end](#notes-and-what-is-missing)"
    )
    return lines


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _verdict_lines(rows: Sequence[Verdict]) -> list[str]:
    lines = ["| target | seen | | figures |", "| --- | ---: | --- | --- |"]
    words = {True: "**met**", False: "**not met**", None: "not measured"}
    lines += [_line([row.target, row.figure, words[row.met], row.said]) for row in rows]
    return lines


def _outcome_lines(run: Run) -> list[str]:
    """What was seen, by question: of ours always, of others where the answer is no or none."""
    words = {True: "yes", False: "**no**", None: "not asked"}
    outcomes = [outcome for part in run.parts for outcome in part.outcomes]
    lines = []
    for question in dict.fromkeys(outcome.question for outcome in outcomes):
        told = [
            f"  - {outcome.system}: {words[outcome.passed]}: {prose(outcome.said)}"
            for outcome in outcomes
            if outcome.question == question
            and outcome.said
            and (not outcome.passed or outcome.system in (names.OURS, names.OURS_FLUSH_S3))
        ]
        lines += [f"- {prose(question)}", *told] if told else []
    return lines


def _part_lines(part: Part) -> list[str]:
    lines = [f"## {part.title}", ""]
    several = len(latencies(part)) > 1
    for latency_ms in latencies(part):
        if several:
            lines += [f"### {part.name.capitalize()}: store at {latency_ms} ms", ""]
        lines += [*rates(part, latency_ms).markdown(), ""]
    grids = fact_tables(part)
    if grids:
        lines += [f"### {part.name.capitalize()}: what it took", ""]
        for grid in grids:
            lines += [f"{grid.title}:", "", *grid.markdown(), ""]
    noted = list(dict.fromkeys((figure.load, figure.system, figure.note) for figure in part.figures if figure.note))
    lines += [f"- {prose(f'{load}, {system}: {note}')}" for load, system, note in noted]
    lines += [f"- {prose(note)}" for note in part.notes]
    return [*lines, ""] if noted or part.notes else lines


def _profile_lines(run: Run) -> list[str]:
    profiles = [profile for part in run.parts for profile in part.profiles]
    if not profiles:
        return []
    lines = ["## Where the time goes", ""]
    for path in dict.fromkeys(profile.path for profile in profiles):
        lines += [f"### {path[0].upper()}{path[1:]}", ""]
        for profile in profiles:
            if profile.path == path:
                lines += [
                    f"{profile.tool}, {profile.samples:,} samples:",
                    "",
                    "```text",
                    profile.text.rstrip("\n"),
                    "```",
                    "",
                ]
    return lines


def _missing_lines(run: Run) -> list[str]:
    lines = ["## Notes and what is missing", ""]
    lines += [f"- {prose(note)}" for note in run.notes]
    lines += [f"- {part.title}: {prose(note)}" for part in run.parts if not part.figures for note in part.notes]
    missing = [f"- Missing from {part.name}: {prose(line)}" for part in run.parts for line in part.missing]
    took = ", ".join(f"{part.name} {part.seconds:.0f} s" for part in run.parts if part.seconds)
    return [
        *lines,
        *(missing or ["- Nothing that was asked for is missing."]),
        *([f"- It took: {took}."] if took else []),
        "",
    ]


# --- the terminal --------------------------------------------------------------------------------------------


def show(run: Run, console: Console) -> None:
    """The verdict, what was correct, and the rates of each part."""
    for part in run.parts:
        for latency_ms in latencies(part):
            console.print(rates(part, latency_ms).table())
    grid = correctness(run)
    if grid:
        console.print(grid.table())
    rows = verdicts(run)
    table = Table(title="Verdict", title_justify="left")
    table.add_column("target")
    table.add_column("seen", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("figures", overflow="fold")
    style = {True: "green", False: "bold red", None: "dim"}
    for row in rows:
        table.add_row(Text(row.target), Text(row.figure), Text(row.word, style=style[row.met]), Text(row.said))
    console.print(table)
    for part in run.parts:
        for line in part.missing:
            console.print(f"missing from {part.name}: {line}", highlight=False, markup=False)
    console.print(f"{summary(rows)}.", highlight=False)
