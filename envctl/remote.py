"""The command's side of the REST API: where the console is, what to show it, and what it answered.

Address and token come from ENVCTL_URL and ENVCTL_TOKEN, else from a file of mode 0600 (`~/.config/s3-envctl.toml`: `url`,
`token`, `ca_file`). One rule: an answer that is no answer (a lost connection, a page of a proxy) is an error that says which; a
change whose answer was lost is told as unknown, never repeated.
"""

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from envctl.errors import EnvctlError, Forbidden, Invalid, NoSuchThing, NotSignedIn, OverQuota, Refused, TooMany
from s3core.errors import OutcomeUnknown, Unavailable
from s3core.settings import ConfigError

CONFIG: Final = Path("~/.config/s3-envctl.toml")
TIMEOUT_S: Final = 60.0
_KINDS: Final = {kind.code: kind for kind in (Forbidden, Invalid, NoSuchThing, NotSignedIn, OverQuota, Refused)}


@dataclass(frozen=True, slots=True)
class Console:
    url: str
    token: str
    ca_file: str = ""


def find_console(environ: Mapping[str, str], config: Path | None = None) -> Console:
    """ConfigError says what is missing and how to give it."""
    path = (config or CONFIG).expanduser()
    told: dict[str, Any] = {}
    if path.exists():
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} holds a token and others may read it", hint=f"chmod 600 {path}")
        try:
            told = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from error
        unknown = sorted(set(told) - {"url", "token", "ca_file"})
        if unknown:
            raise ConfigError(f"{path}: unknown setting {unknown[0]}", hint="it has url, token and ca_file")
    url = environ.get("ENVCTL_URL") or str(told.get("url", ""))
    token = environ.get("ENVCTL_TOKEN") or str(told.get("token", ""))
    if not url or not token:
        raise ConfigError(
            f"no {'address' if not url else 'token'} of a console is known",
            hint=f"set ENVCTL_URL and ENVCTL_TOKEN, or write url and token to {path}; a token is made on the profile page",
        )
    return Console(url.rstrip("/"), token, str(told.get("ca_file", "")))


class Remote:
    """Calls verbs over HTTP. Close it."""

    def __init__(self, console: Console, transport: httpx.BaseTransport | None = None) -> None:
        self._console = console
        verify: Any = console.ca_file or True
        self._client = httpx.Client(
            base_url=console.url,
            headers={"Authorization": f"Bearer {console.token}", "Accept": "application/json"},
            timeout=TIMEOUT_S,
            verify=verify if transport is None else True,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, fields: Mapping[str, object]) -> Any:
        """The answer, as JSON has it. EnvctlError as the console raised it; Unavailable; OutcomeUnknown."""
        with self._asking(method, path):
            found = self._client.request(method, "/api/v1" + path, **_placed(method, fields))
        return _answer(found)

    @contextmanager
    def stream(self, method: str, path: str, fields: Mapping[str, object]) -> Iterator[httpx.Response]:
        """The bytes of an answer as they come."""
        with (
            self._asking(method, path),
            self._client.stream(method, "/api/v1" + path, **_placed(method, fields)) as found,
        ):
            if found.status_code >= 400:
                found.read()
                _answer(found)
            yield found

    @contextmanager
    def _asking(self, method: str, path: str) -> Iterator[None]:
        where = self._console.url
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(f"no console answers at {where}: {error}") from error
        except httpx.TransportError as error:
            if method == "GET":
                raise Unavailable(f"the console at {where} did not answer: {error or type(error).__name__}") from error
            raise OutcomeUnknown(
                f"{method} {path} was sent to {where} and its answer lost: {error or type(error).__name__}"
            ) from error


def address_of(environ: Mapping[str, str] = os.environ) -> str:
    """Where a browser finds the console. ConfigError."""
    return find_console(environ).url


def _placed(method: str, fields: Mapping[str, object]) -> dict[str, Any]:
    return {"params": dict(fields)} if method in ("GET", "DELETE") else {"json": dict(fields)}


def _answer(found: httpx.Response) -> Any:
    try:
        told = found.json()
    except ValueError as error:
        raise Unavailable(
            f"{found.request.url.copy_with(query=None)} answered {found.status_code} with something that is no JSON;"
            " is it the console's address?"
        ) from error
    if found.status_code < 400:
        return told
    said = told.get("error", {}) if isinstance(told, dict) else {}
    message, hint = str(said.get("message", f"the console answered {found.status_code}")), str(said.get("hint", ""))
    code = str(said.get("code", ""))
    if code == TooMany.code:
        raise TooMany(message, hint=hint, retry_after_s=float(found.headers.get("Retry-After", "60")))
    kind = _KINDS.get(code)
    if kind is not None:
        raise kind(message, hint=hint, details=said.get("details"))
    if found.status_code in (502, 503, 504):
        raise Unavailable(message)
    raise EnvctlError(message, hint=hint)
