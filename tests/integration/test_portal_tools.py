"""Initiators people use (QEMU's block driver, libiscsi's tools) against the portal over a RAM disk."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol import proxmox
from tests.protocol.conformance_run import portal
from tests.protocol.ram_portal import IQN
from tests.servers import processes
from tests.system.machine import Server, create

pytestmark = pytest.mark.initiator

PACKAGES = {
    "qemu-io": "qemu-utils qemu-block-extra",
    "qemu-img": "qemu-utils qemu-block-extra",
    "iscsi-ls": "libiscsi-bin",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-readcapacity16": "libiscsi-bin",
}


def run(*command: str, ok: bool = True) -> str:
    """Runs a tool; skips, naming the package, where it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}: apt-get install {PACKAGES[command[0]]}")
    done = subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert (done.returncode == 0) == ok, output
    return output


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log_file = tmp_path_factory.mktemp("portal") / "log"
    with portal(log_file) as (found, _):
        yield found
    assert log_file.read_text().splitlines() == [found], "the portal had something to say"


def test_discovery(url: str) -> None:
    listed = run("iscsi-ls", "-s", url.split(f"/{IQN}")[0])
    address = url.split("/")[2]
    assert f"Target:{IQN} Portal:{address},1" in listed
    assert "Type:DIRECT_ACCESS (Size:255M)" in listed


def test_inquiry_and_capacity(url: str) -> None:
    assert "Type:DIRECT_ACCESS" in run("iscsi-inq", url)
    assert "Unit Serial Number" in run("iscsi-inq", "-e", "1", "-c", "128", url)
    assert "Total size:268435456" in run("iscsi-readcapacity16", url).replace(" ", "").replace(
        "Totalsize", "Total size"
    )


def test_qemu_writes_and_reads_patterns(url: str) -> None:
    """Small and large, aligned and not, over the ends of blocks, pages and bursts."""
    sizes = [(0, 512), (512, 4096), (4608, 65536), (1 << 20, 1 << 20), ((1 << 22) + 512, (3 << 20) + 1536)]
    commands = [f"write -P {index + 1} {offset} {size}" for index, (offset, size) in enumerate(sizes)]
    commands += ["flush"] + [f"read -P {index + 1} {offset} {size}" for index, (offset, size) in enumerate(sizes)]
    output = run("qemu-io", "-f", "raw", *(part for line in commands for part in ("-c", line)), url)
    assert "verification failed" not in output
    assert output.count("ops;") == 2 * len(sizes)


def test_qemu_discards(url: str) -> None:
    commands = ["write -P 5 8M 1M", "discard 8M 512k", "read -P 0 8M 512k", "write -z 8704k 64k", "read -P 0 8704k 64k"]
    commands += ["read -P 5 8768k 400k"]
    arguments = [part for line in commands for part in ("-c", line)]
    assert "verification failed" not in run("qemu-io", "-f", "raw", "-d", "unmap", *arguments, url)


