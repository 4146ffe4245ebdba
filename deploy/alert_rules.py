"""The alerts of deploy/prometheus-alerts.yml as records, and docs/runbook/alerts.md drawn from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import relpath

import yaml

RULES = Path(__file__).parent / "prometheus-alerts.yml"
_PAGE = "docs/runbook/alerts.md"
_GROUPS = {
    "bucketworks": "All tools",
    "s3block": "Volumes",
    "cowsync": "Mirrors",
    "s3integrity": "Ledgers",
    "pve-s3": "Proxmox VE storages",
    "s3-envctl": "The console",
}


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `held` is its `for`, "" where it fires at once; `runbook` is a path in this tree with an anchor."""

    group: str
    name: str
    expression: str
    held: str
    severity: str
    summary: str
    description: str
    action: str
    runbook: str


def alerts() -> Iterator[Alert]:
    """In the order of the file. KeyError for a rule that lacks something."""
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            told = rule["annotations"]
            yield Alert(
                group["name"],
                rule["alert"],
                rule["expr"],
                rule.get("for", ""),
                rule["labels"]["severity"],
                told["summary"],
                told["description"],
                told["action"],
                told["runbook"],
            )


_HEAD = """\
# Alerts

<!-- Drawn from deploy/prometheus-alerts.yml by `make docs`; a test compares. -->

Every alert of [`deploy/prometheus-alerts.yml`](../../deploy/prometheus-alerts.yml): when it fires, what it means, whether data
is at risk, and what to do first. How to have them evaluated is in [monitoring](../monitoring.md), every metric in
[metrics](../metrics.md). *Critical* means now: data is at risk, or a service is gone. *Warning* means today.

Without Prometheus, `s3block top` shows the figures of volumes live, and `s3block top --json --count 1` prints them for a
script: one JSON object with `rpo_seconds`, `journal_fill`, `store_reachable` and `state` for each volume.
"""


def alerts_markdown() -> str:
    parts = [_HEAD]
    known = list(alerts())
    for group, title in _GROUPS.items():
        members = [one for one in known if one.group == group]
        parts.append(f"\n## {title}\n\n| alert | severity | what it says |\n| --- | --- | --- |\n")
        parts += [
            f"| [{one.name}](#{one.name.lower()}) | {one.severity} | {_plain(one.summary)} |\n" for one in members
        ]
        parts += [_section(one) for one in members]
    return "".join(parts)


def _section(one: Alert) -> str:
    when = f", for {one.held}" if one.held else ""
    path, _, anchor = one.runbook.partition("#")
    page = (
        ""
        if path == _PAGE
        else f" More: [{Path(path).stem}]({relpath(path, 'docs/runbook')}{'#' if anchor else ''}{anchor})."
    )
    return (
        f"\n### {one.name}\n\n"
        f"**When** `{one.expression}`{when}\n\n"
        f"**Means** {one.description}.\n\n"
        f"**Do** {one.action}.{page}\n"
    )


def _plain(template: str) -> str:
    """A summary as people read it: `{{ $labels.volume }}` is VOLUME, the value is N."""
    words = []
    for index, part in enumerate(template.replace("}}", "{{").split("{{")):
        inside = part.strip()
        if index % 2 == 0:
            words.append(part)
        elif inside.startswith("$labels."):
            words.append(inside.removeprefix("$labels.").upper())
        else:
            words.append("N")
    return "".join(words)
