"""All pages, and the files they are made of, as one router."""

from collections.abc import Callable, Sequence
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from envctl.calling import Context
from envctl.web import events
from envctl.web.pages import (
    backups,
    consoles,
    creating,
    environments,
    installation,
    operations,
    people,
    profile,
    rendering,
    templates,
)
from envctl.web.pages.visit import Page, add

PAGES: Final[Sequence[Page]] = (
    *creating.PAGES,
    *environments.PAGES,
    *backups.PAGES,
    *consoles.PAGES,
    *profile.PAGES,
    *operations.PAGES,
    *people.PAGES,
    *templates.PAGES,
    *installation.PAGES,
)


def router(get_context: Callable[[], Context], watchers: events.Watchers) -> APIRouter:
    """Every page below `/`, `/static`, and the streams of live logs. Signing in and out is `web.signing_in`'s."""
    made = APIRouter()
    made.include_router(events.router(get_context, watchers))
    add(made, PAGES, get_context)
    files = StaticFiles(directory=rendering.STATIC)

    async def static(request: Request, path: str) -> Response:
        answer = await files.get_response(path, request.scope)
        fixed = "v" in request.query_params and answer.status_code == 200
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable" if fixed else "no-cache"
        return answer

    async def front() -> Response:
        return RedirectResponse("/environments", status_code=303)

    made.add_api_route("/static/{path:path}", static, methods=["GET"], include_in_schema=False)
    made.add_api_route("/", front, methods=["GET"], include_in_schema=False)
    return made