def test_image_survives_the_way_there_and_back(url: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source.raw", tmp_path / "back.raw"
    block = bytes(range(256)) * 1024
    source.write_bytes(
        b"".join(bytes((number,)) + block[1:] if number % 3 else bytes(len(block)) for number in range(64))
    )
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), url)
    run("qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "count=16", f"if={url}", f"of={back}")
    assert back.read_bytes() == source.read_bytes()


def test_qemu_bench_ends_without_an_error(url: str) -> None:
    for options in ((), ("-w",), ("-w", "--flush-interval=16")):
        output = run("qemu-img", "bench", "-c", "2000", "-d", "16", "-s", "4096", "-f", "raw", *options, url)
        assert "Run completed" in output


def test_header_digest(url: str) -> None:
    """libiscsi makes and checks them; data digests it has only from 1.20 on."""
    portal, iqn, lun = url.removeprefix("iscsi://").split("/")
    with_digest = f"driver=iscsi,transport=tcp,portal={portal},target={iqn},lun={lun},header-digest=crc32c"
    commands = ["write -P 9 64k 1M", "flush", "read -P 9 64k 1M"]
    output = run("qemu-io", "--image-opts", *(part for line in commands for part in ("-c", line)), with_digest)
    assert "verification failed" not in output
    assert output.count("ops;") == 2


def test_proxmox_finds_portals_and_disks(tmp_path: Path) -> None:
    """Its `iscsidirect` storage reads iscsi-ls, its `iscsi` storage the same answer by way of iscsiadm."""
    if shutil.which("iscsi-ls") is None:
        pytest.skip(f"needs iscsi-ls: apt-get install {PACKAGES['iscsi-ls']}")
    volumes = {"vm1": "1G", "vm2": "64M"}
    config = tmp_path / "config.toml"
    iqn = "iqn.2025-01.internal.bucketworks:pair"
    config.write_text(
        "\n".join(
            f'[volume.{name}]\nurl = "file://{tmp_path}/store"\niqn = "{iqn}"\nlun = {lun}'
            for lun, name in enumerate(volumes)
        )
    )
    for name, size in volumes.items():
        create(name, size=size, config=config)
    options = ("vm2", "--listen", "127.0.0.2:0")
    with Server(tmp_path, "vm1", *options, config=config).start() as server:
        listed = run("iscsi-ls", "-s", f"iscsi://127.0.0.1:{server.port}")
        portals = sorted(line.partition("Portal:")[2] for line in listed.splitlines() if line.startswith("Target:"))
        assert [(portal.split(":")[0], portal.split(",")[1]) for portal in portals] == [
            ("127.0.0.1", "1"),
            ("127.0.0.2", "2"),
        ]
        assert proxmox.discovered("\n".join(f"{portal} {iqn}" for portal in portals)).keys() == {iqn}
        # iscsi-ls counts from the last block on: up to one unit less than there is.
        assert proxmox.direct_units(listed) == {"lun0": 1023 << 20, "lun1": 63 << 20}
        # One unit through two ports: the same name, another port.
        pages = [
            run("iscsi-inq", "-e", "1", "-c", "131", f"iscsi://{portal.split(',')[0]}/{iqn}/0") for portal in portals
        ]
        assert pages[0] != pages[1]
        of_unit = [page.partition("LOGICAL_UNIT")[2] for page in pages]
        assert of_unit[0] == of_unit[1]
        assert "NAA" in of_unit[0]


def test_discovery_with_chap_and_advertised_address(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sixteen letters!")
    secret.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(f'[s3block]\ndiscovery_chap_user = "finder"\ndiscovery_chap_secret_file = "{secret}"\n')
    volume = f"file://{tmp_path}/store/vm1"
    create(volume, config=config)
    with Server(tmp_path, volume, "--advertise", "192.0.2.7:13260", config=config).start() as server:
        portal = f"127.0.0.1:{server.port}"
        assert "Authentication failure" in run("iscsi-ls", f"iscsi://{portal}", ok=False)
        listed = run("iscsi-ls", f"iscsi://finder%sixteen letters!@{portal}")
        assert "Portal:192.0.2.7:13260,1" in listed
        # The volume has no CHAP: what discovery asks for is discovery's own.
        assert "Type:DIRECT_ACCESS" in run("iscsi-inq", server.url)


def test_initiator_logs_out_when_asked_to_and_comes_back(tmp_path: Path) -> None:
    """A restart of the service under a QEMU that stays: asked to log out it does so at once, and goes on afterwards."""
    if shutil.which("qemu-io") is None:
        pytest.skip(f"needs qemu-io: apt-get install {PACKAGES['qemu-io']}")
    volume = f"file://{tmp_path}/store/vm1"
    create(volume)
    port = processes.free_port()
    server = Server(tmp_path, volume, listen=f"127.0.0.1:{port}")
    with server.start() as served:
        disk = subprocess.Popen(
            ["qemu-io", "-f", "raw", served.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert disk.stdin is not None
        assert disk.stdout is not None
        try:
            disk.stdin.write("write -P 5 0 1M\n")
            assert "wrote 1048576" in disk.stdout.readline()
            begin = time.monotonic()
            assert served.stop() == 0
            assert "did not log out" not in served.log(), f"after {time.monotonic() - begin:.1f} s"
            served.start()
            disk.stdin.write("read -P 5 0 1M\nwrite -P 6 1M 64k\nread -P 6 1M 64k\nquit\n")
            told, _ = disk.communicate(timeout=60)
        finally:
            disk.kill()
            disk.wait()
        assert told.count("ops;") == 3, told
        assert "verification failed" not in told


def test_chap(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    with portal(log_file, "--user", "alice", "--secret", "sixteen letters!") as (url, _):
        with_user = url.replace("iscsi://", "iscsi://alice%sixteen letters!@")
        assert "Type:DIRECT_ACCESS" in run("iscsi-inq", with_user)
        assert "Login Failed" in run("iscsi-inq", url, ok=False)
        assert "Login Failed" in run("iscsi-inq", with_user.replace("sixteen", "sixten"), ok=False)


def test_killed_initiator_leaves_the_portal_serving(url: str) -> None:
    command = ["qemu-img", "bench", "-c", "2000000", "-d", "32", "-s", "65536", "-f", "raw", "-w", url]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs qemu-img: apt-get install {PACKAGES['qemu-img']}")
    for _ in range(3):
        bench = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            bench.wait(timeout=0.4)
        processes.end(bench, signal.SIGKILL)
    assert "Type:DIRECT_ACCESS" in run("iscsi-inq", url)
