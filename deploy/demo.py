#!/usr/bin/env python3
"""`make demo`: a disk in an object store, written and read by a real initiator, and killed on the way; and a ledger with one
byte changed.

One rule: nothing is taken on trust. Data goes in and comes out through QEMU's iSCSI initiator, what must survive is
compared byte by byte, and a step that does not come out as promised ends the demo with what differed and where the logs
are. Everything is kept below one directory (`.demo`), which a later run replaces; no process outlives the demo.

    deploy/demo.py [--store URL] [--directory DIR]

URL is a place in any store, `s3://ENDPOINT/BUCKET/PREFIX` too (endpoints: BUCKETWORKS_CONFIG); without it the
store is a local directory.
"""

import argparse
import hashlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn
from uuid import uuid4

from rich.console import Console

from blockdev.segments.paths import volume_prefix
from s3core.build import build_store
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_size
from s3core.settings import ConfigError, load_config

MIB = 1024**2
IMAGE_BYTES = 128 * MIB
PIECE_BYTES = 1 * MIB
FLUSH_EVERY = 4
"""Pieces between two flushes of the copy that is cut off."""
CUT_AT = 0.4
"""Fraction of the second copy that has been acknowledged when the server is killed."""
FILES_BYTES = 96 * MIB
MARK = "made-by-the-demo"
START_PATIENCE_S = 60.0
TOOL_PATIENCE_S = 120.0
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
}
SBIN = "/usr/sbin:/sbin"
"""Where Debian keeps e2fsprogs; not on everybody's PATH."""
S3BLOCK = (str(Path(sys.executable).with_name("s3block")),)
S3INTEGRITY = (str(Path(sys.executable).with_name("s3integrity")),)
SERVING = re.compile(r"^serving (?P<name>\S+) at iscsi://(?P<portal>[^/]+)/(?P<iqn>[^/]+)/(?P<lun>\d+)$", re.MULTILINE)
WROTE = re.compile(rb"wrote (\d+)/(\d+) bytes at offset (\d+)")


class DemoFailed(Exception):
    """A step did not come out as promised. The message says which and how."""


class Narrator:
    """What the demo prints: numbered steps with their time, and facts below them."""

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._steps = 0
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._steps += 1
        self._console.print(f"\n{self._steps}. {title}", style="bold")
        began = time.monotonic()
        yield
        self.times.append((title, time.monotonic() - began))

    def fact(self, text: str) -> None:
        self._console.print(f"   {text}")

    def checked(self, text: str) -> None:
        self._console.print("   ok  ", style="green", end="")
        self._console.print(text)

    def heading(self, text: str) -> None:
        self._console.print(f"\n{text}", style="bold")

    def failed(self, text: str) -> None:
        self._console.print(f"\nFAILED: {text}", style="bold red")


class Tools:
    """Other people's programs, run with their output kept in a log."""

    def __init__(self, log_file: Path) -> None:
        self.log_file = log_file
        self.environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{SBIN}", "LC_ALL": "C.UTF-8"}

    def require(self) -> None:
        """Raises DemoFailed naming the packages of what is not installed."""
        if not Path(S3BLOCK[0]).exists():
            raise DemoFailed(
                f"{S3BLOCK[0]} is not there; `make venv` installs the project, `make demo` runs this after it"
            )
        path = self.environment["PATH"]
        missing = [name for name in PACKAGES if shutil.which(name, path=path) is None]
        packages = {PACKAGES[name] for name in missing}
        if "qemu-img" not in missing and " iscsi " not in self.run("qemu-img", "--help"):
            missing.append("QEMU's iscsi driver")
            packages.add("qemu-block-extra")
        if missing:
            wanted = " ".join(sorted(packages))
            raise DemoFailed(f"not found: {', '.join(missing)}; to install: sudo apt-get install {wanted}")

    def run(self, *command: str, allowed: Sequence[int] = (0,)) -> str:
        """Standard output and error of a program that ended with one of `allowed`. Raises DemoFailed otherwise."""
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TOOL_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"no end after {TOOL_PATIENCE_S:.0f} s: {shlex.join(command)}") from error
        output = done.stdout.decode(errors="replace")
        with self.log_file.open("a") as log:
            log.write(f"$ {shlex.join(command)}\n{output}[ended with {done.returncode}]\n")
        if done.returncode not in allowed:
            raise DemoFailed(f"{shlex.join(command)} ended with {done.returncode}:\n{output[-2000:]}")
        return output


