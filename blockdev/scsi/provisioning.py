"""Thin provisioning thresholds (SBC-4 4.7.3): how much of its quota a volume uses, who is told, and what is refused.

One rule: what is counted is what the target says is allocated: whole extents that the map holds as of its newest commit. So it
is late by a commit (seconds), counts neither what the journal still holds nor what only snapshots need, counts what a clone
shares, and knows nothing of compression. The warning comes once for each crossing. A write that overshoots is let through,
the next one is not.

Counts on the wire are threshold sets of 1 MiB.
"""

from dataclasses import dataclass
from struct import pack
from typing import TYPE_CHECKING

from blockdev.scsi.operation import Buffer, Response
from blockdev.scsi.sense import invalid_field
from blockdev.units import MIB

if TYPE_CHECKING:
    from collections.abc import Hashable

    from blockdev.scsi.device import LogicalUnit

SET_BYTES = MIB
REARM_SHARE = 0.02
"""The warning comes again when so much of the quota below the threshold was reached in between."""

SUPPORTED_LOG_PAGES, PROVISIONING_LOG_PAGE = 0x00, 0x0C
_AVAILABLE, _USED = 0x0001, 0x0002
"""Parameter codes of the log page, and THRESHOLD RESOURCE of the mode page (SBC-4)."""


def threshold_exponent(sector_bytes: int) -> int:
    """THRESHOLD EXPONENT of the Logical Block Provisioning VPD page."""
    return (SET_BYTES // sector_bytes).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Quota:
    """`bytes` that a volume may hold; `warning`: the share of it from which on initiators are told."""

    bytes: int
    warning: float = 0.8

    @property
    def warning_bytes(self) -> int:
        return int(self.bytes * self.warning)


class Space:
    """What one logical unit knows of its use."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.used = -1
        """As of the newest look; -1 before the first."""
        self.full = False
        self._armed = True

    def look(self, used: int) -> bool:
        """Take note of what is used now; whether the threshold has been crossed."""
        self.used = used
        self.full = used >= self.quota.bytes
        if used >= self.quota.warning_bytes:
            crossed, self._armed = self._armed, False
            return crossed
        if used < self.quota.warning_bytes - int(REARM_SHARE * self.quota.bytes):
            self._armed = True
        return False


def mode_page(quota: Quota) -> bytes:
    """Parameters of the Logical Block Provisioning mode page (1Ch/02h), without the four bytes of header: one soft threshold,
    enabled, armed for increasing use. SITUA=0: every nexus is told."""
    enabled, increasing = 0x80, 0x01
    return bytes(12) + pack(">BBxxI", enabled | increasing, _USED, _sets(quota.warning_bytes))


def _sets(size: int) -> int:
    return min(size // SET_BYTES, 0xFFFFFFFF)


def log_sense(unit: "LogicalUnit", cdb: Buffer, nexus: "Hashable") -> Response:
    """LOG SENSE: the supported pages and, with a quota, the Logical Block Provisioning page. Nothing is saved, and there are
    cumulative values only."""
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    pointer, allocation = int.from_bytes(cdb[5:7], "big"), int.from_bytes(cdb[7:9], "big")
    pages = [SUPPORTED_LOG_PAGES, *([PROVISIONING_LOG_PAGE] if unit.space is not None else [])]
    if code not in pages:
        return invalid_field(2, 5)
    if code == SUPPORTED_LOG_PAGES and subpage in (0x00, 0xFF):
        if pointer:
            return invalid_field(5)
        if subpage:
            body = bytes((0, 0, 0, 0xFF)) + b"".join(bytes((page, 0)) for page in pages[1:])
        else:
            body = bytes(pages)
        return unit.data_in(pack(">BBH", 0x40 if subpage else 0, subpage, len(body)) + body, allocation)
    if subpage:
        return invalid_field(3)
    if control != 1:
        return invalid_field(2, 7)
    if pointer > _USED:
        return invalid_field(5)
    assert unit.space is not None
    used, quota = unit.space.used, unit.space.quota.bytes
    body = b"".join(
        _parameter(parameter, _sets(value))
        for parameter, value in ((_AVAILABLE, max(0, quota - used)), (_USED, used))
        if parameter >= pointer
    )
    return unit.data_in(pack(">BBH", code, 0, len(body)) + body, allocation)


def _parameter(code: int, sets: int) -> bytes:
    """A resource count (SBC-4 6.5.6): binary, not saved; SCOPE: for this logical unit alone."""
    binary, this_unit = 0x03, 0x01
    return pack(">HBBIBxxx", code, binary, 8, sets, this_unit)
