"""The second factor: time-based codes (RFC 6238: SHA-1, 6 digits, 30 s) and recovery codes.

One rule: a code counts once (RFC 6238, section 5.2). Secrets are sealed for their user, recovery codes are kept as keyed
hashes.
"""

import base64
import hmac
import logging
from collections.abc import Callable
from typing import Final

import pyotp
from sqlalchemy import delete, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import RecoveryCode, User
from envctl.sealing import NotOurs, SecretBox

log = logging.getLogger(__name__)

STEP_S: Final = 30
SECRET_BYTES: Final = 20
"""RFC 4226, section 4: 160 bits."""
RECOVERY_CODES: Final = 10
_RECOVERY_BYTES: Final = 10
_DRIFT: Final = (0, -1, 1)
"""Steps that a clock may be off, the likeliest first."""


def new_secret(random: Callable[[int], bytes]) -> str:
    """Base 32, as people type it into an authenticator."""
    return base64.b32encode(random(SECRET_BYTES)).decode()


def uri(secret: str, user_name: str, issuer: str) -> str:
    """What the QR code says (Key URI format of Google Authenticator)."""
    return pyotp.TOTP(secret).provisioning_uri(name=user_name, issuer_name=issuer)


def matching_step(secret: str, code: str, now_s: float, after: int) -> int | None:
    """The time step that `code` is of, one before or after now at most and later than step `after`; None: none."""
    digits = code.replace(" ", "")
    if len(digits) != 6 or not digits.isascii() or not digits.isdigit():
        return None
    generator = pyotp.TOTP(secret)
    current = int(now_s // STEP_S)
    found = None
    for drift in _DRIFT:
        step = current + drift
        # All are compared, so that the time tells nothing.
        if hmac.compare_digest(generator.generate_otp(step), digits) and step > after and found is None:
            found = step
    return found


def seal_secret(box: SecretBox, user_id: str, secret: str) -> str:
    return box.seal(secret.encode(), f"totp:{user_id}")


def use_code(session: Session, context: Context, user: User, code: str) -> bool:
    """Whether `code` is right now, from the authenticator; from here on it is used up. `user` belongs to `session`, a write."""
    if user.totp_secret is None:
        return False
    try:
        secret = context.secrets.open(user.totp_secret, f"totp:{user.id}").decode()
    except NotOurs as error:
        # No code is right. Whoever runs the console must hear why: recovery codes do not work then either.
        log.error("second factor of %s: %s; is it the key file of this database?", user.name, error)
        return False
    step = matching_step(secret, code, context.now(), user.totp_last_step)
    if step is None:
        return False
    user.totp_last_step = step
    return True


def use_recovery_code(session: Session, context: Context, user: User, code: str) -> bool:
    """Whether `code` is one of the user's that was not used; from here on it is. `session`: a write."""
    mac = _mac(context.secrets, user.id, code)
    used = session.execute(
        update(RecoveryCode)
        .where(RecoveryCode.user_id == user.id, RecoveryCode.code_hash == mac, RecoveryCode.used_at.is_(None))
        .values(used_at=context.now())
    )
    assert isinstance(used, CursorResult)
    return used.rowcount == 1


def new_recovery_codes(session: Session, context: Context, user: User) -> list[str]:
    """Ten, told once; those before are gone. `session`: a write."""
    session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))
    codes = []
    for _ in range(RECOVERY_CODES):
        drawn = base64.b32encode(context.random(_RECOVERY_BYTES)).decode().lower()
        code = "-".join(drawn[at : at + 4] for at in range(0, len(drawn), 4))
        session.add(RecoveryCode(id=context.new_id(), user_id=user.id, code_hash=_mac(context.secrets, user.id, code)))
        codes.append(code)
    return codes


def recovery_codes_left(session: Session, user_id: str) -> int:
    found = session.scalars(
        select(RecoveryCode.id).where(RecoveryCode.user_id == user_id, RecoveryCode.used_at.is_(None))
    )
    return len(found.all())


def forget(session: Session, user: User) -> None:
    """No second factor any more."""
    user.totp_secret = None
    user.totp_confirmed = False
    user.totp_last_step = 0
    session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))


def _mac(box: SecretBox, user_id: str, code: str) -> str:
    plain = code.lower().replace("-", "").replace(" ", "")
    return box.mac(plain.encode(), f"recovery:{user_id}")
