"""Who may read the figures of the console: this host, or who has the token of `[envctl] metrics_token`.

One rule: who comes through a proxy on this host comes from elsewhere, whether `proxies` names it or not.
"""

import hmac
import os

from fastapi import Request

from envctl.errors import Forbidden, NotSignedIn
from envctl.web.security import client_address, is_loopback
from s3core.credentials import read_secret, secret_path


def check(request: Request, token_place: str) -> None:
    """With a token its holder alone. NotSignedIn, Forbidden. CredentialsError for a token file that cannot be read."""
    if token_place:
        if not _has_token(request, token_place):
            raise NotSignedIn("metrics need their token", hint="Authorization: Bearer, as in [envctl] metrics_token")
        return
    if not is_from_here(request):
        raise Forbidden("metrics are for this host alone", hint="set metrics_token in [envctl] to let others read them")


def is_known(request: Request, token_place: str) -> bool:
    """This host, or who has the token. CredentialsError as for `check`, where a token was sent."""
    return is_from_here(request) or (
        bool(token_place) and "authorization" in request.headers and _has_token(request, token_place)
    )


def is_from_here(request: Request) -> bool:
    return "x-forwarded-for" not in request.headers and is_loopback(client_address(request))


def _has_token(request: Request, token_place: str) -> bool:
    given = request.headers.get("authorization", "").partition(" ")[2].strip()
    wanted = read_secret(secret_path(token_place.removeprefix("file:"), os.environ))
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
