"""A storage that seals: plain sizes in lists, plain files in the cache, nothing in the bucket that its provider can read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.upload.uploader import Uploader, UploadSettings
from tests.plugin.service_world import Node, ToldError, wait_until

BACKUP = "backup/vzdump-lxc-100-2026_11_22-10_00_00.tar"
SECRET = "a passphrase that is long"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    made.add("s3", bw_encryption=1)
    secrets = tmp_path / "etc/pve/priv/storage/s3.bucketfiles"
    secrets.write_text(f"bw-encryption-key {SECRET}\n")
    secrets.chmod(0o600)
    yield made.start()
    made.stop()


def upload(node: Node, key: str, data: bytes) -> None:
    """As the mount writes."""
    place = node.attached().place
    uploader = Uploader(
        place.steady, place.directory / "uploads", UploadSettings(), keyring=place.keyring(), prefix=place.prefix
    )
    source = node.directory / "source"
    source.write_bytes(data)
    uploader.file(source, place.key(key))
    uploader.close()


def test_what_is_sealed_is_shown_and_served_in_plain(node: Node) -> None:
    data = os.urandom(3_000_000)
    upload(node, "template/iso/a.iso", data)
    upload(node, f"dump/{BACKUP[7:]}", b"guest data")
    node.forget()
    sizes = {one["volname"]: one["size"] for one in node.ask("list")["volumes"]}
    assert sizes == {BACKUP: 10, "iso/a.iso": len(data)}
    assert node.ask("size", volname="iso/a.iso")["size"] == len(data)
    assert Path(node.ask("fetch", volname="iso/a.iso")["path"]).read_bytes() == data
    node.ask("attribute_set", volname=BACKUP, name="notes", value="the accounts")
    node.ask("attribute_set", volname=BACKUP, name="protected", value=1)
    assert node.ask("attribute_get", volname=BACKUP, name="notes") == {"value": "the accounts"}
    assert node.ask("attribute_get", volname=BACKUP, name="protected") == {"value": 1}
    bucket = node.bucket()
    for key in bucket.list_page().keys:
        held = bucket.get(key.decode())
        assert b"the accounts" not in held
        assert b"guest data" not in held
        assert data[:64] not in held


def test_another_host_reads_the_notes(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    upload(node, f"dump/{BACKUP[7:]}", b"guest data")
    node.ask("attribute_set", volname=BACKUP, name="notes", value="the accounts")
    other = Node(tmp_path_factory.mktemp("other"), node.service)
    other.add("s3", bw_encryption=1)
    secrets = other.directory / "etc/pve/priv/storage/s3.bucketfiles"
    secrets.write_text(f"bw-encryption-key {SECRET}\n")
    secrets.chmod(0o600)
    other.start()
    try:
        (told,) = other.ask("list")["volumes"]
        assert (told["notes"], told["size"]) == ("the accounts", 10)
        secrets.write_text("bw-encryption-key another passphrase\n")
        wait_until(lambda: other.attached().storage.encryption_key == "another passphrase")
        with pytest.raises(ToldError, match="opens none") as refused:
            other.ask("attribute_get", volname=BACKUP, name="notes")
        assert refused.value.code == "refused"
    finally:
        other.stop()
