"""A backup, an upload and a crash against Ceph's gateway: the mount's whole way on a real server."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugin.mount.mounted import done, needs_fuse, run
from tests.plugin.mount.node import Node
from tests.plugin.mount.test_filesystem import BASE, ZSTD
from tests.servers.radosgw import Radosgw

pytestmark = [needs_fuse, pytest.mark.slow, pytest.mark.rgw]
MIB = 1 << 20


@pytest.fixture
def node(radosgw: Radosgw, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, radosgw.endpoint())
    yield made
    made.end()


def test_a_backup_its_restore_and_its_end(node: Node, tmp_path: Path) -> None:
    node.start()
    data = tmp_path / "data"
    data.write_bytes(ZSTD + os.urandom(17 * MIB))
    script = """set -e; cd {m}/dump; b=$(basename {b})
        rm -f $b.vma.dat; mkdir $b.tmp; echo 'cores: 2' > $b.tmp/qemu-server.conf
        cat {d} > $b.vma.dat; test ! -e $b.vma.zst; mv $b.vma.dat $b.vma.zst; test -s $b.vma.zst; rm -r $b.tmp
        cp {c} $b.log; cp {d} {m}/template/iso/a.iso; cmp {d} $b.vma.zst; cmp {d} {m}/template/iso/a.iso"""
    done(script, m=node.mount, b=BASE, d=data, c=node.config)
    assert node.objects() == [f"{BASE}.log", f"{BASE}.vma.zst", "template/iso/a.iso"]
    assert node.object(f"{BASE}.vma.zst") == data.read_bytes()
    assert node.pending() == []
    done("rm {m}/{b}.vma.zst && mv {m}/template/iso/a.iso {m}/template/iso/b.iso", m=node.mount, b=BASE)
    assert node.objects() == ["template/iso/b.iso"]
    assert node.stop() == 0


def test_killed_in_the_middle(node: Node) -> None:
    node.start()
    fd = os.open(node.mount / f"{BASE}.vma.dat", os.O_WRONLY | os.O_CREAT)
    for _ in range(16):
        os.write(fd, ZSTD.ljust(MIB, b"x"))
    node.until(lambda: bool(node.pending()), "parts are on their way")
    node.stop(signal.SIGKILL)
    with pytest.raises(OSError):
        os.close(fd)
    assert run("ls {m}", m=node.mount, timeout_s=5).returncode != 0
    node.start()
    assert (node.pending(), node.objects()) == ([], [])


def test_a_quota_that_is_reached_fails_the_backup(node: Node, radosgw: Radosgw, tmp_path: Path) -> None:
    """radosgw answers 403 QuotaExceeded."""
    radosgw.limit_objects(node.name, 1)
    node.bucket.put("site/snippets/a", b"one")
    node.start()
    (tmp_path / "data").write_bytes(ZSTD + os.urandom(MIB))

    def refused() -> bool:
        result = run(
            "cp {d} {m}/{b}.vma.dat && mv {m}/{b}.vma.dat {m}/{b}.vma.zst", m=node.mount, b=BASE, d=tmp_path / "data"
        )
        done("rm -f {m}/{b}.vma.dat {m}/{b}.vma.zst", m=node.mount, b=BASE)
        return result.returncode != 0 and "Disk quota exceeded" in result.stderr

    node.until(refused, "the gateway has seen its quota")
    assert node.objects() == ["snippets/a"]
