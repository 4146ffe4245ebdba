"""A run that is kept: its page and pictures in `.results`, or in docs/, where README shows four or five of its figures.

One rule: every figure in docs/peers and in README's section is of one run, whose values lie beside the page; a test draws all
of it again and compares.

    python -m bench.peers.publish      draws the run that is published again, after a change of words or plots
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.peers import figures, names, plots, report
from bench.peers.figures import DOLLARS_PER_GIB, PEAK_MIB, PUTS_PER_GIB, Figure, Run
from bench.peers.verdict import REFERENCE_MS, decisive, near, number, pairs_of_mirrors, summary, verdicts

NAME: Final = "peers"
ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = Path("docs") / NAME
HEADING: Final = "## Beside its peers"
"""Of the section of README.md that is the published run's; nobody edits it by hand."""
BEFORE: Final = "## Where to read next"
"""The heading that it is put before, the first time."""
_SECTION: Final = re.compile(f"^{re.escape(HEADING)}\n.*?(?=^## |\\Z)", re.MULTILINE | re.DOTALL)
LISTED: Final = "| how fast it is, and how to measure it yourself | [benchmarks.md](benchmarks.md) |\n"
LINK: Final = "| how fast and cheap it is beside its peers, on one machine, in one run | [peers/](peers/README.md) |\n"


def keep(run: Run, results: Path) -> list[Path]:
    """Write peers.json, peers.md and the pictures below `results`; the files."""
    kept = results / f"{NAME}.json"
    figures.dump(run, kept)
    return [kept, *redraw(run, results)]


def redraw(run: Run, results: Path) -> list[Path]:
    """As `keep`, without the values."""
    page = results / f"{NAME}.md"
    results.mkdir(parents=True, exist_ok=True)
    drawn = plots.plots(run)
    page.write_text(report.markdown(run, drawn, f"{NAME}/"))
    return [page, *plots.save(drawn, results / NAME)]


def publish(run: Run, root: Path, folder: Path) -> list[Path]:
    """Make this run the one that the documents of the tree at `root` show; the files written. `folder`: docs/peers."""
    folder = root / folder
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.plots(run)
    files = {folder / name: text for name, text in pages(run, drawn).items()}
    readme, contents = root / "README.md", root / "docs" / "README.md"
    files[readme] = with_section(readme.read_text(encoding="utf-8"), run)
    files[contents] = with_link(contents.read_text(encoding="utf-8"))
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    figures.dump(run, folder / f"{NAME}.json")
    return [*files, folder / f"{NAME}.json", *plots.save(drawn, folder)]


def pages(run: Run, drawn: list[plots.Plot]) -> dict[str, str]:
    """The texts of docs/peers by their names."""
    return {"README.md": report.markdown(run, drawn)}


# --- README.md -----------------------------------------------------------------------------------------------


def section(run: Run) -> str:
    """What README.md shows: a table of five lines at most, the machine, the date, and where the rest is."""
    machine = run.machine.get("processor", "a machine")
    lines = [
        HEADING,
        "",
        "| | Bucketworks | beside it |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {ours} | {theirs} |" for what, ours, theirs in headlines(run)),
        "",
        f"One run of `make bench-peers`, {run.date}, {machine}: {summary(verdicts(run))}.",
        "[All of it, with settings, traps and plots](docs/peers/README.md).",
        "",
        "",
    ]
    return "\n".join(lines)


def with_section(readme: str, run: Run) -> str:
    """README.md with that run in the place of the one that was there. ValueError if it has no place."""
    drawn = section(run)
    if section_of(readme):
        return _SECTION.sub(lambda _: drawn, readme, count=1)
    if f"\n{BEFORE}\n" not in readme:
        raise ValueError(f"README.md has no heading {BEFORE!r} to put the figures before")
    return readme.replace(BEFORE, f"{drawn}{BEFORE}", 1)


def section_of(readme: str) -> str:
    """The section as README.md has it; empty if it has none."""
    found = _SECTION.search(readme)
    return found[0] if found else ""


