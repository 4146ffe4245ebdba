"""The hot paths against their budgets, and the counting itself."""

import os
import threading
import warnings
from pathlib import Path

import pytest

from bench.counting import Tally, bytecodes, memory, system_calls
from s3core.signing import encode_key
from tests.guard.budget import PYTHON, Table, compare, load, measure, write
from tests.guard.operations import OPERATIONS, Operation

NAMES = [operation.name for operation in OPERATIONS]


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_an_operation_stays_within_its_budget(operation: Operation) -> None:
    table = load()
    if table.python != PYTHON:
        print(f"bytecodes and memory are not compared: the table is of Python {table.python}, this is {PYTHON}")
    rose, fell = compare(operation.name, measure(operation), table)
    for line in fell:
        warnings.warn(line, stacklevel=1)
    assert not rose, "\n".join(rose)


def test_the_table_has_nothing_that_is_not_measured() -> None:
    assert set(load().rows) == set(NAMES)


def test_bytecodes_are_the_same_each_time_and_grow_with_the_work() -> None:
    def counted(times: int) -> int:
        tally = Tally()
        with bytecodes(tally):
            for _ in range(times):
                encode_key("a/b c")
        return tally.bytecodes

    counted(1)
    one, two = counted(1), counted(2)
    assert one == counted(1) > 0
    assert two == 2 * one


def test_threads_that_begin_meanwhile_are_counted_too() -> None:
    alone, both = Tally(), Tally()
    with bytecodes(alone):
        encode_key("a/b c")
    with bytecodes(both):
        thread = threading.Thread(target=encode_key, args=("a/b c",))
        thread.start()
        thread.join()
    assert both.bytecodes >= alone.bytecodes > 0


def test_system_calls_are_counted_by_name(tmp_path: Path) -> None:
    tally = Tally()
    with system_calls(tally):
        number = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
        os.pwrite(number, b"x", 0)
        os.pwrite(number, b"y", 1)
        os.close(number)
        os.fspath(tmp_path)
    assert dict(tally.calls) == {"open": 1, "pwrite": 2, "close": 1}
    assert tally.system_calls == 4


def test_memory_is_the_most_that_was_held() -> None:
    tally = Tally()
    with memory(tally):
        held = bytearray(1_000_000)
        del held
        bytearray(10_000)
    assert 1_000_000 <= tally.peak_bytes < 1_100_000


def test_what_rises_fails_and_what_falls_asks() -> None:
    table = Table(PYTHON, {"x": {"bytecodes": (105, 100), "system_calls": (3.2, 3), "peak_bytes": (9000, 8000)}})
    assert compare("x", {"bytecodes": 105, "system_calls": 3, "peak_bytes": 9000}, table) == ([], [])
    rose, fell = compare("x", {"bytecodes": 106, "system_calls": 2, "peak_bytes": 7500}, table)
    assert rose == ["x: bytecodes 106, budget 105 (was 100)"]
    assert [line.split(",")[0] for line in fell] == ["x: system_calls 2"]
    assert compare("y", {}, table)[0]
    assert compare("x", {"bytecodes": 999}, table, python="3.0") == ([], []), "another Python has other bytecodes"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    counts = {name: {"bytecodes": 1234567.5, "system_calls": 0.09, "peak_bytes": 1e6} for name in NAMES}
    write(OPERATIONS, counts, tmp_path / "t.toml")
    kept = load(tmp_path / "t.toml")
    assert kept.rows[NAMES[0]]["bytecodes"] == (1296296, 1234567.5)
    assert all(not compare(name, counts[name], kept)[0] for name in NAMES)
