"""Pictures of a run, as SVG: one idea each, readable on light and dark pages and without colours.

One rule: the same run gives the same bytes, so a picture changes in the tree only when its figures do. Whatever a run did
not measure is left out, and a plot of which nothing is left is not drawn.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.peers import names
from bench.peers.figures import DOLLARS_PER_GIB, PEAK_MIB, PUTS_PER_GIB, Figure, Run
from bench.peers.verdict import REFERENCE_MS, decisive, near, number, pairs_of_mirrors

INK: Final = "#1f2933"
PALE: Final = "#6b7785"
GRID: Final = "#e3e7eb"
WIDTH: Final = 8.0
COLOURS: Final[Mapping[str, str]] = {
    names.OURS: "#0072b2",
    names.OURS_FLUSH_S3: "#56b4e9",
    names.S3BACKER_TUNED: "#d55e00",
    names.S3BACKER_PACKAGED: "#b8860b",
    names.S3BACKER_FILE: "#cc79a7",
    names.S3BACKER_SYNC: "#8c4a6b",
    names.NBDKIT: "#009e73",
    names.NBDKIT_CACHE: "#4f7f3f",
    names.TGT: "#4a5560",
    names.BARE_CLIENT: "#7b8794",
    names.COWSYNC: "#0072b2",
    names.RCLONE: "#d55e00",
}
"""After Okabe and Ito: told apart with any colour vision; every line and bar has its name beside it as well."""
STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "bucketworks",
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": PALE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: its file's name without suffix, its heading, what it shows in words, and its SVG."""

    name: str
    title: str
    words: str
    svg: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """One system's points, left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False

    @property
    def colour(self) -> str:
        return colour(self.name)


def plots(run: Run) -> list[Plot]:
    """All that the run has figures for, in the order of the page."""
    with mpl.rc_context(STYLE):
        drawn = [draw(run) for draw in DRAWN]
    return [plot for plot in drawn if plot is not None]


def save(drawn: Iterable[Plot], folder: Path) -> list[Path]:
    """Write them; pictures of another run that are not among them go."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{plot.name}.svg": plot.svg for plot in drawn}
    for old in folder.glob("*.svg"):
        if old not in files:
            old.unlink()
    for file, content in files.items():
        file.write_bytes(content)
    return list(files)


def colour(system: str) -> str:
    """The system's own, or that of the system whose name its name begins with."""
    if system in COLOURS:
        return COLOURS[system]
    found = [name for name in COLOURS if system.startswith(name)]
    return COLOURS[max(found, key=len)] if found else PALE


# --- pieces --------------------------------------------------------------------------------------------------


def _canvas(height: float, title: str, panels: int = 1, **options: Any) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(WIDTH, height))
    FigureCanvasSVG(canvas)
    drawn = canvas.subplots(1, panels, squeeze=False, **options)[0]
    canvas.text(0.012, 1 - 0.1 / height, title, fontsize=12, fontweight="bold", va="top", ha="left")
    return canvas, list(drawn)


def _svg(canvas: Canvas, *, left: float, right: float, bottom: float, top: float = 0.5, wspace: float = 0.3) -> bytes:
    """Margins in inches, as text has a size of its own."""
    width, height = canvas.get_size_inches()
    canvas.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, wspace=wspace)
    kept = io.BytesIO()
    canvas.savefig(kept, format="svg", metadata={"Date": None, "Creator": None})
    text = kept.getvalue().decode()
    # The font that was measured is not everywhere; these are about as wide.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Geneva, sans-serif")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines()).encode()


