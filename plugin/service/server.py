"""The socket: one connection is one call, answered by its deadline (docs/protocol/pve-socket.md).

One rule: each connection has a thread, and no thread waits for another one's store. Methods that ask a store run in the lane of
their storage (`plugin.service.lanes`); this thread waits for them until the deadline, tells progress, and looks whether the
caller is still there.

The socket (mode 0600 from its first moment) is there while the service runs. A crash leaves the file: connecting is refused
then, and the next start, which holds the lock beside it, puts its own in its place.
"""

import fcntl
import json
import logging
import math
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugin.errors import BadVolume, Busy, DeadlineOver, code_of
from plugin.protocol import (
    HEARTBEAT_S,
    LINE_BYTES_MAX,
    Request,
    decode_request,
    encode_error,
    encode_log,
    encode_result,
)
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
OF_ONE_STORAGE_MAX = 64
"""Calls of one storage under way at once that may ask its store; one more is told `busy` at once."""
REQUEST_PATIENCE_S = 10.0
"""For the line with the request."""
SEND_PATIENCE_S = 10.0
LOOK_S = 0.5
"""How often is looked whether the caller has gone, and for progress."""

Result = dict[str, Any]


class Gone(Exception):
    """The caller has hung up: what was done for him alone can end."""


@dataclass(slots=True)
class Call:
    """One request on its way. `deadline` is on `time.monotonic`, infinite where there is none."""

    request: Request
    deadline: float
    _said: str = ""
    _gone: threading.Event = field(default_factory=threading.Event)

    @property
    def storage(self) -> str:
        return self.request.storage

    @property
    def args(self) -> Mapping[str, Any]:
        return self.request.args

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def text(self, name: str, default: str | None = None) -> str:
        """An argument that is text. BadVolume where it is none, or is missing and has no default."""
        value = self.args.get(name, default)
        if isinstance(value, bool) or not isinstance(value, str):
            raise BadVolume(f"{self.request.method}: the argument {name} must be text")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """An argument that is a whole number, or text that is one (Perl does not tell them apart)."""
        value = self.args.get(name, default)
        if isinstance(value, str) and value.isdecimal() and len(value) < 19:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadVolume(f"{self.request.method}: the argument {name} must be a whole number")
        return value

    def say(self, text: str) -> None:
        """Progress: the newest line is sent soon, older ones that were not sent are dropped."""
        self._said = text

    def take_said(self) -> str:
        said, self._said = self._said, ""
        return said

    @property
    def gone(self) -> bool:
        """Whether the caller has hung up."""
        return self._gone.is_set()

    def hung_up(self) -> None:
        self._gone.set()


Handler = Callable[[Call], Result]


@dataclass(frozen=True, slots=True)
class Served:
    """How a method is carried out. `quick`: it asks nobody and runs at once, whatever else is under way."""

    handler: Handler
    quick: bool = False


