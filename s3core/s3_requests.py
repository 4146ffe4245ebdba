"""Requests for one bucket of an S3 endpoint: signed, routed to the region that has it, refusals told as errors.

One rule: what the server said is what the caller hears, as `s3core.s3_faults` reads it, and nothing that may have been
applied is sent twice: a request refused for its region is signed again for the region the server named when the
endpoint says `auto`, and a HEAD refused without a reason is asked again as a GET of one byte.
What the store of our own objects (`s3core.s3`) and the buckets of others (`s3core.s3_bucket`) have in common.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from s3core.clock import Clock, SystemClock
from s3core.content import LazyBody, byte_count
from s3core.endpoint import PRESETS, REGION_AUTO, Address, Endpoint
from s3core.errors import Corrupt, NotFound, StoreError, Unavailable
from s3core.s3_faults import GET, HEAD, LIST, Act, Place, fault, served_region
from s3core.s3_http import Answer, Transport, pieces
from s3core.s3_xml import ErrorBody, parse_error
from s3core.signing import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Query,
    Signer,
    encode_key,
    encode_query,
    payload_sha256,
)
from s3core.store import Buffer

#: Tried first when the region is to be asked for; every provider either takes it or names its own.
FIRST_GUESS_REGION = "us-east-1"
#: Longer than any size, and not so long that Python refuses to make a number of it.
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class _Route:
    """Where and for which region requests are made; replaced as a whole when the server names another region."""

    region: str
    address: Address
    signer: Signer


class S3Requests:
    """Asks one bucket. Threads may share it; connections are kept open for them."""

    def __init__(
        self, endpoint: Endpoint, bucket: str, *, clock: Clock | None = None, transport: Transport | None = None
    ) -> None:
        if not bucket or "/" in bucket:
            raise ValueError(f"not a bucket's name: {bucket!r}")
        self.endpoint = endpoint
        self.bucket = bucket
        self.preset = PRESETS[endpoint.preset]
        self._clock = clock or SystemClock()
        self._transport = transport or Transport(endpoint)
        self._sign_payload = not endpoint.tls if endpoint.sign_payload is None else endpoint.sign_payload
        self._route_lock = threading.Lock()
        self._route = self._route_to(FIRST_GUESS_REGION if endpoint.region == REGION_AUTO else endpoint.region)

    @property
    def region(self) -> str:
        """What requests are signed for; with `auto` a guess until the server has been asked."""
        return self._route.region

    def request(
        self,
        act: Act,
        method: str,
        key: str,
        *,
        shown: str | None = None,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: Buffer | Sequence[Buffer] | None = None,
    ) -> Answer:
        """One request for `key` ("": the bucket itself) that succeeded, or the error it came to. Errors name the key
        as `shown` has it."""
        shown = key if shown is None else shown
        chunks: Sequence[Buffer] = pieces(body) if body is not None else []
        route = self._route
        answer = self._send(route, act, method, key, shown, query, headers or {}, chunks)
        if _succeeded(answer, act):
            return answer
        # A refusal for the wrong region was refused before anything was done, so it may be sent again.
        better = self._learn_region(route, answer)
        if better is not None:
            answer = self._send(better, act, method, key, shown, query, headers or {}, chunks)
            if _succeeded(answer, act):
                return answer
            route = better
        raise fault(_as_error(answer), act, self._place(route), shown, self._clock.time())

    def look(
        self, key: str, *, shown: str | None = None, query: Query = (), headers: Mapping[str, str] | None = None
    ) -> Answer:
        """HEAD, with the reason where it is refused."""
        try:
            return self.request(HEAD, "HEAD", key, shown=shown, query=query, headers=headers)
        except NotFound:
            raise
        except StoreError as refusal:
            if refusal.temporary:
                raise
            # An answer to HEAD has no body and so no reason; the same question as a GET has one.
            self.request(GET, "GET", key, shown=shown, query=query, headers={**(headers or {}), "range": "bytes=0-0"})
            raise

    def refusal(self, answer: Answer, act: Act, key: str, body: ErrorBody) -> StoreError:
        """The error for a refusal that came as a part of another answer."""
        return fault(answer, act, self._place(self._route), key, self._clock.time(), body)

    def beside(self, bucket: str) -> "S3Requests":
        """For another bucket of the endpoint, over the same connections."""
        return S3Requests(self.endpoint, bucket, clock=self._clock, transport=self._transport)

    def close(self) -> None:
        self._transport.close()

    def _send(
        self,
        route: _Route,
        act: Act,
        method: str,
        key: str,
        shown: str,
        query: Query,
        headers: Mapping[str, str],
        chunks: Sequence[Buffer],
    ) -> Answer:
        path = f"{route.address.path}/{encode_key(key)}"
        query_text = encode_query(query)
        if not self._sign_payload:
            payload_hash = UNSIGNED_PAYLOAD
        else:
            looked_at = chunks.peek() if isinstance(chunks, LazyBody) else chunks
            payload_hash = payload_sha256(looked_at) if chunks else EMPTY_SHA256
        signed = route.signer.headers(
            method, path, query_text, {**headers, "host": route.address.host}, payload_hash, self._clock.time()
        )
        if method in ("PUT", "POST"):
            signed["content-length"] = str(byte_count(chunks))
        signed["user-agent"] = "bucketworks"
        for name, value in headers.items():
            if not value.isascii():
                # HTTP libraries send text as Latin-1; this makes it the UTF-8 that was signed.
                signed[name] = value.encode().decode("latin-1")
        target = f"{path}?{query_text}" if query_text else path
        return self._transport.send(
            method, route.address, target, signed, chunks or None, mutating=act.mutating, key=shown
        )

    def _learn_region(self, route: _Route, answer: Answer) -> _Route | None:
        """The route to take instead if `auto` was asked for and the server named another region."""
        if self.endpoint.region != REGION_AUTO or answer.status not in (301, 307, 400, 403):
            return None
        region = served_region(answer)
        if not region and not answer.body:
            # An answer to HEAD has no body to name the region in: ask with a listing of nothing.
            probe = self._send(route, LIST, "GET", "", "", [("list-type", "2"), ("max-keys", "0")], {}, [])
            region = served_region(probe)
        if not region or region == route.region:
            return None
        with self._route_lock:
            if self._route.region != region:
                self._route = self._route_to(region)
            return self._route

    def _route_to(self, region: str) -> _Route:
        address = self.endpoint.address(self.bucket, region)
        return _Route(region, address, Signer(self.endpoint.credentials, region))

    def _place(self, route: _Route) -> Place:
        return Place(self.endpoint, route.address, self.bucket, route.region)


def skew_of(answer: Answer, here: float) -> float | None:
    """Our clock, which read `here`, less the server's by the Date of its answer; None where it has none. To a second or
    two: the header counts whole seconds, on average half a second behind."""
    try:
        return here - parsedate_to_datetime(answer.headers.get("date", "")).timestamp() - 0.5
    except ValueError:
        return None


def whole_body(answer: Answer, key: str) -> bytes:
    """The body of an answer, which must be as long as it says. urllib3 refuses a body shorter than Content-Length;
    without one a cut would not be seen at all."""
    stated = answer.headers.get("content-length")
    if stated is None:
        if "chunked" not in answer.headers.get("transfer-encoding", ""):
            raise Unavailable("the answer does not say how long it is, so a cut could not be seen", key=key)
    elif not _NUMBER.fullmatch(stated) or int(stated) != len(answer.body):
        raise Unavailable(f"{stated} bytes were announced and {len(answer.body)} came", key=key)
    return answer.body


def ranged_body(answer: Answer, key: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` (-1: all the rest) out of the answer to a request for that range; Corrupt where the
    object ends before it does."""
    body = whole_body(answer, key)
    if answer.status == 200:
        # A server may ignore Range (RFC 9110 section 14.2): then this is the whole object.
        if len(body) < offset + length or (length < 0 and len(body) <= offset):
            raise Corrupt(f"the object ends at {len(body)}, before the range", key=key, offset=offset)
        return body[offset:] if length < 0 else body[offset : offset + length]
    served = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if served is None:
        raise Unavailable("a part came back without a Content-Range", key=key)
    first, last = int(served[1]), int(served[2])
    if length < 0:
        wanted = int(served[3]) - 1 if served[3] != "*" else last
    else:
        wanted = offset + length - 1
    if (first, last) != (offset, wanted):
        if first == offset and last < wanted and length >= 0:
            raise Corrupt(f"the object ends at {last + 1}, inside the range of {length}", key=key, offset=offset)
        raise Unavailable(f"asked for bytes {offset}-{wanted}, got {served[0]}", key=key)
    if len(body) != last - first + 1:
        raise Unavailable(f"asked for {last - first + 1} bytes, got {len(body)}", key=key)
    return body


def etag_of(answer: Answer) -> str:
    """The ETag, bare."""
    return answer.headers.get("etag", "").removeprefix("W/").strip('"')


def modified_of(answer: Answer) -> float:
    """Last-Modified in Unix seconds; 0.0 where there is none."""
    try:
        return parsedate_to_datetime(answer.headers.get("last-modified", "")).timestamp()
    except ValueError:
        return 0.0


def _succeeded(answer: Answer, act: Act) -> bool:
    if not 200 <= answer.status < 300:
        return False
    # Copies and completions may fail after their 200 was sent; the reason is then the body. Bodies of reads are
    # anybody's bytes and are not looked into.
    return not (act.mutating and answer.body and parse_error(answer.body).code)


def _as_error(answer: Answer) -> Answer:
    """A failure that was announced as 200 with the status it should have had."""
    if answer.status >= 300:
        return answer
    code = parse_error(answer.body).code
    status = {"NoSuchKey": 404, "NoSuchUpload": 404, "PreconditionFailed": 412, "AccessDenied": 403}.get(code, 500)
    return Answer(status, answer.headers, answer.body)
