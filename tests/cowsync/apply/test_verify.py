"""Drift is found from one listing; bytes are compared where asked; a re-read goes on where it stopped."""

import threading
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from cowsync.apply.copy_line import Place
from cowsync.apply.verify import Drift, Finding, RereadSettings, is_chosen, reread, verify_listing
from cowsync.rows import Row, Rows
from cowsync.scan.ranges import KeyRange
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.apply.faulty_bucket import Fault, Faults, faulty, put_in_parts, service


class Mirrored:
    """`count` objects, all mirrored; one of them (`00003`) is no longer at the source."""

    def __init__(self, count: int = 30) -> None:
        self.source = service("one").bucket("source")
        self.mirror = service("two").bucket("mirror")
        self.rows = Rows()
        for number in range(count):
            key, data = f"{number:05}", b"%d" % number * number
            etag = self.source.put("s/" + key, data).etag
            if number % 7 == 6:
                mirror_etag = put_in_parts(self.mirror, "m/" + key, data, 10)
            else:
                mirror_etag = self.mirror.put("m/" + key, data).etag
            gone = 5 if number == 3 else 0
            if gone:
                self.source.delete("s/" + key)
            self.rows.append(
                Row(key.encode(), len(data), etag.encode(), b"t", mirror_etag=mirror_etag.encode(), gone=gone)
            )

    @property
    def places(self) -> tuple[Place, Place]:
        return Place(self.source, "s/"), Place(self.mirror, "m/")

    def base(self, after: bytes) -> Iterable[Rows]:
        later = [place for place, key in enumerate(self.rows.keys) if key > after]
        yield from (self.rows.take(later[at : at + 7]) for at in range(0, len(later), 7))


def test_a_mirror_as_it_should_be() -> None:
    made = Mirrored()
    made.mirror.put("m/.cowsync/trash/7/old", b"12345")
    result = verify_listing(made.base(b""), made.places[1])
    assert result.clean
    assert (result.keys, result.intact, result.listed) == (30, 30, 30)
    assert (result.quarantined, result.quarantined_bytes) == (1, 5)
    assert made.mirror.requests["list"] == result.requests == 2
    assert made.mirror.requests["head"] == made.mirror.requests["get"] == 0


def test_each_kind_of_drift() -> None:
    made, told = Mirrored(), list[Finding]()
    made.mirror.delete("m/00004")
    made.mirror.put("m/00005", b"5555X")
    made.mirror.put("m/00005a", b"extra")
    made.mirror.delete("m/00003")
    result = verify_listing(made.base(b""), made.places[1], on_finding=told.append, findings_kept=2)
    assert [(found.kind, found.key) for found in told] == [
        (Drift.MISSING, "00003"),
        (Drift.MISSING, "00004"),
        (Drift.CHANGED, "00005"),
        (Drift.EXTRA, "00005a"),
    ]
    assert result.counts == {Drift.MISSING: 2, Drift.CHANGED: 1, Drift.EXTRA: 1}
    assert result.intact == 27
    assert result.findings == told[:2]
    assert not result.clean
    assert result.to_json()["intact"] == 27
    assert "5 bytes" in told[2].expected
    assert told[2].held != told[2].expected


def test_ranges_together_are_the_whole() -> None:
    made = Mirrored()
    made.mirror.delete("m/00004")
    made.mirror.put("m/00020x", b"extra")
    edges = [b"", b"00004", b"00015", None]
    counts: dict[str, int] = {}
    for after, upto in pairwise(edges):
        within = KeyRange(after or b"", upto)
        inside = [k for k, key in enumerate(made.rows.keys) if key > within.after and (upto is None or key <= upto)]
        result = verify_listing([made.rows.take(inside)], made.places[1], within=within)
        for kind, count in result.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    assert counts == {Drift.MISSING: 1, Drift.EXTRA: 1}


