"""The socket of one mount: what is open, whether it is idle, stop. For the service, for upgrades and for people.

    -> {"v":1,"id":"1","method":"status"}        <- {"id":"1","result":{"storage":…,"pid":…,"idle":…,"open":[…]}}
    -> {"v":1,"id":"2","method":"stop"}          as SIGTERM: what is open is waited for
    -> {"v":1,"id":"3","method":"stop_idle"}     only where nothing is open; `result.stopping` tells

One rule: answers come from memory at once; nothing here waits for the store or for the mount point.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from plugin.errors import NotServed

log = logging.getLogger(__name__)

VERSION: Final = 1
LINE_BYTES_MAX: Final = 1 << 20
CALL_S: Final = 2.0

Methods = Mapping[str, Callable[[], dict[str, Any]]]


def socket_path(run_dir: Path, storage: str) -> Path:
    return run_dir / f"mount-{storage}.sock"


class Control:
    """Listens from `start` to `stop`, 0600. One connection is one call."""

    def __init__(self, path: Path, methods: Methods) -> None:
        self._path = path
        self._methods = methods
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Replaces a dead predecessor's socket. OSError."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        listener.listen(16)
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), name="control", daemon=True).start()

    def stop(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):  # nobody was connected
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._path.unlink(missing_ok=True)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # stopped
            threading.Thread(target=self._one, args=(connection,), name="control-call", daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(CALL_S)
            try:
                answer = self._answer(_line(connection))
                connection.sendall(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
            except OSError as error:
                log.debug("a caller of the control socket went away: %s", error)

    def _answer(self, line: bytes) -> dict[str, Any]:
        request: Any = None
        with contextlib.suppress(ValueError):
            request = json.loads(line)
        if not isinstance(request, dict) or request.get("v") != VERSION:
            return _refusal("", f"a request is one line of JSON, version {VERSION}")
        method = self._methods.get(str(request.get("method")))
        told = str(request.get("id", ""))
        if method is None:
            return _refusal(told, f"there is no method {request.get('method')!r}; there is {', '.join(self._methods)}")
        return {"id": told, "result": method()}


def call(path: Path, method: str, *, timeout_s: float = CALL_S) -> dict[str, Any]:
    """The result of one call. NotServed where no mount answers there."""
    request = json.dumps({"v": VERSION, "id": "1", "method": method}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(request)
            answer = json.loads(_line(connection))
    except (OSError, ValueError) as error:
        raise NotServed(
            f"no mount answers at {path}: {error}", hint="systemctl start bucketworks-mount@STORAGE"
        ) from error
    if "error" in answer:
        raise NotServed(
            f"{path}: {answer['error'].get('message', 'refused')}", hint="restart the mount when it is idle"
        )
    result = answer.get("result")
    return result if isinstance(result, dict) else {}


def _refusal(id: str, message: str) -> dict[str, Any]:
    return {"id": id, "error": {"code": "configuration", "message": message, "hint": "", "retryable": False}}


def _line(connection: socket.socket) -> bytes:
    data = bytearray()
    while b"\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            raise OSError("the connection ended before the line")
        data += piece
        if len(data) > LINE_BYTES_MAX:
            raise OSError("the line is too long")
    return bytes(data.partition(b"\n")[0])
