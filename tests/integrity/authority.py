"""A time-stamping authority of the tests' own: `openssl ts` behind a little HTTP server on loopback."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIG = """
[tsa]
default_tsa = it
[it]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/signer.pem
signer_key = {folder}/signer.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
accuracy = secs:1
ordering = no
tsa_name = yes
ess_cert_id_chain = no
ess_cert_id_alg = sha256
[signer]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
[req]
distinguished_name = dn
[dn]
"""


class Authority:
    """Its root certificate is `root`; `answer` makes an answer of a request."""

    def __init__(self, folder: Path, *, digests: str = "sha256, sha512") -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "serial").write_text("01\n")
        (folder / "openssl.cnf").write_text(CONFIG.format(folder=folder, digests=digests))
        self.root = folder / "root.pem"
        named = ("-config", "openssl.cnf", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        self._openssl(
            "req",
            "-x509",
            *named,
            "-keyout",
            "root.key",
            "-out",
            "root.pem",
            "-subj",
            "/CN=root",
            "-extensions",
            "root",
        )
        self._openssl("req", "-new", *named, "-keyout", "signer.key", "-out", "signer.csr", "-subj", "/CN=stamps")
        extensions = ("-extfile", "openssl.cnf", "-extensions", "signer")
        key = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "30")
        self._openssl("x509", "-req", "-in", "signer.csr", "-out", "signer.pem", *key, *extensions)

    def answer(self, query: bytes) -> bytes:
        (self.folder / "query.tsq").write_bytes(query)
        self._openssl("ts", "-reply", "-config", "openssl.cnf", "-queryfile", "query.tsq", "-out", "answer.tsr")
        return (self.folder / "answer.tsr").read_bytes()

    def verifies(self, text: str, token: bytes) -> bool:
        """What openssl itself says to a token over that text."""
        (self.folder / "text").write_text(text)
        (self.folder / "token").write_bytes(token)
        command = ["openssl", "ts", "-verify", "-data", "text", "-in", "token", "-CAfile", "root.pem"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address at which it answers; requests whose type is not the RFC's are refused."""
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                right = self.headers["Content-Type"] == "application/timestamp-query"
                body = authority.answer(query) if right else b""
                self.send_response(200 if right else 415)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/tsa"
            finally:
                server.shutdown()
                thread.join()
