"""The REST API of Proxmox VE over HTTP: one request, its answer's `data`, or DriverFailed or DriverBusy.

One rule: a request that changes something is sent once. It goes to another node of the cluster only where the connection did
not come about (nothing was sent then); once it was sent, a lost answer is DriverBusy with the outcome unknown. Reads go to the
next node as well when their answer is lost. Any node answers for all: pveproxy hands a call on to the node in its path.

The token is in a header, never in a URL; httpx's own log lines name method and URL alone.
"""

import asyncio
import logging
import re
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from envctl.drivers.pve.tls import context_for, fingerprints
from envctl.drivers.pve.token import Token, read_token
from envctl.drivers.pve.words import failure
from envctl.errors import DriverBusy, DriverFailed
from s3core.settings import ConfigError, EnvctlDriverSettings

log = logging.getLogger(__name__)

READ_S: Final = 30.0
"""Of a question. pveproxy itself gives up on another node after 30 s (596)."""
WRITE_S: Final = 60.0
"""Of what begins a task, or changes a configuration."""
CLONE_S: Final = 180.0
"""A clone's own checks look at each disk of the template before the task begins; slow storages take their time."""
AGENT_S: Final = 5.0
CONNECT_S: Final = 5.0
PREFIX: Final = "/api2/json"
NONE: Final[Mapping[str, object]] = MappingProxyType({})
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Answered:
    """`base`: the node that answered, where its console ports are; `clock_ahead_s`: its clock against ours."""

    data: Any
    base: str
    clock_ahead_s: float | None


class PveClient:
    """Safe for many tasks of several event loops at once: connections belong to the loop that made them."""

    def __init__(
        self,
        driver: str,
        settings: EnvctlDriverSettings,
        *,
        environ: Mapping[str, str] | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.driver = driver
        self._settings = settings
        self._environ = environ
        self._transport = transport
        self._now = now
        self.bases = bases_of(driver, settings.url)
        self.context = context_for(
            driver,
            ca_file=settings.ca_file,
            expected=fingerprints(driver, settings.fingerprint),
            verify=settings.verify_tls,
        )
        self._first = 0
        """Index of the node that answered last: the next call begins there. A hint alone, so no lock."""
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )
        self._keepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[httpx.AsyncClient, None]] = (
            weakref.WeakKeyDictionary()
        )

    def token(self) -> Token:
        return read_token(self.driver, self._settings.token, self._environ)

    async def get(self, path: str, parameters: Mapping[str, object] = NONE, *, timeout_s: float = READ_S) -> Any:
        return (await self.call("GET", path, parameters, timeout_s=timeout_s)).data

    async def call(self, method: str, path: str, parameters: Mapping[str, object], *, timeout_s: float) -> Answered:
        """`path` as the API's own description has it, `/nodes/{node}/...`; its places are filled from `parameters`, the
        rest is the query (GET, DELETE) or the form. None is left out; True and False become 1 and 0."""
        rest = {key: _text(value) for key, value in parameters.items() if value is not None}
        place = _PLACE.sub(lambda found: quote(rest.pop(found[1]), safe=""), path)
        what = f"{self.driver}: {method} {place}"
        token = self.token()
        client = await self._client()
        unreached: list[str] = []
        for turn in range(len(self.bases)):
            index = (self._first + turn) % len(self.bases)
            base = self.bases[index]
            last = turn == len(self.bases) - 1
            try:
                answer = await client.request(
                    method,
                    f"{base}{PREFIX}{place}",
                    params=rest if method in ("GET", "DELETE") else None,
                    data=rest if method not in ("GET", "DELETE") else None,
                    headers={"Authorization": token.header},
                    timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
                )
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                unreached.append(f"{base}: {_why(error)}")
                if last:
                    raise DriverBusy(
                        f"{what}: no node can be reached: {'; '.join(unreached)}",
                        hint="check [envctl.driver.*] url, ca_file and fingerprint, and the network between",
                        nothing_done=True,
                    ) from error
                continue
            except httpx.HTTPError as error:
                if method == "GET" and not last:
                    unreached.append(f"{base}: {_why(error)}")
                    continue
                raise DriverBusy(
                    f"{what}: {base} gave no answer: {_why(error)}",
                    hint="" if method == "GET" else "what was asked may be under way",
                    nothing_done=method == "GET",
                ) from error
            self._first = index
            return self._data(what, base, answer)
        raise AssertionError("there is at least one node")

    async def close(self) -> None:
        """Close this event loop's connections."""
        keeper = self._keepers.pop(asyncio.get_running_loop(), None)
        if keeper is not None:
            await keeper.aclose()

    async def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None or client.is_closed:
            keeper = self._kept()
            client = await anext(keeper)
            self._clients[loop], self._keepers[loop] = client, keeper
        return client

    async def _kept(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        """A client that is closed with its loop: `asyncio.run` ends asynchronous generators before it closes the loop, so a
        verb that asks from a loop of its own leaves no connection behind."""
        client = httpx.AsyncClient(
            verify=self.context,
            transport=self._transport() if self._transport is not None else None,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=15.0),
            headers={"Accept": "application/json", "User-Agent": "s3-envctl"},
        )
        try:
            yield client
        finally:
            await client.aclose()

    def _data(self, what: str, base: str, answer: httpx.Response) -> Answered:
        body = _json(answer)
        if answer.status_code == 200 and isinstance(body, dict) and "data" in body and not body.get("errors"):
            return Answered(body["data"], base, self._clock(answer))
        errors = body.get("errors") if isinstance(body, dict) else None
        message = body.get("message") if isinstance(body, dict) else None
        if answer.status_code == 200:
            raise DriverFailed(
                f"{what}: {base} answers, but not as Proxmox VE does", hint="is [envctl.driver.*] url right?"
            )
        raise failure(
            what,
            answer.status_code,
            str(message or answer.reason_phrase or ""),
            errors if isinstance(errors, dict) else {},
        )

    def _clock(self, answer: httpx.Response) -> float | None:
        date = answer.headers.get("Date")
        if date is None:
            return None
        try:
            return parsedate_to_datetime(date).timestamp() - self._now()
        except ValueError:
            return None


def bases_of(driver: str, url: str) -> tuple[str, ...]:
    """`https://NODE:8006`, several separated by commas or blanks. ConfigError: not such. Plain http is for this host alone."""
    found = []
    for each in re.split(r"[,\s]+", url.strip()):
        if not each:
            continue
        parts = urlsplit(each)
        plain = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        if (
            not (parts.scheme == "https" or plain)
            or not parts.hostname
            or parts.query
            or parts.path not in ("", "/")
            or parts.username
        ):
            raise ConfigError(
                f"[envctl.driver.{driver}] url: {each!r} is not the address of a node; write https://NODE:8006,"
                " several of one cluster with commas between"
            )
        found.append(f"{parts.scheme}://{parts.netloc}")
    if not found:
        raise ConfigError(f"[envctl.driver.{driver}] url is not set; write https://NODE:8006")
    return tuple(found)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