def _thousands(value: float, _: int = 0) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Places for labels that want to be at `values`: in the same order, at least `gap` from each other, moved as a
    group and no further than it takes."""
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[tuple[list[int], float]] = []
    for index in order:
        groups.append(([index], values[index]))
        while len(groups) > 1 and _edge(groups[-2], gap, 1) + gap > _edge(groups[-1], gap, -1):
            last = groups.pop()[0]
            before = groups.pop()[0]
            members = before + last
            middle = sum(values[one] - place * gap for place, one in enumerate(members)) / len(members)
            groups.append((members, middle + (len(members) - 1) * gap / 2))
    found = [0.0] * len(values)
    for members, middle in groups:
        for place, one in enumerate(members):
            found[one] = middle + (place - (len(members) - 1) / 2) * gap
    return found


def _edge(group: tuple[list[int], float], gap: float, side: int) -> float:
    members, middle = group
    return middle + side * (len(members) - 1) / 2 * gap


def _lines(axes: Axes, lines: Sequence[Line], places: Sequence[float], labels: Sequence[str], *, log: bool) -> None:
    """Lines over places that are as far apart as they look, named at their right ends."""
    at = {place: number_of_place for number_of_place, place in enumerate(places)}
    heights = [y for line in lines for _, y in line.points]
    low, high = min(heights), max(heights)
    if log:
        axes.set_yscale("log")
        low, high = low / 1.7, high * 1.7
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = 0, high * 1.08
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.set_xlim(-0.15, len(places) - 0.85)
    axes.set_xticks(range(len(places)), labels)
    axes.tick_params(length=0, pad=6)
    axes.grid(axis="y")
    scale: Callable[[float], float] = math.log if log else float
    inches = axes.get_figure().get_size_inches()[1] - 1.05  # type: ignore[union-attr]  # the canvas is there
    gap = (scale(high) - scale(low)) * 0.17 / inches
    ends = apart([scale(line.points[-1][1]) for line in lines], gap)
    for line, end in zip(lines, ends, strict=True):
        ours = line.name in (names.OURS, names.COWSYNC)
        axes.plot(
            [at[x] for x, _ in line.points],
            [y for _, y in line.points],
            color=line.colour,
            linewidth=2.6 if ours else 1.6,
            linestyle=(0, (4, 3)) if line.dashed else "-",
            marker=None if line.dashed else "o",
            markersize=5 if ours else 4,
            zorder=4 if ours else 3,
            clip_on=False,
        )
        axes.annotate(
            f"{line.name}  {number(line.points[-1][1])}",
            xy=(at[line.points[-1][0]], line.points[-1][1]),
            xytext=(len(places) - 0.86, math.exp(end) if log else end),
            color=line.colour,
            fontsize=9,
            fontweight="bold" if ours else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 4}
            if abs(end - scale(line.points[-1][1])) > gap / 2 or at[line.points[-1][0]] < len(places) - 1
            else None,
        )


def _bars(axes: Axes, values: Sequence[tuple[str, float]], *, prefix: str = "", unit: str = "") -> None:
    """Bars from the top down, each with its name before it and its figure behind."""
    for place, (name, value) in enumerate(values):
        ours = name.split(",")[0] in (names.OURS, names.COWSYNC)
        axes.barh(-place, value, height=0.62, color=colour(name), alpha=1.0 if ours else 0.85)
        axes.annotate(
            f"{prefix}{number(value)}{unit}",
            xy=(value, -place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold" if ours else "normal",
            annotation_clip=False,
        )
    axes.set_yticks([-place for place in range(len(values))], [name for name, _ in values])
    for label, (name, _) in zip(axes.get_yticklabels(), values, strict=True):
        label.set_color(INK)
        if name.split(",")[0] in (names.OURS, names.COWSYNC):
            label.set_fontweight("bold")
    axes.set_xlim(0, max(value for _, value in values) * 1.02)
    axes.xaxis.set_major_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(-len(values) + 0.45, 0.55)


def _systems(figures: Iterable[Figure]) -> list[str]:
    seen = list(dict.fromkeys(figure.system for figure in figures))
    order = {system: place for place, system in enumerate(names.SYSTEMS)}
    return sorted(seen, key=lambda system: order.get(system, len(order)))


def _by_latency(run: Run, load: str, without: Sequence[str] = ()) -> tuple[list[Line], list[int]]:
    figures = [figure for figure in run.figures(load) if figure.system not in without and figure.value > 0]
    places = sorted({figure.latency_ms for figure in figures})
    lines = []
    for system in _systems(figures):
        points = sorted((figure.latency_ms, figure.value) for figure in figures if figure.system == system)
        if system == names.TGT and len(points) == 1:
            # It knows no store: what it does at one latency it does at all.
            points = [(place, points[0][1]) for place in places]
        lines.append(Line(system, points, dashed=system in (names.TGT, names.BARE_CLIENT)))
    return lines, places


# --- the plots -----------------------------------------------------------------------------------------------


def write_rates(run: Run) -> Plot | None:
    load = names.random_write(1)
    lines, places = _by_latency(run, load)
    if not lines:
        return None
    canvas, (axes,) = _canvas(4.2, "4K random writes, one at a time: operations per second")
    _lines(axes, lines, places, [f"{place} ms" for place in places], log=True)
    axes.set_xlabel("time the store takes for each answer")
    words = (
        "4K random writes on a full volume, queue depth 1, by distance of the store; a logarithmic scale."
        " The dashed line is a disk of this host."
    )
    return Plot("write-iops", "4K random writes", words, _svg(canvas, left=0.65, right=2.2, bottom=0.55))


def puts(run: Run) -> Plot | None:
    return _cost(
        run,
        PUTS_PER_GIB,
        "puts-per-gib",
        "PUTs for each GiB of 4K random writes",
        "How many PUTs the store sees for each GiB of 4K random writes. Less is better.",
    )


def dollars(run: Run) -> Plot | None:
    return _cost(
        run,
        DOLLARS_PER_GIB,
        "dollars-per-gib",
        "Dollars for each GiB of 4K random writes",
        "What the requests for each GiB of 4K random writes cost, at AWS's prices. Less is better.",
        prefix="$",
    )


def _cost(run: Run, fact: str, name: str, title: str, words: str, prefix: str = "") -> Plot | None:
    load = names.random_write(1)
    found = {figure.system: figure.facts[fact] for figure in _nearest(run, load) if figure.facts.get(fact, 0) > 0}
    if not found:
        return None
    values = sorted(found.items(), key=lambda item: item[1])
    canvas, (axes,) = _canvas(0.75 + 0.36 * len(values), title)
    _bars(axes, values, prefix=prefix)
    return Plot(name, title, words, _svg(canvas, left=1.75, right=0.9, bottom=0.12))


def _nearest(run: Run, load: str) -> list[Figure]:
    """Each system's figure at the reference latency, or whichever was measured nearest to it."""
    figures = run.figures(load)
    at = min({figure.latency_ms for figure in figures}, key=lambda ms: abs(ms - REFERENCE_MS), default=REFERENCE_MS)
    return [figure for figure in figures if figure.latency_ms == at]


