"""Persistent reservations of a real volume: through a kill, to another host, past a rollback, and not into a clone. And the
names of the disk on the way: the same wherever the volume is served, others for a clone."""

import struct
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import Server, create, s3block
from tests.system.raw_initiator import GOOD, UNIT_ATTENTION, Answer, RawInitiator

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

REGISTER, RESERVE, REGISTER_ANYWAY = 0x00, 0x01, 0x06
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x05
APTPL = 0x01
RESERVATION_CONFLICT = 0x18
KEY = 0x1122334455667788


def again(disk: RawInitiator, cdb: bytes, data: bytes = b"", *, expected: int = 0) -> Answer:
    """Once more after a unit attention."""
    for _ in range(4):
        answer = disk.wait(disk.send(cdb, data, expected=expected))
        if answer.status == GOOD or answer.sense[0] != UNIT_ATTENTION:
            return answer
    raise AssertionError("one unit attention after the other")


def reserve(disk: RawInitiator, action: int, key: int, new_key: int = 0, flags: int = 0, kind: int = 0) -> None:
    data = struct.pack(">QQ4xB3x", key, new_key, flags)
    answer = again(disk, struct.pack(">BBBxxIx", 0x5F, action, kind, len(data)), data)
    assert answer.status == GOOD, answer


def keys(disk: RawInitiator) -> list[int]:
    data = again(disk, struct.pack(">BB5xHx", 0x5E, 0, 512), expected=512).data
    (length,) = struct.unpack_from(">I", data, 4)
    return [key for (key,) in struct.iter_unpack(">Q", data[8 : 8 + length])]


def holder(disk: RawInitiator) -> tuple[int, int] | None:
    data = again(disk, struct.pack(">BB5xHx", 0x5E, 1, 512), expected=512).data
    if not struct.unpack_from(">I", data, 4)[0]:
        return None
    return struct.unpack_from(">Q", data, 8)[0], data[21] & 0x0F


def names(disk: RawInitiator) -> tuple[bytes, bytes]:
    """NAA designator and serial number."""
    page = again(disk, bytes((0x12, 1, 0x83, 0, 255, 0)), expected=255).data
    assert page[4:8] == bytes((1, 3, 0, 16))
    return page[8:24], again(disk, bytes((0x12, 1, 0x80, 0, 255, 0)), expected=255).data


def test_kept_with_aptpl_until_it_is_given_up(file_place: Place, tmp_path: Path) -> None:
    volume = file_place.volume
    create(volume, size="64M")
    with Server(tmp_path, volume) as one:
        one.start()
        disk = RawInitiator(one.url)
        reserve(disk, REGISTER, 0, KEY, APTPL)
        reserve(disk, RESERVE, KEY, kind=WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
        called = names(disk)
        one.kill()
        one.start()
        disk = RawInitiator(one.url)
        assert (keys(disk), holder(disk)) == ([KEY], (KEY, WRITE_EXCLUSIVE_REGISTRANTS_ONLY)), "after a kill"
        assert names(disk) == called
        assert one.stop() == 0
    assert s3block("snapshot", "create", volume, "before", "--state-dir", str(tmp_path / "state")).code == 0
    with Server(tmp_path, volume, state="other") as two:
        two.start()
        disk = RawInitiator(two.url)
        assert (keys(disk), holder(disk)) == ([KEY], (KEY, WRITE_EXCLUSIVE_REGISTRANTS_ONLY)), "on another host"
        assert names(disk) == called
        reserve(disk, REGISTER_ANYWAY, 0, KEY + 1, APTPL)
        assert two.stop() == 0
        rolled = s3block("rollback", volume, "before", "--yes", "--state-dir", str(two.state))
        assert rolled.code == 0, rolled.err
        two.start()
        disk = RawInitiator(two.url)
        assert keys(disk) == [KEY + 1], "a rollback changes content, not who may write it"
        reserve(disk, REGISTER, KEY + 1, KEY + 1)
        two.kill()
        two.start()
        assert keys(RawInitiator(two.url)) == [], "given up with APTPL=0"
        assert two.stop() == 0


def test_a_clone_has_other_names_and_no_reservations(file_place: Place, tmp_path: Path) -> None:
    volume = file_place.volume
    create(volume, size="64M")
    with Server(tmp_path, volume) as server:
        server.start()
        disk = RawInitiator(server.url)
        reserve(disk, REGISTER, 0, KEY, APTPL)
        called = names(disk)
        assert server.stop() == 0
    assert s3block("snapshot", "create", volume, "s", "--state-dir", str(tmp_path / "state")).code == 0
    clone = f"{volume}-clone"
    made = s3block("clone", volume, "s", clone)
    assert made.code == 0, made.err
    with Server(tmp_path, clone, state="clone") as server:
        server.start()
        disk = RawInitiator(server.url)
        assert keys(disk) == []
        naa, serial = names(disk)
        assert naa != called[0]
        assert serial != called[1]
        assert server.stop() == 0
