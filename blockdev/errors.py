"""Failures of a volume, by who must act. SCSI sense, exit codes and messages are drawn from these types."""


class BlockError(Exception):
    """Base. `hint` is one sentence on what the operator can do, or empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class JournalFull(BlockError):
    """No room for the write now; nothing of it was kept. The initiator is told BUSY and tries again."""


class NotReady(BlockError):
    """The volume is not being served (attaching, fenced, failed, stopping). Nothing was done."""


class Fenced(NotReady):
    """Another writer has taken the volume over; this process must acknowledge nothing more."""


class MediumError(BlockError):
    """Stored data is damaged or gone; `lba` is the first sector that cannot be read."""

    def __init__(self, message: str, *, lba: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.lba = lba


class StoreUnreachable(BlockError):
    """Data that only the object store holds cannot be had just now; retrying later may succeed."""


class LeaseExpired(StoreUnreachable):
    """The writer could not see in time whether another one took over: nothing is acknowledged until it has. A write may be
    in the journal all the same; the initiator tries again."""


class CorruptJournal(BlockError):
    """The journal holds damage *before* a point that was known durable. The volume does not attach:
    truncating there would silently drop acknowledged writes."""


class CorruptFormat(BlockError):
    """Bytes that do not parse, or whose checksum does not hold. `what` names the thing, `offset` the place."""

    def __init__(self, message: str, *, what: str = "", offset: int | None = None, hint: str = "") -> None:
        place = "" if offset is None else f" at offset {offset}"
        super().__init__(f"{what}: {message}{place}" if what else message + place, hint=hint)
        self.what = what
        self.offset = offset


class AttachRefused(BlockError):
    """The volume may not be attached here as things are (in use, unfenced store, lost journal, wrong volume)."""


class Refused(BlockError):
    """Things as they are forbid what was asked; the hint names the choice."""


class KeyRefused(BlockError):
    """An encrypted volume without its key, or a key that is not the volume's. Nothing was read or written."""


class LocalDiskFailed(BlockError):
    """A local write or fdatasync failed; the volume stops, since nobody knows what the disk holds."""


class ImageRefused(BlockError):
    """A disk image that cannot be read or written as things are: a format or feature that is not supported, a file
    that exists already or that somebody is writing."""
