"""A source, its mirror and the state of both in memory, as `work` sees them; hosts that die and come back."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cowsync.apply.copy_line import Place
from cowsync.base.layers import read
from cowsync.base.state import State
from cowsync.mirror import Mirror, opened_bucket, reader
from cowsync.rows import Rows
from cowsync.scan.engine import Engine, InlineEngine
from cowsync.scan.shard import ShardResult, ShardTask, scan_shard
from cowsync.scan.versions import scan_versions
from cowsync.sealing.keys import Keyring, Vault
from cowsync.sealing.only_sealed import OnlySealed
from cowsync.work import Applied, Planned, apply, make_plan
from s3core.bucket import Bucket, BucketProperties
from s3core.key_slot import Secret
from s3core.memory import MemoryObjects, MemoryStore
from s3core.memory_bucket import MemoryService
from s3core.settings import GuardSettings, MirrorSettings
from tests.cowsync.apply.faulty_bucket import Faults, FaultyBucket, faulty
from tests.s3core.fakes import FakeClock

DAY_S = 86400.0


class _Skewed(FaultyBucket):
    """The source, on a server whose clock differs from ours."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.source, world.faults)
        self._world = world

    @property
    def properties(self) -> BucketProperties:
        return replace(self.inner.properties, clock_skew_s=self._world.clock_skew_s)


class World:
    """`source` and `target` are the bare buckets; what a mirror does to them goes through `faults`. `secret`: the mirror is
    encrypted with it."""

    def __init__(
        self,
        folder: Path,
        *,
        versioned: bool = False,
        one_endpoint: bool = True,
        secret: Secret | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.secret = secret
        self.clock = FakeClock()
        self.faults = Faults()
        here = MemoryService(clock=self.clock)
        there = here if one_endpoint else MemoryService(clock=self.clock)
        every = settings.get("versions") == "all"
        self.source = here.bucket("source", versioned=every)
        self.target = there.bucket("target", versioned=versioned or every)
        self.objects = MemoryObjects()
        guard = settings.pop("guard", GuardSettings())
        defaults: dict[str, Any] = {"source": "memory:s", "target": "memory:t", "copiers": 2, "shard_keys": 1000}
        self.settings = MirrorSettings(**defaults | settings, guard=guard)
        self.hosts = 0
        self.clock_skew_s: float | None = None
        self.page_keys = 1000

    def mirror(self, *, new_host: bool = False) -> Mirror:
        """The mirror as a host sees it: plans and journals of its own, the state shared."""
        self.hosts += new_host
        folder = self.folder / f"host-{self.hosts}"
        folder.mkdir(exist_ok=True)
        state = State(MemoryStore(clock=self.clock, bucket=self.objects), folder / "segments", clock=self.clock)
        source, target = Place(_Skewed(self)), Place(faulty(self.target, self.faults))
        if self.secret is not None:
            target = Place(OnlySealed(target.bucket, ""))

        def piece(task: ShardTask) -> ShardResult:
            name = task.where["base"]
            layers = state.snapshot(name).layers if name else ()
            scan = scan_versions if task.versions else scan_shard
            task = replace(task, page_keys=self.page_keys)
            return scan(task, source.bucket, "", reader(layers, state), mirror.belongs, now=self.clock.time)

        mirror = Mirror("m", self.settings, source, target, state, folder, piece, vault=self.vault(target))
        return mirror

    def vault(self, target: Place) -> Vault:
        secret = self.secret
        store = MemoryStore(clock=self.clock, bucket=self.objects)
        asked = (lambda new: secret) if secret is not None else None
        return Vault("m", store, target.bucket, "", asked, random=os.urandom, now=self.clock.time, creator="test")

    def keyring(self) -> Keyring:
        ring = self.vault(Place(self.target)).opening(begun=False)
        assert ring is not None
        return ring

    def opened(self) -> Bucket:
        """The target with its objects as they were at the source."""
        ring = self.vault(Place(self.target)).opening(begun=False)
        return self.target if ring is None else opened_bucket(Place(self.target), ring)

    def plan(self, *, new_host: bool = False, engine: Engine | None = None) -> Planned:
        return make_plan(self.mirror(new_host=new_host), engine or InlineEngine(), now=self.clock.time)

    def apply(self, planned: Planned, **options: Any) -> Applied:
        options.setdefault("approve", planned.plan.digest)
        return apply(self.mirror(), planned.plan.digest, now=self.clock.time, **options)

    def run(self, *, new_host: bool = False) -> Applied:
        return self.apply(self.plan(new_host=new_host))

    def rows(self) -> Iterator[Rows]:
        """What the newest snapshot holds."""
        state = self.mirror().state
        yield from read(state.snapshot(state.head().current).layers, state)

    def mirrored(self) -> dict[str, bytes]:
        held = {key: data for key, data in self.target.contents().items() if not key.startswith(".cowsync/")}
        opened = self.opened()
        return {key: opened.get(key) for key in held}
