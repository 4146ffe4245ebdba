"""What every tool's page for Prometheus is made with: its registry, and figures of one thing at a time as gauges: a table,
what is collected by it, and its rows in docs/metrics.md.

One rule: a gauge is declared once, in a table of its tool; nothing is kept between two scrapes. A figure that nothing is known
of yet is absent, which is not 0.

Names are `bucketworks_THING_WHAT_UNIT`: THING is volume, mirror, ledger, pve or envctl; UNIT is the base unit (`seconds`,
`bytes`, `ratio`), absent for plain numbers; a counter ends in `_total`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from s3core.console import program_version

BUILD_INFO = "bucketworks_build_info"
BUILD_HELP = "Always 1; its labels say which program answers, and its version"
BUILD_LABELS = ("version", "tool")


@dataclass(frozen=True, slots=True)
class Gauge:
    """`bucketworks_`, what it is of, and the name of its figure. `unit` and `help` are for people."""

    of: str
    figure: str
    unit: str
    help: str

    @property
    def name(self) -> str:
        return f"bucketworks_{self.of}_{self.figure}"


def gauges(of: str, *rows: tuple[str, str, str]) -> tuple[Gauge, ...]:
    """A table of figures, units and meanings. `of` is also the label that names the thing."""
    return tuple(Gauge(of, *row) for row in rows)


class GaugeCollector(Collector):
    """`figures` is asked at each scrape, for the thing called `name`."""

    def __init__(self, table: Sequence[Gauge], name: str, figures: Callable[[], Mapping[str, float]]) -> None:
        self._table, self._thing, self._figures = table, name, figures

    def describe(self) -> Iterable[Family]:
        """Nothing is asked when the collector is registered."""
        return []

    def collect(self) -> Iterable[Family]:
        found = self._figures()
        for gauge in self._table:
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=[gauge.of])
            if gauge.figure in found:
                family.add_metric([self._thing], found[gauge.figure])
            yield family


class BuildInfo(Collector):
    """`bucketworks_build_info{version, tool}`; `tool` is the command that answers."""

    def __init__(self, tool: str) -> None:
        self._tool = tool

    def collect(self) -> Iterable[Family]:
        family = GaugeMetricFamily(BUILD_INFO, BUILD_HELP, labels=BUILD_LABELS)
        family.add_metric([program_version(), self._tool], 1)
        yield family


def new_registry(tool: str, *collectors: Collector) -> CollectorRegistry:
    """What the page of `tool` shows: what is collected, and which program says so."""
    registry = CollectorRegistry()
    for collector in (BuildInfo(tool), *collectors):
        registry.register(collector)
    return registry


def gauge_rows(table: Iterable[Gauge]) -> str:
    """For docs/metrics.md."""
    return "".join(f"| `{one.name}` | gauge | {one.unit} | {one.help} |\n" for one in table)
