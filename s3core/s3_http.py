"""Connections to an S3 endpoint: pools of kept-open sockets, certificate pinning, and what a broken one means.

One rule: a request that never left this host is told apart from one whose answer was lost. The first is
`Unavailable` (or `Misconfigured`), the second `OutcomeUnknown` if the request may have changed something.
Nothing is sent twice and no redirect is followed.

An answer of the usual form is read here with as few system calls and as little parsing as its form allows; whatever has
any other form goes through the standard library's parser, and so does what is wrong.
"""

import http.client
import io
import re
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    EmptyPoolError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
)
from urllib3.exceptions import SSLError as PoolSslError
from urllib3.util import Timeout, connection, make_headers, parse_url
from urllib3.util.ssl_ import create_urllib3_context

from s3core import waiting
from s3core.content import LazyBody, byte_views
from s3core.endpoint import Address, Endpoint, normalise_fingerprint, shown_fingerprint
from s3core.errors import Misconfigured, OutcomeUnknown, StoreError, Unavailable
from s3core.store import Buffer

#: Small pieces are joined up to this, so that a body of many does not become as many system calls.
JOIN_BYTES = 64 * 1024
#: Larger ones are sent in slices, because the timeout of a send covers the whole of its buffer.
SEND_BYTES = 1024 * 1024


#: A usual head fits in the first read, and so does a small body.
FIRST_READ_BYTES = 64 * 1024
#: Memory is set aside for a body at once up to this; a larger one grows as it arrives.
BODY_BYTES_MAX = 64 * 1024 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\r\n]*)?", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*)")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `headers` by lower-case name, `body` whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _NotConnected(Exception):
    """Wraps what `connect` raised, so that it passes through urllib3 as it is: nothing has been sent."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(slots=True)
class _Plain:
    """An answer of the usual form, all of it here. What urllib3's pool asks of a response is answered by it."""

    status: int
    headers: dict[str, str]
    data: bytes
    will_close: bool
    retries: Any = None
    version_string: str = "HTTP/1.1"
    length_remaining: int = 0
    _connection: Any = None
    _pool: Any = None


