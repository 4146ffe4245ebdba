"""docs/providers.md: the command takes every example, the tables are those of the presets, a policy suffices."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import boto3
import pytest

from blockdev import cli as volumes
from s3core import cli
from s3core.console import run
from s3core.endpoint import PRESETS
from s3core.exit_codes import ExitCode
from s3core.settings import load_config, settings_to_endpoint
from tests.architecture.tree import ROOT
from tests.documents.providers import facts
from tests.servers.radosgw import Radosgw

PAGE = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
SECTIONS = {
    found[1]: text
    for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)
    if (found := re.search(r"^bucketworks endpoint create \S+ --preset (\S+)", text, re.MULTILINE))
}


def block(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, f"no block of {language}"
    return found[1]


def test_every_preset_has_a_section_in_their_order() -> None:
    assert list(SECTIONS) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_an_example_is_taken_and_writes_what_is_shown(name: str, tmp_path: Path) -> None:
    words = block(SECTIONS[name], "sh").replace("\\\n", " ").split()
    config = tmp_path / "config.toml"
    assert run(cli.app, "bucketworks", [*words[1:], "--config", str(config)]) == ExitCode.OK
    assert config.read_text(encoding="utf-8").strip() == block(SECTIONS[name], "toml").strip()
    (endpoint,) = tomllib.loads(config.read_text(encoding="utf-8"))["endpoint"]
    settings = load_config(config).endpoints[endpoint]
    made = settings_to_endpoint(endpoint, settings)
    assert made.preset == name
    address = made.address("some-bucket", made.region if made.region != "auto" else "us-east-1")
    assert address.tls
    assert "{" not in address.origin
    assert "ACCOUNT" not in address.origin


@pytest.mark.parametrize("name", PRESETS)
def test_a_section_says_what_the_preset_says(name: str) -> None:
    wanted = facts(PRESETS[name])
    assert wanted in SECTIONS[name], f"docs/providers.md, {name}; as the preset has it:\n{wanted}"


def policies() -> list[dict[str, Any]]:
    found = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [json.loads(text) for text in found]


def test_policies_are_policies() -> None:
    assert len(policies()) == 2
    for policy in policies():
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert statement["Effect"] in ("Allow", "Deny")
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert all(re.fullmatch(r"s3:[A-Z]\w+", action) for action in actions), "no wildcards"


@pytest.mark.rgw
@pytest.mark.slow
def test_a_volume_needs_no_more_than_its_policy(radosgw: Radosgw, tmp_path: Path) -> None:
    """The volume's whole life with a key that may what the page says: made, filled, checked, read back, deleted."""
    bucket = "narrow-policy"
    owner = radosgw.endpoint()
    administrator = boto3.client(
        "s3",
        endpoint_url=owner.url,
        region_name="us-east-1",
        aws_access_key_id=owner.credentials.access_key,
        aws_secret_access_key=owner.credentials.secret_key,
    )
    administrator.create_bucket(Bucket=bucket)
    radosgw.create_user("narrow", "narrowkey", "narrowsecret")
    keys = tmp_path / "narrow.keys"
    keys.write_text('access_key = "narrowkey"\nsecret_key = "narrowsecret"\n', encoding="utf-8")
    keys.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[endpoint.rgw]\npreset = "ceph"\nurl = "{owner.url}"\ncredentials = "file:{keys}"\n', encoding="utf-8"
    )
    image, back = tmp_path / "image.raw", tmp_path / "back.raw"
    image.write_bytes(b"what was written\n" * 200_000 + bytes(4096 - 17 * 200_000 % 4096))
    url = f"s3://rgw/{bucket}/vm1"

    def s3block(*words: str) -> int:
        return int(run(volumes.app, "s3block", [*words, "--config", str(config)]))

    assert s3block("import", str(image), url) == ExitCode.DENIED, "without a policy nothing is allowed"
    policy = json.loads(json.dumps(policies()[0]).replace("BUCKET", bucket))
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": ["arn:aws:iam:::user/narrow"]}
    administrator.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    assert s3block("import", str(image), url) == ExitCode.OK
    assert s3block("check", url) == ExitCode.OK
    assert s3block("export", url, str(back)) == ExitCode.OK
    assert back.read_bytes() == image.read_bytes()
    assert s3block("delete", url, "--yes") == ExitCode.OK
    assert administrator.list_objects_v2(Bucket=bucket).get("KeyCount") == 0
