"""Figures of one thing at a time as Prometheus gauges: a table, what is collected by it, and its rows in docs/metrics.md.

One rule: a gauge is declared once, in a table of its tool; nothing is kept between two scrapes. A figure that nothing is known
of yet is absent, which is not 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector


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


def gauge_rows(table: Iterable[Gauge]) -> str:
    """For docs/metrics.md."""
    return "".join(f"| `{one.name}` | gauge | {one.unit} | {one.help} |\n" for one in table)
