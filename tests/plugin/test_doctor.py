"""What the doctor finds of servers that do and servers that do not, of settings and of this node; it leaves nothing."""

import base64
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from plugin.bucket import StorageBucket
from plugin.cli import app
from plugin.configuration import Storage
from plugin.doctor import PROBES, Node, diagnose, judges_for
from plugin.lifecycle import rules_for
from s3core.bucket import Bucket, ObjectFacts, PartsPage, UploadsPage, Written
from s3core.bucket_wrapper import BucketWrapper
from s3core.endpoint import Endpoint
from s3core.errors import Unavailable, Unsupported
from s3core.exit_codes import ExitCode
from s3core.findings import Finding
from s3core.memory_bucket import MemoryBucket, MemoryService
from s3core.s3_control import LifecycleRule, ObjectLock, S3Control
from s3core.settings import Config, ConfigError
from s3core.wrapper import Call, T
from tests.s3core.fakes import FakeClock
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

GIB = 1 << 30
WELL = Node(fuse=None, space=1000 * GIB, mounted=True, served=True)
KEY = base64.b64encode(bytes(32)).decode()


def storage(**changes: Any) -> Storage:
    return Storage(**{"id": "s3", "type": "bucketfiles", "bucket": "bucket", "prefix": "pve/", **changes})


def examined(
    kept: Storage,
    bucket: Bucket,
    *,
    node: Node = WELL,
    others: Sequence[Storage] = (),
    facts: Sequence[Finding] = (),
    clock: FakeClock | None = None,
) -> dict[str, Finding]:
    clock = clock or FakeClock()
    told: list[Finding] = []
    diagnosis = diagnose(
        kept,
        Config(),
        StorageBucket(bucket, kept, clock=clock),
        node,
        {one.id: one for one in others},
        clock=clock,
        random=random.Random(1),
        facts=lambda: list(facts),
        on_finding=told.append,
    )
    assert told == list(diagnosis.findings)
    return {finding.check: finding for finding in diagnosis.findings}


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("sse", ["", "AES256", "aws:kms", "customer"])
def test_a_server_that_does_everything(versioned: bool, checksums: bool, sse: str) -> None:
    service = MemoryService(checksums=checksums)
    bucket = service.bucket("bucket", versioned=versioned)
    kept = storage(sse=sse, sse_customer_key=KEY if sse == "customer" else "", storage_class="STANDARD_IA")
    found = examined(kept, bucket)
    verdicts = {finding.verdict for check, finding in found.items() if check != "upload in parts"}
    assert verdicts == {"ok"}, found
    proved = checksums or sse in ("", "AES256")
    assert found["upload in parts"].verdict == ("ok" if proved else "note")
    assert bucket.contents() == {}
    assert bucket.uploads() == {}


def test_with_object_lock_nothing_is_left_behind() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(object_lock=True, clock=clock)
    found = examined(storage(object_lock="compliance", lock_days=30), bucket, clock=clock)
    assert found["locking"].verdict == "ok"
    assert list(bucket.list_versions().versions) == []


class Without(BucketWrapper):
    """A server that lacks something, or does it wrongly."""

    def __init__(self, inner: Bucket, lacks: str) -> None:
        super().__init__(inner)
        self.lacks = lacks

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation == self.lacks:
            raise Unsupported(f"{call.operation} is not known here", key=call.key)
        if self.lacks == "everything":
            raise Unavailable("the server is away")
        return action()

    def list_parts(self, *args: Any, **named: Any) -> PartsPage:
        return PartsPage([]) if self.lacks == "listed parts" else super().list_parts(*args, **named)

    def list_uploads(self, *args: Any, **named: Any) -> UploadsPage:
        return UploadsPage([]) if self.lacks == "listed uploads" else super().list_uploads(*args, **named)

    def complete_upload(self, key: str, *args: Any, **named: Any) -> Written:
        written = super().complete_upload(key, *args, **named)
        return self.inner.put(key, b"something else") if self.lacks == "right bytes" else written

    def put(self, key: str, data: Any, **named: Any) -> Written:
        if self.lacks in ("options", "classes told"):
            named.pop("options", None)
        if self.lacks == "conditions":
            named |= {"if_match": "", "if_absent": False}
        return super().put(key, data, **named)

    def head(self, key: str, **named: Any) -> ObjectFacts:
        if self.lacks == "options":
            named["customer_key"] = None
        return super().head(key, **named)

    def get(self, key: str, **named: Any) -> bytes:
        if self.lacks == "options":
            named["customer_key"] = None
        data = super().get(key, **named)
        return data[::-1] if self.lacks == "ranges" and named.get("offset") else data

    def delete_version(self, key: str, version_id: str, **named: Any) -> None:
        super().delete_version(key, version_id, bypass_governance=True)


