"""What a daemon tells of itself while it works: the control socket, and whoever reads it."""

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from blockdev.control import ControlClient, NotServed
from blockdev.errors import Refused
from blockdev.metrics import METRICS
from s3core.exit_codes import ExitCode
from tests.system.machine import MIB, S3BLOCK, Server, ServerEnded, create, environment, qemu_io


@pytest.mark.initiator
def test_status_tells_of_a_served_volume(tmp_path: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    with Server(tmp_path, volume) as server:
        server.start()
        qemu_io(server.url, "write -P 5 0 1M", "write -P 6 3M 64k", "read -P 5 0 1M", "flush")
        with ControlClient(server.state_dir, timeout_s=10.0) as client:
            told = client.ask("status")
            with pytest.raises(Refused, match="no operation 'dance'"):
                client.ask("dance")
        assert (told["name"], told["url"], told["state"], told["failure"]) == ("vm1", volume, "ready", "")
        assert (told["size_bytes"], told["epoch"], told["sessions"]) == (256 * MIB, 1, [])
        front = told["front"]
        assert front["write_bytes"] == MIB + 65536
        assert front["read_bytes"] >= MIB
        assert front["flushes"] >= 1
        assert server.stop() == 0
    with pytest.raises(NotServed):
        ControlClient(server.state_dir)
    assert not (server.state_dir / "control").exists()


@pytest.mark.initiator
def test_prometheus_is_told_everything_in_the_table(tmp_path: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    with Server(tmp_path, volume, "--metrics-listen", "127.0.0.1:0", "--commit-interval", "200ms") as server:
        server.start()
        qemu_io(server.url, "write -P 5 0 8M", "write -P 6 3M 64k", "read -P 5 0 1M", "discard 5M 1M", "flush")
        found = re.search(r"metrics at (http://\S+)", server.log())
        assert found is not None
        give_up = time.monotonic() + 30
        while True:
            with urllib.request.urlopen(found[1], timeout=10) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
            samples = {sample.name: sample for family in families for sample in family.samples}
            committed = samples.get("bucketworks_volume_committed_bytes_total")
            if (committed is not None and committed.value >= 8 * MIB) or time.monotonic() > give_up:
                break
            time.sleep(0.2)
        by_label = {
            (sample.name, label): sample.value
            for family in families
            for sample in family.samples
            for key, label in sample.labels.items()
            if key != "volume"
        }
        names = {name.removesuffix("_count") for name in samples}
        absent = {metric.name for metric in METRICS} - names
        of_others = ("bucketworks_volume_lio_", "bucketworks_volume_ledger_")
        assert {name for name in absent if not name.startswith(of_others)} == set(), (
            "it is behind the portal, and no ledger covers it"
        )
        assert 0 < samples["bucketworks_volume_lease_left_seconds"].value < 3600
        assert by_label["bucketworks_volume_bytes_total", "write"] == 8 * MIB + 65536
        assert by_label["bucketworks_volume_operations_total", "discard"] == 1
        assert by_label["bucketworks_volume_operation_seconds_count", "read"] >= 1
        timed = by_label["bucketworks_volume_operation_seconds_count", "write"]
        assert timed == by_label["bucketworks_volume_operations_total", "write"]
        assert by_label["bucketworks_volume_operation_seconds_count", "flush"] >= 1
        assert by_label["bucketworks_volume_store_requests_total", "put"] >= 3
        assert by_label["bucketworks_volume_store_requests_total", "list"] >= 1
        assert samples["bucketworks_volume_store_reachable"].value == 1
        assert server.stop() == 0


def test_a_bad_or_taken_address_for_metrics_is_refused_before_anything_is_attached(tmp_path: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    for address, code in (("9260", ExitCode.USAGE), ("192.0.2.77:9260", ExitCode.REFUSED)):
        with pytest.raises(ServerEnded) as ended:
            Server(tmp_path, volume, "--metrics-listen", address).start()
        assert ended.value.answer.code == code, ended.value.answer.err
        assert "metrics" in ended.value.answer.err
    assert not list(tmp_path.glob("store/objects/v1/vm1/log/*"))


@pytest.mark.initiator
def test_top_follows_a_volume_until_it_is_not_served(tmp_path: Path) -> None:
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    with Server(tmp_path, volume) as server:
        server.start()
        with subprocess.Popen(
            [S3BLOCK, "top", "--state-dir", str(server.state), "--json", "--interval", "500ms", "--count", "60"],
            env=environment(None),
            stdout=subprocess.PIPE,
            text=True,
        ) as top:
            assert top.stdout is not None
            first = json.loads(top.stdout.readline())["volumes"]
            qemu_io(server.url, "write -P 5 0 8M", "read -P 5 0 1M")
            seen = first[0]
            while not seen["writes_per_second"]:
                (seen,) = json.loads(top.stdout.readline())["volumes"]
            assert server.stop() == 0
            gone = seen
            while gone["state"] != "not served":
                (gone,) = json.loads(top.stdout.readline())["volumes"]
            top.kill()
    assert [row["name"] for row in first] == ["vm1"]
    assert (seen["state"], seen["currency"]) == ("ready", None)
    assert seen["write_bytes_per_second"] > MIB
    assert seen["write_p99_seconds"] > 0
