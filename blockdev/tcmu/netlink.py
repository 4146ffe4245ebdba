"""Generic netlink of the family TCM-USER, as bytes and values: the kernel tells when a device comes, goes or changes.

One rule: pure. Requests are made here and datagrams taken apart; the socket is `handler.py`'s. Numbers are the machine's own
byte order, attributes are padded to four bytes (include/uapi/linux/netlink.h, genetlink.h, target_core_user.h).

Replies: a handler that said so by SET_FEATURES is waited for. Whoever wrote `enable` (or a new size) then sleeps,
uninterruptibly, until `*_DONE` comes: answer every event of one's own devices, failures too.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

FAMILY = "TCM-USER"
GROUP = "config"
VERSION = 2

GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
_CTRL_VERSION = 1
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME, _CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2

NLMSG_ERROR = 2
_REQUEST, _ACK = 1, 4

_MESSAGE = Struct("=IHHII")
_GENERIC = Struct("=BBH")
_ATTRIBUTE = Struct("=HH")
_ERROR = Struct("=i")
_TYPE_MASK = 0x3FFF
"""Of an attribute's type: the two high bits say nested and network byte order."""


class Command(IntEnum):
    """`enum tcmu_genl_cmd`."""

    ADDED = 1
    REMOVED = 2
    RECONFIG = 3
    ADDED_DONE = 4
    REMOVED_DONE = 5
    RECONFIG_DONE = 6
    SET_FEATURES = 7


class Attribute(IntEnum):
    """`enum tcmu_genl_attr`."""

    DEVICE = 1
    MINOR = 2
    DEV_CFG = 4
    DEV_SIZE = 5
    WRITECACHE = 6
    CMD_STATUS = 7
    DEVICE_ID = 8
    SUPP_KERN_CMD_REPLY = 9


class NetlinkError(ValueError):
    """A datagram that does not parse."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message: its type (a family's number, or NLMSG_ERROR), its sequence number and what it carries."""

    kind: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Family:
    number: int
    group: int
    """The multicast group to join for events."""


@dataclass(frozen=True, slots=True)
class Event:
    """The kernel tells of a device. `config` and `size_bytes`: of RECONFIG, what changes to what."""

    command: Command
    uio_name: str
    minor: int
    device_id: int
    config: str | None = None
    size_bytes: int | None = None

    @property
    def reply(self) -> Command:
        return Command(self.command + 3)


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            raise NetlinkError(f"an attribute of {length} bytes at {at} of {len(data)}")
        found[kind & _TYPE_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
    return found


def _request(kind: int, sequence: int, command: int, version: int, attributes: bytes) -> bytes:
    body = _GENERIC.pack(command, version, 0) + attributes
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, _REQUEST | _ACK, sequence, 0) + body


def find_family(sequence: int) -> bytes:
    """The request for the family's number and group (`decode_family` reads the answer). Its error is -ENOENT where the module
    target_core_user is not loaded."""
    name = _attribute(_CTRL_ATTR_FAMILY_NAME, FAMILY.encode() + b"\0")
    return _request(GENL_ID_CTRL, sequence, CTRL_CMD_GETFAMILY, _CTRL_VERSION, name)


def set_features(family: int, sequence: int) -> bytes:
    """The request by which this handler says that it answers events. It holds for the whole module, and on after our end."""
    answers = _attribute(Attribute.SUPP_KERN_CMD_REPLY, b"\1")
    return _request(family, sequence, Command.SET_FEATURES, VERSION, answers)


def done(family: int, sequence: int, command: Command, device_id: int, status: int) -> bytes:
    """The answer to an event; `status` 0, or a negative errno with which the writer's call then fails. Its own error is
    -ENODEV where nobody waits."""
    attributes = _attribute(Attribute.CMD_STATUS, _ERROR.pack(status))
    attributes += _attribute(Attribute.DEVICE_ID, device_id.to_bytes(4, sys.byteorder))
    return _request(family, sequence, command, VERSION, attributes)


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram. Raises NetlinkError."""
    at = 0
    while at + _MESSAGE.size <= len(datagram):
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(datagram, at)
        if length < _MESSAGE.size or at + length > len(datagram):
            raise NetlinkError(f"a message of {length} bytes at {at} of {len(datagram)}")
        yield Message(kind, sequence, datagram[at + _MESSAGE.size : at + length])
        at += length + -length % 4


def error_number(message: Message) -> int:
    """Of an NLMSG_ERROR: 0 for an acknowledgement, else the errno."""
    if len(message.body) < _ERROR.size:
        raise NetlinkError("an error message without a number")
    return -int(_ERROR.unpack_from(message.body)[0])


def decode_family(message: Message) -> Family:
    """Raises NetlinkError when the answer lacks the number or the group."""
    found = _attributes(message.body[_GENERIC.size :])
    try:
        number = int.from_bytes(found[_CTRL_ATTR_FAMILY_ID], sys.byteorder)
        for each in _attributes(found[_CTRL_ATTR_MCAST_GROUPS]).values():
            group = _attributes(each)
            if group[_GROUP_NAME].rstrip(b"\0") == GROUP.encode():
                return Family(number, int.from_bytes(group[_GROUP_ID], sys.byteorder))
    except KeyError as missing:
        raise NetlinkError(f"the answer about {FAMILY} lacks attribute {missing}") from missing
    raise NetlinkError(f"{FAMILY} has no group {GROUP}")


def decode_event(message: Message) -> Event | None:
    """The event in a message of the family; None for commands that are no events. Raises NetlinkError."""
    if len(message.body) < _GENERIC.size:
        raise NetlinkError("a message without its generic header")
    command = message.body[0]
    if command not in (Command.ADDED, Command.REMOVED, Command.RECONFIG):
        return None
    found = _attributes(message.body[_GENERIC.size :])
    try:
        name = found[Attribute.DEVICE].rstrip(b"\0").decode("utf-8", "surrogateescape")
        minor = int.from_bytes(found[Attribute.MINOR], sys.byteorder)
        # Kernels before 4.15 knew no replies, and no device identifiers either.
        device_id = int.from_bytes(found.get(Attribute.DEVICE_ID, b""), sys.byteorder)
    except KeyError as missing:
        raise NetlinkError(f"an event without attribute {missing}") from missing
    config = found.get(Attribute.DEV_CFG)
    size = found.get(Attribute.DEV_SIZE)
    return Event(
        Command(command),
        name,
        minor,
        device_id,
        None if config is None else config.rstrip(b"\0").decode("utf-8", "surrogateescape"),
        None if size is None else int.from_bytes(size, sys.byteorder),
    )