@pytest.mark.parametrize(
    ("lacks", "check", "verdict", "words", "changes"),
    [
        ("everything", "left over", "fault", "away", {}),
        ("ranges", "ranges", "fault", "came back as others", {}),
        ("multipart", "upload in parts", "fault", "not known here", {}),
        ("right bytes", "upload in parts", "fault", "not what its parts make", {}),
        ("listed parts", "upload in parts", "warning", "are not listed", {}),
        ("listed uploads", "unfinished uploads", "warning", "nobody can clear them away", {}),
        ("list_uploads", "unfinished uploads", "fault", "not known here", {}),
        ("copy_part", "copy of parts", "note", "not known here", {}),
        ("conditions", "conditional writes", "note", "replaced an object", {}),
        ("conditions", "conditional writes", "fault", "replaced an object", {"type": "bucketdisks"}),
        ("classes told", "storage class", "warning", "keeps it as STANDARD", {"storage_class": "STANDARD_IA"}),
        ("options", "encryption", "fault", "it is ignored", {"sse": "AES256"}),
        (
            "retention of governance",
            "locking",
            "fault",
            "in its retention",
            {"object_lock": "governance", "lock_days": 1},
        ),
        ("set_legal_hold", "locking", "fault", "not known here", {"object_lock": "hold"}),
    ],
)
def test_a_server_that_lacks_something(
    lacks: str, check: str, verdict: str, words: str, changes: dict[str, Any]
) -> None:
    clock = FakeClock()
    memory = MemoryBucket(object_lock="object_lock" in changes, clock=clock)
    found = examined(storage(**changes), Without(memory, lacks), clock=clock)
    assert found[check].verdict == verdict
    assert words in found[check].said
    if lacks != "everything":
        assert memory.contents() == {}


def test_a_class_that_must_be_thawed_is_named() -> None:
    found = examined(storage(storage_class="GLACIER"), MemoryBucket())
    assert "thawed" in found["storage class"].said


def test_what_a_broken_off_doctor_left_is_removed_after_an_hour() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    bucket.put(f"pve/{PROBES}old/x", b"")
    found = examined(storage(), bucket, clock=clock)
    assert "left over" not in found
    clock.sleep(3700)
    assert "1 objects" in examined(storage(), bucket, clock=clock)["left over"].said
    assert bucket.contents() == {}


def test_nothing_is_written_where_the_bucket_is_not_there() -> None:
    memory = MemoryBucket()
    refused = Finding("bucket", "fault", "no", code=ExitCode.NOT_FOUND)
    assert "writes" not in examined(storage(), memory, facts=[refused])
    assert memory.requests == {}


