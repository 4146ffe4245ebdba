"""The real kernel, real cp, dd, tar, mv, wget and qemu-img on a mount over a bucket in memory."""

import hashlib
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3core.errors import OutcomeUnknown
from tests.plugin.mount.mounted import done, mounted, needs_fuse, run
from tests.plugin.mount.test_filesystem import BASE, ZSTD
from tests.plugin.mount.world import MountWorld

pytestmark = needs_fuse
MIB = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[MountWorld]:
    made = MountWorld(tmp_path)
    yield made
    made.end()


@pytest.fixture
def hasty(world: MountWorld) -> None:
    """Before `mount`: uploads give up at once."""
    world.hurry()


@pytest.fixture
def mount(world: MountWorld, tmp_path: Path) -> Iterator[Path]:
    with mounted(world.fs, tmp_path / "mnt") as mountpoint:
        yield mountpoint


def test_cp_dd_tar_mv_rm(world: MountWorld, mount: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9 * MIB + 17))
    done("cp -- {s} {m}/template/iso/a.iso && cmp {s} {m}/template/iso/a.iso", s=source, m=mount)
    done("cp -p -- {s} {m}/import/a.raw", s=source, m=mount)
    done("dd if={s} of={m}/import/b.raw bs=4321 conv=fsync status=none && cmp {s} {m}/import/b.raw", s=source, m=mount)
    done(
        "tar -C {t} -cf {m}/template/cache/a.tar source && tar -xOf {m}/template/cache/a.tar | cmp - {s}",
        s=source,
        m=mount,
        t=tmp_path,
    )
    done("mv {m}/import/b.raw {m}/import/c.raw", m=mount)
    assert done("ls -A {m} {m}/import", m=mount).split() == [
        f"{mount}:", "dump", "import", "snippets", "template", f"{mount}/import:", "a.raw", "c.raw",
    ]  # fmt: skip
    assert world.object("import/c.raw") == source.read_bytes()
    done("rm {m}/import/c.raw", m=mount)
    assert world.object("import/c.raw") is None
    assert run("test -e {m}/import/c.raw", m=mount).returncode == 1


def test_vzdump_of_a_machine_and_of_a_container(world: MountWorld, mount: Path, tmp_path: Path) -> None:
    """The commands and calls of PVE::VZDump, by a shell: descriptors are passed on and closed early."""
    data = tmp_path / "data"
    data.write_bytes(os.urandom(8 * MIB))
    script = """set -e; cd {m}/dump; b=vzdump-qemu-100-2026_01_31-02_00_00
        rm -f $b.vma.dat; rm -rf $b.tmp; mkdir $b.tmp; test -d $b.tmp; rm -f $b.log
        echo 'cores: 2' > $b.tmp/qemu-server.conf; grep -q cores $b.tmp/qemu-server.conf
        exec 7> $b.vma.dat; zstd -q -c {d} >&7; exec 7>&-
        test -s $b.vma.dat; mv $b.vma.dat $b.vma.zst; test -s $b.vma.zst; rm -rf $b.tmp
        zstd -d -q -c $b.vma.zst | cmp - {d}; echo INFO > /tmp/$$; cp /tmp/$$ $b.log; rm /tmp/$$
        c=vzdump-lxc-101-2026_01_31-02_00_00
        tar -C {t} -cpf - data | gzip -1 > $c.tar.dat
        perl -e 'rename($ARGV[0], $ARGV[1]) or die "unable to rename: $!"' $c.tar.dat $c.tar.gz
        test -s $c.tar.gz; tar -tzf $c.tar.gz"""
    assert done(script, m=mount, d=data, t=tmp_path).split() == ["data"]
    lxc = "dump/vzdump-lxc-101-2026_01_31-02_00_00"
    assert world.objects() == [f"{lxc}.tar.gz", f"{BASE}.log", f"{BASE}.vma.zst"]
    world.wait_until_nothing_is_open()


