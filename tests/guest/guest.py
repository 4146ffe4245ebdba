"""A machine in QEMU, under emulation, that tests can talk to while it runs, and kill.

One rule: nothing in the guest is waited for without a time limit, and a guest ends with its process, by its pid.
Emulation makes it several times slower than hardware: it says what works, never how fast.
"""

import base64
import json
import os
import queue
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.guest.image import GuestImage
from tests.guest.inside.agent import PORT_NAME
from tests.guest.inside.call import ANSWER
from tests.servers.processes import end, free_port, start, tail

ROOM_MIB = 64
"""With less on the host's disk a guest's writes fail, now or soon."""

HOST = "10.0.2.2"
"""Where the guest finds what listens on this host's loopback."""

_KERNEL_ARGUMENTS = (
    # Not by the TSC: on a busy host the kernel measures its rate wrong, and the guest's time then ran thirteen times too fast.
    "root=/dev/nvme0n1 console=ttyS0 loglevel=4 panic=-1 mitigations=off tsc=unstable clocksource=hpet audit=0 apparmor=0"
)


class GuestFailed(AssertionError):
    """Something in the guest failed or did not happen in time; the message carries what it printed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended. `status` is negative where a signal ended it."""

    status: int
    output: str


class Running:
    """A command in the guest. `output` is what it has printed so far, both streams."""

    def __init__(self, guest: "Guest", number: int, words: Sequence[str]) -> None:
        self._guest, self._number, self._words = guest, number, words
        self._pieces: list[str] = []
        self._status: int | None = None
        self._news = threading.Condition()

    @property
    def output(self) -> str:
        return "".join(self._pieces)

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Until it has printed `text`. GuestFailed if it ends first, or after `seconds`."""
        self._wait(lambda: text in self.output or self._status is not None, f"{text!r} in the output", seconds)
        if text not in self.output:
            raise GuestFailed(f"{self._words} ended with {self._status} without {text!r}:\n{self.output}")

    def wait(self, seconds: float = 60.0, *, check: bool = True) -> Finished:
        """Until it has ended. GuestFailed after `seconds`, and with `check` for a status other than 0."""
        self._wait(lambda: self._status is not None, "the end", seconds)
        assert self._status is not None
        if check and self._status:
            raise GuestFailed(
                f"{self._words} ended with {self._status}:\n{self.output[-6000:]}\n"
                f"console:\n{self._guest.console[-2000:]}"
            )
        return Finished(self._status, self.output)

    def ended(self) -> bool:
        return self._status is not None

    def signal(self, which: signal.Signals) -> None:
        """To the command and what it started, unless those left its process group."""
        self._guest.send({"id": self._number, "signal": int(which)})

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        with self._news:
            while not condition():
                if not self._guest.alive():
                    raise GuestFailed(f"the guest ended while {self._words} ran:\n{self._guest.console[-3000:]}")
                if time.monotonic() > give_up:
                    raise GuestFailed(
                        f"{self._words}: no sign of {what} after {seconds} s:\n{self.output[-3000:]}\n"
                        f"console:\n{self._guest.console[-2000:]}"
                    )
                self._news.wait(0.2)

    def take(self, answer: Mapping[str, Any]) -> None:
        with self._news:
            if "output" in answer:
                self._pieces.append(answer["output"])
            elif "exit" in answer:
                self._status = answer["exit"]
            self._news.notify_all()


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a guest is made of. `disks` are raw image files that it may write: /dev/nvme0n4 and on, and they stay.

    With two `processors` things really happen at once, and everything takes two to twenty times as long: each switch of an
    address space stops both, and the host must have found time for both before they go on.

    `forwards` are guest ports that shall be reachable on this host's loopback. `systemd` boots Debian's init with its
    services and udev instead of a script that starts the agent alone."""

    memory_mib: int = 1024
    processors: int = 1
    systemd: bool = False
    forwards: Sequence[int] = ()
    disks: Sequence[Path] = field(default_factory=tuple)


