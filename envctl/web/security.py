"""What is so for every request: who asks, whether the request is theirs, and what the browser may do with the answer.

Plain ASGI, so that streams (SSE, downloads, websockets) go through piece by piece.

    who asks             found by                          unsafe methods need
    a browser            cookie `__Host-envctl`            our Origin, and the CSRF token of the sign-in
    nobody, in a browser cookie `__Host-envctl-visit`      our Origin, and a CSRF token made of that cookie
    a program            `Authorization: Bearer bwe_...`   nothing more; below /api/ alone, cookies are not looked at
    a guest, a monitor   its own signature or token        nothing more; below MACHINES, cookies are not looked at

One rule: every answer leaves with `HEADERS`, whoever made it; and no absolute address is made of what a request says (`Host`).

Run the server with `proxy_headers=False`: whom to believe about addresses is `[envctl] proxies`, and is decided here.
"""

import base64
import hmac
import ipaddress
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from envctl.accounts import logins, tokens
from envctl.accounts.logins import NewLogin, SignedIn
from envctl.calling import Caller, Context
from envctl.errors import EnvctlError, Forbidden, NotSignedIn
from s3core.settings import EnvctlSettings

log = logging.getLogger(__name__)

CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # `no-referrer` would make browsers send `Origin: null` with forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "X-Robots-Tag": "noindex, nofollow",
}
HSTS: Final = "max-age=31536000"
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
MACHINES: Final = ("/guest/", "/seed/")
"""Below these a request proves itself by a signature or a one-time token; a browser's cookie is nothing there."""
NOBODY: Final = ("/static/", "/healthz", "/readyz", "/metrics")
"""The same answer whoever asks; no cookie is looked at."""
API: Final = "/api/"
BODY_BYTES_MAX: Final = 1 << 20
"""Of what browsers and programs send: forms and small JSON. Guests have a limit of their own (`web.guest`)."""
FORM: Final = "application/x-www-form-urlencoded"
CSRF_FIELD: Final = "csrf"
CSRF_HEADER: Final = "X-CSRF-Token"
_WHO: Final = "envctl.who"

ErrorPage = Callable[[Request, EnvctlError], Response]


class TooLarge(EnvctlError):
    code = "too-large"
    status = 413


@dataclass(frozen=True, slots=True)
class Who:
    """Who made a request. One for each, in its scope."""

    address: str
    caller: Caller | None = None
    signed_in: SignedIn | None = None
    csrf: str = ""
    """What a form of the answer carries."""
    visit: str = field(default="", repr=False)
    """Of a browser that is not signed in."""


@dataclass(frozen=True, slots=True)
class Cookies:
    """Names and flags of the console's cookies."""

    secure: bool
    """https, here or at a proxy. Else the console is for browsers on the same host alone, and cookies have no `__Host-`,
    because browsers take that with https only."""

    @property
    def login(self) -> str:
        return self._name("envctl")

    @property
    def visit(self) -> str:
        return self._name("envctl-visit")

    @property
    def oidc(self) -> str:
        return self._name("envctl-oidc")

    def put(self, response: Response, name: str, value: str, max_age_s: float) -> None:
        """No Domain, Path=/: what `__Host-` demands (RFC 6265bis, 4.1.3.2)."""
        response.set_cookie(
            name, value, max_age=int(max_age_s), path="/", secure=self.secure, httponly=True, samesite="lax"
        )

    def drop(self, response: Response, name: str) -> None:
        self.put(response, name, "", 0)

    def _name(self, name: str) -> str:
        return f"__Host-{name}" if self.secure else name


def cookies_of(settings: EnvctlSettings) -> Cookies:
    return Cookies(secure=settings.url.startswith("https://") or (bool(settings.certificate) and not settings.url))


