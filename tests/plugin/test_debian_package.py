"""The node's package: what is in it, and what installing, upgrading and removing it does to a clean Debian.

One rule: Debian 12 and 13 as Proxmox VE 8 and 9 have them, with nothing of ours but the package.
"""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.architecture.tree import ROOT
from tests.plugin.debian import SUITES, Debian, ImageFailed, find_or_build, make_package, why_not
from tests.plugin.mount.mounted import why_not as fuse_missing
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

START = ROOT / "deploy/debian/start.py"
OLD = "0.0.1"
slow = [pytest.mark.slow, pytest.mark.timeout(900)]

# --- the launcher


@pytest.fixture
def module_folders() -> Callable[[Path, tuple[int, int]], list[str]]:
    found: Callable[[Path, tuple[int, int]], list[str]] = runpy.run_path(str(START))["module_folders"]
    return found


def _shipped(home: Path) -> Path:
    for name in ("python3", "python3.11", "python3.13"):
        (home / "shipped" / name).mkdir(parents=True)
    (home / "shipped/BUILD").write_text("1-abc\n")
    return home


def test_modules_are_those_of_the_build_that_postinst_made(
    tmp_path: Path, module_folders: Callable[[Path, tuple[int, int]], list[str]]
) -> None:
    home = _shipped(tmp_path)
    assert module_folders(home, (3, 13)) == [f"{home}/shipped/python3.13", f"{home}/shipped/python3"]
    (home / "builds").mkdir()
    (home / "shipped").rename(home / "builds/1-abc")
    (home / "shipped").mkdir()
    (home / "shipped/BUILD").write_text("1-abc\n")
    assert module_folders(home, (3, 11)) == [f"{home}/builds/1-abc/python3.11", f"{home}/builds/1-abc/python3"]


def test_a_python_without_modules_is_named(
    tmp_path: Path, module_folders: Callable[[Path, tuple[int, int]], list[str]]
) -> None:
    with pytest.raises(LookupError, match=r"no modules for Python 3\.12; it has them for 3\.11, 3\.13"):
        module_folders(_shipped(tmp_path), (3, 12))


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_are_shell(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / "deploy/debian" / script)], check=True)


# --- the package as a file


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package"), OLD)


