"""How nodes know each other before one passes an initiator's connection to another: a challenge, both ways, then bytes.

    server  {"bucketworks-gateway":1,"nonce":N}
    client  {"nonce":M,"ask":"open"|"probe","target":T,"mac":HMAC("client",N,M,ask,target)}
    server  {"answer":"serving"|"busy"|"no","mac":HMAC("server",N,M,ask,target,answer)}       then, for open and serving, iSCSI

One rule: whoever does not hold the cluster's secret (/etc/pve/priv, for root alone) gets no byte of a disk and learns of
none. What follows is neither encrypted nor signed, as iSCSI is not: it belongs on the network that migrations use. Pure, but
for `read_secret` and `ask`.
"""

import hashlib
import hmac
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from plugin.errors import NotServed, PluginError

VERSION: Final = 1
LINE_BYTES_MAX: Final = 4096
PATIENCE_S: Final = 5.0
SECRET_BYTES: Final = 32

Answer = Literal["serving", "busy", "no"]
"""serving: here, now. busy: here, but attaching or leaving; ask again. no: not here."""


class NotOurs(PluginError):
    """The other end does not hold the cluster's secret, or does not speak this protocol."""

    code = "denied"


@dataclass(frozen=True, slots=True)
class Asked:
    ask: Literal["open", "probe"]
    target: str


def greeting(nonce: str) -> bytes:
    return _line({"bucketworks-gateway": VERSION, "nonce": nonce})


def request(secret: bytes, greeted: bytes, nonce: str, asked: Asked) -> bytes:
    """The client's answer to the server's greeting. NotOurs."""
    told = _told(greeted)
    if told.get("bucketworks-gateway") != VERSION:
        raise NotOurs("no gateway of this version")
    return _line(
        {
            "nonce": nonce,
            "ask": asked.ask,
            "target": asked.target,
            "mac": _mac(secret, "client", _text(told, "nonce"), nonce, asked.ask, asked.target),
        }
    )


def asked_of(secret: bytes, nonce: str, line: bytes) -> tuple[Asked, str]:
    """What a client that holds the secret asks, and its nonce. NotOurs for any other."""
    told = _told(line)
    theirs, ask, target = _text(told, "nonce"), _text(told, "ask"), _text(told, "target")
    if not _same(_text(told, "mac"), _mac(secret, "client", nonce, theirs, ask, target)):
        raise NotOurs("the secret is not the cluster's")
    if ask == "open":
        return Asked("open", target), theirs
    if ask == "probe":
        return Asked("probe", target), theirs
    raise NotOurs(f"asks {ask!r}")


def answer(secret: bytes, nonce: str, theirs: str, asked: Asked, said: Answer) -> bytes:
    return _line({"answer": said, "mac": _mac(secret, "server", nonce, theirs, asked.ask, asked.target, said)})


def answer_of(secret: bytes, greeted: bytes, nonce: str, asked: Asked, line: bytes) -> Answer:
    """What the server said. NotOurs unless it holds the secret."""
    told = _told(line)
    said = _text(told, "answer")
    theirs = _text(_told(greeted), "nonce")
    if not _same(_text(told, "mac"), _mac(secret, "server", theirs, nonce, asked.ask, asked.target, said)):
        raise NotOurs("the secret is not the cluster's")
    if said == "serving":
        return "serving"
    return "busy" if said == "busy" else "no"


def new_nonce() -> str:
    return secrets.token_hex(32)


def read_secret(path: Path) -> bytes:
    """The cluster's secret, made if there is none (of two nodes that make it at once one wins). Raises OSError, NotOurs for a
    file that holds none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
        # pmxcfs has no hard links; a rename over a secret made meanwhile is seen by the other node when it reads again.
        if not path.exists():
            os.replace(aside, path)
        aside.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    with os.fdopen(descriptor) as file:
        text = file.read().strip()
    try:
        secret = bytes.fromhex(text)
    except ValueError as error:
        raise NotOurs(f"{path}: holds no secret of gateways") from error
    if len(secret) < SECRET_BYTES:
        raise NotOurs(f"{path}: holds no secret of gateways")
    return secret


def ask(host: str, port: int, secret: bytes, target: str, *, patience_s: float = PATIENCE_S) -> Answer:
    """Whether the gateway there serves the target. Raises NotServed where it does not answer, NotOurs."""
    asked = Asked("probe", target)
    try:
        with socket.create_connection((host, port), timeout=patience_s) as sock, sock.makefile("rb") as lines:
            greeted = lines.readline(LINE_BYTES_MAX)
            if not greeted:
                raise NotServed(f"the gateway at {host}:{port} takes no connection now")
            nonce = new_nonce()
            sock.sendall(request(secret, greeted, nonce, asked))
            return answer_of(secret, greeted, nonce, asked, lines.readline(LINE_BYTES_MAX))
    except OSError as error:
        raise NotServed(f"the gateway at {host}:{port} does not answer: {error}") from error


def _mac(secret: bytes, *parts: str) -> str:
    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def _same(theirs: str, ours: str) -> bool:
    # Of strings, compare_digest takes ASCII alone, and they may send anything.
    return hmac.compare_digest(theirs.encode("utf-8", "surrogatepass"), ours.encode())


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _told(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotOurs("no line of the protocol") from error
    if not isinstance(told, dict):
        raise NotOurs("no line of the protocol")
    return told


def _text(told: dict[str, Any], key: str) -> str:
    value = told.get(key)
    if not isinstance(value, str):
        raise NotOurs(f"no {key}")
    return value
