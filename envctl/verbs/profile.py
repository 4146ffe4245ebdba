"""Verbs about the own account: password, second factor, SSH keys, sign-ins."""

from typing import Final

import segno
from sqlalchemy import select

from envctl.accounts import limits, logins, passwords, totp
from envctl.accounts.rights import require
from envctl.accounts.ssh_keys import check_key
from envctl.calling import Caller, Context
from envctl.database.models import Login, User
from envctl.errors import Forbidden, Invalid, NoSuchThing, Refused
from envctl.verbs.people import user_view
from envctl.verbs.people_models import (
    ChangePassword,
    ConfirmTotp,
    EndLogin,
    LoginView,
    ProfileView,
    Proof,
    RecoveryCodes,
    SetKeys,
    TotpBegun,
    UpdateProfile,
)
from envctl.verbs.verb import Done, Nothing, Verb

ISSUER: Final = "Bucketworks"
LOGIN_ID_CHARACTERS: Final = 16
"""Of the hash of a cookie's value: enough to name it, and no way back to it."""


def profile_show(context: Context, caller: Caller, request: Nothing) -> ProfileView:
    require(caller, "profile:read")
    with context.database.read() as session:
        user = session.get_one(User, caller.user_id)
        return ProfileView(
            user=user_view(session, user),
            theme=user.theme,
            ssh_keys=user.ssh_keys,
            recovery_codes_left=totp.recovery_codes_left(session, user.id),
            must=logins.must_do(session, context, user),
            has_password=user.password_hash is not None,
        )


def profile_update(context: Context, caller: Caller, request: UpdateProfile) -> ProfileView:
    detail = request.model_dump(exclude_none=True)
    with context.audit.act(caller, "profile.update", target=caller.name, detail=detail) as act:
        require(caller, "profile:write")
        user = act.session.get_one(User, caller.user_id)
        if request.theme is not None:
            user.theme = request.theme
        if request.display_name is not None:
            user.display_name = request.display_name
        if request.email is not None:
            user.email = request.email
    return profile_show(context, caller, Nothing())


def profile_password(context: Context, caller: Caller, request: ChangePassword) -> Done:
    """Every other sign-in of the account ends. Tokens stay: they are revoked one by one."""
    hashed_now = prove(context, caller, "profile.password", request.current_password)
    if hashed_now is None:
        raise Refused("you sign in with the identity provider", hint="the password is changed there")
    try:
        passwords.check_new(request.new_password, caller.name)
    except Invalid as error:
        raise Invalid(error.args[0], hint=error.hint, details={"new_password": error.args[0]}) from error
    if request.new_password == request.current_password:
        raise Invalid("that is the password of now", details={"new_password": "that is the password of now"})
    hashed = passwords.hash_password(request.new_password)
    with context.audit.act(caller, "profile.password", target=caller.name) as act:
        user = _proven(act.session.get(User, caller.user_id), hashed_now)
        user.password_hash, user.password_must_change = hashed, False
        ended = logins.end_all(act.session, user.id, but=caller.login_hash)
    return Done(message=f"the password is changed; {ended} other sign-ins ended")


def profile_totp_begin(context: Context, caller: Caller, request: Proof) -> TotpBegun:
    """A new secret, which counts once a code of it was given (`profile.totp_confirm`). Who has one must switch it off first."""
    hashed_now = prove(context, caller, "profile.totp_begin", request.current_password)
    secret = totp.new_secret(context.random)
    with context.audit.act(caller, "profile.totp_begin", target=caller.name) as act:
        user = _proven(act.session.get(User, caller.user_id), hashed_now)
        if user.password_hash is None:
            raise Refused("you sign in with the identity provider", hint="set the second factor up there")
        if user.totp_confirmed:
            raise Refused("there is a second factor already", hint="switch it off first")
        user.totp_secret = totp.seal_secret(context.secrets, user.id, secret)
        user.totp_last_step = 0
    uri = totp.uri(secret, caller.name, ISSUER)
    image = segno.make(uri, error="m", micro=False).png_data_uri(scale=5, border=3)
    return TotpBegun(secret=secret, uri=uri, qr_png=str(image))


