"""What changed and the row that says so are one transaction; a ledger's record comes first."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import select

from envctl.audit import shown
from envctl.calling import Caller
from envctl.database.models import AuditRow, Setting
from envctl.errors import Forbidden, Refused
from integrity.errors import LedgerError
from integrity.record import decode, encode
from tests.envctl.world import World

CALLER = Caller("id", "alice", "admin", "browser", "192.0.2.7")


class Ledger:
    """Takes records, each as a real one would be written; or none, when it is `away`."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.away = False

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int:
        if self.away:
            raise LedgerError("its disk is full")
        number = len(self.records)
        at = "2026-01-31T12:00:00.000000Z"
        self.records.append(decode(encode(event, writer="console", n=number, at=at, after=bytes(32))))
        return number

    def close(self) -> None:
        pass


def rows(world: World) -> list[AuditRow]:
    with world.database.read() as session:
        return list(session.scalars(select(AuditRow).order_by(AuditRow.id)))


def settings(world: World) -> list[str]:
    with world.database.read() as session:
        return list(session.scalars(select(Setting.key)))


def refuse(world: World, error: BaseException) -> None:
    with world.context.audit.act(CALLER, "settings.set", target="x") as act:
        act.session.add(Setting(key="refused", value=1))
        act.session.flush()
        raise error


def test_a_change_and_its_row_come_together(world: World) -> None:
    with world.context.audit.act(CALLER, "settings.set", detail={"value": 3.5}) as act:
        act.session.add(Setting(key="grace", value=1))
        act.target = "grace"
        assert rows(world) == []
    (row,) = rows(world)
    assert (row.actor, row.via, row.address, row.verb) == ("alice", "browser", "192.0.2.7", "settings.set")
    assert (row.target, row.outcome, row.detail, row.at) == ("grace", "ok", {"value": "3.5"}, world.context.now())
    assert settings(world) == ["grace"]


def test_what_was_refused_changed_nothing_and_is_told(world: World) -> None:
    with pytest.raises(Forbidden):
        refuse(world, Forbidden("no"))
    with pytest.raises(ZeroDivisionError):
        refuse(world, ZeroDivisionError("secret text"))
    with pytest.raises(KeyboardInterrupt):
        refuse(world, KeyboardInterrupt())
    assert [row.outcome for row in rows(world)] == ["forbidden", "bug", "interrupted"]
    assert rows(world)[1].detail == {"error": "ZeroDivisionError"}
    assert settings(world) == []


def test_a_ledger_gets_the_intent_before_the_commit_and_the_outcome_after(
    new_world: Callable[..., World],
) -> None:
    ledger = Ledger()
    world = new_world(records=ledger)
    with world.context.audit.act(CALLER, "settings.set", target="x", detail={"seconds": 0.5}) as act:
        act.session.add(Setting(key="x", value=1))
        assert ledger.records == []
    intent, outcome = ledger.records
    assert (intent["op"], intent["phase"], outcome["phase"], outcome["intent"]) == ("control", "intent", "done", 0)
    assert intent["who"] == {"kind": "user", "name": "alice", "ip": "192.0.2.7", "host": "console"}
    assert outcome["detail"]["verb"] == "settings.set"
    with pytest.raises(Refused):
        refuse(world, Refused("no"))
    assert [(one["phase"], one["detail"]["outcome"]) for one in ledger.records[2:]] == [("not-done", "refused")]


def test_a_ledger_that_cannot_take_it_refuses_the_change(
    new_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    world = new_world(records=ledger)
    ledger.away = True
    with caplog.at_level(logging.ERROR), pytest.raises(Refused, match="its disk is full"):
        with_setting(world)
    assert settings(world) == []
    assert [row.outcome for row in rows(world)] == ["refused"]
    assert world.context.audit.lost == 1
    assert "no record" in caplog.text
    ledger.away = False
    with_setting(world)
    assert settings(world) == ["y"]


def with_setting(world: World) -> None:
    with world.context.audit.act(CALLER, "settings.set") as act:
        act.session.add(Setting(key="y", value=1))


def test_a_commit_that_fails_leaves_a_named_unknown(new_world: Callable[..., World]) -> None:
    """The intent is in the ledger when the database says no at the very end."""
    ledger = Ledger()
    world = new_world(records=ledger)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_commit(world, fail)
    assert [one["phase"] for one in ledger.records] == ["intent", "unknown"]
    assert settings(world) == []


def fail_at_commit(world: World, fail: Callable[..., None]) -> None:
    from sqlalchemy import event

    with world.context.audit.act(CALLER, "settings.set") as act:
        act.session.add(Setting(key="z", value=1))
        event.listen(act.session, "before_commit", fail)


def test_secrets_never_get_into_a_row() -> None:
    told = shown(
        {"password": "hunter2", "Token": "x", "deep": {"secret": "y", "fine": [1, {"code": "z"}]}, "größe": 1.5}
    )
    assert told == {
        "password": "hidden",
        "Token": "hidden",
        "deep": {"secret": "hidden", "fine": [1, {"code": "hidden"}]},
        "gr__e": "1.5",
    }
    assert len(str(shown({"text": "x" * 10_000})["text"])) == 500
