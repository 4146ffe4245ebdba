"""One request for a page: who asks, what with, and the ways to answer.

One rule: a page is a plain function `(visit) -> Response` that asks verbs and fills a template. It checks no right of
its own: the verb does. What a verb refuses is drawn with the status of its error, never hidden.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.datastructures import FormData

from envctl.calling import Caller, Context
from envctl.database.models import User
from envctl.errors import EnvctlError, Invalid, NotSignedIn
from envctl.verbs.table import verb
from envctl.web.api import call, download, invalid
from envctl.web.pages.notices import NOTICES
from envctl.web.pages.rendering import render
from envctl.web.security import csrf_token, current_caller, who_if_known, who_of

log = logging.getLogger(__name__)

FIELDS_MAX: Final = 400
FIELD_BYTES_MAX: Final = 256 << 10

TITLES: Final[Mapping[int, str]] = {
    400: "That request cannot be understood",
    403: "You may not do this",
    404: "There is no such page",
    409: "That is not possible now",
    422: "That cannot be",
    429: "Too many attempts",
    500: "The console failed",
    502: "The hypervisor refused",
    503: "Not reachable at the moment",
}


@dataclass(frozen=True, slots=True)
class Visit:
    request: Request
    context: Context
    caller: Caller
    user: User
    form: FormData

    @property
    def must(self) -> str:
        """`password` or `totp`: what this user has to see to before anything else."""
        signed_in = who_of(self.request).signed_in
        return signed_in.must if signed_in is not None else ""

    @property
    def now(self) -> float:
        return self.context.now()

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def partial(self) -> bool:
        """htmx asks for a part of the page."""
        return self.request.headers.get("HX-Request") == "true"

    def part(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def field(self, name: str, default: str = "") -> str:
        """A field of the form, without the blanks around it."""
        value = self.form.get(name, default)
        return value.strip() if isinstance(value, str) else default

    def raw(self, name: str) -> str:
        """A field as it was typed: a password may begin with a blank."""
        value = self.form.get(name, "")
        return value if isinstance(value, str) else ""

    def fields(self, name: str) -> list[str]:
        return [value for value in self.form.getlist(name) if isinstance(value, str) and value]

    def lines(self, name: str) -> list[str]:
        """What was typed into an area, a value each line."""
        return [line.strip() for line in self.raw(name).splitlines() if line.strip()]

    def checked(self, name: str) -> bool:
        return self.field(name) == "1"

    def whole(self, name: str) -> int | None:
        """A number, or None for an empty field; Invalid names the field."""
        text = self.field(name).replace(" ", "").replace(",", "")
        if not text:
            return None
        try:
            return int(text)
        except ValueError as error:
            raise Invalid(f"{text!r} is not a whole number", details={name: "a whole number is needed here"}) from error

    def ask(self, name: str, /, **fields: object) -> Any:
        """The answer of a verb. EnvctlError, Invalid with a word for each field among them."""
        asked = verb(name)
        try:
            request = asked.request.model_validate(fields)
        except ValidationError as error:
            raise invalid(error) from error
        return call(self.context, self.caller, asked, request)

    def may(self, name: str) -> bool:
        """Whether the caller's role is enough for that verb: what they may not do is not offered."""
        return LEVELS.index(self.caller.role) >= LEVELS.index(verb(name).role)

    def page(
        self, template: str, /, *, problem: EnvctlError | None = None, status: int = 200, **values: object
    ) -> Response:
        return render(
            template,
            now=self.now,
            caller=self.caller,
            csrf=csrf_token(self.request),
            theme=self.user.theme,
            path=self.path,
            problem=problem,
            status=status,
            notice=NOTICES.get(self.query("done"), ""),
            **values,
        )

    def go(self, path: str, done: str = "") -> Response:
        """To another page of ours, which says what was done."""
        if done:
            path += ("&" if "?" in path else "?") + urlencode({"done": done})
        return RedirectResponse(path, status_code=303)

    def here(self, **changes: str) -> str:
        """This address with other values in its query, for links."""
        kept = {
            name: value for name, value in self.request.query_params.items() if name not in changes and name != "done"
        }
        wanted = {name: value for name, value in (kept | changes).items() if value}
        return self.path + ("?" + urlencode(wanted) if wanted else "")

    def file(self, name: str, /, **fields: object) -> Response:
        """The bytes that a verb gives, to be kept as a file."""
        return download(self.request.app.state.downloads, self.caller, lambda: self.ask(name, **fields))


LEVELS: Final = ("user", "operator", "admin")


