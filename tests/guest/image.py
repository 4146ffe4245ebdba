"""What a guest boots from: a Debian kernel, a root image, and the packages that our program needs, as disk images.

One rule: built once and never written again; guests see their root through a copy-on-write layer. An image is built
under a lock in a directory of its own and renamed into place whole, so that whoever finds it can use it.

The cache is $BUCKETWORKS_GUEST_CACHE, else `bucketworks-guest` in the user's cache directory. Its entries are named
by a hash of what they are made from: this file and the files in `root/`, or requirements.txt. Who uses an entry has a shared
lock on it and touches it; what nobody has used for a month is removed by who comes next.
"""

import compileall
import contextlib
import fcntl
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.architecture.tree import ROOT

GUEST_PYTHON = (3, 11)
"""What Debian 12 has; packages are chosen for it, whatever Python the tests run on."""

_SUITE = "bookworm"
_KERNEL = "linux-image-cloud-amd64"  # NVMe and ext4 are built in: no initial RAM disk
_PACKAGES = (
    "python3",
    "python3-rtslib-fb",
    "python3-configshell-fb",
    "targetcli-fb",
    "open-iscsi",
    "multipath-tools",
    "e2fsprogs",
    "xfsprogs",
    "ntfs-3g",
    "fio",
    "tgt",
    "kmod",
    "iproute2",
    "procps",
    "psmisc",
    "sg3-utils",
    "udev",
    "util-linux",
    "systemd",
    "systemd-sysv",
    "dbus",
)
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_NOT_STARTED = (
    # A host that follows docs/lio.md has neither of these, or has no need of them; together they are half of a boot.
    *("tgt.service", "multipathd.service", "multipathd.socket", "e2scrub_reap.service", "e2scrub_all.timer"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "getty.target"),
    *("systemd-logind.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount"),
    *("modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@loop.service"),
)
_ROOT_FILES = Path(__file__).with_name("root")
_PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "mke2fs": "e2fsprogs",
    "dpkg-deb": "dpkg",
}
UNUSED_S = 30 * 24 * 3600.0
_BUILDING = "building-"
INITIATOR_NAME = "iqn.2025-01.internal.bucketworks:guest"


class ImageFailed(RuntimeError):
    """An image could not be built; the message ends with the output of what failed."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files to boot from. `root` is to be opened with a copy-on-write layer over it."""

    kernel: Path
    root: Path
    packages: Path
    locks: tuple[int, ...] = ()
    """Descriptors that keep the files there until they are closed, or this process ends."""


def cache_directory() -> Path:
    named = os.environ.get("BUCKETWORKS_GUEST_CACHE", "")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bucketworks-guest"


def why_not() -> str:
    """Why no guest can be booted here and what would change that; empty if one can, as far as is known beforehand."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    packages = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool, path=path) is None})
    if packages:
        return f"needs {', '.join(packages)}: apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 and not _root_entry(cache_directory()).exists():
        return "mmdebstrap needs root to build the guest's image: run the guest tests once as root, with the same cache"
    return ""


def find_or_build() -> GuestImage:
    """The images, built if the cache has none (a minute). ImageFailed, also where Debian's packages cannot be had."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    root, root_lock = _entry(cache, _root_entry(cache), _build_root)
    requirements = (ROOT / "requirements.txt").read_bytes()
    key = hashlib.sha256(requirements + repr((GUEST_PYTHON, _PLATFORMS, sys.version_info[:2])).encode())
    packages, packages_lock = _entry(cache, cache / f"packages-{key.hexdigest()[:16]}", _build_packages)
    if os.access(cache, os.W_OK):
        remove_unused(cache, time.time() - UNUSED_S)
    return GuestImage(root / "vmlinuz", root / "root.img", packages / "packages.img", (root_lock, packages_lock))


def remove_unused(cache: Path, since: float) -> list[str]:
    """Remove what nobody uses now or has used after `since` (Unix time), half-built entries too; their names.

    Killed half-way it leaves a directory that nothing looks for, whose files the next one removes."""
    removed = []
    with _locked(cache / "lock"):
        for entry in sorted(cache.iterdir()):
            if not entry.name.startswith(("root-", "packages-", "template-", _BUILDING)):
                continue
            if entry.stat().st_mtime >= since:
                continue
            lock = os.open(entry, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Out of sight first, so that nobody finds half of it.
                doomed = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=cache))
                entry.rename(doomed / entry.name)
                shutil.rmtree(doomed)
                removed.append(entry.name)
            except BlockingIOError:
                continue  # in use
            finally:
                os.close(lock)
    return removed


def find_or_build_entry(entry_name: str, build: Callable[[Path], None]) -> tuple[Path, int]:
    """An entry that another module describes; its name begins with a prefix that `remove_unused` knows, and ends with a hash of
    what it is made from. The descriptor keeps it there until it is closed. ImageFailed."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    return _entry(cache, cache / entry_name, build)


def build_program(image: Path) -> None:
    """An image of this working tree: `lib/` with our packages and the tests', `bin/` with our commands.

    Modules are compiled beforehand where the tests run on the guest's Python; under emulation that saves seconds."""
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        tree = Path(name)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        packages = [one.rstrip("*") for one in project["tool"]["setuptools"]["packages"]["find"]["include"]]
        for package in (*packages, "tests", "deploy"):
            shutil.copytree(
                ROOT / package, tree / "lib" / package, ignore=shutil.ignore_patterns("__pycache__", "golden")
            )
        _compile(tree / "lib")
        (tree / "bin").mkdir()
        for command, place in project["project"]["scripts"].items():
            module, function = place.split(":")
            script = tree / "bin" / command
            script.write_text(
                f"#!/usr/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
            )
            script.chmod(0o755)
        make_file_system(image, tree, 64 << 20)


