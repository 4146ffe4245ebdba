"""Live logs: server-sent events of one environment (WHATWG HTML, 9.2), and the same lines by polling.

One rule: an event's id is the id of a row (`JobLine.id`). So a browser that comes back with `Last-Event-ID`, to this process
or to another after a crash, misses nothing and sees nothing twice.

Events: `line` (JSON: id, at, level, text), `state` (what the page shows of the environment has changed: ask for it again),
`end` (do not come back: the sign-in is over, or the environment is no longer theirs). A comment each 15 s keeps proxies from
closing.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.calling import Caller, Context
from envctl.database.models import Environment, Job, JobLine
from envctl.errors import EnvctlError, TooMany
from envctl.verbs.table import verb
from envctl.web.api import call, error_answer
from envctl.web.security import caller_now, current_caller

HEARTBEAT_S: Final = 15.0
POLL_S: Final = 1.0
"""How late a change made by another process is seen; one of this process is told at once."""
STREAMS_A_USER_MAX: Final = 12
LINES_AT_ONCE: Final = 500
RETRY_MS: Final = 3000


@dataclass(frozen=True, slots=True)
class LogLine:
    id: int
    at: float
    level: str
    text: str
    job_id: str | None


def lines_after(session: Session, environment_id: str, after: int, limit: int = LINES_AT_ONCE) -> list[LogLine]:
    """The next lines of an environment's log, the oldest first."""
    rows = session.scalars(
        select(JobLine)
        .where(JobLine.environment_id == environment_id, JobLine.id > after)
        .order_by(JobLine.id)
        .limit(limit)
    )
    return [_line(row) for row in rows]


def last_lines(session: Session, environment_id: str, limit: int) -> list[LogLine]:
    """The newest lines of an environment's log, the oldest of them first."""
    rows = session.scalars(
        select(JobLine).where(JobLine.environment_id == environment_id).order_by(JobLine.id.desc()).limit(limit)
    )
    return [_line(row) for row in rows][::-1]


def _line(row: JobLine) -> LogLine:
    return LogLine(row.id, row.at, row.level, row.text, row.job_id)


class Watchers:
    """Streams that are open in this process: how many each user has, and who wants to hear of which environment.
    Threads share it."""

    def __init__(self, streams_a_user_max: int = STREAMS_A_USER_MAX) -> None:
        self._max = streams_a_user_max
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._closing = False

    def told(self, environment_id: str) -> None:
        """Something of this environment changed. Callable from any thread."""
        with self._lock:
            waiting = list(self._waiting.get(environment_id, ()))
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End every stream: the server stops. Browsers come back by themselves."""
        with self._lock:
            self._closing = True
            names = list(self._waiting)
        for name in names:
            self.told(name)

    @property
    def closing(self) -> bool:
        return self._closing

    def streams(self, user_id: str) -> int:
        return self._streams[user_id]

    def begin(self, user_id: str, environment_id: str) -> asyncio.Event:
        """A stream more; TooMany where the user has enough. `end` it."""
        event = asyncio.Event()
        with self._lock:
            if self._streams[user_id] >= self._max:
                raise TooMany(
                    f"{self._max} live logs are open already",
                    retry_after_s=HEARTBEAT_S,
                    hint="close other tabs of this console",
                )
            self._streams[user_id] += 1
            self._await(environment_id, event)
        return event

    def end(self, user_id: str, environment_id: str, event: asyncio.Event) -> None:
        with self._lock:
            self._streams[user_id] -= 1
            if self._streams[user_id] <= 0:
                del self._streams[user_id]
            self._await_no_more(environment_id, event)

    @contextmanager
    def waiting(self, environment_id: str) -> Iterator[asyncio.Event]:
        """Set whenever something of the environment changes in this process, and when it stops. No user's stream."""
        event = asyncio.Event()
        with self._lock:
            self._await(environment_id, event)
        try:
            yield event
        finally:
            with self._lock:
                self._await_no_more(environment_id, event)

    def _await(self, environment_id: str, event: asyncio.Event) -> None:
        self._waiting.setdefault(environment_id, set()).add((asyncio.get_running_loop(), event))

    def _await_no_more(self, environment_id: str, event: asyncio.Event) -> None:
        waiting = self._waiting.get(environment_id, set())
        waiting.discard((asyncio.get_running_loop(), event))
        if not waiting:
            self._waiting.pop(environment_id, None)


