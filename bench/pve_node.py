"""A node with one storage of the plugin, all of it in a folder: configuration, environment of its programs, the mount.

One rule: it is what an operator would have, but for the paths: the programs read storage.cfg, the secrets and pve.toml.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchFailed
from plugin.configuration import ROOT_VARIABLE
from plugin.mount.process import unmount
from s3core.settings import PATH_VARIABLE

STORAGE = "bench"
PART_MIB = 16
UPLOADS = 4
SPOOL_MIB = 256
COMMAND = (sys.executable, "-c", "from plugin.cli import main; main()")
"""`pve-s3`, whether or not it is installed on the path."""
MOUNT_S = 60.0


@dataclass(frozen=True, slots=True)
class Node:
    directory: Path

    @classmethod
    def made(cls, directory: Path, url: str, bucket: str, access_key: str, secret_key: str) -> "Node":
        """Configured in `directory`, which exists."""
        private = directory / "node/etc/pve/priv/storage"
        private.mkdir(parents=True)
        node = cls(directory)
        lines = [
            *(f"bucketfiles: {STORAGE}", f"\tpath {node.mountpoint}", "\tcontent backup", "\tbw-preset ceph"),
            *(f"\tbw-endpoint {url}", f"\tbw-bucket {bucket}", "\tbw-region us-east-1"),
            *(f"\tbw-access-key {access_key}", f"\tbw-part-size {PART_MIB}", f"\tbw-uploads {UPLOADS}"),
        ]
        (directory / "node/etc/pve/storage.cfg").write_text("\n".join(lines) + "\n")
        secrets = private / f"{STORAGE}.bucketfiles"
        secrets.write_text(f"bw-secret-key {secret_key}\n")
        secrets.chmod(0o600)
        config = directory / "pve.toml"
        config.write_text(
            f'[pve]\nstate_dir = "{node.state}"\nrun_dir = "{directory}/run"\nspool_bytes = "{SPOOL_MIB}M"\n'
        )
        config.chmod(0o600)
        return node

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def mountpoint(self) -> Path:
        return self.directory / "mnt"

    @property
    def environment(self) -> Mapping[str, str]:
        # As where it is installed: modules are compiled once.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.directory / "compiled")}
        root, config = self.directory / "node", self.directory / "pve.toml"
        return {**os.environ, **compiled, ROOT_VARIABLE: str(root), PATH_VARIABLE: str(config)}

    def writer(self, source: Path, key: str) -> list[str]:
        """The engine alone, given a file piece by piece."""
        return [sys.executable, "-m", "bench.backup_writer", STORAGE, str(source), key]

    @contextmanager
    def mounted(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The mount's process; gone at the end. BenchFailed with its output where nothing is mounted."""
        self.mountpoint.mkdir(exist_ok=True)
        log = self.directory / "mount.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*COMMAND, "mount", STORAGE],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        try:
            wait_for_mount(process, self.mountpoint / "dump", log)
            yield process
        finally:
            with suppress(OSError):
                unmount(self.mountpoint)
            process.terminate()
            process.wait(30)

    def said(self) -> str:
        """The end of the mount's log."""
        return (self.directory / "mount.log").read_text(errors="replace")[-2000:]


def wait_for_mount(process: "subprocess.Popen[bytes]", folder: Path, log: Path) -> None:
    """Until `folder` is there, which only the mounted file system has."""
    give_up = time.monotonic() + MOUNT_S
    while not folder.is_dir():
        if process.poll() is not None or time.monotonic() > give_up:
            raise BenchFailed(f"nothing is mounted:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
