"""The doors for signing in and out. What they do is in `envctl.accounts.signing_in`; the pages are drawn by `pages.rendering`.

    GET  /login                  the page                    POST /login                name, password, next
    GET  /login/second-factor    the page                    POST /login/second-factor  code, next
    GET  /login/oidc             to the identity provider    GET  /login/oidc/callback  back from it
    POST /logout

One rule: where somebody goes afterwards is a path of ours, whatever the request says.
"""

import logging
from collections.abc import Callable
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from envctl.accounts import oidc, signing_in
from envctl.accounts.logins import NewLogin
from envctl.accounts.signing_in import From
from envctl.calling import Context
from envctl.errors import EnvctlError, NotSignedIn
from envctl.web import security
from envctl.web.pages.rendering import render
from envctl.web.pages.visit import own_path

log = logging.getLogger(__name__)

GetContext = Callable[[], Context]
GetProvider = Callable[[], oidc.Provider | None]
SECOND = "/login/second-factor"


def router(get_context: GetContext, get_provider: GetProvider = lambda: None) -> APIRouter:
    """`get_provider`: the identity provider (`oidc.open_provider`), None where there is none."""
    made = APIRouter(include_in_schema=False)

    @made.get("/login")
    def page(request: Request, next: str = "", why: str = "") -> Response:
        who = security.who_of(request)
        if who.caller is not None:
            return go(own_path(next))
        if who.signed_in is not None:
            return go(SECOND, next)
        problem = NotSignedIn("too many wrong codes", hint="begin with the password again") if why == "codes" else None
        return draw(request, get_context(), get_provider(), next, problem=problem)

    @made.post("/login")
    def sign_in(request: Request, name: str = Form(""), password: str = Form(""), next: str = Form("")) -> Response:
        context = get_context()
        try:
            security.check_may_sign_in(context.settings, request.headers)
            login = signing_in.with_password(context, name, password, browser_of(request))
        except EnvctlError as error:
            return draw(request, context, get_provider(), next, problem=error, name=name)
        if login.stage == "password":
            return signed_in(context, login, SECOND, next)
        return signed_in(context, login, own_path(next))

    @made.get(SECOND)
    def second_page(request: Request, next: str = "") -> Response:
        who = security.who_of(request)
        if who.signed_in is None:
            return go("/login", next)
        if who.caller is not None:
            return go(own_path(next))
        return draw_second(request, get_context(), next)

    @made.post(SECOND)
    def second(request: Request, code: str = Form(""), next: str = Form("")) -> Response:
        context = get_context()
        who = security.who_of(request)
        if who.signed_in is None:
            return go("/login", next)
        if who.caller is not None:
            return go(own_path(next))
        try:
            login = signing_in.with_second_factor(context, who.signed_in, code, browser_of(request))
        except signing_in.WrongCode as error:
            return draw_second(request, context, next, problem=error)
        except NotSignedIn:
            # The login that the request came with is over, and its CSRF token with it: the page must be asked for anew.
            answer = go("/login?why=codes")
            security.drop_login(context, answer)
            return answer
        except EnvctlError as error:
            return draw_second(request, context, next, problem=error)
        return signed_in(context, login, own_path(next))

    @made.post("/logout")
    def sign_out(request: Request) -> Response:
        context = get_context()
        who = security.who_of(request)
        if who.signed_in is not None:
            signing_in.out(context, who.signed_in, browser_of(request))
        answer = go("/login")
        security.drop_login(context, answer)
        return answer

    @made.get("/login/oidc")
    def to_provider(request: Request, next: str = "") -> Response:
        context, provider = get_context(), get_provider()
        if provider is None:
            return go("/login", next)
        try:
            security.check_may_sign_in(context.settings, request.headers)
            url, pending = provider.begin(context.random, own_path(next))
        except EnvctlError as error:
            return draw(request, context, provider, next, problem=error)
        answer = RedirectResponse(url, status_code=303)
        cookies = security.cookies_of(context.settings)
        cookies.put(answer, cookies.oidc, oidc.seal(context, pending), oidc.PENDING_S)
        return answer

    @made.get(oidc.CALLBACK)
    def from_provider(request: Request) -> Response:
        context, provider = get_context(), get_provider()
        if provider is None:
            return go("/login")
        cookies = security.cookies_of(context.settings)
        try:
            pending = oidc.unseal(context, request.cookies.get(cookies.oidc, ""))
            identity = provider.finish(pending, dict(request.query_params))
            login = signing_in.with_identity(context, pending, identity, browser_of(request))
        except EnvctlError as error:
            answer = draw(request, context, provider, "", problem=error)
        else:
            answer = signed_in(context, login, own_path(pending.next))
        cookies.drop(answer, cookies.oidc)
        return answer

    return made


def callback_url(context: Context) -> str:
    """What the identity provider has to know as redirect URI."""
    settings = context.settings
    return (settings.url or f"http://{settings.listen}").rstrip("/") + oidc.CALLBACK


def browser_of(request: Request) -> From:
    who = security.who_of(request)
    return From(
        address=who.address,
        agent=request.headers.get("user-agent", "")[:256],
        before=who.signed_in.id_hash if who.signed_in is not None else "",
    )


def signed_in(context: Context, login: NewLogin, path: str, next_path: str = "") -> Response:
    answer = go(path, next_path)
    security.put_login(context, answer, login)
    return answer


def go(path: str, next_path: str = "") -> Response:
    """To another page of ours; `next_path` travels along where it is one too."""
    wanted = own_path(next_path, "")
    address = path
    if wanted:
        address += "?" + urlencode({"next": wanted})
    return RedirectResponse(address, status_code=303, headers={"Cache-Control": "no-store"})


def draw(
    request: Request,
    context: Context,
    provider: oidc.Provider | None,
    next_path: str,
    *,
    problem: EnvctlError | None = None,
    name: str = "",
) -> Response:
    """The page for signing in."""
    answer = render(
        "login.html",
        now=context.now(),
        csrf=security.csrf_token(request),
        path=request.url.path,
        problem=problem,
        name=name[:64],
        next=own_path(next_path, ""),
        local=True,
        oidc=provider.settings.title if provider is not None else None,
        insecure=not security.cookies_of(context.settings).secure,
    )
    retry_after = getattr(problem, "retry_after_s", None)
    if retry_after is not None:
        answer.headers["Retry-After"] = str(int(retry_after) + 1)
    return answer


def draw_second(request: Request, context: Context, next_path: str, *, problem: EnvctlError | None = None) -> Response:
    return render(
        "second_factor.html",
        now=context.now(),
        csrf=security.csrf_token(request),
        path=request.url.path,
        problem=problem,
        name="",
        next=own_path(next_path, ""),
    )