def damage(bucket: MemoryBucket, key: str) -> None:
    """Other bytes under the same ETag and size, as a failing disk has them."""
    version = bucket._history[key][-1]
    changed = bytes([version.data[0] ^ 1]) + version.data[1:]
    object.__setattr__(version, "data", changed)


def test_all_bytes_are_compared() -> None:
    made = Mirrored()
    damage(made.mirror, "m/00008")
    damage(made.source, "s/00009")
    damage(made.mirror, "m/00003")  # the source has lost it: only the ETag tells, and does not prove damage
    made.mirror.delete("m/00010")
    made.mirror.put("m/00011", b"other")
    made.source.put("s/00012", b"newer")
    made.source.put("s/00013", b"newer")  # its mirror was put in parts
    result = reread(made.base, *made.places, of="snapshot")
    assert result.complete
    assert result.counts == {Drift.DAMAGED: 2, Drift.MISSING: 1, Drift.CHANGED: 1}
    assert [f.key for f in result.findings if f.kind is Drift.DAMAGED] == ["00008", "00009"]
    assert (result.by_etag, result.uncompared) == (1, 2)
    assert result.objects == 30
    assert result.intact == 30 - 4 - 3
    assert not result.clean


def test_a_sample_is_a_part_and_the_seed_says_which() -> None:
    keys = [b"%d" % number for number in range(20_000)]
    first, second = ({key for key in keys if is_chosen(key, 0.1, seed)} for seed in ("a", "b"))
    assert 1800 < len(first) < 2200
    assert len(first & second) < 300
    assert first == {key for key in keys if is_chosen(key, 0.1, "a")}
    made = Mirrored()
    result = reread(made.base, *made.places, of="s", settings=RereadSettings(share=0.5, seed="a"))
    assert 5 < result.objects < 25


def test_a_stopped_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowsync.apply.verify._CHUNK_ROWS", 4)
    made, stop, state = Mirrored(), threading.Event(), tmp_path / "verify.json"
    damage(made.mirror, "m/00002")
    damage(made.mirror, "m/00022")
    first = reread(made.base, *made.places, of="s", state=state, stop=stop, on_progress=lambda so_far: stop.set())
    assert (first.objects, first.after, first.stopped, first.complete) == (4, "00003", "asked to stop", False)
    gets = made.mirror.requests["get"]
    second = reread(made.base, *made.places, of="s", state=state)
    assert second.complete
    assert second.objects == 30
    assert second.counts == {Drift.DAMAGED: 2}
    assert [found.key for found in second.findings] == ["00002", "00022"]
    assert made.mirror.requests["get"] - gets == 26
    assert reread(made.base, *made.places, of="s", state=state).objects == 30, "a finished one begins anew"
    assert reread(made.base, *made.places, of="another", state=state).objects == 30
    state.write_bytes(b"{torn")
    assert reread(made.base, *made.places, of="s", state=state).objects == 30


def test_a_store_that_is_away_ends_it_and_the_place_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowsync.apply.verify._CHUNK_ROWS", 4)
    made, state = Mirrored(), tmp_path / "verify.json"
    away = Faults(dict.fromkeys(range(20, 9999), Fault.REFUSED))
    settings = RereadSettings(workers=1, failures_in_a_row=3)
    mirror = Place(faulty(made.mirror, away), "m/")
    first = reread(made.base, made.places[0], mirror, of="s", state=state, settings=settings)
    assert "3 objects in a row" in first.stopped
    second = reread(made.base, *made.places, of="s", state=state, settings=settings)
    assert second.complete
    assert second.objects == 30
    assert second.counts.get(Drift.UNREADABLE, 0) <= 3, "of the objects whose place was kept"


def test_one_unreadable_object_is_a_finding() -> None:
    made = Mirrored()
    result = reread(
        made.base,
        made.places[0],
        Place(faulty(made.mirror, Faults({9: Fault.DENIED})), "m/"),
        of="s",
        settings=RereadSettings(workers=1),
    )
    assert result.counts == {Drift.UNREADABLE: 1}
    assert "injected" in result.findings[0].held
    assert result.complete
