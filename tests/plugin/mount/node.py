"""A node with one storage: its configuration, its state, and the real `pve-s3 mount` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from plugin.errors import NotServed
from plugin.mount.control import call, socket_path
from plugin.mount.process import is_ours, unmount
from s3core.bucket import Bucket
from s3core.endpoint import Endpoint
from s3core.errors import NotFound
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.architecture.tree import ROOT
from tests.servers.processes import start, tail
from tests.servers.relay import Relay

ID = "s3"
PREFIX = "site/"
_CONFIG = """
[pve]
state_dir = "{root}/state"
run_dir = "{root}/run"
upload_wait_s = 3
read_wait_s = 3
refresh_s = 1
{pve}

[endpoint.store]
url = "{url}"
region = "{region}"
addressing = "path"
access_key = "{access_key}"
secret_key = "{secret_key}"
connect_timeout_s = 1
read_timeout_s = 1
deadline_s = 2
retries = 2
"""
_STORAGE = """bucketfiles: {id}
\tpath {root}/mnt
\tbw-endpoint store
\tbw-bucket {bucket}
\tbw-prefix site
\tbw-part-size 5
{more}
"""


class Node:
    """`store` is reached through `relay`, which a test may cut or slow down; `bucket` goes straight to it."""

    def __init__(self, root: Path, store: Endpoint, *, more: str = "", pve: str = "", secrets: str = "") -> None:
        self.root = root
        self.mount = root / "mnt"
        self.log = root / "mount.log"
        self.name = f"pve-{uuid.uuid4().hex[:12]}"
        S3Control(store).create_bucket(self.name)
        self.bucket: Bucket = S3Bucket(store, self.name)
        self.relay = Relay(int(store.url.rpartition(":")[2]))
        near = replace(store, url=self.relay.url)
        (root / "etc/pve/priv/storage").mkdir(parents=True)
        (root / "etc/pve/storage.cfg").write_text(
            _STORAGE.format(
                id=ID, root=root, bucket=self.name, more="".join(f"\t{line}\n" for line in more.splitlines())
            )
        )
        hidden = root / f"etc/pve/priv/storage/{ID}.bucketfiles"
        hidden.write_text(secrets)
        hidden.chmod(0o600)
        keys = near.credentials
        self.config = root / "config.toml"
        self.config.write_text(
            _CONFIG.format(
                root=root,
                url=near.url,
                region=near.region,
                access_key=keys.access_key,
                secret_key=keys.secret_key,
                pve=pve,
            )
        )
        self.config.chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`pve-s3` with this node's configuration."""
        return subprocess.run(
            [sys.executable, "-c", "from plugin.cli import main; main()", *arguments, "--config", str(self.config)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "BUCKETWORKS_PVE_ROOT": str(self.root), "PYTHONPATH": str(ROOT)}

    def start(self, *options: str) -> None:
        """Until it is mounted."""
        command = [
            sys.executable,
            "-c",
            "from plugin.cli import main; main()",
            "mount",
            ID,
            "--config",
            str(self.config),
        ]
        self.process = start([*command, *options], self.log, self.environment)
        self.until(self._mounted, "it is mounted")

    def _mounted(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, tail(self.log)
        try:
            return bool(self.status()) and is_ours(self.mount) and self.mount.joinpath("dump").is_dir()
        except (NotServed, OSError):
            return False

    def status(self) -> dict[str, Any]:
        return call(socket_path(self.root / "run", ID), "status")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=30)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=30)
        while is_ours(self.mount):
            unmount(self.mount)
        self.relay.cut()

    def until(self, so: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not so():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{tail(self.log)}"
            time.sleep(0.05)

    def objects(self) -> list[str]:
        """Without the indexes of archives."""
        found = [key.decode().removeprefix(PREFIX) for key in self.bucket.list_page(prefix=PREFIX).keys]
        return [key for key in found if not key.startswith(".bucketworks/")]

    def object(self, path: str) -> bytes | None:
        try:
            return self.bucket.get(PREFIX + path)
        except NotFound:
            return None

    def pending(self) -> list[str]:
        return [one.key.removeprefix(PREFIX) for one in self.bucket.list_uploads(prefix=PREFIX).uploads]
