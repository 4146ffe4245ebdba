from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from integrity.errors import Tampered
from integrity.reconcile.actual import BucketListing
from integrity.reconcile.content import chosen
from integrity.reconcile.findings import Code
from integrity.reconcile.folded import Folded
from integrity.reconcile.judgement import judge
from integrity.reconcile.run import Answer, Reconciliation, Wish
from integrity.reconcile.story import headline, story
from s3core.bucket import Bucket, VersionsPage
from s3core.bucket_wrapper import BucketWrapper
from s3core.errors import Unavailable, Unsupported
from s3core.exit_codes import ExitCode
from tests.integrity.reconcile.test_judgement import settled
from tests.integrity.reconcile.worlds import PLACE, SKEW_S, World

WISH = Wish(settle_s=10, threads=2)


def logs_of(world: World) -> Iterator[tuple[str, int, Callable[[int, int], Iterable[tuple[int, bytes]]]]]:
    for log in (*world.logs, world.feed):
        # misc: mypy has no type for a lambda with a default.
        yield log.writer, len(log.records), lambda first, last, log=log: list(enumerate(log.records))[first:last]  # type: ignore[misc]


def reconcile(
    world: World, path: Path, *, prefix: str = "", bucket: Bucket | None = None, wish: Wish = WISH, **more: Any
) -> Answer:
    folded = Folded(path / "folded", PLACE, observed_counts=False, skew_s=SKEW_S)
    bucket = bucket or world.bucket
    listing = BucketListing(bucket, prefix)
    run = Reconciliation(
        folded, prefix, lambda: logs_of(world), listing, listing, bucket, world.clock, Random(1), wish=wish, **more
    )
    try:
        return run.run()
    finally:
        folded.close()


@pytest.mark.parametrize("versioned", [True, False])
def test_a_bucket_as_the_ledger_says(versioned: bool, tmp_path: Path) -> None:
    world = settled(versioned)
    answer = reconcile(world, tmp_path)
    assert (answer.findings, answer.incomplete, answer.exit_code) == ([], [], ExitCode.OK)
    assert answer.versions == (6 if versioned else 3)
    assert (answer.records, answer.fresh_records) == (12, 12)
    assert reconcile(world, tmp_path).fresh_records == 0


def test_a_bucket_without_a_listing_of_versions(tmp_path: Path) -> None:
    class Plain(BucketWrapper):
        def list_versions(self, **_: Any) -> VersionsPage:
            raise Unsupported("no versions here")

    world = settled(False)
    assert reconcile(world, tmp_path, bucket=Plain(world.bucket)).findings == []
    world.bucket.put("x.iso", b"evil")
    assert [one.code for one in reconcile(world, tmp_path, bucket=Plain(world.bucket)).findings] == [
        Code.UNLOGGED_OVERWRITE
    ]


def test_the_window_begins_where_all_was_well_before(tmp_path: Path) -> None:
    world = settled()
    clean = reconcile(world, tmp_path).at
    world.wait(3600)
    world.bucket.delete_version("x.iso", world.version("x.iso", 1).version_id)
    for _ in range(2):  # the second time there was a finding before, and the window stays
        answer = reconcile(world, tmp_path)
        assert [one.code for one in answer.findings] == [Code.VERSION_PURGED]
        assert answer.exit_code is ExitCode.FINDING
        if answer.findings[0].since == clean:
            break
    assert answer.findings[0].since == clean


class Busy(BucketWrapper):
    """Somebody writes while it is listed: `act` is called at each listing of versions."""

    def __init__(self, inner: Bucket, act: Callable[[], object]) -> None:
        super().__init__(inner)
        self.act = act

    def list_versions(self, **how: Any) -> VersionsPage:
        self.act()
        return super().list_versions(**how)


def test_what_is_recorded_a_moment_later_is_no_finding(tmp_path: Path) -> None:
    """The put is seen by the listing; its records are published after it."""
    world = settled()
    acts = iter([lambda: world.put("late", b"late")])
    answer = reconcile(world, tmp_path, bucket=Busy(world.bucket, lambda: next(acts, lambda: None)()))
    assert (answer.findings, answer.in_flight) == ([], [])


def test_what_goes_on_changing_is_in_flight_and_no_finding(tmp_path: Path) -> None:
    world = settled()
    number = iter(range(100))
    busy = Busy(world.bucket, lambda: world.bucket.put("x.iso", b"%d" % next(number)))
    answer = reconcile(world, tmp_path, bucket=busy)
    assert (answer.findings, answer.in_flight) == ([], ["x.iso"])


