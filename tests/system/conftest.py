"""Stores that the system tests put volumes into: a directory, and a bucket on the real radosgw over TLS."""

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from s3core.s3_control import S3Control
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw


@dataclass(frozen=True, slots=True)
class Place:
    """Where a test's volume lives: its URL, and the configuration file that knows the endpoint."""

    volume: str
    config: Path | None


def write_endpoint(radosgw: Radosgw, directory: Path, *, secret: str = SECRET_KEY, fingerprint: str = "") -> Path:
    """A configuration file with the endpoint `rgw`: https, the certificate pinned, keys in a file of their own."""
    keys, config = directory / "keys", directory / "config.toml"
    keys.write_text(f'access_key = "{ACCESS_KEY}"\nsecret_key = "{secret}"\n')
    keys.chmod(0o600)
    config.write_text(
        "[endpoint.rgw]\n"
        'preset = "ceph"\n'
        f'url = "https://127.0.0.1:{radosgw.tls_port}"\n'
        'region = "us-east-1"\n'
        'addressing = "path"\n'
        f'fingerprint = "{fingerprint or radosgw.certificate.fingerprint}"\n'
        f'credentials = "file:{keys}"\n'
        "connect_timeout_s = 2\n"
        "read_timeout_s = 10\n"
    )
    return config


def make_bucket(radosgw: Radosgw, *, versioned: bool = False) -> str:
    bucket = f"system-{uuid4().hex[:8]}"
    control = S3Control(radosgw.endpoint())
    control.create_bucket(bucket)
    if versioned:
        control.set_versioning(bucket, True)
    control.close()
    return bucket


@pytest.fixture
def rgw_place(radosgw: Radosgw, tmp_path: Path) -> Place:
    return Place(f"s3://rgw/{make_bucket(radosgw)}/disks/vm", write_endpoint(radosgw, tmp_path))


@pytest.fixture
def file_place(tmp_path: Path) -> Place:
    return Place(f"file://{tmp_path}/store/vm", None)


@pytest.fixture(params=["file", pytest.param("rgw", marks=pytest.mark.rgw)])
def place(request: pytest.FixtureRequest) -> Place:
    """The same test against both stores."""
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found
