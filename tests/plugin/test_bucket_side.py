"""What the core has the bucket do by itself: rules once a day, locks that an upload did not get."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.bucket import DAY_S, StorageBucket
from plugin.configuration import Storage
from plugin.place import Place
from plugin.refresh import entry_of
from plugin.service.bucket_side import look_after_bucket
from s3core.bucket import Bucket
from s3core.errors import Denied
from s3core.memory_bucket import MemoryBucket
from s3core.settings import Config, load_config
from s3core.write_options import Retention
from tests.s3core.fakes import FakeClock

KEY = "pve/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.memory = MemoryBucket(object_lock=True, clock=self.clock)
        self.kept: list[Storage] = []
        self.refuses = False
        (folder / "config.toml").write_text(f'[pve]\nstate_dir = "{folder}/state"\n')
        self.places: list[Place] = []

    def place(self, **changes: Any) -> Place:
        url = "https://s3.example.com"
        storage = Storage("s3", "bucketfiles", "bucket", "pve/", endpoint_url=url, credentials="none", **changes)

        def opener(
            storage: Storage, config: Config, *, deadline_s: float, around: Callable[[Bucket], Bucket]
        ) -> StorageBucket:
            return StorageBucket(self.memory, storage, clock=self.clock)

        made = Place(storage, load_config(self.folder / "config.toml"), clock=self.clock, opener=opener)
        self.places.append(made)
        return made

    def keep(self, storage: Storage, config: Config) -> bool:
        if self.refuses:
            raise Denied("s3:PutLifecycleConfiguration is missing")
        self.kept.append(storage)
        return True

    def heads(self) -> int:
        return self.memory.requests["head"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for place in made.places:
        place.close()


def test_rules_are_looked_at_once_a_day_and_when_they_change(world: World) -> None:
    plain, ruled = world.place(), world.place(lifecycle=True)
    look_after_bucket(plain, world.keep)
    assert world.kept == [], "who has no rules is not asked for them"
    world.refuses = True
    look_after_bucket(ruled, world.keep)
    world.refuses = False
    for _ in range(3):
        look_after_bucket(ruled, world.keep)
    assert len(world.kept) == 1, "a refusal is tried again, what is so is not"
    world.clock.sleep(DAY_S + 1)
    look_after_bucket(ruled, world.keep)
    assert len(world.kept) == 2
    for _ in range(2):
        look_after_bucket(plain, world.keep)
    assert len(world.kept) == 3, "switched off: taken away, once"


def test_a_backup_without_its_lock_gets_it(world: World) -> None:
    place = world.place(object_lock="compliance", lock_days=10)
    world.memory.put(KEY, b"uploaded by a process that died before it had locked it")
    written = world.memory.head(KEY).modified
    world.clock.sleep(3600)
    for key in (KEY, f"{KEY}.notes"):
        world.memory.put(f"{KEY}.notes", b"a note")
        place.catalogue.written(entry_of(world.memory, key))
    look_after_bucket(place, world.keep)
    assert world.memory.retention(KEY) == Retention("COMPLIANCE", written + 10 * DAY_S)
    assert world.memory.retention(f"{KEY}.notes") is None
    asked = world.heads()
    look_after_bucket(place, world.keep)
    assert world.heads() == asked, "what was seen is remembered"
    place.catalogue.deleted(KEY)
    look_after_bucket(place, world.keep)
    world.clock.sleep(11 * DAY_S)
    place.catalogue.written(entry_of(world.memory, KEY))
    asked = world.heads()
    look_after_bucket(place, world.keep)
    assert world.heads() == asked, "old enough to go"
