"""One line of a plan: what happened to one object, and what is to be done about it on the mirror.

One rule: a line says everything that carrying it out needs, so that whoever applies a plan reads neither listing nor
base; and it carries what the mirror held before, so that a mirror that somebody else changed is seen.
"""

from dataclasses import dataclass
from enum import StrEnum

from cowsync.versions import row_key


class Op(StrEnum):
    """`ADD` and `MODIFY` copy. `VANISH` moves nothing: the source has lost the key, the mirror keeps it, and the base
    notes since when. `REMOVE` takes it from the mirror (quarantine or delete marker), once it is allowed and old
    enough. `RETURN` is a vanished key that is back with the identity that is on the mirror: nothing to copy.

    In a plan of all versions a line is about one version: `ADD` and `MODIFY` put it on the mirror (where the key has no
    current object, and over one), `REMOVE` puts a delete marker, `VANISH` and `RETURN` move nothing."""

    ADD = "add"
    MODIFY = "modify"
    VANISH = "vanish"
    REMOVE = "remove"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class PlanLine:
    """`key` is relative to both prefixes. `size`, `etag`, `version_id`, `modified`, `storage_class` are the source's now
    (of the last known state for VANISH and REMOVE); `was_*` is what was mirrored (empty for ADD); `mirror_*` what the
    mirror held after that. `gone` is the number of the run that first missed the key, 0 where none did (a MODIFY or
    RETURN of a key that had vanished has it too).
    `reason` is for people: "new", "etag", "size", "version", "absent 3 runs, 8 days". `hot`: modified so shortly
    before the scan of its range began that the listing may have been too early.

    `ordinal` is 0 in a plan of current versions. Else it is the version's among those of its key (versions.py), and `was_*`
    is the key's current object before the line: empty for none, and for a VANISH or RETURN unless the key's current object
    goes or comes with it. `mirror_*` of a line that puts something is the newest version that the mirror has of the key
    before the plan, of the others that version's own."""

    op: Op
    key: str
    size: int
    etag: str
    modified: str
    version_id: str = ""
    storage_class: str = ""
    was_size: int = 0
    was_etag: str = ""
    was_version: str = ""
    mirror_etag: str = ""
    mirror_version: str = ""
    gone: int = 0
    hot: bool = False
    reason: str = ""
    ordinal: int = 0

    @property
    def place(self) -> str:
        """What lines of a plan ascend by: the key, or the row's key of a version."""
        return row_key(self.key.encode(), self.ordinal).decode() if self.ordinal else self.key

    @property
    def marker(self) -> bool:
        """Whether the version is a delete marker."""
        return bool(self.ordinal) and not self.etag

    @property
    def turn(self) -> tuple[int | None, int | None]:
        """Size of the key's current object at the source before and after the line, None for no object."""
        if not self.ordinal:
            match self.op:
                case Op.ADD | Op.RETURN:
                    return None, self.size
                case Op.MODIFY:
                    return None if self.gone else self.was_size, self.size
                case Op.VANISH:
                    return self.size, None
                case Op.REMOVE:
                    return None, None
        was = self.was_size if self.was_etag else None
        match self.op:
            case Op.ADD | Op.MODIFY:
                return was, self.size
            case Op.REMOVE | Op.VANISH:
                return was, None
            case Op.RETURN:
                return None, was


class Outcome(StrEnum):
    """How carrying out one line ended. DONE: the mirror has it, durably. MOVED: the source is no longer what the plan
    says; nothing was written, the next run sees it. DRIFTED: the mirror holds something we did not put there; left
    alone. FAILED: an error that repeating did not cure. SKIPPED: not tried (approval missing, limits)."""

    DONE = "done"
    MOVED = "moved"
    DRIFTED = "drifted"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of line `number` (from 0, the order of the plan). `mirror_etag` and `mirror_version` are what the
    mirror holds now where DONE; `bytes_moved` what went over the wire through us, `bytes_copied` what the server copied."""

    number: int
    outcome: Outcome
    mirror_etag: str = ""
    mirror_version: str = ""
    bytes_moved: int = 0
    bytes_copied: int = 0
    milliseconds: int = 0
    message: str = ""
