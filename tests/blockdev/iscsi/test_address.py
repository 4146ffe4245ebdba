"""Which addresses an initiator is told."""

import pytest

from blockdev.iscsi.address import Address, told

ANY4, ANY6, LOOP = Address("0.0.0.0"), Address("::"), Address("127.0.0.1")
STORAGE_A, STORAGE_B = Address("10.0.0.1"), Address("10.0.1.1", 3261)
LINK = Address("fe80::1")


@pytest.mark.parametrize(
    ("listening", "came_to", "expected"),
    [
        # A wildcard is what the initiator came to.
        ([(ANY4, 1)], (STORAGE_A, 1), ["10.0.0.1:3260,1"]),
        ([(ANY4, 1), (ANY6, 2)], (STORAGE_A, 1), ["10.0.0.1:3260,1"]),
        ([(ANY4, 1), (ANY6, 2)], (Address("2001:db8::5"), 2), ["[2001:db8::5]:3260,2"]),
        # Every portal, whichever was come to.
        ([(STORAGE_A, 1), (STORAGE_B, 2)], (STORAGE_A, 1), ["10.0.0.1:3260,1", "10.0.1.1:3261,2"]),
        ([(STORAGE_A, 1), (STORAGE_B, 2)], (STORAGE_B, 2), ["10.0.0.1:3260,1", "10.0.1.1:3261,2"]),
        # 127.0.0.1 is another machine to an initiator elsewhere.
        ([(LOOP, 1), (STORAGE_A, 2)], (STORAGE_A, 2), ["10.0.0.1:3260,2"]),
        ([(LOOP, 1), (STORAGE_A, 2)], (LOOP, 1), ["127.0.0.1:3260,1", "10.0.0.1:3260,2"]),
        ([(LINK, 1), (STORAGE_A, 2)], (STORAGE_A, 2), ["10.0.0.1:3260,2"]),
        ([(LINK, 1), (STORAGE_A, 2)], (LINK, 1), ["[fe80::1]:3260,1", "10.0.0.1:3260,2"]),
        # Both a wildcard and an address: the same portal once.
        ([(STORAGE_A, 1), (Address("0.0.0.0", 3261), 2)], (STORAGE_B, 2), ["10.0.0.1:3260,1", "10.0.1.1:3261,2"]),
    ],
)
def test_listening(listening: list[tuple[Address, int]], came_to: tuple[Address, int], expected: list[str]) -> None:
    assert told(listening, (), came_to) == expected


def test_advertised_takes_the_place_of_what_is_listened_on() -> None:
    outside = (Address("disk.example.com"), Address("203.0.113.9", 13260))
    assert told([(ANY4, 1)], outside, (STORAGE_A, 1)) == ["disk.example.com:3260,1", "203.0.113.9:13260,1"]
    listening = [(STORAGE_A, 1), (STORAGE_B, 2)]
    assert told(listening, outside, (STORAGE_A, 1)) == ["disk.example.com:3260,1", "203.0.113.9:13260,2"]
    # A name that resolved to two sockets is one portal group still.
    listening = [(LOOP, 1), (Address("::1"), 1), (STORAGE_B, 2)]
    assert told(listening, outside, (LOOP, 1)) == ["disk.example.com:3260,1", "203.0.113.9:13260,2"]


def test_there_is_always_one() -> None:
    assert told([(LOOP, 1)], (), (STORAGE_A, 1)) == ["10.0.0.1:3260,1"]
