"""Alerts for ledgers name metrics that exist, are in the runbook's table, and lead to a section that is there."""

import re

from integrity.service import METRICS
from tests.architecture.tree import ROOT

ANCHOR = re.compile(r"[^\w\- ]")


def anchors(path: str) -> set[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    return {
        ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def test_alerts_name_metrics_that_exist_and_sections_of_the_runbook() -> None:
    known = {metric.name for metric in METRICS}
    rules = (ROOT / "deploy/prometheus-alerts.yml").read_text(encoding="utf-8")
    table = (ROOT / "docs/runbook/alerts.md").read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (Ledger\w+)\n +expr: (.+)\n(?: +.+\n)*? +runbook: (\S+)\n", rules)
    assert len(alerts) == rules.count("- alert: Ledger") == 8
    for name, expression, runbook in alerts:
        used = set(re.findall(r"bucketworks_ledger_\w+", expression))
        assert used <= known, name
        assert used or expression == 'up{job="s3integrity"} == 0', name
        assert f"| `{name}` | `{expression}` |" in table
        path, _, anchor = runbook.partition("#")
        assert anchor in anchors(path), name
        assert f"]({runbook.removeprefix('docs/runbook/')})" in table
