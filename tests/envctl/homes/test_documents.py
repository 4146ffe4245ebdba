"""Documents of homes: bytes of version 1 are read for ever; what is damaged is told, not guessed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envctl.errors import HomeDamaged, Invalid
from envctl.homes import documents, keys
from envctl.homes.documents import Doomed, Head, Pin, Snapshot, Stats
from tests.envctl.homes.making import ENVIRONMENT

TREE = "ab" * 32
SNAPSHOT = Snapshot(
    number=7,
    parent=6,
    generation=2,
    at=1700000000.5,
    kind="final",
    trees=(TREE,),
    stats=Stats(files=3, bytes=12, added=1, new_bytes=9),
    guest_at=1699999999.0,
    fuzzy_paths=("aG9tZQ==",),
    alert="",
)
GOLDEN = (
    '{"alert":"","at":1700000000.5,"format":1,"fuzzy_paths":["aG9tZQ=="],"generation":2,"guest_at":1699999999.0,'
    '"kind":"final","number":7,"parent":6,"stats":{"added":1,"bytes":12,"changed":0,"changed_files_fraction":0.0,'
    '"files":3,"fuzzy":0,"new_bytes":9,"removed":0},"trees":["' + TREE + '"]}'
)
"""Version 1, for ever."""
HEAD = Head(ENVIRONMENT, 2, SNAPSHOT, 1700000300.0)


def test_version_1_is_written_and_read_as_ever() -> None:
    assert documents.write_snapshot(SNAPSHOT).decode() == GOLDEN
    assert documents.read_snapshot(GOLDEN.encode(), "key") == SNAPSHOT
    head = (
        '{"environment":"' + ENVIRONMENT + '","format":1,"generation":2,"newest":' + GOLDEN + ',"number":7,'
        '"seen_at":1700000300.0,"swept":""}'
    )
    assert documents.write_head(HEAD).decode() == head
    assert documents.read_head(head.encode(), "key") == HEAD
    pin = Pin(SNAPSHOT, "thesis", "alice", 5.0)
    read = documents.read_pin(documents.write_pin(pin), "key")
    assert read == pin
    assert (read.snapshot.pinned, read.snapshot.note) == (True, "thesis")
    doomed = Doomed(5.0, "sweeping", (f"packs/{TREE}",), 6.0)
    assert documents.read_doomed(documents.write_doomed(doomed), "key") == doomed


def test_a_newer_format_is_refused_by_name_and_newer_members_are_left_aside() -> None:
    said = json.loads(GOLDEN)
    with pytest.raises(HomeDamaged, match="format 2"):
        documents.read_snapshot(json.dumps(said | {"format": 2}).encode(), "key")
    said["stats"]["later"] = 1
    assert documents.read_snapshot(json.dumps(said | {"later": 1}).encode(), "key") == SNAPSHOT


@given(st.sampled_from(sorted(json.loads(GOLDEN))), st.sampled_from([None, "x", -1, [], {}, [1], "../../x", True]))
def test_a_damaged_document_is_told_with_its_key(member: str, value: object) -> None:
    whole = json.loads(GOLDEN)
    left = {name: entry for name, entry in whole.items() if name != member}
    could_be = {
        "at": (-1, True),
        "guest_at": (-1, True),
        "alert": ("x", "../../x"),
        "trees": ([],),
        "fuzzy_paths": ([],),
        "stats": ({},),
    }
    documents_ = [left] if value in could_be.get(member, ()) else [left, whole | {member: value}]
    for said in documents_:
        with pytest.raises(HomeDamaged, match=r"env/x/snapshots/1"):
            documents.read_snapshot(json.dumps(said).encode(), "env/x/snapshots/1")
    for data in (b"", b"null", b"[]", GOLDEN.encode()[:-1], b"\xff"):
        with pytest.raises(HomeDamaged):
            documents.read_snapshot(data, "key")


@given(st.text())
def test_no_text_of_a_stranger_becomes_a_key(text: str) -> None:
    for make in (keys.object_name, keys.tree, keys.pack):
        with pytest.raises(Invalid):
            make(text)
    with pytest.raises(ValueError, match="identifier"):
        keys.head(text)
    assert keys.number_of("env/x/snapshots/" + text) is None or len(text.rpartition("/")[2]) == 12
