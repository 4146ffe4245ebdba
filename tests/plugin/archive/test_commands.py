"""`pve-s3 archive` against a bucket in memory, with archives that the real tools and our own writer made."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin import archive_commands, archive_source, session
from plugin.bucket import StorageBucket
from plugin.cli import app
from plugin.configuration import Storage
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.memory_bucket import MemoryBucket
from s3core.settings import Config
from tests.plugin.archive import writers
from tests.plugin.archive.test_containers import CONFIG, guest, vzdump
from tests.plugin.archive.test_machines import ARCHIVE, DISKS

__all__ = ["guest"]
VM = "vzdump-qemu-100-2026_01_02-03_04_05.vma"
CT = "vzdump-lxc-101-2026_01_02-03_04_05.tar.zst"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def memory() -> MemoryBucket:
    bucket = MemoryBucket()
    bucket.put(f"p/dump/{VM}", ARCHIVE)
    return bucket


@pytest.fixture(params=["plain", "sealed"])
def command(
    request: pytest.FixtureRequest,
    memory: MemoryBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Runs `pve-s3 archive …` in a directory of its own; the exit code, standard output, standard error."""
    if request.param == "sealed":
        keyring = _sealed(memory)
        monkeypatch.setattr(archive_source, "open_keyring", lambda *_, **__: keyring)
        monkeypatch.setattr(session, "open_keyring", lambda *_, **__: keyring)

    def opened(storage: Storage, config: Config) -> StorageBucket:
        return StorageBucket(memory, storage)

    monkeypatch.setattr(archive_source, "open_bucket", opened)
    monkeypatch.setattr(session, "open_bucket", lambda storage, config, **_: StorageBucket(memory, storage))
    monkeypatch.setenv("S3_BUCKET", "bucket")
    monkeypatch.setenv("S3_PREFIX", "p")
    monkeypatch.setenv("S3_ENDPOINT", "http://nowhere.test")
    monkeypatch.setenv("S3_ACCESS_KEY", "a")
    monkeypatch.setenv("S3_SECRET_KEY", "b")
    monkeypatch.setenv("BUCKETWORKS_PVE_ROOT", str(tmp_path / "none"))
    (tmp_path / "config.toml").write_text(f'[pve]\nstate_dir = "{tmp_path}/state"\n')
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)

    def go(verb: str, volume: str, *words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(app, "pve-s3", ["archive", verb, "store", volume, *words])
        told = capfd.readouterr()
        return int(code), told.out, told.err

    return go


def _sealed(memory: MemoryBucket) -> object:
    from uuid import UUID

    from cowsync.sealing.format import DataKey, Facts
    from cowsync.sealing.keys import Keyring

    key = DataKey(UUID(int=7), bytes(32))
    keyring = Keyring(key, {key.id: key}, os.urandom)
    for name in (VM,):
        plain = memory.get(f"p/dump/{name}")
        sealer = keyring.sealer(len(plain), Facts(f"dump/{name}"))
        header, at, out = sealer.header, 0, [sealer.head]
        for number in range(1, header.frames + 1):
            out.append(sealer.frame(plain[at : at + header.frame_length(number)]))
            at += header.frame_length(number)
        memory.put(f"p/dump/{name}", b"".join(out))
    return keyring


def test_a_machine(command: Run, memory: MemoryBucket, tmp_path: Path) -> None:
    code, out, _ = command("show", VM)
    assert (code, "VMA" in out, "drive-scsi0" in out, "make an index" in out) == (0, True, True, True)
    assert command("config", f"store:backup/{VM}")[:2] == (0, writers.CONFIG.decode())
    code, _, err = command("extract", VM, "--disk", "scsi0")
    assert (code, "pve-s3 archive index" in err) == (ExitCode.REFUSED, True)
    code, _, err = command("check", VM, "-q")
    assert (code, "no index" in err) == (ExitCode.REFUSED, True)

    assert command("index", VM, "-q")[:2] == (0, "made\n")
    assert "there is one" in command("index", VM, "-q")[1]
    shown = json.loads(command("show", VM, "--json")[1])
    assert (shown["complete"], shown["parts"], shown["plain_size"]) == (True, "about its own size", len(ARCHIVE))
    disks = json.loads(command("ls", VM, "--json")[1])
    assert disks == [{"disk": name, "size": len(data)} for name, data in DISKS.items()]

    code, out, err = command("extract", VM, "--disk", "scsi0", "--to", "d.raw")
    assert (code, err.count("done")) == (0, 1)
    place = tmp_path / "d.raw"
    assert place.read_bytes() == DISKS["drive-scsi0"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert place.stat().st_blocks * 512 < len(DISKS["drive-scsi0"]) * 0.9
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.toml", "d.raw"]
    code, _, err = command("extract", VM, "--disk", "scsi0", "--to", "d.raw")
    assert (code, "--force" in err) == (ExitCode.REFUSED, True)
    code, out, _ = command("check", VM, "--sample", "1", "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    assert command("extract", VM, "--disk", "nix")[0] == ExitCode.NOT_FOUND
    assert command("extract", VM)[0] == ExitCode.USAGE


def test_an_interrupted_disk_goes_on(
    command: Run, memory: MemoryBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("index", VM, "-q")
    monkeypatch.setattr(archive_commands, "SAVE_BYTES", 1 << 20)
    real, calls = os.fsync, iter(range(1000))

    def interrupted(file: int) -> None:
        real(file)
        if next(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert command("extract", VM, "--disk", "scsi0", "--to", "d.raw", "-q")[0] == ExitCode.INTERRUPTED
    monkeypatch.setattr(os, "fsync", real)
    note = tmp_path / ".d.raw.partial.at"
    assert json.loads(note.read_text())["at"] > 3 << 20
    before = memory.bytes_down
    code, _, err = command("extract", VM, "--disk", "scsi0", "--to", "d.raw")
    assert (code, "goes on" in err) == (0, True)
    assert memory.bytes_down - before < len(DISKS["drive-scsi0"]) * 0.6
    assert (tmp_path / "d.raw").read_bytes() == DISKS["drive-scsi0"]
    # A note of another object, or one that is none, begins anew.
    for text in ('{"at": 9999999, "etag": "other"}', "nonsense"):
        note.write_text(text)
        (tmp_path / ".d.raw.partial").write_bytes(b"x" * 100)
        code, _, err = command("extract", VM, "--disk", "scsi0", "--to", "d.raw", "--force")
        assert (code, "goes on" in err) == (0, False)
        assert (tmp_path / "d.raw").read_bytes() == DISKS["drive-scsi0"]


def test_damage_is_found(command: Run, memory: MemoryBucket) -> None:
    command("index", VM, "-q")
    index = f"p/.bucketworks/index/dump/{VM}.index"
    held = bytearray(memory.get(index))
    held[60 if len(held) < 2000 else len(held) // 2] ^= 1
    memory.put(index, bytes(held))
    code, out, _ = command("show", VM)
    assert (code, "the index cannot be read" in out) == (0, True)
    assert command("index", VM, "-q")[1] == "made\n"
    assert command("check", VM, "-q")[0] == 0
    data = bytearray(memory.get(f"p/dump/{VM}"))
    data[len(data) // 2] ^= 1
    memory.put(f"p/dump/{VM}", bytes(data))
    # Another ETag: the index is of the object that was there before.
    assert command("check", VM, "-q")[0] in (ExitCode.REFUSED, ExitCode.CORRUPT)


def test_what_is_not_there(command: Run) -> None:
    assert command("show", "vzdump-qemu-9-2026_01_02-03_04_05.vma")[0] == ExitCode.NOT_FOUND
    assert command("show", "iso/a.iso")[0] == ExitCode.CONFIGURATION
    assert command("show", "a/b/c")[0] == ExitCode.CONFIGURATION


@pytest.mark.parametrize("command", ["plain"], indirect=True)
def test_a_container(command: Run, memory: MemoryBucket, guest: Path, tmp_path: Path) -> None:
    data = writers.tool(
        "zstd", "-c", data=vzdump(guest, "--format=posix", "--sparse", "--acls", "--xattrs", "--xattrs-include=user.*")
    )
    memory.put(f"p/dump/{CT}", data)
    assert command("config", CT)[1] == CONFIG
    assert command("ls", CT)[0] == ExitCode.REFUSED
    command("index", CT, "-q")
    code, out, _ = command("ls", CT, "etc")
    assert (code, "etc/link -> passwd" in out, "-rw-r--r--" in out) == (0, True, True)
    rows = json.loads(command("ls", CT, "-r", "--json")[1])
    assert {"sparse", "etc/apt/sources", "pipe"} <= {row["path"] for row in rows}
    assert next(row["size"] for row in rows if row["path"] == "sparse") == 40 << 20
    assert "stream is in one piece" in command("show", CT)[1]
    assert command("extract", CT, "sparse", "-q")[0] == 0
    place = tmp_path / "sparse"
    assert place.read_bytes() == (guest / "r/sparse").read_bytes()
    assert place.stat().st_blocks * 512 < 2 << 20
    assert command("extract", CT, "/etc/passwd", "--to", "-", "-q")[1] == (guest / "r/etc/passwd").read_text()
    assert command("extract", CT, "etc", "--tar", "--to", "etc.tar", "-q")[0] == 0
    listed = subprocess.run(["tar", "tf", "etc.tar"], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert "./etc/apt/sources" in listed
    assert command("extract", CT, "etc/link")[0] == ExitCode.NOT_FOUND


def test_repacked_it_can_be_read_anywhere(command: Run, memory: MemoryBucket, tmp_path: Path) -> None:
    code, out, err = command("repack", VM, "-q", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["plain_size"] == len(ARCHIVE)
    shown = json.loads(command("show", f"{VM}.zst", "--json")[1])
    assert (shown["compression"], shown["complete"]) == ("zstd", True)
    assert "its own size, and up to" in shown["parts"]
    assert command("extract", f"{VM}.zst", "--disk", "efidisk0", "--to", "e.raw", "-q")[0] == 0
    assert (tmp_path / "e.raw").read_bytes() == DISKS["drive-efidisk0"]
    assert command("check", f"{VM}.zst", "-q")[0] == 0
    assert command("repack", VM, "-q")[0] == ExitCode.REFUSED
    assert command("repack", f"{VM}.zst", "-q")[0] == ExitCode.CONFIGURATION


@pytest.mark.parametrize("command", ["plain"], indirect=True)
def test_a_cut_archive_is_not_repacked(command: Run, memory: MemoryBucket) -> None:
    data = writers.tool("gzip", "-c", data=ARCHIVE)
    memory.put(f"p/dump/{VM}.gz", data[:-100_000])
    memory.put(f"p/dump/{VM}.gz.notes", b"before the upgrade")
    assert command("repack", f"{VM}.gz", "-q")[0] == ExitCode.CORRUPT
    assert f"p/dump/{VM}.zst".encode() not in memory.list_page(prefix="p/dump/").keys
    memory.put(f"p/dump/{VM}.gz", data)
    assert command("repack", f"{VM}.gz", "-q")[0] == 0
    assert memory.get(f"p/dump/{VM}.zst.notes") == b"before the upgrade"