@dataclass(frozen=True, slots=True)
class Page:
    method: Literal["GET", "POST"]
    path: str
    function: Callable[[Visit], Response]


def add(routes: APIRouter, pages: Sequence[Page], get_context: Callable[[], Context]) -> None:
    """Serve these pages. Verbs block (database, bucket), so each runs in a thread of the pool."""
    for page in pages:
        routes.add_api_route(
            page.path,
            _endpoint(page, get_context),
            methods=[page.method],
            include_in_schema=False,
            response_class=Response,
        )


def _endpoint(page: Page, get_context: Callable[[], Context]) -> Callable[..., Any]:
    async def answer(request: Request) -> Response:
        form = FormData()
        if page.method == "POST":
            form = await request.form(max_files=0, max_fields=FIELDS_MAX, max_part_size=FIELD_BYTES_MAX)
        return await run_in_threadpool(visited, page, get_context(), request, form)

    return answer


def visited(page: Page, context: Context, request: Request, form: FormData) -> Response:
    """The page, or what stands for it: the way to sign in, or the page of an error."""
    try:
        caller = current_caller(request)
    except NotSignedIn:
        return to_sign_in(request)
    signed_in = who_of(request).signed_in
    if signed_in is not None and signed_in.must and not request.url.path.startswith("/profile"):
        # A new password, or a second factor, before anything else; verbs refuse the rest anyhow.
        return RedirectResponse("/profile", status_code=303)
    try:
        user = user_of(context, caller)
    except NotSignedIn:
        return to_sign_in(request)
    visit = Visit(request, context, caller, user, form)
    try:
        return page.function(visit)
    except NotSignedIn:
        return to_sign_in(request)
    except EnvctlError as error:
        if error.status >= 500:
            log.warning("page %s: %s", request.url.path, error)
        return error_page(
            context.now(), error, caller=caller, csrf=csrf_token(request), theme=visit.user.theme, path=visit.path
        )


def to_sign_in(request: Request) -> Response:
    """To the page for signing in, and from there back here; a part of a page tells htmx to go as a whole."""
    if who_of(request).signed_in is not None:
        return RedirectResponse("/login/second-factor", status_code=303, headers={"Cache-Control": "no-store"})
    wanted = request.url.path if request.method == "GET" else "/environments"
    if request.method == "GET" and request.url.query:
        wanted += "?" + request.url.query
    address = "/login?" + urlencode({"next": wanted})
    if request.headers.get("HX-Request") == "true":
        return Response(status_code=401, headers={"HX-Redirect": "/login", "Cache-Control": "no-store"})
    return RedirectResponse(address, status_code=303, headers={"Cache-Control": "no-store"})


def user_of(context: Context, caller: Caller) -> User:
    with context.database.read() as session:
        user = session.get(User, caller.user_id)
    if user is None:
        raise NotSignedIn("this user is gone")
    return user


def error_page(
    now: float,
    error: EnvctlError,
    *,
    caller: Caller | None = None,
    csrf: str = "",
    theme: str = "system",
    path: str = "",
) -> Response:
    """The page of an error: what happened and what to do. Also for what the application itself finds (no such path)."""
    response = render(
        "error.html",
        now=now,
        caller=caller,
        csrf=csrf,
        theme=theme,
        path=path,
        status=error.status,
        title=TITLES.get(error.status, "That did not work"),
        code=f"{error.status} {error.code}",
        message=str(error.args[0]) if error.args else error.code,
        hint=error.hint,
        back="/environments" if caller else "/login",
        back_title="To my environments" if caller else "Sign in",
    )
    return response


def error_page_for(context: Context, request: Request, error: EnvctlError) -> Response:
    """The same, as whoever is signed in sees it: with the menu, and a way back."""
    who = who_if_known(request)
    if who is None or who.caller is None:
        return error_page(context.now(), error, path=request.url.path)
    try:
        theme = user_of(context, who.caller).theme
    except EnvctlError:
        # The database does not answer, say; the page of that must be drawn all the same.
        theme = "system"
    return error_page(context.now(), error, caller=who.caller, csrf=who.csrf, theme=theme, path=request.url.path)


def own_path(text: str, default: str = "/environments") -> str:
    """`text` where it is a path of ours to go back to, else `default`: nobody is sent elsewhere by a link."""
    split = urlsplit(text)
    if split.scheme or split.netloc or not text.startswith("/") or text.startswith(("//", "/\\")) or "\\" in text:
        return default
    if any(ord(character) < 32 for character in text):
        return default
    return split.path + ("?" + urlencode(parse_qsl(split.query)) if split.query else "")
