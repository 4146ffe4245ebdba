"""Who a guest is: requests signed with the key that it made itself (docs/protocol/envctl-guest.md).

One rule: a signature is looked at before anything else, so that nobody without a key learns anything. Then comes whether the
machine still has the home (412 `fenced`, whatever its clock says), then the clock, then the nonce, which counts once.

| crash after | what is so | repaired by |
| --- | --- | --- |
| nonce written | the request was not carried out; its nonce is used up | the agent sends it again with another nonce |
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import delete

from envctl.calling import Context
from envctl.database.models import Environment, Guest, Nonce
from envctl.errors import Fenced
from envctl.homes.errors import ClockOff, Unsigned
from envctl.identifiers import is_id

WINDOW_S: Final = 300
_WHO: Final = re.compile(r"([0-9a-z]{26})\.([0-9]{1,9})")
_NONCE: Final = re.compile(r"[0-9a-f]{32}")
_DATE: Final = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Identity:
    environment_id: str
    generation: int


def to_sign(method: str, target: str, date: str, nonce: str, body: bytes) -> bytes:
    """What is signed. `target`: path and query as they are on the wire. `date`: Unix milliseconds, decimal."""
    return "\n".join(("envctl-v1", method, target, date, nonce, sha256(body).hexdigest())).encode()


def check(context: Context, headers: Mapping[str, str], method: str, target: str, body: bytes) -> Identity:
    """Who signed this request. `headers` are looked up in lower case. The nonce is used up when this returns, durably.

    Unsigned: not signed, wrongly, or a second time. Fenced: the identity was revoked, or a later machine has the home.
    ClockOff.
    """
    identity, public_key = _key_of(context, headers)
    date, nonce = headers.get("envctl-date", ""), headers.get("envctl-nonce", "")
    if not _DATE.fullmatch(date) or not _NONCE.fullmatch(nonce):
        raise Unsigned("the request is not signed")
    _verify(public_key, headers.get("envctl-signature", ""), to_sign(method, target, date, nonce, body))
    _admit(context, identity, int(date), nonce)
    return identity


def recognise(context: Context, headers: Mapping[str, str]) -> Identity:
    """Of which machine the request says that it is; Unsigned where there is none, or it has no key. Proves nothing: so that no
    stranger's long body is held in memory."""
    return _key_of(context, headers)[0]


def _key_of(context: Context, headers: Mapping[str, str]) -> tuple[Identity, str]:
    who = _WHO.fullmatch(headers.get("envctl-guest", ""))
    if who is None or not is_id(who[1]):
        raise Unsigned("the request is not signed")
    identity = Identity(who[1], int(who[2]))
    with context.database.read() as session:
        guest = session.get(Guest, (identity.environment_id, identity.generation))
    if guest is None or guest.public_key is None:
        raise _wrong()
    return identity, guest.public_key


def _verify(public_key: str, signature: str, signed: bytes) -> None:
    try:
        raw = base64.b64decode(signature, validate=True)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(raw, signed)
    except (InvalidSignature, ValueError, binascii.Error) as error:
        raise _wrong() from error


def _admit(context: Context, identity: Identity, date_ms: int, nonce: str) -> None:
    now = context.now()
    value = f"{identity.environment_id}.{identity.generation}.{nonce}"
    with context.database.write() as session:
        guest = session.get_one(Guest, (identity.environment_id, identity.generation))
        environment = session.get(Environment, identity.environment_id)
        if guest.revoked_at is not None or environment is None or environment.generation > identity.generation:
            raise Fenced("another machine has this home now, or none has", hint="this one must stop saving it")
        if abs(now - date_ms / 1000) > WINDOW_S:
            raise ClockOff("the moment of the signature is too far from the console's clock", int(now * 1000))
        if session.get(Nonce, value) is not None:
            raise Unsigned("the request was sent before")
        session.execute(delete(Nonce).where(Nonce.expires_at < now))
        # Twice the window: the same request must not come in again by a clock that is behind.
        session.add(Nonce(value=value, expires_at=now + 2 * WINDOW_S))
        guest.seen_at = now


def _wrong() -> Unsigned:
    return Unsigned("the signature is not one of this machine")
