"""Who the logical unit is: standard INQUIRY data and the vital product data pages (SPC-4, SBC-3).

One rule: everything that names the unit is drawn from the volume's identity, so a fail-over or a restore keeps every
name and a clone has others. Pure functions of their arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import pack
from uuid import UUID

from blockdev.scsi import commands
from blockdev.scsi.limits import COPY_DESCRIPTORS, Limits
from blockdev.scsi.ports import Port

_LOCAL_OUI = 0x024B57
"""Company identifier of the NAA name. It has the locally administered bit (02h in the first octet) set, so it
belongs to no vendor and can never be assigned to one; 100 bits of the volume's UUID make the name unique."""

VERSION_SPC_4 = 0x06
_VERSION_DESCRIPTORS = (0x00A0, 0x0960, 0x0460, 0x04C0)
"""SAM-5, iSCSI, SPC-4, SBC-3, each with no version claimed (SPC-4, version descriptor values)."""
_THIN = 2


@dataclass(frozen=True, slots=True)
class Unit:
    """What INQUIRY tells about a logical unit. `through` is the one of its `ports` that the question came through (SPC-4,
    Device Identification VPD page)."""

    identity: UUID
    vendor: str
    product: str
    revision: str
    sector_bytes: int
    limits: Limits
    ports: tuple[Port, ...]
    through: Port
    threshold_exponent: int = 0
    """0: there are no thresholds."""

    @property
    def serial(self) -> str:
        return self.identity.hex


def naa(identity: UUID) -> bytes:
    """NAA IEEE Registered Extended (6h): 16 bytes, SPC-4, NAA designator format."""
    return (0x6 << 124 | _LOCAL_OUI << 100 | identity.int & (1 << 100) - 1).to_bytes(16, "big")


def padded(text: str, width: int) -> bytes:
    """Left-aligned ASCII data field (SPC-4): graphic characters and spaces, cut or filled to `width`."""
    clean = "".join(character if " " <= character <= "~" else "?" for character in text)
    return clean[:width].ljust(width).encode("ascii")


def standard(unit: Unit) -> bytes:
    """96 bytes: direct access, not removable, ALUA, command queuing."""
    data = bytearray(96)
    data[2] = VERSION_SPC_4
    data[3] = 0x12  # HISUP, response data format 2
    data[4] = len(data) - 5
    data[5] = 0x30 | 0x08  # TPGS=11b: SET TARGET PORT GROUPS is known, too; 3PC: EXTENDED COPY is
    data[7] = 0x02  # CMDQUE
    data[8:16] = padded(unit.vendor, 8)
    data[16:32] = padded(unit.product, 16)
    data[32:36] = padded(unit.revision, 4)
    data[58:66] = pack(">4H", *_VERSION_DESCRIPTORS)
    return bytes(data)


def absent() -> bytes:
    """Standard INQUIRY data for a LUN where nothing is and nothing can be (qualifier 011b, type 1Fh)."""
    data = bytearray(36)
    data[0] = 0x7F
    data[2] = VERSION_SPC_4
    data[3] = 0x12
    data[4] = len(data) - 5
    data[8:36] = b" " * 28
    return bytes(data)


def _supported_pages(unit: Unit) -> bytes:
    return bytes(sorted(PAGES))


def _serial_number(unit: Unit) -> bytes:
    return unit.serial.encode("ascii")


def _descriptor(code_set: int, association: int, kind: int, value: bytes) -> bytes:
    return bytes((code_set, association << 4 | kind, 0, len(value))) + value


def _identification(unit: Unit) -> bytes:
    binary, ascii_text = 1, 2
    of_unit, of_port = 0, 1
    return (
        _descriptor(binary, of_unit, 3, naa(unit.identity))
        + _descriptor(ascii_text, of_unit, 1, padded(unit.vendor, 8) + unit.serial.encode("ascii"))
        + _descriptor(binary, of_port, 4, pack(">HH", 0, unit.through.identifier))
        + _descriptor(binary, of_port, 5, pack(">HH", 0, unit.through.group))
        + _port_name(unit.through)
        + (_name_string(_OF_DEVICE, unit.through.device_name) if unit.through.name else b"")
    )


_OF_PORT, _OF_DEVICE = 1, 2
_ISCSI = 5


def _name_string(association: int, name: str) -> bytes:
    """SCSI name string (SPC-4 7.8.6.11), of the iSCSI protocol: UTF-8, null-terminated, padded to four bytes."""
    value = name.encode("utf-8") + b"\0"
    value += bytes(-len(value) % 4)
    return bytes((_ISCSI << 4 | 3, 0x80 | association << 4 | 8, 0, len(value))) + value


