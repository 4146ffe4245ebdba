"""Forms as a browser without JavaScript sends them: what is done, what is refused and where the reason stands."""

import re

import httpx

from envctl.database.models import Environment
from envctl.states import EnvironmentState
from tests.envctl.pages.furnished import House, post
from tests.envctl.world import PASSWORD


def state_of(house: House, name: str) -> str:
    with house.world.database.read() as session:
        return session.get_one(Environment, house.environments[name]).state


def test_an_environment_is_asked_for_and_deleted(house: House) -> None:
    with house.browser("bob") as client:
        page = "/environments/new"
        wrong = post(client, page, page, template="debian", name="Not A Name", cores="many")
        assert wrong.status_code == 422
        assert 'aria-invalid="true"' in wrong.text
        assert 'value="Not A Name"' in wrong.text, "what was typed is still there"
        made = post(client, page, page, template="debian", name="box", cores="1", memory_mib="1024", disk_gib="32")
        assert re.fullmatch(r"/environments/[0-9a-z]{26}", made.url.path)
        assert "The environment is being made" in made.text
        assert house.world.woken, "the runner was told"

        shared = f"/environments/{house.environments['shared']}"
        question = client.get(f"{shared}/act/delete")
        assert "Kept for 30 d" in question.text
        assert "Undelete brings them back" in question.text
        assert state_of(house, "shared") == EnvironmentState.READY, "a question changes nothing"
        post(client, f"{shared}/act/delete", f"{shared}/act/delete")
        assert state_of(house, "shared") == EnvironmentState.DELETING
        again = post(client, f"{shared}/act/stop", f"{shared}/act/stop")
        assert again.status_code == 409
        assert "is under way" in again.text


def test_over_quota_is_said_on_the_page(house: House) -> None:
    with house.browser("bob") as client:
        page = "/environments/new"
        answer = post(client, page, page, template="debian", name="huge", cores="8", memory_mib="8192", disk_gib="64")
        assert answer.status_code in (200, 409)
        answer = post(client, page, page, template="debian", name="huge-2", cores="8", memory_mib="8192", disk_gib="64")
        assert answer.status_code == 409
        assert 'role="alert"' in answer.text
        assert "of 12" in answer.text or "12" in answer.text


def test_what_others_have_and_what_is_not_theirs_to_do(house: House) -> None:
    thesis = house.environments["thesis"]
    with house.browser("bob") as client:
        for path in ("", "/backups", "/backups/40", "/settings", "/act/delete", "/console/vnc"):
            answer = client.get(f"/environments/{thesis}{path}")
            assert answer.status_code == 404, path
            assert "thesis" not in answer.text
        for path in ("users", "settings", "doctor", "jobs/" + house.jobs["thesis"], "orphans", "environments"):
            assert client.get(f"/admin/{path}").status_code in (403, 404), path
        assert "/admin/" not in client.get("/environments").text, "no menu for what they may not"
    with house.browser("ops") as client:
        assert client.get("/admin/jobs").status_code == 200
        assert client.get("/admin/settings").status_code == 403


def test_without_the_token_of_the_page_nothing_is_done(house: House) -> None:
    thesis = f"/environments/{house.environments['thesis']}"
    with house.browser("alice") as client:
        answer = client.post(f"{thesis}/act/stop", data={"csrf": "x"})
        assert answer.status_code == 403
        assert "too old" in answer.text
        assert state_of(house, "thesis") == EnvironmentState.READY


def test_words_on_a_page_are_never_those_of_a_link(house: House) -> None:
    with house.browser("alice") as client:
        answer = client.get("/environments?done=<b>Call+0900</b>&search=<script>alert(1)</script>")
        assert "0900" not in answer.text
        assert "<script>alert" not in answer.text
        assert "Starting." in client.get("/environments?done=env.start").text


def test_a_file_is_a_download_whatever_it_is(house: House) -> None:
    base = f"/environments/{house.environments['thesis']}/backups/40"
    with house.browser("alice") as client:
        answer = client.get(f"{base}/download", params={"path": "home/alice/thesis/figures/rainfall.svg"})
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.content.startswith(b"<svg")
        archive = client.get(f"{base}/zip", params={"path": "home/alice/thesis"})
        assert archive.content.startswith(b"PK")
        assert client.get(f"{base}/download", params={"path": "../../etc/passwd"}).status_code in (404, 422)
        page = client.get(base, params={"path": "home/alice"})
        assert "a file with blanks &amp; &lt;signs&gt;.txt" in page.text


def test_a_home_at_a_minute(house: House) -> None:
    base = f"/environments/{house.environments['thesis']}/backups"
    with house.browser("alice") as client:
        found = client.get(base, params={"at": "2026-09-21T14:03"})
        assert re.search(r"/backups/\d+$", found.url.path)
        assert client.get(base, params={"at": "2001-01-01T00:00"}).status_code == 404
        assert client.get(base, params={"at": "yesterday"}).status_code == 422


def test_tokens_and_codes_are_told_once(house: House) -> None:
    with house.browser("alice") as client:
        told = post(client, "/profile/token", "/profile", token_name="ci", scope=["env:read", "backup:read"], days="30")
        secret = re.search(r"bwe_[0-9a-zA-Z_-]+", told.text)
        assert secret is not None
        assert told.headers["cache-control"] == "no-store"
        assert secret.group() not in client.get("/profile").text
        answer = httpx.get(f"{house.url}/api/v1/environments", headers={"Authorization": f"Bearer {secret.group()}"})
        assert answer.status_code == 200
        begun = post(client, "/profile/totp-begin", "/profile", current_password="wrong wrong wrong")
        assert begun.status_code >= 400
        assert "data:image/png" not in begun.text


def test_who_must_change_the_password_does_that_first(house: House) -> None:
    with house.browser("root") as client:
        told = post(client, "/admin/users", "/admin/users", name="carol", role="user")
        once = re.search(r'aria-label="One-time password">([^<]+)<', told.text)
        assert once is not None
    with house.browser("carol", once.group(1)) as client:
        assert client.get("/environments").url.path == "/profile"
        form = {"current_password": once.group(1), "new_password": PASSWORD + " and more"}
        answer = post(client, "/profile/password", "/profile", **form)
        assert "The password is changed" in answer.text
        assert client.get("/environments").url.path == "/environments"


def test_the_page_of_an_error(house: House) -> None:
    with house.browser("alice") as client:
        answer = client.get("/nowhere")
        assert answer.status_code == 404
        assert "There is no such page" in answer.text
        assert "Signed in as <b>alice</b>" in answer.text, "with the menu"
    assert httpx.get(f"{house.url}/environments").headers["location"] == "/login?next=%2Fenvironments"
    assert httpx.get(f"{house.url}/static/../visit.py").status_code == 404
    assert httpx.get(f"{house.url}/static/console.css").headers["cache-control"] == "no-cache"


def test_looking_is_not_using(house: House) -> None:
    """A page that is left open does not keep a machine from its idle stop, nor fill the audit."""

    def activity() -> float | None:
        with house.world.database.read() as session:
            return session.get_one(Environment, house.environments["thesis"]).last_activity_at

    before = activity()
    with house.browser("alice") as client:
        for path in ("", "/head", "/facts", "/backups", "/settings", "/log"):
            assert client.get(f"/environments/{house.environments['thesis']}{path}").status_code == 200
        assert "ssh user@10.20.0" in client.get(f"/environments/{house.environments['thesis']}").text
    assert activity() == before
