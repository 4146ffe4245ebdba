"""A volume and its clone in one bucket: both go on writing, snapshotting, collecting and crashing, life by life in turn.

One rule: each has a model of its own. The clone's begins with the image of the snapshot it was made of, which must stay
readable through the parent's objects whatever the parent does to its own.
"""

from collections import Counter
from dataclasses import replace

from blockdev.segments.volume_file import CLONE, ENCRYPTION, VolumeFile, encryption_of
from blockdev.volumes import clone_volume, origin_of
from tests.simulation.world import Plan, World, draw, small_pages

CHILDREN_MAX = 2


class Member(World):
    """One of the family. `parent`: whose `snapshot` it was cloned from."""

    def __init__(
        self, seed: int, plan: Plan, parent: "Member | None" = None, snapshot: str = "", name: str = "disk"
    ) -> None:
        self.parent = parent
        self.snapshot = snapshot
        self.children: list[Member] = []
        super().__init__(seed, plan, name=name, beside=parent)
        if parent is not None:
            self.model.became(parent.snapshots.kept[snapshot])
            self.model.settled()
            self.bound, self.promise = 1, "a clone begins with the snapshot"
            parent.children.append(self)

    def identify(self, made: VolumeFile) -> VolumeFile:
        parent = self.parent
        if parent is None:
            return made
        found = parent.history.map.history.find(self.snapshot)
        assert found is not None
        encrypted = bool(parent.data_key)
        made = replace(
            made,
            geometry=replace(parent.volume.geometry, size_bytes=found.size_bytes),
            features=frozenset({CLONE, ENCRYPTION} if encrypted else {CLONE}),
            origin=origin_of(parent.whole, parent.volume.name, parent.volume, found),
            encryption=encryption_of(parent.data_key, made.identity) if encrypted else None,
        )
        self.data_key = parent.data_key
        clone_volume(parent.whole, parent.volume.name, parent.volume, found, made, look_again=lambda: found)
        return made

    def has_clone(self, name: str) -> bool:
        return any(child.snapshot == name for child in self.children)


class Family:
    """Build with a seed, then `run`. Raises Violation."""

    def __init__(self, seed: int) -> None:
        plan = draw(seed)
        plan = replace(plan, operations=True, leaks=False, lives=4, steps_per_life=min(plan.steps_per_life, 800))
        self.plan = replace(plan, ends=("kill", "power", "host", "detach", "detach"))
        self.seed = seed
        self.first = Member(seed, self.plan)
        self.members = [self.first]
        self.happened: Counter[str] = Counter()
        self._choices = self.first._stream("family")

    def run(self) -> None:
        with small_pages(self.plan.page_extents):
            for turn in range(7):
                member = self._choices.choice(self.members)
                self._live(member, self._choices.choice((*self.plan.ends, "session")))
                if len(self.members) <= CHILDREN_MAX:
                    self._clone(turn)
            for member in self.members:
                while not member._settled:
                    self._live(member, "settle")
            for member in self.members:
                member._judge_bucket(len(member.model.operations), "a settled volume is in the bucket", whole=True)
        for member in self.members:
            self.happened.update(member.happened)
        self.happened["clones"] += len(self.members) - 1

    def _live(self, member: Member, end: str) -> None:
        """One life; then every member's bucket is judged, whoever lived."""
        member.loop = member._new_loop(self._now())
        member._live(0, end)
        for other in self.members:
            if other is not member:
                other._judge_bucket(other.model.in_bucket, "what others do changes nothing")

    def _now(self) -> float:
        return max(member.loop.time() for member in self.members)

    def _clone(self, turn: int) -> None:
        """Of any member's snapshot that nobody is about to delete."""
        parent = self._choices.choice(self.members)
        history = parent.history.map.history
        names = [name for name in parent.snapshots.alive() if name in parent.snapshots.kept and history.find(name)]
        if not names:
            return
        name = self._choices.choice(names)
        plan = replace(self.plan, sector_bytes=parent.plan.sector_bytes)
        child = Member(self.seed * 100 + turn + 1, plan, parent, name, name=f"clone{turn}")
        self.members.append(child)
