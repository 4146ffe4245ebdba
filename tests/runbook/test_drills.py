"""The drills, word for word, on real daemons and a real S3 server; what the pages say is lost is counted.

Not played: starting a console (tests/envctl does), and the store's own replacement by another provider (both are buckets here).
"""

import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.runbook.world import FAST, World
from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay
from tests.system.machine import Write, Writer, read_back

pytestmark = [pytest.mark.slow, pytest.mark.rgw, pytest.mark.initiator]

HOST, BUCKET, LEDGER, KEY = (
    f"docs/drills/{name}.md" for name in ("host-lost", "bucket-lost", "ledger-fails", "key-lost")
)
VM1 = '[volume.vm1]\nurl = "s3://ceph/bucket"\n'
STAMP_BYTES = 64 * 1024
STAMPS = 60


@pytest.fixture
def world(radosgw: Radosgw, tmp_path: Path) -> Iterator[World]:
    made = World.make(tmp_path / "world", radosgw, buckets=("bucket", "copies", "restored", "audit", "photos"))
    yield made
    made.end()


def second_host(world: World, settings: str) -> World:
    other = world.other("other")
    other.configure(VM1 + settings)
    return other


# --- host lost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", ["local", "s3"])
def test_the_host_is_lost(world: World, tmp_path: Path, flush: str) -> None:
    settings = f'{FAST}flush = "{flush}"\n'
    world.configure(VM1 + settings)
    world.play_marked(HOST, "serve")
    other = second_host(world, settings)
    writes = [Write(number * STAMP_BYTES, STAMP_BYTES, 1 + number) for number in range(STAMPS)]
    with Writer(world.target, writes, tmp_path, flush_every=1) as writer:
        writer.wait_for(STAMPS // 2)
        world.do("systemctl kill -s KILL s3block@vm1")  # the plug
        writer.kill()
    if flush == "local":
        other.play_marked(HOST, "look", "promote")
        assert "the lineage has changed" in other.do("s3block info vm1")
    else:
        other.do("systemctl start s3block@vm1")
    back = read_back(other.target, tmp_path / "back.raw")
    there = [back[one.offset : one.offset + STAMP_BYTES] == bytes([one.stamp]) * STAMP_BYTES for one in writes]
    kept = there.index(False) if False in there else STAMPS
    assert not any(there[kept:]), "something is there that is younger than something lost"
    lost = max(0, writer.acknowledged - kept)
    print(f'flush = "{flush}": {writer.acknowledged} acknowledged, {kept} there, {lost} lost')
    assert kept <= writer.acknowledged + 1
    if flush == "s3":
        assert kept >= writer.flushed, "a flushed write is lost"
    else:
        world.play_marked(HOST, "back", "keep")
        assert (world.state / "vm1.lost-host/journal").exists()
    other.end()


def test_the_host_is_lost_and_its_disk_can_be_read(world: World) -> None:
    world.configure(VM1 + FAST)
    world.play_marked(HOST, "serve")
    other = second_host(world, FAST)
    world.write("write -P 0x41 0 1M", "flush")
    world.do("systemctl kill -s KILL s3block@vm1")
    shutil.copytree(world.state / "vm1", other.state / "vm1", ignore=shutil.ignore_patterns("control"))
    other.play_marked(HOST, "carried")
    other.write("read -P 0x41 0 1M")
    other.end()


# --- bucket lost -----------------------------------------------------------------------------------------------------


class Between:
    """Holds up what follows the first page of a listing of the source, until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, asked: str) -> None:
        later = "continuation-token=" in asked or "start-after=" in asked
        if later and asked.startswith("GET /bucket") and "list-type=2" in asked and not self.go_on.is_set():
            self.reached.set()
            assert self.go_on.wait(200)


def test_the_bucket_is_lost(radosgw: Radosgw, relay: Relay, tmp_path: Path) -> None:
    """A volume of more than a thousand objects is mirrored while it is written to: between two pages of the listing what the
    first page has told is overwritten. Then the bucket is emptied."""
    world = World.make(tmp_path / "world", radosgw, buckets=("bucket", "copies", "restored"), url=relay.url)
    try:
        promote_the_mirror(world, relay)
    finally:
        world.end()


def promote_the_mirror(world: World, relay: Relay) -> None:
    world.configure(VM1 + FAST)
    world.do("s3block create vm1 --size 256M --extent-size 128K")
    world.serve()
    world.write("write -P 0x41 0 180M", "flush")
    world.do("s3block gc vm1")  # carries what is left, and folds
    world.bucket().put("zzz/photo.jpg", b"an object of somebody else's")
    world.play_marked(BUCKET, "mirror")
    world.reconfigure("[mirror.photos]", "[mirror.photos]\nscanners = 1")
    assert len(world.keys("v1/vm1/ext/")) == 1000, "the listing must have more than one page"

    between = Between()
    relay.before = between
    ended: list[int] = []
    runs = threading.Thread(target=lambda: ended.append(len(world.play_marked(BUCKET, "timer"))))
    runs.start()
    assert between.reached.wait(200), "the listing has one page"
    world.write("write -P 0x42 0 180M", "flush")
    world.do("s3block gc vm1 --config " + str(direct(world)))
    between.go_on.set()
    runs.join(300)
    assert ended == [1], world.story[-1]

    control = world.control()
    control.close()
    erase(world)
    world.run("systemctl stop cowsync@photos")
    answers = world.play_marked(BUCKET, "restore")
    assert answers
    assert world.bucket("restored").get("zzz/photo.jpg") == b"an object of somebody else's"
    world.play_marked(BUCKET, "point", "aside")
    check = world.run("s3block check vm1")
    print(
        f"the newest state on the mirror: check ended with {check.code}, {check.text.count('is missing')} objects missing"
    )
    assert check.code == 1, "the listing was to be torn"
    assert "volume, snapshot" not in check.text, "the snapshot was to be whole"
    world.play_marked(BUCKET, "promote", "back", "serve", "confirm")
    world.write("read -P 0x41 0 180M")
    world.write("write -P 0x43 0 1M", "flush")
    world.play_marked(BUCKET, "again")


def direct(world: World) -> Path:
    """A configuration that does not go by the relay."""
    world.bucket()
    return world.directory / "direct.toml"


def erase(world: World) -> None:
    bucket = world.bucket()
    while keys := [key.decode() for key in bucket.list_page().keys]:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(bucket.delete, keys))


# --- ledger fails ----------------------------------------------------------------------------------------------------


def test_the_ledger_fails(world: World) -> None:
    world.play_marked(LEDGER, "begin")
    bucket = world.bucket("audit")
    copy = {key: bucket.get(key) for key in world.keys("log/", "audit")}
    changed = [key for key, data in copy.items() if b"alice" in data]
    assert len(changed) == 1, "one bundle has the record"
    bucket.put(changed[0], copy[changed[0]].replace(b"alice", b"mallo"))
    (told,) = world.play_marked(LEDGER, "verify")
    named = set(re.findall(r"^ *record: (.+)$", told.text, re.MULTILINE))
    print(f"records named: {sorted(named)}; {told.text.splitlines()[-1]}")
    assert len(named) == 2, "the record, and the one that is chained on it"
    world.play_marked(LEDGER, "log", "keep", "evidence", "record")
    # The bundle has grown meanwhile: what is put back is the right one for every key that still has the false bytes.
    for key in world.keys("log/", "audit"):
        if b"mallo" in (now := bucket.get(key)):
            bucket.put(key, copy.get(key, now.replace(b"mallo", b"alice")))
    world.play_marked(LEDGER, "again")


# --- key lost --------------------------------------------------------------------------------------------------------


def test_a_volumes_key_is_lost(world: World) -> None:
    world.configure(f'{VM1}{FAST}key = "file:{world.directory}/etc/vm1.key"\n')
    world.play_marked(KEY, "volume prepare")
    world.serve()
    world.write("write -P 0x41 0 1M", "flush")
    world.do("systemctl stop s3block@vm1")
    world.play_marked(KEY, "volume lost", "volume again")
    world.write("read -P 0x41 0 1M")


def test_a_mirrors_key_is_lost(world: World) -> None:
    world.bucket().put("photo.jpg", b"seen")
    world.play_marked(KEY, "mirror prepare")
    assert world.bucket("copies").get("photo.jpg") != b"seen"
    world.play_marked(KEY, "mirror again")


def test_the_ledgers_key_is_lost(world: World) -> None:
    world.play_marked(KEY, "ledger prepare", "ledger lost", "ledger seal", "ledger again")


def console(world: World) -> str:
    return (
        '[envctl]\nurl = "http://127.0.0.1:8480"\nlisten = "127.0.0.1:8480"\nhomes = "s3://ceph/photos/homes"\n'
        f'state_dir = "{world.state}/envctl"\n'
    )


def test_the_consoles_database_comes_back_with_its_key(world: World) -> None:
    """Backup on one host, restored on another: the schema is there and SQLite finds the file whole."""
    world.configure(console(world))
    world.do("s3-envctl migrate")
    world.play_marked(HOST, "console backup")
    other = world.other("other")
    other.configure(console(other))
    (other.state / "envctl").mkdir(mode=0o700)
    shutil.copy(world.directory / "home/envctl.copy", other.directory / "home/envctl.copy")
    key = world.state / "envctl/key"
    (other.directory / "home/envctl.key").write_bytes(key.read_bytes() if key.exists() else bytes(32))
    other.play_marked(HOST, "console restore")
