"""What the bytes of an object must look like from outside: MD5, ETag, checksum; and whether the store holds exactly them.

One rule: only digests that were made here, of the bytes that were meant, prove anything; that the store answered "done" does
not. `verdict` is asked after every write that must not be lost.

    put          ETag = MD5 of the bytes                   checksum = of the bytes
    in parts     ETag = MD5 of the parts' MD5s, "-N"       checksum = of the parts' checksums, "-N" (COMPOSITE)

ETags are not MD5s where a key service or the customer's key encrypts (`WriteOptions.etag_is_md5`): there the checksum proves,
and where the server keeps none, each part was verified by Content-MD5 as it came in, and the size is all that is left.
Source: Amazon S3 API reference, "Object" (ETag); "Checking object integrity" (composite checksums).
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5, sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from s3core.content import byte_views
from s3core.store import Buffer
from s3core.write_options import Checksum

if TYPE_CHECKING:
    from s3core.bucket import ObjectFacts

Verdict = Literal["same", "size", "other"]
"""same: proved to be these bytes. size: as long as they are, and the server has no digest that could be compared. other: not
these bytes."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Of one body, made by the caller so that they are made once; b"" for what was not made."""

    md5: bytes = b""
    sha256: bytes = b""
    crc32: bytes = b""

    def of(self, checksum: Checksum) -> bytes:
        return {"": b"", "sha256": self.sha256, "crc32": self.crc32}[checksum]


NO_DIGESTS = Digests()
NO_PART_DIGESTS: Mapping[int, Digests] = MappingProxyType({})


def digests_of(data: Buffer | Sequence[Buffer], checksum: Checksum = "", *, with_md5: bool = True) -> Digests:
    """The MD5 and the checksum of a body. `hashlib` lets other threads run meanwhile."""
    by_md5, by_sha256, crc = md5(usedforsecurity=False), sha256(), 0
    for view in byte_views(data):
        if with_md5:
            by_md5.update(view)
        if checksum == "sha256":
            by_sha256.update(view)
        elif checksum == "crc32":
            crc = zlib.crc32(view, crc)
    return Digests(
        by_md5.digest() if with_md5 else b"",
        by_sha256.digest() if checksum == "sha256" else b"",
        crc.to_bytes(4, "big") if checksum == "crc32" else b"",
    )


def whole_checksum(checksum: Checksum, parts: Sequence[bytes]) -> str:
    """The composite checksum of an upload in parts as HEAD tells it, Base64 and "-N"; "" where one is missing."""
    if not checksum or not parts or not all(parts):
        return ""
    together = b"".join(parts)
    if checksum == "sha256":
        digest = sha256(together).digest()
    else:
        digest = zlib.crc32(together).to_bytes(4, "big")
    return f"{base64.b64encode(digest).decode()}-{len(parts)}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What HEAD must tell of an object: its size, and ETag and checksums where they are known ("" and {} where not)."""

    size: int
    etag: str = ""
    checksums: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_body(cls, size: int, digests: Digests) -> "Expected":
        """Of an object written by one PUT."""
        known = {"sha256": digests.sha256, "crc32": digests.crc32}
        shown = {name: base64.b64encode(digest).decode() for name, digest in known.items() if digest}
        return cls(size, digests.md5.hex(), shown)

    @classmethod
    def of_parts(cls, size: int, parts: Sequence[Digests]) -> "Expected":
        """Of an object completed from these parts, in their order."""
        etag = ""
        if parts and all(part.md5 for part in parts):
            together = md5(b"".join(part.md5 for part in parts), usedforsecurity=False)
            etag = f"{together.hexdigest()}-{len(parts)}"
        sums = {
            "sha256": whole_checksum("sha256", [part.sha256 for part in parts]),
            "crc32": whole_checksum("crc32", [part.crc32 for part in parts]),
        }
        return cls(size, etag, {name: text for name, text in sums.items() if text})


def verdict(facts: "ObjectFacts", expected: Expected, *, etag_is_md5: bool) -> Verdict:
    """Whether what HEAD told is the object that was meant. `etag_is_md5`: of the options it was written with. A checksum that
    agrees proves it, one that does not disproves it. Of ETags the same, but one that is no MD5 disproves nothing."""
    if facts.size != expected.size:
        return "other"
    both = [name for name in expected.checksums if name in facts.checksums]
    if both:
        # Not every server writes the "-N" of a composite one.
        agree = all(_bare(facts.checksums[name]) == _bare(expected.checksums[name]) for name in both)
        return "same" if agree else "other"
    if expected.etag and facts.etag == expected.etag:
        return "same"
    return "other" if expected.etag and etag_is_md5 else "size"


def _bare(checksum: str) -> str:
    return checksum.partition("-")[0]
