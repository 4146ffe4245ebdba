"""Runs commands for the host: reads requests from a serial port of virtio, answers as things happen.

One rule: a line of JSON each way, and no request waits for another. Each request carries an `id`, its answers too:

    {"run": [...], "environment": {...}}   {"output": "..."} as it comes, then {"exit": status}
    {"signal": 9}                          nothing: the command's process group gets the signal
    {"read": path}                         {"content": base64} or {"error": "..."}
    {"write": path, "content": base64, "mode": 384}   {"content": ""} or {"error": "..."}
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

PORT_NAME = "bucketworks.agent"


class Agent:
    def __init__(self, port: BinaryIO) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._commands: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Until the host closes the port."""
        self._send({"hello": float(Path("/proc/uptime").read_text().split()[0])})
        while line := self._port.readline():
            request = json.loads(line)
            if "run" in request:
                threading.Thread(target=self._run, args=(request,), daemon=True).start()
            elif "signal" in request:
                self._signal(request["id"], request["signal"])
            else:
                self._file(request)

    def _send(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self._port.write(json.dumps(answer).encode() + b"\n")
            self._port.flush()

    def _run(self, request: dict[str, Any]) -> None:
        number = request["id"]
        try:
            command = subprocess.Popen(
                request["run"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **request.get("environment", {})},
                start_new_session=True,
            )
        except OSError as error:
            self._send({"id": number, "output": f"{request['run'][0]}: {error.strerror}\n"})
            self._send({"id": number, "exit": 127})
            return
        self._commands[number] = command
        reader = threading.Thread(target=self._pass_on, args=(number, command), daemon=True)
        reader.start()
        status = command.wait()
        # What the command left running in the background may keep its output open: that is not waited for.
        reader.join(timeout=0.5)
        self._send({"id": number, "exit": status})

    def _pass_on(self, number: int, command: "subprocess.Popen[bytes]") -> None:
        assert command.stdout is not None
        for line in command.stdout:
            self._send({"id": number, "output": line.decode(errors="replace")})

    def _signal(self, number: int, which: int) -> None:
        command = self._commands.get(number)
        if command is not None and command.poll() is None:
            os.killpg(command.pid, signal.Signals(which))

    def _file(self, request: dict[str, Any]) -> None:
        answer = {"id": request["id"], "content": ""}
        try:
            if "read" in request:
                answer["content"] = base64.b64encode(Path(request["read"]).read_bytes()).decode()
            else:
                place = Path(request["write"])
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(base64.b64decode(request["content"]))
                place.chmod(request["mode"])
        except OSError as error:
            answer = {"id": request["id"], "error": str(error)}
        self._send(answer)


def _find_port() -> Path:
    for attempt in range(100):
        for name in Path("/sys/class/virtio-ports").glob("*/name"):
            if name.read_text().strip() == PORT_NAME:
                return Path("/dev") / name.parent.name
        time.sleep(0.02 * (attempt > 0))
    sys.exit(f"there is no serial port {PORT_NAME}")


def main() -> None:
    with _find_port().open("r+b", buffering=0) as raw:
        Agent(_Joined(raw)).serve()  # type: ignore[arg-type]  # the three calls that an agent makes
    print("agent: the host has gone", flush=True)


class _Joined:
    """Buffered lines from a character device that cannot seek, and whole writes to it."""

    def __init__(self, raw: Any) -> None:
        self._raw, self._rest = raw, b""

    def readline(self) -> bytes:
        while b"\n" not in self._rest:
            piece = self._raw.read(65536)
            if not piece:
                return b""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return bytes(line)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._raw.write(view) :]

    def flush(self) -> None:
        """Nothing is held back."""


if __name__ == "__main__":
    main()
