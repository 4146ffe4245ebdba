"""What was measured, as tables for the terminal, as Markdown and as JSON.

One rule: nothing is computed here but ratios; a figure that was not measured is a dash, never a zero.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median

from rich.console import Console
from rich.table import Table

from bench.measure import Measured, Result
from bench.plan import FLUSH, Plan, Row
from bench.probe import PROBES

MIB = 1024 * 1024
DASH = "-"


TableOf = tuple[str, list[str], list[list[str]]]
"""Title, header and cells."""


@dataclass(frozen=True, slots=True)
class Section:
    """What another part of the benchmark found: its tables, its lines, and all of it as JSON."""

    name: str
    tables: list[TableOf]
    lines: list[str]
    document: list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Report:
    """All of one run. `tgt_missing`: why there is nothing of tgt. `store_ceiling`: MiB/s of 1 MiB PUTs and 64 KiB GETs
    a second that the store does for one plain client. `notes`: what a reader must know about this run."""

    plan: Plan
    machine: dict[str, str]
    ours: list[Measured]
    tgt_missing: str
    store_ceiling: tuple[float, float]
    seconds: float
    notes: list[str]
    sections: list[Section] = field(default_factory=list)

    @property
    def rows(self) -> tuple[Row, ...]:
        return (self.plan.cold_scattered(), self.plan.cold_sequential(), *self.plan.warm())

    def tables(self) -> list[TableOf]:
        """Every table."""
        speed = [self._speed(), self._latency(), self._cpu(), self._traffic()] if self.ours else []
        return [*speed, *(table for section in self.sections for table in section.tables)]

    def _speed(self) -> TableOf:
        header = ["load", "unit"]
        for one in self.ours:
            header += [f"at {one.latency_ms} ms", "tgt beside", "x tgt"]
        header.append("aim")
        lines = []
        for row in self.rows:
            cells = [row.name, row.unit]
            for one in self.ours:
                found, theirs = one.results.get(row.name), one.tgt.get(row.name)
                cells += [_rate(found), _rate(theirs), f"{found.rate / theirs.rate:.2f}" if found and theirs else DASH]
            lines.append([*cells, f"{row.target:,.0f}" if row.target else DASH])
            if row.name == FLUSH:
                alone = [cell for one in self.ours for cell in (f"{mean(one.disk_flushes):,.0f}", DASH, DASH)]
                lines.append(["  the journal's disk alone", "op/s", *alone, DASH])
        return "Speed: median of the runs (± half the spread)", header, lines

    def _latency(self) -> TableOf:
        header = ["commands"]
        for one in self.ours:
            header += [f"p50 at {one.latency_ms} ms", "p99", "p99.9", "tgt p50", "p99", "p99.9"]
        header.append("aim p99")
        lines = []
        for probe in PROBES:
            cells = [probe.name]
            for one in self.ours:
                for runs in (one.latencies[probe.name], one.tgt_latencies.get(probe.name, [])):
                    for values in ([run.p50 for run in runs], [run.p99 for run in runs], [run.p999 for run in runs]):
                        cells.append(f"{median(values):,.0f}" if values else DASH)
            lines.append([*cells, "100" if probe.depth == 1 else DASH])
        return "Latency: microseconds, median of the runs, with the initiator's share", header, lines

    def _cpu(self) -> TableOf:
        header = ["load"]
        for one in self.ours:
            header += [f"front at {one.latency_ms} ms", "worker", "store busy", "tgt"]
        header.append("qemu-img")
        lines = []
        for row in self.rows:
            cells = [row.name]
            for one in self.ours:
                found, theirs = one.results[row.name], one.tgt.get(row.name)
                cells += [f"{found.target_us:.1f}", f"{found.worker_us:.1f}", f"{found.store_share:.0%}"]
                cells.append(f"{theirs.target_us:.1f}" if theirs else DASH)
            lines.append([*cells, f"{mean(one.results[row.name].initiator_us for one in self.ours):.1f}"])
        return "CPU: microseconds per operation; the store as a share of one core", header, lines

    def _traffic(self) -> TableOf:
        header = [
            "work",
            "latency",
            "host MiB",
            "PUT",
            "GET",
            "PUT/GiB",
            "GET/GiB",
            "bytes per byte",
            "MiB/s",
            "CPU s/GiB",
        ]
        lines = []
        for one in self.ours:
            for item in one.traffic:
                mebibytes = item.host_bytes / MIB
                cpu = (item.front_cpu_s + item.worker_cpu_s) * 1024 / mebibytes
                lines.append(
                    [
                        item.name,
                        f"{one.latency_ms} ms",
                        f"{mebibytes:,.0f}",
                        f"{item.stats.puts:,}",
                        f"{item.stats.gets:,}",
                        f"{item.puts_per_gib:,.0f}",
                        f"{item.gets_per_gib:,.0f}",
                        f"{item.amplification:.2f}",
                        f"{mebibytes / item.seconds:,.0f}" if item.seconds else DASH,
                        f"{cpu:.1f}",
                    ]
                )
        return "At the store: writes until everything was in the bucket, half compressible content", header, lines

    def lines(self) -> list[str]:
        """What the tables leave unsaid."""
        puts, gets = self.store_ceiling
        shares = [result.store_share for one in self.ours for result in one.results.values()]
        lines = [f"{name}: {value}" for name, value in self.machine.items()]
        for section in self.sections:
            lines += section.lines
        lines.append(
            f"the store alone carries {puts:,.0f} MiB/s of 1 MiB PUTs and {gets:,.0f} GETs of 64 KiB a second to one client"
            + (f"; in the rows of speed it was busy for {max(shares):.0%} of a core at most" if shares else "")
        )
        for one in self.ours:
            lines.append(
                f"at {one.latency_ms} ms: attach {one.attach_s:.1f} s, peak memory {one.peak_memory_bytes / MIB:,.0f} MiB "
                f"(front and worker), {one.in_flight_max} requests in flight at most"
            )
        if self.tgt_missing and self.ours:
            lines.append(f"tgt was left out: {self.tgt_missing}")
        lines += self.notes
        lines.append(f"all of it took {self.seconds:.0f} s")
        return lines

    def markdown(self) -> str:
        parts = ["# Benchmark", ""]
        for title, header, rows in self.tables():
            parts += [f"## {title}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
            parts += [*map(_line, rows), ""]
        return "\n".join([*parts, *(f"- {line}" for line in self.lines()), ""])

    def document(self) -> dict[str, object]:
        return {
            "machine": self.machine,
            "plan": asdict(self.plan),
            "latencies": [
                {
                    "latency_ms": one.latency_ms,
                    "attach_s": one.attach_s,
                    "peak_memory_bytes": one.peak_memory_bytes,
                    "disk_flushes_per_s": one.disk_flushes,
                    "in_flight_max": one.in_flight_max,
                    "results": {name: _result(result) for name, result in one.results.items()},
                    "tgt": {name: _result(result) for name, result in one.tgt.items()},
                    "latencies_us": {name: list(map(asdict, runs)) for name, runs in one.latencies.items()},
                    "tgt_latencies_us": {name: list(map(asdict, runs)) for name, runs in one.tgt_latencies.items()},
                    "traffic": [
                        {
                            **asdict(item),
                            "puts_per_gib": item.puts_per_gib,
                            "gets_per_gib": item.gets_per_gib,
                            "bytes_per_byte": item.amplification,
                        }
                        for item in one.traffic
                    ],
                }
                for one in self.ours
            ],
            "sections": {section.name: section.document for section in self.sections},
            "tgt_missing": self.tgt_missing,
            "store_ceiling": {"put_mib_per_s": self.store_ceiling[0], "get_64k_per_s": self.store_ceiling[1]},
            "seconds": self.seconds,
            "notes": self.notes,
        }

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bench.json").write_text(json.dumps(self.document(), indent=2) + "\n")
        (directory / "bench.md").write_text(self.markdown())

    def show(self, console: Console) -> None:
        for title, header, rows in self.tables():
            table = Table(title=title, title_justify="left")
            for number, name in enumerate(header):
                table.add_column(name, justify="right" if number else "left", no_wrap=not number)
            for cells in rows:
                table.add_row(*cells)
            console.print(table)
        for line in self.lines():
            console.print(line, highlight=False)


def _rate(result: Result | None) -> str:
    return f"{result.rate:,.0f} ±{result.spread / 2:.0%}" if result else DASH


def _result(result: Result) -> dict[str, object]:
    return {**asdict(result), "rate": result.rate, "spread": result.spread}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