def profile_totp_confirm(context: Context, caller: Caller, request: ConfirmTotp) -> RecoveryCodes:
    """From here on a sign-in needs a code. Every other sign-in of the account ends. The answer has the recovery codes."""
    _count(context, caller)
    with context.audit.act(caller, "profile.totp_confirm", target=caller.name) as act:
        require(caller, "profile:write")
        user = act.session.get_one(User, caller.user_id)
        if user.totp_secret is None or user.totp_confirmed:
            raise Refused("no second factor is being set up", hint="begin: profile totp-begin")
        if not totp.use_code(act.session, context, user, request.code):
            raise Invalid(
                "that code is not right",
                hint="is the clock of your device right?",
                details={"code": "that code is not right"},
            )
        user.totp_confirmed = True
        codes = totp.new_recovery_codes(act.session, context, user)
        logins.end_all(act.session, user.id, but=caller.login_hash)
        limits.succeeded(act.session, [limits.second_factor(user.id)])
    return RecoveryCodes(codes=codes)


def profile_totp_off(context: Context, caller: Caller, request: Proof) -> Done:
    hashed_now = prove(context, caller, "profile.totp_off", request.current_password)
    with context.audit.act(caller, "profile.totp_off", target=caller.name) as act:
        user = _proven(act.session.get(User, caller.user_id), hashed_now)
        totp.forget(act.session, user)
    return Done(message="there is no second factor any more")


def profile_recovery_codes(context: Context, caller: Caller, request: Proof) -> RecoveryCodes:
    """New ones; those before are gone."""
    hashed_now = prove(context, caller, "profile.recovery_codes", request.current_password)
    with context.audit.act(caller, "profile.recovery_codes", target=caller.name) as act:
        user = _proven(act.session.get(User, caller.user_id), hashed_now)
        if not user.totp_confirmed:
            raise Refused("there is no second factor", hint="set one up first: profile totp-begin")
        return RecoveryCodes(codes=totp.new_recovery_codes(act.session, context, user))


def profile_keys(context: Context, caller: Caller, request: SetKeys) -> ProfileView:
    """All public SSH keys; those that are not named are gone. Machines get them with their next seed."""
    with context.audit.act(caller, "profile.keys", target=caller.name, detail={"keys": len(request.keys)}) as act:
        require(caller, "profile:write")
        found: list[str] = []
        for number, text in enumerate(request.keys, start=1):
            try:
                key = check_key(text)
            except ValueError as error:
                message = f"key {number}: {error}" if len(request.keys) > 1 else str(error)
                raise Invalid(message, details={"keys": message}) from error
            if key.split(" ")[1] not in {known.split(" ")[1] for known in found}:
                found.append(key)
        act.session.get_one(User, caller.user_id).ssh_keys = found
    return profile_show(context, caller, Nothing())


def profile_logins(context: Context, caller: Caller, request: Nothing) -> list[LoginView]:
    require(caller, "profile:read")
    now = context.now()
    with context.database.read() as session:
        rows = session.scalars(
            select(Login)
            .where(
                Login.user_id == caller.user_id,
                Login.stage == "full",
                Login.expires_at > now,
                Login.seen_at > now - context.settings.session_idle_s,
            )
            .order_by(Login.seen_at.desc())
        )
        return [
            LoginView(
                id=row.id_hash[:LOGIN_ID_CHARACTERS],
                this=row.id_hash == caller.login_hash,
                created_at=row.created_at,
                seen_at=row.seen_at,
                expires_at=row.expires_at,
                address=row.address,
                agent=row.agent,
            )
            for row in rows
        ]


