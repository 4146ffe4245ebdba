"""What can go wrong in the console, each with the word that crosses the REST API, the status of the answer and the exit code.

One rule: an error is one line for whoever asked: what happened, to what, and what to do (`hint`). Nothing in it tells a person
what is there that they may not see: what is not theirs does not exist (`NoSuchThing`).
"""

from collections.abc import Mapping

from s3core.exit_codes import ExitCode, register


class EnvctlError(Exception):
    """Base. `code` is the word in the answer, `status` its HTTP status; `retryable`: the same request may succeed later."""

    code = "bug"
    status = 500
    retryable = False

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.details = dict(details or {})
        """For a form: what is wrong with each field, by its name."""

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class Invalid(EnvctlError):
    """What was asked cannot be: a name, a size, a combination."""

    code = "invalid"
    status = 422


class NotSignedIn(EnvctlError):
    code = "not-signed-in"
    status = 401


class Forbidden(EnvctlError):
    """Who asks is known, and may not."""

    code = "forbidden"
    status = 403


class NoSuchThing(EnvctlError):
    """There is none, or none that they may see."""

    code = "not-found"
    status = 404


class Refused(EnvctlError):
    """Things as they are forbid it: a state, a job under way, a name that is taken."""

    code = "refused"
    status = 409


class OverQuota(Refused):
    """The message says which quota, how much of it is used and how much was asked for."""

    code = "over-quota"


class Fenced(EnvctlError):
    """A guest of an older generation: another machine has this home now. It must stop writing."""

    code = "fenced"
    status = 412


class TooMany(EnvctlError):
    """Too many attempts. `retry_after_s` says when to come again."""

    code = "too-many"
    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DriverFailed(EnvctlError):
    """The hypervisor said no, and will say so again."""

    code = "driver-failed"
    status = 502


class DriverBusy(DriverFailed):
    """A lock, a slow node, a lost answer: the same call may succeed later. The outcome of the call is unknown unless
    `nothing_done`."""

    code = "driver-busy"
    status = 503
    retryable = True

    def __init__(self, message: str, *, hint: str = "", nothing_done: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.nothing_done = nothing_done


class HomeDamaged(EnvctlError):
    """An object of a home is missing or its checksum fails. The message names it."""

    code = "damaged"
    status = 500


register(Invalid, ExitCode.USAGE)
register(NotSignedIn, ExitCode.DENIED)
register(Forbidden, ExitCode.DENIED)
register(NoSuchThing, ExitCode.NOT_FOUND)
register(Refused, ExitCode.REFUSED)
register(Fenced, ExitCode.REFUSED)
register(TooMany, ExitCode.UNAVAILABLE)
register(DriverBusy, ExitCode.UNAVAILABLE)
register(DriverFailed, ExitCode.REFUSED)
register(HomeDamaged, ExitCode.CORRUPT)
