"""The host's directory (journal, map, cache) is gone: the bucket alone is the volume, up to what it had.

After an orderly stop that is everything. After SIGKILL it is a prefix of what was written, and only on request.
"""

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import (
    MIB,
    Server,
    ServerEnded,
    Write,
    Writer,
    create,
    fsck,
    make_ext4,
    read_back,
    s3block,
    tool,
)

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

IMAGE_MIB = 64
STAMPS = 120
SETTLED = 30
"""Stamps that the bucket is given the time to get."""
STAMP_BYTES = MIB // 4


def write_image(image: Path, server: Server) -> None:
    tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), server.url)


def wait_for_commits(place: Place) -> None:
    """Until the bucket has gone on to a commit and then no further: there is nothing left to carry there."""
    newest, since = -1, time.monotonic()
    give_up = since + 120
    while time.monotonic() - since < 2.0:
        assert time.monotonic() < give_up, "the commits do not come to an end"
        answer = json.loads(s3block("info", place.volume, "--json", config=place.config).out)
        if answer["commit"] != newest:
            newest, since = answer["commit"], time.monotonic()


def test_after_an_orderly_stop(place: Place, tmp_path: Path) -> None:
    image = make_ext4(tmp_path, IMAGE_MIB, seed=1)
    create(place.volume, size=f"{IMAGE_MIB}M", config=place.config)
    with Server(tmp_path, place.volume, config=place.config) as server:
        write_image(image, server.start())
        assert server.stop() == 0
        assert "detached" in s3block("info", place.volume, config=place.config).out
        shutil.rmtree(server.state)
        server.start()
        assert read_back(server.url, tmp_path / "back.raw") == image.read_bytes()
        fsck(tmp_path / "back.raw")


def test_after_sigkill(place: Place, tmp_path: Path) -> None:
    """An image that the bucket has, then stamps one after the other: what is attached without the journal holds the
    image and the stamps up to one of them."""
    image = make_ext4(tmp_path, IMAGE_MIB, seed=2)
    begin = IMAGE_MIB * MIB
    create(place.volume, size=f"{2 * IMAGE_MIB}M", config=place.config)
    with Server(tmp_path, place.volume, "--commit-interval", "300ms", config=place.config) as server:
        write_image(image, server.start())
        assert server.stop() == 0
        server.start()
        writes = [Write(begin + number * STAMP_BYTES, STAMP_BYTES, 1 + number) for number in range(STAMPS)]
        with Writer(server.url, writes[:SETTLED], tmp_path, flush_every=4) as writer:
            writer.finish()
        wait_for_commits(place)
        with Writer(server.url, writes[SETTLED:], tmp_path, flush_every=4) as writer:
            writer.wait_for(STAMPS // 3)
            server.kill()
            writer.kill()
        acknowledged = SETTLED + writer.acknowledged
        shutil.rmtree(server.state)

        with pytest.raises(ServerEnded) as refused:
            server.start()
        assert refused.value.answer.code == 7
        assert "not here" in refused.value.answer.err
        assert "--accept-loss" in refused.value.answer.err
        assert "Traceback" not in refused.value.answer.err

        server.start("--accept-loss")
        back = read_back(server.url, tmp_path / "back.raw")
        assert back[:begin] == image.read_bytes()
        (tmp_path / "part.ext4").write_bytes(back[:begin])
        fsck(tmp_path / "part.ext4")
        kept = [
            back[write.offset : write.offset + write.length] == bytes([write.stamp]) * write.length for write in writes
        ]
        count = kept.index(False) if False in kept else STAMPS
        assert SETTLED <= count <= acknowledged + 1
        rest = back[begin + count * STAMP_BYTES :]
        assert rest == bytes(len(rest)), "something was kept that is younger than something lost"
        print(f"{acknowledged} acknowledged, {count} in the bucket")

        # What was accepted is on record, and the volume is an ordinary one from here on.
        assert server.stop() == 0
        assert "the lineage has changed" in s3block("info", place.volume, config=place.config).err
        server.start()
        assert read_back(server.url, tmp_path / "back.raw") == back