def cold_reads(run: Run) -> Plot | None:
    depths = [depth for depth in (1, 2, 4, 8, 16, 32, 64) if run.figures(names.cold_read(depth))]
    if len(depths) < 2:
        return None
    figures = {depth: _nearest(run, names.cold_read(depth)) for depth in depths}
    at = next(iter(figures.values()))[0].latency_ms
    lines = []
    for system in _systems(figure for found in figures.values() for figure in found):
        points = [
            (depth, figure.value)
            for depth in depths
            for figure in figures[depth]
            if figure.system == system and figure.value > 0 and figure.latency_ms == at
        ]
        if points and system not in (names.TGT, names.BARE_CLIENT):
            lines.append(Line(system, points))
    if at:
        lines.append(Line("depth / latency", [(depth, depth * 1000 / at) for depth in depths], dashed=True))
    canvas, (axes,) = _canvas(4.2, f"Cold 4K random reads at {at} ms: operations per second")
    _lines(axes, lines, depths, [f"QD{depth}" for depth in depths], log=True)
    axes.set_xlabel("reads in flight")
    words = (
        "Cold 4K random reads by queue depth; a logarithmic scale."
        " The dashed line is one request for each read, all of them in flight."
    )
    return Plot("cold-reads", "Cold random reads", words, _svg(canvas, left=0.65, right=2.2, bottom=0.55))


