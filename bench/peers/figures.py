"""What a run beside the peers found, as values: the one model that every part fills and the report draws.

One rule: a part only measures; ratios, medians, verdicts and pictures are made from these values, so that a run that was
kept can be drawn again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

FORMAT: Final = 1

DOLLARS_PER_GIB: Final = "dollars_per_gib"
PUTS_PER_GIB: Final = "puts_per_gib"
GETS_PER_GIB: Final = "gets_per_gib"
UP_PER_BYTE: Final = "up_per_byte"
DOWN_PER_BYTE: Final = "down_per_byte"
P50_US: Final = "p50_us"
P99_US: Final = "p99_us"
P999_US: Final = "p999_us"
CPU_US: Final = "cpu_us"
"""Of the system's own processes, for each operation."""
CPU_S_PER_GIB: Final = "cpu_s_per_gib"
PEAK_MIB: Final = "peak_mib"
REQUESTS: Final = "requests"


@dataclass(frozen=True, slots=True)
class Figure:
    """One load on one system at one latency of the store. `values`: the rate (or time) of each run, in `unit`.

    `facts`: what was counted beside it, under the names above where they fit; of all runs together, per unit. What was not
    measured is absent, never 0. `load` and `system` are the words of the report.
    """

    load: str
    system: str
    latency_ms: int
    unit: str
    values: tuple[float, ...]
    less_is_better: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> float:
        """Lowest to highest run, as a share of the median."""
        return (max(self.values) - min(self.values)) / self.value if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A question of correctness put to one system. `passed` None: it could not be asked, `said` tells why."""

    question: str
    system: str
    passed: bool | None
    said: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one hot path goes: text, as a profiler printed it, shortened. `samples`: how many it rests on."""

    path: str
    tool: str
    samples: int
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the run found. `missing`: why it, or some of its systems, could not be measured; one line each."""

    name: str
    title: str
    figures: Sequence[Figure] = ()
    outcomes: Sequence[Outcome] = ()
    profiles: Sequence[Profile] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One whole run. `machine`: processor, system, load before; `systems`: version and settings of each system measured."""

    date: str
    machine: Mapping[str, str]
    systems: Mapping[str, str]
    parts: Sequence[Part]
    notes: Sequence[str] = ()
    seconds: float = 0.0

    def figures(self, load: str) -> list[Figure]:
        return [figure for part in self.parts for figure in part.figures if figure.load == load]

    def find(self, load: str, system: str, latency_ms: int) -> Figure | None:
        """The figure of that load on that system, or None if it was not measured."""
        return next((f for f in self.figures(load) if (f.system, f.latency_ms) == (system, latency_ms)), None)


def dump(run: Run, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"format": FORMAT, **asdict(run)}, indent=1) + "\n")


def load(file: Path) -> Run:
    """A run that was kept. ValueError if it is of another format."""
    kept = json.loads(file.read_text())
    if kept.pop("format") != FORMAT:
        raise ValueError(f"{file} was written by another version: run `make bench-peers` again")
    return Run(**{**kept, "parts": [_part(part) for part in kept["parts"]]})


def _part(kept: dict[str, Any]) -> Part:
    return Part(
        **{
            **kept,
            "figures": [Figure(**{**one, "values": tuple(one["values"])}) for one in kept["figures"]],
            "outcomes": [Outcome(**one) for one in kept["outcomes"]],
            "profiles": [Profile(**one) for one in kept["profiles"]],
        }
    )