def test_a_rename_that_fails_fails_the_backup(
    hasty: None, world: MountWorld, mount: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.faults.errors["put"] = OutcomeUnknown("PUT: timed out")
    rename = """perl -e 'rename($ARGV[0], $ARGV[1]) or die "unable to rename: $!"' {m}/{b}.vma.dat {m}/{b}.vma.zst"""
    done("printf 'abc' > {m}/{b}.vma.dat", m=mount, b=BASE)
    result = run(rename, m=mount, b=BASE)
    assert result.returncode != 0
    assert "Input/output error" in result.stderr
    assert "try again when the store answers" in caplog.text
    assert run("test -e {m}/{b}.vma.zst", m=mount, b=BASE).returncode == 1
    done("rm {m}/{b}.vma.dat", m=mount, b=BASE)
    world.wait_until_nothing_is_open()
    assert world.objects() == []


def test_a_close_that_fails_fails_cp(hasty: None, world: MountWorld, mount: Path, tmp_path: Path) -> None:
    world.faults.errors["put"] = OutcomeUnknown("PUT: 507", hint="the store or the bucket's quota is full")
    (tmp_path / "a").write_bytes(b"x" * 1000)
    result = run("cp {t}/a {m}/template/iso/a.iso", t=tmp_path, m=mount)
    assert result.returncode != 0
    assert "No space left on device" in result.stderr
    assert run("test -e {m}/template/iso/a.iso", m=mount).returncode == 1


def test_download_url(world: MountWorld, mount: Path, tmp_path: Path) -> None:
    """wget -O, sha256sum, qemu-img info (assert_iso_content), rename; and the detour by a decompressor."""
    if not (shutil.which("wget") and shutil.which("qemu-img")):
        pytest.skip("needs wget and qemu-img: apt-get install wget qemu-utils")
    data = os.urandom(7 * MIB)
    (tmp_path / "a.iso").write_bytes(data)
    done("gzip -k1 {t}/a.iso", t=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _files(tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        script = """set -e; cd {m}/template/iso; wget -q -O a.iso.tmp_dwnl.7 {u}/a.iso
            sha256sum a.iso.tmp_dwnl.7; qemu-img info --output=json a.iso.tmp_dwnl.7 >/dev/null
            mv a.iso.tmp_dwnl.7 a.iso
            wget -q -O b.iso.tmp_dwnl.7 {u}/a.iso.gz; gzip -d -c < b.iso.tmp_dwnl.7 > b.iso.tmp_dcom.7
            rm b.iso.tmp_dwnl.7; qemu-img info b.iso.tmp_dcom.7 >/dev/null; mv b.iso.tmp_dcom.7 b.iso"""
        told = done(script, m=mount, u=url)
        server.shutdown()
    assert told.split()[0] == hashlib.sha256(data).hexdigest()
    assert world.object("template/iso/a.iso") == world.object("template/iso/b.iso") == data
    assert world.objects() == ["template/iso/a.iso", "template/iso/b.iso"]


def _files(folder: Path) -> type[http.server.SimpleHTTPRequestHandler]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]  # as socketserver gives them

        def log_message(self, format: str, *arguments: object) -> None:
            return

    return Quiet


def test_readers_at_once(world: MountWorld, mount: Path, tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    world.put("template/iso/a.iso", data)
    (tmp_path / "a").write_bytes(data)
    script = """for i in 1 2 3 4 5 6; do cmp {m}/template/iso/a.iso {t}/a & p="$p $!"; done
        for i in $p; do wait $i || exit 1; done
        part() {{ dd if=$1 bs=4096 skip=1001 count=7 status=none; }}
        cmp <(part {m}/template/iso/a.iso) <(part {t}/a)"""
    done(script, m=mount, t=tmp_path)


def test_qemu_reads_an_iso_and_a_disk_image(world: MountWorld, mount: Path, tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("needs qemu-img: apt-get install qemu-utils")
    done("qemu-img create -q -f qcow2 {t}/a.qcow2 100M && qemu-io -c 'write -P 7 1M 2M' {t}/a.qcow2", t=tmp_path)
    world.put("import/a.qcow2", (tmp_path / "a.qcow2").read_bytes())
    world.put("template/iso/a.iso", bytes(3 * MIB))
    assert '"virtual-size": 104857600' in done("qemu-img info --output=json {m}/import/a.qcow2", m=mount)
    assert '"virtual-size": 3145728' in done("qemu-img info --output=json -f raw {m}/template/iso/a.iso", m=mount)
    done("qemu-img compare {t}/a.qcow2 {m}/import/a.qcow2", t=tmp_path, m=mount)
    done("qemu-io -r -t none -c 'read -P 7 1M 2M' {m}/import/a.qcow2", m=mount)


def test_df_and_stat(world: MountWorld, mount: Path) -> None:
    world.put("snippets/hook.pl", b"#!/bin/sh\necho ran\n")
    world.put("dump/a.vma", bytes(1000))
    fields = done("df -P -T -B 1 {m}", m=mount).splitlines()[1].split()
    assert fields[0:2] == ["bucketworks:tests", "fuse.bucketworks"]
    assert fields[6] == str(mount)
    assert done("{m}/snippets/hook.pl", m=mount) == "ran\n"
    assert done("stat -c '%s %a %F' {m}/dump/a.vma", m=mount).strip() == "1000 644 regular file"


def test_a_file_grows_while_it_is_written(mount: Path) -> None:
    sizes = done(
        "exec 7> {m}/{b}.vma.dat; for i in 1 2 3; do head -c 100000 /dev/zero >&7; stat -c %s {m}/{b}.vma.dat; done",
        m=mount, b=BASE,
    )  # fmt: skip
    assert sizes.split() == ["100000", "200000", "300000"]


def test_an_exchange_and_a_link_are_refused(world: MountWorld, mount: Path) -> None:
    world.put("snippets/a", b"a")
    world.put("snippets/b", b"b")
    exchange = (
        "import ctypes, sys; l = ctypes.CDLL(None, use_errno=True);"
        " r = l.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2); sys.exit(ctypes.get_errno() if r else 0)"
    )
    assert run("python3 -c '{e}' {m}/snippets/a {m}/snippets/b", e=exchange, m=mount).returncode == 22
    for command in (
        "ln {m}/snippets/a {m}/snippets/c",
        "ln -s a {m}/snippets/c",
        "mkdir {m}/images",
        "mv -n {m}/dump {m}/x",
    ):
        assert run(command, m=mount).returncode != 0
    done("mv -n {m}/snippets/a {m}/snippets/b; test -e {m}/snippets/a", m=mount)
    assert (world.object("snippets/a"), world.object("snippets/b")) == (b"a", b"b")


def test_an_open_file_that_is_deleted_is_gone_for_others_and_an_error_for_its_reader(
    world: MountWorld, mount: Path
) -> None:
    world.put("template/iso/a.iso", os.urandom(6 * MIB))
    script = """exec 7< {m}/template/iso/a.iso; head -c 10 <&7 >/dev/null; rm {m}/template/iso/a.iso
        test ! -e {m}/template/iso/a.iso; ls -A {m}/template/iso; tail -c 10 <&7 >/dev/null && echo read; exit 0"""
    assert done(script, m=mount) == ""


def test_many_small_files_in_parallel(world: MountWorld, mount: Path) -> None:
    done("seq 1 60 | xargs -P 8 -I[] sh -c 'echo [] > {m}/snippets/s[]'", m=mount)
    assert len(world.objects()) == 60
    assert done("cat {m}/snippets/s* | sort -n | uniq | wc -l", m=mount).strip() == "60"
    done("ls {m}/snippets/* | xargs -P 8 -n 1 rm", m=mount)
    assert world.objects() == []


def test_bytes_of_a_large_sequential_write_arrive_in_order(world: MountWorld, mount: Path) -> None:
    assert ZSTD
    digest = done("head -c 30000000 /dev/urandom | tee {m}/import/a.raw | sha256sum", m=mount).split()[0]
    assert hashlib.sha256(world.object("import/a.raw") or b"").hexdigest() == digest
