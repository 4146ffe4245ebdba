import hashlib
import json
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity.errors import Malformed, Tampered
from integrity.reconcile.acts import acts_of
from integrity.reconcile.actual import BucketListing, Inventory
from integrity.reconcile.findings import Finding
from integrity.reconcile.folded import Folded
from integrity.reconcile.join import differing, key_of, line_prefix, listed_lines, whole_keys
from integrity.reconcile.judgement import judge
from s3core.bucket import ListedVersion, ListedVersions
from tests.integrity.reconcile.test_judgement import play, steps
from tests.integrity.reconcile.worlds import PLACE, SKEW_S, World


def folded_of(world: World, path: Path | str = ":memory:", *, observed_counts: bool = False) -> Folded:
    folded = Folded(path, PLACE, observed_counts=observed_counts, skew_s=SKEW_S)
    fold(folded, world)
    return folded


def fold(folded: Folded, world: World) -> int:
    return folded.fold(
        # misc: mypy has no type for a lambda with a default.
        (log.writer, len(log.records), lambda first, last, log=log: list(enumerate(log.records))[first:last])  # type: ignore[misc]
        for log in (*world.logs, world.feed)
    )


def pages(rows: list[ListedVersion], size: int) -> list[ListedVersions]:
    return [ListedVersions.of(rows[at : at + size]) for at in range(0, len(rows), size)]


def joined(world: World, folded: Folded, page: int) -> list[Finding]:
    found = []
    actual = map(listed_lines, whole_keys(pages(world.versions, page)))
    for key, rows in differing(folded.lines(), actual):
        found += judge(key.decode(), folded.acts(key.decode()), rows, world.around())
    return found


@settings(max_examples=200, deadline=None)
@given(steps, st.booleans(), st.integers(0, 99), st.integers(1, 5), st.integers(0, 14), st.integers(0, 2))
def test_the_join_finds_what_judging_each_key_finds(
    drawn: list[tuple[str, str, int, int, str, float]], versioned: bool, seed: int, page: int, cut: int, attacks: int
) -> None:
    """Also in pieces of any size, and with records folded in two steps."""
    random = Random(seed)
    world = World(versioned=versioned, feeds=True)
    play(world, drawn[:cut], random)
    folded = folded_of(world)
    play(world, drawn[cut:], random)
    for _ in range(attacks):
        world.wait(2000)
        key = random.choice("abcx")
        there = [one for one in world.versions if one.key == key]
        if random.random() < 0.5 or not there:
            world.bucket.put(key, b"%d" % random.randrange(9))
        elif versioned:
            world.bucket.delete_version(key, random.choice(there).version_id)
        else:
            world.bucket.delete(key)
    fold(folded, world)
    assert joined(world, folded, page) == world.findings()
    folded.close()


@given(st.lists(st.binary(max_size=4), unique=True))
def test_lines_sort_as_keys_do(keys: list[bytes]) -> None:
    lines = [line_prefix(key) + b"v" for key in keys]
    assert [key_of(line) for line in sorted(lines)] == sorted(keys)


def test_a_cache_is_not_believed_where_the_log_is_another(tmp_path: Path) -> None:
    world = World(versioned=True)
    for number in range(3):
        world.put("a", b"%d" % number)
    folded_of(world, tmp_path / "cache").close()
    again = folded_of(world, tmp_path / "cache")
    assert again.records == 6
    again.close()
    other = World(versioned=True)
    for number in range(4):
        other.put("b", b"%d" % number)
    with pytest.raises(Tampered, match="does not follow"):
        folded_of(other, tmp_path / "cache")
    with pytest.raises(Tampered, match="had 6"):
        folded_of(World(versioned=True), tmp_path / "cache")


def test_a_fold_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    world = World(versioned=True)
    world.put("a", b"1")
    folded = folded_of(world, tmp_path / "cache")
    lines = list(folded.lines())
    world.put("a", b"2")

    def torn(first: int, last: int) -> list[tuple[int, bytes]]:
        raise ConnectionError("the store went away")

    with pytest.raises(ConnectionError):
        folded.fold([("pve1.1", 4, torn)])
    assert (list(folded.lines()), folded.size("pve1.1")) == (lines, 2)
    fold(folded, world)
    assert folded.size("pve1.1") == 4
    assert len([line for piece in folded.lines() for line in piece.lines]) == 2
    folded.close()


def test_other_rules_fold_anew_without_reading(tmp_path: Path) -> None:
    world = World(versioned=True, feeds=True)
    world.put("a", b"1")
    written = world.bucket.put("a", b"2")
    world.observe("put", "a", written.version_id, etag=written.etag, size=1)
    world.deliver(Random(1))
    folded_of(world, tmp_path / "cache").close()
    folded = Folded(tmp_path / "cache", PLACE, observed_counts=True, skew_s=SKEW_S)
    assert joined(world, folded, 10) == []
    folded.close()


def test_ranges_cover_everything_once() -> None:
    world = World(versioned=True)
    for number in range(20):
        world.put(f"k{number:02}", b"x")
    folded = folded_of(world)
    cuts = folded.cuts(3)
    edges = [b"", *cuts]
    assert len(cuts) == 3
    listing = BucketListing(world.bucket, "")
    keys = []
    for place, after in enumerate(edges):
        upto = edges[place + 1] if place + 1 < len(edges) else None
        keys += [key for piece in listing.pieces(after, upto) for key in piece.keys]
        expected = [line for piece in folded.lines(after, upto) for line in piece.lines]
        assert [key_of(line) for line in expected] == [
            key for piece in listing.pieces(after, upto) for key in piece.keys
        ]
    assert keys == [b"k%02d" % number for number in range(20)]
    folded.close()


def inventory_of(world: World, folder: Path) -> Path:
    rows = [
        ",".join(
            f'"{field}"'
            for field in (
                "photos",
                one.key.replace(" ", "+"),
                one.version_id,
                str(one.latest).lower(),
                str(one.delete_marker).lower(),
                "" if one.delete_marker else one.size,
                one.modified,
                one.etag,
            )
        )
        for one in reversed(world.versions)
    ]
    data = "\n".join(rows).encode()
    (folder / "one.csv").write_bytes(data)
    manifest = {
        "sourceBucket": "photos",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag",
        "creationTimestamp": str(int(world.clock.time() * 1000)),
        "files": [{"key": "inv/data/one.csv", "MD5checksum": hashlib.md5(data).hexdigest()}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "manifest.json"


def test_an_inventory_tells_what_the_listing_tells(tmp_path: Path) -> None:
    world = World(versioned=True)
    for number in range(5):
        world.put(f"a b{number % 2}", b"%d" % number)
    world.delete("a b0")
    inventory = Inventory(inventory_of(world, tmp_path), "", tmp_path)
    by_key: dict[str, set[ListedVersion]] = defaultdict(set)
    for piece in inventory.pieces(b"", None):
        for one in piece:
            by_key[one.key].add(one)
    assert by_key == {key: {one for one in world.versions if one.key == key} for key in ("a b0", "a b1")}
    (tmp_path / "one.csv").write_bytes(b"cut")
    with pytest.raises(Malformed, match="damaged"):
        Inventory(tmp_path / "manifest.json", "", tmp_path)


def test_acts_have_no_side_effects_on_their_mentions() -> None:
    world = World(versioned=True, feeds=True)
    world.put("a", b"1", answer="lost")
    world.deliver(Random(1))
    mentions = world.mentions()
    once = acts_of(mentions, observed_counts=False, skew_s=SKEW_S)
    assert acts_of(mentions, observed_counts=False, skew_s=SKEW_S) == once
