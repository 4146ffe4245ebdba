"""Sense data byte by byte, and which failure says what."""

import pytest

from blockdev.errors import (
    BlockError,
    CorruptFormat,
    Fenced,
    JournalFull,
    LocalDiskFailed,
    MediumError,
    NotReady,
    StoreUnreachable,
)
from blockdev.scsi.operation import Response, Status
from blockdev.scsi.sense import Condition, check, fixed_sense, invalid_field, invalid_parameter, response_for
from tests.blockdev.scsi.initiator import information, pointed_at, said


def test_fixed_sense_bytes() -> None:
    assert fixed_sense(0x5, 0x24, 0x00).hex(" ") == "70 00 05 00 00 00 00 0a 00 00 00 00 24 00 00 00 00 00"


def test_fixed_sense_information() -> None:
    assert fixed_sense(0x3, 0x11, 0, 0x01020304)[:7].hex(" ") == "f0 00 03 01 02 03 04"
    assert fixed_sense(0xE, 0x1D, 0, 0)[:7].hex(" ") == "f0 00 0e 00 00 00 00"


def test_fixed_sense_information_too_large_is_not_valid() -> None:
    assert fixed_sense(0x3, 0x11, 0, 1 << 32)[:7].hex(" ") == "70 00 03 00 00 00 00"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (invalid_field(1, 7), ("cdb", 1, 7)),
        (invalid_field(7), ("cdb", 7, None)),
        (invalid_parameter(300, 0), ("data", 300, 0)),
    ],
)
def test_field_pointer(response: Response, expected: tuple[str, int, int | None]) -> None:
    assert pointed_at(response) == expected


def test_conditions_are_told_apart() -> None:
    codes = [(each.key, each.asc, each.ascq) for each in Condition]
    assert len(set(codes)) == len(codes)
    for each in Condition:
        assert said(check(each)) is each


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (JournalFull("full"), Status.BUSY),
        (StoreUnreachable("away"), Status.BUSY),
        (NotReady("attaching"), Condition.BECOMING_READY),
        (Fenced("taken over"), Condition.MANUAL_INTERVENTION_REQUIRED),
        (MediumError("damaged", lba=77), Condition.UNRECOVERED_READ_ERROR),
        (LocalDiskFailed("EIO"), Condition.INTERNAL_TARGET_FAILURE),
        (CorruptFormat("bad"), Condition.INTERNAL_TARGET_FAILURE),
    ],
)
def test_response_for_failure(error: BlockError, expected: object) -> None:
    assert said(response_for(error)) is expected


def test_response_for_medium_error_names_the_sector() -> None:
    assert information(response_for(MediumError("damaged", lba=77))) == 77


def test_response_for_a_bug_is_the_bug() -> None:
    with pytest.raises(ZeroDivisionError):
        response_for(ZeroDivisionError("bug"))