# --- building


def _root_entry(cache: Path) -> Path:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(_ROOT_FILES.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return cache / f"root-{digest.hexdigest()[:16]}"


def _entry(cache: Path, entry: Path, build: Callable[[Path], None]) -> tuple[Path, int]:
    """The entry, built if need be, and a descriptor that keeps it there until it is closed."""
    while True:
        _build_once(cache, entry, build)
        with contextlib.suppress(FileNotFoundError):
            return entry, _use(entry)


def _use(entry: Path) -> int:
    """Touched, and under a shared lock. FileNotFoundError if it is being removed."""
    lock = os.open(entry, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(lock), entry.stat()):
            raise FileNotFoundError(entry)
        with contextlib.suppress(PermissionError):  # somebody else's, whose date is theirs to keep
            os.utime(entry)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _build_once(cache: Path, entry: Path, build: Callable[[Path], None]) -> None:
    if entry.exists():
        return
    with _locked(cache / "lock"):
        if not entry.exists():
            # A build that dies leaves its directory behind, under a name that nothing looks for.
            under_way = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=cache))
            try:
                build(under_way)
                under_way.chmod(0o755)
                under_way.rename(entry)
            finally:
                shutil.rmtree(under_way, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_root(directory: Path) -> None:
    tree = install_debian(directory, _PACKAGES)
    _put_own_files(tree)
    make_file_system(directory / "root.img", tree, 4 << 30)
    shutil.rmtree(tree)


def install_debian(directory: Path, packages: Sequence[str], *options: str) -> Path:
    """A tree of Debian with these packages and the kernel's modules in `directory`, and `vmlinuz` beside it.

    `options` are mmdebstrap's. ImageFailed."""
    tree = directory / "tree"
    # The kernel comes from where the guest's packages come from, whatever the host's own sources are. It is unpacked
    # and not installed: its scripts would build an initial RAM disk that nobody boots from.
    fetch_kernel = (
        f"cd '{directory}' && export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG &&"
        f" apt-get download -q $(apt-cache depends {_KERNEL} | sed -n 's/.*Depends: \\(linux-image-.*\\)/\\1/p')"
    )
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        "--format=directory",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "3"',
        f"--customize-hook={fetch_kernel}",
        *options,
        _SUITE,
        str(tree),
    )
    kernel_package = next(directory.glob("linux-image-*.deb"))
    kernel = directory / "kernel"
    _run("dpkg-deb", "-x", str(kernel_package), str(kernel))
    release = next((kernel / "lib/modules").iterdir()).name
    (kernel / "boot" / f"vmlinuz-{release}").rename(directory / "vmlinuz")
    (tree / "usr/lib/modules").mkdir(exist_ok=True)
    (kernel / "lib/modules" / release).rename(tree / "usr/lib/modules" / release)
    _run("depmod", "-b", str(tree), release)
    kernel_package.unlink()
    shutil.rmtree(kernel)
    return tree


def _put_own_files(tree: Path) -> None:
    places = {"guest-init": "", "guest-setup": "usr/sbin", "guest-agent": "usr/sbin", "fstab": "etc"}
    for file in sorted(_ROOT_FILES.iterdir()):
        folder = tree / places.get(file.name, "etc/systemd/system")
        shutil.copyfile(file, folder / file.name)
        (folder / file.name).chmod(0o755 if file.read_bytes().startswith(b"#!") else 0o644)
        if file.suffix == ".service":
            wanted = tree / "etc/systemd/system/multi-user.target.wants"
            wanted.mkdir(exist_ok=True)
            (wanted / file.name).symlink_to(f"../{file.name}")
    for unit in _NOT_STARTED:
        (tree / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
    for mount_point in ("opt/packages", "opt/bucketworks", "mnt/a", "mnt/b"):
        (tree / mount_point).mkdir(parents=True)
    # Ahead of Debian's own modules, as an installation in a virtual environment would have them.
    paths = tree / "usr/local/lib/python3.11/dist-packages/bucketworks.pth"
    paths.parent.mkdir(parents=True, exist_ok=True)
    paths.write_text("/opt/bucketworks/lib\n/opt/packages\n")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost guest\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    initiator = tree / "etc/iscsi/initiatorname.iscsi"
    initiator.unlink(missing_ok=True)
    initiator.write_text(f"InitiatorName={INITIATOR_NAME}\n")


def _build_packages(directory: Path) -> None:
    tree = directory / "tree"
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq", "--no-compile"),
        *("--require-hashes", "--no-deps", "--target", str(tree)),
        *("--python-version", ".".join(map(str, GUEST_PYTHON)), *platforms),
        *("-r", str(ROOT / "requirements.txt")),
    )
    _compile(tree)
    make_file_system(directory / "packages.img", tree, 512 << 20)
    shutil.rmtree(tree)


def _compile(tree: Path) -> None:
    if sys.version_info[:2] == GUEST_PYTHON:
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(tree, quiet=2, workers=os.cpu_count() or 1, invalidation_mode=unchecked, stripdir=tree)


def make_file_system(image: Path, tree: Path, size: int, *, journal: bool = False) -> None:
    """An ext4 image of `tree`. Without a journal what a power cut leaves has to be checked. ImageFailed."""
    features = "has_journal" if journal else "^has_journal"
    with image.open("wb") as file:
        file.truncate(size)
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-O", features, "-m", "0", "-E", "lazy_itable_init=1,root_owner=0:0"),
        *("-d", str(tree), str(image)),
    )


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        output = done.stdout.decode(errors="replace")[-3000:]
        raise ImageFailed(f"{command[0]} ended with {done.returncode}:\n{output}")
