"""What guests ask of the console: seeds, enrolment, the home's objects, commits, heartbeats, commands.

One rule: no cookie and no person's token counts here. A guest is who signed the request (`envctl.homes.identity`); errors are
`{"error": {"code", "message", "hint"}}` and never tell of another environment. docs/protocol/envctl-guest.md.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError

from envctl import seed as seeds
from envctl.calling import Context
from envctl.errors import EnvctlError, Invalid, NoSuchThing, TooMany
from envctl.homes import guests
from envctl.homes.agent_file import agent_file
from envctl.homes.errors import ClockOff, ObjectsMissing, ParentMoved
from envctl.homes.identity import Identity, check, recognise
from envctl.homes.presigning import OBJECTS_PATH, ConsolePresigner, Grant, SignedUrl
from envctl.homes.store import OBJECT_BYTES_MAX
from envctl.web.events import Watchers
from s3core.errors import Corrupt, NotFound, PreconditionFailed, StoreError

BODY_BYTES_MAX: Final = 32 * 2**20
"""Of a commit; that of a first backup names some ten thousand packs."""
LIST_BYTES_MAX: Final = 256 * 1024
"""Of the names of five hundred objects."""
SHORT_BYTES: Final = 64 * 1024
"""Of every other request. A longer body is taken only of who names a machine that has a key."""
LONG_MAX: Final = 2
"""Long bodies of one machine from one address at a time: each is held in memory."""
OPEN_MAX: Final = 8
"""Requests of one machine under way; its agent has two."""
POLLS_MAX: Final = 3
"""Of them those that wait for commands: an agent has one, and its last one, broken off, goes within POLL_S."""
OBJECTS_MAX: Final = 8
"""Objects of one home that pass through the console at a time; an agent has four under way."""
ENROL_BYTES_MAX: Final = 4096
WAIT_MAX_S: Final = 30.0
POLL_S: Final = 1.0
"""How often it is looked whether who waits is still there."""
LOOK_S: Final = 5.0
"""How late a waiting guest hears of a command that another process wrote; of one of this process it is told at once."""

Asked = TypeVar("Asked", bound=BaseModel)


class Turns:
    """How many at a time, for each of many: whoever is root in a machine shares the console with everybody else. One event
    loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[Hashable] = Counter()

    @contextmanager
    def one(self, whose: Hashable) -> Iterator[None]:
        """TooMany, which an agent waits for."""
        if self._open[whose] >= self._most:
            raise TooMany(
                f"{self._most} of these are under way already", retry_after_s=POLL_S, hint="wait for their answers"
            )
        self._open[whose] += 1
        try:
            yield
        finally:
            self._open[whose] -= 1
            if not self._open[whose]:
                del self._open[whose]


