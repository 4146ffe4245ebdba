"""The control socket of a served volume, asked in one line; the same in the guest and on the host."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any


def ask(state_dir: str, what: str, seconds: float = 60.0) -> dict[str, Any]:
    """`status`, `flush` (returns when the bucket has everything) and so on. AssertionError with what it refused."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
        line.settimeout(seconds)
        line.connect(str(Path(state_dir) / "control"))
        line.sendall(json.dumps({"do": what}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(line.makefile("rb").readline())
    assert answer["ok"], answer
    result: dict[str, Any] = answer["result"]
    return result
