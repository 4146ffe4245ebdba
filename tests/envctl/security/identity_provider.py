"""A small identity provider on loopback: discovery, keys, token endpoint, with keys of its own and real signatures.

    with IdentityProvider() as provider:
        callback = provider.sign_in(address_that_the_console_sent_the_browser_to)

One rule: it is honest unless a test says otherwise, and checks what a real one checks (PKCE, redirect URI, the code's one use).
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

KEY = RSAKey.generate_key(2048, parameters={"kid": "one"})
"""Of every provider here: one takes a while to make."""
CLIENT = "console"
SECRET = "the client's / secret"

Claims = dict[str, Any]


class IdentityProvider:
    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.key = KEY
        self.published = KeySet([self.key])
        self.person: Claims = {
            "sub": "17",
            "preferred_username": "carol",
            "name": "Carol C.",
            "email": "carol@example.org",
        }
        self.change: Callable[[Claims], Claims] = lambda claims: claims
        """What a liar makes of the claims."""
        self.sign: Callable[[Claims], str] = self._signed
        self.names_itself: str | None = None
        """`issuer` of the discovery, where it lies."""
        self.sends_iss = True
        self.asked: list[str] = []
        """Paths that were asked for."""
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                self._tell(200, provider._document(self.path))

            def do_POST(self) -> None:
                provider.asked.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._tell(*provider._redeem(dict(self.headers), body))

            def log_message(self, *_: object) -> None:
                pass

            def _tell(self, status: int, document: Any) -> None:
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realm"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def sign_in(self, address: str) -> str:
        """Path and query that the browser comes back with, from the address that it was sent to."""
        split = urlsplit(address)
        assert f"{split.scheme}://{split.netloc}{split.path}" == self.issuer + "/authorize"
        asked = {name: values[0] for name, values in parse_qs(split.query, strict_parsing=True).items()}
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        told = {"code": code, "state": asked["state"]}
        if self.sends_iss:
            told["iss"] = self.issuer
        return urlsplit(asked["redirect_uri"]).path + "?" + urlencode(told)

    def _document(self, path: str) -> Any:
        if path == "/realm/.well-known/openid-configuration":
            return {
                "issuer": self.names_itself or self.issuer,
                "authorization_endpoint": self.issuer + "/authorize",
                "token_endpoint": self.issuer + "/token",
                "jwks_uri": self.issuer + "/keys",
                "authorization_response_iss_parameter_supported": self.sends_iss,
            }
        if path == "/realm/keys":
            return self.published.as_dict(private=False)
        return {"error": "not found"}

    def _redeem(self, headers: dict[str, str], body: str) -> tuple[int, Any]:
        form = {name: values[0] for name, values in parse_qs(body).items()}
        pair = base64.b64decode(headers.get("Authorization", "").removeprefix("Basic ")).decode()
        client, _, secret = pair.partition(":")
        if (unquote(client), unquote(secret)) != (CLIENT, SECRET):
            return 401, {"error": "invalid_client"}
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        now = int(self._now())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.person,
        }
        return 200, {"access_token": "x", "token_type": "Bearer", "id_token": self.sign(self.change(claims))}

    def _signed(self, claims: Claims) -> str:
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
