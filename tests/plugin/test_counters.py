"""Counters: what was asked is counted once, across processes; budgets warn or refuse, deletes never."""

import logging
import multiprocessing
from pathlib import Path

import pytest

from plugin.counters import Budget, Count, Counters, costs, month_of, total, used_shares
from plugin.errors import Refused
from plugin.mount.parts import Budgeted
from plugin.upload.uploader import Uploader, UploadSettings
from s3core.endpoint import Prices
from s3core.errors import NotFound
from s3core.memory_bucket import MemoryService

NOVEMBER, DECEMBER = 1_795_000_000.0, 1_797_000_000.0


def test_each_request_counts_with_its_bytes(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "c")
    bucket = counters.wrap(MemoryService().bucket("b"))
    bucket.put("a", b"12345")
    bucket.get("a", offset=1, length=2)
    bucket.list_page()
    with pytest.raises(NotFound):
        bucket.head("none")
    assert counters.month() == {
        "put": Count(1, up=5),
        "get": Count(1, down=2),
        "list": Count(1),
        "head": Count(1),
    }
    counters.close()


def _count(path: Path) -> None:
    counters = Counters(path)
    for _ in range(200):
        counters.add("get", down=3)
        counters.flush()


def test_processes_add_to_one_another(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(tmp_path / "c",)) for _ in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    assert Counters(tmp_path / "c").ever() == {"get": Count(400, down=1200)}


def test_a_month_begins_at_nothing(tmp_path: Path) -> None:
    moment = [NOVEMBER]
    counters = Counters(tmp_path / "c", now=lambda: moment[0])
    counters.add("get", down=5)
    counters.flush()
    moment[0] = DECEMBER
    assert month_of(NOVEMBER) == "2026-11"
    assert counters.month() == {}
    counters.add("get", down=7)
    assert counters.ever() == {"get": Count(2, down=12)}
    assert counters.month("2026-11") == {"get": Count(1, down=5)}


def test_what_cannot_be_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.mkdir()
    counters = Counters(path)
    counters.add("put")
    with pytest.raises(OSError, match="unable to open"):
        counters.flush()
    path.rmdir()
    counters.flush()
    assert Counters(path).ever() == {"put": Count(1)}


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"no database" * 500)
    counters = Counters(path)
    counters.add("put")
    with pytest.raises(OSError, match="not a database"):
        counters.flush()
    counters.flush()
    assert Counters(path).ever() == {"put": Count(1)}


def test_a_budget_refuses_what_would_go_beyond(tmp_path: Path) -> None:
    counters = Counters(tmp_path / "c", budget=Budget(requests=10, egress_bytes=100, refuse=True))
    counters.add("get", down=60)
    counters.admit("fetch of a.iso", down=40)
    with pytest.raises(Refused, match="budget of 100 B read"):
        counters.admit("fetch of a.iso", down=41)
    with pytest.raises(Refused, match="10 requests"):
        counters.admit("backup", requests=10)
    counters.add("delete", requests=50)
    counters.admit("backup", requests=9)


def test_a_budget_that_warns_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters(tmp_path / "c", budget=Budget(egress_bytes=100))
    with caplog.at_level(logging.WARNING):
        for down in (10, 85, 90, 200, 300):
            counters.admit("fetch", down=down)
    assert [record.getMessage() for record in caplog.records] == [
        "fetch comes near this month's budget of 100 B read",
        "fetch is beyond this month's budget of 100 B read",
    ]


def test_costs_and_shares() -> None:
    counts = {"put": Count(1000, up=9), "list": Count(1000), "get": Count(500, down=1 << 30), "delete": Count(10**6)}
    prices = Prices("EUR", per_1000_put=2.0, per_1000_get=1.0, per_gib_egress=3.0)
    assert costs(counts, prices) == {"put": 4.0, "get": 0.5, "egress": 3.0}
    assert used_shares(counts, Budget(requests=5000)) == {"requests": 0.5}
    assert total(counts) == Count(1_002_500, 9, 1 << 30)


def test_an_upload_beyond_a_budget_is_refused_before_it_begins(tmp_path: Path) -> None:
    bucket = MemoryService().bucket("b")
    counters = Counters(tmp_path / "c", budget=Budget(requests=5, refuse=True))
    uploader = Uploader(bucket, tmp_path / "uploads", UploadSettings())
    sender = Budgeted(uploader, counters, part_bytes=5 << 20)
    source = tmp_path / "source"
    source.write_bytes(bytes(100))
    sender.file(source, "dump/small")
    with source.open("r+b") as file:
        file.truncate(50 << 20)
    with pytest.raises(Refused, match="uploading dump/large would go beyond"):
        sender.file(source, "dump/large")
    counters.add("put")
    counters.add("put")
    counters.add("put")
    with pytest.raises(Refused, match="an upload would go beyond"):
        sender.stream("dump/stream")
    assert bucket.list_page().keys == [b"dump/small"]
    uploader.close()
