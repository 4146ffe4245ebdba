"""A console in a thread, for tests of the agent: the protocol, one home in memory, and switches for what goes wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from envctl.agent.tree import TreeReader

Answer = tuple[int, dict[str, Any]]


class FakeConsole:
    """Serve with `with`. What it holds is plain data, to be looked at."""

    def __init__(self, **settings: Any) -> None:
        self.objects: dict[str, bytes] = {}
        self.snapshots: dict[int, dict[str, Any]] = {}
        self.number: int | None = None
        self.restore: dict[str, Any] = {"number": None, "from": None, "trees": [], "done": False}
        self.settings = {"directories": ["/home"], "excludes": [], "interval_s": 300, "hooks_timeout_s": 5, **settings}
        self.key: bytes | None = None
        self.fenced = False
        self.clock_off_ms = 0
        self.lose: Callable[[str], bool] = lambda request: False
        """Given "METHOD /path": whether its answer is lost, though it was done."""
        self.malformed: Callable[[dict[str, Any]], bool] = lambda commit: False
        """Given a commit: whether it is refused as `invalid`."""
        self.commits = 0
        self.requests: list[str] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.restored: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.nonces: set[str] = set()
        self.lock = threading.Lock()

    def __enter__(self) -> FakeConsole:
        console = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._serve()

            def do_PUT(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                with console.lock:
                    status, data = console.serve(self.command, self.path, dict(self.headers), body)
                    request = f"{self.command} {self.path.split('?')[0]}"
                    console.requests.append(request)
                    lost = console.lose(request)
                if lost:
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def puts(self) -> list[str]:
        return [each for each in self.requests if each.startswith("PUT")]

    def head(self) -> dict[str, Any] | None:
        return None if self.number is None else {"number": self.number, "trees": self.snapshots[self.number]["trees"]}

    def want(self, number: int | None, source: str | None = None) -> None:
        """A new machine is told to restore `number`."""
        trees = self.snapshots[number]["trees"] if number is not None else []
        self.restore = {"number": number, "from": source, "trees": trees, "done": False}
        self.key = None

    def ask(self, kind: str, /, **parameters: Any) -> str:
        name = f"c{len(self.answers) + len(self.commands)}"
        self.commands.append({"id": name, "kind": kind, "parameters": parameters})
        return name

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if path.startswith("/objects/"):
            return self._object(method, path[len("/objects/") :], headers, body)
        status, answer = self._answer(method, path, headers, body)
        return status, json.dumps(answer).encode()

    def _object(self, method: str, name: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if method == "PUT":
            if name in self.objects:
                return 412, b""
            assert hashlib.sha256(body).hexdigest() == name.split("/")[1]
            self.objects[name] = body
            return 200, b""
        data = self.objects.get(name)
        if data is None:
            return 404, b""
        if "Range" in headers:
            first, last = headers["Range"][len("bytes=") :].split("-")
            return 206, data[int(first) : int(last) + 1]
        return 200, data

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked = json.loads(body) if body else {}
        assert b"\\ud" not in body, "a lone surrogate is no JSON to a strict reader"
        route = path.split("?")[0]
        if route == "/guest/v1/enrol":
            key = bytes.fromhex(asked["public_key"])
            if asked["token"] != "token" or self.key not in (None, key):
                return _refused(404, "not-found")
            self.key = key
            return 200, {"environment": "env", "generation": 1, "settings": self.settings, "restore": self.restore}
        refusal = self._signed(method, path, headers, body)
        if refusal is not None:
            return refusal
        if self.fenced:
            return _refused(412, "fenced")
        if route == "/guest/v1/state":
            return 200, {"generation": 1, "settings": self.settings, "restore": self.restore, "head": self.head()}
        if route == "/guest/v1/restored":
            if asked["number"] != self.restore["number"] and not self.restore["done"]:
                return _refused(409, "refused")
            self.restored.append(asked)
            self.restore["done"] = True
            return 200, {}
        if route == "/guest/v1/downloads":
            return 200, {"urls": {name: {"url": f"/objects/{name}", "headers": {}} for name in asked["objects"]}}
        if route == "/guest/v1/commands":
            taken, self.commands = self.commands, []
            return 200, {"commands": taken}
        if route.startswith("/guest/v1/commands/"):
            self.answers[route.split("/")[-1]] = asked
            return 200, {}
        if route == "/guest/v1/heartbeats":
            if asked["unchanged"] and asked["number"] != self.number:
                status, answer = _refused(409, "parent")
                return status, {**answer, "head": self.head()}
            self.heartbeats.append(asked)
            return 200, {"settings": self.settings}
        if not self.restore["done"]:
            return _refused(425, "not-restored")
        if route == "/guest/v1/uploads":
            return 200, {
                "urls": {
                    entry["name"]: None
                    if entry["name"] in self.objects
                    else {"url": f"/objects/{entry['name']}", "headers": {}}
                    for entry in asked["objects"]
                }
            }
        if route == "/guest/v1/commits":
            return self._commit(asked)
        return _refused(404, "not-found")

    def _commit(self, asked: dict[str, Any]) -> Answer:
        if asked["parent"] != self.number:
            status, answer = _refused(409, "parent")
            return status, {**answer, "head": self.head()}
        named = {f"trees/{each}" for each in asked["trees"]} | {f"packs/{each}" for each in asked["packs"]}
        trees = [TreeReader(self.objects[name]) for name in named if name.startswith("trees/") and name in self.objects]
        named |= {f"packs/{pack.hex()}" for tree in trees for pack in tree.packs}
        if named - self.objects.keys():
            return _refused(409, "missing")
        self.commits += 1
        if self.malformed(asked):
            return _refused(422, "invalid")
        self.number = (self.number or 0) + 1
        self.snapshots[self.number] = asked
        return 200, {"number": self.number}

    def _signed(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        date, nonce = headers.get("Envctl-Date", ""), headers.get("Envctl-Nonce", "")
        text = "\n".join(("envctl-v1", method, path, date, nonce, hashlib.sha256(body).hexdigest()))
        try:
            assert self.key is not None
            signature = base64.b64decode(headers["Envctl-Signature"])
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
        except (InvalidSignature, KeyError, AssertionError):
            return _refused(401, "signature")
        if abs(int(date) - self.clock_off_ms - 1_000_000_000_000) > 300_000:
            status, answer = _refused(401, "clock")
            return status, {**answer, "now": 1_000_000_000_000 + self.clock_off_ms}
        if nonce in self.nonces or headers["Envctl-Guest"] != "env.1":
            return _refused(401, "signature")
        self.nonces.add(nonce)
        return None


def _refused(status: int, code: str) -> Answer:
    return status, {"error": {"code": code, "message": f"no: {code}", "hint": ""}}
