"""The table of budgets, and how it is measured, kept and compared.

One rule: a count above its budget is a failure; one that is a fifth below what was measured asks to be kept, since slack that
nobody keeps is eaten again.
"""

import math
import platform
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.counting import KINDS, Counting, Tally
from tests.guard.operations import Operation

TABLE = Path(__file__).with_name("budget.toml")
TIMES = 3
SLACK_BYTES = 1024
"""On top for memory: a dictionary that grows here or there."""
FELL = 0.8
PYTHON = ".".join(platform.python_version_tuple()[:2])
OF_ONE_PYTHON = ("bytecodes", "peak_bytes")
"""Differ between versions of Python; the others do not."""
HEAD = """\
# What one operation costs: [budget, measured]. A count above its budget fails tests/guard.
# Written by `python -m tests.guard --write`; a commit that raises a figure says why.
"""


@dataclass(frozen=True, slots=True)
class Table:
    python: str
    rows: Mapping[str, Mapping[str, tuple[float, float]]]
    """Operation -> kind of count -> (budget, measured)."""


def load(file: Path = TABLE) -> Table:
    kept = tomllib.loads(file.read_text())
    python = kept.pop("python")
    return Table(
        python,
        {name: {kind: (pair[0], pair[1]) for kind, pair in row.items() if kind != "per"} for name, row in kept.items()},
    )


def measure(operation: Operation) -> dict[str, float]:
    """The counts of one operation, for each unit of its work. The first turn of each run is thrown away: it imports."""
    found: dict[str, float] = {}
    for kind, counting in KINDS.items():
        if kind == "peak_bytes" and not operation.memory:
            continue
        tallies: list[Tally] = []

        @contextmanager
        def around(counting: Counting = counting, tallies: list[Tally] = tallies) -> Iterator[None]:
            tally = Tally()
            with counting(tally):
                yield
            tallies.append(tally)

        with tempfile.TemporaryDirectory(prefix="bucketworks-guard-") as folder:
            requests = operation.run(Path(folder), around, TIMES + 1)
        turns = len(tallies) // (TIMES + 1)
        kept = tallies[turns:]
        if kind == "peak_bytes":
            found[kind] = max(tally.peak_bytes for tally in kept)
        else:
            found[kind] = round(sum(getattr(tally, kind) for tally in kept) / TIMES / operation.per, 2)
        found["requests"] = round(requests / operation.per, 2)
    return found


def budget_of(kind: str, count: float, slack: float) -> float:
    raised = count * slack + (SLACK_BYTES if kind == "peak_bytes" else 0)
    return math.ceil(raised) if kind in OF_ONE_PYTHON else math.ceil(raised * 10) / 10


def write(operations: Sequence[Operation], counts: Mapping[str, Mapping[str, float]], file: Path = TABLE) -> None:
    lines = [HEAD, f'python = "{PYTHON}"']
    for operation in operations:
        lines += ["", f'["{operation.name}"]', f'per = "{operation.unit}"']
        lines += [
            f"{kind} = [{budget_of(kind, count, operation.slack):.10g}, {count:.10g}]"
            for kind, count in counts[operation.name].items()
        ]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    file.write_text(text)


def compare(name: str, counts: Mapping[str, float], table: Table, python: str = PYTHON) -> tuple[list[str], list[str]]:
    """What rose above its budget, and what fell so far that the budget should follow: sentences."""
    rose: list[str] = []
    fell: list[str] = []
    row = table.rows.get(name)
    if row is None:
        return [f"{name} has no budget: run `python -m tests.guard --write`"], []
    for kind, count in counts.items():
        if kind in OF_ONE_PYTHON and python != table.python:
            continue
        budget, measured = row[kind]
        if count > budget:
            rose.append(f"{name}: {kind} {count:.10g}, budget {budget:.10g} (was {measured:.10g})")
        elif count < measured * FELL and not (kind == "peak_bytes" and measured - count < SLACK_BYTES):
            fell.append(f"{name}: {kind} {count:.10g}, was {measured:.10g}: keep it, `python -m tests.guard --write`")
    return rose, fell
