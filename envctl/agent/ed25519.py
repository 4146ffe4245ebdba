"""Signatures of RFC 8032 (Ed25519), for a guest that has nothing but Python's standard library. Pure.

One rule: it only signs, a few times a minute, with a key of this machine. The time it takes depends on the key; who could
measure that inside of the guest can read the key's file as well. The console checks signatures with a library made for it.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

_P: Final = 2**255 - 19
_L: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, _P - 2, _P) % _P
SEED_BYTES: Final = 32


class _Point(NamedTuple):
    """Extended coordinates: x = X/Z, y = Y/Z, xy = T/Z (RFC 8032, 5.1.4)."""

    x: int
    y: int
    z: int
    t: int


def _add(a: _Point, b: _Point) -> _Point:
    aa = (a.y - a.x) * (b.y - b.x) % _P
    bb = (a.y + a.x) * (b.y + b.x) % _P
    cc = 2 * a.t * b.t * _D % _P
    dd = 2 * a.z * b.z % _P
    e, f, g, h = bb - aa, dd - cc, dd + cc, bb + aa
    return _Point(e * f % _P, g * h % _P, f * g % _P, e * h % _P)


_BASE_Y: Final = 4 * pow(5, _P - 2, _P) % _P
_BASE_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE: Final = _Point(_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)
_NEUTRAL: Final = _Point(0, 1, 1, 0)


def _times_base(scalar: int) -> bytes:
    total, power = _NEUTRAL, _BASE
    while scalar:
        if scalar & 1:
            total = _add(total, power)
        power = _add(power, power)
        scalar >>= 1
    inverse = pow(total.z, _P - 2, _P)
    x, y = total.x * inverse % _P, total.y * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _expand(seed: bytes) -> tuple[int, bytes]:
    if len(seed) != SEED_BYTES:
        raise ValueError("the seed of a key is 32 bytes")
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return scalar, digest[32:]


def public_key(seed: bytes) -> bytes:
    """The public key of a private one (RFC 8032, 5.1.5): 32 bytes."""
    return _times_base(_expand(seed)[0])


def sign(seed: bytes, public: bytes, message: bytes) -> bytes:
    """The signature over `message` (RFC 8032, 5.1.6): 64 bytes. `public` is `public_key(seed)`; another one would give the key
    away, so it never comes from outside."""
    scalar, prefix = _expand(seed)
    nonce = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % _L
    point = _times_base(nonce)
    challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % _L
    return point + ((nonce + challenge * scalar) % _L).to_bytes(32, "little")
