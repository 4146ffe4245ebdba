"""`ref/<uuid of a clone>`: that a clone reads this volume's objects, from a snapshot on. Format: docs/formats/volume.md.

One rule: what does not hold pins everything. A reference that cannot be believed must neither be taken for one of another
snapshot nor for one of a clone that is not there: both would let go what a clone reads.
"""

import json
from dataclasses import dataclass
from uuid import UUID

from blockdev.errors import CorruptFormat
from blockdev.segments.volume_file import CHECKSUM, checksum


@dataclass(frozen=True, slots=True)
class Hold:
    """Clone `child` reads what snapshot `snapshot`, of commit `seq`, needs."""

    child: str
    uuid: str
    snapshot: str
    seq: int


def encode(hold: Hold) -> bytes:
    document = {"child": hold.child, "uuid": hold.uuid, "snapshot": hold.snapshot, "seq": hold.seq}
    return json.dumps(document | {CHECKSUM: checksum(document)}, indent=2).encode() + b"\n"


def decode(blob: bytes, *, what: str) -> Hold:
    """`what`: its key, which ends with the clone's UUID. Raises CorruptFormat."""
    try:
        document = json.loads(blob)
        if document[CHECKSUM] != checksum(document):
            raise CorruptFormat("is no reference of a clone: its checksum does not hold", what=what)
        hold = Hold(
            str(document["child"]), str(UUID(document["uuid"])), str(document["snapshot"]), int(document["seq"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFormat(f"is no reference of a clone: {error}", what=what) from error
    if what.rpartition("/")[2] != hold.uuid:
        raise CorruptFormat(f"is no reference of a clone: it is of {hold.uuid}", what=what)
    return hold
