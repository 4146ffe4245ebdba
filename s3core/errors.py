"""What a store may answer, sorted by who must act.

A store gives three answers: *done* (the call returned), *not done* (any `StoreError` but the next) and
*unknown* (`OutcomeUnknown`: the request may or may not have been applied). Unknown is a type of its own
and is never turned into a failure by anybody who has not looked.
"""


class StoreError(Exception):
    """The operation was *not* applied. `key` names the object, empty for the bucket itself."""

    #: Trying the same call again later may succeed.
    temporary = False

    def __init__(self, message: str, *, key: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        #: What the operator can do about it, one sentence, or empty.
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        if self.key and self.key not in text:
            text = f"{self.key}: {text}"
        return f"{text} ({self.hint})" if self.hint else text


class NotFound(StoreError):
    """No object under that key (or no such bucket, then `key` is empty)."""


class PreconditionFailed(StoreError):
    """The condition of a conditional operation did not hold."""


class Denied(StoreError):
    """Credentials refused, or a permission is missing; `hint` names which."""


class Misconfigured(StoreError):
    """The endpoint's settings cannot work as they are: certificate, region, addressing, clock, URL."""


class Unsupported(StoreError):
    """The store does not implement what was asked."""


class Archived(Unsupported):
    """The object lies in an archive class; it can be read once it was restored."""


class Unavailable(StoreError):
    """The store could not be reached or asked us to slow down; nothing was applied."""

    temporary = True


class Corrupt(StoreError):
    """Bytes that came back are not the bytes that were written; `key` and `offset` say where."""

    def __init__(self, message: str, *, key: str = "", offset: int | None = None, hint: str = "") -> None:
        super().__init__(message if offset is None else f"{message} at offset {offset}", key=key, hint=hint)
        self.offset = offset


class OutcomeUnknown(StoreError):
    """The request was sent and the answer was lost: it may have been applied, or may yet be."""

    temporary = True