class Security:
    """Middleware, the outermost: `app.add_middleware(Security, get_context=..., error_page=...)` after all others.
    `error_page` draws what is refused here for people; without it they too get JSON."""

    def __init__(self, app: ASGIApp, get_context: Callable[[], Context], error_page: ErrorPage | None = None) -> None:
        self._app = app
        self._context = get_context
        self._error_page = error_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        cookies = cookies_of(self._context().settings)
        began = False

        async def guarded(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                put_headers(MutableHeaders(scope=message), https=cookies.secure)
            await send(message)

        try:
            await self._admit(scope, receive, send, guarded)
        except ClientDisconnect:
            # Who asked has left, in the middle of the body: there is nobody to answer, and nothing was done.
            log.debug("%s %s: who asked has left", scope["method"], scope["path"])
        except Exception as error:
            # Starlette's own answer to a bug would be made outside of this middleware, without `HEADERS`.
            if began or scope["type"] == "websocket":
                raise
            if not isinstance(error, EnvctlError):
                log.exception("%s %s failed", scope["method"], scope["path"])
                error = EnvctlError("the console failed at this", hint="its log says how; what was asked may be done")
            await self._refuse(scope, receive, guarded, error)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, guarded: Send) -> None:
        """On to the application, with `Who` in the scope. EnvctlError for what does not come so far."""
        context = self._context()
        settings = context.settings
        connection = HTTPConnection(scope)
        try:
            who = await run_in_threadpool(identify, context, connection)
            scope[_WHO] = who
            if who.address:
                # What is below this asks `request.client`; it must not see a proxy there.
                scope["client"] = (who.address, (scope.get("client") or ("", 0))[1])
            if scope["type"] == "websocket":
                check_origin(settings, connection.headers)
        except EnvctlError as error:
            if scope["type"] != "websocket":
                raise
            log.info("websocket %s: refused: %s", scope["path"], error)
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        if not scope["path"].startswith(MACHINES):
            receive = limited(receive, connection.headers)
            if needs_proof(scope, connection.headers):
                check_origin(settings, connection.headers)
                receive = await check_csrf(who, connection.headers, receive)
        if who.visit and not _cookie(connection, cookies_of(settings).visit):
            guarded = self._with_visit(settings, guarded, who.visit)
        await self._app(scope, receive, guarded)

    async def _refuse(self, scope: Scope, receive: Receive, guarded: Send, error: EnvctlError) -> None:
        log.info("%s %s: refused: %s", scope["method"], scope["path"], error)
        response: Response
        if self._error_page is None or scope["path"].startswith((API, *MACHINES, *NOBODY)):
            response = error_json(error)
        else:
            response = self._error_page(Request(scope), error)
        await response(scope, receive, guarded)

    def _with_visit(self, settings: EnvctlSettings, send: Send, visit: str) -> Send:
        cookies = cookies_of(settings)
        carrier = Response()
        cookies.put(carrier, cookies.visit, visit, settings.session_idle_s)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("set-cookie", carrier.headers["set-cookie"])
            await send(message)

        return sending


def put_headers(headers: MutableHeaders, *, https: bool) -> None:
    """`HEADERS` in place of what an answer has of them; caching is off unless the answer says otherwise."""
    for name, value in HEADERS.items():
        headers[name] = value
    if https:
        headers["Strict-Transport-Security"] = HSTS
    headers.setdefault("Cache-Control", "no-store")
    if "server" in headers:
        del headers["server"]


def current_caller(request: HTTPConnection) -> Caller:
    """Who asks. NotSignedIn for nobody, and for somebody whose second factor is awaited."""
    who = who_of(request)
    if who.caller is None:
        raise NotSignedIn("nobody is signed in", hint="sign in, or send a token: Authorization: Bearer bwe_...")
    return who.caller


def who_of(request: HTTPConnection) -> Who:
    found: Any = request.scope.get(_WHO)
    assert isinstance(found, Who), "the application runs without web.security"
    return found


def who_if_known(request: HTTPConnection) -> Who | None:
    """None where the request was refused before anybody was looked for."""
    found: Any = request.scope.get(_WHO)
    return found if isinstance(found, Who) else None


