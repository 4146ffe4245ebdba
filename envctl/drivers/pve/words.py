"""What Proxmox VE's answers mean: which error they are, and whether the same call may succeed later. Pure.

    answer                                         what it means for us
    401                                            DriverFailed `token`: unknown, expired, or its user is disabled
    403                                            DriverFailed `denied`, with the right that is missing
    400 with `errors`                              DriverFailed `invalid`, with each parameter's complaint
    500 "... already exists"                       DriverFailed `exists`: the number is taken
    500 "Configuration file ... does not exist"    DriverFailed `gone`: not on this node
    500 "... got timeout", "VM is locked", quorum  DriverBusy, nothing done
    595 (no connection to the node)                DriverBusy, nothing done
    596, 597, 599 (the proxied call broke off)     DriverBusy, outcome unknown: the work may go on at the node
    429, 502, 503, 504 (something in between)      DriverBusy, outcome unknown

595 to 599 are AnyEvent::HTTP's, as pveproxy hands them through: 595 while connecting, 596 while sending the request or awaiting
the answer (30 s at the latest), 597 within the body, 599 for the rest. The word is in `details["reason"]`.
"""

import re
from collections.abc import Mapping
from typing import Final

from envctl.errors import DriverBusy, DriverFailed

BUSY: Final = re.compile(
    r"got timeout|got lock request timeout|can't lock file|cfs-lock|VM is locked|CT is locked|is locked \("
    r"|no quorum|cluster not ready|file changed by other user|unable to acquire lock|trying to acquire lock"
    r"|Resource temporarily unavailable|got no worker upid|timeout waiting on systemd",
    re.IGNORECASE,
)
"""Of an answer's or a task's words: somebody else holds what is needed, for a while."""
EXISTS: Final = re.compile(r"already exists|config file already exists", re.IGNORECASE)
GONE: Final = re.compile(
    r"Configuration file '[^']*' does not exist|no such VM|unable to find configuration file for VM", re.IGNORECASE
)
NO_TASK: Final = re.compile(r"no such task|unable to parse worker upid", re.IGNORECASE)
RUNNING: Final = re.compile(r"VM \d+ already running", re.IGNORECASE)
STOPPED: Final = re.compile(r"VM \d+ not running", re.IGNORECASE)

_NOT_SENT_ON: Final = 595
_BROKEN_OFF: Final = frozenset({596, 597, 598, 599})
_IN_BETWEEN: Final = frozenset({408, 429, 502, 503, 504})


def sentence(message: str, errors: Mapping[str, object]) -> str:
    """Proxmox VE's own words, with what it says of each parameter."""
    parts = [f"{name}: {str(value).strip()}" for name, value in sorted(errors.items())]
    return "; ".join([message.strip().rstrip("."), *parts] if message.strip() else parts) or "no reason given"


def failure(what: str, status: int, message: str, errors: Mapping[str, object]) -> DriverFailed:
    """The error for an answer of `status`. `what`: who was asked for what, e.g. `pve: clone 9000`."""
    words = sentence(message, errors)
    text = f"{what}: {status} {words}"
    if status == 401:
        return _failed(
            text, "token", "the API token is unknown, has expired, or its user is disabled; see docs/envctl/pve.md"
        )
    if status == 403:
        return _failed(text, "denied", "the token lacks a right; s3-envctl admin doctor lists all that are missing")
    if status == _NOT_SENT_ON:
        return DriverBusy(text, hint="the node cannot be reached from the node that was asked", nothing_done=True)
    if status in _BROKEN_OFF:
        return DriverBusy(text, hint="the node answers too late; what was asked may be under way")
    if status in _IN_BETWEEN:
        return DriverBusy(text)
    if EXISTS.search(words):
        return _failed(text, "exists", "")
    if GONE.search(words):
        return _failed(text, "gone", "")
    if BUSY.search(words):
        return DriverBusy(text, nothing_done=True)
    if status == 400:
        return _failed(text, "invalid", "", {name: str(value).strip() for name, value in errors.items()})
    if status == 501:
        return _failed(text, "unsupported", "this Proxmox VE is older than what is supported (8.4)")
    return _failed(text, "refused", "")


def reason(error: DriverFailed) -> str:
    return error.details.get("reason", "")


def _failed(text: str, word: str, hint: str, more: Mapping[str, str] | None = None) -> DriverFailed:
    return DriverFailed(text, hint=hint, details={**(more or {}), "reason": word})
