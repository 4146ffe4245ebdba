"""How the console is, for monitors and balancers: `/healthz` (the process answers) and `/readyz` (it can do its work).

One rule: what a request would have to wait for (a bucket, a hypervisor) is looked at beside the requests, by the Monitor. The
public answers have one word; who may read metrics has one for each part. What is wrong in full is for `admin doctor`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from envctl.calling import Context
from envctl.errors import EnvctlError
from envctl.web.scraping import is_known
from s3core.errors import NotFound, StoreError

log = logging.getLogger(__name__)

LOOK_S: Final = 30.0
ANSWER_S: Final = 20.0
"""Longer than this counts as away."""
PROBE_KEY: Final = "doctor/none"
"""Nothing is there."""

Word = Literal["ok", "away", "unknown"]


@dataclass(slots=True)
class Seen:
    """What the last look found; one task writes it."""

    store: Word = "unknown"
    drivers: dict[str, Word] = field(default_factory=dict)
    at: float | None = None


class Monitor:
    """Looks at the store and the hypervisors each `LOOK_S`. A part that goes or comes back is one line in the log."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.seen = Seen(drivers=dict.fromkeys(context.drivers, "unknown"))

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        drivers = dict(self._context.drivers)
        store, *found = await asyncio.gather(
            _word("store", asyncio.to_thread(self._store)),
            *(_word(f"driver {name}", driver.headroom()) for name, driver in drivers.items()),
        )
        _tell("store", self.seen.store, store)
        self.seen.store = store
        for name, word in zip(drivers, found, strict=True):
            _tell(f"driver {name}", self.seen.drivers.get(name, "unknown"), word)
            self.seen.drivers[name] = word
        self.seen.at = self._context.now()

    def _store(self) -> None:
        try:
            self._context.homes.objects.head(PROBE_KEY)
        except NotFound:
            return


async def _word(what: str, question: Awaitable[object]) -> Word:
    try:
        async with asyncio.timeout(ANSWER_S):
            await question
    except (EnvctlError, StoreError, OSError) as error:
        log.debug("%s: %s", what, error)
        return "away"
    return "ok"


def _tell(what: str, before: Word, now: Word) -> None:
    if now == "away" and before != "away":
        log.warning("%s does not answer", what)
    elif now == "ok" and before == "away":
        log.info("%s answers again", what)


def router(get_context: Callable[[], Context], monitor: Monitor) -> APIRouter:
    made = APIRouter(include_in_schema=False)

    @made.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @made.get("/readyz")
    def readyz(request: Request) -> Response:
        """Whether, for everybody; what of it, and what hypervisors are called, for this host and who has the token of
        `metrics_token`. 503 while the database does not answer. A store or a hypervisor that is away is told and is no
        reason to send nobody here: pages, sign-in and what is known of homes work."""
        database: Word = "ok"
        try:
            get_context().database.check()
        except EnvctlError as error:
            log.warning("not ready: %s", error)
            database = "away"
        told: dict[str, object] = {"ready": database == "ok"}
        if is_known(request, get_context().settings.metrics_token):
            told |= {"database": database, "store": monitor.seen.store, "drivers": dict(monitor.seen.drivers)}
        return JSONResponse(told, status_code=200 if database == "ok" else 503)

    return made
