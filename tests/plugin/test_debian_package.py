"""The node's package, with the suite's: what installing, upgrading and removing it does to a clean Debian.

One rule: Debian 12 and 13 as Proxmox VE 8 and 9 have them, with nothing of ours but the packages.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.packages.built import NODE, OLD, SUITE, built, version_of
from tests.packages.conftest import debian
from tests.packages.debian import Debian, until
from tests.plugin.mount.mounted import why_not as fuse_missing
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

__all__ = ["debian"]

slow = [pytest.mark.slow, pytest.mark.timeout(900)]

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


class TestNode:
    pytestmark = slow

    def test_install_use_remove_purge(self, debian: Debian) -> None:
        before = debian.files()
        debian.install(built()[SUITE], built()[NODE])
        version = debian.run("pve-s3", "--version").split()[1]
        assert version == version_of(built()[NODE])
        assert debian.run("s3block", "--version") == f"s3block {version}\n"
        # Every module of ours is there with all that it imports, for this Debian's Python, and from the package alone.
        library = (
            "$(ls /usr/lib/x86_64-linux-gnu/libfuse3.so.? /lib/x86_64-linux-gnu/libfuse3.so.? 2>/dev/null | head -1)"
        )
        whole = debian.run("sh", "-c", f'FUSE_LIBRARY_PATH={library} python3 -IB -c "$0"', WHOLE)
        assert re.match(r"\d+ modules /usr/lib/bucketworks/builds/", whole.splitlines()[-1])
        assert debian.run("dpkg", "--verify", NODE, SUITE) == ""

        storage = debian.root / "var/lib/bucketworks/pve/s3"
        for name in ("cache/template/iso/a.iso", "uploads/1/part", "disks/vm-100-disk-0/journal"):
            (storage / name).parent.mkdir(parents=True)
            (storage / name).write_bytes(b"x")
        (storage / "catalogue.sqlite-wal").write_bytes(b"x")
        assert "dependency problems" in debian.run("dpkg", "--remove", SUITE, status=1)
        debian.run("dpkg", "--remove", NODE)
        assert not (debian.root / "usr/share/perl5/PVE/Bucketworks").exists()
        assert (storage / "cache/template/iso/a.iso").exists()
        # What no bucket has is no package's to remove.
        assert "/var/lib/bucketworks/pve/s3 is kept" in debian.run("dpkg", "--purge", "bucketworks-pve")
        assert [one for one in storage.rglob("*") if one.is_file()] == [storage / "disks/vm-100-disk-0/journal"]
        shutil.rmtree(storage)
        debian.run("dpkg", "--purge", SUITE)
        left = debian.root / "var/lib/bucketworks"
        # An empty folder of the node's; the suite's purge takes what is empty.
        assert not left.exists()
        assert debian.files() == before
        assert debian.run("dpkg", "--audit") == ""

    @pytest.mark.rgw
    def test_what_runs_goes_on_through_an_upgrade(self, debian: Debian, radosgw: Radosgw) -> None:
        """A backup is half written through the old version's mount when the package is upgraded, and another process needs a
        module for the first time after that: it gets the one of its own version. Then somebody would remove the package."""
        if reason := fuse_missing():
            pytest.skip(f"cannot mount: {reason}")
        bucket_name = f"package-{debian.suite}"
        control = S3Control(radosgw.endpoint())
        control.create_bucket(bucket_name)
        control.close()
        debian.install(built(OLD)[SUITE], built(OLD)[NODE])
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
        until(lambda: debian.status("test", "-d", "/mnt/pve/s3/dump") == 0, "the mount")
        until(lambda: debian.status("pve-s3", "status") == 0, "the core")
        name = "/mnt/pve/s3/dump/vzdump-qemu-100-2026_01_01-00_00_00"
        vma = f"{name}.vma"
        half = "dd if=/dev/urandom bs=1M count=8 status=none"
        # The head of a VMA: it says under which name the parts are to lie.
        writer = debian.start(
            "sh", "-ec", f"(printf 'VMA\\0'; {half}; echo half >&2; read go; {half}) > {name}.dat; mv {name}.dat {vma}"
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"

        debian.install(built()[SUITE], built()[NODE])
        assert len(list(builds.iterdir())) == 2
        assert debian.run("pve-s3", "--version").split()[1] == version_of(built()[NODE])
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
        debian.install(built()[SUITE], built()[NODE])
        assert mount.wait(60) == 0
        debian.install(built()[SUITE], built()[NODE])
        assert [one.name.split("-")[0] for one in builds.iterdir()] == [version_of(built()[NODE])]
        debian.run("dpkg", "--remove", "bucketworks-pve")
        assert debian.status("mountpoint", "-q", "/mnt/pve/s3") != 0
        debian.run("dpkg", "--purge", NODE, SUITE)
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
