"""Pages about mirrors, played on a mirror between two buckets of a real S3 server.

Parsed only, and why: events that come late (a feed is written by a server; tests/integration/test_cowsync_events.py has
one), the first block of the page (the same commands are run under each symptom).
"""

from pathlib import Path

import pytest

from tests.runbook.world import World
from tests.servers.radosgw import Radosgw

pytestmark = [pytest.mark.slow, pytest.mark.rgw]
OBJECTS = 30


@pytest.fixture
def mirrored(radosgw: Radosgw, tmp_path: Path) -> World:
    """Thirty objects of `bucket` are on `copies`."""
    world = World.make(tmp_path / "world", radosgw, buckets=("bucket", "copies"))
    world.configure(
        '[mirror.photos]\nsource = "s3://ceph/bucket"\ntarget = "s3://ceph/copies"\n'
        f'state_dir = "{world.state}/cowsync/photos"\nevery_s = "1h"\n'
    )
    for number in range(OBJECTS):
        world.bucket().put(f"photo-{number:03}.jpg", b"%d" % number)
    world.do("cowsync run photos")
    return world


def test_the_guard_holds_a_plan(mirrored: World) -> None:
    for number in range(OBJECTS):
        mirrored.bucket().delete(f"photo-{number:03}.jpg")
    mirrored.do("cowsync run photos", code=7)
    heading = "The guard holds a plan (exit code 7, `/healthz` says held)"
    mirrored.play("mirror.md", "Check.", heading=heading)
    assert len(mirrored.keys("photo-", "copies")) == OBJECTS
    mirrored.play("mirror.md", "Act.", "Confirm.", heading=heading)
    assert len(mirrored.keys("photo-", "copies")) == OBJECTS, "what the source has lost stays"


def test_lines_that_were_not_done(mirrored: World) -> None:
    mirrored.bucket("copies").put("photo-003.jpg", b"somebody else's")
    mirrored.bucket().put("photo-003.jpg", b"newer")
    mirrored.do("cowsync run photos", code=11)
    heading = "Lines that were not done (exit code 11)"
    mirrored.play("mirror.md", "Check.", heading=heading)
    mirrored.bucket("copies").delete("photo-003.jpg")  # as the page says, by any client
    mirrored.play("mirror.md", "Confirm.", heading=heading)
    assert mirrored.bucket("copies").get("photo-003.jpg") == b"newer"


def test_the_mirror_lost_objects(mirrored: World) -> None:
    mirrored.bucket("copies").delete("photo-007.jpg")
    heading = "The mirror lost or changed objects (`verify` ends with 1)"
    mirrored.play("mirror.md", "Check.", "Act.", "Confirm.", heading=heading)
    assert mirrored.bucket("copies").get("photo-007.jpg") == b"7"


def test_events_do_not_come(mirrored: World) -> None:
    mirrored.bucket().put("new.jpg", b"new")
    mirrored.play("mirror.md", "Check.", "Act.", "Confirm.", heading="Events come late or not at all")
    assert mirrored.bucket("copies").get("new.jpg") == b"new"


def test_the_host_that_mirrored_is_gone(mirrored: World) -> None:
    other = mirrored.other("other")
    other.configure(
        '[mirror.photos]\nsource = "s3://ceph/bucket"\ntarget = "s3://ceph/copies"\n'
        f'state_dir = "{other.state}/cowsync/photos"\nevery_s = "1h"\n'
    )
    other.play("mirror.md", "Check.", "Act.", "Confirm.", heading="This host is gone")
    other.end()


def test_the_key_of_an_encrypted_mirror(radosgw: Radosgw, tmp_path: Path) -> None:
    world = World.make(tmp_path / "world", radosgw, buckets=("bucket", "copies"))
    key, copy = world.directory / "etc/photos.key", world.directory / "etc/photos.key.copy"
    for path in (key, copy):
        path.write_bytes(b"k" * 32)
        path.chmod(0o600)
    world.configure(
        '[mirror.photos]\nsource = "s3://ceph/bucket"\ntarget = "s3://ceph/copies"\n'
        f'state_dir = "{world.state}/cowsync/photos"\nkey = "file:{key}"\n'
    )
    world.bucket().put("photo.jpg", b"seen")
    world.do("cowsync run photos")
    key.write_bytes(b"x" * 32)
    assert "none of its slots" in world.do("cowsync run photos", code=7)
    heading = "The key of an encrypted mirror is refused (exit code 7)"
    world.play("mirror.md", "Check.", "Act.", "Confirm.", heading=heading)


def test_another_process_works_on_it(mirrored: World) -> None:
    mirrored.do("systemctl start cowsync@photos")
    mirrored.play("mirror.md", "Check.", "Act.", "Confirm.", heading="`another process works on mirror photos`")
    mirrored.end()


def test_a_state_that_cannot_be_read(mirrored: World) -> None:
    """In the state and in the copy that commands read: one that is damaged alone is fetched anew."""
    segments = sorted((mirrored.state / "cowsync/photos").rglob("*.seg*"))
    assert len(segments) == 2
    for segment in segments:
        data = bytearray(segment.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
        segment.write_bytes(data)
    mirrored.play("mirror.md", "Check.", "Act.", "Confirm.", heading="A state that cannot be read (exit code 8)")


def test_watchdog_restarts(mirrored: World) -> None:
    mirrored.do("systemctl start cowsync@photos")
    mirrored.play("watchdog.md", "Check.", "Act.", "Confirm.")
    mirrored.end()
