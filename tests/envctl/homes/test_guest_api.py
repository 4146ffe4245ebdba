"""What guests ask over HTTP: enrolment, signatures, objects, commits, commands, and everything that must be refused."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select

from envctl.calling import Context
from envctl.database.models import Backup, Environment, Guest, JobLine, Template
from envctl.homes import guests, requests
from envctl.homes.identity import WINDOW_S, Identity
from envctl.web.events import Watchers
from envctl.web.guest import BODY_BYTES_MAX, router
from tests.envctl.homes.guest_client import GuestClient
from tests.envctl.homes.making import Bucket, contents, make
from tests.envctl.world import World, make_world

UUID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
FIRST = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"beta"})
SECOND = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"BETA"})
EMPTY = make({"home/nothing": b""})


@dataclass
class Site:
    world: World
    bucket: Bucket
    http: TestClient
    template: Template

    @property
    def context(self) -> Context:
        return self.world.context

    def environment(self, owner: str = "alice", name: str = "work", **columns: Any) -> Environment:
        made = self.world.add_environment(owner, name, self.template, generation=1, **columns)
        self.context.homes.fence(made.id, 1)
        return made

    def seed(self, environment: Environment, generation: int = 1) -> str:
        return requests.seed(self.context, environment, generation, UUID)[0]

    def guest(self, address: str = "192.0.2.7") -> GuestClient:
        http = TestClient(self.http.app, base_url="http://console.example:8480", client=(address, 5000))
        return GuestClient(http, self.world.clock)

    def enrolled(self, environment: Environment, *, restored: bool = True) -> GuestClient:
        guest = self.guest()
        assert guest.enrol(self.seed(environment), UUID).status_code == 200
        if restored:
            assert guest.restored().status_code == 200
        return guest

    def replaced(self, environment: Environment, generation: int) -> None:
        """As the steps of a reset have it: fence, revoke, row."""
        self.context.homes.fence(environment.id, generation)
        requests.revoke(self.context, environment.id, generation - 1)
        with self.world.database.write() as session:
            session.get_one(Environment, environment.id).generation = generation


@pytest.fixture
def site(tmp_path: Path) -> Any:
    world = make_world(tmp_path, url="http://console.example:8480")
    bucket = Bucket(clock=world.clock)
    world.context = replace(world.context, homes=bucket.store())
    app = FastAPI()
    app.include_router(router(lambda: world.context))
    with TestClient(app) as http:
        yield Site(world, bucket, http, world.add_template(excludes=["*.tmp"], login_user="ann"))
    world.close()


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_machine_enrols_saves_and_is_seen_to_have_saved(site: Site) -> None:
    environment = site.environment()
    guest = site.guest()
    token = site.seed(environment)
    said = guest.enrol(token, UUID.upper()).json()
    assert said["settings"]["directories"] == ["/home"]
    assert said["settings"]["excludes"] == ["*.tmp"]
    assert said["restore"] == {"number": None, "from": None, "trees": [], "done": False}
    assert guest.restored().status_code == 200
    assert guest.upload(FIRST) == len(FIRST.objects)
    assert guest.upload(FIRST) == 0
    assert guest.commit(FIRST, None).json() == {"number": 1}
    state = guest.get("/guest/v1/state").json()
    assert state["head"] == {"number": 1, "trees": list(FIRST.trees)}
    assert state["restore"]["done"]
    site.world.clock.now += 300
    beat = guest.post(
        "/guest/v1/heartbeats", {"number": 1, "unchanged": True, "status": {"phase": "ready", "logins": 1}}
    )
    assert beat.json()["settings"]["interval_s"] == 300
    with site.world.database.read() as session:
        row = session.get_one(Environment, environment.id)
        assert row.last_backup_at == row.last_activity_at == site.world.clock.time()
        assert row.last_backup_number == 1
        assert session.get_one(Guest, (environment.id, 1)).status["phase"] == "ready"
        assert [one.number for one in session.scalars(select(Backup))] == [1]
    assert contents(site.context.homes, 1, environment.id)["home/ann/b"] == b"beta"
    urls = guest.post("/guest/v1/downloads", {"objects": list(FIRST.objects)}).json()["urls"]
    for name, data in FIRST.objects.items():
        assert guest.http.get(urls[name]["url"]).content == data
        part = guest.http.get(urls[name]["url"], headers={"range": "bytes=3-9"})
        assert (part.status_code, part.content) == (206, data[3:10])


def test_a_seed_is_for_one_machine_once(site: Site) -> None:
    environment = site.environment()
    token = site.seed(environment)
    first, stranger = site.guest(), site.guest("198.51.100.9")
    document = first.http.get(f"/seed/{token}/agent.json").json()
    assert document["console"] == "http://console.example:8480"
    assert (document["environment"], document["hostname"], document["login_user"]) == (environment.id, "work", "ann")
    assert len(first.http.get("/guest/v1/agent.pyz").content) > 1000
    for name in ("user-data", "meta-data", "vendor-data"):
        assert first.http.get(f"/seed/{token}/{name}").status_code == 200
    unknown = first.http.get("/seed/unknown/agent.json")
    refused = [
        stranger.http.get(f"/seed/{token}/agent.json"),
        stranger.enrol(token, UUID),
        first.enrol(token, "00000000-0000-0000-0000-000000000000"),
        first.enrol("unknown", UUID),
        first.http.get(f"/seed/{token}/head"),
    ]
    assert first.enrol(token, UUID).status_code == 200
    # A lost answer: the same key asks again. Another key does not get in, nor does anybody see the seed any more.
    assert first.enrol(token, UUID).json()["environment"] == environment.id
    refused += [site.guest().enrol(token, UUID), first.http.get(f"/seed/{token}/agent.json")]
    site.world.clock.now += requests.SEED_LIFE_S + 1
    refused.append(first.enrol(token, UUID))
    assert {one.status_code for one in refused} == {404}
    assert {one.text for one in refused} == {unknown.text}


def test_an_expired_or_replaced_seed_is_void(site: Site) -> None:
    environment = site.environment()
    old = site.seed(environment)
    new = site.seed(environment)
    assert site.guest().enrol(old, UUID).status_code == 404
    site.world.clock.now += requests.SEED_LIFE_S + 1
    assert site.guest().enrol(new, UUID).status_code == 404
    with site.world.database.read() as session:
        assert session.get_one(Guest, (environment.id, 1)).public_key is None


def test_a_signature_counts_once_for_one_request_in_its_time(site: Site) -> None:
    guest = site.enrolled(site.environment())
    body = json.dumps({"number": None, "unchanged": False, "status": {}}).encode()
    where = "/guest/v1/heartbeats"
    headers = guest.headers("POST", where, body)
    assert guest.http.post(where, content=body, headers=headers).status_code == 200
    assert code(guest.http.post(where, content=body, headers=headers)) == (401, "signature")
    headers = guest.headers("POST", where, body)
    wrong = [
        guest.http.post(where, content=body + b" ", headers=headers),
        guest.http.post(where + "?x=1", content=body, headers=headers),
        guest.http.post("/guest/v1/restored", content=body, headers=headers),
        guest.http.post(where, content=body),
        guest.http.post(where, content=body, headers=headers | {"Envctl-Nonce": "f" * 32}),
        guest.http.post(where, content=body, headers=headers | {"Envctl-Signature": "AAAA"}),
        guest.http.post(where, content=body, headers=headers | {"Envctl-Guest": f"{guest.environment}.2"}),
        guest.http.post(where, content=body, headers=headers | {"Envctl-Guest": "../x.1"}),
    ]
    assert {code(one) for one in wrong} == {(401, "signature")}
    for off_s in (-WINDOW_S - 1, WINDOW_S + 1):
        date = int((site.world.clock.time() + off_s) * 1000)
        late = guest.get("/guest/v1/state", date_ms=date)
        assert code(late) == (401, "clock")
        corrected = late.json()["error"]["now"]
        assert guest.get("/guest/v1/state", date_ms=corrected).status_code == 200
    # A nonce is remembered for as long as its request could come in.
    headers = guest.headers("GET", "/guest/v1/state", b"", date_ms=int((site.world.clock.time() + WINDOW_S - 1) * 1000))
    assert guest.http.get("/guest/v1/state", headers=headers).status_code == 200
    site.world.clock.now += 2 * WINDOW_S - 2
    assert guest.get("/guest/v1/state").status_code == 200
    assert code(guest.http.get("/guest/v1/state", headers=headers)) == (401, "signature")


def test_a_long_body_of_a_stranger_is_not_taken(site: Site) -> None:
    guest = site.enrolled(site.environment())

    def body() -> Iterator[bytes]:
        for _ in range(10):
            yield b" " * 100_000

    assert code(guest.http.post("/guest/v1/commits", content=body())) == (401, "signature")
    headers = guest.headers("POST", "/guest/v1/commits", b"")
    too_long = guest.http.post("/guest/v1/commits", content=b" " * (BODY_BYTES_MAX + 1), headers=headers)
    assert code(too_long) == (422, "invalid")
    assert guest.http.post("/guest/v1/enrol", content=b"x" * 5000).status_code == 422


def test_an_older_machine_is_fenced_whatever_its_clock_says(site: Site) -> None:
    environment = site.environment()
    old = site.enrolled(environment)
    old.upload(FIRST)
    site.replaced(environment, 2)
    hour_ago = int((site.world.clock.time() - 3600) * 1000)
    for answer in (
        old.get("/guest/v1/state"),
        old.get("/guest/v1/state", date_ms=hour_ago),
        old.get("/guest/v1/commands?wait=0"),
        old.commit(FIRST, None),
        old.restored(),
        old.post("/guest/v1/heartbeats", {"number": None, "unchanged": False, "status": {}}),
        old.post("/guest/v1/uploads", {"objects": []}),
        old.post("/guest/v1/downloads", {"objects": []}),
        old.post("/guest/v1/commands/x", {"ok": True, "answer": {}}),
    ):
        assert code(answer) == (412, "fenced")
    # Without the row of the new machine the head in the bucket has the last word.
    other = site.environment(name="other")
    guest = site.enrolled(other)
    guest.upload(FIRST)
    site.context.homes.fence(other.id, 2)
    assert code(guest.commit(FIRST, None)) == (412, "fenced")
    assert site.context.homes.head(other.id).number == 0  # type: ignore[union-attr]  # it was fenced


def test_an_empty_home_never_replaces_a_full_one(site: Site) -> None:
    environment = site.environment()
    first = site.enrolled(environment)
    first.upload(FIRST)
    first.commit(FIRST, None)
    site.replaced(environment, 2)
    guest = site.guest()
    said = guest.enrol(site.seed(environment, 2), UUID).json()
    assert (said["generation"], said["restore"]["number"]) == (2, 1)
    assert said["restore"]["trees"] == list(FIRST.trees)
    too_early = [
        guest.post("/guest/v1/uploads", {"objects": []}),
        guest.commit(EMPTY, 1),
        guest.post("/guest/v1/heartbeats", {"number": 1, "unchanged": True, "status": {}}),
    ]
    assert {code(one) for one in too_early} == {(425, "not-restored")}
    for wrong in (None, 2):
        assert code(guest.restored(wrong)) == (409, "refused")
    assert code(guest.commit(EMPTY, 1)) == (425, "not-restored")
    assert guest.restored(1).status_code == 200
    assert guest.restored(1).status_code == 200
    guest.upload(SECOND)
    assert guest.commit(SECOND, 1).json() == {"number": 2}


def test_a_reset_restores_the_backup_that_was_asked_for_and_goes_on_from_the_newest(site: Site) -> None:
    environment = site.environment()
    first = site.enrolled(environment)
    for number, made in enumerate((FIRST, SECOND)):
        first.upload(made)
        first.commit(made, number or None)
    with site.world.database.write() as session:
        session.get_one(Environment, environment.id).restore_snapshot = 1
    site.replaced(environment, 2)
    guest = site.guest()
    assert guest.enrol(site.seed(environment, 2), UUID).json()["restore"]["number"] == 1
    assert guest.get("/guest/v1/state").json()["head"]["number"] == 2
    assert guest.restored(1).status_code == 200
    with site.world.database.read() as session:
        assert session.get_one(Environment, environment.id).restore_snapshot is None
    # Its home is that of backup 1, and the next backup comes after 2.
    assert code(guest.commit(FIRST, 1)) == (409, "parent")
    assert guest.upload(FIRST) == 0
    assert guest.commit(FIRST, 2).json() == {"number": 3}


def test_a_new_environment_may_read_the_home_that_it_is_made_from_and_no_other(site: Site) -> None:
    source = site.environment(name="source")
    giver = site.enrolled(source)
    giver.upload(FIRST)
    giver.commit(FIRST, None)
    bobs = site.environment("bob", "bobs")
    site.enrolled(bobs)
    made = site.environment(name="made", source_environment_id=source.id)
    guest = site.guest()
    said = guest.enrol(site.seed(made), UUID).json()
    assert (said["restore"]["number"], said["restore"]["from"]) == (1, source.id)
    wanted = {"objects": list(FIRST.objects)}
    urls = guest.post("/guest/v1/downloads", wanted | {"from": source.id}).json()["urls"]
    for name, data in FIRST.objects.items():
        assert guest.http.get(urls[name]["url"]).content == data
    assert code(guest.post("/guest/v1/downloads", wanted | {"from": bobs.id})) == (403, "forbidden")
    assert code(guest.restored(None)) == (409, "refused")
    assert guest.restored(1).status_code == 200
    assert code(guest.post("/guest/v1/downloads", wanted | {"from": source.id})) == (403, "forbidden")
    command = requests.ask(
        site.context, made.id, "restore", {"number": 1, "paths": None, "into": "/tmp/x", "from": source.id}
    )
    (told,) = guest.get("/guest/v1/commands?wait=0").json()["commands"]
    assert told["parameters"]["trees"] == list(FIRST.trees)
    assert guest.post("/guest/v1/downloads", wanted | {"from": source.id}).status_code == 200
    site.world.clock.now += requests.GIVE_UP_S + 1
    late = guest.post("/guest/v1/downloads", wanted | {"from": source.id})
    assert code(late) == (403, "forbidden"), "a command that nobody believes in any more grants nothing"
    site.world.clock.now -= requests.GIVE_UP_S + 1
    guest.post(f"/guest/v1/commands/{command}", {"ok": True, "answer": {}})
    assert code(guest.post("/guest/v1/downloads", wanted | {"from": source.id})) == (403, "forbidden")


def test_a_home_that_was_to_come_from_elsewhere_and_is_gone_is_no_empty_home(site: Site) -> None:
    source = site.environment(name="source")
    giver = site.enrolled(source)
    giver.upload(FIRST)
    giver.commit(FIRST, None)
    by_number = site.environment(name="one", source_environment_id=source.id, source_snapshot=1)
    newest = site.environment(name="two", source_environment_id=source.id)
    in_time = site.environment(name="three", source_environment_id=source.id, source_snapshot=1)
    before = site.guest()
    before.enrol(site.seed(in_time), UUID)
    assert before.restored(1).status_code == 200
    site.context.homes.purge(source.id)
    for environment in (by_number, newest):
        guest = site.guest()
        said = guest.enrol(site.seed(environment), UUID)
        assert (said.status_code, said.json()["restore"]) == (200, None)
        assert code(guest.get("/guest/v1/state")) == (409, "refused")
        assert code(guest.restored(None)) == (409, "refused")
        assert code(guest.commit(EMPTY, None)) == (425, "not-restored")
    assert before.get("/guest/v1/state").json()["restore"]["done"]


def test_a_backup_that_a_machine_could_not_restore_wholly_is_pinned(site: Site) -> None:
    work = site.environment()
    site.enrolled(work).upload(FIRST)
    store = site.context.homes
    giver = site.guest()
    site.replaced(work, 2)
    giver.enrol(site.seed(work, 2), UUID)
    giver.restored()
    assert giver.upload(FIRST) == 0
    giver.commit(FIRST, None)
    site.replaced(work, 3)
    guest = site.guest()
    guest.enrol(site.seed(work, 3), UUID)
    left = {"left_out": ["aG9tZS9hbm4vYQ==", "%"], "left_out_count": 7}
    body = {"number": 1, "files": 1, "bytes": 1, "seconds": 1, **left}
    for _ in range(2):
        assert guest.post("/guest/v1/restored", body).status_code == 200
    assert store.snapshot(work.id, 1).pinned
    with site.world.database.read() as session:
        assert session.get_one(Backup, (work.id, 1)).pinned
        lines = [one.text for one in session.scalars(select(JobLine)) if one.level == "warning"]
    assert len(lines) == 1
    assert "7 files or directories of backup 1" in lines[0]
    assert "/home/ann/a." in lines[0]
    status = {"problems": ["a", 1, {"b": 2}, "c" * 999]}
    assert guest.post("/guest/v1/heartbeats", {"number": 1, "status": status}).status_code == 200
    with site.world.database.read() as session:
        assert session.get_one(Guest, (work.id, 3)).status["problems"] == ["a", "c" * 300]


def test_commands_are_handed_out_once_and_answered_once(site: Site) -> None:
    environment = site.environment()
    guest = site.enrolled(environment)
    other = site.enrolled(site.environment(name="other"))
    command = requests.ask(site.context, environment.id, "backup", {"kind": "final"})
    assert requests.answer_of(site.context, command).state == "waiting"
    assert other.get("/guest/v1/commands?wait=0").json() == {"commands": []}
    told = guest.get("/guest/v1/commands?wait=0").json()["commands"]
    assert told == [{"id": command, "kind": "backup", "parameters": {"kind": "final"}}]
    assert guest.get("/guest/v1/commands?wait=0").json() == {"commands": []}
    assert requests.answer_of(site.context, command).state == "taken"
    # The agent died: it is told again.
    site.world.clock.now += requests.REDELIVER_S
    assert [one["id"] for one in guest.get("/guest/v1/commands?wait=0").json()["commands"]] == [command]
    assert code(other.post(f"/guest/v1/commands/{command}", {"ok": True, "answer": {}})) == (404, "not-found")
    assert guest.post(f"/guest/v1/commands/{command}", {"ok": True, "answer": {"number": 4}}).status_code == 200
    assert guest.post(f"/guest/v1/commands/{command}", {"ok": False, "answer": {"number": 5}}).status_code == 200
    answered = requests.answer_of(site.context, command)
    assert (answered.state, answered.answer) == ("done", {"number": 4})
    pending = requests.ask(site.context, environment.id, "backup", {"kind": "asked"})
    requests.revoke(site.context, environment.id, 1)
    assert requests.answer_of(site.context, pending).state == "failed"


def test_a_guest_that_waits_hears_of_a_command_without_asking_the_database_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envctl.web.guest.LOOK_S", 1e6)
    monkeypatch.setattr("envctl.web.guest.WAIT_MAX_S", 1e6)
    environment = site.environment()
    guest = site.enrolled(environment)
    watchers, looked = Watchers(), threading.Event()
    take = guests.take_commands

    def taking(context: Context, identity: Identity) -> list[dict[str, object]]:
        found = take(context, identity)
        looked.set()
        return found

    monkeypatch.setattr(guests, "take_commands", taking)
    app = FastAPI()
    app.include_router(router(lambda: site.context, watchers))
    with TestClient(app) as http, ThreadPoolExecutor(1) as pool:
        guest.http = http
        waiting = pool.submit(guest.get, "/guest/v1/commands?wait=1000000")
        assert looked.wait(60), "nothing was looked for"
        assert not waiting.done()
        command = requests.ask(site.context, environment.id, "backup", {"kind": "final"})
        watchers.told(environment.id)
        assert [one["id"] for one in waiting.result(60).json()["commands"]] == [command]


def test_addresses_of_objects_allow_what_they_say_and_nothing_else(site: Site) -> None:
    guest = site.enrolled(site.environment())
    name, data = next(iter(FIRST.objects.items()))
    wanted = {"objects": [{"name": name, "size": len(data), "sha256": name.partition("/")[2]}]}
    where = guest.post("/guest/v1/uploads", wanted).json()["urls"][name]["url"]
    put = guest.http.put
    assert put(where, content=data[:-1] + b"?").status_code == 400
    assert put(where, content=data[:-1]).status_code == 400
    assert put(where, content=data + b"?").status_code == 422
    assert guest.http.get(where).status_code == 404
    assert put(where[:-1] + ("0" if where[-1] != "0" else "1"), content=data).status_code == 404
    assert put(where, content=data).status_code == 200
    assert put(where, content=data).status_code == 412
    get = guest.post("/guest/v1/downloads", {"objects": [name]}).json()["urls"][name]["url"]
    assert guest.http.put(get, content=b"x").status_code == 404
    assert guest.http.get(get, headers={"range": f"bytes={len(data)}-"}).status_code == 416
    site.world.clock.now += 3601
    assert guest.http.get(get).status_code == 404
    assert put(where, content=data).status_code == 404
    for bad in ("head", f"packs/../../{guest.environment}/head", "snapshots/000000000001"):
        assert code(guest.post("/guest/v1/downloads", {"objects": [bad]})) == (422, "invalid")


def test_a_lost_answer_of_a_commit_and_an_alert(site: Site) -> None:
    environment = site.environment()
    guest = site.enrolled(environment)
    guest.upload(FIRST)
    many = {"files": 100, "bytes": 1, "new_bytes": 7}
    assert guest.commit(FIRST, None, stats=many, at=1.0).json() == {"number": 1}
    assert guest.commit(FIRST, None, stats=many, at=1.0).json() == {"number": 1}
    again = guest.commit(FIRST, None, stats=many, at=2.0)
    assert code(again) == (409, "parent")
    assert again.json()["error"]["head"] == {"number": 1, "trees": list(FIRST.trees)}
    guest.upload(SECOND)
    assert guest.commit(SECOND, 1, stats=many | {"changed": 90}, at=3.0).json() == {"number": 2}
    with site.world.database.read() as session:
        assert session.get_one(Environment, environment.id).stored_bytes == 14
        assert "90 of 100" in (session.get_one(Backup, (environment.id, 2)).alert or "")
        lines = [line.text for line in session.scalars(select(JobLine).where(JobLine.level == "warning"))]
        assert len(lines) == 1
    absent = make({"home/x": b"never uploaded"})
    missing = guest.commit(absent, 2)
    assert code(missing) == (409, "missing")
    assert set(missing.json()["error"]["missing"]) == set(absent.objects)
