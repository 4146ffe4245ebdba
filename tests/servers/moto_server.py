"""An S3 emulator in a process of its own: quick to start, answers like AWS, checks no signatures.

One rule: what only a real server can show (signatures, races, crashes) is shown with `radosgw`.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3core.endpoint import Credentials, Endpoint
from tests.architecture.tree import ROOT
from tests.servers.processes import ServerFailed, end, free_port, start, wait_for_port


class MotoServer:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._log_file = directory / "moto.log"
        self._start()

    def _start(self) -> None:
        for attempt in range(3):
            self.port = free_port()
            command = [sys.executable, "-m", "tests.servers.moto_process", "--port", str(self.port)]
            environment = {**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": "", "PYTHONPATH": str(ROOT)}
            self._process = start(command, self._log_file, environment)
            try:
                wait_for_port(self.port, self._process, self._log_file)
            except ServerFailed:
                end(self._process)
                if attempt == 2:
                    raise
            else:
                return

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def endpoint(self, **changes: Any) -> Endpoint:
        """This server as settings would describe it, with `changes` to the fields of `Endpoint`."""
        endpoint = Endpoint(
            name="moto",
            url=self.url,
            region="us-east-1",
            addressing="path",
            credentials=Credentials("testkey", "testsecret", source="the test"),
        )
        return replace(endpoint, **changes)

    def stop(self) -> None:
        end(self._process)
