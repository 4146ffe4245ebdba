"""A storage's bucket: what is written how, by its key; deadlines; what is sealed and what is not."""

import base64
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from plugin.bucket import DAY_S, StorageBucket, open_bucket, readable
from plugin.configuration import Storage
from plugin.errors import Refused, code_of
from plugin.keys import open_keyring, read_slots
from s3core.bucket import CopySource
from s3core.errors import Archived, StoreError
from s3core.memory_bucket import MemoryBucket
from s3core.settings import Config
from s3core.write_options import CustomerKey, Retention, WriteOptions
from tests.s3core.fakes import FakeClock
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

BACKUP = "pve/dump/vzdump-lxc-101-2026_01_02-03_04_05.tar.zst"
KEY = bytes(range(32))


def storage(**changes: Any) -> Storage:
    return Storage(**{"id": "s3", "type": "bucketfiles", "bucket": "bucket", "prefix": "pve/", **changes})


def test_options_follow_from_the_key() -> None:
    clock = FakeClock()
    kept = storage(
        storage_class="STANDARD_IA", sse="aws:kms", kms_key_id="key-1", object_lock="compliance", lock_days=7
    )
    bucket = StorageBucket(MemoryBucket(object_lock=True, clock=clock), kept, clock=clock)
    sealed = WriteOptions(encryption="aws:kms", kms_key_id="key-1")
    volume = WriteOptions(storage_class="STANDARD_IA", encryption="aws:kms", kms_key_id="key-1")
    until = clock.time() + 7 * DAY_S
    locked = WriteOptions(retention=Retention("COMPLIANCE", until)).over(volume)
    assert bucket.upload_options == volume
    assert bucket.options_for(BACKUP) == locked
    assert bucket.options_for("pve/template/iso/x.iso") == volume
    for key in (f"{BACKUP}.notes", "pve/.bucketworks/identity", "elsewhere/dump/vzdump.iso", "pve/dump/README"):
        assert bucket.options_for(key) == sealed
    bucket.put(BACKUP, b"x", options=WriteOptions(legal_hold=True))
    facts = bucket.head(BACKUP)
    assert (facts.storage_class, facts.kept.encryption) == ("STANDARD_IA", "aws:kms")
    assert (facts.kept.legal_hold, facts.kept.retention) == (True, Retention("COMPLIANCE", until))
    # An uploader gives the class of volumes with everything.
    bucket.put(f"{BACKUP}.notes", b"x", options=bucket.upload_options)
    assert bucket.head(f"{BACKUP}.notes").storage_class == "STANDARD"
    upload = bucket.begin_upload("pve/template/iso/x.iso")
    bucket.complete_upload(
        "pve/template/iso/x.iso", upload, [(1, bucket.upload_part("pve/template/iso/x.iso", upload, 1, b"x"))]
    )
    assert bucket.head("pve/template/iso/x.iso").storage_class == "STANDARD_IA"


def test_hold_alone_locks_nothing_by_itself() -> None:
    bucket = StorageBucket(MemoryBucket(object_lock=True), storage(object_lock="hold", lock_days=0))
    bucket.put(BACKUP, b"x")
    assert bucket.retention(BACKUP) is None
    assert not bucket.legal_hold(BACKUP)


def test_a_customer_key_goes_along_and_what_is_plain_is_read_too() -> None:
    memory = MemoryBucket()
    memory.put("pve/template/iso/plain.iso", b"put by hand")
    bucket = StorageBucket(memory, storage(sse="customer", sse_customer_key=base64.b64encode(KEY).decode()))
    bucket.put(BACKUP, b"content")
    with pytest.raises(StoreError, match="must be given"):
        memory.get(BACKUP)
    assert memory.get(BACKUP, customer_key=CustomerKey(KEY)) == b"content"
    assert bucket.get(BACKUP, offset=1, length=3) == b"ont"
    assert bucket.head(BACKUP).size == 7
    bucket.copy(CopySource("bucket", BACKUP), f"{BACKUP}.notes")
    assert bucket.get(f"{BACKUP}.notes") == b"content"
    upload = bucket.begin_upload("pve/import/x.ova")
    bucket.upload_part("pve/import/x.ova", upload, 1, b"x")
    assert [part.number for part in bucket.list_parts("pve/import/x.ova", upload).parts] == [1]
    assert bucket.get("pve/template/iso/plain.iso") == b"put by hand"
    assert bucket.head("pve/template/iso/plain.iso").size == 11


