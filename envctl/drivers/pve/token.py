"""The API token: read when it is needed, kept nowhere else, shown never.

One rule: no message, no log line and no `repr` holds the secret. It is read again for each connection attempt that the cluster
refused, so a token that was exchanged in its file works without a restart.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from envctl.errors import DriverFailed
from s3core.credentials import CredentialsError, read_secret, systemd_credential

_TOKEN: Final = re.compile(
    r"(?:PVEAPIToken=)?([^\s:/@!=]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+)=([0-9A-Za-z-]+)"
)


@dataclass(frozen=True, slots=True)
class Token:
    name: str
    """`USER@REALM!NAME`: no secret."""
    secret: str = field(repr=False)

    @property
    def header(self) -> str:
        return f"PVEAPIToken={self.name}={self.secret}"


def read_token(driver: str, source: str, environ: Mapping[str, str] | None = None) -> Token:
    """From `file:PATH` (mode 0600) or `systemd:NAME`. DriverFailed says what is wrong, never what is in it."""
    kind, _, name = source.partition(":")
    if kind not in ("file", "systemd") or not name:
        raise DriverFailed(
            f"[envctl.driver.{driver}] token is not set",
            hint="token = file:PATH or systemd:NAME, with USER@REALM!NAME=SECRET in it; see docs/envctl/pve.md",
            details={"reason": "token"},
        )
    try:
        path = Path(name) if kind == "file" else systemd_credential(name, os.environ if environ is None else environ)
        text = read_secret(path)
    except CredentialsError as error:
        raise DriverFailed(f"[envctl.driver.{driver}] token: {error}", details={"reason": "token"}) from error
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise DriverFailed(
            f"[envctl.driver.{driver}] token: {path} does not hold USER@REALM!NAME=SECRET",
            hint="as `pveum user token add` shows it: full-tokenid=value",
            details={"reason": "token"},
        )
    return Token(found[1], found[2])
