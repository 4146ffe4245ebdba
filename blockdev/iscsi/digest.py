"""CRC32C digests of headers and data segments (RFC 7143 13.1, RFC 3385).

One rule: a digest is four bytes, least significant first, over the padded segment. The sum comes from the `crc32c`
package, which uses the processor's instruction and takes memoryviews without a copy.
"""

from collections.abc import Iterable

from crc32c import crc32c

from blockdev.target import Buffer


def digest(parts: Iterable[Buffer]) -> bytes:
    """The digest of the parts one after the other, pad bytes included by the caller."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return value.to_bytes(4, "little")


def matches(data: Buffer, expected: Buffer) -> bool:
    return int(crc32c(data)).to_bytes(4, "little") == expected
