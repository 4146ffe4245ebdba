"""Endpoint values: templates, addressing styles, presets, and settings that cannot be."""

from typing import Any

import pytest

from s3core.endpoint import (
    PRESETS,
    Addressing,
    Credentials,
    Endpoint,
    from_preset,
    normalise_fingerprint,
    shown_fingerprint,
)

PIN = "AB:" * 31 + "CD"


@pytest.mark.parametrize(
    ("url", "addressing", "bucket", "origin", "path"),
    [
        ("https://s3.example.com", "auto", "bkt", "https://s3.example.com", "/bkt"),
        ("https://s3.example.com", "virtual", "bkt", "https://bkt.s3.example.com", ""),
        ("https://s3.example.com:9000/", "path", "bkt", "https://s3.example.com:9000", "/bkt"),
        ("s3.example.com", "auto", "bkt", "https://s3.example.com", "/bkt"),
        ("https://{{bucket}}.s3.{{region}}.example.com", "auto", "bkt", "https://bkt.s3.eu.example.com", ""),
        ("https://{{bucket}}.s3.{{region}}.example.com", "path", "bkt", "https://s3.eu.example.com", "/bkt"),
        ("https://{{bucket}}.s3.{{region}}.example.com", "auto", "", "https://s3.eu.example.com", ""),
        # a wildcard certificate covers one label
        ("https://{{bucket}}.s3.example.com", "auto", "b.kt", "https://s3.example.com", "/b.kt"),
        ("http://{{bucket}}.s3.example.com", "auto", "b.kt", "http://b.kt.s3.example.com", ""),
        ("https://example.com/s3/{{bucket}}", "auto", "bkt", "https://example.com", "/s3/bkt"),
        ("https://example.com/s3", "path", "bkt", "https://example.com", "/s3/bkt"),
        ("http://127.0.0.1:7480", "auto", "bkt", "http://127.0.0.1:7480", "/bkt"),
        ("http://[::1]:7480", "auto", "bkt", "http://[::1]:7480", "/bkt"),
        ("http://localhost:80", "auto", "bkt", "http://localhost", "/bkt"),
    ],
)
def test_where_a_bucket_is(url: str, addressing: Addressing, bucket: str, origin: str, path: str) -> None:
    address = Endpoint("e", url, addressing=addressing).address(bucket, "eu")
    assert (address.origin, address.path) == (origin, path)
    assert address.virtual == (bool(bucket) and address.hostname.startswith(f"{bucket}."))


def test_the_aws_preset_is_virtual_hosted_except_for_dotted_names() -> None:
    aws = from_preset("aws", "e", region="eu-central-1")
    assert aws.address("bkt", "eu-central-1").origin == "https://bkt.s3.eu-central-1.amazonaws.com"
    assert from_preset("aws", "e").region == "auto"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_an_endpoint(name: str) -> None:
    preset = PRESETS[name]
    url = "" if preset.url and "ACCOUNT" not in preset.url else "https://s3.example.com"
    endpoint = from_preset(name, "e", url=url, credentials=Credentials("AK", "SK"))
    assert endpoint.preset == name
    assert endpoint.if_match_quoted == preset.if_match_quoted
    assert endpoint.address("bucket", "eu-1").host


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"url": "ftp://s3.example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://s3.example.com:99999"}, "url"),
        ({"url": "https://s3.{{zone}}.example.com"}, "placeholders"),
        ({"url": "https://me:pw@s3.example.com"}, "credentials"),
        ({"url": "https://s3.example.com/?x=1"}, "query"),
        ({"preset": "azure"}, "preset"),
        ({"addressing": "dns"}, "addressing"),
        ({"region": ""}, "region"),
        ({"fingerprint": "AB:CD"}, "64 hex"),
        ({"fingerprint": "zz" * 32}, "64 hex"),
        ({"url": "http://s3.example.com", "fingerprint": PIN}, "not https"),
        ({"read_timeout_s": 0}, "read_timeout_s"),
        ({"requests_per_s": -1}, "requests_per_s"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], named: str) -> None:
    settings = {"name": "e", "url": "https://s3.example.com"} | changes
    with pytest.raises(ValueError, match=named):
        Endpoint(**settings)


def test_presets_without_an_address_ask_for_one() -> None:
    with pytest.raises(ValueError, match="url"):
        from_preset("ceph", "e")
    with pytest.raises(ValueError, match="account"):
        from_preset("r2", "e")
    with pytest.raises(ValueError, match="preset"):
        from_preset("azure", "e")


def test_fingerprints_are_taken_as_tools_print_them() -> None:
    digits = "ab" * 31 + "cd"
    assert normalise_fingerprint(PIN) == digits
    assert normalise_fingerprint(f"sha256:{digits}") == digits
    assert shown_fingerprint(digits) == PIN