def router(get_context: Callable[[], Context], watchers: Watchers | None = None) -> APIRouter:
    """Below `/seed` and `/guest/v1`. Its errors are answered here, whatever handlers the application has. `watchers`: those
    that hear what `Context.told` says."""
    watchers = watchers or Watchers()
    made = APIRouter(include_in_schema=False)
    long, requests, polls, objects = Turns(LONG_MAX), Turns(OPEN_MAX), Turns(POLLS_MAX), Turns(OBJECTS_MAX)

    def seed_of(request: Request, token: str) -> seeds.SeedFacts:
        context = get_context()
        return guests.seed_facts(context, token, _address(request), _console(request, context))

    def document(request: Request, token: str, name: str) -> Response:
        if name == "agent.json":
            return Response(seeds.agent_json(seed_of(request, token)), media_type="application/json")
        texts = {"meta-data": seeds.meta_data, "user-data": seeds.user_data, "vendor-data": seeds.vendor_data}
        if name not in texts:
            raise NoSuchThing("there is no such seed")
        return PlainTextResponse(texts[name](seed_of(request, token)))

    async def get_document(request: Request) -> Response:
        token, name = request.path_params["token"], request.path_params["name"]
        return await run_in_threadpool(document, request, token, name)

    async def get_agent(request: Request) -> Response:
        return Response(await run_in_threadpool(agent_file), media_type="application/octet-stream")

    async def enrol(request: Request) -> Response:
        asked = _parsed(guests.Enrol, await _body(request, ENROL_BYTES_MAX))
        return JSONResponse(await run_in_threadpool(guests.enrol, get_context(), asked, _address(request)))

    async def checked(request: Request, most: int) -> tuple[Identity, bytes]:
        body = await _body(request, most)
        identity = await run_in_threadpool(
            check, get_context(), request.headers, request.method, _target(request), body
        )
        return identity, body

    async def signed(request: Request, most: int = SHORT_BYTES) -> tuple[Identity, bytes]:
        announced = request.headers.get("content-length", "0" if request.method == "GET" else "")
        if announced.isdecimal() and int(announced) <= SHORT_BYTES:
            return await checked(request, SHORT_BYTES)
        if most > SHORT_BYTES:
            said = await run_in_threadpool(recognise, get_context(), request.headers)
            with long.one((said, _address(request))):
                return await checked(request, most)
        return await checked(request, most)

    def served(
        model: type[Asked], answer: Callable[[Context, Identity, Asked], dict[str, Any]], most: int = SHORT_BYTES
    ) -> Callable[[Request], Awaitable[Response]]:
        def answered(identity: Identity, body: bytes) -> dict[str, Any]:
            return answer(get_context(), identity, _parsed(model, body))

        async def endpoint(request: Request) -> Response:
            identity, body = await signed(request, most)
            with requests.one(identity):
                return JSONResponse(await run_in_threadpool(answered, identity, body))

        return endpoint

    async def get_state(request: Request) -> Response:
        identity, _ = await signed(request)
        with requests.one(identity):
            return JSONResponse(await run_in_threadpool(guests.state, get_context(), identity))

    async def get_commands(request: Request) -> Response:
        identity, _ = await signed(request)
        wait_s = min(max(_number(request.query_params.get("wait", "0")), 0.0), WAIT_MAX_S)
        with polls.one(identity), watchers.waiting(identity.environment_id) as told:
            loop = asyncio.get_running_loop()
            until = loop.time() + wait_s
            look_at = loop.time()
            while True:
                commands: list[dict[str, object]] = []
                if told.is_set() or loop.time() >= min(look_at, until):
                    told.clear()
                    look_at = loop.time() + LOOK_S
                    commands = await run_in_threadpool(guests.take_commands, get_context(), identity)
                if commands or loop.time() >= until or await request.is_disconnected():
                    return JSONResponse({"commands": commands})
                with suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), min(POLL_S, max(until - loop.time(), 0.0)))

    async def post_answer(request: Request) -> Response:
        identity, body = await signed(request)
        asked = _parsed(guests.CommandAnswer, body)
        name = request.path_params["command"]
        await run_in_threadpool(guests.answer_command, get_context(), identity, name, asked)
        return JSONResponse({})

    async def get_object(request: Request) -> Response:
        grant = _grant(get_context(), request.path_params["token"], "GET")
        with objects.one(_home_of(grant)):
            return await run_in_threadpool(_given, request, get_context(), grant)

    async def put_object(request: Request) -> Response:
        grant = _grant(get_context(), request.path_params["token"], "PUT")
        with objects.one(_home_of(grant)):
            body = await _body(request, min(grant.size, OBJECT_BYTES_MAX))
            return await run_in_threadpool(_taken, get_context(), grant, body)

    def uploads(context: Context, identity: Identity, asked: guests.Uploads) -> dict[str, Any]:
        return {"urls": _urls(guests.uploads(context, identity, asked))}

    def downloads(context: Context, identity: Identity, asked: guests.Downloads) -> dict[str, Any]:
        return {"urls": _urls(guests.downloads(context, identity, asked))}

    def commit(context: Context, identity: Identity, asked: guests.NewCommit) -> dict[str, Any]:
        return {"number": guests.commit(context, identity, asked).number}

    def add(method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        made.add_api_route(path, _answering(endpoint), methods=[method], response_model=None)

    add("GET", "/seed/{token}/{name}", get_document)
    add("GET", "/guest/v1/agent.pyz", get_agent)
    add("POST", "/guest/v1/enrol", enrol)
    add("GET", "/guest/v1/state", get_state)
    add("POST", "/guest/v1/uploads", served(guests.Uploads, uploads, LIST_BYTES_MAX))
    add("POST", "/guest/v1/downloads", served(guests.Downloads, downloads, LIST_BYTES_MAX))
    add("POST", "/guest/v1/commits", served(guests.NewCommit, commit, BODY_BYTES_MAX))
    add("POST", "/guest/v1/restored", served(guests.Restored, guests.restored))
    add("POST", "/guest/v1/heartbeats", served(guests.Heartbeat, guests.heartbeat))
    add("GET", "/guest/v1/commands", get_commands)
    add("POST", "/guest/v1/commands/{command}", post_answer)
    add("GET", OBJECTS_PATH + "{token}", get_object)
    add("PUT", OBJECTS_PATH + "{token}", put_object)
    return made


# --- answers -----------------------------------------------------------------------------------------------


def _answering(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except EnvctlError as error:
            return _refusal(error)
        except StoreError as error:
            status, code = (503, "store-unavailable") if error.temporary else (500, "store")
            return _error(
                status, code, "the bucket of homes did not do it", "try again later; the console's log says why", {}
            )

    return answer


def _refusal(error: EnvctlError) -> Response:
    more: dict[str, Any] = {}
    if isinstance(error, ClockOff):
        more["now"] = error.now_ms
    elif isinstance(error, ParentMoved):
        newest = error.head.newest
        more["head"] = {"number": newest.number, "trees": list(newest.trees)} if newest else None
    elif isinstance(error, ObjectsMissing):
        more["missing"] = list(error.names)
    answer = _error(error.status, error.code, str(error.args[0]), error.hint, more)
    if isinstance(error, TooMany):
        answer.headers["Retry-After"] = str(int(error.retry_after_s) + 1)
    return answer


def _error(status: int, code: str, message: str, hint: str, more: dict[str, Any]) -> Response:
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint, **more}}, status_code=status)


