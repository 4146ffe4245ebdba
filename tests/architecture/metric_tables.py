"""Every metric of every tool, as its table declares it: what names, alerts and dashboards are held to."""

from collections.abc import Iterator
from dataclasses import dataclass

import blockdev.metrics
import cowsync.watch_health
import envctl.web.metrics
import integrity.service
import plugin.service.metrics
from s3core.gauges import BUILD_HELP, BUILD_INFO, BUILD_LABELS


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric with all its labels, and the command whose page has it ("" for all of them)."""

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...]
    tool: str

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that expressions use."""
        if self.kind == "histogram":
            return tuple(self.name + end for end in ("_bucket", "_count", "_sum"))
        return (self.name,)


def declared() -> Iterator[Declared]:
    yield Declared(BUILD_INFO, "gauge", "number", BUILD_HELP, BUILD_LABELS, "")
    for volume in blockdev.metrics.METRICS:
        labels = ("volume", *([volume.label] if volume.label else []))
        labels += ("currency",) if volume.name == "bucketworks_volume_cost_total" else ()
        labels += ("le",) if volume.kind == "histogram" else ()
        yield Declared(volume.name, volume.kind, volume.unit, volume.help, labels, "s3block")
    for tool, table in (("cowsync", cowsync.watch_health.METRICS), ("s3integrity", integrity.service.METRICS)):
        for one in table:
            yield Declared(one.name, "gauge", one.unit, one.help, (one.of,), tool)
    for pve in plugin.service.metrics.METRICS:
        labels = (*([] if pve.of_core else ["storage"]), *pve.labels)
        yield Declared(pve.name, pve.kind, pve.unit, pve.help, labels, "pve-s3")
    for figure in envctl.web.metrics.FIGURES:
        name = envctl.web.metrics.PREFIX + figure.name
        yield Declared(name, figure.kind, figure.unit, figure.help, figure.labels, "s3-envctl")


def labels_by_sample() -> dict[str, frozenset[str]]:
    """What a sample may be selected by. `instance` and `job` come from the scrape."""
    return {sample: frozenset(one.labels) | {"instance", "job"} for one in declared() for sample in one.samples}