def csrf_token(request: HTTPConnection) -> str:
    """What each form of a page carries in its field `csrf`, or htmx in the header `X-CSRF-Token`."""
    return who_of(request).csrf


def client_address(request: HTTPConnection) -> str:
    """Where the request comes from, behind the configured proxies; empty for a Unix socket."""
    return who_of(request).address


def caller_now(context: Context, request: HTTPConnection) -> Caller | None:
    """Who asked, as they are now, of a request that goes on for long (a stream, a console): their role may be another one since
    it began. None where the sign-in is over. Blocks on the database."""
    who = who_of(request)
    if who.signed_in is None:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        return (
            tokens.find(context, text.strip(), address=who.address)
            if who.caller and scheme.lower() == "bearer"
            else None
        )
    found = logins.find(context, _cookie(request, cookies_of(context.settings).login), address=who.address)
    return found.caller if found is not None else None


def put_login(context: Context, response: Response, login: NewLogin) -> None:
    """The browser is signed in from this answer on; its visit is over."""
    cookies = cookies_of(context.settings)
    cookies.put(response, cookies.login, login.cookie, max(1.0, login.expires_at - context.now()))
    cookies.drop(response, cookies.visit)


def drop_login(context: Context, response: Response) -> None:
    cookies = cookies_of(context.settings)
    cookies.drop(response, cookies.login)


def check_may_sign_in(settings: EnvctlSettings, headers: Headers) -> None:
    """Forbidden over plain http from another host: a password and a cookie would be read on the way."""
    if not cookies_of(settings).secure and not is_loopback(host_name(headers.get("host", ""))):
        raise Forbidden(
            "signing in needs https",
            hint="set `url` in [envctl] to https://..., and `certificate`, or put a proxy in front",
        )


def identify(context: Context, connection: HTTPConnection) -> Who:
    """Who asks. NotSignedIn for a token that is not good (any more): a program must hear of it."""
    settings = context.settings
    address = address_of(connection, settings.proxies)
    path = connection.scope["path"]
    if path.startswith((*MACHINES, *NOBODY)):
        return Who(address)
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    if path.startswith(API) and scheme.lower() == "bearer":
        caller = tokens.find(context, text.strip(), address=address)
        if caller is None:
            raise NotSignedIn(
                "that token is not good (any more)", hint="make a new one: profile, or s3-envctl token create"
            )
        return Who(address, caller)
    if is_foreign(connection.headers):
        # A page of others asks in the background: it gets what a stranger gets.
        return Who(address)
    cookies = cookies_of(settings)
    signed_in = logins.find(context, _cookie(connection, cookies.login), address=address)
    if signed_in is not None:
        return Who(address, signed_in.caller, signed_in, signed_in.csrf)
    visit = _cookie(connection, cookies.visit)
    if len(visit) < 32:
        visit = base64.urlsafe_b64encode(context.random(32)).decode().rstrip("=")
    return Who(address, csrf=context.secrets.mac(visit.encode(), "csrf"), visit=visit)


def address_of(connection: HTTPConnection, proxies: Iterable[str]) -> str:
    """The peer; where that is a proxy of ours, the last address in X-Forwarded-For that is not."""
    client = connection.scope.get("client")
    peer = _unmapped(str(client[0])) if client else ""
    networks = [ipaddress.ip_network(one, strict=False) for one in proxies]
    told = [part.strip() for line in connection.headers.getlist("x-forwarded-for") for part in line.split(",")]
    while told and is_within(peer, networks):
        peer = _unmapped(told.pop())
    return peer[:64]


def _unmapped(address: str) -> str:
    """One socket for both (s3-envctl.socket) has IPv4 as ::ffff:192.0.2.1: rules and limits know it by its own name."""
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return str(mapped) if mapped is not None else address


def is_within(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in networks if network.version == found.version)


def needs_proof(scope: Scope, headers: Headers) -> bool:
    """Whether a browser may have been made to send this by a page of others."""
    if scope["method"] in SAFE or scope["path"].startswith((*MACHINES, *NOBODY)):
        return False
    # No page of others can set this header: a browser would ask us first, and we allow no origin.
    bearer = headers.get("authorization", "").lower().startswith("bearer ")
    return not (bearer and scope["path"].startswith(API))


