"""Alerts for the console name metrics that exist, are in the runbook's table, and lead to a section that is there; the unit
starts a command that there is."""

import re

from envctl.web.metrics import FIGURES, PREFIX
from s3core.exit_codes import ExitCode
from tests.architecture.tree import ROOT
from tests.integrity.test_alerts import anchors


def test_alerts_name_metrics_that_exist_and_sections_of_the_runbook() -> None:
    known = {PREFIX + figure.name for figure in FIGURES}
    rules = (ROOT / "deploy/prometheus-alerts.yml").read_text(encoding="utf-8")
    table = (ROOT / "docs/runbook/alerts.md").read_text(encoding="utf-8")
    alerts = re.findall(r"- alert: (Envctl\w+)\n +expr: (.+)\n(?: +.+\n)*? +runbook: (\S+)\n", rules)
    assert len(alerts) == rules.count("- alert: Envctl") == 12
    for name, expression, runbook in alerts:
        used = set(re.findall(rf"{PREFIX}\w+", expression))
        assert used <= known, name
        assert used or expression == 'up{job="s3-envctl"} == 0', name
        assert f"| `{name}` | `{expression}` |" in table
        path, _, anchor = runbook.partition("#")
        assert anchor in anchors(path), name
        assert f"]({runbook.removeprefix('docs/runbook/')})" in table


def test_the_unit_is_for_the_service_that_there_is() -> None:
    unit = (ROOT / "deploy/systemd/s3-envctl.service").read_text(encoding="utf-8")
    assert "\nExecStart=s3-envctl serve\n" in unit
    assert "\nType=notify\n" in unit
    prevented = re.search(r"^RestartPreventExitStatus=(.+)$", unit, re.MULTILINE)
    assert prevented is not None
    assert prevented[1].split() == [str(int(ExitCode.USAGE)), str(int(ExitCode.CONFIGURATION))]
