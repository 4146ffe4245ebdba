"""Asks the core of this node, as Proxmox VE's Perl does: one connection, one call.

One rule: a call ends within its deadline and a little more, whatever the core does; an error of the core is raised as the error
that it was there, as far as its code tells.
"""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from plugin.errors import Archived, BadVolume, Busy, DeadlineOver, Exists, NoSuchVolume, NotServed, PluginError, Refused
from plugin.protocol import BY_NAME, HEARTBEAT_S, LINE_BYTES_MAX, SOCKET_NAME, Request, encode_request
from s3core.errors import Corrupt, Denied, Unsupported

SLACK_S: Final = 1.0
_ERRORS: Final[dict[str, Callable[[str, str], Exception]]] = {
    "unavailable": lambda message, hint: NotServed(message, hint=hint),
    "deadline": lambda message, hint: DeadlineOver(message, hint=hint),
    "denied": lambda message, hint: Denied(message, hint=hint),
    "not-found": lambda message, hint: NoSuchVolume(message, hint=hint),
    "exists": lambda message, hint: Exists(message, hint=hint),
    "refused": lambda message, hint: Refused(message, hint=hint),
    "configuration": lambda message, hint: BadVolume(message, hint=hint),
    "unsupported": lambda message, hint: Unsupported(message, hint=hint),
    "corrupt": lambda message, hint: Corrupt(message),
    "archived": lambda message, hint: Archived(message, hint=hint),
    "busy": lambda message, hint: Busy(message, hint=hint),
}


def ask(
    run_dir: Path,
    method: str,
    storage: str = "",
    args: dict[str, Any] | None = None,
    *,
    said: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The result of a call with the method's own deadline; `said` gets lines of progress. NotServed where no core listens, and
    what the core raised."""
    deadline_ms = BY_NAME[method].deadline_ms
    request = Request("1", method, storage, args or {}, deadline_ms)
    path = run_dir / SOCKET_NAME
    until = time.monotonic() + deadline_ms / 1000 + SLACK_S if deadline_ms else None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(_left(until))
            connection.connect(str(path))
            connection.sendall(encode_request(request))
            return _answer(connection, until, said)
    except TimeoutError as error:
        raise DeadlineOver(f"the core did not answer {method} in time", hint="journalctl -u bucketworks-pve") from error
    except (OSError, ValueError) as error:
        raise NotServed(f"no core answers at {path}: {error}", hint="systemctl start bucketworks-pve") from error


def _answer(connection: socket.socket, until: float | None, said: Callable[[str], None]) -> dict[str, Any]:
    held = bytearray()
    while True:
        line, found, rest = held.partition(b"\n")
        if not found:
            connection.settimeout(_left(until))
            piece = connection.recv(1 << 16)
            if not piece or len(held) > LINE_BYTES_MAX:
                raise ValueError("its answer is cut short")
            held += piece
            continue
        held = bytearray(rest)
        told = json.loads(bytes(line))
        if "log" in told:
            said(str(told["log"]))
        elif "error" in told:
            error = told["error"]
            message, hint = str(error.get("message", "")), str(error.get("hint", ""))
            raise _ERRORS.get(str(error.get("code")), _unforeseen)(message, hint)
        else:
            return dict(told["result"])


def _unforeseen(message: str, hint: str) -> Exception:
    return PluginError(message, hint=hint)


def _left(until: float | None) -> float:
    if until is None:
        return 3 * HEARTBEAT_S  # a call without a deadline says something each HEARTBEAT_S
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