class TestFile:
    pytestmark = slow

    def test_the_same_tree_makes_the_same_bytes(self, package: Path, tmp_path: Path) -> None:
        again = make_package(tmp_path)
        assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(package.read_bytes()).digest()

    def test_everything_is_roots_and_nothing_is_built_here(self, package: Path) -> None:
        listing = subprocess.run(["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=5) for line in listing.splitlines()]
        assert {row[1] for row in rows} == {"root/root"}
        assert {row[0] for row in rows} <= {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"}
        names = [row[5] for row in rows]
        assert not [
            name for name in names if "__pycache__" in name or name.startswith(("./usr/local", "./etc/systemd"))
        ]
        assert names == sorted(names, key=lambda name: name.rstrip("/").split("/"))
        assert "./usr/bin/pve-s3" in names
        assert "./usr/share/perl5/PVE/Bucketworks/Client.pm" in names

    def test_its_sums_are_right(self, package: Path, tmp_path: Path) -> None:
        subprocess.run(["dpkg-deb", "-R", str(package), str(tmp_path / "tree")], check=True)
        done = subprocess.run(
            ["md5sum", "--quiet", "-c", "DEBIAN/md5sums"],
            cwd=tmp_path / "tree",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        control = (tmp_path / "tree/DEBIAN/control").read_text()
        assert "@" not in control.replace("packages@bucketworks", "")
        listed = len((tmp_path / "tree/DEBIAN/md5sums").read_text().splitlines())
        there = [one for one in (tmp_path / "tree").rglob("*") if one.is_file() and "DEBIAN" not in one.parts]
        assert listed == len(there)


# --- the package on a node

WHOLE = """
import importlib, pathlib, sys
sys.path.insert(0, "/usr/lib/bucketworks")
from start import HOME, module_folders
sys.path[:0] = module_folders(HOME, sys.version_info[:2])
root = pathlib.Path(sys.path[1])
names = {"blockdev.cli", "blockdev.engine.process", "s3core.cli", "integrity.recording", "cowsync.sealing"}
names |= {".".join(one.relative_to(root).with_suffix("").parts) for one in (root / "plugin").rglob("*.py")}
for name in sorted(names):
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert str(module.__file__).startswith(str(root)), module.__file__
import boto3
boto3.client("s3", region_name="x", aws_access_key_id="a", aws_secret_access_key="b")
print(len(names), "modules", root)
"""


@pytest.fixture(scope="module", params=SUITES)
def debian(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    """One for all tests of a suite, which leave no package installed."""
    if reason := why_not():
        pytest.skip(reason)
    try:
        find_or_build(request.param)
    except ImageFailed as error:
        pytest.skip(f"Debian's {request.param} cannot be had: {error}")
    machine = Debian(request.param, tmp_path_factory.mktemp(request.param))
    yield machine
    machine.end()
    shutil.rmtree(machine.root)


class TestNode:
    pytestmark = slow

    def test_install_use_remove_purge(self, debian: Debian, package: Path) -> None:
        before = _files(debian.root)
        debian.install(package)
        version = debian.run("pve-s3", "--version").split()[1]
        assert version == package.name.split("_")[1]
        assert debian.run("s3block", "--version") == f"s3block {version}\n"
        # Every module of ours is there with all that it imports, for this Debian's Python, and from the package alone.
        library = (
            "$(ls /usr/lib/x86_64-linux-gnu/libfuse3.so.? /lib/x86_64-linux-gnu/libfuse3.so.? 2>/dev/null | head -1)"
        )
        whole = debian.run("sh", "-c", f'FUSE_LIBRARY_PATH={library} python3 -IB -c "$0"', WHOLE)
        assert re.match(r"\d+ modules /usr/lib/bucketworks/builds/", whole.splitlines()[-1])
        assert debian.run("dpkg", "--verify", "bucketworks-pve") == ""

        storage = debian.root / "var/lib/bucketworks/pve/s3"
        for name in ("cache/template/iso/a.iso", "uploads/1/part", "disks/vm-100-disk-0/journal"):
            (storage / name).parent.mkdir(parents=True)
            (storage / name).write_bytes(b"x")
        (storage / "catalogue.sqlite-wal").write_bytes(b"x")
        debian.run("dpkg", "--remove", "bucketworks-pve")
        assert not (debian.root / "usr/lib/bucketworks").exists()
        assert not (debian.root / "usr/bin/pve-s3").exists()
        assert (storage / "cache/template/iso/a.iso").exists()
        # What no bucket has is no package's to remove.
        assert "/var/lib/bucketworks/pve/s3 is kept" in debian.run("dpkg", "--purge", "bucketworks-pve")
        assert [one for one in storage.rglob("*") if one.is_file()] == [storage / "disks/vm-100-disk-0/journal"]
        shutil.rmtree(debian.root / "var/lib/bucketworks")
        assert _files(debian.root) - before <= {Path(f"root/{package.name}")}
        assert debian.run("dpkg", "--audit") == ""

    @pytest.mark.rgw
    def test_what_runs_goes_on_through_an_upgrade(
        self, debian: Debian, package: Path, old_package: Path, radosgw: Radosgw
    ) -> None:
        """A backup is half written through the old version's mount when the package is upgraded, and another process needs a
        module for the first time after that: it gets the one of its own version. Then somebody would remove the package."""
        if reason := fuse_missing():
            pytest.skip(f"cannot mount: {reason}")
        bucket_name = f"package-{debian.suite}"
        control = S3Control(radosgw.endpoint())
        control.create_bucket(bucket_name)
        control.close()
        debian.install(old_package)
        _configure(debian.root, radosgw, bucket_name)
        debian.run("mkdir", "-p", "/mnt/pve/s3")
        builds = debian.root / "usr/lib/bucketworks/builds"
        script = (
            "import sys; sys.path.insert(0, '/usr/lib/bucketworks'); from start import HOME, module_folders; "
            "sys.path[:0] = module_folders(HOME, sys.version_info[:2]); import crc32c; print('up', flush=True); "
            "input(); import plugin.errors; from importlib.metadata import version; print(version('bucketworks'))"
        )
        late = debian.start("python3", "-IBc", script)
        assert late.stdout is not None
        assert late.stdout.readline() == "up\n"
        core = debian.start("pve-s3", "serve")
        mount = debian.start("pve-s3", "mount", "s3")
        _until(lambda: debian.status("test", "-d", "/mnt/pve/s3/dump") == 0, "the mount")
        _until(lambda: debian.status("pve-s3", "status") == 0, "the core")
        name = "/mnt/pve/s3/dump/vzdump-qemu-100-2026_01_01-00_00_00"
        vma = f"{name}.vma"
        half = "dd if=/dev/urandom bs=1M count=8 status=none"
        # The head of a VMA: it says under which name the parts are to lie.
        writer = debian.start(
            "sh", "-ec", f"(printf 'VMA\\0'; {half}; echo half >&2; read go; {half}) > {name}.dat; mv {name}.dat {vma}"
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"

        debian.install(package)
        assert len(list(builds.iterdir())) == 2
        assert debian.run("pve-s3", "--version").split()[1] == package.name.split("_")[1]
        said, _ = late.communicate("\n", timeout=60)
        assert (late.returncode, said.strip()) == (0, OLD)
        told = json.loads(debian.run("pve-s3", "upgrade-mounts", "--json"))
        assert [(one["version"], one["done"]) for one in told] == [(OLD, "in use")]
        assert mount.poll() is None
        assert core.poll() is None
        said = debian.run("dpkg", "--remove", "bucketworks-pve", status=1)
        assert "files are open on a mount" in said
        assert debian.run("dpkg-query", "-W", "-f", "${Status}", "bucketworks-pve").endswith(" ok installed")

        out, _ = writer.communicate("go\n", timeout=120)
        assert writer.returncode == 0, out
        bucket = S3Bucket(radosgw.endpoint(), bucket_name)
        assert bucket.head("dump/" + vma.rpartition("/")[2]).size == 4 + (16 << 20)
        bucket.close()

        core.kill()
        core.wait(30)
        # Nothing is open now: the mount ends, and with it the last process of the old build.
        debian.install(package)
        assert mount.wait(60) == 0
        debian.install(package)
        assert [one.name.split("-")[0] for one in builds.iterdir()] == [package.name.split("_")[1]]
        debian.run("dpkg", "--remove", "bucketworks-pve")
        assert debian.status("mountpoint", "-q", "/mnt/pve/s3") != 0
        debian.run("dpkg", "--purge", "bucketworks-pve")
        assert not (debian.root / "usr/lib/bucketworks").exists()
        state = debian.root / "var/lib/bucketworks"
        assert [str(one.relative_to(state)) for one in state.rglob("*")] == []


def _configure(root: Path, radosgw: Radosgw, bucket: str) -> None:
    private = root / "etc/pve/priv/storage"
    private.mkdir(parents=True)
    lines = [
        *("bucketfiles: s3", "\tpath /mnt/pve/s3", "\tcontent backup", "\tbw-preset ceph", f"\tbw-bucket {bucket}"),
        *(f"\tbw-endpoint http://127.0.0.1:{radosgw.http_port}", "\tbw-region us-east-1", "\tbw-part-size 5"),
        f"\tbw-access-key {ACCESS_KEY}",
    ]
    (root / "etc/pve/storage.cfg").write_text("\n".join(lines) + "\n")
    secrets = private / "s3.bucketfiles"
    secrets.write_text(f"bw-secret-key {SECRET_KEY}\n")
    secrets.chmod(0o600)


def _until(done: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up, f"{what} is not there"
        time.sleep(0.2)


def _files(root: Path) -> set[Path]:
    """What a package could leave behind; dpkg's own books and logs are dpkg's."""
    skipped = ("proc", "dev", "run", "var/lib/dpkg", "var/log", "tmp", "var/cache")
    return {
        name
        for one in root.rglob("*")
        if not str(name := one.relative_to(root)).startswith(skipped) and "__pycache__" not in name.parts
    }