@pytest.mark.parametrize(
    ("node", "check", "verdict"),
    [
        (
            Node(ConfigError("libfuse3 is not installed", hint="apt install fuse3"), 1000 * GIB, True, True),
            "fuse",
            "fault",
        ),
        (Node(None, GIB // 2, True, True), "room", "fault"),
        (Node(None, 10 * GIB, True, True), "room", "note"),
        (Node(None, 1000 * GIB, False, True), "mount", "note"),
        (Node(None, 1000 * GIB, True, False), "core", "warning"),
    ],
)
def test_a_node_that_lacks_something(node: Node, check: str, verdict: str) -> None:
    finding = examined(storage(), MemoryBucket(), node=node)[check]
    assert finding.verdict == verdict
    assert finding.cure


@pytest.mark.parametrize(
    ("prefix", "bucket", "meet"),
    [
        ("pve/", "bucket", True),
        ("", "bucket", True),
        ("pve/one/", "bucket", True),
        ("pv/", "bucket", False),
        ("", "b2", False),
    ],
)
def test_storages_do_not_lie_in_each_other(prefix: str, bucket: str, meet: bool) -> None:
    other = storage(id="other", prefix=prefix, bucket=bucket)
    assert ("neighbours" in examined(storage(), MemoryBucket(), others=[storage(), other])) == meet


ENDPOINT = Endpoint("e", "https://s3.example.com")
OURS = storage(lifecycle=True, transition_days=30)


@pytest.mark.parametrize(
    ("kept", "ask", "verdict", "words"),
    [
        (storage(), lambda j: j.versioning("", ENDPOINT), "ok", "gone"),
        (storage(), lambda j: j.versioning("Enabled", ENDPOINT), "warning", "paid for"),
        (storage(object_lock="hold"), lambda j: j.versioning("Enabled", ENDPOINT), "ok", "its versions"),
        (storage(object_lock="hold"), lambda j: j.versioning("", ENDPOINT), "fault", "needs it"),
        (storage(object_lock="hold"), lambda j: j.object_lock(ObjectLock(False)), "fault", "uploads would be refused"),
        (storage(), lambda j: j.object_lock(ObjectLock(True, "COMPLIANCE", 9)), "warning", "sidecars and notes too"),
        (
            storage(object_lock="compliance", lock_days=9),
            lambda j: j.object_lock(ObjectLock(True)),
            "ok",
            "locked for 9 days",
        ),
        (
            storage(),
            lambda j: j.lifecycle([LifecycleRule("x", "pve/dump/", expire_days=3)], "pve/"),
            "fault",
            "live data",
        ),
        (
            storage(),
            lambda j: j.lifecycle([LifecycleRule("x", "", transitions=((3, "DEEP_ARCHIVE"),))], "pve/"),
            "warning",
            "thawed",
        ),
        (OURS, lambda j: j.lifecycle([], "pve/"), "warning", "not what the storage says"),
        (OURS, lambda j: j.lifecycle(rules_for(OURS), "pve/"), "ok", "no live data"),
        (storage(), lambda j: j.lifecycle(rules_for(OURS), "pve/"), "warning", "not what the storage says"),
    ],
)
def test_settings_are_judged_by_what_the_storage_wants(
    kept: Storage, ask: Callable[[Any], Finding], verdict: str, words: str
) -> None:
    finding = ask(judges_for(kept))
    assert (finding.verdict, words in finding.said) == (verdict, True), finding.said


# --- the command, against the real server ----------------------------------------------------------------------------------


@pytest.mark.rgw
def test_the_command_on_the_real_server(radosgw: Radosgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control, bucket = S3Control(radosgw.endpoint()), f"doctor-{uuid4().hex[:8]}"
    control.create_bucket(bucket, object_lock=True)
    (tmp_path / "etc/pve/priv/storage").mkdir(parents=True)
    (tmp_path / "etc/pve/storage.cfg").write_text(
        f"bucketfiles: offsite\n\tbw-bucket {bucket}\n\tbw-endpoint {radosgw.endpoint().url}\n\tbw-preset ceph\n"
        f"\tbw-region us-east-1\n\tbw-access-key {ACCESS_KEY}\n\tbw-prefix pve\n\tbw-sse customer\n"
        f"\tbw-object-lock governance\n\tbw-lock-days 7\n\tbw-lifecycle 1\n\tpath {tmp_path}/mnt\n"
    )
    secrets = tmp_path / "etc/pve/priv/storage/offsite.bucketfiles"
    secrets.write_text(f"bw-secret-key {SECRET_KEY}\nbw-sse-customer-key {KEY}\n")
    secrets.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(f'[pve]\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    monkeypatch.setenv("BUCKETWORKS_PVE_ROOT", str(tmp_path))
    run = CliRunner()

    def asked(*arguments: str) -> Any:
        answer = run.invoke(app, [*arguments, "--config", str(config)])
        assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.output
        return answer

    told = json.loads(asked("doctor", "offsite", "--json").stdout)
    found = {finding["check"]: finding for finding in told["findings"]}
    assert found["lifecycle"]["verdict"] == "warning"
    assert {found[check]["verdict"] for check in ("writes", "ranges", "encryption", "locking", "object lock")} == {"ok"}
    assert found["upload in parts"]["verdict"] in ("ok", "note")
    assert found["copy of parts"]["verdict"] == "ok"
    assert "fault" not in {finding["verdict"] for check, finding in found.items() if check not in ("fuse", "room")}, (
        found
    )
    asked("lifecycle", "offsite", "--apply")
    rules = json.loads(asked("lifecycle", "offsite", "--json").stdout)
    assert [rule["rule"] for rule in rules] == ["bucketworks/offsite/uploads"]
    text = asked("doctor", "offsite", "--read-only").stdout
    assert "deletes no live data" in text
    assert "writes" not in {line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    assert json.loads(asked("lifecycle", "offsite", "--remove", "--json").stdout) == []
    raw = control.client().list_object_versions(Bucket=bucket)
    assert raw.get("Versions", []) == [] == raw.get("DeleteMarkers", [])
    control.close()
