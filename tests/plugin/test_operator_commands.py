"""pve-s3-backup, pve-s3-restore and pve-s3-maintenance against a real radosgw, as a person types them.

One rule: what a command says it did is looked for in the bucket.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plugin import backup_command, cli, maintenance_command, restore_command
from plugin.configuration import ROOT_VARIABLE
from s3core import console
from s3core.bucket import Bucket
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.plugin.archive.writers import vma
from tests.servers.processes import end, start, tail
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = [pytest.mark.rgw, pytest.mark.slow]
MIB = 1 << 20
PROGRAMS = {
    "pve-s3-backup": backup_command.app,
    "pve-s3-restore": restore_command.app,
    "pve-s3-maintenance": maintenance_command.app,
    "pve-s3": cli.app,
}
_buckets = iter(range(1000))


@dataclass
class Node:
    """A node with one storage, `s3`, in a bucket of its own."""

    root: Path
    bucket: Bucket
    name: str
    capture: pytest.CaptureFixture[str]

    def run(self, program: str, *words: str, status: int = 0) -> str:
        """Standard output. Every command but pve-s3 names storage s3."""
        given = words if program == "pve-s3" else ("--storage", "s3", "--quiet", *words)
        code = console.run(PROGRAMS[program], program, given)
        said = self.capture.readouterr()
        assert int(code) == status, said.out + said.err
        return said.out if status in (0, 1) else said.err

    def json(self, program: str, *words: str, status: int = 0) -> Any:
        return json.loads(self.run(program, *words, "--json", status=status))

    def stored(self) -> list[str]:
        return [key.decode() for key in self.bucket.list_page(prefix="site/").keys]


@pytest.fixture
def make_node(
    radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Node]]:
    opened: list[Bucket] = []

    def make(*lines: str, secrets: str = "") -> Node:
        name = f"commands-{next(_buckets)}"
        control = S3Control(radosgw.endpoint())
        control.create_bucket(name)
        control.close()
        root = tmp_path / "node"
        (root / "etc/pve/priv/storage").mkdir(parents=True)
        text = [
            "bucketfiles: s3",
            *(f"\tbw-endpoint http://127.0.0.1:{radosgw.http_port}", "\tbw-preset ceph", f"\tbw-bucket {name}"),
            *("\tbw-prefix site", "\tbw-region us-east-1", "\tbw-part-size 5", f"\tbw-access-key {ACCESS_KEY}"),
            *(f"\t{line}" for line in lines),
        ]
        (root / "etc/pve/storage.cfg").write_text("\n".join(text) + "\n")
        private = root / "etc/pve/priv/storage/s3.bucketfiles"
        private.write_text(f"bw-secret-key {SECRET_KEY}\n{secrets}")
        private.chmod(0o600)
        config = tmp_path / "config.toml"
        config.write_text(f'[pve]\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\nspool_bytes = "64M"\n')
        config.chmod(0o600)
        monkeypatch.setenv(ROOT_VARIABLE, str(root))
        monkeypatch.setenv("BUCKETWORKS_CONFIG", str(config))
        opened.append(S3Bucket(radosgw.endpoint(), name))
        return Node(root, opened[-1], name, capsys)

    yield make
    for bucket in opened:
        bucket.close()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A VMA of 12 MiB, which is three parts."""
    path = tmp_path / "made-elsewhere.img"
    path.write_bytes(vma({"drive-scsi0": random.Random(1).randbytes(12 * MIB)}))
    os.utime(path, (1_750_000_000, 1_750_000_000))
    return path


