"""Initiators people use (QEMU's block driver, libiscsi's tools) against the portal over a RAM disk."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.conformance_run import portal
from tests.protocol.ram_portal import IQN
from tests.servers import processes

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
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    output = done.stdout + done.stderr
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