def test_a_store_that_does_not_answer_gives_no_answer(tmp_path: Path) -> None:
    def away() -> None:
        raise Unavailable("no answer")

    with pytest.raises(Unavailable):
        reconcile(settled(), tmp_path, bucket=Busy(settled().bucket, away))


def test_a_prefix_is_compared_by_itself(tmp_path: Path) -> None:
    world = settled()
    world.put("photos/a", b"a")
    world.wait()
    world.bucket.put("other", b"evil")
    assert reconcile(world, tmp_path, prefix="photos/").findings == []
    world.bucket.put("photos/b", b"evil")
    assert [one.key for one in reconcile(world, tmp_path, prefix="photos/").findings] == ["photos/b"]
    assert [one.key for one in reconcile(world, tmp_path).findings] == ["other", "photos/b"]


def test_objects_of_a_volume_are_its_own_logs_business(tmp_path: Path) -> None:
    world = settled()
    world.logs[0].add(
        {
            "op": "control",
            "phase": "done",
            "source": "client",
            "bucket": "photos",
            "endpoint": "memory",
            "key": "volumes/disk1/",
            "detail": {"event": "open", "volume": "disk1"},
        },
        world.clock.time(),
    )
    world.bucket.put("volumes/disk1/segment", b"blocks")
    answer = reconcile(world, tmp_path)
    assert answer.findings == []
    assert answer.explained == {"volume: its own log tells of it": 1}


def test_bytes_that_changed_under_the_same_etag_are_found_by_reading(tmp_path: Path) -> None:
    world = settled()
    one = world.version("x.iso")
    history = world.bucket._history["x.iso"]
    history[-1] = history[-1].__class__(one.version_id, b"SECOND", one.etag, history[-1].modified)
    assert reconcile(world, tmp_path).findings == []
    answer = reconcile(world, tmp_path, wish=Wish(content=1.0, settle_s=0, threads=2))
    assert [one.code for one in answer.findings] == [Code.CONTENT_MISMATCH]
    assert answer.content_read == 5
    assert answer.findings[0].last_writer == "backup@pve1"


def test_a_share_of_rows_is_a_share() -> None:
    random = Random(3)
    assert 400 < sum(len(chosen(1000, 0.05, random)) for _ in range(10)) < 600
    assert chosen(3, 1.0, random) == [0, 1, 2]
    assert chosen(1000, 0.0, random) == []


def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    world = settled()
    world.bucket.put("evil", b"evil")
    world.wait()
    now = world.clock.time()
    assert reconcile(world, tmp_path, wish=Wish(since=now, settle_s=0)).findings == []
    assert len(reconcile(world, tmp_path, wish=Wish(since=now - 120, settle_s=0)).findings) == 1


@pytest.mark.parametrize(
    "change", [(b'"writer":"pve1.1"', b'"writer":"pve2.1"'), (b'"n":1,', b'"n":9,'), (b'"at":"', b'"at":"x')]
)
def test_a_record_in_the_name_of_another_writer_is_refused(change: tuple[bytes, bytes], tmp_path: Path) -> None:
    """Taken in, it would stand in the place of the other's own record."""
    world = settled(True)
    log = world.logs[0]
    log.records[1] = log.records[1].replace(*change)
    with pytest.raises(Tampered, match=r"record 1 of pve1\.1"):
        reconcile(world, tmp_path)


def test_the_story_of_a_key_the_newest_first() -> None:
    world = settled(feeds=True)
    world.delete("x.iso", answer="never")
    world.wait(1200)
    world.bucket.put("x.iso", b"evil")
    folded = Folded(":memory:", PLACE, observed_counts=False, skew_s=SKEW_S)
    folded.fold(logs_of(world))
    acts = folded.acts("x.iso")
    findings = judge("x.iso", acts, [one for one in world.versions if one.key == "x.iso"], world.around())
    said = headline("x.iso", findings, acts)
    assert said.startswith("`x.iso` was replaced outside the ledger, between 20")
    assert said.endswith("last legitimate writer: backup@pve1")
    lines = story(acts, folded.mentions("x.iso"), findings)
    assert [(line.finding, line.said.partition(" (")[0]) for line in lines] == [
        ("UNLOGGED_OVERWRITE", said),
        ("", "backup@pve1 may have deleted it: the answer was lost"),
        ("", "backup@pve1 put it"),
        ("", "backup@pve1 put it"),
    ]
    assert lines[-1].records[:2] == ("pve1.1#0", "pve1.1#1")
    assert headline("last", [], folded.acts("last")).startswith("`last` is as the ledger says: last put by backup@pve1")
    folded.close()