def test_a_backup_is_sent_once_listed_fetched_and_whole(
    make_node: Callable[..., Node], archive: Path, tmp_path: Path
) -> None:
    node = make_node()
    sent = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--notes", "before\nthe move")
    name = sent["volid"].removeprefix("s3:backup/")
    assert name.startswith("vzdump-qemu-100-2025_06_1")
    assert name.endswith(".vma")
    assert (sent["sent"], sent["proof"], sent["index"]) == (True, "etag", True)
    assert node.stored() == [
        f"site/.bucketworks/index/dump/{name}.index",
        f"site/dump/{name}",
        f"site/dump/{name}.notes",
    ]
    assert node.bucket.get(f"site/dump/{name}") == archive.read_bytes()

    again = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--notes", "before\nthe move")
    assert (again["sent"], again["proof"], again["volid"]) == (False, "compared", sent["volid"])

    rows = node.json("pve-s3-restore", "--list")
    assert [(row["volid"], row["size"], row["notes"]) for row in rows] == [
        (sent["volid"], archive.stat().st_size, "before")
    ]
    assert node.json("pve-s3-restore", "--list", "--vmid", "101") == []

    folder = tmp_path / "out"
    folder.mkdir()
    fetched = node.json("pve-s3-restore", "--source", name, "--destination", str(folder))
    assert (fetched["fetched"], Path(fetched["file"])) == (True, folder / name)
    assert (folder / name).read_bytes() == archive.read_bytes()
    assert not node.json("pve-s3-restore", "--source", name, "--destination", str(folder))["fetched"]

    whole = node.json("pve-s3-maintenance", "--action", "check-integrity", "--sample", "100")
    assert (whole["ok"], whole["volumes"]) == (True, 1)
    status = node.json("pve-s3-maintenance", "--action", "status")
    assert status["contents"]["backup"] == {"volumes": 1, "bytes": archive.stat().st_size}
    assert (status["uploads"], status["orphans"]) == (0, 0)


def test_other_bytes_are_never_replaced(make_node: Callable[..., Node], archive: Path, tmp_path: Path) -> None:
    node = make_node()
    name = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100")["volid"].partition("/")[2]
    changed = bytearray(archive.read_bytes())
    changed[-1] ^= 1
    archive.write_bytes(changed)
    os.utime(archive, (1_750_000_000, 1_750_000_000))
    said = node.run("pve-s3-backup", "--source", str(archive), "--vmid", "100", status=7)
    assert "is there, with other bytes" in said
    said = node.run("pve-s3-restore", "--source", name, "--destination", str(archive), status=7)
    assert "is there, with other bytes than the volume" in said
    assert archive.read_bytes() == changed
    node.run("pve-s3-restore", "--source", name, "--destination", str(archive), "--force")
    assert archive.read_bytes() != changed


def test_a_killed_backup_goes_on(make_node: Callable[..., Node], archive: Path, radosgw: Radosgw) -> None:
    """Killed once a part was acknowledged: that part is not sent again, and nothing is visible before the end."""
    node = make_node()
    script = (
        "import os, signal, sys\n"
        "from plugin import backup_command\n"
        "from plugin.upload.journal import Journal\n"
        "sent = Journal.sent\n"
        "def dying(self, part):\n    sent(self, part)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.sent = dying\n"
        "backup_command.main()\n"
    )
    words = ["--storage", "s3", "--source", str(archive), "--vmid", "100"]
    killed = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr
    assert node.stored() == []
    (upload,) = node.bucket.list_uploads().uploads
    sent = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100")
    assert sent["sent"]
    assert node.bucket.list_uploads().uploads == []
    assert node.bucket.get(upload.key) == archive.read_bytes()


def test_cleanup_removes_what_nobody_needs_and_nothing_else(
    make_node: Callable[..., Node], archive: Path, tmp_path: Path
) -> None:
    node = make_node()
    name = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--notes", "n")["volid"].partition(
        "/"
    )[2]
    kept = node.stored()
    node.bucket.put("site/dump/vzdump-qemu-7000-2020_01_01-00_00_00.vma.zst.notes", b"of a volume that is gone")
    node.bucket.put("site/.bucketworks/index/dump/gone.vma.index", b"x")
    node.bucket.put("site/dump/vzdump-qemu-100-2020_01_01-00_00_00.log", b"of a backup that failed")
    node.bucket.put("site/README", b"somebody's own")
    node.bucket.put("elsewhere/dump/gone.vma.notes", b"of another storage")
    node.bucket.begin_upload("site/dump/vzdump-qemu-100-2026_01_01-00_00_00.vma")
    node.bucket.begin_upload("elsewhere/x")
    cached = tmp_path / "state/s3/cache/template/iso/old.iso"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"iso")

    assert node.json("pve-s3-maintenance", "--action", "cleanup")["removed"] == []
    shown = node.json("pve-s3-maintenance", "--action", "cleanup", "--older-than", "0s", "--dry-run")["removed"]
    assert sorted(one["kind"] for one in shown) == ["cached", "sidecar", "sidecar", "sidecar", "upload"]
    assert cached.exists()
    removed = node.json("pve-s3-maintenance", "--action", "cleanup", "--older-than", "0s")["removed"]
    assert removed == shown
    assert node.stored() == sorted([*kept, "site/README"])
    assert node.bucket.head("elsewhere/dump/gone.vma.notes").size
    assert [one.key for one in node.bucket.list_uploads().uploads] == ["elsewhere/x"]
    assert not cached.exists()
    assert name in kept[1]


