"""Netlink messages: ours as the kernel reads them, the kernel's as they come."""

import contextlib
import sys
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.tcmu import netlink
from blockdev.tcmu.names import device_config, volume_of
from blockdev.tcmu.netlink import Command, Event, Family, Message, NetlinkError


def attribute(kind: int, data: bytes) -> bytes:
    return pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: int, body: bytes, sequence: int = 0) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


ADDED = attribute(1, b"tcm-user/0/vm1/bucketworks/vm1\0") + attribute(2, pack("=I", 3)) + attribute(8, pack("=I", 12))


def test_an_event() -> None:
    (found,) = netlink.messages(message(30, pack("=BBH", 1, 2, 0) + ADDED))
    event = netlink.decode_event(found)
    assert event == Event(Command.ADDED, "tcm-user/0/vm1/bucketworks/vm1", 3, 12)
    assert event is not None
    assert event.reply is Command.ADDED_DONE


def test_a_new_size() -> None:
    body = pack("=BBH", 3, 2, 0) + ADDED + attribute(5, pack("=Q", 1 << 40)) + attribute(4, b"bucketworks/vm2\0")
    event = netlink.decode_event(Message(30, 0, body))
    assert event is not None
    assert (event.size_bytes, event.config, event.reply) == (1 << 40, "bucketworks/vm2", Command.RECONFIG_DONE)


def test_what_is_no_event() -> None:
    assert netlink.decode_event(Message(30, 0, pack("=BBH", 7, 2, 0))) is None


def test_the_family_and_its_group() -> None:
    groups = b"".join(
        attribute(1 + index, attribute(1, name + b"\0") + attribute(2, pack("=I", number)))
        for index, (name, number) in enumerate([(b"other", 4), (b"config", 9)])
    )
    body = pack("=BBH", 1, 2, 0) + attribute(1, pack("=H", 30)) + attribute(2, b"TCM-USER\0") + attribute(7, groups)
    assert netlink.decode_family(Message(16, 1, body)) == Family(30, 9)
    with pytest.raises(NetlinkError, match="lacks"):
        netlink.decode_family(Message(16, 1, body[:12]))
    with pytest.raises(NetlinkError, match="no group"):
        netlink.decode_family(Message(16, 1, body.replace(b"config", b"confix")))


def test_requests_as_the_kernel_reads_them() -> None:
    request = netlink.done(30, 5, Command.ADDED_DONE, 12, -19)
    length, kind, flags, sequence, _ = unpack_from("=IHHII", request)
    assert (length, kind, flags, sequence) == (len(request), 30, 5, 5)
    assert unpack_from("=BB", request, 16) == (4, 2)
    assert request[20:] == attribute(7, pack("=i", -19)) + attribute(8, pack("=I", 12))
    assert netlink.set_features(30, 1).endswith(attribute(9, b"\1"))
    assert netlink.find_family(1).endswith(attribute(2, b"TCM-USER\0"))


def test_acknowledgements_and_errors() -> None:
    two = message(2, pack("=i", 0), 4) + message(2, pack("=i", -2), 5)
    first, second = netlink.messages(two)
    assert (netlink.error_number(first), netlink.error_number(second)) == (0, 2)
    assert second.sequence == 5


@given(st.binary(max_size=200))
def test_any_datagram_parses_or_is_refused(datagram: bytes) -> None:
    try:
        for each in netlink.messages(datagram):
            netlink.decode_event(each)
            netlink.error_number(each)
            netlink.decode_family(each)
    except NetlinkError:
        pass


@given(st.binary(max_size=60))
def test_any_attributes_parse_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(NetlinkError):
        netlink.decode_event(Message(30, 0, pack("=BBH", 1, 2, 0) + body))


def test_names() -> None:
    assert sys.byteorder in ("little", "big")
    assert device_config("vm1") == "bucketworks/vm1"
    assert volume_of("tcm-user/0/anything/bucketworks/vm1\n") == "vm1"
    assert volume_of("tcm-user/0/anything/file/vm1") is None
    assert volume_of("some other uio device") is None
    assert volume_of("tcm-user/0/anything/bucketworks") is None
