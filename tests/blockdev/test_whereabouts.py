"""Which processes of a fence record are surely dead: real processes, and whatever is no proof."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from blockdev.engine.whereabouts import AFTER, here, started_at, surely_dead, whereabouts


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_living_process_is_not_dead(child: "subprocess.Popen[bytes]") -> None:
    assert not surely_dead(here(os.getpid(), child.pid))


def test_dead_once_all_have_ended_reaped_or_not(child: "subprocess.Popen[bytes]") -> None:
    note = here(child.pid)
    child.kill()
    # Not reaped yet: a zombie acknowledges nothing.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert surely_dead(note)
    assert not surely_dead(note | {"processes": note["processes"] + here(os.getpid())["processes"]})
    child.wait()
    assert surely_dead(note)


def test_a_number_given_out_again_is_another_process() -> None:
    note = here(os.getpid())
    assert surely_dead(note | {"processes": [[os.getpid(), started_at(os.getpid()) - 1]]})


@pytest.mark.parametrize("member", ["boot", "pid_namespace", "processes"])
def test_anything_less_is_no_proof(child: "subprocess.Popen[bytes]", member: str) -> None:
    note = here(child.pid)
    child.kill()
    child.wait()
    assert not surely_dead({key: value for key, value in note.items() if key != member})
    assert not surely_dead(note | {member: [] if member == "processes" else "another"})


def test_the_one_before_counts_as_well(child: "subprocess.Popen[bytes]") -> None:
    dead = here(child.pid)
    child.kill()
    child.wait()
    assert surely_dead(dead | {AFTER: whereabouts(dead)})
    assert not surely_dead(dead | {AFTER: here(os.getpid())})
    assert not surely_dead(dead | {AFTER: {}})
