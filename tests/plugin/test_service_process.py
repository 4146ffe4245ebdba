"""`pve-s3 serve` as a process, before a real server: killed at any point, cut off, stopped in order."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from plugin.catalogue import Catalogue
from plugin.errors import NotServed
from plugin.mount.control import call, socket_path
from s3core.bucket import Bucket
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.plugin.service_world import ToldError, ask, wait_until
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BACKUP = "backup/vzdump-lxc-100-2026_11_22-10_00_00.tar"


class Core:
    """The process, the server that it asks, and a relay between the two."""

    def __init__(self, directory: Path, server: MotoServer | Radosgw) -> None:
        self.directory = directory
        self.endpoint = server.endpoint()
        port = int(self.endpoint.url.rpartition(":")[2])
        self.relay = Relay(port)
        self.name = f"core-{uuid4().hex[:8]}"
        with closing(S3Control(self.endpoint)) as control:
            control.create_bucket(self.name)
        self.bucket: Bucket = S3Bucket(self.endpoint, self.name)
        (directory / "etc/pve/priv/storage").mkdir(parents=True)
        secrets = directory / "etc/pve/priv/storage/s3.bucketfiles"
        secrets.write_text(f"bw-secret-key {self.endpoint.credentials.secret_key}\n")
        secrets.chmod(0o600)
        (directory / "etc/pve/storage.cfg").write_text(
            f"bucketfiles: s3\n\tpath {directory}/mnt\n\tbw-bucket {self.name}\n\tbw-prefix pve\n"
            f"\tbw-endpoint {self.relay.url}\n\tbw-access-key {self.endpoint.credentials.access_key}\n"
            f"\tbw-region us-east-1\n\tbw-addressing path\n"
        )
        (directory / "config.toml").write_text(
            f'[pve]\nstate_dir = "{directory}/state"\nrun_dir = "{directory}/run"\nprobe_s = "1s"\n'
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.log = directory / "core.log"

    @property
    def socket(self) -> Path:
        return self.directory / "run/pve.sock"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from plugin.cli import main; main()",
                    "serve",
                    "--pve-root",
                    str(self.directory),
                    "--config",
                    str(self.directory / "config.toml"),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers, 60)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with suppress(OSError, ToldError):
            return bool(self.ask("ping")["pid"] == self._process.pid)
        return False

    def end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(60)

    def ask(self, method: str, deadline_ms: int | None = None, **args: Any) -> dict[str, Any]:
        return ask(self.socket, method, "s3", deadline_ms, **args)

    def names(self) -> list[str]:
        return [one["volname"] for one in self.ask("list", 30_000)["volumes"]]

    def close(self) -> None:
        self.end(signal.SIGKILL)
        self.relay.stop()
        self.bucket.close()


@pytest.fixture
def before(tmp_path: Path) -> Iterator[Callable[[MotoServer | Radosgw], Core]]:
    made: list[Core] = []

    def make(server: MotoServer | Radosgw) -> Core:
        made.append(Core(tmp_path, server))
        return made[-1]

    yield make
    for core in made:
        core.close()


@pytest.mark.rgw
def test_a_day_in_its_life(radosgw: Radosgw, before: Callable[[MotoServer | Radosgw], Core]) -> None:
    core = before(radosgw)
    data = os.urandom(40 << 20)
    core.bucket.put("pve/template/iso/a.iso", data)
    core.bucket.put(f"pve/dump/{BACKUP[7:]}", b"backup")
    core.start()
    assert core.names() == [BACKUP, "iso/a.iso"]
    core.ask("attribute_set", volname=BACKUP, name="notes", value="hello\nthere")
    core.ask("attribute_set", volname=BACKUP, name="protected", value=1)
    (told,) = core.ask("list", content=["backup"])["volumes"]
    assert (told["notes"], told["protected"], told["size"]) == ("hello", 1, 6)

    # Killed while it fetches: the next one goes on, and has the whole file.
    core.relay.delay_s = 0.3
    with pytest.raises((AssertionError, ConnectionError)):
        _fetch_and_kill(core)
    core.relay.delay_s = 0.0
    core.start()
    path = Path(core.ask("fetch", volname="iso/a.iso")["path"])
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()

    # Cut off: status in time and inactive, lists fail in time, the file serves.
    core.relay.cut()
    wait_until(lambda: core.ask("status")["active"] is False, 60)
    began = time.monotonic()
    assert core.ask("status", 50_000)["used"] >= len(data)
    assert time.monotonic() - began < 20, "it waits for the store"
    wait_until(lambda: _code(core, "list") in ("unavailable", "deadline"), 60)
    assert core.ask("fetch", volname="iso/a.iso")["path"] == str(path)
    core.relay.mend()
    wait_until(lambda: core.ask("status")["active"] is True, 60)

    with pytest.raises(ToldError) as refused:
        core.ask("free", volname=BACKUP)
    assert refused.value.code == "refused"
    core.ask("attribute_set", volname=BACKUP, name="protected", value=0)
    core.ask("free", volname=BACKUP)
    assert sorted(core.bucket.list_page().keys) == [b"pve/template/iso/a.iso"]
    spent = core.ask("usage")["requests"]
    assert spent["get"]["down"] >= len(data)
    assert core.end(signal.SIGTERM) == 0
    assert not core.socket.exists()
    core.start()
    assert core.ask("usage")["requests"]["get"]["down"] == spent["get"]["down"], "counts survive a restart"


def _fetch_and_kill(core: Core) -> None:
    def kill() -> None:
        wait_until(lambda: any(core.directory.glob("state/s3/cache/.fetching/**/.*.partial")))
        core.end(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        core.ask("fetch", volname="iso/a.iso")
    finally:
        thread.join()


def _code(core: Core, method: str) -> str:
    try:
        core.ask(method, 2000)
    except ToldError as error:
        return error.code
    return "ok"


def test_killed_at_any_point_it_has_everything(
    moto_server: MotoServer, before: Callable[[MotoServer | Radosgw], Core]
) -> None:
    core = before(moto_server)
    chance = random.Random(7)
    there: set[str] = set()
    for number in range(3):
        core.start()
        for step in range(3):
            name = f"vzdump-lxc-{100 + number}-2026_11_22-10_00_{step:02}.tar"
            core.bucket.put(f"pve/dump/{name}", b"x" * 1000)
            there.add(f"backup/{name}")
        gone = sorted(there)[0]
        pid = core.ask("ping")["pid"]
        deadline = time.monotonic() + chance.uniform(0.0, 0.15)
        with suppress(ToldError, AssertionError, ConnectionError):
            core.ask("attribute_set", 5000, volname=sorted(there)[-1], name="notes", value=f"round {number}")
            while time.monotonic() < deadline:
                core.ask("list", 5000)
            core.ask("free", 5000, volname=gone)
        os.kill(pid, signal.SIGKILL)
        core.end(signal.SIGKILL)
        keys = {key.decode() for key in core.bucket.list_page().keys}
        there = {f"backup/{key[9:]}" for key in keys if key.endswith(".tar")}
    core.start()
    assert set(core.names()) == there
    wait_until(lambda: core.ask("status")["active"] is True, 60)
    usage = core.ask("usage")
    assert core.end(signal.SIGTERM) == 0
    with closing(Catalogue(core.directory / "state/s3/catalogue.sqlite")) as catalogue:
        entries = catalogue.entries()
        assert catalogue.usage().stored == sum(one.stored for one in entries) == usage["bytes"]
        assert {one.key for one in entries} == keys


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_mounts_are_started_and_started_again(
    moto_server: MotoServer, before: Callable[[MotoServer | Radosgw], Core]
) -> None:
    """A dead mount is replaced, one that hangs is left alone and holds nobody up, and the core's end ends none."""
    core = before(moto_server)
    core.bucket.put("pve/dump/" + BACKUP[7:], b"backup")
    core.start()
    path = core.directory / "mnt"
    try:
        wait_until(lambda: core.ask("activate", 5000)["mounted"], 60)
        assert core.ask("activate", 5000) == {"mounted": True, "reason": ""}
        assert (path / "dump" / BACKUP[7:]).read_bytes() == b"backup"
        pid = _mount_pid(core)

        core.end(signal.SIGKILL)
        core.start()
        assert core.ask("activate", 5000)["mounted"]
        assert _mount_pid(core) == pid, "the mount outlives the core"

        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        told = core.ask("activate", 5000)
        assert (told["mounted"], told["reason"]) == (True, "the mount's process does not answer")
        assert core.ask("status", 50_000)["active"] in (True, False)
        assert time.monotonic() - began < 20
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: core.ask("activate", 5000) == {"mounted": True, "reason": ""}, 60)
        assert _mount_pid(core) != pid
        assert (path / "dump" / BACKUP[7:]).read_bytes() == b"backup"

        with (path / "dump" / BACKUP[7:]).open("rb"), pytest.raises(ToldError, match="1 files are open") as told_busy:
            core.ask("deactivate")
        assert told_busy.value.code == "busy"
        core.ask("deactivate")
        assert not path.is_mount()
    finally:
        with suppress(NotServed, ProcessLookupError):
            os.kill(_mount_pid(core), signal.SIGKILL)
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_a_mount_of_other_settings_takes_nothing_new(
    moto_server: MotoServer, before: Callable[[MotoServer | Radosgw], Core]
) -> None:
    """After a new key or address: what is open goes on, nothing is written under the old ones, then a new process mounts."""
    core = before(moto_server)
    core.start()
    dump = core.directory / "mnt/dump"
    storages = core.directory / "etc/pve/storage.cfg"
    try:
        wait_until(lambda: core.ask("activate", 5000)["mounted"], 60)
        pid = _mount_pid(core)
        with (dump / BACKUP[7:]).open("wb") as backup:
            backup.write(b"begun")
            backup.flush()
            storages.write_text(storages.read_text().rstrip() + "\n\tbw-uploads 2\n")
            wait_until(
                lambda: "settings have changed, and 1 files are open" in core.ask("activate", 5000)["reason"], 60
            )
            with pytest.raises(OSError, match="mnt/dump/other"):
                (dump / "other.vma").write_bytes(b"new")
            backup.write(b" and ended")
        wait_until(lambda: core.ask("activate", 5000) == {"mounted": True, "reason": ""}, 60)
        assert _mount_pid(core) != pid
        assert (dump / BACKUP[7:]).read_bytes() == b"begun and ended"
        (dump / "other.vma").write_bytes(b"new")
    finally:
        with suppress(NotServed, ProcessLookupError):
            os.kill(_mount_pid(core), signal.SIGKILL)
        subprocess.run(["umount", "-l", str(core.directory / "mnt")], check=False, capture_output=True)


def _mount_pid(core: Core) -> int:
    return int(call(socket_path(core.directory / "run", "s3"), "status")["pid"])
