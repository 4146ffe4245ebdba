"""References: which clones read a volume's objects, as small objects in the volume's own part.

One rule: a reference is there before the clone is and after it is gone. It may pin a snapshot for nothing, which costs
storage; a clone without its reference could lose data.

Format: `blockdev/segments/reference.py`.
"""

from dataclasses import dataclass
from uuid import UUID

from blockdev.errors import CorruptFormat
from blockdev.offline import read_volume_file
from blockdev.place import volume_store
from blockdev.segments import paths, reference
from s3core.errors import NotFound
from s3core.store import ObjectStore

CREATION_S_MAX = 24 * 3600
"""A reference whose clone is not there after this long belongs to a creation that did not finish."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A clone's hold on a snapshot. `alive`: the clone is there, or may still be being made."""

    child: str
    uuid: str
    snapshot: str
    seq: int
    alive: bool = True


def put(parent: ObjectStore, made: Reference) -> None:
    """Durable on return. `parent` is the volume's own part."""
    hold = reference.Hold(made.child, made.uuid, made.snapshot, made.seq)
    parent.put(paths.ref(UUID(made.uuid)), reference.encode(hold))


def remove(parent: ObjectStore, child: UUID) -> None:
    """Also when it is gone already."""
    parent.delete(paths.ref(child))


def references(store: ObjectStore, name: str, now: float) -> list[Reference]:
    """Every reference to the volume's snapshots. `now`: Unix seconds. Raises CorruptFormat for one that does not parse:
    what it pins nobody can tell."""
    own = volume_store(store, name)
    found = []
    for info in own.list(paths.ref_prefix()):
        key = f"{own.url}/{info.key}"
        try:
            hold = reference.decode(own.get(info.key).data, what=key)
        except NotFound:
            continue  # removed since the listing
        except CorruptFormat as error:
            error.hint = "remove that object by hand if you know that no clone needs it"
            raise
        alive = now - info.modified < CREATION_S_MAX or _exists(store, hold)
        found.append(Reference(hold.child, hold.uuid, hold.snapshot, hold.seq, alive))
    return found


def remove_dead(store: ObjectStore, name: str, now: float) -> list[Reference]:
    """Remove the references of clones that were never finished or are gone; what was removed."""
    dead = [found for found in references(store, name, now) if not found.alive]
    for found in dead:
        remove(volume_store(store, name), UUID(found.uuid))
    return dead


def _exists(store: ObjectStore, hold: reference.Hold) -> bool:
    """Whether that very clone is there, not another volume of its name."""
    try:
        volume = read_volume_file(volume_store(store, hold.child), hold.child)
    except NotFound:
        return False
    except CorruptFormat:
        return True  # something is there that may be it
    return str(volume.identity) == hold.uuid
