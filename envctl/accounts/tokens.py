"""API tokens: `bwe_<id>_<secret>`, shown once, kept as a hash.

One rule: a token is somebody's, and may at most what its user may at that moment.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from envctl.accounts import people
from envctl.calling import Caller, Context, Via
from envctl.database.models import ApiToken, User
from envctl.errors import Refused
from envctl.identifiers import is_id

PREFIX: Final = "bwe_"
"""Scanners for leaked secrets find them by it."""
SECRET_BYTES: Final = 32
TOKENS_MAX: Final = 50
"""Of a user; those that are revoked or expired do not count."""
SEEN_EVERY_S: Final = 60.0
"""The last use is written down at most this often: a request must not cost a write."""


@dataclass(frozen=True, slots=True)
class NewToken:
    row: ApiToken
    text: str
    """The token itself. Shown once."""


def create(
    session: Session, context: Context, user: User, name: str, scopes: list[str], expires_at: float | None
) -> NewToken:
    """Added to `session`, a write. Refused where the user has TOKENS_MAX that can be used."""
    now = context.now()
    usable = select(func.count()).where(
        ApiToken.user_id == user.id,
        ApiToken.revoked_at.is_(None),
        or_(ApiToken.expires_at.is_(None), ApiToken.expires_at > now),
    )
    if session.scalars(usable).one() >= TOKENS_MAX:
        raise Refused(
            f"{user.name} has {TOKENS_MAX} tokens, and may have no more",
            hint="revoke one that is not used: s3-envctl token list, s3-envctl token revoke",
        )
    secret = base64.b32encode(context.random(SECRET_BYTES)).decode().lower().rstrip("=")
    row = ApiToken(
        id=context.new_id(),
        user_id=user.id,
        name=name,
        token_hash=_hash(secret),
        scopes=scopes,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return NewToken(row, f"{PREFIX}{row.id}_{secret}")


def find(context: Context, text: str, *, address: str = "", via: Via = "api") -> Caller | None:
    """Who has the token; None for one that is unknown, revoked or expired, or whose user is disabled."""
    row_id, _, secret = text.removeprefix(PREFIX).partition("_")
    if not text.startswith(PREFIX) or not is_id(row_id):
        return None
    now = context.now()
    with context.database.read() as session:
        row = session.get(ApiToken, row_id)
        stored = row.token_hash if row is not None else _hash("")
        if not hmac.compare_digest(stored, _hash(secret)) or row is None:
            return None
        user = session.get(User, row.user_id)
        if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now):
            return None
        if user is None or not user.enabled:
            return None
        caller = people.caller_of(session, user, via, address=address, scopes=frozenset(row.scopes))
        stale = row.last_used_at is None or now - row.last_used_at > SEEN_EVERY_S
    if stale:
        with context.database.write() as session:
            again = session.get(ApiToken, row_id)
            if again is not None:
                again.last_used_at, again.last_used_from = now, address[:64]
    return caller


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
