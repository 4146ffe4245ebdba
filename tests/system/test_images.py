"""Images as people use them: a file system in a qcow2 image, imported, served, exported; and an import that is killed."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import MIB, S3BLOCK, Server, environment, fsck, make_ext4, read_back, s3block, tool

pytestmark = [pytest.mark.slow, pytest.mark.initiator]


@pytest.mark.parametrize("variant", ["compat=0.10", "compat=1.1,cluster_size=4k", "compat=1.1,compression_type=zstd"])
def test_a_file_system_travels(file_place: Place, tmp_path: Path, variant: str) -> None:
    volume = file_place.volume
    disk = make_ext4(tmp_path, 48, 3)
    image = tmp_path / "disk.qcow2"
    packed = ["-c"] if "compression" in variant else []
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *packed, "-o", variant, str(disk), str(image))
    done = s3block("import", str(image), volume)
    assert done.code == 0, done.err
    assert s3block("check", "--deep", volume).code == 0
    raw, back = tmp_path / "out.img", tmp_path / "back.qcow2"
    assert s3block("export", volume, str(raw)).code == 0
    assert raw.read_bytes() == disk.read_bytes()
    fsck(raw)
    with Server(tmp_path, volume) as server:
        server.start()
        assert read_back(server.url, tmp_path / "served.img") == disk.read_bytes()
        assert server.stop() == 0
    assert s3block("export", volume, str(back), "--compress", "zlib").code == 0
    assert "No errors were found" in tool("qemu-img", "check", str(back))
    assert "identical" in tool("qemu-img", "compare", str(disk), str(back))


def test_into_a_bucket_and_out_of_it(place: Place, tmp_path: Path) -> None:
    disk = make_ext4(tmp_path, 24, 4)
    piped = f"'{S3BLOCK}' import - '{place.volume}' --size {disk.stat().st_size} < '{disk}'"
    subprocess.run(["sh", "-c", piped], env=environment(place.config), check=True, timeout=120)
    assert s3block("check", "--deep", place.volume, config=place.config).code == 0
    assert s3block("export", place.volume, str(tmp_path / "out.img"), config=place.config).code == 0
    assert (tmp_path / "out.img").read_bytes() == disk.read_bytes()


def test_killed_while_it_imports(file_place: Place, tmp_path: Path) -> None:
    """`kill -9` at any moment: either there is no volume, or it is whole."""
    volume = file_place.volume
    image = tmp_path / "image"
    image.write_bytes(random.Random(5).randbytes(64 * MIB))
    began = time.monotonic()
    assert s3block("import", str(image), volume).code == 0
    takes = time.monotonic() - began
    assert s3block("delete", volume, "--yes").code == 0
    remains = 0
    source = random.Random(6)
    log = tmp_path / "store" / "objects" / "v1" / "vm" / "log"
    for _ in range(4):
        process = subprocess.Popen(
            [S3BLOCK, "import", str(image), volume],
            env=environment(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + 30
        while not log.exists() and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(source.uniform(0, takes / 2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = s3block("check", "--deep", volume)
        if found.code:
            assert "there is no volume vm" in found.err
            refused = s3block("create", volume, "--size", "64M")
            assert refused.code == 7
            assert "holds remains of a deletion, a creation or an import" in refused.err
            remains += 1
        gone = s3block("delete", volume, "--yes")
        assert gone.code == 0, gone.err
    print(f"{remains} of 4 kills left remains")
    assert remains > 0
    assert s3block("import", str(image), volume).code == 0
    assert s3block("export", volume, str(tmp_path / "out")).code == 0
    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_interrupted_while_its_stream_stalls(file_place: Place, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    try:
        process = subprocess.Popen(
            [S3BLOCK, "import", "-", file_place.volume, "--size", "64M"],
            env=environment(None),
            stdin=ours,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job, and all that it starts, ignores SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        log = tmp_path / "store" / "objects" / "v1" / "vm" / "log"
        give_up = time.monotonic() + 30
        while not log.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 130
    assert "removes what was sent" in said
