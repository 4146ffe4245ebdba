"""Dashboards: every metric and label in them exists, their limits are those of alerts, and Grafana can show them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_rules import alerts
from grafana.draw import GRID, SCHEMA_VERSION, Dashboard, Panel
from grafana.panels import DASHBOARDS

from tests.architecture.metric_tables import labels_by_sample
from tests.architecture.tree import ROOT
from tests.monitoring.promql import outer_grouping, selected
from tests.monitoring.test_alert_rules import JOBS, needs_promtool, promtool

PANELS = [(board, panel) for board in DASHBOARDS for panel in board.panels]
OF_PROMETHEUS = {"up": frozenset({"job", "instance"}), "ALERTS": frozenset({"alertname", "alertstate", "severity"})}
UNITS = {"none", "s", "bytes", "percentunit", "ops", "reqps", "Bps"}


def name_of(value: object) -> str:
    return value.title if isinstance(value, Dashboard | Panel) else str(value)


def without_variables(expression: str, board: Dashboard) -> str:
    """As Grafana sends it with everything chosen."""
    text = expression.replace("$__rate_interval", "5m")
    for variable in board.variables:
        text = text.replace(f'"${variable.name}"', '".+"')
    assert "$" not in text, f"a variable that {board.title} has not: {text}"
    return text


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=name_of)
def test_a_panel_shows_what_exists(board: Dashboard, panel: Panel) -> None:
    known = labels_by_sample() | OF_PROMETHEUS
    for query in panel.queries:
        found = selected(without_variables(query.expression, board))
        assert found.matched
        assert set(found.matched) <= set(known)
        for metric, labels in found.matched.items():
            assert labels <= known[metric], metric
        has = {label for metric in found.matched for label in known[metric]}
        assert found.grouped <= has
        grouped = outer_grouping(query.expression)
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= (has if grouped is None else grouped), query
        for variable in board.variables:
            selecting = [metric for metric in found.matched if variable.name in known[metric]]
            assert all(variable.name in found.matched[metric] for metric in selecting), f"{variable.name} is not heeded"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=name_of)
def test_a_panel_is_explained(board: Dashboard, panel: Panel) -> None:
    assert panel.unit in UNITS
    assert len(panel.description) >= len("Their size.")
    assert panel.description.endswith(".")
    legends = [query.legend for query in panel.queries]
    assert len(set(legends)) == len(legends)


@pytest.mark.parametrize(("board", "panel"), [(b, p) for b, p in PANELS if p.limits], ids=name_of)
def test_limits_are_those_of_the_alerts(board: Dashboard, panel: Panel) -> None:
    """The alert that a limit names compares one of the panel's metrics with that number, in that direction."""
    known = {alert.name: alert for alert in alerts()}
    for limit in panel.limits:
        alert = known[limit.alert]
        assert alert.severity == limit.severity
        watched = set(selected(alert.expression).matched)
        assert watched & {
            m for query in panel.queries for m in selected(without_variables(query.expression, board)).matched
        }
        signs = ("<", "<=") if limit.below else (">", ">=")
        told = [
            (sign, float(number)) for sign, number in re.findall(r"([<>]=?) ([0-9.]+(?:e[0-9]+)?)\b", alert.expression)
        ]
        # `x > 3 * y` and `x < 0.5 * y` are told as parts of y.
        assert any(sign in signs and number == limit.value for sign, number in told), (limit, told)


@needs_promtool
def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{index}:{part}", "expr": without_variables(query.expression, board)}
        for index, (board, panel) in enumerate(PANELS)
        for part, query in enumerate(panel.queries)
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


@pytest.mark.parametrize("board", DASHBOARDS, ids=name_of)
def test_a_file_is_what_grafana_imports(board: Dashboard) -> None:
    document = json.loads((ROOT / f"deploy/grafana/dashboards/{board.uid}.json").read_text(encoding="utf-8"))
    assert document["schemaVersion"] == SCHEMA_VERSION
    assert re.fullmatch(r"[a-z-]{1,40}", document["uid"])
    assert "id" not in document, "an id is of one installation"
    panels: list[dict[str, Any]] = document["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= GRID
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
            steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
            assert steps[0] is None
            assert steps[1:] == sorted(steps[1:])
            assert 0 not in steps, (
                f"{panel['title']}: Grafana colours from a step on, so nothing wrong would be an alarm"
            )
    variables = {variable["name"] for variable in document["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)([a-z]+)", json.dumps(document)))
    assert used == variables
    linked = {link["url"] for link in document["links"]}
    assert "${documents}docs/runbook/alerts.md" in linked
    assert {f"/d/{other.uid}" for other in DASHBOARDS if other is not board} <= linked


def test_every_tool_has_a_dashboard() -> None:
    shown = {
        m
        for board, panel in PANELS
        for q in panel.queries
        for m in selected(without_variables(q.expression, board)).matched
    }
    watched = {metric for alert in alerts() for metric in selected(alert.expression).matched} - {"up"}
    # What an alert judges can be looked at; figures that an alert alone needs are named here.
    of_alerts_alone = {"bucketworks_volume_lio_task_management_total", "bucketworks_volume_ledger_events_total"}
    of_alerts_alone |= {
        "bucketworks_volume_epoch",
        "bucketworks_envctl_backup_interval_seconds",
        "bucketworks_pve_unusable",
    }
    of_alerts_alone |= {"bucketworks_envctl_jobs_failed_recently", "bucketworks_envctl_audit_lost_total"}
    of_alerts_alone |= {"bucketworks_ledger_swept_slots"}
    assert watched - shown == of_alerts_alone


def test_the_scrape_configuration_has_the_jobs_that_alerts_know() -> None:
    written = yaml.safe_load((ROOT / "deploy/prometheus.example.yml").read_text(encoding="utf-8"))
    assert {job["job_name"] for job in written["scrape_configs"]} == JOBS
    boards = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/bucketworks.yml").read_text(encoding="utf-8")
    )
    (provider,) = boards["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/usr/share/bucketworks/grafana/dashboards"
    (source,) = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    )["datasources"]
    assert source["type"] == "prometheus"


@needs_promtool
def test_prometheus_takes_the_scrape_configuration(tmp_path: Path) -> None:
    text = (ROOT / "deploy/prometheus.example.yml").read_text(encoding="utf-8")
    written = yaml.safe_load(text)
    assert written["rule_files"] == ["/usr/share/bucketworks/prometheus-alerts.yml"]
    (tmp_path / "token").write_text("t")
    here = text.replace(written["rule_files"][0], str(ROOT / "deploy/prometheus-alerts.yml"))
    (tmp_path / "prometheus.yml").write_text(here.replace("/etc/prometheus/s3-envctl.token", str(tmp_path / "token")))
    promtool("check", "config", tmp_path / "prometheus.yml")
