"""One host as a user has it: the `s3block` command, served volumes as process groups, QEMU as the initiator.

One rule: everything goes through doors that users have (command line, exit codes, iSCSI, files); nothing is
imported from the engine. Call from the main thread (see tests.servers.processes).
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.servers.processes import tail

S3BLOCK = str(Path(sys.executable).with_name("s3block"))
MIB = 1024**2
BLOCK = 4096
SERVING = re.compile(r"^serving \S+ at (iscsi://\S+)$", re.MULTILINE)
WROTE = re.compile(rb"^(?:qemu-io> )*wrote (\d+)/(\d+) bytes at offset (\d+)", re.MULTILINE)
PACKAGES = {"qemu-io": "qemu-utils qemu-block-extra", "qemu-img": "qemu-utils qemu-block-extra"}
PACKAGES |= dict.fromkeys(("mkfs.ext4", "e2fsck"), "e2fsprogs")
SMALL = ("--journal-size", "64M", "--cache-size", "64M")
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class ServerEnded(Exception):
    """`s3block serve` ended instead of listening."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"serve ended with {answer.code}:\n{answer.err}")
        self.answer = answer


def environment(config: Path | None) -> dict[str, str]:
    """Of a user who has no settings but `config`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "BUCKETWORKS_"))}
    kept["PATH"] = f"{kept.get('PATH', '')}:/usr/sbin:/sbin"
    return kept | {"BUCKETWORKS_CONFIG": str(config or "/nonexistent/config.toml")}


def s3block(*arguments: str, config: Path | None = None, seconds: float = PATIENCE_S) -> Answer:
    done = subprocess.run(
        [S3BLOCK, *arguments],
        env=environment(config),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def create(volume: str, *, size: str = "256M", config: Path | None = None) -> None:
    made = s3block("create", volume, "--size", size, config=config)
    assert made.code == 0, made.err


class Server:
    """`s3block serve` of one volume. `state` is its --state-dir; `guard` words go before the command."""

    def __init__(
        self,
        directory: Path,
        volume: str,
        *options: str,
        state: str = "state",
        config: Path | None = None,
        seconds: float = PATIENCE_S,
        listen: str = "127.0.0.1:0",
        guard: Sequence[str] = (),
    ) -> None:
        self.state = directory / state
        self.state_dir = self.state / volume.rsplit("/", 1)[-1]
        self._directory = directory
        self._command = [*guard, S3BLOCK, "serve", volume]
        self._command += ["--listen", listen, "--state-dir", str(self.state), *SMALL]
        self.options = list(options)
        self._config = config
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._out = self._log = directory
        self.url = ""
        self.code: int | None = None
        """Exit code of the newest process that has ended; negative: the signal."""

    def start(self, *options: str) -> "Server":
        """Returns when it listens; ServerEnded when it ends before that."""
        number = len(list(self._directory.glob("serve-*.log")))
        self._out, self._log = (self._directory / f"serve-{number}.{kind}" for kind in ("out", "log"))
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        with self._out.open("wb") as out, self._log.open("wb") as err:
            self._process = subprocess.Popen(
                [*guard, *self._command, *self.options, *options],
                env=environment(self._config),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        give_up = time.monotonic() + self._seconds
        while time.monotonic() < give_up:
            code = self._process.poll()
            found = SERVING.search(self._out.read_text())
            if found:
                self.url = found[1]
                return self
            if code is not None:
                self._process = None
                raise ServerEnded(Answer(code, self._out.read_text(), self.log()))
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"does not listen after {self._seconds} s:\n{tail(self._log)}")

    @property
    def pid(self) -> int:
        """Of the daemon, which leads its process group; 0 when none runs."""
        return self._process.pid if self._process is not None else 0

    @property
    def port(self) -> int:
        return int(self.url.split("/")[2].rpartition(":")[2])

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself, or never ran."""
        return self._process is None or self._process.poll() is not None

    def log(self) -> str:
        """What the newest start has said on standard error."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to daemon and worker together."""
        if self._process is not None:
            self.kill_group()
            self.code = self._process.wait()
            self._process = None

    def kill_group(self) -> None:
        """The signal alone: may be called on another thread while `start` waits."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill_one(self, which: str) -> None:
        """SIGKILL to "daemon" or "worker" alone; returns when the daemon has ended."""
        assert self._process is not None
        pid = self._process.pid
        if which == "daemon":
            victims = [pid]
        else:
            victims = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        self.code = self._process.wait(self._seconds)
        self._process = None

    def carry(self) -> None:
        """Until the bucket has everything that was written so far."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(self._seconds)
            line.connect(str(self.state_dir / "control"))
            line.sendall(b'{"do": "flush"}\n')
            answer = line.makefile("rb").readline()
        assert json.loads(answer)["ok"], answer

    def terminate(self) -> None:
        """SIGTERM, without waiting for the end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(self._seconds + 30)
        self._process = None
        return code

    def wait(self, seconds: float = 30.0) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None
        code = self._process.wait(seconds)
        self._process = None
        return code

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *what: object) -> None:
        self.kill()


# --- initiator -------------------------------------------------------------------------------------------------------


def tool(*command: str, ok: bool = True, seconds: float = PATIENCE_S) -> str:
    """Output of a program; skips, naming the package, where it is not installed."""
    path = environment(None)["PATH"]
    if shutil.which(command[0], path=path) is None:
        pytest.skip(f"needs {command[0]}: apt-get install {PACKAGES[command[0]]}")
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, f"{command}: {output}"
    return output


def qemu_io(url: str, *commands: str, ok: bool = True) -> str:
    return tool("qemu-io", "-f", "raw", "-t", "none", *(part for line in commands for part in ("-c", line)), url, ok=ok)


def read_back(url: str, target: Path) -> bytes:
    target.unlink(missing_ok=True)
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(target))
    return target.read_bytes()


def read_part(url: str, offset: int, length: int, target: Path) -> bytes | None:
    """That part of the disk; None when the initiator was told of an I/O error."""
    portal, iqn, lun = url.removeprefix("iscsi://").split("/")
    source = (
        f"driver=raw,offset={offset},size={length},file.driver=iscsi,file.transport=tcp,"
        f"file.portal={portal},file.target={iqn},file.lun={lun}"
    )
    done = subprocess.run(
        ["qemu-img", "convert", "--image-opts", "-O", "raw", source, str(target)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        assert "Input/output error" in done.stderr, done.stderr
        return None
    return target.read_bytes()


def make_ext4(directory: Path, size_mib: int, seed: int) -> Path:
    """An ext4 image that is mostly full of files."""
    folder, image = directory / f"files-{seed}", directory / f"image-{seed}.ext4"
    source = random.Random(seed)
    for number in range(size_mib * 3 // 4):
        path = folder / f"{number % 7}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(900_000))
    tool("mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(folder), str(image), f"{size_mib}M")
    shutil.rmtree(folder)
    return image


def fsck(image: Path) -> None:
    tool("e2fsck", "-fn", str(image))


@dataclass(slots=True)
class Stamps:
    """What each 4 KiB block may hold: one value once a flush has settled it, several while writes are open."""

    size_bytes: int
    may: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may = [{0} for _ in range(self.size_bytes // BLOCK)]

    def attempt(self, write: "Write") -> None:
        """Sent, not yet known to be settled: old or new, block by block."""
        for block in write.blocks:
            self.may[block] = self.may[block] | {write.stamp}

    def settle(self, write: "Write") -> None:
        for block in write.blocks:
            self.may[block] = {write.stamp}

    def check(self, content: bytes) -> None:
        """Every block holds what it may; what it holds is what it must hold from now on."""
        for block, may in enumerate(self.may):
            data = content[block * BLOCK : (block + 1) * BLOCK]
            assert data == bytes([data[0]]) * BLOCK, f"block {block} is torn"
            assert data[0] in may, f"block {block} holds {data[0]}, may hold {sorted(may)}"
            self.may[block] = {data[0]}


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    length: int
    stamp: int

    @property
    def blocks(self) -> range:
        return range(self.offset // BLOCK, (self.offset + self.length) // BLOCK)

    def __str__(self) -> str:
        return f"write -P {self.stamp} {self.offset} {self.length}"


class Writer:
    """qemu-io working through a script of writes, a flush after every `flush_every`; one after the other."""

    def __init__(self, url: str, writes: Sequence[Write | str], directory: Path, *, flush_every: int) -> None:
        self.writes = writes
        self._flush_every = flush_every
        lines = []
        for number, write in enumerate(writes, 1):
            lines.append(str(write))
            if number % flush_every == 0:
                lines.append("flush")
        script = directory / "script.qemu-io"
        script.write_text("\n".join(lines) + "\n")
        if shutil.which("qemu-io") is None:
            pytest.skip(f"needs qemu-io: apt-get install {PACKAGES['qemu-io']}")
        with script.open("rb") as commands:
            self._process = subprocess.Popen(
                ["qemu-io", "-f", "raw", "-t", "none", url],
                stdin=commands,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._output = b""

    def wait_for(self, acknowledged: int) -> None:
        """Until so many writes were acknowledged."""
        assert self._process.stdout is not None
        while self.acknowledged < acknowledged:
            line = self._process.stdout.readline()
            assert line, f"qemu-io ended: {self._output[-2000:]!r}"
            self._output += line

    @property
    def acknowledged(self) -> int:
        done = [match for match in WROTE.findall(self._output) if match[0] == match[1]]
        return len(done)

    @property
    def acknowledged_offsets(self) -> list[int]:
        return [int(match[2]) for match in WROTE.findall(self._output) if match[0] == match[1]]

    @property
    def flushed(self) -> int:
        """Writes before a flush that has returned, as a later acknowledgement proves."""
        return max(0, self.acknowledged - 1) // self._flush_every * self._flush_every

    def finish(self, seconds: float = PATIENCE_S) -> str:
        """Let it come to its end; its output."""
        rest, _ = self._process.communicate(timeout=seconds)
        self._output += rest
        assert self._process.returncode == 0
        return self._output.decode(errors="replace")

    def kill(self) -> None:
        self._process.kill()
        rest, _ = self._process.communicate()
        self._output += rest

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *what: object) -> None:
        if self._process.poll() is None:
            self.kill()