def event_text(name: str, data: object, event_id: int | None = None) -> str:
    """One event. JSON has no line end of its own, so one `data` line is enough."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def line_data(line: LogLine) -> dict[str, object]:
    return {"id": line.id, "at": line.at, "level": line.level, "text": line.text}


def mark_of(session: Session, environment_id: str) -> str:
    """Differs whenever a page of the environment would look different."""
    row = session.get(Environment, environment_id)
    if row is None:
        return ""
    job = session.execute(
        select(Job.id, Job.state, Job.step, Job.attempt, Job.cancel_asked)
        .where(Job.environment_id == environment_id)
        .order_by(Job.id.desc())
        .limit(1)
    ).first()
    seen = (
        row.state,
        row.running,
        row.address,
        row.node,
        row.last_backup_at,
        row.last_backup_error,
        row.frozen,
        row.finding,
    )
    return repr((seen, tuple(job) if job else None))


def router(get_context: Callable[[], Context], watchers: Watchers) -> APIRouter:
    """`GET /environments/{environment}/events`, the stream, and `.../log?after=`, its lines for who cannot keep one open."""
    made = APIRouter()

    async def events(request: Request, environment: str) -> Response:
        context = get_context()
        try:
            caller = await run_in_threadpool(current_caller, request)
            environment_id = await run_in_threadpool(_visible, context, caller, environment)
            event = watchers.begin(caller.user_id, environment_id)
        except EnvctlError as error:
            return error_answer(error)
        after = _number(request.headers.get("Last-Event-ID") or request.query_params.get("after", "0"))
        return StreamingResponse(
            _stream(context, request, caller, environment_id, after, watchers, event),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    def log(request: Request, environment: str) -> Response:
        context = get_context()
        try:
            environment_id = _visible(context, current_caller(request), environment)
        except EnvctlError as error:
            return error_answer(error)
        with context.database.read() as session:
            lines = lines_after(session, environment_id, _number(request.query_params.get("after", "0")))
            mark = mark_of(session, environment_id)
        return JSONResponse(
            {"lines": [line_data(line) for line in lines], "mark": mark}, headers={"Cache-Control": "no-store"}
        )

    made.add_api_route("/environments/{environment}/events", events, methods=["GET"], include_in_schema=False)
    made.add_api_route("/environments/{environment}/log", log, methods=["GET"], include_in_schema=False)
    return made


async def _stream(
    context: Context,
    request: Request,
    caller: Caller,
    environment_id: str,
    after: int,
    watchers: Watchers,
    event: asyncio.Event,
) -> AsyncIterator[str]:
    try:
        yield f"retry: {RETRY_MS}\n\n"
        mark: str | None = None
        heard_at = time.monotonic()
        while not watchers.closing:
            event.clear()
            lines, newer = await asyncio.to_thread(_look, context, environment_id, after)
            said = [event_text("line", line_data(line), line.id) for line in lines]
            after = lines[-1].id if lines else after
            if mark is not None and newer != mark:
                said.append(event_text("state", {}))
            mark = newer
            # A proxy closes what is silent; and no stream outlives the sign-in that opened it.
            if time.monotonic() - heard_at >= HEARTBEAT_S:
                heard_at = time.monotonic()
                if (why := await asyncio.to_thread(_why_over, context, request, environment_id)) is not None:
                    yield event_text("end", {"reason": why})
                    return
                said.append(": \n\n")
            if said:
                yield "".join(said)
            if len(lines) < LINES_AT_ONCE:
                try:
                    await asyncio.wait_for(event.wait(), POLL_S)
                except TimeoutError:
                    continue
    finally:
        watchers.end(caller.user_id, environment_id, event)


def _look(context: Context, environment_id: str, after: int) -> tuple[Sequence[LogLine], str]:
    with context.database.read() as session:
        return lines_after(session, environment_id, after), mark_of(session, environment_id)


def _why_over(context: Context, request: Request, environment_id: str) -> str | None:
    caller = caller_now(context, request)
    if caller is None:
        return "signed-out"
    try:
        _visible(context, caller, environment_id)
    except EnvctlError as error:
        return error.code
    return None


def _visible(context: Context, caller: Caller, environment: str) -> str:
    """The id of that environment, where the caller may see it."""
    asked = verb("env.show")
    answer = call(context, caller, asked, asked.request.model_validate({"environment": environment}))
    return str(answer.id)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0
