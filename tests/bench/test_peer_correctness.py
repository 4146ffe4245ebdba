"""The judge of what a disk holds after it was cut off, and one real kill of ours."""

import io
import sys
import threading
from pathlib import Path

import pytest

from bench.peers import correctness, disk_file, stamped, table
from bench.peers.context import Context
from bench.peers.names import OURS
from bench.peers.stamped import BLOCK, TORN, Written
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.store import READY, Client

PLACES = [5, 6, 5, 7, 6]
"""Five writes; the third lies over the first, the fifth over the second."""


def written(acknowledged: int = 5, flushed: int = 3, failed: set[int] | None = None) -> Written:
    return Written(list(PLACES), acknowledged, flushed, failed or set())


def after(upto: int) -> dict[int, int]:
    return {5: 0, 6: 0, 7: 0} | {place: number for number, place in enumerate(PLACES[:upto], 1)}


def test_a_block_says_its_write_and_its_place() -> None:
    data = stamped.block(3, 5)
    assert len(data) == BLOCK
    assert stamped.number_of(data, 5) == 3
    assert stamped.number_of(bytes(BLOCK), 5) == 0
    assert stamped.number_of(data, 6) == TORN, "it belongs elsewhere"
    assert stamped.number_of(data[:512] + stamped.block(4, 5)[512:], 5) == TORN
    changed = bytearray(data)
    changed[-1] ^= 1
    assert stamped.number_of(bytes(changed), 5) == TORN


@pytest.mark.parametrize("upto", range(6))
def test_every_moment_is_a_prefix(upto: int) -> None:
    state = stamped.judge(written(), after(upto))
    assert state.is_prefix
    assert state.newest == upto
    assert state.has_flushed == (upto >= 3)
    assert state.has_acknowledged == (upto == 5)


def test_a_later_write_without_an_older_one_is_no_prefix() -> None:
    state = stamped.judge(written(), {5: 3, 6: 0, 7: 4})
    assert not state.is_prefix
    assert state.missing == (2,)
    assert state.lost == (2,)
    assert "write 4 is there and 1 older ones are not, the first is 2" in state.prefix_said()
    assert "1 of 3 flushed writes are not there, the first is 2" in state.flushed_said()


def test_what_was_written_over_is_not_missed() -> None:
    assert stamped.judge(written(), {5: 3, 6: 5, 7: 4}).missing == ()
    assert stamped.judge(written(), {5: 1, 6: 5, 7: 4}).missing == (3,)


def test_a_failed_write_may_be_there_or_not() -> None:
    unclear = written(acknowledged=4, failed={5})
    for held in (after(4), after(5)):
        state = stamped.judge(unclear, held)
        assert state.has_acknowledged
        assert state.is_prefix


def test_what_no_write_put_there() -> None:
    for number in (TORN, 4, 9):
        state = stamped.judge(written(), after(5) | {5: number})
        assert state.strange == (5,)
        assert not state.is_prefix
        assert not state.has_flushed
        assert not state.has_acknowledged
        assert "no write put there" in state.flushed_said()


def test_a_reason_is_what_a_program_said_last() -> None:
    said = "['x', '--config', '/some/where'] ended with 2:\n1 level=INFO began\nerror: it is attached elsewhere\n"
    assert correctness.reason(BenchFailed(said)) == "error: it is attached elsewhere"
    assert correctness.reason(BenchFailed("not done within 5 s")) == "not done within 5 s"
    assert len(correctness.reason(BenchFailed("x" * 5000))) <= correctness.SAID_MAX + 1


def test_what_takes_too_long_is_an_error() -> None:
    assert correctness.within(10.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        correctness.within(10.0, lambda: 1 // 0)
    held = threading.Event()
    with pytest.raises(BenchFailed, match="not done within"):
        correctness.within(0.05, held.wait)
    held.set()


def test_a_killed_disk(tmp_path: Path) -> None:
    """Ours: what was flushed is there after SIGKILL, and nothing is mounted any more."""
    if why := disk_file.missing("qemu-storage-daemon", "fusermount"):
        pytest.skip(why)
    log = tmp_path / "store.log"
    store = start([sys.executable, "-m", "bench.store"], log)
    said = io.StringIO()
    try:
        client = Client(int(wait_for_line(log, READY, store).split()[-1]))
        context = Context(tmp_path, client, store.pid, True, (0,), (OURS,), 1, 0.2, lambda text: print(text, file=said))
        asked = correctness.Questions(context, correctness.QUICK)
        found = list(asked.killed_and_kept(table.known(OURS)))
    finally:
        end(store)
    assert [(question, passed) for question, passed, _ in found] == [
        (correctness.KEPT_FLUSHED, True),
        (correctness.KEPT_PREFIX, True),
    ]
    assert "flushed writes are there" in found[0][2]
    assert not any(str(tmp_path) in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
