"""An encrypted mirror on a real server, read by cowsync, and by another tool that has every right but the key."""

import os
import shutil
import subprocess
from hashlib import md5
from pathlib import Path

import pytest

from s3core.bucket import Attributes
from tests.integration.test_cowsync import Site, site
from tests.servers.radosgw import Radosgw

__all__ = ["site"]

pytestmark = pytest.mark.rgw
MIB = 1024**2
SECRET = b"what nobody else may read "


def with_key(site: Site, folder: Path) -> Path:
    key = folder / "mirror.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    site.config.write_text(site.config.read_text() + f'key = "file:{key}"\n')
    return key


def read_by_rclone(radosgw: Radosgw, path: str) -> bytes:
    endpoint = radosgw.endpoint()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_RGW_TYPE": "s3",
        "RCLONE_CONFIG_RGW_PROVIDER": "Ceph",
        "RCLONE_CONFIG_RGW_ENDPOINT": endpoint.url,
        "RCLONE_CONFIG_RGW_ACCESS_KEY_ID": endpoint.credentials.access_key,
        "RCLONE_CONFIG_RGW_SECRET_ACCESS_KEY": endpoint.credentials.secret_key,
    }
    command = ["rclone", "--no-check-certificate", "cat", f"rgw:{path}"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("site", ["plain", "versioned"], indirect=True)
def test_only_the_key_opens_it(site: Site, radosgw: Radosgw, tmp_path: Path) -> None:
    key = with_key(site, tmp_path)
    source, target = site.bucket(site.source), site.bucket(site.target)
    attributes = Attributes({"content-type": "image/jpeg"}, {"who": "mé"}, {"a": "b c"})
    odd = ["plain", "with blank", "ünïcode/é", "a//b"]
    for name in odd:
        source.put(name, SECRET + name.encode(), attributes=attributes)
    source.put("empty", b"")
    upload = source.begin_upload("large", attributes=attributes)
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB), b"end"]
    parts = [(n, source.upload_part("large", upload, n, body)) for n, body in enumerate(bodies, 1)]
    etag = source.complete_upload("large", upload, parts).etag
    site.relay.kinds.clear()
    first = site.cowsync("run", "m")
    assert (first["complete"], first["bytes_copied"]) == (True, 0), first
    assert "COPY" not in site.relay.kinds
    for name in odd:
        raw = target.get(f"copy/{name}")
        assert SECRET not in raw
        facts = target.head(f"copy/{name}")
        assert dict(facts.attributes.metadata) == {}
        assert facts.attributes.headers["content-type"] == "application/octet-stream"
    if shutil.which("rclone"):
        held = read_by_rclone(radosgw, f"{site.target}/copy/plain")
        assert held == target.get("copy/plain"), "rclone reads it, as it lies there"
        assert held[:4] == b"BWSO"
    assert site.cowsync("plan", "m")["lines"] == 0
    assert site.cowsync("verify", "m")["listing"]["intact"] == 6
    read = site.cowsync("verify", "m", "--full")["bytes"]
    assert (read["complete"], read["intact"]) == (True, 6)
    source.put("plain", b"overwritten")
    source.delete("a//b")
    assert site.cowsync("run", "m")["done"] == 2
    back = site.cowsync(
        "snapshot", "restore", "m", "run:1", "--to", f"s3://ceph/{site.source}/again", "--go", expect=None
    )
    assert back["unavailable"] == (0 if target.properties.versioned else 1)
    assert source.get("again/a//b") == SECRET + b"a//b"
    large = source.head("again/large")
    assert (large.etag, large.attributes.metadata) == (etag, {"who": "mé"})
    assert source.tags("again/large") == {"a": "b c"}
    site.cowsync(
        "decrypt",
        "--from",
        f"s3://ceph/{site.target}/copy",
        "--to",
        f"s3://ceph/{site.source}/out",
        "--key",
        f"file:{key}",
    )
    assert source.get("out/large") == b"".join(bodies)
    assert source.get("out/empty") == b""
    key.write_bytes(os.urandom(32))
    source.put("plain", b"once more")
    before = target.head("copy/plain").etag
    site.cowsync("run", "m", expect=7)
    assert target.head("copy/plain").etag == before


def test_what_sealing_costs(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against plain streaming: the relay makes the server two, so that it does not copy by itself."""
    source = site.bucket(site.source)
    body = os.urandom(16 * MIB)
    for number in range(8):
        source.put(f"{number}", body)
    text = site.config.read_text().replace('part_bytes = "5M"', 'part_bytes = "64M"')
    text = text.replace(f"s3://ceph/{site.source}", f"s3://direct/{site.source}")
    key = tmp_path / "mirror.key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    mirror = text[text.index("[mirror.m]") :]
    sealed = (
        mirror.replace("[mirror.m]", "[mirror.sealed]").replace("/copy", "/sealed").replace("/state", "/state-sealed")
    )
    site.config.write_text(f'{text}{sealed}key = "file:{key}"\n')
    took = {}
    for name in ("m", "sealed"):
        began = os.times()
        done = site.cowsync("run", name)
        ended = os.times()
        assert (done["done"], done["bytes_moved"]) == (8, 8 * len(body)), done
        used = ended.children_user + ended.children_system - began.children_user - began.children_system
        took[name] = (done["seconds"], used)
    assert md5(site.bucket(site.target).get("copy/0")).digest() == md5(body).digest()
    with capsys.disabled():  # figures for whoever reads the log of a run
        print(
            "\n128 MiB in 8 objects: "
            + ", ".join(f"{name} {s:.2f} s, {cpu:.2f} s of processor time" for name, (s, cpu) in took.items())
        )
