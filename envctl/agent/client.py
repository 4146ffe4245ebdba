"""Requests to the console, signed by this machine; objects by the URLs that the console gives.

One rule: every request may be sent twice. A lost answer is asked for again; the console recognises what it has done already.

Signed is `envctl-v1`, the method, path and query, the date in milliseconds, a nonce and the SHA-256 of the body
(docs/protocol/envctl-guest.md). A console whose clock differs says so once, and the difference is kept.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from envctl.agent import ed25519
from envctl.agent.errors import Corrupt, Fenced, NotRestored, Refused, Unavailable

TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 5
PAUSE_S: Final = 1.0
PAUSE_S_MAX: Final = 30.0
SLICE_BYTES: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
OBJECTS_MAX: Final = 500
"""URLs that may be asked for at once."""
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_FAILURES: Final = (OSError, http.client.HTTPException)


class Identity(NamedTuple):
    """Who this machine is: environment, generation, and the 32 bytes of its private key."""

    environment: str
    generation: int
    seed: bytes
    public: bytes


class World(NamedTuple):
    """Clock and randomness, as arguments: Unix time in seconds, sleep, random bytes."""

    time: Callable[[], float]
    sleep: Callable[[float], None]
    random: Callable[[int], bytes]


class Allowance:
    """A rate of bytes a second, shared by the threads that send and receive. 0: no limit."""

    def __init__(self, bytes_per_s: int, monotonic: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.bytes_per_s = bytes_per_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, amount: int) -> None:
        """Return when `amount` bytes more may go."""
        if self.bytes_per_s <= 0:
            return
        with self._lock:
            now = self._monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + amount / self.bytes_per_s
        if begin > now:
            self._sleep(begin - now)


class Url(NamedTuple):
    url: str
    headers: dict[str, str]


class Console:
    """The console as a guest sees it. Methods raise Unavailable (outcome unknown), Refused, Fenced, NotRestored. Safe to be
    used by several threads: each has connections of its own."""

    def __init__(
        self,
        address: str,
        world: World,
        *,
        identity: Identity | None = None,
        ca_pem: str = "",
        rate: Allowance | None = None,
    ) -> None:
        self.address = address.rstrip("/")
        self.identity = identity
        self._world = world
        self.rate = rate
        self._offset_ms = 0
        self._local = threading.local()
        self._trust = ssl.create_default_context()
        if ca_pem:
            self._trust.load_verify_locations(cadata=ca_pem)

    # Requests to the console

    def get(self, path: str, *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS) -> dict[str, Any]:
        return self._ask("GET", path, b"", timeout_s, attempts)

    def post(
        self, path: str, body: dict[str, Any], *, timeout_s: float = TIMEOUT_S, attempts: int = ATTEMPTS
    ) -> dict[str, Any]:
        # A name that is no UTF-8 has lone surrogates here, which are no JSON to others.
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        return self._ask("POST", path, data, timeout_s, attempts)

    def _ask(self, method: str, path: str, body: bytes, timeout_s: float, attempts: int) -> dict[str, Any]:
        pause = PAUSE_S
        clock_corrected = False
        attempt = 0
        while True:
            attempt += 1
            try:
                status, data = self._once(method, path, body, timeout_s)
            except _FAILURES as error:
                failure: Exception = Unavailable(f"the console at {self.address} does not answer: {error}")
            else:
                if 200 <= status < 300:
                    return _document(data)
                error_facts = _error(data)
                code = str(error_facts.get("code", ""))
                message = f"{method} {path.split('?')[0]}: {error_facts.get('message', f'status {status}')}"
                if status == 401 and code == "clock" and not clock_corrected and "now" in error_facts:
                    self._offset_ms = int(str(error_facts["now"])) - int(self._world.time() * 1000)
                    clock_corrected = True
                    attempt -= 1
                    continue
                if status == 412 and code == "fenced":
                    raise Fenced(message)
                if code == "not-restored":
                    raise NotRestored(message)
                if status not in _RETRIED:
                    raise Refused(message, code, status, error_facts)
                failure = Unavailable(message)
            if attempt >= attempts:
                raise failure
            self._world.sleep(pause * (0.5 + self._world.random(1)[0] / 255))
            pause = min(2 * pause, PAUSE_S_MAX)

    def _once(self, method: str, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        target = urlsplit(self.address).path + path
        if self.identity is not None:
            headers.update(self._signature(method, target, body))
        connection = self._connection(self.address, timeout_s)
        try:
            connection.request(method, target, body or None, headers)
            with connection.getresponse() as response:
                return response.status, response.read(ANSWER_BYTES_MAX)
        except _FAILURES:
            self._forget(self.address)
            raise

    def _signature(self, method: str, target: str, body: bytes) -> dict[str, str]:
        assert self.identity is not None
        who = self.identity
        date = str(int(self._world.time() * 1000) + self._offset_ms)
        nonce = self._world.random(16).hex()
        text = "\n".join(("envctl-v1", method, target, date, nonce, hashlib.sha256(body).hexdigest()))
        signature = ed25519.sign(who.seed, who.public, text.encode("ascii"))
        return {
            "Envctl-Guest": f"{who.environment}.{who.generation}",
            "Envctl-Date": date,
            "Envctl-Nonce": nonce,
            "Envctl-Signature": base64.b64encode(signature).decode("ascii"),
        }

    # Objects

    def urls(self, path: str, body: dict[str, Any]) -> dict[str, Url | None]:
        """What `/guest/v1/uploads` or `/downloads` gives, absolute. None: it is there already."""
        found: dict[str, Url | None] = {}
        for name, entry in self.post(path, body)["urls"].items():
            where = (
                None
                if entry is None
                else Url(urljoin(self.address + "/", entry["url"]), dict(entry.get("headers", {})))
            )
            found[name] = where
        return found

    def upload(self, where: Url, data: bytes) -> None:
        """Put an object. Once this returns it is in the bucket, put now or before. Refused with status 403 where the URL has
        expired."""

        def slices() -> Iterator[bytes]:
            for place in range(0, len(data), SLICE_BYTES):
                part = data[place : place + SLICE_BYTES]
                if self.rate is not None:
                    self.rate.take(len(part))
                yield part

        headers = {**where.headers, "Content-Length": str(len(data))}
        status, answer = self._object("PUT", where, headers, slices)
        # 412 and 409: the object is there (If-None-Match), or is being put by our own attempt whose answer was lost.
        if not (200 <= status < 300 or status in (409, 412)):
            raise Refused(f"an upload was refused with status {status}: {answer[:200]!r}", "upload", status, {})

    def download(self, where: Url, begin: int = 0, length: int | None = None) -> bytes:
        """An object, or `length` bytes of it from `begin` on."""
        headers = dict(where.headers)
        if length is not None:
            headers["Range"] = f"bytes={begin}-{begin + length - 1}"
        status, data = self._object("GET", where, headers, None)
        if status == 200 and length is not None:
            data = data[begin : begin + length]
        elif status not in (200, 206):
            raise Refused(f"a download was refused with status {status}: {data[:200]!r}", "download", status, {})
        if length is not None and len(data) != length:
            raise Corrupt(f"an object has {len(data)} of {length} bytes from {begin} on")
        if self.rate is not None:
            self.rate.take(len(data))
        return data

    def _object(
        self, method: str, where: Url, headers: dict[str, str], slices: Callable[[], Iterator[bytes]] | None
    ) -> tuple[int, bytes]:
        pause = PAUSE_S
        parts = urlsplit(where.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                connection = self._connection(where.url, TIMEOUT_S)
                connection.request(method, target, slices() if slices is not None else None, headers)
                with connection.getresponse() as response:
                    status, data = response.status, response.read()
                if status not in _RETRIED:
                    return status, data
                failure = Unavailable(f"{method} of an object at {parts.netloc}: status {status}")
            except _FAILURES as error:
                self._forget(where.url)
                failure = Unavailable(f"{method} of an object at {parts.netloc}: {error}")
            if attempt < ATTEMPTS:
                self._world.sleep(pause * (0.5 + self._world.random(1)[0] / 255))
                pause = min(2 * pause, PAUSE_S_MAX)
        raise failure

    # Connections, of each thread its own

    def _connection(self, url: str, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        held: dict[str, http.client.HTTPConnection] = self._local.__dict__.setdefault("held", {})
        connection = held.get(parts.netloc)
        if connection is None:
            host = parts.hostname or ""
            if parts.scheme == "https":
                connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=self._trust)
            else:
                connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
            held[parts.netloc] = connection
        connection.timeout = timeout_s
        is_new = connection.sock is None
        if is_new:
            connection.connect()
        connection.sock.settimeout(timeout_s)
        if is_new:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _forget(self, url: str) -> None:
        held: dict[str, http.client.HTTPConnection] = self._local.__dict__.setdefault("held", {})
        connection = held.pop(urlsplit(url).netloc, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """The connections of the calling thread."""
        for connection in self._local.__dict__.pop("held", {}).values():
            connection.close()


def _document(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except ValueError as error:
        raise Unavailable(f"the console's answer is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unavailable("the console's answer is not an object of JSON")
    return found


def _error(data: bytes) -> dict[str, object]:
    """What an answer of failure says; empty for one that is not the console's own (a proxy's page)."""
    try:
        found = json.loads(data)
        facts = dict(found.get("error") or {})
        facts.update({key: value for key, value in found.items() if key != "error"})
    except (ValueError, AttributeError, TypeError):
        return {}
    return facts
