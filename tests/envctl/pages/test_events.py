"""Live logs over HTTP: nothing missed and nothing twice after a break, an end with the sign-in, a bound for each user."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from envctl.accounts import people
from envctl.database.models import Environment, JobLine
from envctl.web import events
from tests.envctl.pages.furnished import House


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    data: dict[str, object]


class Stream:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def events(self) -> Iterator[Event]:
        found: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                yield Event("heartbeat", "", {})
            elif line:
                key, _, value = line.partition(": ")
                found[key] = value
            elif found.get("event"):
                yield Event(found["event"], found.get("id", ""), json.loads(found["data"]))
                found = {}

    def next(self, name: str) -> Event:
        return next(event for event in self.events() if event.name == name)


@contextmanager
def stream(client: httpx.Client, environment: str, **options: object) -> Iterator[Stream]:
    headers = {str(key): str(value) for key, value in options.items()}
    with client.stream("GET", f"/environments/{environment}/events", headers=headers) as answer:
        yield Stream(answer)


def say(house: House, environment: str, text: str) -> int:
    """A line, as another process writes it: nobody here is told."""
    with house.world.database.write() as session:
        line = JobLine(environment_id=environment, at=house.world.context.now(), level="info", text=text)
        session.add(line)
        session.flush()
        return line.id


def test_lines_come_as_they_are_written_and_resume(house: House) -> None:
    thesis = house.environments["thesis"]
    with house.browser("alice") as client:
        with stream(client, thesis) as one:
            assert one.answer.headers["content-type"].startswith("text/event-stream")
            assert one.answer.headers["x-accel-buffering"] == "no"
            assert one.answer.headers["cache-control"] == "no-store"
            found = [one.next("line") for _ in range(10)]
            assert found[0].data["text"] == "Create: asked for by alice."
            first = say(house, thesis, "after the tenth")
            event = one.next("line")
            assert (event.id, event.data["text"]) == (str(first), "after the tenth")
        # The connection broke; meanwhile two lines were written.
        missed = [say(house, thesis, f"missed {number}") for number in range(2)]
        with stream(client, thesis, **{"Last-Event-ID": first}) as one:
            assert [one.next("line").id for _ in range(2)] == [str(number) for number in missed]
        told = client.get(f"/environments/{thesis}/log?after={first}").json()
        assert [line["id"] for line in told["lines"]] == missed


def test_a_change_is_told(house: House) -> None:
    thesis = house.environments["thesis"]
    with house.browser("alice") as client, stream(client, thesis) as one:
        one.next("line")
        with house.world.database.write() as session:
            session.get_one(Environment, thesis).address = "10.20.0.99"
        house.watchers.told(thesis)
        assert one.next("state").data == {}


def test_it_ends_with_the_sign_in(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    thesis = house.environments["thesis"]
    with house.browser("alice") as client, stream(client, thesis) as one:
        one.next("heartbeat")
        csrf = client.get("/profile").text.split('name="csrf" value="')[1].split('"')[0]
        client.post("/logout", data={"csrf": csrf})
        assert one.next("end").data == {"reason": "signed-out"}
        assert list(one.events()) == [], "and the stream is over"


def test_others_environments_are_not_there(house: House) -> None:
    thesis = house.environments["thesis"]
    with house.browser("bob") as client:
        assert client.get(f"/environments/{thesis}/events").status_code == 404
        assert client.get(f"/environments/{thesis}/log").status_code == 404
    nobody = httpx.get(f"{house.url}/environments/{thesis}/events")
    assert nobody.status_code == 401


def test_a_user_has_only_so_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = house.environments["shared"]
    monkeypatch.setattr(house.watchers, "_max", 2)
    with house.browser("bob") as client, stream(client, shared) as one, stream(client, shared) as two:
        assert (one.answer.status_code, two.answer.status_code) == (200, 200)
        third = client.get(f"/environments/{shared}/events")
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1


def test_it_ends_with_the_role_that_showed_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    with house.world.database.write() as session:
        people.find_user(session, "bob").role = "operator"
    thesis = house.environments["thesis"]
    with house.browser("bob") as client, stream(client, thesis) as one:
        one.next("heartbeat")
        with house.world.database.write() as session:
            people.find_user(session, "bob").role = "user"
        assert one.next("end").data == {"reason": "not-found"}
