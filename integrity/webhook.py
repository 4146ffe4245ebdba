"""Feeds over HTTP: what servers push, into the ledger.

    POST /feeds/FEED[/TOKEN][?endpoint=NAME]     FEED: notifications, minio-audit, cloudtrail

    | answer | when |
    | --- | --- |
    | 200 | the records are durable on this host; what could not be understood of the body is in quarantine |
    | 400, 413 | nothing of the body can be understood (it is in quarantine), or it is too large |
    | 401, 404 | the token is missing or wrong; there is no such feed, or no such endpoint |
    | 503 | the ledger cannot take records now: send it again |

One rule: 200 is said after the sync, never before. Requests that arrive while one sync goes on share the next: one task takes
all that wait, records them as one batch, and answers them together.
"""

import asyncio
import hmac
import logging
import os
import sqlite3
from dataclasses import dataclass
from typing import Self

import orjson
from fastapi import APIRouter, FastAPI, Request, Response

from integrity.errors import LedgerError
from integrity.ingest.events import Event, Options, inner
from integrity.ingest.feeds import FEEDS
from integrity.ingest.intake import Intake, Quarantine
from integrity.place import Ledger
from s3core.credentials import read_secret, secret_path

BODY_BYTES_MAX = 1 << 20
"""Notifications have at most 256 KiB."""
HEADERS_BYTES_MAX = 32 << 10
WAITING_MAX = 4096
"""Requests that wait for one sync; beyond that the answer is 503."""
BATCH_EVENTS = 5000

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Since the process began."""

    requests: int = 0
    recorded: int = 0
    repeated: int = 0
    malformed: int = 0
    refused: int = 0
    """Requests answered with 503."""


@dataclass(slots=True)
class _Waiting:
    feed: str
    events: tuple[Event, ...]
    wrong: tuple[str, ...]
    body: bytes
    done: "asyncio.Future[Response]"


class Door:
    """Where requests wait for the ledger; for one event loop. `token` "": none is asked for. What is given to it stays the
    caller's to close, after the loop has ended."""

    def __init__(
        self,
        intake: Intake,
        quarantine: Quarantine,
        *,
        token: str = "",
        endpoints: frozenset[str] = frozenset(),
        reads: bool = False,
    ) -> None:
        self.counts = Counts()
        self.token = token
        self.endpoints = endpoints
        self.reads = reads
        self._intake = intake
        self._quarantine = quarantine
        self._waiting: list[_Waiting] = []
        self._work = asyncio.Event()
        self._recording: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, ledger: Ledger, intake: Intake, quarantine: Quarantine, *, endpoints: frozenset[str]) -> Self:
        """As the ledger's settings say. CredentialsError for a token that cannot be read."""
        file = ledger.settings.webhook_token_file
        token = read_secret(secret_path(file, os.environ)) if file else ""
        return cls(intake, quarantine, token=token, endpoints=endpoints, reads=ledger.settings.reads)

    def lets_in(self, shown: str) -> bool:
        """Whether that is the token, in a time that does not depend on how much of it is right."""
        return not self.token or hmac.compare_digest(shown.encode(), self.token.encode())

    async def take(self, feed: str, endpoint: str, body: bytes) -> Response:
        """The answer to a body, once it is known."""
        self.counts.requests += 1
        if len(self._waiting) >= WAITING_MAX:
            return self._later("too many requests wait")
        found = FEEDS[feed].parse(body, Options(endpoint=endpoint, reads=self.reads))
        if not found.events and not found.wrong:
            return _text(200, "nothing to record\n")
        done: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(feed, found.events, found.wrong, body, done))
        self._work.set()
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record_always())
        return await done

    async def _record_always(self) -> None:
        """Record what waits, group by group, until the loop ends; what waits then is answered with 503."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while self._waiting:
                    await self._take_group()
        finally:
            for one in self._waiting:
                if not one.done.done():
                    one.done.set_result(self._later("the service stops"))
            self._waiting.clear()

    async def _take_group(self) -> None:
        group: list[_Waiting] = []
        count = 0
        while self._waiting and count < BATCH_EVENTS:
            one = self._waiting.pop(0)
            group.append(one)
            count += len(one.events)
        recording = asyncio.ensure_future(asyncio.to_thread(self._record, group))
        stopped = False
        answers: list[Response] = []
        try:
            try:
                answers = await asyncio.shield(recording)
            except asyncio.CancelledError:
                stopped = True
                answers = await recording
        except (LedgerError, OSError, sqlite3.Error) as error:
            log.error("the ledger cannot take what was pushed: %s", error)
        finally:
            # Nobody waits for good, whatever it was that ended this; the next request begins another task.
            for place, one in enumerate(group):
                if not one.done.done():
                    known = place < len(answers)
                    one.done.set_result(answers[place] if known else self._later("the ledger cannot take records now"))
        if stopped:
            raise asyncio.CancelledError

    def _record(self, group: list[_Waiting]) -> list[Response]:
        for one in group:
            if one.wrong:
                self._quarantine.put(one.feed, "webhook", one.wrong, one.body)
                self.counts.malformed += len(one.wrong)
                log.warning("%s: an entry that was pushed is not understood: %s", one.feed, one.wrong[0])
        taken = self._intake.take(event for one in group for event in one.events)
        self.counts.recorded += taken.recorded
        self.counts.repeated += taken.repeated
        for why in taken.refused:
            self.counts.malformed += 1
            log.warning("an event that was pushed cannot be a record: %s", why)
        return [_text(200, "recorded\n") if one.events else _text(400, f"{one.wrong[0]}\n") for one in group]

    def _later(self, why: str) -> Response:
        self.counts.refused += 1
        return Response(f"{why}\n", 503, media_type="text/plain", headers={"Retry-After": "5"})


def webhook_router(door: Door) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/feeds/{feed}")
    @router.post("/feeds/{feed}/{token}")
    async def push(request: Request, feed: str, token: str = "") -> Response:
        shown = request.headers.get("authorization", "")
        scheme, _, bearer = shown.partition(" ")
        if not door.lets_in(bearer.strip() if scheme.lower() == "bearer" and bearer else token or shown):
            return _text(401, "show the token: Authorization: Bearer TOKEN, or the last element of the path\n")
        known = FEEDS.get(feed)
        if known is None or not known.pushed:
            return _text(404, "there is no such feed\n")
        endpoint = request.query_params.get("endpoint", "")
        if endpoint and endpoint not in door.endpoints:
            return _text(404, "there is no such endpoint in the configuration\n")
        body = await _body(request)
        if body is None:
            return _text(413, f"a body has at most {BODY_BYTES_MAX:,} bytes\n")
        if _asks_to_confirm(body):
            return _text(200, "shown to the operator\n")
        return await door.take(feed, endpoint, body)

    return router


def webhook_app(door: Door) -> FastAPI:
    """A service of these routes alone, and `/healthz`."""

    app = FastAPI(title="s3integrity webhook", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(webhook_router(door))

    @app.get("/healthz")
    async def healthz() -> Response:
        return _text(200, "ok\n")

    return app


async def _body(request: Request) -> bytes | None:
    """None for one that is too large; what is beyond the limit is not read."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > BODY_BYTES_MAX:
        return None
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            return None
    return bytes(body)


def _asks_to_confirm(body: bytes) -> bool:
    """Whether SNS asks if it may push here. The operator decides: who follows a stranger's address is subscribed by him."""
    if b"SubscriptionConfirmation" not in body and b"UnsubscribeConfirmation" not in body:
        return False
    try:
        document = orjson.loads(body)
    except ValueError:
        return False
    if inner(document, "Type") not in ("SubscriptionConfirmation", "UnsubscribeConfirmation"):
        return False
    log.warning(
        "SNS topic %r asks for a confirmation; if it is yours, open this address once: %r",
        inner(document, "TopicArn"),
        inner(document, "SubscribeURL"),
    )
    return True


def _text(status: int, text: str) -> Response:
    return Response(text, status, media_type="text/plain")