def check_origin(settings: EnvctlSettings, headers: Headers) -> None:
    """Forbidden, unless the page that sends this is ours: by Origin, or where a browser leaves that out, by
    Sec-Fetch-Site or Referer."""
    origin = headers.get("origin")
    if origin is None:
        site = headers.get("sec-fetch-site")
        if site is not None:
            if site == "same-origin":
                return
            raise Forbidden("this came from a page of another site")
        origin = origin_of(headers.get("referer", ""))
    if not origin or origin not in own_origins(settings, headers.get("host", "")):
        raise Forbidden(
            "this came from a page of another site",
            hint="open the console at the address that `url` in [envctl] has" if origin else "",
        )


async def check_csrf(who: Who, headers: Headers, receive: Receive) -> Receive:
    """Forbidden without the token that the page had. Reads a form's body, and gives back what will read it again."""
    given = headers.get(CSRF_HEADER, "")
    if not given and headers.get("content-type", "").partition(";")[0].strip().lower() == FORM:
        try:
            body = await _body(receive)
        except HTTPException as error:
            raise TooLarge(str(error.detail)) from error
        receive = _again(body, receive)
        given = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=1000)).get(
            CSRF_FIELD, ""
        )
    if not who.csrf or not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), who.csrf.encode()):
        raise Forbidden("this page is too old", hint="go back, load it again, and send the form once more")
    return receive


def limited(receive: Receive, headers: Headers) -> Receive:
    """`receive`, which ends with TooLarge behind BODY_BYTES_MAX."""
    error = TooLarge(f"more than {BODY_BYTES_MAX:,} bytes are not taken")
    told = headers.get("content-length", "0")
    if told.isdigit() and int(told) > BODY_BYTES_MAX:
        raise error
    seen = 0

    async def counting() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES_MAX:
                # FastAPI lets this one through where it reads a body; all others become "cannot be parsed".
                raise HTTPException(error.status, str(error))
        return message

    return counting


def own_origins(settings: EnvctlSettings, host: str) -> frozenset[str]:
    """Where pages of ours come from. Without https the console is reached on this host alone, whatever port leads to it."""
    found = {origin_of(settings.url)} if settings.url else set()
    if not cookies_of(settings).secure and is_loopback(host_name(host)):
        found.add(f"http://{host}")
    return frozenset(found - {""})


def origin_of(url: str) -> str:
    """Scheme, host and port; empty for what is no http address."""
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        return ""
    if split.scheme not in ("http", "https") or not split.hostname:
        return ""
    host = f"[{split.hostname}]" if ":" in split.hostname else split.hostname
    default = 443 if split.scheme == "https" else 80
    return f"{split.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


def host_name(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_foreign(headers: Headers) -> bool:
    """A page of another site asks, and not by a link or a form that a person followed (Fetch Metadata)."""
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate"


def error_json(error: EnvctlError) -> Response:
    headers: dict[str, str] = {}
    retry_after = getattr(error, "retry_after_s", None)
    if retry_after is not None:
        headers["Retry-After"] = str(int(retry_after) + 1)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    told = {"code": error.code, "message": str(error.args[0]), "hint": error.hint}
    return JSONResponse({"error": told}, status_code=error.status, headers=headers)


def _cookie(connection: HTTPConnection, name: str) -> str:
    """Empty where there are several of the name: somebody planted one, and which is ours cannot be told."""
    found = []
    for line in connection.headers.getlist("cookie"):
        for part in line.split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                found.append(value)
    if len(found) != 1:
        return ""
    try:
        return SimpleCookie(f"{name}={found[0]}")[name].value
    except (CookieError, KeyError):
        return ""


async def _body(receive: Receive) -> bytes:
    """Half a form is none: ClientDisconnect."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    told = False

    async def once_more() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return once_more