def test_damage_is_found(make_node: Callable[..., Node], archive: Path) -> None:
    """A rewritten object is found by its facts alone; one bit of it by reading."""
    node = make_node()
    volid = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100")["volid"]
    key = f"site/dump/{volid.partition('/')[2]}"
    facts = node.bucket.head(key)
    changed = bytearray(archive.read_bytes())
    changed[6 * MIB] ^= 1
    parts = []
    upload = node.bucket.begin_upload(key, attributes=facts.attributes)
    for number, at in enumerate(range(0, len(changed), 5 * MIB), 1):
        parts.append((number, node.bucket.upload_part(key, upload, number, changed[at : at + 5 * MIB])))
    node.bucket.complete_upload(key, upload, parts)
    found = node.json("pve-s3-maintenance", "--action", "check-integrity", status=1)
    assert found["findings"] == [
        {"volume": volid[3:], "problem": "the index is of another object of this name", "damaged": False}
    ]
    # In one piece, although its metadata tell of parts: nobody of ours wrote that.
    node.bucket.put(key, bytes(changed)[:-1], attributes=facts.attributes)
    node.run("pve-s3-maintenance", "--action", "check-integrity", "--sample", "100", status=1)


def test_a_sealed_storage(make_node: Callable[..., Node], archive: Path, tmp_path: Path) -> None:
    node = make_node("bw-encryption 1", secrets="bw-encryption-key correct-horse-battery\n")
    sent = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--notes", "secret words")
    name = sent["volid"].partition("/")[2]
    stored = node.bucket.get(f"site/dump/{name}")
    assert len(stored) > archive.stat().st_size
    assert archive.read_bytes()[4096:8192] not in stored
    assert b"secret" not in node.bucket.get(f"site/dump/{name}.notes")
    assert not node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100")["sent"]
    (row,) = node.json("pve-s3-restore", "--list")
    assert (row["size"], row["sealed"]) == (archive.stat().st_size, True)
    target = tmp_path / "back.vma"
    node.run("pve-s3-restore", "--source", name, "--destination", str(target))
    assert target.read_bytes() == archive.read_bytes()
    assert node.json("pve-s3-maintenance", "--action", "check-integrity", "--sample", "100")["ok"]


def test_without_proxmox_the_environment_names_the_bucket(
    make_node: Callable[..., Node], archive: Path, radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    (node.root / "etc/pve/storage.cfg").unlink()
    for name, value in {
        "S3_ENDPOINT": f"http://127.0.0.1:{radosgw.http_port}",
        "S3_BUCKET": node.name,
        "S3_REGION": "us-east-1",
        "S3_PREFIX": "site",
        "S3_ACCESS_KEY": ACCESS_KEY,
        "S3_SECRET_KEY": SECRET_KEY,
    }.items():
        monkeypatch.setenv(name, value)
    ini = tmp_path / "keys.ini"
    ini.write_text("[default]\npreset = ceph\n")
    ini.chmod(0o600)
    sent = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--credentials", str(ini))
    assert sent["sent"]
    assert f"site/dump/{sent['volid'].partition('/')[2]}" in node.stored()
    monkeypatch.setenv("PVE_S3_LOG_LEVEL", "loud")
    assert "PVE_S3_LOG_LEVEL is one of" in node.run("pve-s3-restore", "--list", status=3)


def test_bad_input_is_said(make_node: Callable[..., Node], archive: Path, tmp_path: Path) -> None:
    node = make_node()
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"QFI\xfb" + bytes(1000))
    said = node.run("pve-s3-backup", "--source", str(disk), "--vmid", "100", status=3)
    assert "neither a VMA nor a tar archive" in said
    assert "pve-s3 upload" in said
    assert "none.vma" in node.run("pve-s3-backup", "--source", f"{tmp_path}/none.vma", "--vmid", "100", status=4)
    assert "give --list" in node.run("pve-s3-restore", status=2)
    name = "vzdump-qemu-100-2020_01_01-00_00_00.vma"
    said = node.run("pve-s3-restore", "--source", name, "--destination", str(tmp_path / "x"), status=4)
    assert f"s3:backup/{name} is not in" in said
    assert not (tmp_path / "x").exists()
    assert node.stored() == []