def _port_name(port: Port) -> bytes:
    return _name_string(_OF_PORT, port.name) if port.name else b""


def _scsi_ports(unit: Unit) -> bytes:
    """SPC-4 7.8.15; no initiator ports."""
    return b"".join(
        pack(">HHHHHH", 0, port.identifier, 0, 0, 0, len(_port_name(port))) + _port_name(port) for port in unit.ports
    )


def _extended(unit: Unit) -> bytes:
    body = bytearray(60)
    body[1] = 0x07  # SIMPSUP, ORDSUP and HEADSUP: task attributes are accepted (commands run in order of arrival)
    body[2] = 0x01  # V_SUP: there is a cache that a power loss empties, and it can be flushed
    return bytes(body)


def _block_limits(unit: Unit) -> bytes:
    limits, size = unit.limits, unit.sector_bytes
    return pack(
        ">BBHIIIIIIIQIIIII",
        0x01,  # WSNZ: WRITE SAME with a count of zero is refused rather than meaning "to the end"
        limits.sectors(limits.compare_and_write_bytes, size, 0xFF),
        limits.sectors(limits.granularity_bytes, size, 0xFFFF),
        limits.sectors(limits.transfer_bytes, size),
        limits.sectors(limits.optimal_transfer_bytes, size),
        limits.sectors(limits.transfer_bytes, size),
        limits.unmap_sectors,
        limits.unmap_descriptors,
        limits.sectors(limits.unmap_granularity_bytes, size),
        0x80000000,  # UGAVALID, alignment 0
        limits.sectors(limits.write_same_bytes, size, 0xFFFFFFFFFFFFFFFF),
        limits.sectors(limits.atomic_write_bytes, size, 0xFFFF),
        0,  # atomic writes of any alignment
        0,  # and any length
        0,  # no atomic boundary
        0,
    )


def _characteristics(unit: Unit) -> bytes:
    body = bytearray(60)
    body[1] = 0x01  # medium rotation rate 0001h: does not rotate
    return bytes(body)


def _provisioning(unit: Unit) -> bytes:
    # LBPU, LBPWS, LBPWS10: UNMAP and both WRITE SAMEs discard. LBPRZ=001b: discarded space reads as zeros.
    return bytes((unit.threshold_exponent, 0x80 | 0x40 | 0x20 | 0x04, _THIN, 0))


def _copy_descriptor(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return pack(">HH", kind, len(body)) + body


def _third_party_copy(unit: Unit) -> bytes:
    """SPC-4 7.8.17. There is no descriptor of tokens: Windows does not try
    ODX then."""
    limits = unit.limits
    by_code: dict[int, list[int]] = {}
    for row in commands.COMMANDS:
        if row.handler in ("extended_copy", "receive_copy_results") and row.service_action is not None:
            by_code.setdefault(row.opcode, []).append(row.service_action)
    supported = b"".join(bytes((code, len(actions), *actions)) for code, actions in sorted(by_code.items()))
    general = pack(
        ">IIIBB",
        limits.copies_at_once,
        limits.copies_at_once,
        limits.copy_segment_bytes,
        unit.sector_bytes.bit_length() - 1,
        0,
    )
    return (
        _copy_descriptor(0x0001, bytes((len(supported),)) + supported)
        + _copy_descriptor(
            0x0004,
            pack(">xxxxHHII", limits.copy_targets, limits.copy_segments, limits.copy_list_bytes, 0) + bytes(12),
        )
        + _copy_descriptor(0x0008, bytes((len(COPY_DESCRIPTORS),)) + bytes(COPY_DESCRIPTORS))
        + _copy_descriptor(0x000C, pack(">H", 0))
        + _copy_descriptor(0x8001, general + bytes(18))
    )


PAGES: dict[int, tuple[str, Callable[[Unit], bytes]]] = {
    0x00: ("Supported VPD Pages", _supported_pages),
    0x80: ("Unit Serial Number", _serial_number),
    0x83: ("Device Identification", _identification),
    0x86: ("Extended INQUIRY Data", _extended),
    0x88: ("SCSI Ports", _scsi_ports),
    0x8F: ("Third-party Copy", _third_party_copy),
    0xB0: ("Block Limits", _block_limits),
    0xB1: ("Block Device Characteristics", _characteristics),
    0xB2: ("Logical Block Provisioning", _provisioning),
}
"""Page code -> name and body (without the four bytes of header)."""


def page(code: int, unit: Unit) -> bytes | None:
    """A vital product data page with its header, or None if there is no such page."""
    entry = PAGES.get(code)
    if entry is None:
        return None
    body = entry[1](unit)
    return pack(">BBH", 0, code, len(body)) + body
