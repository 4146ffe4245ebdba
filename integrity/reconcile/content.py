"""Reading objects again: whether the bytes are still those that were recorded.

One rule: bytes are compared with a hash that somebody recorded, or with an ETag that is their MD5. Where there is neither (an
upload in parts without sums) nothing was checked, and that is told.

An ETag of 32 hexadecimal digits is the MD5 of the bytes, but for objects encrypted with SSE-KMS or SSE-C (S3 API reference,
"Object"): there a recorded sum is needed, and where one was recorded the ETag is not looked at.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from math import log1p
from random import Random

import orjson

from integrity.reconcile.acts import Act
from s3core.bucket import Bucket, ListedVersion

_PIECE = 8 << 20
_HASHES = ("sha256", "md5", "sha1")
_MD5 = re.compile(r"[0-9a-f]{32}\Z")


def chosen(count: int, share: float, random: Random) -> list[int]:
    """Which of `count` rows are read again: each with the chance `share`. Costs as much as there are chosen ones."""
    if share >= 1:
        return list(range(count))
    found, at = [], -1
    while share > 0:
        # The distance to the next one is distributed geometrically.
        at += 1 + int(random.expovariate(1.0) / -log1p(-share))
        if at >= count:
            break
        found.append(at)
    return found


def mismatch(bucket: Bucket, one: ListedVersion, acts: Sequence[Act]) -> str | None:
    """What is wrong with the bytes of a version: "" where they are as recorded, None where nothing was recorded to compare
    them with. Reads the whole object; StoreErrors as of `Bucket.get`."""
    wanted = _recorded(acts) or ({"md5": one.etag} if _MD5.match(one.etag) else {})
    if not wanted:
        return None
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in wanted}
    at = 0
    while at < one.size:
        length = min(_PIECE, one.size - at)
        data = bucket.get(one.key, offset=at, length=length, if_match=one.etag, version_id=one.version_id)
        for digest in hashes.values():
            digest.update(data)
        at += length
    for name, digest in hashes.items():
        if digest.hexdigest() != wanted[name]:
            return f"its bytes have the {name.upper()} {digest.hexdigest()}, and {wanted[name]} was recorded"
    return ""


def _recorded(acts: Sequence[Act]) -> dict[str, str]:
    """Sums of whole objects by algorithm, in hex."""
    found: dict[str, str] = {}
    for act in acts:
        sums: Mapping[str, object] = orjson.loads(act.sums) if act.sums else {}
        for name in _HASHES:
            text = str(sums.get(name, ""))
            digits = _hex(text, hashlib.new(name, usedforsecurity=False).digest_size)
            if digits:
                found[name] = digits
    return found


def _hex(text: str, size: int) -> str:
    if len(text) == 2 * size:
        return text.lower()
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return data.hex() if len(data) == size else ""
