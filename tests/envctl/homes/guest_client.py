"""A guest as the console sees it: signs, asks, puts and gets. Its key is made by `cryptography`, not by the agent's own
code."""

import base64
import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.testclient import TestClient
from httpx import Response

from tests.envctl.homes.making import Made
from tests.s3core.fakes import FakeClock


@dataclass
class GuestClient:
    http: TestClient
    clock: FakeClock
    environment: str = ""
    generation: int = 0
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    nonces: int = 0

    @property
    def public_key(self) -> str:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def enrol(self, token: str, uuid: str) -> Response:
        body = {"token": token, "uuid": uuid, "public_key": self.public_key, "agent_version": "1"}
        answer: Response = self.http.post("/guest/v1/enrol", json=body)
        if answer.status_code == 200:
            self.environment, self.generation = answer.json()["environment"], answer.json()["generation"]
        return answer

    def headers(self, method: str, target: str, body: bytes, *, date_ms: int | None = None) -> dict[str, str]:
        self.nonces += 1
        date = str(int(self.clock.time() * 1000) if date_ms is None else date_ms)
        nonce = f"{self.nonces:032x}"
        text = "\n".join(("envctl-v1", method, target, date, nonce, sha256(body).hexdigest()))
        return {
            "Envctl-Guest": f"{self.environment}.{self.generation}",
            "Envctl-Date": date,
            "Envctl-Nonce": nonce,
            "Envctl-Signature": base64.b64encode(self.key.sign(text.encode())).decode(),
        }

    def get(self, target: str, **more: Any) -> Response:
        answer: Response = self.http.get(target, headers=self.headers("GET", target, b"", **more))
        return answer

    def post(self, target: str, said: dict[str, Any], **more: Any) -> Response:
        body = json.dumps(said).encode()
        answer: Response = self.http.post(target, content=body, headers=self.headers("POST", target, body, **more))
        return answer

    def restored(self, number: int | None = None) -> Response:
        return self.post("/guest/v1/restored", {"number": number, "files": 0, "bytes": 0, "seconds": 1.0})

    def upload(self, made: Made) -> int:
        """What is not there yet; how many."""
        wanted = [
            {"name": name, "size": len(data), "sha256": name.partition("/")[2]} for name, data in made.objects.items()
        ]
        urls = self.post("/guest/v1/uploads", {"objects": wanted}).json()["urls"]
        absent = {name: url for name, url in urls.items() if url is not None}
        for name, url in absent.items():
            answer = self.http.put(url["url"], content=made.objects[name], headers=url["headers"])
            assert answer.status_code == 200, answer.text
        return len(absent)

    def commit(self, made: Made, parent: int | None, **more: Any) -> Response:
        said: dict[str, Any] = {
            "parent": parent,
            "trees": list(made.trees),
            "packs": [f"packs/{pack}" for pack in made.packs],
            "kind": "timer",
            "at": self.clock.time(),
            "stats": {"files": len(made.rows), "bytes": 10, "new_bytes": 5},
        }
        return self.post("/guest/v1/commits", said | more)