def test_volumes_of_any_content(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node()
    iso = tmp_path / "debian-12.iso"
    iso.write_bytes(random.Random(2).randbytes(MIB))
    assert node.json("pve-s3", "upload", "s3", str(iso))["volid"] == "s3:iso/debian-12.iso"
    assert not node.json("pve-s3", "upload", "s3", str(iso))["sent"]
    template = tmp_path / "debian-12.tar.zst"
    template.write_bytes(b"x")
    assert "say it with --as" in node.run("pve-s3", "upload", "s3", str(template), status=3)
    node.json("pve-s3", "upload", "s3", str(iso), "--as", "snippets/hook.sh")
    rows = node.json("pve-s3", "list", "s3", "--content", "iso")
    assert [row["volid"] for row in rows] == ["s3:iso/debian-12.iso"]
    assert len(node.json("pve-s3", "list", "s3")) == 2
    target = tmp_path / "copy.iso"
    assert node.json("pve-s3", "download", "s3", "s3:iso/debian-12.iso", str(target))["fetched"]
    assert target.read_bytes() == iso.read_bytes()
    assert node.json("pve-s3", "thaw", "s3", "iso/debian-12.iso")["state"] == "ready"
    node.run("pve-s3", "rm", "s3", "iso/debian-12.iso")
    assert "site/template/iso/debian-12.iso" not in node.stored()
    assert "is not" in node.run("pve-s3", "rm", "s3", "iso/debian-12.iso", status=4)


def test_what_is_protected_stays(make_node: Callable[..., Node], archive: Path) -> None:
    node = make_node()
    volid = node.json("pve-s3-backup", "--source", str(archive), "--vmid", "100", "--notes", "n")["volid"]
    flag = f"site/dump/{volid.partition('/')[2]}.protected"
    node.bucket.put(flag, b"")
    assert "protected" in node.run("pve-s3", "rm", "s3", volid, status=7)
    assert [row["protected"] for row in node.json("pve-s3", "list", "s3")] == [True]
    node.bucket.delete(flag)
    node.run("pve-s3", "rm", "s3", volid)
    assert node.stored() == []


def test_what_the_core_knows(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node()
    down = node.json("pve-s3", "status", status=1)
    assert (down[0]["storage"], down[0]["active"]) == ("s3", False)
    assert "no core answers" in down[0]["reason"]
    iso = tmp_path / "debian-12.iso"
    iso.write_bytes(random.Random(3).randbytes(MIB))
    node.run("pve-s3", "upload", "s3", str(iso))
    log = tmp_path / "core.log"
    core = start([sys.executable, "-c", "from plugin.cli import main; main()", "serve"], log)
    try:
        give_up = time.monotonic() + 60
        while not (told := _status(node))["active"]:
            assert time.monotonic() < give_up, (told, tail(log))
            time.sleep(0.1)
        assert told["used"] == MIB
        assert node.json("pve-s3", "warm", "s3")["fetched"] == ["iso/debian-12.iso"]
        assert (tmp_path / "state/s3/cache/template/iso/debian-12.iso").read_bytes() == iso.read_bytes()
        used = node.json("pve-s3", "usage", "s3")
        assert used["contents"]["iso"] == {"objects": 1, "bytes": MIB}
        assert used["month"]["requests"] > 0
        assert "requests this month" in node.run("pve-s3", "usage", "s3")
        assert "knows no storage" in node.run("pve-s3", "usage", "none", status=4)
    finally:
        end(core)


def _status(node: Node) -> dict[str, Any]:
    code = console.run(cli.app, "pve-s3", ["status", "--json"])
    said = node.capture.readouterr()
    assert int(code) in (0, 1), said.err
    (row,) = json.loads(said.out)
    return dict(row)
