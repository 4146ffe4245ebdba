"""What mounting touches of a host: programs, files, sysfs, mounts, the daemons' control sockets. The rim of `mounting`.

One rule: nothing is decided here. A program that is missing, fails or hangs is an answer, which the plan judges.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from blockdev.control import ControlClient, NotServed
from blockdev.errors import BlockError
from s3core.config_file import change_file, with_settings, without_settings

UNITS: Final = Path("/etc/systemd/system")
BY_PATH: Final = Path("/dev/disk/by-path")
TURN: Final = Path("/run/bucketworks/mount.lock")
CONTROL_PATIENCE_S: Final = 5.0
_KILLED: Final = -9


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended. `status` is 127 where there is no such program, -9 where it was killed for its time."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo."""

    directory: str
    source: str
    kind: str


class Host(Protocol):
    """See `RealHost`; tests have a model."""

    def root(self) -> bool: ...
    def has(self, tool: str) -> bool: ...
    def run(self, *words: str, timeout_s: float = 60.0) -> Done: ...
    def text(self, path: Path) -> str | None: ...
    def write(self, path: Path, text: str, mode: int) -> None: ...
    def remove(self, path: Path) -> None: ...
    def is_there(self, path: Path) -> bool: ...
    def entries(self, path: Path) -> list[str] | None: ...
    def make_directory(self, path: Path) -> None: ...
    def tune(self, device: Path, timeout_s: int) -> None: ...
    def mounted(self) -> list[Mounted]: ...
    def in_use(self, device: Path) -> bool: ...
    def can_listen(self, host: str, port: int) -> bool: ...
    def daemon(self, state_dir: Path) -> dict[str, Any] | None: ...
    def configure(self, path: Path, volume: str, values: dict[str, str | list[str]]) -> None: ...
    def deconfigure(self, path: Path, volume: str, keys: Sequence[str]) -> None: ...
    def turn(self, waits: Callable[[], None]) -> AbstractContextManager[None]: ...
    def secret(self) -> str: ...
    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class RealHost:
    """This host."""

    def root(self) -> bool:
        return os.geteuid() == 0

    def has(self, tool: str) -> bool:
        return shutil.which(tool, path=_path()) is not None

    def run(self, *words: str, timeout_s: float = 60.0) -> Done:
        """The program's status and output, both streams."""
        try:
            done = subprocess.run(
                words,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""},
            )
        except FileNotFoundError:
            return Done(127, f"{words[0]}: not found")
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            return Done(_KILLED, f"{said.decode(errors='replace')}not done after {timeout_s:.0f} s")
        return Done(done.returncode, done.stdout.decode(errors="replace"))

    def text(self, path: Path) -> str | None:
        """None where there is no such file. OSError."""
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def write(self, path: Path, text: str, mode: int) -> None:
        """Whole or not at all, and durable on return. OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync(path.parent)

    def remove(self, path: Path) -> None:
        """Also where it is gone already. OSError."""
        path.unlink(missing_ok=True)
        _sync(path.parent)

    def is_there(self, path: Path) -> bool:
        return path.exists()

    def entries(self, path: Path) -> list[str] | None:
        """Names in a directory; None where there is nothing of that name. NotADirectoryError, other OSError."""
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return None

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def tune(self, device: Path, timeout_s: int) -> None:
        """How long the kernel waits for the answer to one command of this SCSI disk. OSError."""
        Path("/sys/block", device.resolve().name, "device/timeout").write_text(f"{timeout_s}\n")

    def mounted(self) -> list[Mounted]:
        return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))

    def in_use(self, device: Path) -> bool:
        """Whether the kernel itself has it open: mounted, in a volume group, swap (open(2), O_EXCL). OSError."""
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == 16:  # EBUSY
                return True
            raise
        return False

    def can_listen(self, host: str, port: int) -> bool:
        """Whether nobody listens there; the address need not stay free."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError:
                return False
        return True

    def daemon(self, state_dir: Path) -> dict[str, Any] | None:
        """What the daemon of the volume tells; None where none serves it or it does not answer."""
        try:
            with ControlClient(state_dir, timeout_s=CONTROL_PATIENCE_S) as client:
                return client.ask("status")
        except (NotServed, BlockError):
            return None

    def configure(self, path: Path, volume: str, values: dict[str, str | list[str]]) -> None:
        """Add settings to [volume.NAME] that it has not. ConfigError, OSError."""
        change_file(path, lambda text: with_settings(text, "volume", volume, values))

    def deconfigure(self, path: Path, volume: str, keys: Sequence[str]) -> None:
        """Remove settings from [volume.NAME]. ConfigError, OSError."""
        change_file(path, lambda text: without_settings(text, "volume", volume, keys))

    @contextmanager
    def turn(self, waits: Callable[[], None]) -> Iterator[None]:
        """One command at a time changes the mounts of this host; `waits` is called before another is waited for. OSError."""
        TURN.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # Closed in what is run meanwhile: a program that outlives the command holds nobody up.
        handle = os.open(TURN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def secret(self) -> str:
        """A new CHAP secret of 192 bits."""
        return secrets.token_urlsafe(24)

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def parse_mountinfo(text: str) -> list[Mounted]:
    """proc(5): `36 35 98:0 /root /mount/point rw shared:1 - ext4 /dev/sda rw`; odd characters are octal."""
    found = []
    for line in text.splitlines():
        words, _, rest = line.partition(" - ")
        kind, source, *_ = rest.split(" ")
        found.append(Mounted(_plain(words.split(" ")[4]), _plain(source), kind))
    return found


def said(done: Done, lines: int = 3) -> str:
    """The end of what a program printed, on one line."""
    return "; ".join(line.strip() for line in done.output.strip().splitlines()[-lines:]) or f"status {done.status}"


def words_of(words: Sequence[str]) -> str:
    return " ".join(words)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def _path() -> str:
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
