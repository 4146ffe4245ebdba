"""Lifecycle rules of a storage's own, beside those of others; thawing what is archived."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from plugin.configuration import Storage
from plugin.lifecycle import apply_rules, remove_rules, rules_for, thaw, thaw_state
from s3core.memory_bucket import MemoryBucket
from s3core.s3_control import LifecycleRule, S3Control
from s3core.write_options import WriteOptions
from tests.s3core.fakes import FakeClock
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw


def storage(**changes: Any) -> Storage:
    return Storage(**{"id": "s3", "type": "bucketfiles", "bucket": "bucket", "prefix": "pve/", **changes})


def test_rules_say_what_the_properties_say() -> None:
    assert rules_for(storage(transition_days=30)) == []
    assert rules_for(storage(lifecycle=True)) == [LifecycleRule("bucketworks/s3/uploads", "pve/", abort_uploads_days=8)]
    assert rules_for(storage(lifecycle=True, transition_days=30, glacier_days=90))[1] == LifecycleRule(
        "bucketworks/s3/backups", "pve/dump/", transitions=((30, "STANDARD_IA"), (90, "GLACIER"))
    )
    only = rules_for(storage(lifecycle=True, glacier_days=9, glacier_class="DEEP_ARCHIVE", preset="aws"))[1]
    assert (only.transitions, only.larger_than) == (((9, "DEEP_ARCHIVE"),), 131_072)


@pytest.fixture(params=["moto", pytest.param("radosgw", marks=pytest.mark.rgw)])
def control(request: pytest.FixtureRequest) -> Iterator[tuple[S3Control, str]]:
    server: MotoServer | Radosgw = request.getfixturevalue({"moto": "moto_server"}.get(request.param, request.param))
    made, bucket = S3Control(server.endpoint()), f"rules-{uuid4().hex[:8]}"
    made.create_bucket(bucket)
    yield made, bucket
    made.close()


def test_rules_of_others_stay_as_they_are(control: tuple[S3Control, str]) -> None:
    server, bucket = control
    foreign: list[Any] = [
        {
            "ID": "tagged",
            "Filter": {"And": {"Prefix": "logs/", "Tags": [{"Key": "a", "Value": "b"}]}},
            "Status": "Enabled",
            "Expiration": {"Days": 9},
        },
        {
            "ID": "bucketworks/s3-other/uploads",
            "Filter": {"Prefix": "other/"},
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
        },
    ]
    server.client().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": foreign})

    def others() -> list[Any]:
        rules: list[Any] = list(server.client().get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"])
        return sorted((rule for rule in rules if not rule["ID"].startswith("bucketworks/s3/")), key=lambda r: r["ID"])

    before = others()
    wanted = storage(bucket=bucket, lifecycle=True, transition_days=30)
    assert apply_rules(server, wanted)
    assert not apply_rules(server, wanted), "what is so already is not written"
    assert others() == before
    assert {rule.name: rule for rule in server.lifecycle(bucket)}["bucketworks/s3/backups"] == rules_for(wanted)[1]
    assert apply_rules(server, storage(bucket=bucket, lifecycle=True))
    assert [rule.name for rule in server.lifecycle(bucket) if "/s3/" in rule.name] == ["bucketworks/s3/uploads"]
    assert remove_rules(server, wanted)
    assert not remove_rules(server, wanted)
    assert others() == before


def test_the_last_rule_goes_too(control: tuple[S3Control, str]) -> None:
    server, bucket = control
    assert not apply_rules(server, storage(bucket=bucket))
    assert apply_rules(server, storage(bucket=bucket, lifecycle=True))
    assert apply_rules(server, storage(bucket=bucket))
    assert server.lifecycle(bucket) == []
    with pytest.raises(ValueError, match="bucketworks"):
        server.merge_lifecycle(bucket, [LifecycleRule("somebody's")], own="bucketworks/s3/")


def test_thawing_takes_its_time() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    bucket.restore_after_s = 3600.0
    bucket.put("cold", b"x", options=WriteOptions(storage_class="DEEP_ARCHIVE"))
    bucket.put("warm", b"x")
    assert thaw(bucket, "warm", days=1) == "ready"
    assert thaw_state(bucket.head("cold")) == "archived"
    assert thaw(bucket, "cold", days=2) == "thawing"
    assert thaw(bucket, "cold", days=2) == "thawing"
    assert thaw_state(bucket.head("cold")) == "thawing"
    clock.sleep(3601)
    assert thaw_state(bucket.head("cold")) == "ready"
    assert bucket.get("cold") == b"x"
    until = bucket.head("cold").kept.restored_until
    clock.sleep(100)
    assert thaw(bucket, "cold", days=2) == "ready"
    assert bucket.head("cold").kept.restored_until > until
