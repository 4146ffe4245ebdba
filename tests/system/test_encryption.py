"""A real server with an encrypted volume: nothing of the content in the bucket, kill -9, another key while it is served."""

import os
from pathlib import Path

import pytest

from tests.system.conftest import Place
from tests.system.machine import MIB, Server, ServerEnded, create, fsck, make_ext4, read_back, s3block, tool

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

IMAGE_MIB = 32


def key_file(path: Path, content: bytes = b"") -> str:
    path.write_bytes(content or os.urandom(32))
    path.chmod(0o600)
    return f"file:{path}"


def test_an_encrypted_volume_lives_through_a_kill_and_a_rotation(file_place: Place, tmp_path: Path) -> None:
    one, words = key_file(tmp_path / "one"), key_file(tmp_path / "words", b"correct horse battery staple\n")
    passphrase = words.replace("file:", "passphrase-file:")
    image = make_ext4(tmp_path, IMAGE_MIB, seed=3)
    made = s3block("create", file_place.volume, "--size", f"{IMAGE_MIB}M", "--encrypt", "--key", one)
    assert made.code == 0, made.err
    with Server(tmp_path, file_place.volume) as server:
        with pytest.raises(ServerEnded):
            server.start()
        server.start("--key", one)
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), server.url)
        rotated = s3block("key", "rotate", file_place.volume, "--key", one, "--new-key", passphrase)
        assert rotated.code == 0, rotated.err
        assert read_back(server.url, tmp_path / "while.raw") == image.read_bytes(), "the rotation is not noticed"
        server.kill()
        with pytest.raises(ServerEnded):
            server.start("--key", one)
        server.start("--key", passphrase)
        assert read_back(server.url, tmp_path / "after.raw") == image.read_bytes()
        fsck(tmp_path / "after.raw")
        assert server.stop() == 0
    checked = s3block("check", file_place.volume, "--deep")
    assert checked.code == 0, checked.out
    assert "contents were not decrypted" in checked.out
    assert s3block("check", file_place.volume, "--deep", "--key", passphrase).code == 0
    exported = s3block("export", file_place.volume, str(tmp_path / "image"), "--key", passphrase)
    assert exported.code == 0, exported.err
    assert (tmp_path / "image").read_bytes() == image.read_bytes()
    content = image.read_bytes()
    blocks = {content[at : at + 64] for at in range(0, len(content), 4096)} - {bytes(64)}
    shown = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    stored = b"".join(file.read_bytes() for file in shown)
    assert len(stored) > MIB
    assert not any(block in stored for block in blocks)


def test_a_plain_volume_beside_it(file_place: Place, tmp_path: Path) -> None:
    """A key that was configured for a volume that is not encrypted stops the server: its owner thinks otherwise."""
    create(file_place.volume, size="1M")
    with Server(tmp_path, file_place.volume) as server, pytest.raises(ServerEnded):
        server.start("--key", key_file(tmp_path / "one"))
