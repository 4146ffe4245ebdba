"""Alert rules: what they name is there, what they say can be said, and each fires when it must and is silent when it must."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_rules import RULES, Alert, alerts

from tests.architecture.metric_tables import labels_by_sample
from tests.architecture.test_links import anchors
from tests.architecture.tree import ROOT
from tests.monitoring.alert_cases import CASES, FURTHER, HEALTHY, Case
from tests.monitoring.promql import selected

ALERTS = tuple(alerts())
JOBS = {"s3block", "cowsync", "s3integrity", "pve-s3", "s3-envctl"}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install --no-install-recommends prometheus"
)


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_names_metrics_and_labels_that_exist(alert: Alert) -> None:
    known = labels_by_sample() | {"up": frozenset({"job", "instance"})}
    found = selected(alert.expression)
    assert set(found.matched) <= set(known)
    assert found.matched or alert.name == "BucketworksWatchdog"
    for metric, labels in found.matched.items():
        assert labels <= known[metric]
    assert found.grouped <= {label for metric in found.matched for label in known[metric]}
    if "up" in found.matched:
        assert found.values["up", "job"] in JOBS


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_tells_what_to_do(alert: Alert) -> None:
    assert re.fullmatch(r"(?:Bucketworks|S3Block|Cowsync|Ledger|Pve|Envctl)[A-Z]\w+", alert.name)
    assert alert.severity in ("critical", "warning") or alert.name == "BucketworksWatchdog"
    assert len(alert.summary) <= 132, "a pager shows so much"
    assert len(alert.description) > 40
    assert len(alert.action) > 20
    path, _, anchor = alert.runbook.partition("#")
    page = (ROOT / path).read_text(encoding="utf-8")
    assert not anchor or anchor in anchors(page)


def test_names_and_cases_are_those_of_the_rules() -> None:
    names = [alert.name for alert in ALERTS]
    assert len(set(names)) == len(names)
    assert [case.alert for case in CASES] == names
    assert {case.alert for case in FURTHER} <= set(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_what_an_alert_says_is_known_where_it_fires(case: Case) -> None:
    """`{{ $labels.x }}` of a label that the result has not is an empty word in the message."""
    (alert,) = (one for one in ALERTS if one.name == case.alert)
    used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description + alert.action))
    has = set(re.findall(r"(\w+)=", case.labels))
    # One half of an expression with `or` has no further label.
    assert used <= has


def test_the_healthy_world_is_of_metrics_that_exist() -> None:
    known = labels_by_sample() | {"up": frozenset({"job", "instance"})}
    for series in HEALTHY:
        ((metric, labels),) = selected(series).matched.items()
        assert labels == known[metric], series
    watched = {metric for alert in ALERTS for metric in selected(alert.expression).matched}
    assert {series.partition("{")[0] for series in HEALTHY} == watched


@needs_promtool
@pytest.mark.slow
def test_every_alert_fires_when_it_must_and_is_silent_when_it_must(tmp_path: Path) -> None:
    known = {alert.name: alert for alert in ALERTS}
    everything = {series.partition("{")[0] for series in HEALTHY}
    # Each alert is evaluated alone, but for the healthy world: the others say nothing of it, and take a minute each.
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    healthy = _test("healthy", everything, {}, 200, 'ALERTS{alertname!="BucketworksWatchdog"}', [])
    files = [_tests_of(tmp_path, "healthy", groups, [healthy])]
    for number, case in enumerate((*CASES, *FURTHER)):
        expression = f'ALERTS{{alertname="{case.alert}", alertstate="firing"}}'
        labels = f'alertname="{case.alert}", alertstate="firing", severity="{known[case.alert].severity}"'
        metrics = set(selected(known[case.alert].expression).matched)
        sample = f"ALERTS{{{labels}{', ' if case.labels else ''}{case.labels}}}"
        tests = [_test(f"{case.alert} fires", metrics, case.fires, case.minutes, expression, [sample])]
        tests += [_test(f"{case.alert} is silent", metrics, *quiet, expression, []) for quiet in case.silent]
        alone = [
            group | {"rules": [rule for rule in group["rules"] if rule["alert"] == case.alert]} for group in groups
        ]
        files.append(_tests_of(tmp_path, f"{number}-{case.alert}", [group for group in alone if group["rules"]], tests))
    promtool("test", "rules", *files)


def _tests_of(directory: Path, name: str, groups: list[dict[str, Any]], tests: list[dict[str, object]]) -> Path:
    """A file of tests for promtool, of these rules alone."""
    (rules := directory / f"{name}.rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    file = directory / f"{name}.test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}))
    return file


def _test(
    name: str, metrics: set[str], changed: dict[str, str], minutes: int, expression: str, samples: list[str]
) -> dict[str, object]:
    """`metrics` are those that are there at all."""
    world = {series: values for series, values in (HEALTHY | changed).items() if series.partition("{")[0] in metrics}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {"series": series, "values": values.replace("xN", f"x{minutes + 1}")} for series, values in world.items()
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": one, "value": 1} for one in samples],
            }
        ],
    }
