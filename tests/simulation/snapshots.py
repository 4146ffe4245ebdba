"""What is known of a volume's snapshots from nothing but what was asked and answered.

One rule: an image that was once seen in a snapshot is the snapshot's for ever. Which image is legal at first sight, the
model says: what was acknowledged when it was asked for, or younger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blockdev.extents.history import Snapshot
from tests.simulation.model import Model, Violation


@dataclass(slots=True)
class Snapshots:
    """`kept`: name -> a token per sector. `asked`: name -> operations acknowledged by then. `doomed`: its deletion was
    asked for. `promised`, `deleted`: what was answered. `expires`: Unix seconds."""

    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    promised: set[str] = field(default_factory=set)
    doomed: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    expires: dict[str, float] = field(default_factory=dict)
    number: int = 0

    def new_name(self) -> str:
        self.number += 1
        return f"s{self.number}"

    def ask(self, name: str, model: Model, expires: float = 0.0) -> None:
        self.asked[name] = model.acknowledged
        if expires:
            self.expires[name] = expires

    def alive(self) -> list[str]:
        """Names that are there for sure, as far as anybody was told."""
        return sorted(self.promised - self.doomed - self.deleted - self.expires.keys())

    def judge(
        self,
        there: Sequence[Snapshot],
        read: Callable[[Snapshot], Sequence[int]],
        model: Model,
        now: float,
    ) -> None:
        """`there`: the snapshots the log tells of. Raises Violation."""
        names = {snapshot.name for snapshot in there}
        for name in self.promised - names:
            if name not in self.doomed and not 0 < self.expires.get(name, 0.0) <= now:
                raise Violation(f"snapshot {name} is gone, and nobody deleted it")
            self.promised.discard(name)
        for name in self.deleted & names:
            raise Violation(f"snapshot {name} was deleted, and is there")
        for snapshot in there:
            name = snapshot.name
            try:
                image = tuple(read(snapshot))
            except Violation as violation:
                raise Violation(f"snapshot {name} of commit {snapshot.seq}: {violation}") from violation
            if name in self.kept:
                if image != self.kept[name]:
                    wrong = [
                        lba for lba, pair in enumerate(zip(image, self.kept[name], strict=True)) if pair[0] != pair[1]
                    ]
                    raise Violation(
                        f"snapshot {name} of commit {snapshot.seq} has changed: sector {wrong[0]} (and {len(wrong) - 1} "
                        f"others) holds write {image[wrong[0]]}, and held write {self.kept[name][wrong[0]]}"
                    )
                continue
            if name not in self.asked:
                raise Violation(f"nobody asked for snapshot {name}")
            model.judge(image, self.asked[name], f"snapshot {name} has what was acknowledged before it was asked for")
            self.kept[name] = image
            self.promised.add(name)
