"""AWS Signature Version 4 for S3, query form: addresses that whoever has them may use until they expire.

One rule: no clock and no network here. Headers that are given are part of the signature: the user of the address must send
them exactly so. `content-length` is signed too where it is given, which the header form never does: here it limits what a
stranger may send. A given `x-amz-content-sha256` is what the payload is signed with, so that a server checks the bytes against
it; without one the payload is unsigned.
Source: "Authenticating Requests: Using Query Parameters" in the Amazon S3 API reference; tests compare with botocore's signer.
"""

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from s3core.endpoint import REGION_AUTO, Endpoint
from s3core.errors import Misconfigured
from s3core.signing import UNSIGNED_PAYLOAD, encode_key, encode_query

LIFE_MAX_S: Final = 7 * 86400
"""Longest that S3 takes."""


class QuerySigner:
    """Addresses of one bucket. Misconfigured where the endpoint's region is to be asked for, or it has no keys: an address
    is made without asking anybody."""

    def __init__(self, endpoint: Endpoint, bucket: str) -> None:
        if endpoint.region == REGION_AUTO:
            raise Misconfigured(
                f"endpoint {endpoint.name}: addresses cannot be signed without its region",
                hint="set `region` of the endpoint to the bucket's",
            )
        if endpoint.credentials.anonymous:
            raise Misconfigured(f"endpoint {endpoint.name}: addresses cannot be signed without keys")
        self._credentials = endpoint.credentials
        self._region = endpoint.region
        self._address = endpoint.address(bucket, endpoint.region)

    def url(self, method: str, key: str, headers: Mapping[str, str], now: float, life_s: int) -> str:
        """`headers`: lower-case names, without `host`. `now`: Unix seconds by the clock that the server shares. ValueError
        for a life that S3 does not take."""
        if not 0 < life_s <= LIFE_MAX_S:
            raise ValueError(f"a signed address lives for 1 to {LIFE_MAX_S} seconds, not {life_s}")
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(int(now)))
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        signed = {"host": self._address.host, **headers}
        names = ";".join(sorted(signed))
        query = [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", f"{self._credentials.access_key}/{scope}"),
            ("X-Amz-Date", stamp),
            ("X-Amz-Expires", str(life_s)),
            ("X-Amz-SignedHeaders", names),
        ]
        if self._credentials.session_token:
            query.append(("X-Amz-Security-Token", self._credentials.session_token))
        text = encode_query(query)
        path = f"{self._address.path}/{encode_key(key)}"
        lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
        payload = headers.get("x-amz-content-sha256", UNSIGNED_PAYLOAD)
        canonical = f"{method}\n{path}\n{text}\n{lines}\n{names}\n{payload}"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signing_key = f"AWS4{self._credentials.secret_key}".encode()
        for part in (stamp[:8], self._region, "s3", "aws4_request"):
            signing_key = hmac.digest(signing_key, part.encode(), "sha256")
        signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
        return f"{self._address.origin}{path}?{text}&X-Amz-Signature={signature}"
