"""Runs commands for the host: reads requests from a serial port of virtio, answers as things happen.

One rule: a line of JSON each way, and no request waits for another. Each request carries an `id`, its answers too:

    {"run": [...], "environment": {...}}   {"output": "..."} as it comes, then {"exit": status}
    {"call": "MODULE:FUNCTION", "arguments": {...}}   the same; the function runs in a fork of the agent (`call`)
    {"signal": 9}                          nothing: the command's process group gets the signal
    {"read": path}                         {"content": base64} or {"error": "..."}
    {"write": path, "content": base64, "mode": 384}   {"content": ""} or {"error": "..."}
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from tests.guest.inside import call

PORT_NAME = "bucketworks.agent"


class Agent:
    def __init__(self, port: BinaryIO) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._running: dict[int, int] = {}
        """Process groups, by the request that began them."""

    def serve(self) -> None:
        """Until the host closes the port."""
        self._send({"hello": float(Path("/proc/uptime").read_text().split()[0])})
        while line := self._port.readline():
            request = json.loads(line)
            if "run" in request:
                threading.Thread(target=self._run, args=(request,), daemon=True).start()
            elif "call" in request:
                self._call(request)
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
        self._running[number] = command.pid
        assert command.stdout is not None
        self._attend(number, command.stdout, command.wait)

    def _call(self, request: dict[str, Any]) -> None:
        """Here and not in a thread: what the function needs is imported once for all that call it, by one at a time."""
        number = request["id"]
        call.load(request["call"])
        child, output = call.fork(request["call"], request["arguments"])
        self._running[number] = child

        def wait() -> int:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        threading.Thread(target=self._attend, args=(number, output, wait), daemon=True).start()

    def _attend(self, number: int, output: IO[bytes], wait: Callable[[], int]) -> None:
        reader = threading.Thread(target=self._pass_on, args=(number, output), daemon=True)
        reader.start()
        status = wait()
        del self._running[number]
        # What the command left running in the background may keep its output open: that is not waited for.
        reader.join(timeout=0.5)
        self._send({"id": number, "exit": status})

    def _pass_on(self, number: int, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self._send({"id": number, "output": line.decode(errors="replace")})

    def _signal(self, number: int, which: int) -> None:
        group = self._running.get(number)
        if group is not None:
            # It may have ended at this moment.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.Signals(which))

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
