"""What full verification takes from records without reading all of them as JSON is what reading them gives."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from integrity.verification.walk import Walked, readers, stretches, walk
from s3core.memory import MemoryStore
from tests.integrity.verification.forge import Forged, World

W = "pve1.1"

texts = st.sampled_from(
    [
        "x",
        'a"intent":3,"b',
        '","intent":4',
        '"phase":"intent"',
        "intent",
        ":{",
        '"source":"ledger"',
        '"phase":"unknown"',
    ]
)
details = st.dictionaries(st.sampled_from(["intent", "phase", "source", "n"]), texts | st.integers(0, 9), max_size=2)
events = st.fixed_dictionaries(
    {"phase": st.sampled_from(["intent", "done", "not-done", "unknown", "observed"])},
    optional={
        "intent": st.integers(0, 12),
        "key": texts,
        "detail": details,
        "error": st.dictionaries(st.sampled_from(["code", "intent"]), texts, max_size=2),
        "previous": details,
        "who": st.fixed_dictionaries({"name": texts}),
        "source": st.sampled_from(["client", "ledger"]),
    },
)


def walked(log: Forged, parse_every: int) -> Walked:
    store = log.store
    keys = [log.signer.vkey]
    (stretch,) = stretches(log.writer, log.origin, len(log.records), keys, parse_every=parse_every)
    with readers(store) as threads:
        return walk(store, stretch, threads)


@given(st.lists(events, min_size=1, max_size=20))
@example([{"phase": "intent"}, {"phase": "done", "intent": 0}, {"phase": "done", "detail": {"intent": 1}}])
@example([{"phase": "intent", "detail": {"phase": "intent"}}, {"phase": "unknown", "intent": 0, "key": "x"}])
def test_intents_and_outcomes_are_those_that_reading_gives(history: list[dict[str, Any]]) -> None:
    log = Forged(MemoryStore(), W, f"example.com/ledger/{W}", [bytes(32)])
    for event in history:
        log.add(**event)
    log.publish()
    quickly, slowly = walked(log, 0), walked(log, 1)
    assert not quickly.troubles
    assert not slowly.troubles
    for name in ("open", "unknown", "closed", "marks", "incidents", "rows", "tail", "last"):
        assert getattr(quickly, name) == getattr(slowly, name), name


def test_most_records_of_our_tools_are_not_read_as_json() -> None:
    world = World()
    log = world.logs[W]
    for number in range(300):
        intent = log.add(phase="intent", key=f"k/{number}")
        if number != 7:
            log.add(phase="done", intent=intent, key=f"k/{number}")
    log.publish()
    found = [
        walk(world.store, stretch)
        for stretch in stretches(W, log.origin, len(log.records), [log.signer.vkey], parse_every=0)
    ]
    assert [number for one in found for number in one.open] == [14]
    assert sum(one.parsed for one in found) == 1, "the checkpoint record alone"
