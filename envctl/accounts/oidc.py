"""Sign in with an identity provider: OpenID Connect Core 1.0, code flow with PKCE (RFC 7636), state and nonce.

One rule: an account belongs to (issuer, `sub`), never to a name or an e-mail address that the provider tells: those change
hands. A name that a local account has already gets another one.

What has to be remembered between going there and coming back travels in a sealed cookie of that browser; each counts once.

    attack                                     what stops it
    somebody else's answer is slipped in       `state` is that of the cookie of this browser
    a code is stolen                           PKCE: the verifier is in the cookie
    an ID token of another sign-in is replayed `nonce` in the token is that of the cookie
    another provider's answer (mix-up)         `iss` of answer (RFC 9207), discovery and token are the configured one
    a token without, or with a weak signature  signature by a key of the provider, asymmetric algorithms alone
    the answer is sent twice                   `state` is used up in the database
"""

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.accounts.people import new_user
from envctl.calling import Context
from envctl.database.models import Group, Membership, Nonce, User
from envctl.errors import EnvctlError, Refused
from envctl.identifiers import check_name
from envctl.sealing import NotOurs
from s3core.clock import Clock
from s3core.credentials import read_secret, systemd_credential
from s3core.settings import OidcSettings

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S: Final = 60
"""That the provider's clock may differ."""
PENDING_S: Final = 600.0
"""To sign in there."""
FRESH_S: Final = 3600.0
"""Discovery and keys are asked for again after this; keys also when a token names one that is not known."""
KEYS_AGAIN_S: Final = 60.0
TIMEOUT_S: Final = 10.0
DOCUMENT_BYTES_MAX: Final = 1 << 20
CALLBACK: Final = "/login/oidc/callback"
_PURPOSE: Final = "oidc"


class ProviderFailed(EnvctlError):
    """The identity provider does not answer, or not as it should. What is wrong is in the console's log."""

    code = "provider-failed"
    status = 502
    retryable = True


