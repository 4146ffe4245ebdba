"""The webhook: 200 is said after the sync, 503 while the ledger cannot take records, and only who has the token gets in."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from integrity.errors import LedgerError
from integrity.ingest.cursor import Cursors
from integrity.ingest.intake import Intake, Quarantine
from integrity.webhook import BODY_BYTES_MAX, WAITING_MAX, Door, webhook_app
from tests.integrity.ingest.samples import audit, aws, trail


class Ledger:
    """A writer that remembers what was recorded, and what was synced."""

    name = "here.1"

    def __init__(self) -> None:
        self.records: list[Mapping[str, object]] = []
        self.durable = 0
        self.syncs = 0
        self.broken = False

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int:
        if self.broken:
            raise LedgerError("the disk is full")
        self.records.append(event)
        return len(self.records) - 1

    def flush(self) -> None:
        self.durable = len(self.records)
        self.syncs += 1


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def door(ledger: Ledger, tmp_path: Path) -> Iterator[Door]:
    cursors = Cursors(tmp_path / "feeds")
    intake, quarantine = Intake(ledger, cursors, 0), Quarantine(tmp_path / "feeds", lambda: 1.0)
    yield Door(intake, quarantine, token="open sesame", endpoints=frozenset({"ceph"}))
    cursors.close()


@pytest.fixture
def client(door: Door) -> Iterator[TestClient]:
    with TestClient(webhook_app(door), headers={"Authorization": "Bearer open sesame"}) as client:
        yield client


def notice(number: int) -> dict[str, object]:
    record = aws(key=f"k{number}")
    record["responseElements"]["x-amz-request-id"] = f"R{number}"
    return {"Records": [record]}


def test_what_is_pushed_is_recorded_once_and_durable(client: TestClient, ledger: Ledger) -> None:
    for _ in range(2):
        assert client.post("/feeds/notifications?endpoint=ceph", json=notice(1)).status_code == 200
        assert ledger.durable == 1
    assert client.post("/feeds/minio-audit", json=audit()).status_code == 200
    assert client.post("/feeds/cloudtrail", json=trail()).status_code == 200
    assert [(record["source"], record.get("endpoint")) for record in ledger.records] == [
        ("notification", "ceph"),
        ("minio-audit", None),
        ("cloudtrail", None),
    ]
    assert client.post("/feeds/minio-audit", json={}).status_code == 200
    assert client.post("/feeds/notifications", json={"Event": "s3:TestEvent"}).status_code == 200
    assert ledger.durable == 3


def test_who_gets_in(client: TestClient, ledger: Ledger, door: Door) -> None:
    anyone = {"Authorization": ""}
    assert client.post("/feeds/notifications", json=notice(1), headers=anyone).status_code == 401
    assert client.post("/feeds/notifications/wrong", json=notice(1), headers=anyone).status_code == 401
    assert (
        client.post("/feeds/notifications", json=notice(1), headers={b"Authorization": b"Bearer \xf6"}).status_code
        == 401
    )
    assert not ledger.records
    assert client.post("/feeds/notifications/open%20sesame", json=notice(1), headers=anyone).status_code == 200
    assert (
        client.post("/feeds/notifications", json=notice(2), headers={"Authorization": "open sesame"}).status_code == 200
    )
    assert client.post("/feeds/notifications?endpoint=other", json=notice(3)).status_code == 404
    assert client.post("/feeds/batch-report", json=notice(3)).status_code == 404
    assert client.get("/feeds/notifications").status_code == 405
    assert client.get("/healthz").status_code == 200
    assert len(ledger.records) == 2
    door.token = ""
    assert client.post("/feeds/notifications", json=notice(3), headers=anyone).status_code == 200


def test_bad_bodies(client: TestClient, ledger: Ledger, tmp_path: Path) -> None:
    assert client.post("/feeds/notifications", content=b"{broken").status_code == 400
    assert client.post("/feeds/notifications", content=b"x" * (BODY_BYTES_MAX + 1)).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1000):
            yield b"x" * 1100

    assert client.post("/feeds/notifications", content=pieces()).status_code == 413
    half = {"Records": [aws(), {"s3": {}}]}
    assert client.post("/feeds/notifications", json=half).status_code == 200
    assert len(ledger.records) == 1
    kept = [json.loads(line) for line in (tmp_path / "feeds" / "quarantine.jsonl").read_bytes().splitlines()]
    assert [one["reasons"] for one in kept] == [["is no JSON"], ["names no bucket, or no object"]]


def test_a_ledger_that_cannot_take_records(client: TestClient, ledger: Ledger, door: Door) -> None:
    ledger.broken = True
    answer = client.post("/feeds/notifications", json=notice(1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    ledger.broken = False
    assert client.post("/feeds/notifications", json=notice(1)).status_code == 200
    assert (door.counts.refused, door.counts.recorded) == (1, 1)


def test_what_nobody_thought_of_costs_one_request(
    client: TestClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(*_: object, **__: object) -> int:
        raise RuntimeError("not thought of")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "record", record)
        assert client.post("/feeds/notifications", json=notice(1)).status_code == 503
    assert client.post("/feeds/notifications", json=notice(1)).status_code == 200


def test_a_subscription_is_shown_and_not_followed(
    client: TestClient, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {
        "Type": "SubscriptionConfirmation",
        "TopicArn": "arn:aws:sns:x",
        "SubscribeURL": "https://sns.example/?Token=1",
    }
    with caplog.at_level(logging.WARNING):
        assert client.post("/feeds/notifications", json=asked).status_code == 200
    assert "https://sns.example/?Token=1" in caplog.text
    assert not ledger.records
    sent = {"Type": "Notification", "Message": json.dumps(notice(1))}
    assert client.post("/feeds/notifications", json=sent).status_code == 200
    assert len(ledger.records) == 1


def test_requests_share_a_sync(door: Door, ledger: Ledger) -> None:
    async def body() -> None:
        answers = await asyncio.gather(
            *(door.take("notifications", "", json.dumps(notice(number)).encode()) for number in range(500))
        )
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(body())
    assert len(ledger.records) == 500
    assert ledger.syncs <= 3


def test_a_crowd_is_sent_away_and_a_stop_answers_those_who_wait(
    door: Door, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrity.webhook.BATCH_EVENTS", 100)
    flush = ledger.flush

    def slowly() -> None:
        time.sleep(0.05)
        flush()

    monkeypatch.setattr(ledger, "flush", slowly)

    async def body() -> None:
        waiting = [
            asyncio.create_task(door.take("notifications", "", json.dumps(notice(number)).encode()))
            for number in range(WAITING_MAX + 1)
        ]
        await asyncio.sleep(0)
        assert (await waiting[-1]).status_code == 503
        (service,) = (task for task in asyncio.all_tasks() if "_record_always" in repr(task.get_coro()))
        await asyncio.sleep(0.01)
        service.cancel()
        answers = await asyncio.gather(*waiting)
        done = sum(answer.status_code == 200 for answer in answers)
        assert done == len(ledger.records) == ledger.durable
        assert 0 < done < WAITING_MAX

    asyncio.run(body())
