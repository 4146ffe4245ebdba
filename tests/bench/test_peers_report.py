"""The report of a run beside the peers: verdicts by hand, what a page says, the same bytes again, what is published."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench.peers import figures, names, plots, publish, report, verdict
from bench.peers.figures import CPU_US, P99_US, PEAK_MIB, PUTS_PER_GIB, Figure, Outcome, Part, Run
from tests.architecture.tree import ROOT
from tests.bench.peer_run import made

PUBLISHED = ROOT / publish.FOLDER
NOTHING: Mapping[str, float] = {}
RUN = made()
DRAWN = plots.plots(RUN)


def run_of(*measured: Figure) -> Run:
    return Run("now", {}, {}, [Part("block", "Blocks", measured)])


def of(
    load: str,
    system: str,
    value: float,
    latency_ms: int = 20,
    unit: str = names.OPS,
    *,
    facts: Mapping[str, float] = NOTHING,
) -> Figure:
    return Figure(load, system, latency_ms, unit, (value,), facts=facts)


def judged(run: Run, words: str) -> verdict.Verdict:
    found = [row for row in verdict.verdicts(run) if words in row.target]
    assert len(found) == 1, [row.target for row in found]
    return found[0]


# --- verdicts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "met"), [(4999.0, False), (5000.0, True)])
def test_fifty_times_s3backer(ours: float, met: bool) -> None:
    load = names.random_write(1)
    row = judged(run_of(of(load, names.OURS, ours), of(load, names.S3BACKER_TUNED, 100)), "50 x s3backer")
    assert (row.met, row.figure) == (met, "50 x")
    assert f"{ours:,.0f} op/s" in row.said
    assert "100 op/s" in row.said


def test_as_fast_as_the_local_disk_is_not_faster() -> None:
    load = names.random_write(1, names.FLUSH_EACH)
    # tgt knows no store: what was measured at another latency is its figure.
    run = run_of(of(load, names.OURS, 300, facts={CPU_US: 500}), of(load, names.TGT, 300, latency_ms=0))
    row = judged(run, "a flush after each: faster than tgt")
    assert row.met is False
    assert "their runs overlap" in row.said
    assert "15% of one processor" in row.said
    faster = judged(run_of(of(load, names.OURS, 301), of(load, names.TGT, 300)), "a flush after each: faster than tgt")
    assert faster.met
    assert "overlap" not in faster.said


@pytest.mark.parametrize(("ours", "met"), [(20.0, True), (20.1, False)])
def test_a_fiftieth_of_the_puts(ours: float, met: bool) -> None:
    load = names.random_write(1)
    run = run_of(
        of(load, names.OURS, 1, facts={PUTS_PER_GIB: ours}),
        of(load, names.S3BACKER_TUNED, 1, facts={PUTS_PER_GIB: 1000}),
    )
    assert judged(run, "PUTs for each GiB of such writes").met is met


def test_the_latency_at_which_least_of_the_store_is_used_decides() -> None:
    load = names.SEQUENTIAL_READ
    measured = [
        of(load, system, value, latency_ms, names.MIBS)
        for latency_ms, system, value in (
            (0, names.OURS, 99),
            (0, names.BARE_CLIENT, 100),
            (50, names.OURS, 47),
            (50, names.BARE_CLIENT, 50),
        )
    ]
    row = judged(run_of(*measured), "1 MiB cold sequential reads: 95")
    assert (row.met, row.figure) == (False, "94% at 50 ms, the least")
    assert judged(run_of(*measured[:2]), "1 MiB cold sequential reads: 95").met
    assert judged(run_of(*measured), "1 MiB cold sequential reads, link").met is None


def test_cold_reads_are_held_against_depth_and_latency() -> None:
    load = names.cold_read(32)
    row = judged(
        run_of(of(load, names.OURS, 1600), of(load, names.OURS, 639, 50), of(load, names.OURS, 9, 0)), "QD32: depth"
    )
    assert row.met is False
    assert row.figure.endswith("at 50 ms")
    assert judged(run_of(of(load, names.OURS, 1600)), "QD32: depth").met


def test_what_was_measured_side_by_side_decides() -> None:
    load = names.warm_read(8)
    aside = [of(load, names.OURS, 1, 0), of(load, names.TGT, 2, 20)]
    assert judged(run_of(*aside), "reads, QD8: ahead of tgt").met is None
    beside = [of(load + names.QEMU_IMG, system, value, 0) for system, value in ((names.OURS, 31), (names.TGT, 30))]
    row = judged(run_of(*aside, *beside), "reads, QD8: ahead of tgt")
    assert row.met
    assert row.said.endswith("under fio, not side by side: 1 and 2")
    assert "fio" not in judged(run_of(*beside), "reads, QD8: ahead of tgt").said


def test_a_percentile_is_the_worst_of_all_latencies() -> None:
    run = run_of(
        of(names.PROBE, names.OURS, 1, 0, facts={P99_US: 80}), of(names.PROBE, names.OURS, 1, 20, facts={P99_US: 100})
    )
    row = judged(run, "p99 below")
    assert (row.met, row.figure) == (False, "100 us")


def test_a_mirror_is_compared_with_the_fastest_and_with_the_most_frugal() -> None:
    load = "what changed, 1,000 keys"
    run = run_of(
        of(load, "cowsync, 1 process", 500, 0, names.KEYS, facts={PEAK_MIB: 10}),
        of(load, "cowsync, 2 processes", 999, 0, names.KEYS, facts={PEAK_MIB: 20}),
        of(load, "rclone check", 100, 0, names.KEYS, facts={PEAK_MIB: 400}),
        of(load, "rclone sync", 90, 0, names.KEYS, facts={PEAK_MIB: 200}),
        of("alone", "cowsync, 2 processes", 10**6, 0, names.KEYS, facts={PEAK_MIB: 9000}),
    )
    assert judged(run, "10 x rclone").met is False
    assert judged(run, "a tenth of rclone's memory").met
    assert "its least" in judged(run, "a tenth of rclone's memory").said


def test_nothing_measured_is_not_a_verdict() -> None:
    rows = verdict.verdicts(Run("now", {}, {}, []))
    assert {row.met for row in rows} == {None}
    assert all(row.figure == "-" and "needs *" in row.said for row in rows)
    assert verdict.summary(rows) == f"0 of {len(rows)} targets are met, 0 are not, {len(rows)} were not measured"


def test_where_the_time_goes_is_told_of_known_targets_and_only_where_one_is_not_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {row.target: row for row in verdict.verdicts(RUN)}
    assert set(verdict.WHERE_THE_TIME_GOES) <= set(rows)
    lost = next(row for row in rows.values() if row.met is False)
    won = next(row for row in rows.values() if row.met)
    monkeypatch.setattr(verdict, "WHERE_THE_TIME_GOES", {lost.target: "In the cable.", won.target: "In the cable."})
    again = {row.target: row.said for row in verdict.verdicts(RUN)}
    assert again[lost.target].endswith(". In the cable.")
    assert again[won.target] == won.said


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (12345.6, "12,346"), (99.96, "100"), (4.2, "4.2"), (0.0031, "0.0031"), (0.00001, "1.0e-05")],
)
def test_numbers_have_the_digits_that_count(value: float, words: str) -> None:
    assert verdict.number(value) == words


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_is_one_that_a_stranger_can_read() -> None:
    page = report.markdown(RUN, DRAWN, "peers/")
    top = page.partition("## In pictures")[0]
    assert len(top.splitlines()) < 50
    for word in (RUN.date, "Imaginary 1", "waits 0, 5, 20 and 50 ms", "s3block and s3backer tuned", "targets are met"):
        assert word in top
    for plot in DRAWN:
        assert f"](peers/{plot.name}.svg)" in page
    assert "Missing from backup: restic: it is not installed" in page
    assert "| killed under writes, its cache deleted: every flushed write is there | yes | NO | - | yes |" in page
    told = page.partition("- killed under writes, its cache deleted: every flushed write is there\n")[2].splitlines()[
        :4
    ]
    assert told == [
        "  - s3block: yes: 4,096 of 4,096",
        "  - s3backer tuned: **no**: 1,201 of 4,096 flushed writes are lost",
        "  - nbdkit S3: not asked: it has no cache",
        "",
    ]
    # Of others, a yes needs no words.
    assert "tgt, local file: yes" not in page
    assert "mkfs.ext4, s3block: lazy tables off" in page
    assert "```text\nself  function\n 31%  send\n```" in page
    anchors = {
        re.sub(r"[^\w\- ]", "", found.lower()).replace(" ", "-") for found in re.findall(r"^#+ (.+)$", page, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors


def test_options_are_shown_as_code() -> None:
    page = report.markdown(RUN)
    assert "1.5.4; `--blockSize=64k` \\| `--compress`" in page
    assert "| rclone check `--fast-list` |" in page
    assert not re.findall(r"(?<![`\w-])--[a-zA-Z]", page)
    assert report.prose("a `--b` --c") == "a `--b` --c"
    assert report.prose("well--known, 3 -- 4") == "well--known, 3 -- 4"


def test_every_row_of_a_table_has_as_many_cells_as_its_header() -> None:
    blocks = re.findall(r"(?:^\|.*\n)+", report.markdown(RUN, DRAWN), re.M)
    assert len(blocks) > 10
    for block in blocks:
        # A bar in a cell is escaped.
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_the_best_of_a_row_is_bold_and_what_was_not_measured_a_dash() -> None:
    part = Part(
        "block",
        "Blocks",
        (
            Figure("fast", "a", 0, names.OPS, (1.0, 2.0, 3.0)),
            Figure("fast", "b", 0, names.OPS, (4.0,)),
            Figure("fast", names.BARE_CLIENT, 0, names.OPS, (9.0,)),
            Figure("short", "a", 0, names.SECONDS, (1.0,), less_is_better=True),
            Figure("short", "b", 0, names.SECONDS, (2.0,), less_is_better=True),
            Figure("alone", "b", 0, names.OPS, (2.0,)),
        ),
    )
    assert report.rates(part, 0).markdown()[2:] == [
        "| fast | op/s | 9 | 2 ±50% | **4** |",
        "| short | s, less is better | - | **1** | 2 |",
        "| alone | op/s | - | - | 2 |",
    ]


def test_facts_are_told_at_the_reference_latency_with_the_least_in_bold() -> None:
    part = next(part for part in RUN.parts if part.name == "block")
    grid = next(grid for grid in report.fact_tables(part) if grid.title.startswith("PUTs for each GiB"))
    assert grid.title.endswith("store at 20 ms")
    assert grid.markdown()[2].startswith("| 4K random write QD1 | **600** | 262,144 |")


def test_the_terminal_ends_with_the_verdict() -> None:
    kept = io.StringIO()
    report.show(RUN, Console(file=kept, width=150))
    lines = kept.getvalue().splitlines()
    assert lines[-1] == f"{verdict.summary(verdict.verdicts(RUN))}."
    assert any("not met" in line for line in lines)
    assert any("restic: it is not installed" in line for line in lines)


# --- pictures ------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_pictures() -> None:
    assert [plot.svg for plot in plots.plots(made())] == [plot.svg for plot in DRAWN]
    assert len({plot.name for plot in DRAWN}) == len(DRAWN) == len(plots.DRAWN)


@pytest.mark.parametrize("plot", DRAWN, ids=lambda plot: plot.name)
def test_a_picture_names_what_it_shows_and_nothing_of_when_and_where(plot: plots.Plot) -> None:
    root = ElementTree.fromstring(plot.svg)
    said = " ".join("".join(found.itertext()) for found in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "s3block" in said or "cowsync" in said
    assert b"<dc:date>" not in plot.svg
    assert str(Path.cwd()).encode() not in plot.svg
    assert len(plot.svg) < 60_000


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    some = [figure for figure in RUN.parts[0].figures if figure.load == names.random_write(1)]
    drawn = plots.plots(replace(RUN, parts=[Part("block", "Blocks", some)]))
    assert [plot.name for plot in drawn] == ["write-iops", "puts-per-gib", "dollars-per-gib"]
    assert plots.plots(Run("now", {}, {}, [])) == []
    (tmp_path / "old.svg").write_text("of another run")
    plots.save(drawn, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {f"{plot.name}.svg" for plot in drawn}


def test_one_latency_alone_is_drawn() -> None:
    one = Figure(names.random_write(1), names.OURS, 20, names.OPS, (5000.0,))
    zero = Figure(names.random_write(1), names.NBDKIT, 20, names.OPS, (0.0,))
    assert [plot.name for plot in plots.plots(run_of(one, zero))] == ["write-iops"]


def test_labels_keep_their_order_and_a_distance() -> None:
    wanted = [5.0, 1.0, 1.2, 1.1, 9.0]
    places = plots.apart(wanted, 0.5)
    ranked = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert all(after - before >= 0.5 - 1e-9 for before, after in pairwise(ranked))
    assert places[0] == 5.0
    assert sum(places[1:4]) == pytest.approx(sum(wanted[1:4]))


# --- a run that is kept, and one that is published ----------------------------------------------------------


def test_a_run_that_was_kept_is_drawn_the_same(tmp_path: Path) -> None:
    publish.keep(RUN, tmp_path)
    page = (tmp_path / "peers.md").read_bytes()
    (tmp_path / "peers.md").unlink()
    publish.redraw(figures.load(tmp_path / "peers.json"), tmp_path)
    assert (tmp_path / "peers.md").read_bytes() == page
    assert len(list((tmp_path / "peers").glob("*.svg"))) == len(DRAWN)


def test_publishing_replaces_the_section_and_links_the_page_once(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A\n\n## Where to read next\n\nx\n")
    (tmp_path / "docs/README.md").write_text(f"# B\n\n{publish.LISTED}")
    publish.publish(RUN, tmp_path, Path("docs/peers"))
    once = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    publish.publish(RUN, tmp_path, Path("docs/peers"))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == once
    readme = (tmp_path / "README.md").read_text()
    assert publish.section_of(readme) == publish.section(RUN)
    assert readme.endswith("\n\n## Where to read next\n\nx\n")
    assert "| 4K random writes, one at a time, store at 20 ms | 5,200/s | 49/s (s3backer, tuned) |" in readme
    other = replace(RUN, date="2026-02-03")
    assert "2026-02-03" in publish.section_of(publish.with_section(readme, other))
    with pytest.raises(ValueError, match="no heading"):
        publish.with_section("# nothing\n", RUN)
    with pytest.raises(ValueError, match="no row"):
        publish.with_link("# nothing\n")


def test_what_is_published_is_drawn_again_from_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    publish.main()
    assert capsys.readouterr().out == "no run is published in docs/peers\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A\n\n## Where to read next\n")
    (tmp_path / "docs/README.md").write_text(publish.LISTED)
    publish.publish(RUN, tmp_path, publish.FOLDER)
    page = tmp_path / publish.FOLDER / "README.md"
    drawn = page.read_text()
    page.write_text("of another version of this program")
    publish.main()
    assert page.read_text() == drawn
    assert "docs/peers/write-iops.svg" in capsys.readouterr().out


def test_an_empty_run_can_be_published_too() -> None:
    assert publish.headlines(Run("now", {}, {}, [])) == []
    assert "Nothing that was asked for is missing." in report.markdown(Run("now", {}, {}, []))


def test_the_figures_in_the_documents_are_those_of_the_published_run() -> None:
    shown = publish.section_of((ROOT / "README.md").read_text(encoding="utf-8"))
    if not PUBLISHED.exists():
        assert shown == "", "README.md has figures of a run that is not in docs/peers"
        return
    run = figures.load(PUBLISHED / "peers.json")
    assert shown == publish.section(run)
    drawn = plots.plots(run)
    for name, text in publish.pages(run, drawn).items():
        assert (PUBLISHED / name).read_text(encoding="utf-8") == text, f"docs/peers/{name}: run `make docs`"
    assert {file.name for file in PUBLISHED.glob("*.svg")} == {f"{plot.name}.svg" for plot in drawn}


def test_systems_that_nobody_put_in_order_come_last() -> None:
    part = Part("block", "Blocks", (of("x", "other", 1), of("x", names.TGT, 1), of("x", names.OURS, 1)))
    assert report.columns(part) == [names.OURS, names.TGT, "other"]
    asked = Outcome("q", "other", True, "")
    grid = report.correctness(Run("now", {}, {}, [Part("c", "C", outcomes=(asked, replace(asked, system=names.OURS)))]))
    assert grid is not None
    assert grid.header == ["question", names.OURS, "other"]


def test_a_load_that_ran_once_has_no_spread() -> None:
    figure = Figure("load", names.OURS, 20, names.OPS, (1.0,))
    page = report.markdown(Run("now", {}, {}, [Part("block", "Blocks", [figure])]))
    assert "**Runs of each load**: 1; of one run no spread can be told" in page
    page = report.markdown(Run("now", {}, {}, [Part("block", "Blocks", [replace(figure, values=(1.0, 2.0, 3.0))])]))
    assert "**Runs of each load**: 3\n" in page


def test_the_settings_of_s3backer_that_suit_the_load_best_are_those_of_the_overview() -> None:
    load = names.random_write(1)

    def seen(system: str, rate: float, puts: float) -> Figure:
        return Figure(load, system, 20, names.OPS, (rate,), facts={PUTS_PER_GIB: puts})

    ours, tuned = seen(names.OURS, 3000, 600), seen(names.S3BACKER_TUNED, 40, 250_000)
    packaged = seen(names.S3BACKER_PACKAGED, 900, 262_000)
    run = Run("now", {}, {}, [Part("block", "Blocks", [ours, tuned, packaged])])
    writes, puts = publish.headlines(run)
    assert writes[1:] == ("3,000/s", "900/s (s3backer, packaged)")
    assert puts[1:] == ("600", "250,000 (s3backer, tuned)")
    assert "s3backer packaged: 900 op/s" in judged(run, "4K random writes, QD1").said
    (alone, _) = publish.headlines(replace(run, parts=[Part("block", "Blocks", [ours, tuned])]))
    assert alone[2] == "40/s (s3backer, tuned)"
