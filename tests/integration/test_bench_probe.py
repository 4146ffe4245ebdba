"""The benchmark's own initiator: it measures commands that truly ran, and says when they did not."""

from pathlib import Path

import pytest

from bench.probe import PROBES, Probe, Session, measure
from bench.processes import BenchFailed
from tests.protocol.conformance_run import portal

MIB = 1 << 20


def test_every_probe_measures(tmp_path: Path) -> None:
    with portal(tmp_path / "log", "--fast") as (url, _):
        for probe in PROBES:
            found = measure(url, probe, 64 * MIB, 0.5)
            assert found.count > 5
            assert 0 < found.p50 <= found.p99 <= found.p999
            share = 1.0 if probe.writes_of_ten == 10 else 0.9
            assert found.count == pytest.approx(found.commands * share, rel=0.2)
            assert 0 < found.rate < 1_000_000


def test_what_fails_is_not_measured(tmp_path: Path) -> None:
    with portal(tmp_path / "log", "--read-only") as (url, _):
        with pytest.raises(BenchFailed, match="status 0x02 in writes"):
            measure(url, Probe("writes", 4, 10), 64 * MIB, 0.1)
        with pytest.raises(BenchFailed, match="login was refused"):
            Session(url.replace("ram/", "none/"))
