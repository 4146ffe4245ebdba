"""What a guest is told beside the errors of `envctl.errors`: each carries what the agent needs to go on."""

from collections.abc import Sequence

from envctl.errors import EnvctlError, Refused
from envctl.homes.documents import Head
from s3core.exit_codes import ExitCode, register


class ParentMoved(Refused):
    """The commit's parent is not the newest snapshot. `head` is what is there: where its trees are those of the commit, an
    answer was lost and the commit is done."""

    code = "parent"

    def __init__(self, message: str, head: Head) -> None:
        super().__init__(message, hint="compare the trees: equal ones mean that this commit is done; else scan again")
        self.head = head


class ObjectsMissing(Refused):
    """The commit names objects that are not there, or not for long any more. The agent uploads them and commits again."""

    code = "missing"

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message, hint="upload them and commit again")
        self.names = tuple(names)


class NotRestored(EnvctlError):
    """A machine that has not got its home back may not save it: an empty home must never replace a full one."""

    code = "not-restored"
    status = 425


class ClockOff(EnvctlError):
    """The signature's moment is too far from ours. `now_ms` lets the agent correct itself and try once more."""

    code = "clock"
    status = 401

    def __init__(self, message: str, now_ms: int) -> None:
        super().__init__(message, hint="correct the offset by `now` and try once more")
        self.now_ms = now_ms


class Unsigned(EnvctlError):
    """No signature, a wrong one, or one that was used before."""

    code = "signature"
    status = 401


class HomeBusy(EnvctlError):
    """Objects of these names are being deleted at this moment. It takes seconds."""

    code = "busy"
    status = 503
    retryable = True


register(ParentMoved, ExitCode.REFUSED)
register(ObjectsMissing, ExitCode.REFUSED)
register(NotRestored, ExitCode.REFUSED)
register(ClockOff, ExitCode.DENIED)
register(Unsigned, ExitCode.DENIED)
register(HomeBusy, ExitCode.UNAVAILABLE)
