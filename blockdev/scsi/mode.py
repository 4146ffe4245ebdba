"""Mode pages: what the unit says of its caching, control and error policies (SPC-4, SBC-3).

One rule: nothing can be changed. The current values are the default values, the changeable mask is all zeros, and MODE
SELECT accepts exactly what MODE SENSE reported, so that an initiator which writes back what it read is content.
"""

from struct import pack

from blockdev.scsi.operation import Buffer, Response
from blockdev.scsi.sense import GOOD, Condition, check, invalid_field, invalid_parameter

READ_WRITE_ERROR_RECOVERY = 0x01
CACHING = 0x08
CONTROL = 0x0A
INFORMATIONAL_EXCEPTIONS = 0x1C
ALL_PAGES = 0x3F

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
"""PAGE CONTROL field."""

PAGES: dict[int, tuple[str, bytes]] = {
    READ_WRITE_ERROR_RECOVERY: ("Read-Write Error Recovery", bytes(10)),
    # WCE=1: a write is acknowledged before FLUSH or FUA made it safe against loss of power.
    CACHING: ("Caching", b"\x04" + bytes(17)),
    # GLTSD=1 (no log parameters are saved), QUEUE ALGORITHM MODIFIER=1 (commands may be reordered),
    # D_SENSE=0 (fixed format sense), BUSY TIMEOUT PERIOD=FFFFh (no limit: a full journal may take its time).
    CONTROL: ("Control", b"\x02\x10\x00\x00\x00\x00\xff\xff\x00\x00"),
    # DEXCPT=1: no informational exceptions are reported; failures come with the command they hit.
    INFORMATIONAL_EXCEPTIONS: ("Informational Exceptions Control", b"\x08" + bytes(9)),
}
"""Page code -> name and parameters (without the two bytes of header), in the order they are reported."""
PROVISIONING = 0x02
"""Subpage of INFORMATIONAL_EXCEPTIONS: Logical Block Provisioning (SBC-4), where there is a quota."""

WRITE_PROTECT = 0x80
DPOFUA = 0x10


def device_specific(read_only: bool) -> int:
    """DEVICE-SPECIFIC PARAMETER of a direct access device (SBC-3)."""
    return DPOFUA | (WRITE_PROTECT if read_only else 0)


def _page(code: int, control: int) -> bytes:
    parameters = PAGES[code][1]
    return bytes((code, len(parameters))) + (bytes(len(parameters)) if control == CHANGEABLE else parameters)


def _subpage(code: int, subpage: int, control: int, parameters: bytes) -> bytes:
    header = pack(">BBH", 0x40 | code, subpage, len(parameters))
    return header + (bytes(len(parameters)) if control == CHANGEABLE else parameters)


def _block_descriptor(sector_count: int, sector_bytes: int, *, long: bool) -> bytes:
    if long:
        return pack(">QII", sector_count, 0, sector_bytes)
    return pack(">II", min(sector_count, 0xFFFFFFFF), sector_bytes)


def sense(
    cdb: Buffer, sector_count: int, sector_bytes: int, *, read_only: bool, provisioning: bytes = b""
) -> bytes | Response:
    """Mode parameter data for MODE SENSE(6) or (10), not cut to the allocation length. `provisioning`: parameters of that
    subpage, empty if there is none."""
    ten = cdb[0] == 0x5A
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == SAVED:
        return check(Condition.SAVING_PARAMETERS_NOT_SUPPORTED)
    more = _subpage(INFORMATIONAL_EXCEPTIONS, PROVISIONING, control, provisioning) if provisioning else b""
    if code == ALL_PAGES and subpage in (0x00, 0xFF):
        pages = b"".join(_page(each, control) for each in PAGES) + (more if subpage else b"")
    elif code == INFORMATIONAL_EXCEPTIONS and subpage == PROVISIONING and more:
        pages = more
    elif code == INFORMATIONAL_EXCEPTIONS and subpage == 0xFF:
        pages = _page(code, control) + more
    elif code in PAGES and subpage == 0:
        pages = _page(code, control)
    elif code in PAGES or code == ALL_PAGES:
        return invalid_field(3)
    else:
        return invalid_field(2, 5)
    no_descriptor = cdb[1] & 0x08
    long = ten and bool(cdb[1] & 0x10)
    descriptor = b"" if no_descriptor else _block_descriptor(sector_count, sector_bytes, long=long)
    specific = device_specific(read_only)
    length = len(descriptor) + len(pages)
    if ten:
        return pack(">HBBBBH", 6 + length, 0, specific, long and not no_descriptor, 0, len(descriptor)) + (
            descriptor + pages
        )
    return pack(">BBBB", 3 + length, 0, specific, len(descriptor)) + descriptor + pages


def select(data: Buffer, sector_count: int, sector_bytes: int, *, ten: bool, provisioning: bytes = b"") -> Response:
    """Judge the parameter list of MODE SELECT: GOOD if it says what is so anyway."""
    given = bytes(data)
    header = 8 if ten else 4
    if len(given) < header:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    # MODE DATA LENGTH is reserved here, MEDIUM TYPE must be 0, and the device-specific parameter (WP, DPOFUA)
    # is reserved for MODE SELECT but often sent back as it was read (SBC-3).
    medium_type_at = 2 if ten else 1
    if given[medium_type_at]:
        return invalid_parameter(medium_type_at)
    long = ten and bool(given[4] & 0x01)
    descriptor_length = int.from_bytes(given[6:8], "big") if ten else given[3]
    position = header
    if descriptor_length:
        expected = _block_descriptor(sector_count, sector_bytes, long=long)
        if descriptor_length != len(expected):
            return invalid_parameter(6 if ten else 3)
        descriptor = given[position : position + descriptor_length]
        if len(descriptor) < descriptor_length:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        # A count of zero means "as it is" (SPC-4, mode parameter block descriptors).
        width = 8 if long else 4
        unchanged = not any(descriptor[:width]) or descriptor[:width] == expected[:width]
        if not unchanged:
            return invalid_parameter(position)
        if descriptor[-3:] != expected[-3:]:
            return invalid_parameter(position + descriptor_length - 3)
        position += descriptor_length
    while position < len(given):
        code = given[position] & 0x7F  # PS is reserved in MODE SELECT
        if code in PAGES:
            current, header = _page(code, CURRENT), 2
        elif code == 0x40 | INFORMATIONAL_EXCEPTIONS and provisioning:
            current, header = _subpage(INFORMATIONAL_EXCEPTIONS, PROVISIONING, CURRENT, provisioning), 4
        else:
            return invalid_parameter(position, 5)
        sent = given[position : position + len(current)]
        if len(sent) < header:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        for index in range(1, header):
            if sent[index] != current[index]:
                return invalid_parameter(position + index)
        if len(sent) < len(current):
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        for index in range(header, len(current)):
            if sent[index] != current[index]:
                return invalid_parameter(position + index, (sent[index] ^ current[index]).bit_length() - 1)
        position += len(current)
    return GOOD
