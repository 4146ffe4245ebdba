"""Files and archives that are taken out: a few at once a user, and none counts longer than it lasts."""

import asyncio
import gc
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from starlette.types import Message

from envctl.calling import Caller
from envctl.errors import TooMany
from envctl.verbs.verb import Stream
from envctl.web.api import download
from envctl.web.app import add_api, add_errors, new_app
from envctl.web.downloads import DOWNLOADS_MAX, Downloads
from tests.envctl.homes.test_backups import Site, site

__all__ = ["site"]

ALICE = Caller("alice", "alice", "user", "browser")


def endless() -> Iterator[bytes]:
    while True:
        yield b"x"


def stream() -> Stream:
    return Stream(endless(), "all.tar")


async def _gone() -> Message:
    return {"type": "http.disconnect"}


async def _lost(message: Message) -> None:
    raise OSError("the client has left")


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_left_before_the_first_piece_holds_no_turn(version: str) -> None:
    downloads = Downloads()
    answer = download(downloads, ALICE, stream)
    assert downloads.open("alice") == 1

    async def waits_for_ever(message: Message) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": version}, "method": "GET", "path": "/", "headers": []}
    if version == "2.4":
        with pytest.raises(ClientDisconnect):
            asyncio.run(answer(scope, _gone, _lost))
    else:
        asyncio.run(answer(scope, _gone, waits_for_ever))
    assert downloads.open("alice") == 0


def test_an_answer_that_is_never_sent_and_one_that_cannot_be_made_hold_none() -> None:
    downloads = Downloads()
    answer = download(downloads, ALICE, stream)
    assert downloads.open("alice") == 1
    del answer
    gc.collect()
    assert downloads.open("alice") == 0

    def broken() -> Stream:
        assert downloads.open("alice") == 1, "what has to be made first counts too"
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        download(downloads, ALICE, broken)
    assert downloads.open("alice") == 0


def test_a_turn_ends_once() -> None:
    downloads = Downloads(2)
    first, _ = downloads.begin("a"), downloads.begin("a")
    with pytest.raises(TooMany):
        downloads.begin("a")
    downloads.begin("b")
    first.end()
    first.end()
    assert downloads.open("a") == 1


def test_the_fifth_download_of_a_user_comes_again_after_five_seconds(site: Site) -> None:
    app = new_app()
    add_errors(app)
    add_api(app, lambda: site.world.context, lambda request: site.alice)
    downloads: Downloads = app.state.downloads
    mine = site.alice.user_id
    path = "/api/v1/environments/work/backups/1/file?path=home/alice/notes.txt"
    with TestClient(app) as http:
        held = [downloads.begin(mine) for _ in range(DOWNLOADS_MAX)]
        refused = http.get(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too-many")
        assert refused.json()["error"]["hint"] == "wait until one has ended"
        assert refused.headers["retry-after"] == "5"
        held[0].end()
        assert http.get(path).content == b"first " * 20
        assert http.get(path.replace("notes", "none")).status_code == 404
        assert downloads.open(mine) == DOWNLOADS_MAX - 1, "those that are over count no more"
