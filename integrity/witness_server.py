"""The witness over HTTP (C2SP tlog-witness): `add-checkpoint` for logs, the cosigned checkpoints for monitors.

One rule: nothing is decided here. A request is read whole, within its bound, and handed to `WitnessFolder.add`.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from integrity.tlog.witness import REQUEST_BYTES_MAX, TEXT_TYPE
from integrity.witness_state import WitnessFolder
from s3core.service_manager import ServiceManager

REQUESTS_AT_ONCE = 64
IDLE_S = 30
END_S = 5
"""How long requests that are under way have when the service is told to end."""

TOLD_S = 5.0

log = logging.getLogger(__name__)


def witness_app(folder: WitnessFolder, clock: Callable[[], float]) -> FastAPI:
    """The service, to be run by uvicorn; `clock` tells Unix seconds. Both prefixes of the specification are its root."""
    app = FastAPI(title="s3integrity witness", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/add-checkpoint")
    async def add_checkpoint(request: Request) -> Response:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > REQUEST_BYTES_MAX:
                return _text(413, f"a request has at most {REQUEST_BYTES_MAX} bytes\n")
        try:
            answer = await run_in_threadpool(folder.add, bytes(body), int(clock()))
        except OSError as error:
            log.error("nothing was cosigned: %s", error)
            return _text(503, "the witness cannot write its state\n")
        (log.info if answer.status in (200, 409) else log.warning)("%d %s", answer.status, answer.said)
        # As a header: given as a media type, text has its character set added, and the specification's has none.
        return Response(answer.body, answer.status, headers={"Content-Type": answer.content_type})

    @app.get("/{origin_hash}/checkpoint")
    async def checkpoint(origin_hash: str) -> Response:
        note = folder.latest(origin_hash)
        if note is None:
            return _text(404, "no checkpoint of that log was cosigned here\n")
        return Response(note, 200, media_type=TEXT_TYPE, headers={"Cache-Control": "max-age=5"})

    @app.get("/healthz")
    async def healthz() -> Response:
        return _text(200, "ok\n")

    return app


class _Server(uvicorn.Server):
    """Ends in order when it is told to, and that is no failure: uvicorn would raise the signal once more."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


async def _tell(manager: ServiceManager, text: str) -> None:
    """Signs of life from the loop that answers, so that one that hangs is seen."""
    manager.ready()
    manager.status(text)
    while True:
        manager.alive()
        await asyncio.sleep(min(manager.watchdog_s / 3 or TOLD_S, TOLD_S))


async def _serve(server: uvicorn.Server, listening: socket.socket, manager: ServiceManager, text: str) -> None:
    # Connections wait in the socket's queue until uvicorn takes them.
    told = asyncio.create_task(_tell(manager, text))
    try:
        await server.serve(sockets=[listening])
    finally:
        manager.stopping()
        told.cancel()


def run(folder: WitnessFolder, listening: socket.socket, manager: ServiceManager) -> None:
    """Serve on that socket until SIGTERM or SIGINT. To be called in the main thread."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    config = uvicorn.Config(
        witness_app(folder, time.time),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=REQUESTS_AT_ONCE,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=END_S,
    )
    asyncio.run(_serve(_Server(config), listening, manager, f"witness for {len(folder.witness.logs)} logs"))


def _text(status: int, text: str) -> Response:
    return Response(text, status, media_type=TEXT_TYPE)