class Server:
    """`s3block serve` of one volume, its worker process included, in a process group of its own."""

    def __init__(self, volume_url: str, state_dir: Path, log_dir: Path, environment: dict[str, str]) -> None:
        self.command = [*S3BLOCK, "serve", volume_url, "--listen", "127.0.0.1:0", "--state-dir", str(state_dir)]
        self.command += ["--journal-size", "256M", "--cache-size", "256M"]
        self._log_dir = log_dir
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.portal = self.iqn = self.lun = ""

    @property
    def url(self) -> str:
        return f"iscsi://{self.portal}/{self.iqn}/{self.lun}"

    def start(self) -> float:
        """Returns when it listens, with the seconds that took. Raises DemoFailed with its last output if it ends."""
        self._starts += 1
        answer, log_file = (self._log_dir / f"serve-{self._starts}.{kind}" for kind in ("out", "log"))
        began = time.monotonic()
        with answer.open("wb") as out, log_file.open("wb") as err:
            self._process = subprocess.Popen(
                self.command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        while time.monotonic() - began < START_PATIENCE_S:
            ended = self._process.poll() is not None
            found = SERVING.search(answer.read_text(errors="replace"))
            if found:
                self.portal, self.iqn, self.lun = found["portal"], found["iqn"], found["lun"]
                return time.monotonic() - began
            if ended:
                said = log_file.read_text(errors="replace")[-2000:]
                raise DemoFailed(f"the server ended with {self._process.returncode}:\n{said}")
            time.sleep(0.02)
        raise DemoFailed(f"the server does not listen after {START_PATIENCE_S:.0f} s")

    def kill(self) -> None:
        """SIGKILL to the daemon and its worker at once, as when the host dies. Idempotent."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Orderly: returns when the bucket has everything. Raises DemoFailed when it does not end well."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(TOOL_PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise DemoFailed(f"the server does not stop within {TOOL_PATIENCE_S:.0f} s of SIGTERM") from error
        self._process = None
        if code:
            raise DemoFailed(f"the server ended with {code} after SIGTERM")


@dataclass(slots=True)
class Bill:
    """What the store was asked to keep: every object seen in it, by key. An object is put once; `head` is put again
    with each checkpoint, which counts as one."""

    sizes: dict[str, int] = field(default_factory=dict)
    initiator_bytes: int = 0

    def look(self, store_url: str, name: str) -> tuple[int, int]:
        """Number and bytes of the volume's objects in the store now."""
        store = build_store(store_url, config=load_config())
        try:
            present = {info.key: info.size for info in store.list(volume_prefix(name))}
        finally:
            store.close()
        self.sizes |= present
        return len(present), sum(present.values())


@dataclass(frozen=True, slots=True)
class Cut:
    """How far a copy had come when the server was killed, in pieces from its beginning."""

    acknowledged: int
    flushed: int
    total: int


def make_files(folder: Path, seed: int) -> dict[str, str]:
    """Files that repeat with `seed`: text, random bytes, empty and tiny ones. Their SHA-256 by path."""
    source = random.Random(seed)
    words = ["bucket", "journal", "extent", "commit", "frame", "flush", "initiator", "segment", "checksum", "fence"]
    contents: dict[str, bytes] = {"empty": b"", "tiny": b"1\n"}
    for number in range(24):
        text = " ".join(source.choices(words, k=20_000)) + "\n"
        contents[f"text/{number:02}/chapter.txt"] = text.encode()
    left = FILES_BYTES - sum(map(len, contents.values()))
    number = 0
    while left > 0:
        size = min(left, source.randrange(100_000, 6_000_000))
        contents[f"data/{number:03}.bin"] = source.randbytes(size)
        left -= size
        number += 1
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by path; what mkfs puts there itself left out."""
    found: dict[str, str] = {}
    for path in folder.rglob("*"):
        if path.is_file() and "lost+found" not in path.parts:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Demo:
    def __init__(self, directory: Path, store_url: str, narrator: Narrator) -> None:
        self._directory = directory
        self._local = not store_url
        self._store_url = store_url.rstrip("/") or f"file://{directory}/store"
        # A directory is replaced with each run; in somebody's bucket nothing is touched that was there before.
        self._name = "disk" if self._local else f"demo-{uuid4().hex[:8]}"
        self.volume_url = f"{self._store_url}/{self._name}"
        self.state_dir = directory / "state"
        self.log_dir = directory / "log"
        self._say = narrator
        self._bill = Bill()
        self._began = time.monotonic()
        self._tools = Tools(self.log_dir / "tools.log")
        self.server = Server(self.volume_url, self.state_dir, self.log_dir, self._tools.environment)

    # --- the story ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        self._take_directory()
        self._tools.require()
        first, second = (self._directory / f"{name}.ext4" for name in ("first", "second"))
        with self._say.step("Two ext4 images with files of known checksums"):
            sums = {image: self._make_image(image, seed) for seed, image in enumerate((first, second))}
        with self._say.step("A volume, served over iSCSI"):
            self._create()
        with self._say.step("QEMU writes the first image to the disk"):
            self._copy(first, 0)
        with self._say.step("QEMU writes the second image; in the middle of it the server is killed with SIGKILL"):
            cut = self._cut_copy(second, IMAGE_BYTES)
        with self._say.step("The server is started again and everything is read back"):
            self._restart()
            self._verify_after_kill(first, sums[first], second, cut)
        with self._say.step("The interrupted copy is made again, to its end"):
            self._copy(second, IMAGE_BYTES)
            self._verify_image(self._read_back(), IMAGE_BYTES, second, sums[second], "second")
        with self._say.step("The server stops in order; this host's journal, map and cache are deleted"):
            self._stop_and_forget()
        with self._say.step("The disk is attached from the bucket alone"):
            self._restart()
            back = self._read_back()
            self._verify_image(back, 0, first, sums[first], "first")
            self._verify_image(back, IMAGE_BYTES, second, sums[second], "second")
            self.server.stop()
            self._bill.look(self._store_url, self._name)
        for used in (first, second, back):
            used.unlink()
        with self._say.step("A ledger records what is done to disks; one byte of it is changed"):
            self._tamper_with_a_ledger()
        self._account()
        self._what_next()

    def _take_directory(self) -> None:
        """Empty, and marked as ours; anything that an earlier demo did not make is left alone."""
        mark = self._directory / MARK
        if self._directory.exists() and not mark.exists() and any(self._directory.iterdir()):
            raise DemoFailed(
                f"{self._directory} is not empty and no earlier demo made it; name another with --directory"
            )
        shutil.rmtree(self._directory, ignore_errors=True)
        self.log_dir.mkdir(parents=True)
        mark.touch()

    # --- steps --------------------------------------------------------------------------------------------------

    def _make_image(self, image: Path, seed: int) -> dict[str, str]:
        folder = image.with_suffix(".files")
        sums = make_files(folder, seed)
        size = f"{IMAGE_BYTES // MIB}M"
        self._tools.run("mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(folder), str(image), size)
        shutil.rmtree(folder)
        self._say.fact(f"{image.name}: {shown_size(IMAGE_BYTES)}, {len(sums)} files, {shown_size(FILES_BYTES)} of data")
        return sums

    def _create(self) -> None:
        create = [*S3BLOCK, "create", self.volume_url, "--size", f"{2 * IMAGE_BYTES // MIB}M"]
        self._say.fact(f"$ {_shown(create)}")
        self._tools.run(*create)
        self._say.fact(f"$ {_shown(self.server.command)}")
        seconds = self.server.start()
        self._say.fact(f"listens after {seconds:.1f} s: {self.server.url}")

    def _copy(self, image: Path, offset: int) -> None:
        """`image` to `offset` of the disk; QEMU flushes at the end."""
        target = (
            f"driver=raw,offset={offset},size={IMAGE_BYTES},file.driver=iscsi,file.transport=tcp,"
            f"file.portal={self.server.portal},file.target={self.server.iqn},file.lun={self.server.lun}"
        )
        began = time.monotonic()
        self._tools.run("qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts", str(image), target)
        self._bill.initiator_bytes += IMAGE_BYTES
        self._say.fact(
            f"qemu-img convert {image.name} -> disk at {shown_size(offset)}: {time.monotonic() - began:.1f} s, flushed"
        )
        self._say_store("; the rest is in the journal on this host")

    def _cut_copy(self, image: Path, offset: int) -> Cut:
        """Copy piece by piece with qemu-io, a flush after every few; kill the server on the way, then qemu-io."""
        pieces = self._directory / "pieces"
        pieces.mkdir()
        total = IMAGE_BYTES // PIECE_BYTES
        script = []
        with image.open("rb") as source:
            for number in range(total):
                piece = pieces / f"{number:04}"
                piece.write_bytes(source.read(PIECE_BYTES))
                script.append(f"write -s {piece} {offset + number * PIECE_BYTES} {PIECE_BYTES}")
                if number % FLUSH_EVERY == FLUSH_EVERY - 1:
                    script.append("flush")
        script_file = self._directory / "second-copy.qemu-io"
        script_file.write_text("\n".join(script) + "\n")
        command = ["qemu-io", "-f", "raw", "-t", "none", self.server.url]
        output = b""
        with script_file.open("rb") as commands, (self.log_dir / "qemu-io.log").open("wb") as log:
            writer = subprocess.Popen(
                command, env=self._tools.environment, stdin=commands, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            assert writer.stdout is not None
            try:
                while len(WROTE.findall(output)) < total * CUT_AT:
                    some = writer.stdout.readline()
                    if not some:
                        raise DemoFailed(f"qemu-io ended early:\n{output.decode(errors='replace')[-2000:]}")
                    output += some
                self.server.kill()
            finally:
                writer.kill()
                output += writer.stdout.read()
                writer.wait()
                log.write(output)
        shutil.rmtree(pieces)
        acknowledged = len(WROTE.findall(output))
        if not acknowledged < total:
            raise DemoFailed(f"the server was to die in the middle, but all {total} pieces had been acknowledged")
        # A flush has returned when a piece after it was acknowledged: qemu-io does one after the other.
        flushed = (acknowledged - 1) // FLUSH_EVERY * FLUSH_EVERY
        self._bill.initiator_bytes += acknowledged * PIECE_BYTES
        self._say.fact(
            f"killed daemon and worker after {acknowledged} of {total} MiB were acknowledged, {flushed} MiB of it flushed"
        )
        self._say_store()
        return Cut(acknowledged, flushed, total)

    def _restart(self) -> None:
        seconds = self.server.start()
        self._say.fact(f"serves again after {seconds:.1f} s: {self.server.url}")

    def _verify_after_kill(self, first: Path, first_sums: dict[str, str], second: Path, cut: Cut) -> None:
        back = self._read_back()
        self._verify_image(back, 0, first, first_sums, "first")
        same = 0
        with back.open("rb") as read, second.open("rb") as meant:
            read.seek(IMAGE_BYTES)
            while same < cut.acknowledged and read.read(PIECE_BYTES) == meant.read(PIECE_BYTES):
                same += 1
        if same < cut.flushed:
            raise DemoFailed(f"piece {same} of the second image was flushed before the kill, and differs now")
        self._say.checked(f"second image: all {cut.flushed} MiB that had been flushed are there")
        self._say.fact(
            f"(of the {cut.acknowledged - cut.flushed} MiB acknowledged after the last flush: {same - cut.flushed})"
        )

    def _verify_image(self, back: Path, offset: int, image: Path, sums: dict[str, str], name: str) -> None:
        """The image at `offset` of what was read back: same bytes, clean file system, same files."""
        part = self._directory / f"{name}.back.ext4"
        with back.open("rb") as source, part.open("wb") as out, image.open("rb") as meant:
            source.seek(offset)
            for number in range(IMAGE_BYTES // PIECE_BYTES):
                piece = source.read(PIECE_BYTES)
                if piece != meant.read(PIECE_BYTES):
                    raise DemoFailed(f"{name} image: differs from {image} in MiB {number}; see {part}")
                out.write(piece)
        self._tools.run("e2fsck", "-fn", str(part))
        folder = self._directory / f"{name}.extracted"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._tools.run("debugfs", "-R", f"rdump / {folder}", str(part))
        found = checksums(folder)
        wrong = sorted(path for path in sums | found if sums.get(path) != found.get(path))
        if wrong:
            raise DemoFailed(f"{name} image: {len(wrong)} files differ, {wrong[0]} among them; see {folder}")
        self._say.checked(f"{name} image: bytes equal, e2fsck -fn clean, SHA-256 of all {len(sums)} files equal")
        shutil.rmtree(folder)
        part.unlink()

    def _read_back(self) -> Path:
        back = self._directory / "back.raw"
        back.unlink(missing_ok=True)
        began = time.monotonic()
        self._tools.run("qemu-img", "convert", "-f", "raw", "-O", "raw", self.server.url, str(back))
        size = back.stat().st_size
        self._say.fact(f"qemu-img convert disk -> {back.name}: {shown_size(size)} in {time.monotonic() - began:.1f} s")
        return back

    def _stop_and_forget(self) -> None:
        self.server.stop()
        self._say_store()
        shutil.rmtree(self.state_dir)
        self._say.fact(f"deleted {self.state_dir}")

    def _say_store(self, more: str = "") -> None:
        objects, size = self._bill.look(self._store_url, self._name)
        self._say.fact(f"in the store now: {objects} objects, {shown_size(size)}{more}")

    # --- the end ------------------------------------------------------------------------------------------------

    def _tamper_with_a_ledger(self) -> None:
        place, disks = self._directory / "ledger", f"file://{self._directory}/disks"
        config = ("--config", str(self._directory / "ledger.toml"))

        def ledger(*words: str, allowed: Sequence[int] = (0,)) -> str:
            return self._tools.run(*S3INTEGRITY, words[0], "demo", *words[1:], *config, allowed=allowed)

        state = ("--state-dir", str(self._directory / "ledger-state"), "--writer", "demo")
        ledger("init", f"file://{place}", "--covers", disks, *state)
        self._tools.run(*S3BLOCK, "create", f"{disks}/vm1", "--size", "64M", *config)
        recorded = [line for line in ledger("log").splitlines() if "create vm1" in line]
        if len(recorded) != 2:
            raise DemoFailed(f"making a disk left {len(recorded)} records, not an intent and its outcome")
        self._say.fact("making a disk left an intent and its outcome in the ledger, signed")
        ledger("seal")
        self._say.checked(ledger("verify", "--full").partition("\n")[0])
        bundles = [path for path in place.rglob("*") if "/demo.1/tile/entries/" in str(path) and path.is_file()]
        bundle = max(bundles, key=lambda path: path.stat().st_size)
        data = bytearray(bundle.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.write_bytes(data)
        said = ledger("verify", "--full", allowed=(int(ExitCode.TAMPERED),))
        self._say.checked(f"one bit flipped: {said.partition(chr(10))[0]}")

    def _account(self) -> None:
        sent, puts, up = self._bill.initiator_bytes, len(self._bill.sizes), sum(self._bill.sizes.values())
        self._say.heading("What it cost")
        self._say.fact(f"written by the initiator   {shown_size(sent)}")
        self._say.fact(f"objects put                {puts} (each once; one for {shown_size(sent // puts)} written)")
        self._say.fact(f"bytes put                  {shown_size(up)} ({up / sent:.2f} per byte written)")
        self._say.fact(f"time                       {time.monotonic() - self._began:.0f} s")
        for title, seconds in self._say.times:
            self._say.fact(f"  {seconds:5.1f} s  {title}")

    def _what_next(self) -> None:
        tool = Path(S3BLOCK[0]).parent
        serve = ["s3block", "serve", self.volume_url, "--state-dir", str(self.state_dir)]
        self._say.heading("What to type next")
        self._say.fact("the same disk again, on port 3260, until Ctrl-C:")
        self._say.fact(f"  {_shown([str(tool / serve[0]), *serve[1:]])}")
        if self._local:
            bucket = _shown([str(tool / "bucketworks")])
            block = _shown([str(tool / "s3block")])
            self._say.fact(
                "a disk in a real bucket (keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; yours for BUCKET):"
            )
            state = ""
            if os.geteuid():
                self._say.fact("  export BUCKETWORKS_CONFIG=$HOME/.config/bucketworks/config.toml")
                state = " --state-dir $HOME/.local/state/bucketworks"
            self._say.fact(f"  {bucket} endpoint create my --preset aws --region eu-central-1")
            self._say.fact(f"  {block} create s3://my/BUCKET/disks/disk1 --size 10G")
            self._say.fact(f"  {block} serve s3://my/BUCKET/disks/disk1{state}")
        else:
            self._say.fact("delete the volume from the bucket:")
            self._say.fact(f"  {_shown([str(tool / 's3block'), 'delete', self.volume_url])}")
        self._say.fact("clean up:")
        self._say.fact(f"  rm -rf {shlex.quote(_relative(self._directory))}")


def _relative(path: Path) -> str:
    """As short as it can be typed in this directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _shown(command: Sequence[str]) -> str:
    return shlex.join(_relative(Path(word)) if word.startswith("/") else word for word in command)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    about, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--store", default="", metavar="URL", help="where to keep the volume [a directory]")
    parser.add_argument("--directory", default=".demo", type=Path, metavar="DIR", help="replaced by each run [.demo]")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    narrator = Narrator()
    demo = Demo(arguments.directory.absolute(), arguments.store, narrator)
    try:
        demo.run()
    except (DemoFailed, OSError, StoreError, ConfigError) as error:
        narrator.failed(f"{error}\nlogs: {_relative(demo.log_dir)}")
        return 1
    except KeyboardInterrupt:
        narrator.failed("interrupted")
        return 130
    finally:
        demo.server.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
