"""AWS Signature Version 4 for S3, header form: a request's parts in, the headers to add out.

One rule: no clock and no network here; the time of signing is an argument. S3 differs from other services in
that the path is encoded once and never normalised (`//` and `./` are part of a key).
Source: "Signature Version 4 signing process" and "Authenticating Requests: Using the Authorization Header"
in the Amazon S3 API reference; tests compare every case with botocore's signer.
"""

import hmac
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from urllib.parse import quote

from s3core.endpoint import Credentials
from s3core.store import Buffer

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = sha256(b"").hexdigest()
#: Proxies may add or change these on the way, so they stay out of the signature.
NEVER_SIGNED = frozenset({"user-agent", "expect", "connection", "transfer-encoding", "content-length"})

Query = Sequence[tuple[str, str]]


def encode_key(key: str) -> str:
    """A key as it stands in a URL's path: everything but unreserved characters and `/` percent-encoded."""
    return quote(key, safe="/-_.~")


def encode_query(query: Query) -> str:
    """The canonical query string, which is also sent as it is: sorted by encoded name, then value."""
    if not query:
        return ""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


def payload_sha256(chunks: Iterable[Buffer]) -> str:
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


class Signer:
    """Signs for one key pair in one region. Safe for many threads; the day's signing key is kept."""

    def __init__(self, credentials: Credentials, region: str, service: str = "s3") -> None:
        self.credentials = credentials
        self.region = region
        self.service = service
        # (date, signing key); replaced as a whole, so a reader needs no lock.
        self._day: tuple[str, bytes] = ("", b"")
        # (second, its text): requests come by the thousand per second. Replaced as a whole, as above.
        self._second: tuple[int, str] = (-1, "")

    def headers(
        self, method: str, path: str, query: str, headers: Mapping[str, str], payload_hash: str, now: float
    ) -> dict[str, str]:
        """`headers` (lower-case names, with `host`) and those the signature adds.

        `path` and `query` are the encoded text that goes on the wire, `payload_hash` the body's SHA-256 in hex
        or UNSIGNED_PAYLOAD, `now` Unix seconds by the clock the server is believed to share.
        """
        stamp = self._stamp(now)
        signed = dict(headers)
        signed["x-amz-content-sha256"] = payload_hash
        if self.credentials.anonymous:
            return signed
        signed["x-amz-date"] = stamp
        if self.credentials.session_token:
            signed["x-amz-security-token"] = self.credentials.session_token
        names = sorted(name for name in signed if name not in NEVER_SIGNED)
        canonical_headers = "".join(f"{name}:{_trimmed(signed[name])}\n" for name in names)
        signed_names = ";".join(names)
        canonical = f"{method}\n{path or '/'}\n{query}\n{canonical_headers}\n{signed_names}\n{payload_hash}"
        date = stamp[:8]
        scope = f"{date}/{self.region}/{self.service}/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(date), to_sign.encode(), "sha256").hex()
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.credentials.access_key}/{scope}, "
            f"SignedHeaders={signed_names}, Signature={signature}"
        )
        return signed

    def _stamp(self, now: float) -> str:
        second = int(now)
        known, text = self._second
        if known != second:
            text = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._second = (second, text)
        return text

    def _key(self, date: str) -> bytes:
        known, key = self._day
        if known != date:
            key = f"AWS4{self.credentials.secret_key}".encode()
            for part in (date, self.region, self.service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day = (date, key)
        return key


def _trimmed(value: str) -> str:
    """Without blanks at the ends and runs of them; a blank beyond ASCII is no blank to a server."""
    return " ".join(value.split() if value.isascii() else filter(None, value.split(" ")))
