"""On a real server: large objects with small parts, odd keys, tags and headers, a mirror with versions and one without."""

import multiprocessing
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cowsync.apply.copy_line import Place
from cowsync.apply.journal import Journals
from cowsync.apply.outcome_rows import outcome_rows
from cowsync.apply.restore import RestoreOptions, apply_restore, plan_restore
from cowsync.apply.run import ApplyResult, ApplySettings, apply_plan
from cowsync.apply.transfer import MIB, TransferSettings
from cowsync.apply.verify import Drift, RereadSettings, reread, verify_listing
from cowsync.changes import Op, PlanLine
from cowsync.rows import REMOVED, Row, Rows
from s3core.bucket import Attributes, Bucket
from s3core.endpoint import Endpoint
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.cowsync.apply.faulty_bucket import ListPlan
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw

KEPT = Attributes(
    {"content-type": "text/plain; charset=utf-8", "cache-control": "max-age=60", "content-language": "de"},
    {"owner": "someone", "note": "a b c"},
    {"class": "a+b", "colour": "blue green"},
)
ODD = ["/lead", "a//b", "a b+c%20&=?#", "ünïcode/\u2603", "tab\tend", "quote'\"<>&", "k" * 1000, "dots/../x"]
PARTS = bytes(range(256)) * (12 * MIB // 256)
SETTINGS = ApplySettings(workers=4, transfer=TransferSettings(part_bytes=6 * MIB, copy_bytes_max=6 * MIB))


@dataclass
class World:
    source: S3Bucket
    mirror: S3Bucket
    other: S3Bucket
    folder: Path
    base: dict[str, Row]

    @property
    def places(self) -> tuple[Place, Place]:
        return Place(self.source, "s/"), Place(self.mirror, "m/")

    def apply(self, run: int) -> ApplyResult:
        """Mirror the source as it is; what it has lost is removed at once."""
        source, now = self.places[0], dict[str, PlanLine]()
        page = source.bucket.list_page(prefix="s/")
        for name, size, etag, modified in zip(page.keys, page.sizes, page.etags, page.modified, strict=True):
            key = name.decode()[2:]
            known = self.base.get(key)
            line = PlanLine(Op.ADD, key, size, etag.decode(), modified.decode())
            if known is None:
                now[key] = line
            elif known.etag != etag:
                now[key] = replace(line, op=Op.MODIFY, mirror_etag=known.mirror_etag.decode())
        there = {name.decode()[2:] for name in page.keys}
        for key in set(self.base) - there:
            known = self.base[key]
            now[key] = PlanLine(Op.REMOVE, key, known.size, "e", "t", mirror_etag=known.mirror_etag.decode(), gone=1)
        plan, directory = ListPlan(list(now.values())), self.folder / f"apply-{run}"
        result = apply_plan(plan, *self.places, directory, run=run, settings=SETTINGS)
        for rows in outcome_rows(plan, directory):
            self.base |= {row.key.decode(): row for row in rows}
        self.base = {key: row for key, row in self.base.items() if row.gone != REMOVED}
        return result

    def rows(self, after: bytes = b"") -> Iterator[Rows]:
        rows = Rows()
        for row in sorted(self.base.values()):
            if row.key > after:
                rows.append(row)
        yield rows


@pytest.fixture(params=["one endpoint", "two endpoints", "one endpoint, versions", "two endpoints, versions"])
def world(radosgw: Radosgw, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    names = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("source", "mirror", "other")]
    control = S3Control(radosgw.endpoint())
    for name in names:
        control.create_bucket(name)
    if "versions" in request.param:
        control.set_versioning(names[1], True)
    control.close()
    here = radosgw.endpoint()
    there = here if "one" in request.param else replace(here, name="elsewhere")
    source, mirror, other = S3Bucket(here, names[0]), S3Bucket(there, names[1]), S3Bucket(there, names[2])
    yield World(source, mirror, other, tmp_path, {})
    for bucket in (source, mirror, other):
        bucket.close()


def put_in_parts(bucket: Bucket, key: str, data: bytes, part: int) -> str:
    upload = bucket.begin_upload(key, attributes=KEPT)
    parts = [
        (number, bucket.upload_part(key, upload, number, data[at : at + part]))
        for number, at in enumerate(range(0, len(data), part), 1)
    ]
    return bucket.complete_upload(key, upload, parts).etag


def test_a_mirror_from_the_first_copy_to_a_restore(world: World) -> None:
    source, mirror = world.places
    for key in ODD:
        source.bucket.put("s/" + key, key.encode(), attributes=KEPT)
    source.bucket.put("s/empty", b"", attributes=KEPT)
    source.bucket.put("s/large", PARTS, attributes=KEPT)
    in_parts = put_in_parts(source.bucket, "s/parts", PARTS, 5 * MIB)
    put_in_parts(source.bucket, "s/small parts", PARTS[: 5 * MIB + 1], 5 * MIB)
    first = world.apply(1)
    assert first.complete, first.failures
    by_server = world.source.properties.endpoint == world.mirror.properties.endpoint
    assert (first.bytes_moved == 0) is by_server
    assert (first.bytes_copied == 0) is not by_server
    assert world.base["parts"].mirror_etag.decode() == in_parts, "parts of the source's size give its ETag"
    for key in [*ODD, "empty", "large", "parts", "small parts"]:
        facts, wanted = mirror.bucket.head("m/" + key), source.bucket.head("s/" + key)
        assert (facts.size, facts.attributes) == (wanted.size, wanted.attributes), key
        assert mirror.bucket.tags("m/" + key) == KEPT.tags, key
        assert facts.etag == world.base[key].mirror_etag.decode()
        assert facts.version_id == world.base[key].mirror_version.decode()
    assert verify_listing(world.rows(), mirror).clean
    everything = reread(world.rows, source, mirror, of="1", settings=RereadSettings(workers=2))
    assert (everything.clean, everything.intact) == (True, len(ODD) + 4)
    snapshot = list(world.rows())
    assert not world.apply(2).counts, "nothing changed, nothing is done"

    source.bucket.put("s/parts", b"no longer in parts")
    put_in_parts(source.bucket, "s/empty", PARTS[: 6 * MIB], 5 * MIB)
    source.bucket.delete("s/large")
    source.bucket.delete("s/" + ODD[2])
    second = world.apply(3)
    assert second.complete, second.failures
    assert second.lines == 4
    verdict = verify_listing(world.rows(), mirror)
    assert verdict.clean, verdict.findings
    versioned = mirror.bucket.properties.versioned
    assert verdict.quarantined == (0 if versioned else 2)
    mirror.bucket.put("m/" + ODD[0], b"somebody else's")
    assert verify_listing(world.rows(), mirror).counts == {Drift.CHANGED: 1}
    source.bucket.put("s/" + ODD[0], b"changed at the source")
    drifted = world.apply(4)
    assert [failure.outcome for failure in drifted.failures] == ["drifted"]

    place, lost = Place(world.other, "back/"), set[str]()
    plan, report = plan_restore(
        world.folder / "plans",
        snapshot,
        mirror,
        place,
        name="photos",
        snapshot="1",
        run=5,
        options=RestoreOptions(),
        on_unavailable=lambda row: lost.add(row.key.decode()),
    )
    # Without versions what was overwritten is gone; what was removed lies in the trash.
    assert lost == (set() if versioned else {"parts", "empty", ODD[0]})
    assert report.from_trash == (0 if versioned else 2)
    result = apply_restore(plan, mirror, place, world.folder / "restore", run=5, settings=SETTINGS)
    assert result.complete, result.failures
    for row in snapshot[0]:
        key = row.key.decode()
        if key not in lost:
            assert world.other.head("back/" + key).etag == row.mirror_etag.decode(), key
            assert world.other.tags("back/" + key) == KEPT.tags, key
    assert world.other.get("back/large") == PARTS
    again, report = plan_restore(world.folder / "again", snapshot, mirror, place, name="photos", snapshot="1", run=6)
    assert (len(again), report.present) == (0, len(snapshot[0]) - len(lost))


def test_a_source_that_changes_is_not_copied(world: World) -> None:
    source, mirror = world.places
    etag = put_in_parts(source.bucket, "s/parts", PARTS, 5 * MIB)
    small = source.bucket.put("s/small", b"1").etag
    plan = ListPlan(
        [
            PlanLine(Op.ADD, "parts", len(PARTS), etag, "t"),
            PlanLine(Op.ADD, "small", 1, small, "t"),
            PlanLine(Op.ADD, "gone", 1, small, "t"),
        ]
    )
    source.bucket.put("s/parts", PARTS[:-1])
    source.bucket.put("s/small", b"2")
    result = apply_plan(plan, source, mirror, world.folder / "apply", run=1, settings=SETTINGS)
    assert [failure.outcome for failure in result.failures] == ["moved"] * 3, result.failures
    assert not mirror.bucket.list_page(prefix="m/").keys


def _apply_slowly(ends: list[tuple[Endpoint, str]], lines: list[PlanLine], directory: Path) -> None:
    """In a process of its own, that will be killed."""
    source, mirror = (S3Bucket(endpoint, name) for endpoint, name in ends)
    settings = replace(SETTINGS, requests_per_s=150, sync_s=0.05, batch_lines=8)
    apply_plan(ListPlan(lines), Place(source, "s/"), Place(mirror, "m/"), directory, run=1, settings=settings)


def test_killed_in_the_middle_it_goes_on(world: World) -> None:
    source, mirror = world.places
    lines = [
        PlanLine(Op.ADD, f"{number:03}", 3, source.bucket.put(f"s/{number:03}", b"%03d" % number).etag, "t")
        for number in range(120)
    ]
    plan, directory = ListPlan(lines), world.folder / "apply"
    killed_at: list[int] = []
    ends = [(bucket._endpoint, bucket._name) for bucket in (world.source, world.mirror)]
    for _ in range(2):
        before = len(Journals.read(directory, bytes.fromhex(plan.digest)).done)
        child = multiprocessing.get_context("spawn").Process(target=_apply_slowly, args=(ends, lines, directory))
        child.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if len(Journals.read(directory, bytes.fromhex(plan.digest)).done) >= before + 15:
                break
            time.sleep(0.02)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        killed_at.append(len(Journals.read(directory, bytes.fromhex(plan.digest)).done))
    assert 15 <= killed_at[0] < killed_at[1] < 120
    result = apply_plan(plan, source, mirror, directory, run=1, settings=SETTINGS)
    assert result.complete, result.failures
    assert result.done_before == killed_at[1]
    for rows in outcome_rows(plan, directory):
        world.base |= {row.key.decode(): row for row in rows}
    assert len(world.base) == 120
    assert verify_listing(world.rows(), mirror).clean
