"""Signing in: password, second factor, identity provider. No HTTP; `web.signing_in` has the doors.

One rule: what a stranger hears and how long it takes is the same for a name that there is not, a wrong password, an account
without one and a disabled account. Attempts are counted before a password is looked at.

    done                                  a crash after it leaves               who repairs it
    the attempt is counted                a count that is one too high          the next sign-in, or time
    the password is compared              nothing
    old login ended, new one and audit    a login that no browser has           it ends by itself (`logins.sweep`)
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.accounts import limits, logins, oidc, passwords, totp
from envctl.accounts.logins import NewLogin, SignedIn
from envctl.audit import OK
from envctl.calling import Caller, Context
from envctl.database.models import Attempt, User
from envctl.errors import NotSignedIn

NAME_CHARACTERS_MAX = 64


class WrongPassword(NotSignedIn):
    """Name and password do not go together; more is not said."""

    code = "wrong-password"


class WrongCode(NotSignedIn):
    """Not a code of now, or one that was used."""

    code = "wrong-code"


@dataclass(frozen=True, slots=True)
class From:
    """The browser that asks."""

    address: str
    agent: str = ""
    before: str = ""
    """Hash of the cookie that it has now; that login ends."""


def with_password(context: Context, name: str, password: str, browser: From) -> NewLogin:
    """A login: `full`, or of stage `password` for who has a second factor. WrongPassword, TooMany."""
    subjects = (limits.address(browser.address), limits.account(name))
    with context.database.write() as session:
        limits.begin(session, subjects, context.now())
    with context.database.read() as session:
        user = session.scalar(select(User).where(User.name == name.strip()[:NAME_CHARACTERS_MAX]))
    stored = user.password_hash if user is not None and user.enabled else None
    right = passwords.is_password(password, stored)
    if not right or user is None or stored is None:
        # Who mistypes gives a password as the name now and then: only names that there are get into the audit.
        known = user.name if user is not None else "unknown"
        _tell(context, known, "login.password", WrongPassword.code, browser, user)
        raise WrongPassword("name or password is wrong", details={"password": "name or password is wrong"})
    fresh = passwords.hash_password(password) if passwords.is_outdated(stored) else stored
    caller = Caller(user.id, user.name, "user", "browser", browser.address)
    with context.audit.act(caller, "login.password", target=user.name) as act:
        again = _still(act.session, user.id, stored)
        again.password_hash = fresh
        limits.succeeded(act.session, subjects)
        logins.end(act.session, browser.before)
        stage: logins.Stage = "password" if again.totp_confirmed else "full"
        return logins.create(act.session, context, again, stage, address=browser.address, agent=browser.agent)


def with_second_factor(context: Context, signed_in: SignedIn, code: str, browser: From) -> NewLogin:
    """The full login for one of stage `password`, by a code of the authenticator or a recovery code. WrongCode, TooMany;
    after too many wrong codes the login is over (NotSignedIn) and the password is asked for again."""
    caller = Caller(signed_in.user_id, signed_in.user_name, "user", "browser", browser.address)
    subject = limits.second_factor(signed_in.user_id)
    subjects = (limits.address(browser.address), subject)
    with context.database.write() as session:
        limits.begin(session, subjects, context.now())
        row = session.get(Attempt, subject.name)
        spent = row is not None and row.count > subject.policy.free
        if spent:
            logins.end(session, signed_in.id_hash)
    kind = ""
    with context.database.write() as session:
        user = session.get(User, signed_in.user_id)
        if user is not None and user.enabled and user.totp_confirmed:
            if totp.use_code(session, context, user, code):
                kind = "code"
            elif totp.use_recovery_code(session, context, user, code):
                kind = "recovery code"
    # The code is used up whatever becomes of the rest: one that was seen counts no second time.
    if not kind:
        _tell(context, signed_in.user_name, "login.second_factor", WrongCode.code, browser, user)
        if spent:
            raise NotSignedIn("too many wrong codes", hint="sign in again")
        raise WrongCode("that code is not right", details={"code": "that code is not right, or was used"})
    with context.audit.act(caller, "login.second_factor", target=signed_in.user_name, detail={"by": kind}) as act:
        again = _still(act.session, signed_in.user_id, None)
        limits.succeeded(act.session, subjects)
        logins.end(act.session, signed_in.id_hash)
        return logins.create(act.session, context, again, "full", address=browser.address, agent=browser.agent)


def with_identity(context: Context, pending: oidc.Pending, identity: oidc.Identity, browser: From) -> NewLogin:
    """The login of who the provider says it is. NotAccepted for an answer that was used; Refused as `oidc.user_of`."""
    caller = Caller("", identity.name[:64] or "unknown", "user", "browser", browser.address)
    with context.audit.act(caller, "login.oidc", detail={"issuer": identity.issuer, "sub": identity.subject}) as act:
        oidc.use_up(act.session, context, pending)
        user = oidc.user_of(act.session, context, identity)
        act.target = user.name
        logins.end(act.session, browser.before)
        return logins.create(act.session, context, user, "full", address=browser.address, agent=browser.agent)


def out(context: Context, signed_in: SignedIn, browser: From) -> None:
    """This browser is signed out."""
    caller = Caller(signed_in.user_id, signed_in.user_name, "user", "browser", browser.address)
    with context.audit.act(caller, "login.out", target=signed_in.user_name) as act:
        logins.end(act.session, signed_in.id_hash)


def _still(session: Session, user_id: str, stored: str | None) -> User:
    """The user as it is now: between look and write an admin may have disabled it, or set another password."""
    user = session.get(User, user_id)
    if user is None or not user.enabled or (stored is not None and user.password_hash != stored):
        raise WrongPassword("name or password is wrong", details={"password": "name or password is wrong"})
    return user


def _tell(context: Context, name: str, verb: str, outcome: str, browser: From, user: User | None) -> None:
    assert outcome != OK
    caller = Caller(user.id if user else "", name, "user", "browser", browser.address)
    context.audit.row(caller, verb, target=name, outcome=outcome)
