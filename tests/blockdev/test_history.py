"""The persistent reservations that the log's notes carry: from record to root, past everything that concerns the content."""

import json

from blockdev.extents.history import History, Snapshot, added, history_from, removed, reserved

STATE = {"registrations": [["iqn.2026-01.test:one,i,0x000000000001,t,0x0001", "11"]], "holder": None, "type": 0}
SNAPSHOT = Snapshot("s", 3, 1, "ab" * 32, 0, 4096)


def test_a_record_sets_them_and_another_one_takes_them_away() -> None:
    kept = History().after(reserved(STATE), 4)
    assert kept.reservations == STATE
    assert kept.after(reserved(None), 5).reservations is None


def test_nothing_else_touches_them() -> None:
    history = History().after(reserved(STATE), 1)
    for note in (added(SNAPSHOT), {"rollback": {"seq": 3, "epoch": 1}}, removed("s"), {"resized_from": 1}):
        history = history.after(note, 4)
        assert history.reservations == STATE


def test_a_root_carries_them() -> None:
    history = History((SNAPSHOT,)).after(reserved(STATE), 4)
    assert history_from(json.loads(json.dumps(history.document()))) == history
    assert "reservations" not in History((SNAPSHOT,)).document()


def test_a_root_of_before_there_were_any_has_none() -> None:
    assert history_from({"snapshots": [], "removed": [], "branched": False}).reservations is None
