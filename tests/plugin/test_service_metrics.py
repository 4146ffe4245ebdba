"""Metrics of the core: every one of the table is on the page, a scrape asks no store, and alerts lead to the runbook."""

import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from plugin.service.metrics import METRICS
from tests.plugin.service_world import Node, wait_until


def test_the_page_has_what_the_table_says(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.settings |= {"metrics_listen": "127.0.0.1:0", "probe_s": "1h"}
    node.add("s3", bw_quota=1, bw_budget_requests=1000)
    node.add("bad", bw_quota="many")
    node.bucket().put("s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.vma", b"12345")
    node.start()
    try:
        node.names()
        node.ask("activate")
        node.ask("attribute_set", volname="backup/vzdump-qemu-100-2026_11_22-10_00_00.vma", name="notes", value="n")
        assert node.core is not None
        wait_until(lambda: node.ask("status")["active"] is True and node.ask("status")["used"] == 6)
        asked = len(node.gates["s3"].requests)
        node.gates["s3"].state = "hung"
        with urllib.request.urlopen(node.core.metrics_url, timeout=60) as page:
            text = page.read().decode()
        assert len(node.gates["s3"].requests) == asked
    finally:
        node.stop()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    ours = {name: values for name, values in found.items() if name.startswith("bucketworks_pve_")}
    assert set(ours) == {metric.name for metric in METRICS}
    assert ours["bucketworks_pve_active"] == {("s3",): 1.0}
    assert ours["bucketworks_pve_unusable"] == {("s3",): 0.0, ("bad",): 1.0}
    assert ours["bucketworks_pve_stored_bytes"] == {("s3",): 6.0}
    assert ours["bucketworks_pve_mounted"] == {("s3",): 1.0}
    assert ours["bucketworks_pve_calls_total"][("list", "ok")] == 1.0
    assert ours["bucketworks_pve_requests_total"][("list", "s3")] >= 1.0
    assert 0.0 < ours["bucketworks_pve_month_budget_ratio"][("requests", "s3")] < 1.0
