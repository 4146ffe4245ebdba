"""The REST API over HTTP: tokens, scopes, roles, errors, and what is the same for every verb."""

from collections.abc import Iterator

import httpx
import pytest

from envctl.verbs.table import VERBS
from envctl.verbs.verb import Verb
from tests.envctl.assembly.running import Running, running_console


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_console(tmp_path_factory.mktemp("api"), role="web") as running:
        running.add_user("root", "admin")
        running.add_user("ops", "operator")
        running.add_user("alice")
        yield running


def ask(client: httpx.Client, verb: Verb) -> httpx.Response:
    """With nothing but names in its path: it is refused before, or finds what it asks for wrong or missing."""
    path = verb.path
    for part in verb.path.split("/"):
        if part.startswith("{"):
            path = path.replace(part, "1")
    return client.request(verb.method, "/api/v1" + path, json=None if verb.method in ("GET", "DELETE") else {})


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_nobody_and_a_bad_token_are_401_everywhere(console: Running, verb: Verb) -> None:
    for token in ("bwe_00000000000000000000000000_x", "x"):
        with console.client(token) as client:
            answer = ask(client, verb)
        assert answer.status_code == 401, answer.text
        assert answer.json()["error"]["code"] == "not-signed-in"
    with console.client() as client:
        answer = ask(client, verb)
    # Without a token it may be a browser that a page of others uses: that is refused first. Then what is asked is read.
    assert answer.status_code in ((401, 422) if verb.method == "GET" else (403,)), answer.text


def test_a_scope_is_for_its_noun_alone(console: Running) -> None:
    with console.client(console.token("root", "env:read")) as reader:
        for verb in VERBS:
            answer = ask(reader, verb)
            if verb.scope != "env:read" and answer.status_code != 422:
                assert answer.status_code == 403, verb.name
                assert verb.scope in answer.json()["error"]["hint"] + answer.json()["error"]["message"], verb.name
    with console.client(console.token("root", "env:write")) as writer:
        assert writer.get("/api/v1/environments").status_code == 200, "write brings read along"


def test_a_token_may_no_more_than_its_user(console: Running) -> None:
    for name, roles in (("alice", {"user"}), ("ops", {"user", "operator"})):
        with console.client(console.token(name)) as client:
            for verb in VERBS:
                answer = ask(client, verb)
                if verb.role not in roles:
                    assert answer.status_code in (403, 422), (name, verb.name)


def test_errors_have_one_form(console: Running) -> None:
    with console.client(console.token("root")) as client:
        missing = client.get("/api/v1/environments/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not-found"
        wrong = client.post("/api/v1/environments", json={"name": "Not A Name", "template": "x"})
        assert wrong.status_code in (404, 422)
        unknown = client.post("/api/v1/environments", json={"name": "a", "template": "x", "sudo": True})
        assert unknown.status_code == 422
        assert "sudo" in str(unknown.json()["error"])
        nowhere = client.get("/api/v1/nowhere")
        assert nowhere.status_code == 404
        assert nowhere.json()["error"]["code"] == "not-found"
        method = client.put("/api/v1/environments")
        assert method.status_code == 405
        assert "error" in method.json()
        large = client.post(
            "/api/v1/environments", content=b"x" * (2 << 20), headers={"Content-Type": "application/json"}
        )
        assert large.status_code == 413
        for answer in (missing, unknown, nowhere):
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_description_has_every_verb_with_scope_and_role(console: Running) -> None:
    with console.client() as client:
        document = client.get("/api/openapi.json").json()
    described = {
        one["operationId"]: one for path in document["paths"].values() for one in path.values() if "x-scope" in one
    }
    assert set(described) == {verb.name.replace(".", "_") for verb in VERBS}
    for verb in VERBS:
        one = described[verb.name.replace(".", "_")]
        assert (one["x-scope"], one["x-role"], one["summary"]) == (verb.scope, verb.role, verb.summary)
    # Guests, pages and machines' addresses are no part of it.
    assert all(path.startswith("/api/v1/") for path in document["paths"])


def test_an_answer_has_what_its_model_says(console: Running) -> None:
    with console.client(console.token("root")) as client:
        users = client.get("/api/v1/users").json()
        assert {user["name"] for user in users} == {"root", "ops", "alice"}
        assert not any("password" in key and key != "password_must_change" for user in users for key in user)
        shown = client.put("/api/v1/settings/boot_s", json={"value": "11 min"}).json()
        assert (shown["value"], shown["kept"]) == (660.0, True)
        assert client.delete("/api/v1/settings/boot_s").json()["kept"] is False
