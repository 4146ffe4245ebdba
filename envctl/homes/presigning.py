"""Addresses at which a guest gets or puts one object, for a while, without a key of the bucket.

One rule: a PUT address is good for one name, one length, one content, and only where nothing is there yet. So a guest can
neither replace nor delete what it uploaded before.
"""

import base64
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from envctl.errors import NoSuchThing
from s3core.presign import QuerySigner

OBJECTS_PATH: Final = "/guest/v1/objects/"
GRANT_MAX: Final = 4096
"""Longest token that is looked at."""


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """`headers` must be sent exactly so; they are part of the signature. So is Content-Length, which every client sends by
    itself."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Presigner(Protocol):
    """Pure but for the secret that it holds. Keys are relative to the store of homes, times Unix seconds."""

    def get(self, key: str, now: float, life_s: int) -> SignedUrl: ...

    def put(self, key: str, size: int, sha256: str, now: float, life_s: int) -> SignedUrl:
        """For `size` bytes whose SHA-256 is `sha256` (hexadecimal), where there is no object yet."""
        ...


class S3Presigner:
    """Signature Version 4 in the query (`s3core.presign`). Which of the conditions a server looks at, differs; what none may be
    trusted with, the commit looks at again (`envctl.homes.store`)."""

    def __init__(self, signer: QuerySigner, prefix: str) -> None:
        self._signer = signer
        self._prefix = prefix

    def get(self, key: str, now: float, life_s: int) -> SignedUrl:
        return SignedUrl(self._signer.url("GET", self._prefix + key, {}, now, life_s))

    def put(self, key: str, size: int, sha256: str, now: float, life_s: int) -> SignedUrl:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {
            "if-none-match": "*",
            "x-amz-checksum-sha256": digest,
            "x-amz-content-sha256": sha256,
        }
        signed = {**headers, "content-length": str(size)}
        return SignedUrl(self._signer.url("PUT", self._prefix + key, signed, now, life_s), headers)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token of the console's own addresses allows."""

    method: Literal["GET", "PUT"]
    key: str
    expires_at: float
    size: int = 0
    sha256: str = ""


class ConsolePresigner:
    """For stores without addresses of their own (a directory, the memory): the console serves the objects itself, below
    OBJECTS_PATH. Addresses have no host: a guest finds them where it found the console. `secret` is the same for all workers
    of a console. Tokens are HMAC-SHA256 over what they allow."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def get(self, key: str, now: float, life_s: int) -> SignedUrl:
        return SignedUrl(OBJECTS_PATH + self._token(Grant("GET", key, now + life_s)))

    def put(self, key: str, size: int, sha256: str, now: float, life_s: int) -> SignedUrl:
        grant = Grant("PUT", key, now + life_s, size, sha256)
        return SignedUrl(OBJECTS_PATH + self._token(grant), {"if-none-match": "*"})

    def grant_of(self, token: str, now: float) -> Grant:
        """What the token allows. NoSuchThing for one that is not ours or has expired."""
        body, _, mark = token.partition(".")
        expected = self._mark(body)
        if len(token) > GRANT_MAX or not token.isascii() or not hmac.compare_digest(mark, expected):
            raise NoSuchThing("there is no such object, or the address has expired")
        said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        grant = Grant(said["m"], said["k"], said["e"], said["n"], said["h"])
        if now > grant.expires_at:
            raise NoSuchThing("there is no such object, or the address has expired")
        return grant

    def _token(self, grant: Grant) -> str:
        said = {"m": grant.method, "k": grant.key, "e": grant.expires_at, "n": grant.size, "h": grant.sha256}
        body = base64.urlsafe_b64encode(json.dumps(said, separators=(",", ":")).encode()).decode().rstrip("=")
        return f"{body}.{self._mark(body)}"

    def _mark(self, body: str) -> str:
        return hmac.digest(self._secret, b"envctl object\n" + body.encode(errors="replace"), "sha256").hex()
