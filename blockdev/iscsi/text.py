"""key=value text of login and text PDUs (RFC 7143 section 6.1), and its limits.

One rule: whatever bytes come, they parse or raise `PeerError`, and a text that grows over several PDUs never exceeds
`TEXT_BYTES_MAX`.
"""

import re

from blockdev.iscsi.errors import PeerError

TEXT_BYTES_MAX = 16 * 1024
"""For all the text of one exchange. Linux, QEMU and Windows send under 1 KiB; CHAP values at their longest add 4 KiB."""
KEY_BYTES_MAX = 63
VALUE_BYTES_MAX = 8192
PAIRS_MAX = 256

_KEY = re.compile(r"[A-Z][A-Za-z0-9.\-+@_#]*\Z")


class Gathered:
    """Text that arrives in parts (C bit). Owned by one connection."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def add(self, data: bytes | bytearray | memoryview) -> None:
        if len(self._parts) + len(data) > TEXT_BYTES_MAX:
            raise PeerError(f"key=value text of more than {TEXT_BYTES_MAX} bytes in one exchange")
        self._parts += data

    def take(self) -> dict[str, str]:
        """All pairs gathered so far; the next text starts anew."""
        whole = bytes(self._parts)
        self._parts.clear()
        return decode(whole)


def decode(data: bytes) -> dict[str, str]:
    """Pairs in order of arrival. A key that comes twice, no `=`, bytes outside UTF-8 or a key that is none: PeerError.
    Some initiators pad with NULs or leave the last one out; both are accepted."""
    pairs: dict[str, str] = {}
    for item in data.split(b"\0"):
        if not item:
            continue
        key_bytes, equals, value_bytes = item.partition(b"=")
        if not equals:
            raise PeerError(f"text without '=': {item[:64]!r}")
        if len(key_bytes) > KEY_BYTES_MAX or len(value_bytes) > VALUE_BYTES_MAX:
            raise PeerError(f"text pair too long: {key_bytes[:64]!r} ({len(value_bytes)} bytes of value)")
        try:
            key, value = key_bytes.decode("ascii"), value_bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PeerError(f"text is not UTF-8: {item[:64]!r}") from error
        if not _KEY.match(key):
            raise PeerError(f"not a key name: {key!r}")
        if key in pairs:
            raise PeerError(f"key {key} given twice in one text")
        if len(pairs) >= PAIRS_MAX:
            raise PeerError(f"more than {PAIRS_MAX} keys in one text")
        pairs[key] = value
    return pairs


def encode(pairs: list[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})\Z")


def number(key: str, value: str) -> int:
    """A numerical value, decimal or 0x hexadecimal (RFC 7143 6.1)."""
    if not _NUMBER.match(value):
        raise PeerError(f"{key}={value[:64]}: not a number")
    return int(value, 16) if value[:2].lower() == "0x" else int(value)
