"""rclone with one remote, `bench:`, and nothing of whoever runs the benchmark: its settings, its environment."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.peers.measuring import Taken, command
from bench.store import Client


@dataclass(frozen=True, slots=True)
class RcloneRemote:
    directory: Path

    @classmethod
    def of_store(cls, directory: Path, port: int) -> "RcloneRemote":
        """Of a `bench.store`."""
        return cls.at(directory, f"http://127.0.0.1:{port}", "bench", "bench", "Other")

    @classmethod
    def at(cls, directory: Path, url: str, access_key: str, secret_key: str, provider: str) -> "RcloneRemote":
        settings = {
            "type": "s3",
            "provider": provider,
            "region": "us-east-1",
            "endpoint": url,
            "access_key_id": access_key,
            "secret_access_key": secret_key,
            "no_check_bucket": "true",
            "list_version": "2",
            "list_url_encode": "true",
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (directory / "rclone.conf").write_text("\n".join(["[bench]", *lines, ""]))
        return cls(directory)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.directory)}

    def words(self, words: Sequence[str]) -> list[str]:
        return ["rclone", *words, "--config", str(self.directory / "rclone.conf"), "--stats", "0"]

    def run(self, words: Sequence[str], store: Client | None, *, stdin: IO[bytes] | None = None) -> Taken:
        return command(self.words(words), self.environment, self.directory / "rclone.log", store, stdin=stdin)
