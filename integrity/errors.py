"""What can go wrong in a ledger beside the store's own answers, sorted by who must act.

One rule: `Tampered` is said only of evidence that was read and contradicts itself or its signatures. A store that did not
answer is `s3core.errors.Unavailable`, and is never taken for either verdict.
"""


class LedgerError(Exception):
    """The base of all. `hint` is what the operator can do, one sentence, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class Tampered(LedgerError):
    """The evidence was changed, cut, replaced or rolled back. `where` names the object or record, `known_good` the last state
    that is known to be right ("" where there is none)."""

    def __init__(self, message: str, *, where: str = "", known_good: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.where = where
        self.known_good = known_good


class Malformed(LedgerError):
    """Bytes that somebody handed in (note, proof, record, feed) are not of their format. Nothing was taken from them."""


class Rejected(LedgerError):
    """A note, proof or cosignature is well formed and does not hold: unknown key, wrong signature, another root."""


class Behind(LedgerError):
    """The store holds more of this writer's log than this host knows of: its state was lost or rolled back, or somebody else
    writes with its key. Nothing may be written by it any more."""


class NotEnrolled(LedgerError):
    """This host, or this slot, is not a writer of the ledger."""


class SlotsTaken(LedgerError):
    """Every slot of this host is in use by another process; later one will not be."""
