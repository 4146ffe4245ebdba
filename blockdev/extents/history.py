"""What the log's notes say of a volume: snapshots, which are names for commits, and which dead objects they still need; and the
persistent reservations that outlive a host. Pure.

One rule: an object lives from the commit it was written for (`birth`) to the commit that made it unnecessary (`death`); a
snapshot of commit s needs it when birth <= s < death. So nothing is counted and nothing pauses for a snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NOTE = "snapshots"
"""Member of a record's note that says what it does to the snapshots."""
RESERVATIONS = "reservations"
"""Member of a record's note: the persistent reservations that are kept from here on, null for none."""


class Snapshot(NamedTuple):
    """The volume as of commit `seq`, whose root was written by `epoch`. Times in Unix microseconds; `expires_us` 0: never."""

    name: str
    seq: int
    epoch: int
    digest: str
    time_us: int
    size_bytes: int
    expires_us: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """`snapshots` in the order they were taken. `removed`: their names are gone, and what only they needed has not been
    found yet. `branched`: the volume was rolled back once, so that two neighbours in time need not be neighbours in content."""

    snapshots: tuple[Snapshot, ...] = ()
    removed: tuple[Snapshot, ...] = ()
    branched: bool = False
    rolled_at: int = 0
    """Commit of the newest rollback: what was read before it says nothing about the content since."""
    reservations: Mapping[str, Any] | None = None
    """Persistent reservations (SPC-4, APTPL) as `blockdev.scsi.reservations` wrote them; nothing here looks inside. They belong
    to the hosts, not to the content: a rollback leaves them, a clone begins without."""

    def pins(self, birth: int, death: int, sweeping: int = 0) -> bool:
        """Whether a snapshot may need an object of that lifetime. One whose name is gone counts until it is swept, since a
        clone may need it; `sweeping` is the commit of the one that is being swept, which nobody needs any more."""
        return any(birth <= snapshot.seq < death for snapshot in self.snapshots) or any(
            birth <= snapshot.seq < death for snapshot in self.removed if snapshot.seq != sweeping
        )

    def find(self, name: str) -> Snapshot | None:
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return snapshot
        return None

    def after(self, note: Mapping[str, Any], seq: int) -> "History":
        """The history after record `seq`, which has this note."""
        change = note.get(NOTE)
        snapshots, removed = self.snapshots, self.removed
        if change:
            gone = set(change.get("remove", ()))
            removed += tuple(snapshot for snapshot in snapshots if snapshot.name in gone)
            snapshots = tuple(snapshot for snapshot in snapshots if snapshot.name not in gone)
            snapshots += tuple(Snapshot(**item) for item in change.get("add", ()))
            swept = set(change.get("swept", ()))
            removed = tuple(snapshot for snapshot in removed if snapshot.seq not in swept)
        return History(
            tuple(sorted(snapshots, key=lambda snapshot: snapshot.seq)),
            tuple(sorted(removed, key=lambda snapshot: snapshot.seq)),
            self.branched or "rollback" in note,
            seq if "rollback" in note else self.rolled_at,
            note.get(RESERVATIONS, self.reservations),
        )

    def others(self, chosen: Snapshot) -> list[Snapshot]:
        """Snapshots whose content decides what `chosen` alone needs: its neighbours in time, or all once the volume
        was rolled back. The live map decides as well."""
        rest = sorted({*self.snapshots, *self.removed} - {chosen}, key=lambda snapshot: snapshot.seq)
        if self.branched:
            return rest
        before = [snapshot for snapshot in rest if snapshot.seq < chosen.seq]
        after = [snapshot for snapshot in rest if snapshot.seq > chosen.seq]
        return before[-1:] + after[:1]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "snapshots": [snapshot._asdict() for snapshot in self.snapshots],
            "removed": [snapshot._asdict() for snapshot in self.removed],
            "branched": self.branched,
            **({"rolled_at": self.rolled_at} if self.rolled_at else {}),
            **({RESERVATIONS: self.reservations} if self.reservations is not None else {}),
        }


def history_from(document: Mapping[str, Any]) -> History:
    """What `History.document` wrote; an empty one from a document without it. TypeError, KeyError for anything else."""

    def read(items: Sequence[Mapping[str, Any]]) -> tuple[Snapshot, ...]:
        return tuple(Snapshot(**item) for item in items)

    return History(
        read(document.get("snapshots", ())),
        read(document.get("removed", ())),
        bool(document.get("branched", False)),
        int(document.get("rolled_at", 0)),
        document.get(RESERVATIONS),
    )


def added(*snapshots: Snapshot) -> dict[str, Any]:
    """The note of a record that takes snapshots."""
    return {NOTE: {"add": [snapshot._asdict() for snapshot in snapshots]}}


def removed(*names: str) -> dict[str, Any]:
    """The note of a record that takes names away."""
    return {NOTE: {"remove": list(names)}}


def swept(*numbers: int) -> dict[str, Any]:
    """The note of a record after which nobody looks for what the removed snapshots of these commits needed."""
    return {NOTE: {"swept": list(numbers)}}


def reserved(state: Mapping[str, Any] | None) -> dict[str, Any]:
    """The note of a record from which on these persistent reservations are kept."""
    return {RESERVATIONS: state}
