"""The real process: started, killed, told to stop, and with a store that hangs, refuses or is cut off."""

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugin.mount import process
from plugin.mount.control import call, socket_path
from plugin.mount.process import clear_mountpoint, is_ours
from tests.plugin.mount.mounted import done, needs_fuse, run
from tests.plugin.mount.node import ID, Node
from tests.plugin.mount.test_filesystem import BASE, ZSTD
from tests.servers.moto_server import MotoServer
from tests.servers.processes import tail

pytestmark = [needs_fuse, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture
def node(moto_server: MotoServer, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, moto_server.endpoint())
    yield made
    made.end()


def archive(folder: Path, mib: int) -> Path:
    path = folder / "archive"
    path.write_bytes(ZSTD + os.urandom(mib * MIB))
    return path


def test_a_life_in_order(node: Node, tmp_path: Path) -> None:
    node.start()
    data = archive(tmp_path, 12)
    done("cp {d} {m}/{b}.vma.dat && mv {m}/{b}.vma.dat {m}/{b}.vma.zst", d=data, m=node.mount, b=BASE)
    assert node.object(f"{BASE}.vma.zst") == data.read_bytes()
    told = node.status()
    assert (told["idle"], told["storage"], told["open"]) == (True, ID, [])
    with node.mount.joinpath(f"{BASE}.vma.zst").open("rb") as reading:
        opened = node.status()
        assert not opened["idle"]
        assert [(one["path"], one["mode"], one["pid"]) for one in opened["open"]] == [
            (f"{BASE}.vma.zst", "read", os.getpid())
        ]
        assert call(socket_path(node.root / "run", ID), "stop_idle") == {"stopping": False}
        assert reading.read(4) == ZSTD
    node.until(lambda: bool(node.status()["idle"]), "the kernel has released the file")
    assert call(socket_path(node.root / "run", ID), "stop_idle") == {"stopping": True}
    assert node.process is not None
    assert node.process.wait(timeout=30) == 0
    assert not is_ours(node.mount)
    assert list(node.mount.iterdir()) == []
    node.start()
    done("cmp {d} {m}/{b}.vma.zst", d=data, m=node.mount, b=BASE)
    done("rm {m}/{b}.vma.zst", m=node.mount, b=BASE)
    assert node.stop() == 0
    assert node.objects() == []


def test_it_is_killed_in_the_middle_of_an_upload(node: Node, tmp_path: Path) -> None:
    """Nothing half is seen, the mount point answers at once, and the next process cleans up."""
    node.start()
    node.mount.joinpath(f"{BASE}.tmp").mkdir()
    fd = os.open(node.mount / f"{BASE}.vma.dat", os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(16):
            os.write(fd, ZSTD.ljust(MIB, b"x"))
        node.until(lambda: bool(node.pending()), "parts are on their way")
        node.stop(signal.SIGKILL)
        with pytest.raises(OSError) as caught:
            os.write(fd, b"more")
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        with pytest.raises(OSError):
            os.close(fd)
    result = run("ls {m}; mv {m}/{b}.vma.dat {m}/{b}.vma.zst", m=node.mount, b=BASE, timeout_s=5)
    assert result.returncode != 0
    assert "Transport endpoint is not connected" in result.stderr
    assert node.objects() == []
    node.start()
    assert node.pending() == []
    assert done("ls -A {m}/dump", m=node.mount) == ""
    assert [one for one in (node.root / "state" / ID / "uploads").iterdir() if one.stat().st_size] == []
    done("cp {d} {m}/{b}.vma.dat && mv {m}/{b}.vma.dat {m}/{b}.vma.zst", d=archive(tmp_path, 1), m=node.mount, b=BASE)
    assert node.objects() == [f"{BASE}.vma.zst"]


def test_the_next_process_need_not_wait_until_the_kernel_has_forgotten_the_last_one(node: Node) -> None:
    """The kernel answers for a dead mount from its cache."""
    node.start()
    os.stat(node.mount)
    node.stop(signal.SIGKILL)
    os.stat(node.mount)
    clear_mountpoint(node.mount)
    assert not is_ours(node.mount)


def test_stopping_waits_for_a_writer_and_refuses_others(node: Node) -> None:
    node.start()
    fd = os.open(node.mount / "import/a.raw", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"begin")
    assert node.process is not None
    node.process.terminate()
    node.until(lambda: bool(node.status()["stopping"]), "it has heard the signal")
    node.until(lambda: _refuses(node), "nothing new can be opened")
    os.write(fd, b" end")
    os.close(fd)
    assert node.process.wait(timeout=30) == 0
    assert node.object("import/a.raw") == b"begin end"


def _refuses(node: Node) -> bool:
    return "Cannot send after transport endpoint shutdown" in run("touch {m}/import/b.raw", m=node.mount).stderr


def test_a_writer_that_does_not_end_is_cut_off(node: Node) -> None:
    node.start("--drain", "0.5")
    fd = os.open(node.mount / "import/a.raw", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"begin")
    assert node.stop() == 0
    with pytest.raises(OSError):
        os.close(fd)
    assert node.objects() == []
    assert "import/a.raw" in tail(node.log)


@pytest.mark.parametrize("how", ["hung", "cut"])
def test_a_store_that_is_away_fails_within_the_deadlines_and_hides_nothing(
    node: Node, tmp_path: Path, how: str
) -> None:
    """Listing, df and names stay; what has to ask the store fails in its time; afterwards all goes on."""
    node.start()
    done("echo old > {m}/snippets/a; cp {d} {m}/template/iso/b.iso", d=archive(tmp_path, 6), m=node.mount)
    if how == "hung":
        node.relay.delay_s = 3600.0
    else:
        node.relay.cut()
    begin = time.monotonic()
    assert done("ls {m}/snippets; stat -c %s {m}/template/iso/b.iso; df {m} >/dev/null", m=node.mount).split() == [
        "a",
        str(6 * MIB + 4),
    ]
    assert time.monotonic() - begin < 10
    small = archive(tmp_path, 1)

    def fails(command: str) -> float:
        begin = time.monotonic()
        result = run(command, m=node.mount, d=small, b=BASE)
        assert result.returncode != 0, command
        assert "Input/output error" in result.stderr, result.stderr
        return time.monotonic() - begin

    commands = (
        "cat {m}/template/iso/b.iso",
        "cp {d} {m}/import/c.raw",
        "cp {d} {m}/{b}.vma.dat && mv {m}/{b}.vma.dat {m}/{b}.vma.zst",
        "rm {m}/snippets/a",
    )
    with ThreadPoolExecutor(len(commands)) as pool:
        assert max(pool.map(fails, commands)) < 45
    assert node.objects() == ["snippets/a", "template/iso/b.iso"]
    done("rm -f {m}/{b}.vma.dat", m=node.mount, b=BASE)
    if how == "hung":
        node.relay.delay_s = 0.0
    else:
        node.relay.mend()
    node.until(lambda: run("cat {m}/snippets/a", m=node.mount).stdout == "old\n", "the store is back")
    node.until(
        lambda: run("cp {d} {m}/import/c.raw", m=node.mount, d=tmp_path / "archive").returncode == 0, "it writes"
    )


def test_a_store_that_is_slow_and_turns_every_third_request_away(node: Node, tmp_path: Path) -> None:
    node.start()
    node.relay.delay_s, node.relay.refuse_every = 0.05, 3
    data = archive(tmp_path, 12)
    done(
        "cp {d} {m}/{b}.vma.dat && mv {m}/{b}.vma.dat {m}/{b}.vma.zst && cmp {d} {m}/{b}.vma.zst",
        d=data,
        m=node.mount,
        b=BASE,
    )
    assert node.object(f"{BASE}.vma.zst") == data.read_bytes()
    assert node.relay.refused > 0


def test_another_nodes_objects_appear(node: Node) -> None:
    node.start()
    assert done("ls -A {m}/template/iso", m=node.mount) == ""
    node.bucket.put("site/template/iso/new.iso", b"iso")
    node.until(lambda: run("cat {m}/template/iso/new.iso", m=node.mount).stdout == "iso", "it is seen")
    node.bucket.delete("site/template/iso/new.iso")
    node.until(lambda: run("ls {m}/template/iso", m=node.mount).stdout == "", "it is gone")


def test_a_second_process_for_a_living_mount_is_refused(node: Node) -> None:
    node.start()
    second = node.command("mount", ID)
    assert second.returncode == 3
    assert "mounted by a living process" in second.stderr
    assert bool(node.status()["idle"])
    done("echo x > {m}/snippets/x", m=node.mount)


def test_commands_see_what_is_open_and_take_an_idle_mount_away(node: Node) -> None:
    node.start()
    done("echo x > {m}/snippets/x", m=node.mount)
    with node.mount.joinpath("snippets/x").open("rb"):
        shown = json.loads(node.command("mounts", "--open", "--json").stdout)
        assert [(one["path"], one["mode"], one["state"]) for one in shown] == [("snippets/x", "read", "in use")]
        refused = node.command("unmount", ID, "--idle")
        assert refused.returncode != 0
        assert "snippets/x" in refused.stderr
        assert is_ours(node.mount)
    node.until(lambda: bool(node.status()["idle"]), "the kernel has released the file")
    assert node.command("upgrade-mounts").returncode == 0  # it is of this version, and stays
    assert is_ours(node.mount)
    assert node.command("unmount", ID, "--idle").returncode == 0
    assert not is_ours(node.mount)
    assert "is not mounted" in node.command("unmount", ID).stderr


def test_a_storage_that_seals_its_objects(moto_server: MotoServer, tmp_path: Path) -> None:
    """Plain on the mount, sealed in the bucket; a rename seals anew, for what is sealed is bound to its key."""
    key = "bw-encryption-key correct horse battery\n"
    node = Node(tmp_path, moto_server.endpoint(), more="bw-encryption 1", secrets=key)
    try:
        node.start()
        data = archive(tmp_path, 11)
        script = """set -e; cp {d} {m}/{b}.vma.dat; mv {m}/{b}.vma.dat {m}/{b}.vma.zst; cmp {d} {m}/{b}.vma.zst
            cp {d} {m}/template/iso/a.iso; mv {m}/template/iso/a.iso {m}/template/iso/b.iso; cmp {d} {m}/template/iso/b.iso
            echo one > {m}/snippets/a; echo two >> {m}/snippets/a; stat -c %s {m}/{b}.vma.zst; cat {m}/snippets/a"""
        assert done(script, d=data, m=node.mount, b=BASE).split() == [str(data.stat().st_size), "one", "two"]
        assert node.objects() == [f"{BASE}.vma.zst", "snippets/a", "template/iso/b.iso"]
        assert data.read_bytes()[100:200] not in (node.object(f"{BASE}.vma.zst") or b"")
        node.stop()
        (tmp_path / "state" / ID / "catalogue.sqlite").unlink()
        node.start()
        assert done("stat -c %s {m}/{b}.vma.zst", m=node.mount, b=BASE).strip() == str(data.stat().st_size)
        done("cmp {d} {m}/{b}.vma.zst", d=data, m=node.mount, b=BASE)
    finally:
        node.end()


def test_an_index_is_made_beside_an_archive_and_goes_with_it(node: Node, tmp_path: Path) -> None:
    node.start()
    base = "dump/vzdump-lxc-101-2026_01_31-02_00_00"
    (tmp_path / "etc/vzdump").mkdir(parents=True)
    (tmp_path / "etc/vzdump/pct.conf").write_text("arch: amd64\n")
    done("tar -C {t} -cf - ./etc/vzdump/pct.conf | zstd -q -c > {m}/{b}.tar.dat && mv {m}/{b}.tar.dat {m}/{b}.tar.zst",
         t=tmp_path, m=node.mount, b=base)  # fmt: skip
    assert node.object(f".bucketworks/index/{base}.tar.zst.index")
    shown = node.command("archive", "config", ID, f"{base.removeprefix('dump/')}.tar.zst")
    assert shown.stdout == "arch: amd64\n", shown.stderr
    assert done("ls -A {m}", m=node.mount).split() == ["dump", "import", "snippets", "template"]
    done("rm {m}/{b}.tar.zst", m=node.mount, b=base)
    assert [one.decode() for one in node.bucket.list_page(prefix="site/").keys] == []


def test_a_download_is_the_cached_copy_at_once(node: Node, tmp_path: Path) -> None:
    node.start()
    data = archive(tmp_path, 6)
    done("cp {d} {m}/template/iso/a.iso.tmp_dwnl.7 && cmp {d} {m}/template/iso/a.iso.tmp_dwnl.7", d=data, m=node.mount)
    done("mv {m}/template/iso/a.iso.tmp_dwnl.7 {m}/template/iso/a.iso", m=node.mount)
    assert node.object("template/iso/a.iso") == data.read_bytes()
    copy = tmp_path / "state" / ID / "cache/template/iso/a.iso"
    assert copy.read_bytes() == data.read_bytes()
    done("rm {m}/template/iso/a.iso", m=node.mount)
    assert not copy.exists()


def test_a_mount_point_stays_empty_while_nothing_is_mounted(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    if os.geteuid() != 0 or not process.keep_empty(mountpoint):
        pytest.skip("this user or this file system cannot make a directory immutable")
    try:
        with pytest.raises(PermissionError):
            (mountpoint / "dump").mkdir()
        assert process.keep_empty(mountpoint), "once more changes nothing"
    finally:
        assert process.let_go(mountpoint)
    (mountpoint / "dump").mkdir()
    assert not process.keep_empty(mountpoint), "what is there already is not locked in"
