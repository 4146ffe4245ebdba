"""Values that no form sends: they are refused, or kept, on both databases; they are never a failure of the console."""

from pathlib import Path

import pytest

from envctl.database.models import Setting
from envctl.errors import Invalid
from tests.envctl.security.site import Site
from tests.envctl.world import make_world

ODD = (
    "a\x00b",
    "\x00",
    "\ud800",
    "a\ud800\udc00",
    "\uffff",
    "x" * 5000,
    "\u202e",
    "'; DROP TABLE users; --",
    "%s%n",
    "{{7*7}}",
)
NUMBERS = (-1, 0, 2**31, 2**63, 2**64, 10**40)


def test_odd_values_are_nobodys_failure(database_url: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", database_url=database_url)
    site = Site(world)
    client, headers = site.browser().client, site.token("root")
    for number, text in enumerate(ODD):
        body = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if "\ud800" in text else text
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in text)
        browser = site.browser(f"198.51.100.{number}")
        answers = [
            client.patch("/api/v1/profile", content=f'{{"display_name": "{escaped}"}}', headers=headers),
            client.get("/api/v1/users", params={"search": body}, headers=headers),
            client.get("/api/v1/admin/audit", params={"actor": body, "verb": body}, headers=headers),
            client.post("/api/v1/tokens", content=f'{{"name": "{escaped}", "scopes": ["*"]}}', headers=headers),
            browser.sign_in(body, body),
        ]
        for answer in answers:
            assert answer.status_code < 500, (text, answer.request.url, answer.text)
    for number in NUMBERS:
        for path in ("/api/v1/admin/audit?before=", "/api/v1/admin/audit?since=", "/api/v1/jobs?limit="):
            assert client.get(f"{path}{number}", headers=headers).status_code in (200, 422), (path, number)
    world.close()


def test_what_a_column_cannot_hold_is_told(database_url: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", database_url=database_url)
    with pytest.raises(Invalid), world.database.write() as session:
        session.add(Setting(key="\ud800", value=1))
    with world.database.read() as session:
        assert session.query(Setting).all() == []
    world.close()