class Server:
    """Listens at `path`. `table` has the methods; those that are missing in it are `unsupported`."""

    def __init__(self, path: Path, table: Mapping[str, Served]) -> None:
        self.path = path
        self.table = dict(table)
        self.calls: Counter[tuple[str, str]] = Counter()
        """Calls that were answered, by method and outcome (`ok` or the error's code)."""
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()
        self._connections = 0
        self._listener: socket.socket | None = None
        self._guard = -1

    def start(self) -> None:
        """Listen, in the place of a socket that a crash left. ConfigError where another core serves there, or nobody can."""
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._guard = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another core serves at {self.path}", hint="stop it first") from error
        except OSError as error:
            raise ConfigError(f"cannot make {self.path}: {error}", hint="change run_dir of [pve]") from error
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.path.unlink(missing_ok=True)
            # Linux makes the file with the mode of the unbound socket, so it is never open to others.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(str(self.path))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen at {self.path}: {error}", hint="change run_dir of [pve]") from error
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def close(self) -> None:
        """Take no more calls; those under way end by themselves. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with suppress(OSError):  # the next start replaces it
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # wakes the thread that accepts
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        os.close(self._guard)

    @property
    def connections(self) -> int:
        with self._lock:
            return self._connections

    # --- inside

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._listener is not listener:
                    return
                log.error("a connection could not be taken: %s", error)
                time.sleep(0.1)  # too many open files: the calls under way give some back
                continue
            with self._lock:
                full = self._connections >= CONNECTIONS_MAX
                self._connections += not full
            if full:
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), name="call", daemon=True).start()
            except RuntimeError as error:
                log.error("a call was refused: %s", error)
                self._ended(connection)

    def _ended(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections -= 1
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(REQUEST_PATIENCE_S)
            with connection.makefile("rb") as lines:
                line = lines.readline(LINE_BYTES_MAX + 1)
            came = time.monotonic()
            if not line:
                return
            connection.settimeout(SEND_PATIENCE_S)
            connection.sendall(self._answer(line, came, connection))
        except OSError as error:
            log.debug("a caller went away: %s", error)
        except Gone:
            log.debug("a caller went away")
        finally:
            self._ended(connection)

    def _answer(self, line: bytes, came: float, connection: socket.socket) -> bytes:
        request_id, method = _told_id(line), ""
        outcome = "ok"
        try:
            if not line.endswith(b"\n"):
                raise BadVolume(f"a request is one line of at most {LINE_BYTES_MAX} bytes")
            request = decode_request(line)
            request_id, method = request.id, request.method
            deadline = came + request.deadline_ms / 1000 if request.deadline_ms else math.inf
            return encode_result(request.id, self._carry_out(Call(request, deadline), connection))
        except (Gone, OSError) as error:
            outcome = "gone" if isinstance(error, Gone) else code_of(error)
            if isinstance(error, Gone):
                raise
            return encode_error(request_id, error)
        except Exception as error:
            # The last fence: whatever went wrong with this call, the others go on.
            outcome = code_of(error)
            if outcome == "bug":
                log.exception("%s ended by an error of ours", method or "a request")
            else:
                log.info("%s: %s: %s", method or "a request", outcome, error)
            return encode_error(request_id, error)
        finally:
            with self._lock:
                self.calls[method, outcome] += 1

    def _carry_out(self, call: Call, connection: socket.socket) -> Result:
        served = self.table.get(call.request.method)
        if served is None:
            raise BadVolume(f"this core does not do {call.request.method}", hint="update and restart it")
        if served.quick:
            return served.handler(call)
        with self._lock:
            if self._under_way[call.storage] >= OF_ONE_STORAGE_MAX:
                raise Busy(f"storage {call.storage}: {OF_ONE_STORAGE_MAX} calls are under way")
            self._under_way[call.storage] += 1
        result: list[Result] = []
        errors: list[BaseException] = []
        ended = threading.Event()

        def work() -> None:
            try:
                result.append(served.handler(call))
            except BaseException as error:  # noqa: BLE001  # it is raised again below
                errors.append(error)
            finally:
                with self._lock:
                    self._under_way[call.storage] -= 1
                ended.set()

        threading.Thread(target=work, name=call.request.method, daemon=True).start()
        self._wait(call, connection, ended)
        if errors:
            raise errors[0]
        return result[0]

    def _wait(self, call: Call, connection: socket.socket, ended: threading.Event) -> None:
        spoken = time.monotonic()
        long = math.isinf(call.deadline)
        while not ended.wait(max(0.0, min(LOOK_S, call.seconds_left))):
            now = time.monotonic()
            if now >= call.deadline:
                raise DeadlineOver(f"storage {call.storage}: no answer from the store in time")
            if _has_hung_up(connection):
                call.hung_up()
                raise Gone
            if not long:
                continue
            said = call.take_said()
            if said or now - spoken >= HEARTBEAT_S:
                connection.sendall(encode_log(call.request.id, said or f"{call.request.method}: still at it"))
                spoken = now
        if long and (said := call.take_said()):  # the last word, such as why a local copy is used
            connection.sendall(encode_log(call.request.id, said))


def _has_hung_up(connection: socket.socket) -> bool:
    """Whether the caller has closed its end; one that only says no more has not."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _told_id(line: bytes) -> str:
    """The id of a request that may be none."""
    try:
        told = json.loads(line)
    except ValueError:
        return ""
    found = told.get("id") if isinstance(told, dict) else None
    return found if isinstance(found, str) else ""
