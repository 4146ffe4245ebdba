"""The REST API, below /api/v1: made from the table of verbs (`envctl.verbs.table`), nothing by hand.

Who asks is known by `Authorization: Bearer` (a token), or by the browser's sign-in (`envctl.web.security`). Errors are
`{"error": {"code", "message", "hint", "details"}}` with the status of the error's class.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from pydantic.fields import FieldInfo

from envctl.calling import Caller, Context
from envctl.errors import EnvctlError, Forbidden, Invalid, TooMany
from envctl.verbs.verb import Stream, Verb
from envctl.web.downloads import Download, Downloads, Turn

log = logging.getLogger(__name__)

PREFIX: Final = "/api/v1"
GetCaller = Callable[[Request], Caller]
"""Raises NotSignedIn."""
ROLES: Final = ("user", "operator", "admin")


def router(
    verbs: tuple[Verb, ...],
    get_context: Callable[[], Context],
    get_caller: GetCaller,
) -> APIRouter:
    """A route for each verb."""
    made = APIRouter(prefix=PREFIX)
    for verb in verbs:
        made.add_api_route(
            verb.path,
            _endpoint(verb, get_context, get_caller),
            methods=[verb.method],
            name=verb.name,
            summary=verb.summary,
            tags=[verb.name.partition(".")[0]],
            operation_id=verb.name.replace(".", "_"),
            response_model=None if verb.answer is Stream else verb.answer,
            response_class=Response if verb.answer is Stream else JSONResponse,
            openapi_extra={"x-scope": verb.scope, "x-role": verb.role},
        )
    return made


def call(context: Context, caller: Caller, verb: Verb, request: BaseModel) -> Any:
    """What every door does: role and scope first, then the verb. Forbidden."""
    if ROLES.index(caller.role) < ROLES.index(verb.role):
        raise Forbidden(f"{verb.name} needs the role {verb.role}")
    if caller.scopes is not None and not allowed(verb.scope, caller.scopes):
        raise Forbidden(f"this token may not {verb.name}", hint=f"it needs the scope {verb.scope}")
    return verb.function(context, caller, request)


def allowed(scope: str, scopes: frozenset[str]) -> bool:
    """`x:write` brings `x:read` along; `*` is everything."""
    noun, _, right = scope.partition(":")
    return scope in scopes or "*" in scopes or (right == "read" and f"{noun}:write" in scopes)


def path_fields(verb: Verb) -> tuple[str, ...]:
    return tuple(part[1:-1].partition(":")[0] for part in verb.path.split("/") if part.startswith("{"))


def error_answer(error: EnvctlError) -> JSONResponse:
    headers = {"Retry-After": str(int(error.retry_after_s) + 1)} if isinstance(error, TooMany) else None
    said: dict[str, object] = {"code": error.code, "message": error.args[0], "hint": error.hint}
    if error.details:
        said["details"] = error.details
    return JSONResponse({"error": said}, status_code=error.status, headers=headers)


def attachment(filename: str) -> str:
    """A Content-Disposition that no browser shows in place (RFC 6266, RFC 8187)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._- ") else "_" for c in filename) or "download"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"


def download(downloads: Downloads, caller: Caller, make: Callable[[], Stream]) -> Download:
    """The bytes that `make` gives, to be kept as a file. TooMany before anything is made."""
    turn = downloads.begin(caller.user_id)
    try:
        return _sent_as(make(), turn)
    except BaseException:
        turn.end()
        raise


def _sent_as(stream: Stream, turn: Turn) -> Download:
    headers = {"Content-Disposition": attachment(stream.filename), "X-Content-Type-Options": "nosniff"}
    if stream.size is not None:
        headers["Content-Length"] = str(stream.size)
    return Download(stream.pieces, turn, headers)


def _endpoint(verb: Verb, get_context: Callable[[], Context], get_caller: GetCaller) -> Callable[..., Any]:
    in_path = path_fields(verb)
    in_query = verb.method in ("GET", "DELETE")
    # Once, and by pydantic itself: a list of hundreds is written in a tenth of the time that FastAPI takes for it.
    written = None if verb.answer is Stream else TypeAdapter(verb.answer)
    rest = {name: field for name, field in verb.request.model_fields.items() if name not in in_path}

    def answer(request: Request, given: Mapping[str, object]) -> Any:
        try:
            asked = verb.request.model_validate({**given, **_from_path(request, in_path)})
        except ValidationError as error:
            raise invalid(error) from error
        context, caller = get_context(), get_caller(request)
        if written is None:
            return download(request.app.state.downloads, caller, lambda: call(context, caller, verb, asked))
        return Response(written.dump_json(call(context, caller, verb, asked)), media_type="application/json")

    if rest:
        place = Query() if in_query else Body()

        def with_fields(request: Request, fields: Any) -> Any:
            return answer(request, fields.model_dump(exclude_unset=True))

        # FastAPI reads annotations; this one is known only here.
        with_fields.__annotations__["fields"] = Annotated[_part(verb, rest), place]
        return with_fields

    def bare(request: Request) -> Any:
        return answer(request, {})

    return bare


def _from_path(request: Request, names: tuple[str, ...]) -> dict[str, object]:
    return {name: request.path_params[name] for name in names}


def _part(verb: Verb, fields: Mapping[str, FieldInfo]) -> type[BaseModel]:
    """A model of these fields alone, for the documentation and the first check."""
    made: dict[str, Any] = {name: (field.annotation, field) for name, field in fields.items()}
    title = "".join(word.capitalize() for word in verb.name.replace("_", ".").split("."))
    return create_model(title, __config__=verb.request.model_config, **made)


def invalid(error: ValidationError) -> Invalid:
    """What pydantic found, as ours: a word for each field."""
    details = {".".join(str(part) for part in one["loc"]): str(one["msg"]) for one in error.errors(include_url=False)}
    first = next(iter(details.items()), ("", "it cannot be read"))
    return Invalid(f"{first[0]}: {first[1]}" if first[0] else first[1], details=details)
