"""Who is signed in with a browser: a row for each, found by a cookie that holds 256 random bits.

One rule: the cookie's value is new whenever what it may do changes (password given, second factor given), so that one that was
planted before is worth nothing (session fixation). The database has its hash alone.

    stage      what it is good for                      ends
    password   giving the second factor, nothing else   after `SECOND_FACTOR_S`, or too many wrong codes
    full       everything the user may                  after `session_idle_s` without a request, `session_s` at the latest
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from envctl.accounts import people
from envctl.accounts.rights import RANK
from envctl.accounts.scopes import ACCOUNT_ONLY
from envctl.calling import Caller, Context
from envctl.database.models import Login, Nonce, User

Stage = Literal["password", "full"]

COOKIE_BYTES: Final = 32
SECOND_FACTOR_S: Final = 300.0
SEEN_EVERY_S: Final = 60.0
"""The last use is written down at most this often."""


@dataclass(frozen=True, slots=True)
class NewLogin:
    cookie: str
    """For the browser alone; never logged."""
    csrf: str
    stage: Stage
    expires_at: float


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A request's login. `caller` is None while the second factor is awaited."""

    user_id: str
    user_name: str
    stage: Stage
    csrf: str
    id_hash: str
    caller: Caller | None
    must: Literal["", "password", "totp"] = ""
    """What the user has to do before anything else: set a new password, or a second factor up."""


def create(session: Session, context: Context, user: User, stage: Stage, *, address: str, agent: str = "") -> NewLogin:
    """Added to `session`, a write."""
    now = context.now()
    cookie = _random_text(context)
    expires_at = now + (SECOND_FACTOR_S if stage == "password" else context.settings.session_s)
    row = Login(
        id_hash=hash_of(cookie),
        user_id=user.id,
        csrf_token=_random_text(context),
        stage=stage,
        created_at=now,
        seen_at=now,
        expires_at=expires_at,
        address=address[:64],
        agent=agent[:256],
    )
    session.add(row)
    if stage == "full":
        user.last_login_at = now
    session.flush()
    return NewLogin(cookie, row.csrf_token, stage, expires_at)


def find(context: Context, cookie: str, *, address: str = "") -> SignedIn | None:
    """Whose it is now; None for one that is unknown or over, or whose user is disabled."""
    if not cookie:
        return None
    now = context.now()
    id_hash = hash_of(cookie)
    with context.database.read() as session:
        row = session.get(Login, id_hash)
        if row is None or now >= row.expires_at or now - row.seen_at >= context.settings.session_idle_s:
            return None
        user = session.get(User, row.user_id)
        if user is None or not user.enabled:
            return None
        must = must_do(session, context, user)
        stage: Stage = "full" if row.stage == "full" else "password"
        caller = None
        if stage == "full":
            scopes = ACCOUNT_ONLY if must else None
            caller = people.caller_of(session, user, "browser", address=address, scopes=scopes, login_hash=id_hash)
        found = SignedIn(user.id, user.name, stage, row.csrf_token, id_hash, caller, must)
        stale = now - row.seen_at > min(SEEN_EVERY_S, context.settings.session_idle_s / 4)
    if stale:
        with context.database.write() as session:
            again = session.get(Login, id_hash)
            if again is not None:
                again.seen_at = max(again.seen_at, now)
    return found


def must_do(session: Session, context: Context, user: User) -> Literal["", "password", "totp"]:
    """Whoever an identity provider knows has the second factor there."""
    if user.password_hash is None:
        return ""
    if user.password_must_change:
        return "password"
    whom = context.settings.require_totp
    if user.totp_confirmed or whom == "nobody":
        return ""
    admin = RANK[people.role_of(session, user)] >= RANK["operator"]
    return "totp" if whom == "everybody" or admin else ""


def end(session: Session, id_hash: str) -> None:
    """Sign out. Nothing, where it is over already. `session`: a write."""
    session.execute(delete(Login).where(Login.id_hash == id_hash))


def end_all(session: Session, user_id: str, *, but: str = "") -> int:
    """Sign a user out everywhere, `but` one; how many there were. `session`: a write."""
    rows = session.scalars(select(Login).where(Login.user_id == user_id, Login.id_hash != but)).all()
    for row in rows:
        session.delete(row)
    return len(rows)


def sweep(context: Context, session: Session) -> None:
    """Forget logins and nonces that are over. `session`: a write."""
    now = context.now()
    session.execute(
        delete(Login).where((Login.expires_at <= now) | (Login.seen_at <= now - context.settings.session_idle_s))
    )
    session.execute(delete(Nonce).where(Nonce.expires_at <= now))


def hash_of(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).hexdigest()


def _random_text(context: Context) -> str:
    return base64.urlsafe_b64encode(context.random(COOKIE_BYTES)).decode().rstrip("=")
