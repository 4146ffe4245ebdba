"""The console's ASGI application, put together. Each part is a router; this says in which order, and what is so for all.

One rule: whatever an application raises becomes an answer of ours: JSON for machines, a page for people; never a traceback.
"""

import logging
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envctl.accounts import oidc
from envctl.calling import Context
from envctl.errors import EnvctlError, Invalid, NoSuchThing
from envctl.verbs.table import VERBS
from envctl.web import api, bridge, guest, health, metrics, signing_in
from envctl.web.bridge import Bridge
from envctl.web.downloads import Downloads
from envctl.web.events import Watchers
from envctl.web.health import Monitor
from envctl.web.pages import routes as pages
from envctl.web.pages.visit import error_page_for
from envctl.web.security import Security, current_caller
from s3core.console import program_version
from s3core.errors import StoreError

log = logging.getLogger(__name__)

MACHINE_PREFIXES: Final = ("/api/", "/guest/", "/seed/", "/healthz", "/readyz", "/metrics")
"""Who asks below these reads JSON."""

ErrorPage = Callable[[Request, EnvctlError], Response]


def create_app(
    context: Context,
    *,
    watchers: Watchers | None = None,
    bridge_open: Bridge | None = None,
    monitor: Monitor | None = None,
    provider: oidc.Provider | None = None,
) -> FastAPI:
    """All routes. `watchers` and `bridge_open` are closed by who serves; `monitor` is run by them. `provider`: the identity
    provider, where there is one."""
    watchers = watchers or Watchers()
    bridge_open = bridge_open or Bridge()
    monitor = monitor or Monitor(context)

    def get_context() -> Context:
        return context

    def error_page(request: Request, error: EnvctlError) -> Response:
        return error_page_for(context, request, error)

    app = new_app()
    add_errors(app, error_page)
    add_api(app, get_context, current_caller)
    app.include_router(guest.router(get_context, watchers))
    app.include_router(health.router(get_context, monitor))
    guests = metrics.GuestAnswers()
    app.include_router(metrics.router(get_context, monitor, lambda: bridge_open.count, guests))
    app.include_router(bridge.router(get_context, bridge_open))
    app.include_router(signing_in.router(get_context, lambda: provider))
    app.include_router(pages.router(get_context, watchers))
    app.add_middleware(guests.around)
    app.add_middleware(Leaving, closing=lambda: watchers.closing)
    # The outermost: what the others raise leaves with its headers too.
    app.add_middleware(Security, get_context=get_context, error_page=error_page)
    return app


class Leaving:
    """Once the server stops, who waits for something in a GET (a guest's long poll) is told that the other side went, and
    answers what it has. Otherwise it would be cut off in the middle."""

    def __init__(self, app: ASGIApp, closing: Callable[[], bool]) -> None:
        self._app, self._closing = app, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receiving() -> Message:
            if self._closing():
                return {"type": "http.disconnect"}
            return await receive()

        waits = scope["type"] == "http" and scope["method"] == "GET"
        await self._app(scope, receiving if waits else receive, send)


def new_app(*, described: bool = True) -> FastAPI:
    """Without routes but that of its description, /api/openapi.json. There is no page that draws it: those of others load code
    from other servers."""
    made = FastAPI(
        title="s3-envctl",
        version=program_version(),
        openapi_url="/api/openapi.json" if described else None,
        docs_url=None,
        redoc_url=None,
    )
    made.state.downloads = Downloads()
    return made


def add_errors(app: FastAPI, error_page: ErrorPage | None = None) -> None:
    """Answers for what goes wrong."""

    def told(request: Request, error: EnvctlError) -> Response:
        if error_page is None or request.url.path.startswith(MACHINE_PREFIXES):
            return api.error_answer(error)
        return error_page(request, error)

    @app.exception_handler(EnvctlError)
    def ours(request: Request, error: EnvctlError) -> Response:
        if error.status >= 500 and not error.retryable:
            log.error("%s %s: %s", request.method, request.url.path, error)
        return told(request, error)

    @app.exception_handler(StoreError)
    def store(request: Request, error: StoreError) -> Response:
        log.warning("%s %s: %s", request.method, request.url.path, error)
        return told(request, StoreAway(f"the homes' store did not do it: {error}", hint="nothing was lost; try again"))

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        details = {str(one["loc"][-1]): str(one["msg"]) for one in error.errors()}
        first = next(iter(details.items()), ("", "it cannot be read"))
        return told(request, Invalid(f"{first[0]}: {first[1]}", details=details))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return told(request, NoSuchThing("there is no such page"))
        made = EnvctlError(str(error.detail))
        made.status, made.code = error.status_code, "http"
        return told(request, made)

    @app.exception_handler(Exception)
    def bug(request: Request, error: Exception) -> Response:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return told(
            request, EnvctlError("the console failed at this", hint="its log says how; what was asked may be done")
        )


class StoreAway(EnvctlError):
    code = "store-away"
    status = 503
    retryable = True


def add_api(app: FastAPI, get_context: Callable[[], Context], get_caller: api.GetCaller) -> None:
    app.include_router(api.router(VERBS, get_context, get_caller))
