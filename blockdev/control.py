"""The control socket: how commands on this host ask the daemon about a volume it serves, or have it do something.

One rule: one JSON object per line, each way, one answer per request, in order. `{"do": NAME, ...arguments}` is answered by
`{"ok": true, "result": {...}}` or `{"ok": false, "kind": ..., "error": ..., "hint": ...}`; `kind` is the name of the
exception, which the client raises again. What the names mean is the daemon's business (`Operate`).

The socket is `control` in the volume's state directory. It is there while the volume is attached, for the user of the daemon
alone (mode 0600, from its first moment on). A crash leaves the file: connecting is refused then, and the next daemon, which
holds the directory's lock, puts its own in its place.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from blockdev import errors as block_errors
from blockdev.errors import BlockError, LocalDiskFailed, NotReady, Refused
from s3core import errors as store_errors
from s3core.settings import ConfigError

log = logging.getLogger(__name__)

NAME = "control"
REQUEST_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""A list of snapshots is the longest; what is longer comes from no daemon of ours."""
CONNECTIONS_MAX = 32
SOCKET_PATH_BYTES_MAX = 107
"""Of `sun_path` (unix(7)), without its final zero."""
CONNECT_PATIENCE_S = 5.0

Answered = Callable[[dict[str, Any] | Exception], None]
Operate = Callable[[str, dict[str, Any], Answered], None]
"""Begin the operation of that name with these arguments; call back once, now or later on the same thread, with its result
or with what went wrong."""


class NotServed(NotReady):
    """No daemon on this host serves the volume: nobody listens at its control socket."""


class BadRequest(BlockError):
    """A request that is not in the protocol. Nothing was done."""


def rebuilt_error(kind: str, message: str, hint: str = "") -> Exception:
    """An error that crossed a process boundary, as the exception it was, so that exit codes and messages are the same."""
    if kind == "ConfigError":
        return ConfigError(message, hint=hint)
    if kind == BadRequest.__name__:
        return BadRequest(message, hint=hint)
    for module in (block_errors, store_errors):
        found = getattr(module, kind, None)
        if found is block_errors.MediumError:
            continue  # it has a sector, which is not carried
        if isinstance(found, type) and issubclass(found, BlockError | store_errors.StoreError):
            return found(message, hint=hint)
    return NotReady(f"{kind}: {message}", hint=hint)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for `path` that fits a socket address, valid within the block. Raises OSError when its directory is not
    there."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _refusal(error: Exception) -> dict[str, Any]:
    hint = getattr(error, "hint", "")
    # `str` of our errors ends with the hint in parentheses.
    text = str(error).removesuffix(f" ({hint})") if hint else str(error)
    return {"ok": False, "kind": type(error).__name__, "error": text or repr(error), "hint": hint}


# --- the daemon's end ------------------------------------------------------------------------------------------------


class ControlServer:
    """Listens in `state_dir`, whose lock the caller holds from before `start` until after `close`. Everything runs on the
    loop `start` is called on; nothing here waits on that loop's thread."""

    def __init__(self, state_dir: Path, operate: Operate) -> None:
        self.path = state_dir / NAME
        self._operate = operate
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, in the place of a socket that a crash left. Raises LocalDiskFailed."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            # Linux makes the file with the mode of the unbound socket, so it is never open to others.
            os.fchmod(listener.fileno(), 0o600)
            with _address(self.path) as address:
                listener.bind(address)
            listener.listen(CONNECTIONS_MAX)
        except OSError as error:
            listener.close()
            raise LocalDiskFailed(
                f"cannot make the control socket {self.path}: {error.strerror or error}",
                hint="the state directory must be on a file system that takes sockets",
            ) from error
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=REQUEST_BYTES_MAX)

    def close(self) -> None:
        """Stop listening and drop every connection, answered or not. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(OSError):  # the next start replaces it
            self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) > CONNECTIONS_MAX:
                writer.write(_line(_refusal(Refused(f"{CONNECTIONS_MAX} connections are open", hint="try again"))))
            else:
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError) as error:
            log.debug("%s: connection ended: %r", self.path, error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                # Where the next request begins is not known any more.
                writer.write(_line(_refusal(BadRequest(f"a request has at most {REQUEST_BYTES_MAX} bytes"))))
                return
            if not line:
                return
            try:
                answer = _line(await self._answer(line))
            except Exception as error:
                # The last fence: whatever went wrong with this request, the volume goes on.
                log.exception("%s: a request ended by an error of ours", self.path)
                answer = _line(_refusal(error))
            writer.write(answer)
            await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError as error:
            return _refusal(BadRequest(f"a request is one JSON object on one line: {error}"))
        name = request.pop("do", None) if isinstance(request, dict) else None
        if not isinstance(name, str):
            return _refusal(BadRequest('a request is a JSON object with the member "do"'))
        outcome: asyncio.Future[dict[str, Any] | Exception] = asyncio.get_running_loop().create_future()

        def answered(result: dict[str, Any] | Exception) -> None:
            if not outcome.done():
                outcome.set_result(result)

        try:
            self._operate(name, request, answered)
        except (BlockError, store_errors.StoreError) as error:
            answered(error)
        result = await outcome
        if isinstance(result, Exception):
            return _refusal(result)
        return {"ok": True, "result": result}


# --- a command's end -------------------------------------------------------------------------------------------------


class ControlClient:
    """A connection to the daemon that serves the volume of `state_dir`. Raises NotServed when there is none, Refused when
    this user may not ask it. One request at a time; waits for each answer (`timeout_s`: NotReady after that; None: as
    long as it takes)."""

    def __init__(self, state_dir: Path, *, timeout_s: float | None = None) -> None:
        self.path = state_dir / NAME
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_PATIENCE_S)
            with _address(self.path) as address:
                self._socket.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            self._socket.close()
            raise NotServed(f"no daemon serves the volume of {state_dir}", hint="`s3block serve` does") from error
        except PermissionError as error:
            self._socket.close()
            raise Refused(
                f"{self.path} is not yours to use", hint="run it as the user who serves the volume"
            ) from error
        except OSError as error:
            self._socket.close()
            raise NotReady(f"{self.path}: the daemon does not answer: {error}") from error
        self._socket.settimeout(timeout_s)
        self._lines = self._socket.makefile("rb")

    def ask(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """The result of the operation. Raises what the daemon met (see `rebuilt_error`), NotReady when it went away before
        it answered: then the operation may have been done or not."""
        request = _line({"do": name} | arguments)
        if len(request) > REQUEST_BYTES_MAX:
            raise BadRequest(f"the request {name} has {len(request)} bytes, at most {REQUEST_BYTES_MAX} are taken")
        try:
            self._socket.sendall(request)
            line = self._lines.readline(ANSWER_BYTES_MAX)
        except OSError as error:
            reason = f"within {self._timeout_s} s" if isinstance(error, TimeoutError) else f": {error}"
            raise NotReady(f"{self.path}: no answer to {name} {reason}") from error
        if not line.endswith(b"\n"):
            raise NotReady(f"{self.path}: the daemon went away before it answered {name}")
        answer = json.loads(line)
        if answer.get("ok"):
            result = answer["result"]
            assert isinstance(result, dict)
            return result
        raise rebuilt_error(str(answer.get("kind")), str(answer.get("error")), str(answer.get("hint", "")))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