def test_what_is_archived_says_so() -> None:
    memory = MemoryBucket()
    memory.put(BACKUP, b"x", options=WriteOptions(storage_class="GLACIER"))
    with pytest.raises(Archived) as refusal:
        StorageBucket(memory, storage()).get(BACKUP)
    assert code_of(refusal.value) == "archived"


def test_a_store_that_hangs_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        hung = storage(endpoint_url=url, access_key="a", secret_key="b", timeout_s=300.0)
        bucket = open_bucket(hung, Config(), deadline_s=2.0)
        began = time.monotonic()
        with pytest.raises(StoreError):
            bucket.head("pve/x")
        assert time.monotonic() - began < 20
        bucket.close()


# --- sealed on the node ------------------------------------------------------------------------------------------------


def test_a_storage_that_seals_begins_empty_and_opens_with_its_passphrase_alone() -> None:
    memory, clock = MemoryBucket(), FakeClock()
    sealing = storage(encryption=True, encryption_key="a long passphrase")
    assert open_keyring(memory, storage(), clock=clock, random=os.urandom) is None
    with pytest.raises(Refused, match="no key slot"):
        open_keyring(memory, sealing, clock=clock, random=os.urandom, begin=False)
    ring = open_keyring(memory, sealing, clock=clock, random=os.urandom)
    assert ring is not None
    assert [slot.kind for slot in read_slots(memory, "pve/")] == ["passphrase"]
    again = open_keyring(memory, sealing, clock=clock, random=os.urandom, begin=False)
    assert again is not None
    assert again.current == ring.current
    with pytest.raises(Refused, match="opens none"):
        open_keyring(
            memory, storage(encryption=True, encryption_key="another passphrase"), clock=clock, random=os.urandom
        )
    # Two nodes that begin at once make two data keys; each opens what the other sealed.
    other = MemoryBucket()
    second = open_keyring(other, sealing, clock=clock, random=os.urandom)
    assert second is not None
    for key, blob in other.contents().items():
        memory.put(key, blob)
    both = open_keyring(memory, sealing, clock=clock, random=os.urandom)
    assert both is not None
    assert both.known == ring.known | second.known
    assert both.current.id == min(both.known)


def test_a_storage_with_plain_objects_is_not_sealed_over() -> None:
    memory = MemoryBucket()
    memory.put("pve/template/iso/plain.iso", b"x")
    with pytest.raises(Refused, match="begins empty"):
        open_keyring(
            memory, storage(encryption=True, encryption_key="a long passphrase"), clock=FakeClock(), random=os.urandom
        )


def test_readable_is_the_bucket_itself_where_nothing_is_sealed() -> None:
    memory = MemoryBucket()
    assert readable(memory, storage(), None) is memory


# --- the real server ---------------------------------------------------------------------------------------------------


@pytest.mark.rgw
def test_a_storage_of_the_real_server(radosgw: Radosgw, tmp_path: Path) -> None:
    from s3core.s3_control import S3Control

    control, name = S3Control(radosgw.endpoint()), f"pve-{random.randrange(1 << 32):08x}"
    control.create_bucket(name, object_lock=True)
    control.close()
    kept = storage(
        bucket=name,
        endpoint_url=f"https://127.0.0.1:{radosgw.tls_port}",
        ca_file=str(radosgw.certificate.authority_file),
        preset="ceph",
        region="us-east-1",
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        sse="customer",
        sse_customer_key=base64.b64encode(KEY).decode(),
        object_lock="governance",
        lock_days=1,
    )
    bucket = open_bucket(kept, Config(), deadline_s=30.0)
    for key in (BACKUP, BACKUP.replace("101", "102")):
        if "101" in key:
            bucket.put(key, b"content")
        else:
            upload = bucket.begin_upload(key)
            bucket.complete_upload(key, upload, [(1, bucket.upload_part(key, upload, 1, b"content"))])
        facts = bucket.head(key)
        assert facts.kept.customer_key_md5 == CustomerKey(KEY).md5
        assert facts.kept.retention is not None, "also where the server forgets it with uploads in parts"
        assert facts.kept.retention.until == pytest.approx(time.time() + DAY_S, abs=600)
        assert bucket.get(key) == b"content"
    bucket.put("pve/template/iso/plain.iso", b"iso")
    assert bucket.get("pve/template/iso/plain.iso") == b"iso"
    bucket.close()
