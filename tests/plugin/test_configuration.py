"""A storage is read from storage.cfg and its secrets, or from the environment and an INI file; whatever is wrong is named."""

from dataclasses import replace
from pathlib import Path

import pytest

from plugin.configuration import (
    Storage,
    find_storage,
    in_properties,
    neighbours,
    parse_secrets,
    parse_sections,
    read_storages,
    storage_from_environment,
)
from plugin.errors import BadVolume, NoSuchVolume
from s3core.settings import Config, ConfigError

CFG = """\
dir: local
\tpath /var/lib/vz
\tcontent iso,vztmpl

bucketfiles: offsite
\tbw-bucket backups
\tbw-endpoint https://s3.example.com:9000
\tbw-prefix pve/one/
\tbw-access-key AKIA
\tbw-part-size 64
\tbw-connection-timeout 10
\tbw-quota 100
\tcontent backup,iso
\tnodes a,b
\tshared 1

bucketfiles: broken
\tbw-bucket backups
\tbw-part-size 4
"""


def node(root: Path, secrets: str = "bw-secret-key s3cr3t/with+signs=\n", mode: int = 0o600) -> Path:
    folder = root / "etc/pve/priv/storage"
    folder.mkdir(parents=True)
    (root / "etc/pve/storage.cfg").write_text(CFG)
    (folder / "offsite.bucketfiles").write_text(secrets)
    (folder / "offsite.bucketfiles").chmod(mode)
    return root


def test_sections_are_read_as_proxmox_writes_them() -> None:
    sections = parse_sections(CFG)
    assert [(one.type, one.id) for one in sections] == [
        ("dir", "local"),
        ("bucketfiles", "offsite"),
        ("bucketfiles", "broken"),
    ]
    assert sections[1].options["bw-prefix"] == "pve/one/"


def test_a_storage_of_a_node_becomes_an_endpoint(tmp_path: Path) -> None:
    storage = find_storage("offsite", node(tmp_path))
    assert (storage.bucket, storage.prefix, storage.part_bytes) == ("backups", "pve/one/", 64 << 20)
    assert (storage.quota_bytes, storage.timeout_s, storage.uploads) == (100 << 30, 10.0, 4)
    assert storage.contents == ("backup", "iso")
    assert storage.nodes == ("a", "b")
    assert "s3cr3t" not in repr(storage)
    joined = storage.join(Config())
    endpoint = joined.endpoint(storage.endpoint_name, {})
    assert endpoint.credentials.access_key == "AKIA"
    assert endpoint.credentials.secret_key == "s3cr3t/with+signs="
    assert storage.url == f"s3://{storage.endpoint_name}/backups/pve/one"


def test_one_broken_storage_does_not_take_the_others_along(tmp_path: Path) -> None:
    found = read_storages(node(tmp_path))
    assert isinstance(found["offsite"], Storage)
    assert "bw-part-size: 4 is not from 5 to 5120 MiB" in str(found["broken"])
    with pytest.raises(NoSuchVolume, match="there is no storage other"):
        find_storage("other", tmp_path)


def test_errors_name_the_storage_and_its_properties(tmp_path: Path) -> None:
    storage = find_storage("offsite", node(tmp_path))
    assert storage.join(Config()).endpoint(storage.endpoint_name, {}).credentials.source == "storage offsite"
    odd = replace(storage, endpoint_url="http://::1")
    with pytest.raises(ConfigError, match=r"^storage offsite: url: 'http://::1' is not a URL"):
        odd.join(Config()).endpoint(odd.endpoint_name, {})
    with pytest.raises(ConfigError, match="bw-secret-key is missing"):
        replace(storage, secret_key="").join(Config())
    with pytest.raises(ConfigError) as unknown:
        replace(storage, endpoint_url="rgw").join(Config())
    assert "bw-endpoint https://rgw" in unknown.value.hint
    name = storage.endpoint_name
    assert in_properties(f'set region = "eu-1" (or "auto") for endpoint {name}') == 'set bw-region "eu-1" (or "auto")'
    told = in_properties(f'set fingerprint = "AB:CD" for endpoint {name} to trust it, or set ca_file to the authority')
    assert told == 'set bw-fingerprint "AB:CD" to trust it, or set bw-ca-file to the authority'
    ours = 'set region = "eu-1" for endpoint ceph'
    assert in_properties(ours) == ours


def test_neighbours_lie_in_each_other(tmp_path: Path) -> None:
    storage = find_storage("offsite", node(tmp_path))
    others = {
        id: replace(storage, id=id, prefix=prefix)
        for id, prefix in {"same": "pve/one/", "in": "pve/one/x/", "around": "", "beside": "pve/one1/"}.items()
    }
    assert [one.id for one in neighbours(storage, {"offsite": storage, **others})] == ["around", "in", "same"]


def test_secrets_that_others_may_read_are_refused(tmp_path: Path) -> None:
    found = read_storages(node(tmp_path, mode=0o644))
    assert "chmod 600" in str(found["offsite"])


def test_a_line_of_secrets_that_is_none_is_told_without_its_value() -> None:
    with pytest.raises(BadVolume) as refused:
        parse_secrets("bw-secret=hunter2 hunter3\n")
    assert "hunter" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "nobody says which bucket"),
        ({"S3_BUCKET": "b!"}, "does not fit"),
        ({"S3_BUCKET": "bucket", "S3_PREFIX": "a/../b"}, "must not have"),
    ],
)
def test_what_the_environment_lacks_is_told(options: dict[str, str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        storage_from_environment("x1", options, None)


def test_the_environment_stands_over_an_ini_file(tmp_path: Path) -> None:
    ini = tmp_path / "credentials"
    ini.write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B\nendpoint = s3.example.com\nregion = eu-1\nbucket = one\n"
    )
    ini.chmod(0o600)
    storage = storage_from_environment("x1", {"S3_BUCKET": "two", "S3_PREFIX": "proxmox/"}, ini)
    assert (storage.bucket, storage.prefix, storage.region) == ("two", "proxmox/", "eu-1")
    assert (storage.access_key, storage.secret_key) == ("A", "B")
    assert storage.endpoint_settings().url == "https://s3.example.com"
    ini.write_text("[default]\npassword = C\n")
    with pytest.raises(ConfigError, match="password is none of"):
        storage_from_environment("x1", {}, ini)
