"""What events have changed since the last listing, so that a plan is judged with it: many small plans are one large one.

One rule: a share is of what there was at the last listing, and what counts is all that came since, however it was cut into
plans. An approval is a look: after it counting begins anew, as after a listing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cowsync.changes import Op
from cowsync.errors import StateDamaged
from cowsync.plan.census import Census, census_from_json


@dataclass(frozen=True, slots=True)
class Carried:
    """Sums of lines that were carried out: objects and bytes by op; `revived` as in the guard's Changes; keys that vanished
    by top prefix, that were added by suffix, that are there again with more behind their name by its suffix."""

    counts: Mapping[Op, tuple[int, int]] = field(default_factory=dict)
    revived: int = 0
    prefixes: Mapping[str, int] = field(default_factory=dict)
    suffixes: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, int] = field(default_factory=dict)

    def objects(self, op: Op) -> int:
        return self.counts.get(op, (0, 0))[0]

    def bytes(self, op: Op) -> int:
        return self.counts.get(op, (0, 0))[1]


NOTHING = Carried()


@dataclass(frozen=True, slots=True)
class Since:
    """`census` is that of the last listing, or of the last approval; `layers` how many the restore point of that listing
    has: what lies above is what events changed since."""

    census: Census
    carried: Carried = NOTHING
    layers: int = 0

    def to_json(self) -> dict[str, object]:
        carried = self.carried
        return {
            "census": self.census.to_json(),
            "layers": self.layers,
            "counts": {str(op): list(count) for op, count in carried.counts.items()},
            "revived": carried.revived,
            "prefixes": dict(carried.prefixes),
            "suffixes": dict(carried.suffixes),
            "renamed": dict(carried.renamed),
        }


def since_from_json(document: Mapping[str, Any]) -> Since:
    """What `to_json` gave. StateDamaged for anything else."""
    try:
        counts = {Op(op): (int(objects), int(size)) for op, (objects, size) in document["counts"].items()}
        tallies = [
            {str(name): int(n) for name, n in document[of].items()} for of in ("prefixes", "suffixes", "renamed")
        ]
        carried = Carried(counts, int(document["revived"]), *tallies)
        return Since(census_from_json(document["census"]), carried, int(document["layers"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateDamaged("what a snapshot says of events lacks a field, or one is of the wrong type") from error