def sequential(run: Run) -> Plot | None:
    panels = [
        (load, words, *_by_latency(run, load, without=(names.TGT, names.S3BACKER_FILE)))
        for load, words in ((names.SEQUENTIAL_WRITE, "writes"), (names.SEQUENTIAL_READ, "cold reads"))
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    canvas, drawn = _canvas(4.0, "1 MiB in order: MiB per second beside a bare client", len(panels))
    for axes, (_, words, lines, places) in zip(drawn, panels, strict=True):
        _lines(axes, lines, places, [f"{place} ms" for place in places], log=True)
        axes.set_title(words, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("time the store takes for each answer")
    words = (
        "Sequential writes and cold sequential reads of 1 MiB, by distance of the store; a logarithmic scale."
        " The dashed line does nothing but the requests."
    )
    svg = _svg(canvas, left=0.55, right=1.95, bottom=0.55, top=0.75, wspace=1.05)
    return Plot("sequential", "In order", words, svg)


def warm(run: Run) -> Plot | None:
    panels = []
    for words, name in (("reads", names.warm_read), ("writes", names.warm_write)):
        values = []
        for depth in (1, 8, 32):
            for system in (names.OURS, names.TGT):
                figure = near(run, name(depth) + names.QEMU_IMG, system, 0)
                if figure is not None:
                    values.append((f"{system}, QD{depth}", figure.value))
        if values:
            panels.append((words, values))
    if not panels:
        return None
    most = max(len(values) for _, values in panels)
    canvas, drawn = _canvas(0.95 + 0.33 * most, "Warm 4K through iSCSI: operations per second", len(panels))
    for axes, (words, values) in zip(drawn, panels, strict=True):
        shown = [(name.replace(f"{names.TGT},", "tgt,"), value) for name, value in values]
        _bars(axes, shown)
        axes.set_title(words, loc="left", fontsize=10, color=INK)
    words = (
        "Reads and writes of 4K in the local cache and journal, beside tgt on a local file, one right after the other."
    )
    return Plot("warm", "Warm", words, _svg(canvas, left=1.25, right=0.7, bottom=0.12, top=0.72, wspace=0.95))


def mirrors(run: Run) -> Plot | None:
    pairs = pairs_of_mirrors(run)
    if not pairs:
        return None
    ours, fast, frugal = decisive(pairs)
    rates = [(names.COWSYNC, ours.value), (names.RCLONE, fast.value)]
    memory = [(one, figure.facts.get(PEAK_MIB)) for one, figure in ((names.COWSYNC, ours), (names.RCLONE, frugal))]
    kept = [(name, value) for name, value in memory if value]
    canvas, drawn = _canvas(
        1.5, f"{ours.load[0].upper()}{ours.load[1:]}, store at {ours.latency_ms} ms", 2 if kept else 1
    )
    _bars(drawn[0], rates)
    drawn[0].set_title("keys per second", loc="left", fontsize=10, color=INK)
    if kept:
        _bars(drawn[1], kept, unit=" MiB")
        drawn[1].set_title("most memory", loc="left", fontsize=10, color=INK)
    words = (
        "cowsync and rclone tell what changed: keys of the source per second,"
        " and the most memory that all their processes held."
    )
    return Plot(
        "sync", "What changed in a bucket", words, _svg(canvas, left=0.9, right=0.95, bottom=0.1, top=0.72, wspace=0.8)
    )


DRAWN: Final[Sequence[Callable[[Run], Plot | None]]] = (
    write_rates,
    puts,
    dollars,
    cold_reads,
    sequential,
    warm,
    mirrors,
)
