"""A clean Debian to install packages into: a directory tree, entered with namespaces of its own.

One rule: nothing of it is seen by the machine under the tests: its mounts and processes end with it, and it starts no service.
Trees are built once and kept where guests' images are (tests/guest/image.py).
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.guest.image import ImageFailed, _entry, _run, cache_directory

SUITES = ("bookworm", "trixie")
"""Those of Proxmox VE 8 and 9."""
_PACKAGES = ("python3", "fuse3", "perl", "init-system-helpers", "libjson-perl")
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_TOOLS = ("mmdebstrap", "unshare", "nsenter", "dpkg-deb")


def why_not() -> str:
    """Why no Debian can be entered here; empty if one can, as far as is known beforehand."""
    if os.geteuid() != 0:
        return "needs root, for a chroot with mounts of its own"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)} (Debian: mmdebstrap, util-linux, dpkg)" if missing else ""


def find_or_build(suite: str) -> Path:
    """A tree that nobody writes to. ImageFailed where Debian's packages cannot be had."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((suite, _PACKAGES, _LEFT_OUT, 2)).encode()).hexdigest()[:16]

    def build(directory: Path) -> None:
        _run(
            *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=directory"),
            *(f"--include={','.join(_PACKAGES)}", *(f"--dpkgopt=path-exclude={one}" for one in _LEFT_OUT)),
            *('--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "3"'),
            # What is left out now is left out for speed; a package that is installed later is installed whole.
            "--customize-hook=rm -rf $1/var/cache/apt $1/var/lib/apt/lists $1/etc/dpkg/dpkg.cfg.d/*",
            *(suite, str(directory / "tree")),
        )

    # `root-`: what image.remove_unused takes for a month old.
    entry, _lock = _entry(cache, cache / f"root-{suite}-{key}", build)
    return entry / "tree"


class Debian:
    """A copy of a tree, with processes in it until `end`. The network is the machine's."""

    def __init__(self, suite: str, directory: Path) -> None:
        self.suite = suite
        self.root = directory / "root"
        # Ownership and links as they are; Python's copytree knows neither.
        subprocess.run(["cp", "-a", "--reflink=auto", str(find_or_build(suite)), str(self.root)], check=True)
        mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/run"'
        self._holder = subprocess.Popen(
            # All that is started in it ends with its first process.
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                f"{mounts} && exec sleep infinity",
                str(self.root),
            ],
            stdin=subprocess.DEVNULL,
        )

    def words(self, *command: str, guard: Sequence[str] = ()) -> list[str]:
        """The command, to be run in it by whoever wants its own ends of the pipes."""
        first = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0]
        return [
            "nsenter",
            f"--mount=/proc/{first}/ns/mnt",
            f"--pid=/proc/{first}/ns/pid",
            *guard,
            *self._chroot(command),
        ]

    def _chroot(self, command: Sequence[str]) -> list[str]:
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["chroot", str(self.root), "env", "-i", path, "HOME=/root", "LC_ALL=C.UTF-8", *command]

    def run(self, *command: str, status: int = 0, given: str = "") -> str:
        """What the command printed, both streams. AssertionError where it ends otherwise than with `status`."""
        done = subprocess.run(
            self.words(*command),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def status(self, *command: str) -> int:
        """What a command ended with, whatever that is."""
        quiet = subprocess.DEVNULL
        return subprocess.run(self.words(*command), stdin=quiet, stdout=quiet, stderr=quiet, timeout=300).returncode

    def install(self, *packages: Path, status: int = 0) -> str:
        """By dpkg, all at once; what it said."""
        folder = self.root / "packages"
        folder.mkdir(exist_ok=True)
        try:
            for package in packages:
                shutil.copyfile(package, folder / package.name)
            return self.run(
                "dpkg", "--force-unsafe-io", "--install", *(f"/packages/{one.name}" for one in packages), status=status
            )
        finally:
            shutil.rmtree(folder)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A command that goes on; its output is merged, its input a pipe. It ends with the process that is given."""
        return subprocess.Popen(
            self.words(*command, guard=("setpriv", "--pdeathsig", "KILL", "--")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def files(self) -> dict[str, str]:
        """What a package could leave behind, and what each is; dpkg's own books and logs are dpkg's, and the copies of
        the last change of users are theirs who change them."""
        skipped = ("proc", "dev", "run", "sys", "tmp", "var/lib/dpkg", "var/log", "var/cache")
        copies = {f"etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")}
        found = {}
        for folder, folders, names in os.walk(self.root):
            relative = os.path.relpath(folder, self.root)
            folders[:] = [
                one
                for one in folders
                if os.path.normpath(os.path.join(relative, one)) not in skipped and one != "__pycache__"
            ]
            for name in (*folders, *names):
                path = Path(folder, name)
                facts = path.lstat()
                what = os.readlink(path) if path.is_symlink() else f"{facts.st_mode:o} {facts.st_uid}:{facts.st_gid}"
                if path.is_file() and not path.is_symlink():
                    what += " " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                if (shown := os.path.normpath(os.path.join(relative, name))) not in copies:
                    found[shown] = what
        return found

    def end(self) -> None:
        """Every process in it is killed; the tree stays."""
        self._holder.kill()
        self._holder.wait(30)


def until(done: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up, f"{what} is not there"
        time.sleep(0.2)


__all__ = ["SUITES", "Debian", "ImageFailed", "find_or_build", "until", "why_not"]
