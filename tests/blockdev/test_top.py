"""`s3block top`: rates between two looks, and how they are shown."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from blockdev.latency import READ, WRITE, Latency
from blockdev.rates import MONTH_S, Rates, rates
from blockdev.top_command import compact, plain_line, table
from s3core.exit_codes import ExitCode
from tests.blockdev.command import command

AWS = {"currency": "USD", "per_1000_put": 0.005, "per_1000_get": 0.0004, "per_gib_month": 0.023, "per_gib_egress": 0.09}


def status(uptime: float, latency: Latency, **more: Any) -> dict[str, Any]:
    front = dict.fromkeys(("reads", "writes", "flushes", "read_bytes", "write_bytes", "read_hits"), 0.0)
    front |= {"rpo_bytes": 4096.0, "rpo_seconds": 1.5, "journal_fill": 0.25}
    worker = {"store.requests_put_if_absent": 0.0, "store.bytes_up": 0.0, "store_reachable": 1.0}
    told = {"name": "vm1", "state": "ready", "pid": 7, "uptime_seconds": uptime, "sessions": [], "prices": AWS}
    told |= {"latency": latency.snapshot()}
    front |= more.pop("front", {})
    worker |= more.pop("worker", {})
    return told | {"front": front, "worker": worker} | more


def test_rates_are_changes_over_the_daemons_own_time() -> None:
    latency = Latency()
    latency.record(WRITE, 1000)
    before = status(10.0, latency, front={"reads": 100.0}, worker={"store.requests_put_if_absent": 10.0})
    latency.record(READ, 3_000_000, 99)
    latency.record(WRITE, 3_000_000_000)
    after = status(
        12.0,
        latency,
        front={"reads": 300.0, "read_hits": 150.0, "write_bytes": 8192.0},
        worker={"store.requests_put_if_absent": 1010.0, "store.bytes_up": 4e6},
    )
    row = rates(before, after)
    assert (row["reads_per_second"], row["write_bytes_per_second"], row["hit_share"]) == (100.0, 4096.0, 0.75)
    assert (row["requests_per_second"], row["up_bytes_per_second"]) == (500.0, 2e6)
    assert row["request_cost_per_month"] == pytest.approx(0.005 / 2 * MONTH_S)
    assert (row["rpo_bytes"], row["rpo_seconds"], row["journal_fill"]) == (4096.0, 1.5, 0.25)
    assert isinstance(row["p50_seconds"], float)
    assert isinstance(row["p99_seconds"], float)
    assert 0.002 < row["p50_seconds"] < 0.0042
    assert row["p99_seconds"] == pytest.approx(0.004194304)
    assert row["write_p50_seconds"] == pytest.approx(3.2, rel=0.5)
    assert row["flush_p50_seconds"] is None


@pytest.mark.parametrize("before", [None, {"pid": 6}, {"uptime_seconds": 13.0}])
def test_without_a_past_there_are_no_rates(before: dict[str, Any] | None) -> None:
    after = status(12.0, Latency())
    row = rates(before if before is None else status(1.0, Latency()) | before, after)
    assert row["reads_per_second"] is None
    assert row["p50_seconds"] is None
    assert row["request_cost_per_month"] is None
    assert row["rpo_bytes"] == 4096.0


def test_no_price_is_no_cost() -> None:
    after = status(12.0, Latency(), prices={"currency": "USD"})
    row = rates(status(10.0, Latency()), after)
    assert (row["request_cost_per_month"], row["currency"]) == (None, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.04, "0"),
        (0.3, "0.3"),
        (9.94, "9.9"),
        (9.96, "10"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (12345, "12k"),
        (3.4e6, "3.4M"),
        (9.996e5, "1.0M"),
    ],
)
def test_compact_numbers(value: float | None, text: str) -> None:
    assert compact(value) == text


BUSY: Rates = {
    "name": "a-volume-with-quite-a-long-name",
    "state": "ready",
    "reads_per_second": 123456.0,
    "writes_per_second": 123456.0,
    "read_bytes_per_second": 1e9,
    "write_bytes_per_second": 1e9,
    "p50_seconds": 0.00021,
    "p99_seconds": 0.0123,
    "hit_share": 1.0,
    "rpo_seconds": 312.0,
    "rpo_bytes": 800 * 2.0**20,
    "journal_fill": 1.0,
    "requests_per_second": 1234.0,
    "request_cost_per_month": 1234.0,
    "currency": "EUR",
    "store_reachable": 1.0,
}


def drawn(rows: list[Rates], width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(table(rows, width))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_figure_fits(width: int) -> None:
    lines = drawn([BUSY, {"name": "old", "state": "not served"}, BUSY | {"name": "x", "store_reachable": 0.0}], width)
    assert len(lines) == (5 if width < 100 else 4)
    assert max(map(len, lines)) <= width
    *_, busy, old, away = lines
    for part in ("ready", "123k", "954", "0.21", "12", "100%", "312", "800M", "1.2k"):
        assert part in busy
    assert "…" not in busy.partition("ready")[2]
    assert old.split()[:3] == ["old", "not", "served"]
    assert "no store" in away
    assert "EUR/mo" in "".join(lines[:2])


def test_volumes_in_several_currencies_name_them() -> None:
    lines = drawn([BUSY, BUSY | {"currency": "USD"}], 120)
    assert "COST/mo" in lines[0]
    assert [line.rpartition(" ")[2] for line in lines[1:]] == ["EUR", "USD"]


def test_a_plain_line_is_for_scripts() -> None:
    row: Rates = {"name": "vm1", "state": "not served", "failure": "no daemon serves it"}
    assert plain_line(12.6, row) == "time=13 volume=vm1 state=not-served"
    line = plain_line(1.0, {"name": "vm1", "state": "ready", "rpo_seconds": 0.25, "hit_share": None, "currency": "USD"})
    assert line == "time=1 volume=vm1 state=ready rpo_seconds=0.25 currency=USD"


def test_volumes_nobody_serves_and_folders_without_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "none.toml"))
    s3block = command(capsys)
    said = s3block("top", "--state-dir", tmp_path, "--count", 1, "--interval", "100ms")
    assert said.code == ExitCode.REFUSED
    assert "no volume has been served" in said.err
    (tmp_path / "vm2").mkdir()
    (tmp_path / "vm2" / "lock").touch()
    (tmp_path / "vm2" / "journal").touch()
    said = s3block("top", "--state-dir", tmp_path, "--count", 2, "--interval", "100ms", "--json")
    assert said.code == 0
    looks = [json.loads(line) for line in said.out.splitlines()]
    assert [look["volumes"][0]["state"] for look in looks] == ["not served"] * 2
    said = s3block("top", f"file://{tmp_path}/vm3", "--state-dir", tmp_path, "--count", 1, "--interval", "100ms")
    assert said.out.endswith(" volume=vm3 state=not-served\n")
    assert s3block("top", "--interval", "1ms").code == ExitCode.USAGE