def with_link(contents: str) -> str:
    """docs/README.md with a row for the page of the run. ValueError if the table has changed."""
    if "(peers/README.md)" in contents:
        return contents
    if LISTED not in contents:
        raise ValueError(f"docs/README.md has no row {LISTED.strip()!r} to put the run beside")
    return contents.replace(LISTED, LISTED + LINK, 1)


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """What counts most: words, ours, theirs. What was not measured is left out."""
    return [row for row in (_writes(run), _puts(run), _cold(run), _warm(run), _mirror(run)) if row is not None]


Row = tuple[str, str, str]


def _seen(figure: Figure) -> str:
    unit = {names.OPS: "/s"}.get(figure.unit, f" {figure.unit}")
    return f"{number(figure.value)}{unit}"


def _pair(run: Run, load: str, peer: str, latency_ms: int) -> tuple[Figure, Figure] | None:
    ours, theirs = near(run, load, names.OURS, latency_ms), near(run, load, peer, latency_ms)
    return (ours, theirs) if ours and theirs else None


def _with_s3backer(run: Run, value: Callable[[Figure], float | None]) -> tuple[Figure, Figure, str] | None:
    """Ours beside that of s3backer's two settings with the greater value, and its name."""
    pairs = [
        (pair, value(pair[1]))
        for peer in (names.S3BACKER_TUNED, names.S3BACKER_PACKAGED)
        if (pair := _pair(run, names.random_write(1), peer, REFERENCE_MS))
    ]
    known = [(pair, found) for pair, found in pairs if found is not None]
    if not known:
        return None
    (ours, theirs), _ = max(known, key=lambda one: one[1])
    return ours, theirs, theirs.system.replace(" ", ", ", 1)


def _writes(run: Run) -> Row | None:
    found = _with_s3backer(run, lambda figure: figure.value)
    if found is None:
        return None
    what = f"4K random writes, one at a time, store at {REFERENCE_MS} ms"
    return what, _seen(found[0]), f"{_seen(found[1])} ({found[2]})"


def _puts(run: Run) -> Row | None:
    def fewest(figure: Figure) -> float | None:
        return -figure.facts[PUTS_PER_GIB] if PUTS_PER_GIB in figure.facts else None

    found = _with_s3backer(run, fewest)
    if found is None or PUTS_PER_GIB not in found[0].facts:
        return None
    cells = []
    for figure in found[:2]:
        dollars = figure.facts.get(DOLLARS_PER_GIB)
        price = "" if dollars is None else f", ${number(dollars)}"
        cells.append(f"{number(figure.facts[PUTS_PER_GIB])}{price}")
    return "PUTs for each GiB of them, and what they cost", cells[0], f"{cells[1]} ({found[2]})"


def _cold(run: Run) -> Row | None:
    pair = _pair(run, names.SEQUENTIAL_READ, names.BARE_CLIENT, REFERENCE_MS)
    if pair is None:
        return None
    return (
        f"cold sequential reads, store at {REFERENCE_MS} ms",
        _seen(pair[0]),
        f"{_seen(pair[1])} (all the store gives)",
    )


def _warm(run: Run) -> Row | None:
    pair = _pair(run, names.warm_read(32) + names.QEMU_IMG, names.TGT, 0)
    return pair and ("warm 4K reads, 32 at once", _seen(pair[0]), f"{_seen(pair[1])} (tgt on a local file)")


def _mirror(run: Run) -> Row | None:
    pairs = pairs_of_mirrors(run)
    if not pairs:
        return None
    ours, theirs, _ = decisive(pairs)
    cells = []
    for figure in (ours, theirs):
        peak = figure.facts.get(PEAK_MIB)
        cells.append(_seen(figure) + ("" if peak is None else f", {number(peak)} MiB of memory"))
    return "what changed in a bucket", cells[0], f"{cells[1]} (rclone)"


def main() -> None:
    kept = ROOT / FOLDER / f"{NAME}.json"
    if not kept.exists():
        print(f"no run is published in {FOLDER}")
        return
    for file in publish(figures.load(kept), ROOT, FOLDER):
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
