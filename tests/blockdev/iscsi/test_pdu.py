"""Headers: one table of layouts, packed and unpacked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.iscsi.pdu import (
    BHS_BYTES,
    HEADER,
    LAYOUTS,
    Opcode,
    lun_field,
    lun_number,
    pack,
    pack_fields,
    padding,
    serial_less,
    unpack,
)


def test_every_opcode_has_a_layout_of_the_right_size() -> None:
    assert set(LAYOUTS) == set(Opcode)
    for opcode, names in LAYOUTS.items():
        assert len(names) == (9 if opcode is Opcode.SCSI_COMMAND else 12), opcode


@given(
    st.sampled_from([opcode for opcode in Opcode if opcode is not Opcode.SCSI_COMMAND]),
    st.binary(min_size=48, max_size=48),
)
def test_unpack_and_pack_are_stable(opcode: Opcode, junk: bytes) -> None:
    header = bytes((opcode,)) + junk[1:]
    fields = unpack(header)
    for name in ("opcode", "length"):
        del fields[name]
    flags, immediate = fields.pop("flags"), bool(fields.pop("immediate"))
    again = pack_fields(opcode, flags, fields, immediate=immediate)
    assert unpack(again) == unpack(header)
    assert len(again) == BHS_BYTES


def test_fields_lie_where_the_rfc_puts_them() -> None:
    """RFC 7143 11.3: ITT at 16, expected length at 20, CmdSN at 24, CDB at 32; 11.8: offset at 40, desired at 44."""
    command = pack(
        Opcode.SCSI_COMMAND, 0xC1, lun=1 << 48, itt=0x11121314, expected_length=512, cmd_sn=7, cdb=bytes(range(16))
    )
    assert command[:2] == b"\x01\xc1"
    assert command[8:16] == b"\0\1" + bytes(6)
    assert command[16:20] == b"\x11\x12\x13\x14"
    assert command[20:28] == bytes((0, 0, 2, 0, 0, 0, 0, 7))
    assert command[32:] == bytes(range(16))
    r2t = pack(Opcode.R2T, ttt=5, offset=0x1000, desired=0x2000)
    assert (r2t[20:24], r2t[40:44], r2t[44:]) == (bytes((0, 0, 0, 5)), bytes((0, 0, 16, 0)), bytes((0, 0, 32, 0)))


def test_field_that_is_none_is_an_error() -> None:
    with pytest.raises(TypeError, match="NOP_IN has no field"):
        pack(Opcode.NOP_IN, residual=1)


@pytest.mark.parametrize("lun", [0, 1, 255, 256, 16383])
def test_lun_round_trip(lun: int) -> None:
    assert lun_number(lun_field(lun)) == lun


def test_lun_out_of_range() -> None:
    with pytest.raises(ValueError, match="16383"):
        lun_field(16384)


@pytest.mark.parametrize("field", [0x0100_0000_0000_0000, 0x0000_0001_0000_0000, 0xC101_0000_0000_0000, 1])
def test_luns_of_other_forms_are_none_of_ours(field: int) -> None:
    assert lun_number(field) is None


@pytest.mark.parametrize(
    ("left", "right", "less"),
    [(1, 2, True), (2, 1, False), (5, 5, False), (0xFFFFFFFF, 0, True), (0, 0xFFFFFFFF, False)],
)
def test_serial_numbers(left: int, right: int, less: bool) -> None:
    assert serial_less(left, right) is less


def test_padding() -> None:
    assert [padding(length) for length in range(5)] == [0, 3, 2, 1, 0]
    assert HEADER.size == BHS_BYTES
