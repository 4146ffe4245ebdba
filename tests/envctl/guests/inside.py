"""Talking to a machine over its serial console, where the template's `guest-shell` listens from early in the boot on."""

import base64
import json
import socket
import time
from dataclasses import dataclass
from typing import Any


class GuestFailed(AssertionError):
    """A command in the guest failed, or no answer came in time; the message carries what it printed."""


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    output: str


class Inside:
    """A connection to one machine. `text` is what else came over the line: what kernel and services have printed."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._rest = b""
        self._number = 0
        self.text = b""

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Inside":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_up(self, seconds: float = 600.0) -> None:
        """Until the shell answers: its first words may have been said before somebody listened."""
        give_up = time.monotonic() + seconds
        self._number += 1
        wanted = f"hello {self._number}"
        while time.monotonic() < give_up:
            self._send({"hello": wanted})
            answer = self._answer(lambda found: found.get("hello") == wanted, time.monotonic() + 2.0)
            if answer is not None:
                return
        raise GuestFailed(f"the machine did not come up within {seconds:g} s:\n{self._shown()}")

    def run(self, *words: str, given: bytes = b"", seconds: float = 300.0) -> str:
        """What it printed, both streams. GuestFailed unless it ends with 0 within `seconds`."""
        done = self.finish(*words, given=given, seconds=seconds)
        if done.status:
            raise GuestFailed(f"{words[:3]} ended with {done.status}:\n{done.output[-4000:]}\n{self._shown()}")
        return done.output

    def finish(self, *words: str, given: bytes = b"", seconds: float = 300.0) -> Finished:
        self._number += 1
        number = self._number
        question = {"id": number, "run": words, "seconds": seconds, "input": base64.b64encode(given).decode()}
        self._send(question)
        answer = self._answer(lambda found: found.get("id") == number, time.monotonic() + seconds + 60.0)
        if answer is None:
            raise GuestFailed(f"{words[:3]}: no answer\n{self._shown()}")
        return Finished(answer["status"], base64.b64decode(answer["output"]).decode(errors="replace"))

    def python(self, program: str, *words: str, seconds: float = 600.0) -> str:
        return self.run("python3", "-", *words, given=program.encode(), seconds=seconds)

    def wait_for(self, *words: str, seconds: float = 600.0) -> str:
        """Until the command ends with 0; what it printed then."""
        give_up = time.monotonic() + seconds
        while (done := self.finish(*words)).status:
            if time.monotonic() > give_up:
                raise GuestFailed(f"{words[:3]}: still {done.status} after {seconds:g} s:\n{done.output[-2000:]}")
            time.sleep(1.0)
        return done.output

    def _send(self, what: dict[str, Any]) -> None:
        self._socket.settimeout(60.0)
        self._socket.sendall(b"\n\x02" + base64.b64encode(json.dumps(what).encode()) + b"\x03\n")

    def _answer(self, is_it: Any, give_up: float) -> dict[str, Any] | None:
        while True:
            *lines, self._rest = self._rest.split(b"\n")
            for place, line in enumerate(lines):
                if line.startswith(b"\x02") and line.endswith(b"\x03"):
                    found: dict[str, Any] = json.loads(base64.b64decode(line[1:-1]))
                    if is_it(found):
                        self._rest = b"\n".join([*lines[place + 1 :], self._rest])
                        return found
                else:
                    self.text += line + b"\n"
            left = give_up - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                piece = self._socket.recv(65536)
            except TimeoutError:
                return None
            if not piece:
                raise GuestFailed(f"the machine went off\n{self._shown()}")
            self._rest += piece

    def _shown(self) -> str:
        return self.text[-3000:].decode(errors="replace")