def profile_logout(context: Context, caller: Caller, request: EndLogin) -> Done:
    """End one sign-in, from wherever it is."""
    with context.audit.act(caller, "profile.logout", target=caller.name) as act:
        require(caller, "profile:write")
        rows = act.session.scalars(select(Login).where(Login.user_id == caller.user_id))
        found = [row for row in rows if row.id_hash[:LOGIN_ID_CHARACTERS] == request.login]
        if not found:
            raise NoSuchThing(f"there is no sign-in {request.login!r}", hint="profile logins shows yours")
        logins.end(act.session, found[0].id_hash)
    return Done(message="that sign-in is ended")


def profile_logout_everywhere(context: Context, caller: Caller, request: Nothing) -> Done:
    """End every sign-in of the account, but the one that asks."""
    with context.audit.act(caller, "profile.logout_everywhere", target=caller.name) as act:
        require(caller, "profile:write")
        ended = logins.end_all(act.session, caller.user_id, but=caller.login_hash)
    return Done(message=f"{ended} other sign-ins ended")


def prove(context: Context, caller: Caller, verb: str, password: str) -> str | None:
    """The stored hash that `password` is right for; None for an account without one. Forbidden for a wrong one, which leaves a
    row in the audit; TooMany after several: whoever sits down at an open browser must not guess."""
    require(caller, "profile:write")
    with context.database.read() as session:
        stored = session.get_one(User, caller.user_id).password_hash
    if stored is None:
        return None
    _count(context, caller)
    if not passwords.is_password(password, stored):
        context.audit.row(caller, verb, target=caller.name, outcome="wrong-password")
        raise Forbidden("that is not your password", hint="", details={"current_password": "that is not your password"})
    with context.database.write() as session:
        limits.succeeded(session, [limits.second_factor(caller.user_id)])
    return stored


def _count(context: Context, caller: Caller) -> None:
    with context.database.write() as session:
        limits.begin(session, [limits.second_factor(caller.user_id)], context.now())


def _proven(user: User | None, stored: str | None) -> User:
    """The row, where the password is still the one that was proven."""
    if user is None or user.password_hash != stored:
        raise Refused("the account was changed meanwhile", hint="try again")
    return user


VERBS: Final = (
    Verb("profile.show", "GET", "/profile", "profile:read", profile_show, Nothing, ProfileView, "Show your account"),
    Verb(
        "profile.update", "PATCH", "/profile", "profile:write", profile_update, UpdateProfile, ProfileView,
        "Change your theme, display name or e-mail address",
    ),
    Verb(
        "profile.password", "POST", "/profile/password", "profile:write", profile_password, ChangePassword, Done,
        "Change your password",
    ),
    Verb(
        "profile.totp_begin", "POST", "/profile/totp", "profile:write", profile_totp_begin, Proof, TotpBegun,
        "Begin to set a second factor up",
    ),
    Verb(
        "profile.totp_confirm", "POST", "/profile/totp/confirm", "profile:write", profile_totp_confirm, ConfirmTotp,
        RecoveryCodes, "Switch the second factor on by a first code",
    ),
    Verb(
        "profile.totp_off", "POST", "/profile/totp/off", "profile:write", profile_totp_off, Proof, Done,
        "Switch the second factor off", destructive=True,
    ),
    Verb(
        "profile.recovery_codes", "POST", "/profile/recovery-codes", "profile:write", profile_recovery_codes, Proof,
        RecoveryCodes, "Make new recovery codes", destructive=True,
    ),
    Verb("profile.keys", "PUT", "/profile/keys", "profile:write", profile_keys, SetKeys, ProfileView, "Set your SSH keys"),
    Verb(
        "profile.logins", "GET", "/profile/logins", "profile:read", profile_logins, Nothing, list[LoginView],
        "List where you are signed in",
    ),
    Verb(
        "profile.logout", "DELETE", "/profile/logins/{login}", "profile:write", profile_logout, EndLogin, Done,
        "End one of your sign-ins",
    ),
    Verb(
        "profile.logout_everywhere", "POST", "/profile/logout-everywhere", "profile:write", profile_logout_everywhere,
        Nothing, Done, "End all your other sign-ins", destructive=True,
    ),
)  # fmt: skip