def _urls(found: Mapping[str, SignedUrl | None]) -> dict[str, object]:
    return {name: {"url": one.url, "headers": dict(one.headers)} if one else None for name, one in found.items()}


# --- what was asked ----------------------------------------------------------------------------------------


async def _body(request: Request, most: int) -> bytes:
    """Invalid where it is longer: nothing is held of what nobody would read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Invalid(f"the body has more than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _parsed(model: type[Asked], body: bytes) -> Asked:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Invalid(f"{'.'.join(str(part) for part in first['loc']) or 'the body'}: {first['msg']}") from error


def _target(request: Request) -> str:
    """Path and query as they came."""
    path = bytes(request.scope.get("raw_path") or request.url.path.encode()).decode("latin-1").partition("?")[0]
    query = bytes(request.scope.get("query_string", b"")).decode("latin-1")
    return f"{path}?{query}" if query else path


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _console(request: Request, context: Context) -> str:
    """Where the guest shall find the console: the configured address for guests, or that for all where it is https, else where
    the guest found it now. Whoever asks has the token, and is told only what it said itself."""
    if context.settings.guest_url:
        return context.settings.guest_url.rstrip("/")
    if context.settings.url.startswith("https://"):
        return context.settings.url.rstrip("/")
    return f"{request.url.scheme}://{request.url.netloc}"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Invalid("wait: a number of seconds") from error


# --- objects of stores without addresses of their own ------------------------------------------------------


def _grant(context: Context, token: str, method: str) -> Grant:
    presigner = context.homes.presigner
    if not isinstance(presigner, ConsolePresigner):
        raise NoSuchThing("there is no such object, or the address has expired")
    grant = presigner.grant_of(token, context.now())
    if grant.method != method:
        raise NoSuchThing("there is no such object, or the address has expired")
    return grant


def _home_of(grant: Grant) -> str:
    """`env/ID` of its key."""
    return "/".join(grant.key.split("/")[:2])


def _given(request: Request, context: Context, grant: Grant) -> Response:
    """The object, or the one range `bytes=A-B` of it (RFC 9110, 14.2)."""
    asked = request.headers.get("range", "")
    try:
        if not asked:
            return Response(context.homes.objects.get(grant.key).data, media_type="application/octet-stream")
        unit, _, span = asked.partition("=")
        first, _, last = span.partition("-")
        if unit != "bytes" or not first.isdecimal() or not (last.isdecimal() or not last):
            raise Invalid("range: bytes=FIRST-LAST")
        size = context.homes.objects.head(grant.key).size
        begin, end = int(first), min(int(last) if last else size - 1, size - 1)
        if begin > end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        data = context.homes.objects.get_range(grant.key, begin, end - begin + 1).data
    except (NotFound, Corrupt) as error:
        raise NoSuchThing("there is no such object, or the address has expired") from error
    headers = {"Content-Range": f"bytes {begin}-{end}/{size}"}
    return Response(data, status_code=206, headers=headers, media_type="application/octet-stream")


def _taken(context: Context, grant: Grant, body: bytes) -> Response:
    """Put, where nothing is there and the bytes are those that were announced."""
    if len(body) != grant.size or hashlib.sha256(body).hexdigest() != grant.sha256:
        return _error(400, "content", "these are not the bytes that were announced", "", {})
    try:
        context.homes.objects.put_if_absent(grant.key, body)
    except PreconditionFailed:
        return _error(412, "exists", "the object is there already", "", {})
    return JSONResponse({})
