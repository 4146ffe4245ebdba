"""References: which clones read a volume's objects, as small objects in the volume's own part.

One rule: a reference is there before the clone is and after it is gone. It may pin a snapshot for nothing, which costs
storage; a clone without its reference could lose data.

`ref/<uuid of the clone>` is JSON: child (name), uuid, snapshot (name), seq (commit).
"""

import json
from dataclasses import asdict, dataclass
from uuid import UUID

from blockdev.errors import CorruptFormat
from blockdev.offline import read_volume_file
from blockdev.place import volume_store
from blockdev.segments import paths
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


def put(parent: ObjectStore, reference: Reference) -> None:
    """Durable on return. `parent` is the volume's own part."""
    document = asdict(reference)
    del document["alive"]
    parent.put(paths.ref(UUID(reference.uuid)), json.dumps(document, indent=2).encode() + b"\n")


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
            document = json.loads(own.get(info.key).data)
            reference = Reference(
                str(document["child"]), str(UUID(document["uuid"])), str(document["snapshot"]), int(document["seq"])
            )
        except NotFound:
            continue  # removed since the listing
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFormat(
                f"is no reference of a clone: {error}",
                what=key,
                hint="remove that object by hand if you know that no clone needs it",
            ) from error
        alive = now - info.modified < CREATION_S_MAX or _exists(store, reference)
        found.append(Reference(reference.child, reference.uuid, reference.snapshot, reference.seq, alive))
    return found


def remove_dead(store: ObjectStore, name: str, now: float) -> list[Reference]:
    """Remove the references of clones that were never finished or are gone; what was removed."""
    dead = [reference for reference in references(store, name, now) if not reference.alive]
    for reference in dead:
        remove(volume_store(store, name), UUID(reference.uuid))
    return dead


def _exists(store: ObjectStore, reference: Reference) -> bool:
    """Whether that very clone is there, not another volume of its name."""
    try:
        volume = read_volume_file(volume_store(store, reference.child), reference.child)
    except NotFound:
        return False
    except CorruptFormat:
        return True  # something is there that may be it
    return str(volume.identity) == reference.uuid
