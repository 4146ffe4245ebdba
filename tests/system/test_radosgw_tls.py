"""A disk in a bucket on the real radosgw, over TLS with a pinned certificate: the demo, and a gateway that dies."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.servers.radosgw import Radosgw
from tests.system.conftest import Place
from tests.system.machine import MIB, Server, Writer, create, make_ext4, read_back, tool

pytestmark = [pytest.mark.slow, pytest.mark.initiator, pytest.mark.rgw]

IMAGE_MIB = 64


def test_the_demo(rgw_place: Place, tmp_path: Path) -> None:
    tool("qemu-img", "--version")
    tool("mkfs.ext4", "-V")
    store = rgw_place.volume.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy/demo.py"), "--directory", str(tmp_path / "demo"), "--store", store],
        cwd=ROOT,
        env={**os.environ, "BUCKETWORKS_CONFIG": str(rgw_place.config)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bytes equal, e2fsck -fn clean, SHA-256 of all") == 4
    assert "MiB that had been flushed are there" in done.stdout
    assert f"s3block delete {store}/demo-" in done.stdout


def test_the_gateway_dies_in_the_middle_of_writing(radosgw: Radosgw, rgw_place: Place, tmp_path: Path) -> None:
    """The initiator is told of no error: the journal takes what the bucket cannot."""
    image = make_ext4(tmp_path, IMAGE_MIB, seed=3)
    content = image.read_bytes()
    pieces = []
    for number in range(IMAGE_MIB):
        piece = tmp_path / f"piece-{number}"
        piece.write_bytes(content[number * MIB : (number + 1) * MIB])
        pieces.append(f"write -s {piece} {number * MIB} {MIB}")
    create(rgw_place.volume, size=f"{IMAGE_MIB}M", config=rgw_place.config)
    with Server(tmp_path, rgw_place.volume, "--commit-bytes", "4M", config=rgw_place.config) as server:
        server.start()
        with Writer(server.url, pieces, tmp_path, flush_every=4) as writer:
            writer.wait_for(IMAGE_MIB // 4)
            radosgw.kill_gateway()
            try:
                # About what a journal of 64 MiB takes without slowing down.
                writer.wait_for(IMAGE_MIB // 2)
                time.sleep(1.0)
            finally:
                radosgw.start_gateway()
            said = writer.finish()
        assert writer.acknowledged == IMAGE_MIB
        assert "failed" not in said
        assert "error" not in said.lower()
        assert "cannot connect to 127.0.0.1" in server.log(), "the outage was not noticed; was it one?"
        assert read_back(server.url, tmp_path / "back.raw") == content
        assert server.stop() == 0
        shutil.rmtree(server.state)
        server.start()
        assert read_back(server.url, tmp_path / "back.raw") == content