class NotAccepted(EnvctlError):
    """The answer is not for this browser's sign-in, or not good. Nobody was signed in."""

    code = "not-accepted"
    status = 401


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in that went to the provider."""

    state: str
    nonce: str
    verifier: str
    next: str
    """Path of ours to go to afterwards."""
    begun_at: float


@dataclass(frozen=True, slots=True)
class Identity:
    issuer: str
    subject: str
    name: str
    display_name: str = ""
    email: str = ""
    groups: frozenset[str] | None = None
    """None: the token has no such claim."""


class Provider:
    """The configured one. Threads share it. `http`: makes the client that asks it; tests bring their own."""

    def __init__(
        self,
        settings: OidcSettings,
        redirect_uri: str,
        clock: Clock,
        *,
        secret: str = "",
        http: Callable[[], httpx.Client] | None = None,
    ) -> None:
        self.settings: Final = settings
        self._redirect_uri = redirect_uri
        self._clock = clock
        self._secret = secret
        self._http = http or (lambda: httpx.Client(timeout=TIMEOUT_S, follow_redirects=False))
        self._lock = threading.Lock()
        self._documents: dict[str, tuple[float, dict[str, Any]]] = {}
        """By address, with the moment they were fetched. Under the lock."""

    def begin(self, random: Callable[[int], bytes], next_path: str) -> tuple[str, Pending]:
        """Where to send the browser, and what it must bring back. ProviderFailed."""
        pending = Pending(random(32).hex(), random(32).hex(), random(48).hex(), next_path, self._clock.time())
        address = self._endpoint("authorization_endpoint")
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": pending.state,
            "nonce": pending.nonce,
            "code_challenge": challenge_of(pending.verifier),
            "code_challenge_method": "S256",
        }
        return address + ("&" if "?" in address else "?") + urlencode(asked), pending

    def finish(self, pending: Pending, query: Mapping[str, str]) -> Identity:
        """Who it is, by the answer in the address that the browser came back to. NotAccepted, ProviderFailed."""
        if not _same(query.get("state", ""), pending.state):
            raise NotAccepted("this sign-in was not begun in this browser", hint="begin again from the sign-in page")
        if self._clock.time() - pending.begun_at > PENDING_S:
            raise NotAccepted("the sign-in took too long", hint="begin again from the sign-in page")
        self._check_issuer(query.get("iss"))
        if "error" in query:
            raise NotAccepted("the identity provider did not sign you in", hint=query["error"][:64])
        code = query.get("code", "")
        if not code:
            raise NotAccepted("the answer has no code", hint="begin again from the sign-in page")
        told = self._redeem(code, pending)
        token = told.get("id_token")
        if not isinstance(token, str):
            raise ProviderFailed(
                "the identity provider gave no ID token", hint="`scopes` in [envctl.oidc] needs openid"
            )
        return self._identity(self._claims(token, pending))

    def _redeem(self, code: str, pending: Pending) -> dict[str, Any]:
        """The token endpoint's answer for a code (RFC 6749, 4.1.3)."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": pending.verifier,
        }
        headers = {"Accept": "application/json"}
        if self._secret:
            # RFC 6749, 2.3.1: both are form-encoded before they are joined.
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form["client_id"] = self.settings.client_id
        address = self._endpoint("token_endpoint")
        try:
            with self._http() as client:
                response = client.post(address, data=form, headers=headers)
            told = response.json()
        except (httpx.HTTPError, ValueError) as error:
            # The text of these may hold the code.
            log.warning("oidc: the token endpoint did not answer: %s", type(error).__name__)
            raise ProviderFailed(
                "the identity provider does not answer", hint="begin again from the sign-in page"
            ) from error
        if response.status_code != 200 or not isinstance(told, dict):
            why = told.get("error") if isinstance(told, dict) else None
            log.warning("oidc: the provider gave no token: status %d, error %.64r", response.status_code, why)
            raise NotAccepted("the identity provider did not take the code", hint="begin again from the sign-in page")
        return told

    def _claims(self, token: str, pending: Pending) -> dict[str, Any]:
        try:
            claims = dict(self._decoded(token))
            jwt.JWTClaimsRegistry(
                now=lambda: int(self._clock.time()),
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self.settings.issuer},
                aud={"essential": True, "value": self.settings.client_id},
                sub={"essential": True},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": pending.nonce},
            ).validate(claims)
        except (JoseError, ValueError, KeyError) as error:
            log.warning("oidc: the ID token is not good: %s: %s", type(error).__name__, error)
            raise NotAccepted("the identity provider's token is not good", hint="begin again") from error
        audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        # OpenID Connect Core 3.1.3.7, steps 4 and 5.
        if (len(audience) > 1 or "azp" in claims) and claims.get("azp") != self.settings.client_id:
            raise NotAccepted("the identity provider's token is for another program")
        return claims

    def _decoded(self, token: str) -> Mapping[str, Any]:
        address = self._endpoint("jwks_uri")
        try:
            return jwt.decode(token, self._keys(address), algorithms=list(ALGORITHMS)).claims
        except (JoseError, ValueError):
            # A provider that changed its keys: ask once more, but not for every token that somebody makes up.
            fetched_at = self._documents[address][0]
            if self._clock.time() - fetched_at < KEYS_AGAIN_S:
                raise
            with self._lock:
                self._documents.pop(address, None)
            return jwt.decode(token, self._keys(address), algorithms=list(ALGORITHMS)).claims

    def _keys(self, address: str) -> KeySet:
        return KeySet.import_key_set(self._document(address))  # type: ignore[arg-type]  # checked by what it raises

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = str(claims["sub"])
        if not 1 <= len(subject) <= 255:
            raise NotAccepted("the identity provider's token names nobody")
        groups = claims.get(self.settings.groups_claim)
        if isinstance(groups, str):
            groups = [groups]
        return Identity(
            issuer=self.settings.issuer,
            subject=subject,
            name=_text(claims.get(self.settings.name_claim)) or _text(claims.get("email")).partition("@")[0],
            display_name=_text(claims.get("name"))[:128],
            email=_text(claims.get("email"))[:254],
            groups=frozenset(str(group) for group in groups) if isinstance(groups, list) else None,
        )

    def _check_issuer(self, told: str | None) -> None:
        must = self._discovery().get("authorization_response_iss_parameter_supported") is True
        if (told is None and must) or (told is not None and told != self.settings.issuer):
            raise NotAccepted(
                "the answer comes from another identity provider", hint="begin again from the sign-in page"
            )

    def _endpoint(self, name: str) -> str:
        found = self._discovery().get(name)
        if not isinstance(found, str) or not is_safe(found):
            raise ProviderFailed(f"the identity provider has no usable {name}", hint="its addresses must be https")
        return found

    def _discovery(self) -> dict[str, Any]:
        issuer = self.settings.issuer
        if not is_safe(issuer):
            raise ProviderFailed("`issuer` in [envctl.oidc] must be https", hint="http is for loopback alone")
        found = self._document(issuer.rstrip("/") + "/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            # OpenID Connect Discovery 1.0, 4.3.
            raise ProviderFailed(
                f"the identity provider calls itself {str(found.get('issuer'))[:200]!r}",
                hint="`issuer` in [envctl.oidc] must be the same, letter by letter",
            )
        return found

    def _document(self, address: str) -> dict[str, Any]:
        now = self._clock.time()
        with self._lock:
            known = self._documents.get(address)
        if known is not None and now - known[0] < FRESH_S:
            return known[1]
        try:
            with self._http() as client:
                response = client.get(address, headers={"Accept": "application/json"})
            response.raise_for_status()
            if len(response.content) > DOCUMENT_BYTES_MAX:
                raise ValueError("it is too long")
            found = response.json()
            if not isinstance(found, dict):
                raise ValueError("it is not a JSON object")
        except (httpx.HTTPError, ValueError) as error:
            log.warning("oidc: %s: %s: %s", address, type(error).__name__, error)
            raise ProviderFailed(
                "the identity provider does not answer", hint="try again; the console's log says more"
            ) from error
        with self._lock:
            self._documents[address] = (now, found)
        return found


def open_provider(context: Context, environ: Mapping[str, str], callback_url: str) -> Provider | None:
    """The one of `[envctl.oidc]`; None where there is none. CredentialsError for a secret that cannot be read."""
    settings = context.settings.oidc
    if not settings.issuer:
        return None
    kind, _, place = settings.client_secret.partition(":")
    secret = ""
    if kind == "file":
        secret = read_secret(Path(place).expanduser())
    elif kind == "systemd":
        secret = read_secret(systemd_credential(place, environ))
    return Provider(settings, callback_url, context.clock, secret=secret)


def seal(context: Context, pending: Pending) -> str:
    """For a cookie."""
    told = [pending.state, pending.nonce, pending.verifier, pending.next, pending.begun_at]
    return context.secrets.seal(json.dumps(told).encode(), _PURPOSE)


def unseal(context: Context, sealed: str) -> Pending:
    """NotAccepted for a cookie that is missing or not ours."""
    try:
        state, nonce, verifier, next_path, begun_at = json.loads(context.secrets.open(sealed, _PURPOSE))
    except (NotOurs, ValueError) as error:
        raise NotAccepted(
            "this sign-in was not begun in this browser", hint="begin again from the sign-in page"
        ) from error
    return Pending(state, nonce, verifier, next_path, begun_at)


def use_up(session: Session, context: Context, pending: Pending) -> None:
    """From here on this sign-in cannot be finished again. NotAccepted, where it was. `session`: a write."""
    value = "oidc:" + hashlib.sha256(pending.state.encode()).hexdigest()
    if session.get(Nonce, value) is not None:
        raise NotAccepted("that sign-in was finished already", hint="begin again from the sign-in page")
    session.add(Nonce(value=value, expires_at=context.now() + PENDING_S + LEEWAY_S))
    session.flush()


def user_of(session: Session, context: Context, identity: Identity) -> User:
    """The account of an identity, made now where that is allowed; its groups are those that the provider tells. `session`: a
    write. Refused, where there is none and none is made, or it is disabled."""
    user = session.scalar(
        select(User).where(User.oidc_issuer == identity.issuer, User.oidc_subject == identity.subject)
    )
    if user is None:
        if not context.settings.oidc.create_users:
            raise Refused("there is no account for you here", hint="ask an admin to make one")
        user = new_user(session, context, free_name(session, identity.name), None, role="user", must_change=False)
        user.oidc_issuer, user.oidc_subject = identity.issuer, identity.subject
    if not user.enabled:
        raise Refused("your account is disabled", hint="ask an admin")
    user.display_name = identity.display_name or user.display_name
    user.email = identity.email or user.email
    if identity.groups is not None:
        _set_groups(session, user, identity.groups)
    session.flush()
    return user


def free_name(session: Session, wanted: str) -> str:
    """A name that nobody has, made of what the provider calls somebody."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in wanted.lower())
    base = letters.strip("-")[:32].strip("-")
    try:
        check_name(base)
    except ValueError:
        base = f"user-{base}"[:36].strip("-")
    taken = set(session.scalars(select(User.name).where(User.name.startswith(base, autoescape=True))))
    number = 1
    name = base
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return check_name(name)


def challenge_of(verifier: str) -> str:
    """S256 of RFC 7636, 4.2."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def is_safe(url: str) -> bool:
    """https, or this host."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and parsed.host in ("127.0.0.1", "::1", "localhost"))


def _set_groups(session: Session, user: User, told: frozenset[str]) -> None:
    """Memberships that an admin gave stay."""
    wanted = {group.id for group in session.scalars(select(Group).where(Group.oidc_value.in_(sorted(told))))}
    held = {row.group_id: row for row in session.scalars(select(Membership).where(Membership.user_id == user.id))}
    for group_id, row in held.items():
        if row.from_oidc and group_id not in wanted:
            session.delete(row)
    for group_id in wanted - held.keys():
        session.add(Membership(user_id=user.id, group_id=group_id, from_oidc=True))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _same(one: str, other: str) -> bool:
    # Hashes, so that the time tells nothing about where they differ.
    return hashlib.sha256(one.encode("utf-8", "surrogateescape")).digest() == hashlib.sha256(other.encode()).digest()
