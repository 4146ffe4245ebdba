"""CHAP, one way and mutual (RFC 7143 12.1.3, RFC 1994).

One rule: secrets and randomness are given, never looked up here, and compared in constant time; every refusal reads the
same to the peer. Both sides are here, since mutual CHAP makes each a prover and a verifier.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from blockdev.iscsi.errors import LoginRefused, LoginStatus, PeerError

ALGORITHMS: dict[int, tuple[str, int]] = {7: ("sha256", 32), 8: ("sha3_256", 32), 5: ("md5", 16)}
"""CHAP_A number -> hash and its size (IANA "PPP Authentication Algorithms"), best first. SHA-1 (6) is left out."""

BINARY_BYTES_MAX = 1024
"""RFC 7143 12.1.3: the largest binary CHAP item."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who may log in, and how we prove ourselves in turn. Secrets stay out of `repr`, and so out of logs."""

    user: str
    secret: bytes = field(repr=False)
    mutual_user: str = ""
    mutual_secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not self.user or not self.secret:
            raise ValueError("CHAP needs a user name and a secret")
        if bool(self.mutual_user) != bool(self.mutual_secret):
            raise ValueError("mutual CHAP needs both a user name and a secret")
        if hmac.compare_digest(self.secret, self.mutual_secret):
            # The same secret both ways lets an impostor have us compute its answer (RFC 7143 12.1.3).
            raise ValueError("mutual CHAP must use another secret than the initiator's")


def decode_binary(key: str, value: str) -> bytes:
    """0x hexadecimal or 0b base64 (RFC 7143 6.1), at most 1024 bytes."""
    lead, digits = value[:2].lower(), value[2:]
    if len(value) > 2 * BINARY_BYTES_MAX + 2:
        raise PeerError(f"{key}: more than {BINARY_BYTES_MAX} bytes")
    try:
        if lead == "0x":
            return bytes.fromhex("0" * (len(digits) & 1) + digits) if digits.isalnum() else _bad(key)
        if lead == "0b":
            return base64.b64decode(digits, validate=True)
    except (ValueError, binascii.Error) as error:
        raise PeerError(f"{key}: neither hexadecimal nor base64") from error
    return _bad(key)


def _bad(key: str) -> bytes:
    raise PeerError(f"{key}: neither hexadecimal nor base64")


def encode_binary(value: bytes) -> str:
    return "0x" + value.hex()


def response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """H(identifier || secret || challenge)."""
    name, _ = ALGORITHMS[algorithm]
    return hashlib.new(name, bytes((identifier,)) + secret + challenge, usedforsecurity=False).digest()


class ChapTarget:
    """The target's side of one login. `step` takes the initiator's keys and returns the answer; `done` afterwards says
    that the initiator is who it says it is."""

    def __init__(self, credentials: Credentials, random_bytes: Callable[[int], bytes]) -> None:
        self.done = False
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""

    def step(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        """Consumes the CHAP_* keys it understands from `keys`. Raises LoginRefused."""
        if not self._algorithm:
            return self._choose(keys)
        return self._check(keys)

    def _choose(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        offer = keys.pop("CHAP_A", None)
        if offer is None:
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: no CHAP_A where one is due")
        known = [int(name) for name in offer.split(",") if name.isascii() and name.isdigit() and len(name) < 4]
        chosen = next((algorithm for algorithm in ALGORITHMS if algorithm in known), None)
        if chosen is None:
            raise LoginRefused(
                LoginStatus.AUTHENTICATION_FAILURE, f"CHAP: none of the algorithms offered is known: {offer[:64]}"
            )
        self._algorithm = chosen
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(ALGORITHMS[chosen][1])
        return [
            ("CHAP_A", str(chosen)),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", encode_binary(self._challenge)),
        ]

    def _check(self, keys: dict[str, str]) -> list[tuple[str, str]]:
        name, answer = keys.pop("CHAP_N", None), keys.pop("CHAP_R", None)
        identifier, challenge = keys.pop("CHAP_I", None), keys.pop("CHAP_C", None)
        if name is None or answer is None:
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: CHAP_N and CHAP_R are due")
        credentials = self._credentials
        expected = response(self._algorithm, self._identifier, credentials.secret, self._challenge)
        # Both comparisons are always made, so that the time says nothing about which one failed.
        right_name = hmac.compare_digest(name.encode(), credentials.user.encode())
        right_answer = hmac.compare_digest(decode_binary("CHAP_R", answer), expected)
        if not (right_name and right_answer):
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, f"CHAP: user {name[:64]!r} did not authenticate")
        reply: list[tuple[str, str]] = []
        if identifier is not None or challenge is not None:
            reply = self._prove(identifier, challenge)
        self.done = True
        return reply

    def _prove(self, identifier: str | None, challenge: str | None) -> list[tuple[str, str]]:
        """The initiator asks us to prove ourselves in turn."""
        credentials = self._credentials
        if identifier is None or challenge is None or not identifier.isascii() or not identifier.isdigit():
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: mutual CHAP needs CHAP_I and CHAP_C")
        if len(identifier) > 3 or int(identifier) > 255:
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: CHAP_I is one byte")
        if not credentials.mutual_secret:
            raise LoginRefused(
                LoginStatus.AUTHENTICATION_FAILURE, "CHAP: the initiator asks for mutual CHAP, which has no secret here"
            )
        theirs = decode_binary("CHAP_C", challenge)
        if not theirs or hmac.compare_digest(theirs, self._challenge):
            # Reflection: the peer hands us our own question to learn its answer (RFC 7143 12.1.3).
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP: our own challenge was sent back to us")
        proof = response(self._algorithm, int(identifier), credentials.mutual_secret, theirs)
        return [("CHAP_N", credentials.mutual_user), ("CHAP_R", encode_binary(proof))]
