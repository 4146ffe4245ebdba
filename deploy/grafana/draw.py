"""Dashboards as Grafana imports them: JSON of its classic model, schema version 39 (Grafana 10.4 and newer).

One rule: what a dashboard shows is in `panels`; here is only how Grafana wants it told.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 39
GRID = 24
"""Columns of Grafana's grid."""
RUNBOOK = "docs/runbook/alerts.md"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLOURS = {"warning": "orange", "critical": "red"}
_HEIGHTS = {"stat": 4, "timeseries": 8, "table": 8}
_ABOVE_ZERO = 1e-9
"""Alerts fire above a limit, and Grafana colours from it on: a limit of 0 would paint what is well."""


@dataclass(frozen=True, slots=True)
class Query:
    """`expression` is PromQL with Grafana's variables in it; `legend` a template of labels, or plain words. `unit` is another
    than the panel's."""

    expression: str
    legend: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Limit:
    """The value from which on `alert` fires: the panel turns orange or red there, by its severity. With `below` the alert
    fires under it."""

    value: float
    alert: str
    severity: Literal["warning", "critical"]
    below: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """`unit` is Grafana's name of it. A description says what is good and what is not."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    limits: tuple[Limit, ...] = ()
    words: tuple[tuple[int, str, str], ...] = ()
    """Values that are shown as a word in a colour: (1, "yes", "green")."""
    alarm: Literal["", "warning", "critical"] = ""
    """The colour of anything above 0, where that is no single alert."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the head of the dashboard; `metric` and `label` say where its values are from."""

    name: str
    title: str
    metric: str
    label: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`rows` are titles with panels, which are set from left to right in rows of 24 columns."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for _, panels in self.rows for panel in panels)


def drawn(board: Dashboard, others: tuple[Dashboard, ...]) -> str:
    """The file. `others` are linked at its head."""
    document = {
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["bucketworks"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "",
        "annotations": {"list": [_firing()]},
        "links": _links(board, others),
        "templating": {"list": [_datasource(), _runbook(), *(_variable(one) for one in board.variables)]},
        "panels": _panels(board),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "regex": "",
        "current": {},
        "options": [],
    }


def _runbook() -> dict[str, Any]:
    """Where the documents are: a site of your own, or the files that the package installs."""
    base = "file:///usr/share/doc/bucketworks/"
    return {
        "name": "documents",
        "label": "Documents",
        "type": "textbox",
        "description": "Where the documents are, with a slash at its end; links to the runbook begin with it",
        "query": base,
        "hide": 0,
        "current": {"text": base, "value": base},
        "options": [{"text": base, "value": base, "selected": True}],
    }


def _variable(one: Variable) -> dict[str, Any]:
    query = f"label_values({one.metric}, {one.label})"
    return {
        "name": one.name,
        "label": one.title,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": one.name},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "regex": "",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _firing() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": _SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertstate="firing", severity=~"warning|critical"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "iconColor": "red",
        "step": "60s",
    }


def _links(board: Dashboard, others: tuple[Dashboard, ...]) -> list[dict[str, Any]]:
    def link(title: str, url: str, icon: str) -> dict[str, Any]:
        return {
            "title": title,
            "type": "link",
            "url": url,
            "icon": icon,
            "targetBlank": icon == "doc",
            "keepTime": icon != "doc",
            "includeVars": False,
            "asDropdown": False,
            "tags": [],
            "tooltip": "",
        }

    found = [link("Runbook", f"${{documents}}{RUNBOOK}", "doc")]
    return found + [link(one.title, f"/d/{one.uid}", "dashboard") for one in others if one.uid != board.uid]


def _panels(board: Dashboard) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in board.rows:
        place = {"h": 1, "w": GRID, "x": 0, "y": y}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y += 1
        x = height = 0
        for panel in panels:
            if x + panel.width > GRID:
                x, y, height = 0, y + height, 0
            place = {"h": _HEIGHTS[panel.kind], "w": panel.width, "x": x, "y": y}
            made.append({"id": len(made) + 1, "gridPos": place} | _panel(panel))
            x, height = x + panel.width, max(height, _HEIGHTS[panel.kind])
        y += height
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    references = "ABCDEFGH"
    targets = [
        {
            "refId": references[index],
            "datasource": _SOURCE,
            "editorMode": "code",
            "expr": query.expression,
            "legendFormat": query.legend,
            "range": not instant,
            "instant": instant,
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for index, query in enumerate(panel.queries)
    ]
    links = [
        {
            "title": f"What to do: {limit.alert}",
            "url": f"${{documents}}{RUNBOOK}#{limit.alert.lower()}",
            "targetBlank": True,
        }
        for limit in panel.limits
    ]
    mappings = [
        {"type": "value", "options": {str(value): {"text": word, "color": colour, "index": index}}}
        for index, (value, word, colour) in enumerate(panel.words)
    ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if instant else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "mappings": mappings,
        "custom": {},
    }
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 10,
            "showPoints": "never",
            "thresholdsStyle": {"mode": "line" if panel.limits else "off"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": targets,
        "links": links,
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [
                {
                    "matcher": {"id": "byFrameRefID", "options": references[index]},
                    "properties": [{"id": "unit", "value": query.unit}],
                }
                for index, query in enumerate(panel.queries)
                if query.unit
            ],
        },
        "options": _options(panel.kind),
        **({"transformations": [_without_time()]} if panel.kind == "table" else {}),
    }


def _steps(panel: Panel) -> list[dict[str, Any]]:
    """From the lowest value up, the first without one. Limits of a panel all lie on one side."""
    limits = panel.limits
    if not limits:
        well = [{"color": "green", "value": None}]
        return [*well, {"color": _COLOURS[panel.alarm], "value": _ABOVE_ZERO}] if panel.alarm else well
    ordered = sorted(limits, key=lambda limit: limit.value)
    if limits[0].below:
        colours = [_COLOURS[limit.severity] for limit in ordered] + ["green"]
    else:
        colours = ["green"] + [_COLOURS[limit.severity] for limit in ordered]
    values = [None, *(limit.value or _ABOVE_ZERO for limit in ordered)]
    return [{"color": colour, "value": value} for colour, value in zip(colours, values, strict=True)]


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        return {
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if kind == "table":
        return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _without_time() -> dict[str, Any]:
    return {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True, "Value": True}}}
