"""What can go wrong between Proxmox VE and a bucket, each with the code that crosses the socket and the exit code.

One rule: an error is one line for a task log: what happened, to what, and what to do. `code` is a word of the protocol
(docs/protocol/pve-socket.md); the store's own errors are told by the same words (`code_of`).
"""

from typing import Final

from integrity.errors import LedgerError
from s3core.credentials import CredentialsError
from s3core.errors import Archived as StoredCold
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.exit_codes import ExitCode, register
from s3core.settings import ConfigError


class PluginError(Exception):
    """Base. `retryable`: the same call may succeed later."""

    code = "bug"
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class BadVolume(PluginError):
    """A volume name, storage or argument that cannot be."""

    code = "configuration"


class NoSuchVolume(PluginError):
    code = "not-found"


class Exists(PluginError):
    """There is a volume of that name, with other bytes."""

    code = "exists"


class Refused(PluginError):
    """Things as they are forbid it: protected, locked, in use, over a budget."""

    code = "refused"


class Archived(PluginError):
    """The object lies in a storage class that must be thawed before it can be read."""

    code = "archived"


class Busy(PluginError):
    """Somebody else is at it, or too much is under way."""

    code = "busy"
    retryable = True


class DeadlineOver(PluginError):
    """Given up when the caller's time was over; whether the store has done it is not known unless the message says so."""

    code = "deadline"
    retryable = True


class NotServed(PluginError):
    """Nobody listens at the core's socket, or a mount's."""

    code = "unavailable"
    retryable = True


class LocalSpace(PluginError):
    """The spool, the cache or their file system is full."""

    code = "refused"


register(BadVolume, ExitCode.CONFIGURATION)
register(NoSuchVolume, ExitCode.NOT_FOUND)
register(Exists, ExitCode.REFUSED)
register(Refused, ExitCode.REFUSED)
register(Archived, ExitCode.REFUSED)
register(Busy, ExitCode.UNAVAILABLE)
register(DeadlineOver, ExitCode.UNKNOWN_OUTCOME)
register(NotServed, ExitCode.UNAVAILABLE)
register(LocalSpace, ExitCode.LOCAL)

CODES: Final[dict[str, str]] = {
    "unavailable": "the store or the core cannot be reached; nothing was done",
    "deadline": "the time given was over; whether it was done is not known",
    "denied": "credentials refused or a permission is missing",
    "not-found": "no such volume, bucket or storage",
    "exists": "there is something else of that name",
    "refused": "protected, locked, in use, over a limit, or no room",
    "configuration": "a property, a name or an argument cannot be",
    "unsupported": "the store or this storage cannot do that",
    "corrupt": "bytes that came back are not those that were written",
    "archived": "it must be thawed before it can be read",
    "busy": "somebody else is at it",
    "bug": "an error of ours; the core's log has more",
}
"""The words for an error in the protocol, with their meaning."""

_STORE_CODES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (NotFound, "not-found"),
    (PreconditionFailed, "exists"),
    (Denied, "denied"),
    (Misconfigured, "configuration"),
    (StoredCold, "archived"),
    (Unsupported, "unsupported"),
    (Corrupt, "corrupt"),
    (OutcomeUnknown, "deadline"),
    (Unavailable, "unavailable"),
    (StoreError, "unavailable"),
    (ConfigError, "configuration"),
    (CredentialsError, "configuration"),
    (LedgerError, "refused"),
)


def code_of(error: BaseException) -> str:
    """The protocol's word for any error; `bug` for one that nobody foresaw."""
    if isinstance(error, PluginError):
        return error.code
    if isinstance(error, OSError):
        return "refused"
    return next((code for kind, code in _STORE_CODES if isinstance(error, kind)), "bug")


def retryable(error: BaseException) -> bool:
    if isinstance(error, PluginError):
        return error.retryable
    return isinstance(error, StoreError) and error.temporary
