"""A simulated machine without a console: it stands there and says why, and its buttons work."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from envctl.fake_pve.guest import _AGENT, SimulatedGuests, fill_home, work_in
from envctl.fake_pve.machines import Running


def running(power_off: Callable[[], None], *, vmid: int = 90_000, boot: int = 1, serial: str = "") -> Running:
    return Running(
        vmid=vmid,
        node="pve1",
        name="work",
        uuid="0b4f4f9e-29cf-4c7b-8f0c-6f1c6a1d9a11",
        serial=serial,
        cores=1,
        memory_mib=512,
        disk_gib=8,
        boot=boot,
        fresh=boot == 1,
        power_off=power_off,
    )


def test_a_machine_without_a_seed_says_so_and_obeys_its_power_button(tmp_path: Path) -> None:
    guests = SimulatedGuests(tmp_path)
    off = threading.Event()
    (tmp_path / "90000" / "root" / "home" / "old").mkdir(parents=True)
    guest = guests(running(off.set, serial="ds=nocloud;dsmode=net;s=http://127.0.0.1:9/seed/x/"))
    end = time.monotonic() + 30
    while not any("no seed" in line for line in guest.lines()):
        assert time.monotonic() < end, guest.lines()
        time.sleep(0.01)
    assert not (guest.root / "home" / "old").exists(), "a new clone has a new disk"
    (guest.root / "home" / "kept").mkdir()
    assert guests.guest(90_000) is guest
    guest.press_power_button()
    guest.press_power_button()
    assert off.wait(30)
    assert (guest.is_on, guest.address) == (False, "")

    again = guests(running(off.set, boot=2))
    assert (again.root / "home" / "kept").exists(), "the same machine started again has its disk"
    guests.close()
    assert not again.is_on


def test_an_agent_ends_with_the_process_that_plays_its_machine(tmp_path: Path) -> None:
    read, write = os.pipe()
    folders = [f"--{name}={tmp_path / name}" for name in ("etc", "state", "run", "base")]
    for name in ("etc", "state", "run", "base"):
        (tmp_path / name).mkdir()
    process = subprocess.Popen([sys.executable, "-c", _AGENT, *folders, "run"], stdin=read, stderr=subprocess.DEVNULL)
    os.close(read)
    try:
        time.sleep(0.2)
        assert process.poll() is None, "it waits for a seed"
        os.close(write)
        assert process.wait(30) == 1
    finally:
        process.kill()
        process.wait()


def test_a_home_is_the_same_for_the_same_name_and_changes_as_people_change_it(tmp_path: Path) -> None:
    def content(home: Path) -> dict[str, bytes]:
        return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}

    for place in ("one", "two"):
        fill_home(tmp_path / place, "alice-work")
    fill_home(tmp_path / "three", "bob-work")
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "two")
    assert one != content(tmp_path / "three")
    drawn = random.Random(1)
    for turn in range(1, 11):
        work_in(tmp_path / "one", drawn, turn, 1_700_000_000.0 + turn)
    now = content(tmp_path / "one")
    assert set(now) - set(one) == {"work.log", "data/run-0006.csv", "data/run-0009.csv"}
    assert now["work.log"].count(b"\n") == 10
    work_in(tmp_path / "nowhere", drawn, 1, 0.0)
    assert not (tmp_path / "nowhere").exists()