class _Finished:
    """What a connection keeps of an answer that was read to its end: not its body, for as long as it is not used again."""

    def __init__(self, *, will_close: bool) -> None:
        self.will_close = will_close

    def begin(self) -> None:
        """Nothing is left to be read."""

    def isclosed(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class _Rest(io.RawIOBase):
    """What was received before, then what the socket's file brings."""

    def __init__(self, early: bytes, file: io.BufferedReader, sock: Any, timeout_s: float | None) -> None:
        self._early = early
        self._file = file  # keeps the socket open, whoever else closes it
        self._socket = sock
        self._timeout_s = timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._early:
            return waiting.receive(self._socket, buffer, self._timeout_s)
        count = min(len(buffer), len(self._early))
        buffer[:count] = self._early[:count]
        self._early = self._early[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Connection(HTTPConnection):
    """Knows whether anything was sent, gives sending a timeout of its own, and sends the headers together with a
    small body: one system call, one packet and one TLS record in place of two, a seventh of the CPU time."""

    send_timeout_s: ClassVar[float]
    response_class: Any = http.client.HTTPResponse  # another for each answer, with what has been read of it
    _hold = False  # whether the next bytes to send, the headers, wait for the body's
    _held = b""

    def connect(self) -> None:
        self._hold, self._held = False, b""  # a request to a proxy comes first, and goes out at once
        try:
            waiting.in_thread(super().connect)
        except Exception as error:
            raise _NotConnected(error) from error

    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        if self.sock is None:
            self.connect()
        # urllib3 would send under the time allowed for connecting.
        self.timeout = self.send_timeout_s
        self._hold, self._held = isinstance(body, list) and len(body) == 1 and len(body[0]) <= JOIN_BYTES, b""
        super().request(method, url, body, *args, **options)

    def send(self, data: Any) -> None:
        if self._hold:
            self._hold, self._held = False, data
            return
        if self._held:
            data, self._held = b"".join((self._held, data)), b""
        super().send(data)

    def getresponse(self) -> Any:
        """The answer, whole where it has the usual form: HTTP/1.1, each header once and on one line, the body's length
        stated. Raises what urllib3's own does."""
        options, sock, timeout_s = self._response_options, self.sock, self.timeout
        if options is None or sock is None:
            raise http.client.ResponseNotReady()
        sock.settimeout(timeout_s)
        early = bytearray(FIRST_READ_BYTES)
        view = memoryview(early)
        filled, end = 0, -1
        while end < 0 and filled < FIRST_READ_BYTES:
            count = waiting.receive(sock, view[filled:], timeout_s)
            if not count:
                break
            end = early.find(b"\r\n\r\n", max(0, filled - 3), filled + count)
            filled += count
            if end < 0 and early.count(b"\n", 0, filled) != early.count(b"\r\n", 0, filled):
                break  # lines that end otherwise are never followed by the end that is looked for
        plain = _plain(early, end, options.request_method) if end >= 0 else None
        too_much = plain is not None and filled - end - 4 > plain.length_remaining
        if plain is None or too_much:
            rest = bytes(view[:filled])

            def usual(sock: Any, *args: Any, **named: Any) -> http.client.HTTPResponse:
                response = http.client.HTTPResponse(sock, *args, **named)
                response.fp = io.BufferedReader(_Rest(rest, response.fp, sock, timeout_s))
                return response

            response = self._taken(super().getresponse, usual)
            if too_much:
                self.close()  # where there was more, still more may come, and would be taken for the next answer
            return response
        self._response_options = None
        plain.data = _body(sock, view[end + 4 : filled], plain.length_remaining, timeout_s)
        plain.length_remaining = 0
        finished = _Finished(will_close=plain.will_close)
        self._taken(partial(http.client.HTTPConnection.getresponse, self), lambda *_args, **_named: finished)
        return plain

    def _taken(self, take: Callable[[], Any], response_class: Any) -> Any:
        """This answer with this class, and no other: a proxy's answer to CONNECT may be the next that is read."""
        self.response_class = response_class
        try:
            return take()
        finally:
            del self.response_class


def _plain(early: bytearray, end: int, method: str) -> _Plain | None:
    """The answer whose head ends at `end`, without its body, of which `length_remaining` bytes are to come; None where it
    does not have the usual form."""
    lines = early[:end].split(b"\r\n")
    status = _STATUS_LINE.fullmatch(lines[0])
    if status is None or len(lines) > 100:
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        found = _HEADER.fullmatch(line.decode("latin-1"))
        if found is None:
            return None
        headers[found[1].lower()] = found[2].rstrip(" \t")
    length = headers.get("content-length", "")
    if len(headers) != len(lines) - 1 or "transfer-encoding" in headers or _LENGTH.fullmatch(length) is None:
        return None
    code = int(status[1])
    size = 0 if method == "HEAD" or code in (204, 304) else int(length)
    if size > BODY_BYTES_MAX:
        return None
    return _Plain(
        code, headers, b"", headers.get("connection", "keep-alive").lower() != "keep-alive", length_remaining=size
    )


def _body(sock: Any, first: memoryview, size: int, timeout_s: float | None) -> bytes:
    """`first` and what follows it, `size` bytes in all."""
    if len(first) == size:
        return bytes(first)
    # Received in the very memory that is handed out: `getvalue` of a whole buffer does not copy.
    whole = io.BytesIO(bytes(size))
    with whole.getbuffer() as view:
        filled = len(first)
        view[:filled] = first
        while filled < size:
            count = waiting.receive(sock, view[filled:], timeout_s)
            if not count:
                raise http.client.IncompleteRead(bytes(view[:filled]), size - filled)
            filled += count
    return whole.getvalue()


class Transport:
    """Sends requests for one endpoint to whichever addresses its buckets have. Safe for many threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tls_context = _tls_context(endpoint) if endpoint.tls else None
        self._timeout = Timeout(connect=endpoint.connect_timeout_s, read=endpoint.read_timeout_s)
        self._lock = threading.Lock()
        self._pools: dict[str, HTTPConnectionPool] = {}  # by origin; under _lock

    def send(
        self,
        method: str,
        address: Address,
        target: str,
        headers: Mapping[str, str],
        body: Sequence[Buffer] | None = None,
        *,
        mutating: bool,
        key: str = "",
    ) -> Answer:
        """One request, one answer of any status. `target` is the encoded path and query, `headers` must frame
        the body with content-length. Raises Unavailable, Misconfigured or, if `mutating`, OutcomeUnknown."""
        pool = self._pool(address)
        # A proxy that is not tunnelled through wants the whole URL.
        url = address.origin + target if self._endpoint.proxy and not address.tls else target
        try:
            response = self._pooled(
                pool,
                method,
                url,
                # urllib3 sends any buffer; its annotation names bytes alone.
                body=cast(list[bytes] | None, body),
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=self._timeout,
                decode_content=False,
            )
        except _NotConnected as error:
            raise self._not_connected(error.reason, address, key) from error.reason
        except ProxyError as error:
            raise _proxy_fault(error, self._endpoint, key) from error
        except (ConnectTimeoutError, NewConnectionError) as error:
            raise self._not_connected(error, address, key) from error
        except HTTPError as error:
            raise _lost(error, method, address, key, mutating) from error
        return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, response.data)

    @staticmethod
    def _pooled(pool: HTTPConnectionPool, method: str, url: str, **named: Any) -> Any:
        """`urlopen`, whose wait for a connection that is free may not hold up a fiber's thread."""
        if waiting.here.waiter is None:
            return pool.urlopen(method, url, **named)
        named["pool_timeout"] = 0
        while True:
            try:
                return pool.urlopen(method, url, **named)
            except EmptyPoolError:
                waiting.sleep(waiting.TURN_S)

    def close(self) -> None:
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def _pool(self, address: Address) -> HTTPConnectionPool:
        origin = address.origin
        pool = self._pools.get(origin)
        if pool is not None:
            return pool
        with self._lock:
            if origin not in self._pools:
                self._pools[origin] = self._new_pool(address)
            return self._pools[origin]

    def _new_pool(self, address: Address) -> HTTPConnectionPool:
        endpoint = self._endpoint
        settings: dict[str, Any] = {
            "maxsize": endpoint.concurrency,
            "block": True,
            "socket_options": HTTPConnection.default_socket_options,  # TCP_NODELAY, through a proxy too
        }
        if address.tls:
            settings["ssl_context"] = self._tls_context
            settings["cert_reqs"] = ssl.CERT_NONE if endpoint.fingerprint else ssl.CERT_REQUIRED
            if endpoint.fingerprint:
                settings["assert_fingerprint"] = normalise_fingerprint(endpoint.fingerprint)
        if endpoint.proxy:
            manager = urllib3.ProxyManager(endpoint.proxy, proxy_headers=_proxy_headers(endpoint.proxy), **settings)
            pool = manager.connection_from_host(address.hostname, address.port, "https" if address.tls else "http")
        elif address.tls:
            pool = HTTPSConnectionPool(address.hostname, address.port, **settings)
        else:
            pool = HTTPConnectionPool(address.hostname, address.port, **settings)

        class Plain(_Connection):
            send_timeout_s = endpoint.read_timeout_s

        class Tls(Plain, HTTPSConnection):
            pass

        pool.ConnectionCls = Tls if address.tls else Plain
        return pool

    def _not_connected(self, reason: Exception, address: Address, key: str) -> StoreError:
        endpoint, where = self._endpoint, f"{address.hostname}:{address.port}"
        if endpoint.proxy and isinstance(reason, ConnectTimeoutError):  # refusals and name resolution are such
            return _proxy_fault(reason, endpoint, key)
        if isinstance(reason, NameResolutionError):
            hint = "check the host name in the endpoint's url and this host's DNS"
            if address.virtual:
                hint = (
                    f"the bucket's name is part of this host name; if the server does not do that,"
                    f' set addressing = "path" for endpoint {endpoint.name}'
                )
            return Unavailable(f"cannot resolve {address.hostname}", key=key, hint=hint)
        if isinstance(reason, ConnectTimeoutError) and not isinstance(reason, NewConnectionError):
            return Unavailable(
                f"no connection to {where} within {endpoint.connect_timeout_s:g} s",
                key=key,
                hint="check address, port and firewall",
            )
        inner = reason.args[0] if isinstance(reason, PoolSslError) and reason.args else reason
        if isinstance(inner, ssl.SSLCertVerificationError):
            return Misconfigured(
                f"{where}: certificate verify failed: {inner.verify_message}",
                key=key,
                hint=self._pinning_hint(address, inner),
            )
        if isinstance(reason, PoolSslError) and "ingerprint" in str(reason):
            return Misconfigured(
                f"{where}: the server's certificate is not the one that is pinned",
                key=key,
                hint=self._repin_hint(address),
            )
        if isinstance(inner, ssl.SSLError):
            if inner.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
                return Misconfigured(
                    f"{where} does not speak TLS", key=key, hint="if it serves plain http, say http:// in the url"
                )
            return Unavailable(f"{where}: the TLS handshake failed: {inner}", key=key)
        if isinstance(inner, OSError) and "Tunnel connection failed" in str(inner):
            return Unavailable(
                f"proxy {_shown_proxy(endpoint.proxy)} refused to connect to {where}: {inner}",
                key=key,
                hint="check the proxy's rules, or leave out the proxy setting",
            )
        return Unavailable(f"cannot connect to {where}: {_brief(reason)}", key=key, hint="is the server running?")

    def _pinning_hint(self, address: Address, inner: ssl.SSLCertVerificationError) -> str:
        found, name, message = self._peer_fingerprint(address), self._endpoint.name, inner.verify_message
        choices = []
        if "expired" in message:
            choices.append("renew the server's certificate")
        if "mismatch" in message:
            style = f', set addressing = "path" for endpoint {name}' if address.virtual else ""
            choices.append(f"use a name in the url that the certificate is for{style}")
        if found:
            choices.append(
                f'after comparing it on the server set fingerprint = "{found}" for endpoint {name} to trust this very'
                " certificate"
            )
        if "mismatch" not in message and "expired" not in message:
            choices.append("set ca_file to the authority that signed it")
        return ", or ".join(choices)

    def _repin_hint(self, address: Address) -> str:
        found = self._peer_fingerprint(address)
        if not found:
            return "compare the server's certificate with the fingerprint setting"
        return f'it is now {found}: if you replaced the certificate set fingerprint = "{found}", otherwise do not go on'

    def _peer_fingerprint(self, address: Address) -> str:
        """Empty if the certificate cannot be had; the caller is about to report a worse trouble."""
        if self._endpoint.proxy:
            return ""
        try:
            certificate = waiting.in_thread(
                peer_certificate, address.hostname, address.port, self._endpoint.connect_timeout_s
            )
        except OSError:
            return ""
        return shown_fingerprint(sha256(certificate).hexdigest())


def pieces(data: Buffer | Sequence[Buffer]) -> Sequence[Buffer]:
    """A body as the buffers to send one by one: nothing larger than 64 KiB is copied."""
    if isinstance(data, LazyBody):
        return data
    out: list[Buffer] = []
    small: list[Buffer] = []
    small_bytes = 0
    for view in byte_views(data):
        size = len(view)
        if small and small_bytes + size > JOIN_BYTES:
            out.append(b"".join(small) if len(small) > 1 else small[0])
            small, small_bytes = [], 0
        if size > SEND_BYTES:
            whole = memoryview(view)
            out.extend(whole[at : at + SEND_BYTES] for at in range(0, size, SEND_BYTES))
        elif size > JOIN_BYTES:
            out.append(view)
        elif size:
            small.append(view)
            small_bytes += size
    if small:
        out.append(b"".join(small) if len(small) > 1 else small[0])
    return out


def peer_certificate(hostname: str, port: int, timeout_s: float) -> bytes:
    """The certificate (DER) that a server shows, whoever signed it. OSError if there is none to be had."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        connection.create_connection((hostname, port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=hostname) as wrapped,
    ):
        certificate = wrapped.getpeercert(binary_form=True)
    if certificate is None:
        raise OSError(f"{hostname}:{port} shows no certificate")
    return certificate


def _tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    context = create_urllib3_context()
    if endpoint.fingerprint:
        # The pin is stronger than any signature: urllib3 compares it right after the handshake.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not endpoint.ca_file:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(endpoint.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(
            f"endpoint {endpoint.name}: cannot read ca_file {endpoint.ca_file}: {error}",
            hint="it must be a readable file of PEM certificates",
        ) from error
    return context


def _lost(error: HTTPError, method: str, address: Address, key: str, mutating: bool) -> StoreError:
    text = f"{method} at {address.host}: the answer was lost: {_brief(error)}"
    hint = "" if address.tls else "if the server speaks TLS on this port, say https:// in the url"
    if mutating:
        return OutcomeUnknown(text, key=key, hint=hint)
    return Unavailable(text, key=key, hint=hint)


def _proxy_fault(error: HTTPError, endpoint: Endpoint, key: str) -> StoreError:
    return Unavailable(
        f"proxy {_shown_proxy(endpoint.proxy)} cannot be used: {_brief(error)}",
        key=key,
        hint="check the proxy setting, or leave it out",
    )


def _proxy_headers(proxy: str) -> dict[str, str]:
    auth = parse_url(proxy).auth
    return make_headers(proxy_basic_auth=auth) if auth else {}


def _shown_proxy(proxy: str) -> str:
    """Without a password."""
    return parse_url(proxy)._replace(auth=None).url


def _brief(error: BaseException) -> str:
    """The innermost reason, which is the one an operator knows."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = inner.__cause__ if isinstance(inner, NewConnectionError) and inner.__cause__ else inner
    return f"{type(reason).__name__}: {reason}" if str(reason) else type(reason).__name__
