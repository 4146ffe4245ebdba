"""Screen and terminal of a machine in the browser, and the ticket that opens the connection once (`web.bridge`)."""

from typing import Final

from fastapi import Response
from fastapi.responses import JSONResponse

from envctl.errors import EnvctlError, NoSuchThing
from envctl.web.api import error_answer
from envctl.web.pages.environments import environment_of
from envctl.web.pages.visit import Page, Visit

KINDS: Final = ("vnc", "terminal")


def kind_of(visit: Visit) -> str:
    kind = visit.part("kind")
    if kind not in KINDS:
        raise NoSuchThing("there is no such page")
    return kind


def console(visit: Visit) -> Response:
    return visit.page("console_page.html", env=environment_of(visit), kind=kind_of(visit))


def ticket(visit: Visit) -> Response:
    """For the page's script, which asks anew for each connection; errors are JSON."""
    try:
        answer = visit.ask("console.ticket", environment=visit.part("environment"), kind=kind_of(visit))
    except EnvctlError as error:
        return error_answer(error)
    return JSONResponse({"path": answer.path}, headers={"Cache-Control": "no-store"})


PAGES: Final = (
    Page("GET", "/environments/{environment}/console/{kind}", console),
    Page("POST", "/environments/{environment}/console/{kind}/ticket", ticket),
)
