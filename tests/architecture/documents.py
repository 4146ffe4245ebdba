"""The documents that are drawn from tables in the code. `make docs` writes them; a test compares.

python -m tests.architecture.documents
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from blockdev.metrics import metrics_markdown
from blockdev.scsi import document as scsi_document
from blockdev.tcmu import document as tcmu_document
from cowsync.watch_health import mirror_metrics_markdown
from envctl.verb_document import verbs_markdown
from envctl.web.metrics import envctl_metrics_markdown
from integrity.service import ledger_metrics_markdown
from plugin.command_documents import commands_markdown
from plugin.property_documents import properties_markdown, properties_perl
from plugin.protocol_document import socket_markdown
from plugin.service.metrics import pve_metrics_markdown
from s3core.exit_codes import exit_codes_markdown
from s3core.settings_table import settings_markdown

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "deploy")]

from alert_rules import alerts_markdown  # noqa: E402 - found by the line above
from grafana import panels  # noqa: E402 - as above


def licences_markdown() -> str:
    """By the script that the packages' maker and the bill of materials use; it says what it does not know."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/release/licences.py")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


DOCUMENTS: dict[str, Callable[[], str]] = {
    "docs/settings.md": settings_markdown,
    "docs/exit-codes.md": exit_codes_markdown,
    "docs/metrics.md": lambda: (
        metrics_markdown()
        + mirror_metrics_markdown()
        + ledger_metrics_markdown()
        + pve_metrics_markdown()
        + envctl_metrics_markdown()
    ),
    "docs/runbook/alerts.md": alerts_markdown,
    **panels.files(),
    "docs/plugin/properties.md": properties_markdown,
    "plugin/perl/PVE/Bucketworks/Properties.pm": properties_perl,
    "docs/protocol/pve-socket.md": socket_markdown,
    "docs/plugin/commands.md": commands_markdown,
    "docs/envctl/verbs.md": verbs_markdown,
    "docs/protocol/scsi.md": scsi_document.render,
    "docs/protocol/tcmu.md": tcmu_document.render,
    "docs/licences.md": licences_markdown,
}


def main() -> None:
    for name, draw in DOCUMENTS.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(draw(), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