class Guest:
    """A guest that is up: its agent has answered. `forwarded` is the host's port for each guest port that was asked for."""

    def __init__(self, image: GuestImage, program: Path, directory: Path, hardware: Hardware | None = None) -> None:
        """Boots it, which takes 2 to 5 s, or with systemd about 15. `directory` (new) takes console and socket."""
        self.hardware = hardware or Hardware()
        directory.mkdir(parents=True)
        self._console_file = directory / "console"
        self.forwarded = {port: free_port() for port in self.hardware.forwards}
        self._running: dict[int, Running] = {}
        self._files: dict[int, queue.Queue[Mapping[str, Any]]] = {}
        self._hellos = 0
        self._hello = threading.Condition()
        self._number = 0
        self._lock = threading.Lock()
        agent = _shorter(directory / "agent")
        self._directory = directory
        # What it writes to its root lies in a file without a name in $TMPDIR, and is gone when it ends.
        self._process = start(
            self._command(image, program, agent), self._console_file, {**os.environ, "TMPDIR": str(directory)}
        )
        try:
            self._socket = self._connect(agent)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            self.wait_for_agent()
        except BaseException:
            self.kill()
            raise

    # --- commands

    def run(self, *words: str | Path, seconds: float = 60.0, check: bool = True, **environment: str) -> str:
        """What the command printed. GuestFailed if it fails (unless `check` is off) or takes longer than `seconds`."""
        return self.finish(*words, seconds=seconds, check=check, **environment).output

    def finish(self, *words: str | Path, seconds: float = 60.0, check: bool = False, **environment: str) -> Finished:
        """The same, with its exit status."""
        running = self.start(*words, **environment)
        try:
            return running.wait(seconds, check=check)
        except GuestFailed:
            if self.alive() and not running.ended():
                running.signal(signal.SIGKILL)
            raise

    def start(self, *words: str | Path, **environment: str) -> Running:
        """Begins a command and returns at once."""
        plain = [str(word) for word in words]
        return self._begin(plain, {"run": plain, "environment": environment})

    def call(self, function: Callable[..., Any], *, seconds: float = 120.0, **arguments: Any) -> Any:
        """Runs a function of `tests.guest.inside` in the guest; arguments and result are what JSON can say.

        GuestFailed with its output and traceback if it raises, or takes longer than `seconds`."""
        running = self.begin(function, **arguments)
        try:
            return answer_of(running.wait(seconds))
        except GuestFailed:
            if self.alive() and not running.ended():
                running.signal(signal.SIGKILL)
            raise

    def begin(self, function: Callable[..., Any], **arguments: Any) -> Running:
        """The same, without waiting; `answer_of(running.wait())` is its result."""
        place = f"{function.__module__}:{function.__qualname__}"
        return self._begin([place, json.dumps(arguments)], {"call": place, "arguments": arguments})

    def read(self, path: str | Path, seconds: float = 30.0) -> bytes:
        """A file in the guest, of a few megabytes at most. GuestFailed."""
        return base64.b64decode(self._file({"read": str(path)}, seconds))

    def write(self, path: str | Path, content: bytes | str, *, mode: int = 0o600, seconds: float = 30.0) -> None:
        """A file in the guest, with its folders. GuestFailed."""
        data = content.encode() if isinstance(content, str) else content
        self._file({"write": str(path), "content": base64.b64encode(data).decode(), "mode": mode}, seconds)

    # --- the machine

    @property
    def console(self) -> str:
        """What kernel and init have printed; and that this host's disk is full, where the guest sees only I/O errors."""
        return tail(self._console_file) + _disk_full(self._directory)

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Power loss: what it has not sent anywhere is gone. Its own `disks` keep what had reached them."""
        end(self._process)
        if hasattr(self, "_socket"):
            self._socket.close()
        if hasattr(self, "_listener"):
            self._listener.join(timeout=10)

    def power_cycle(self) -> None:
        """Reset by the guest's own kernel, without warning to any process; returns when its agent answers again.

        Its root disk stays as it is, unlike with a new guest."""
        before = self._hellos
        self.start("sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger")
        self.wait_for_agent(before + 1)

    def wait_for_agent(self, times: int = 1, seconds: float = 180.0) -> None:
        """Until the agent has said hello as often as that: it does so after each boot."""
        give_up = time.monotonic() + seconds
        with self._hello:
            while self._hellos < times:
                if not self.alive() or time.monotonic() > give_up:
                    raise GuestFailed(f"the guest did not come up:\n{self.console}")
                self._hello.wait(0.2)

    def hellos(self) -> int:
        """How often it has come up."""
        return self._hellos

    def send(self, request: Mapping[str, Any]) -> None:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                self._socket.sendall(line)
            except OSError as error:
                raise GuestFailed(f"the guest does not listen: {error}\n{self.console}") from error

    # --- inside

    def _command(self, image: GuestImage, program: Path, agent: Path) -> list[str]:
        hardware = self.hardware
        init = "/lib/systemd/systemd" if hardware.systemd else "/guest-init"
        quiet = "systemd.show_status=0" if hardware.systemd else "quiet"
        disks: list[tuple[Path, str]] = [
            (image.root, "snapshot=on,cache=unsafe"),
            (image.packages, "readonly=on"),
            (program, "readonly=on"),
            *((disk, "cache=writeback") for disk in hardware.disks),
        ]
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-M", "q35"]
        words += ["-smp", str(hardware.processors), "-m", str(hardware.memory_mib)]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
        words += [] if hardware.systemd else ["-no-reboot"]
        words += ["-kernel", str(image.kernel), "-append", f"{_KERNEL_ARGUMENTS} {quiet} init={init}"]
        # Namespaces of one controller keep their order; several controllers are probed in any.
        words += ["-device", "nvme,id=nvme0,serial=guest"]
        for number, (file, options) in enumerate(disks, start=1):
            words += ["-drive", f"if=none,id=disk{number},file={file},format=raw,{options}"]
            words += ["-device", f"nvme-ns,drive=disk{number},bus=nvme0,nsid={number}"]
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in self.forwarded.items())
        words += ["-netdev", f"user,id=net0{forwards}", "-device", "virtio-net-pci,netdev=net0,romfile="]
        words += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        words += ["-chardev", f"socket,id=agent,path={agent},server=on,wait=off"]
        return [*words, "-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]

    def _connect(self, place: Path, seconds: float = 30.0) -> socket.socket:
        give_up = time.monotonic() + seconds
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(place))
            except OSError as error:
                connection.close()
                if not self.alive() or time.monotonic() > give_up:
                    raise GuestFailed(f"QEMU did not start: {error}\n{self.console}") from error
                time.sleep(0.02)
            else:
                return connection

    def _listen(self) -> None:
        rest = b""
        while True:
            try:
                piece = self._socket.recv(65536)
            except OSError:
                return  # closed by `kill`
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _begin(self, words: Sequence[str], request: dict[str, Any]) -> Running:
        with self._lock:
            self._number += 1
            number = self._number
        running = self._running[number] = Running(self, number, words)
        self.send({"id": number, **request})
        return running

    def _take(self, answer: Mapping[str, Any]) -> None:
        if "hello" in answer:
            with self._hello:
                self._hellos += 1
                self._hello.notify_all()
        elif answer["id"] in self._files:
            self._files[answer["id"]].put(answer)
        else:
            self._running[answer["id"]].take(answer)

    def _file(self, request: dict[str, Any], seconds: float) -> str:
        with self._lock:
            self._number += 1
            number = self._number
        answers = self._files[number] = queue.Queue()
        self.send({"id": number, **request})
        try:
            answer = answers.get(timeout=seconds)
        except queue.Empty:
            raise GuestFailed(f"no answer after {seconds} s\n{self.console}") from None
        if "error" in answer:
            raise GuestFailed(answer["error"])
        return str(answer["content"])


def answer_of(finished: Finished) -> Any:
    """What the function that `Guest.begin` ran has returned."""
    return json.loads(finished.output.rpartition(ANSWER)[2])


def _disk_full(directory: Path) -> str:
    """What to do about it; empty if there is room."""
    left = shutil.disk_usage(directory).free >> 20
    if left >= ROOM_MIB:
        return ""
    return (
        f"\nTHE HOST'S DISK IS FULL: {left} MiB are left where the guest's disks lie ({directory}), so their writes fail;"
        " make room there, or set TMPDIR to a larger place\n"
    )


def _shorter(place: Path) -> Path:
    """The name of a socket must fit in 107 bytes, which a test's own directory may exceed."""
    if len(str(place)) < 100:
        return place
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="guest-"))
    shutil.copymode(place.parent, folder)
    return folder / place.name
