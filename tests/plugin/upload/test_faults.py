"""Every answer lost, unknown, refused or hung: green only with the right object, and what failed leaves no upload behind."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.upload.context import TOKEN
from plugin.upload.stream import StreamingUpload, Uploaded
from s3core.bucket import Attributes, ObjectFacts, Written
from s3core.clock import SystemClock
from s3core.errors import Corrupt, Denied, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan
from s3core.faulty_bucket import FaultyBucket
from s3core.memory_bucket import MemoryBucket
from s3core.wrapper import Operation
from s3core.write_options import CustomerKey, WriteOptions
from tests.plugin.upload.world import (
    KEYRING,
    PART,
    PREFIX,
    SETTINGS,
    HastyClock,
    journals_left,
    noise,
    opened,
    uploader,
    uploads_left,
)

KEY = f"{PREFIX}dump/x.vma"
DATA = noise(3 * PART + 9)
FAULTS = (FaultKind.REFUSED, FaultKind.LOST_REQUEST, FaultKind.LOST_REPLY, FaultKind.HANG, FaultKind.SHORT_BODY)
PATIENT = replace(SETTINGS, patience_s=600, verify_s=120)
HASTY = replace(SETTINGS, patience_s=30, verify_s=20)


def faulty(bucket: MemoryBucket, plan: FaultPlan) -> FaultyBucket:
    return FaultyBucket(bucket, plan, random.Random(1), SystemClock())


def sent(stream: StreamingUpload, data: bytes) -> Uploaded:
    for at in range(0, len(data), PART):
        stream.write(data[at : at + PART])
    return stream.finish()


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("operation", ["multipart", "part", "complete", "head", "put"])
def test_a_fault_of_one_answer_is_not_heard_of(tmp_path: Path, kind: FaultKind, operation: Operation) -> None:
    bucket = MemoryBucket()
    plan = FaultPlan({(operation, number): Fault(kind, 0.01) for number in (1, 3)}, hang_s=0.01)
    sending = uploader(faulty(bucket, plan), tmp_path, PATIENT, clock=HastyClock())
    data = b"small" if operation == "put" else DATA
    stream = sending.stream(KEY)
    stream.write(data)
    assert stream.finish().proof == "etag"
    assert bucket.get(KEY) == data
    sending.close()
    assert not journals_left(tmp_path)
    # A begun upload whose answer was lost is known to nobody: the bucket's lifecycle rule is for that.
    assert operation == "multipart" or not uploads_left(bucket)


@pytest.mark.parametrize("kind", [FaultKind.REFUSED, FaultKind.LOST_REQUEST, FaultKind.LOST_REPLY])
@pytest.mark.parametrize("operation", ["multipart", "part", "complete", "put"])
def test_a_lasting_fault_is_an_error_after_a_while_or_green(
    tmp_path: Path, kind: FaultKind, operation: Operation
) -> None:
    bucket = MemoryBucket()
    plan = FaultPlan(rates={kind: 1.0}, operations=frozenset({operation}))
    sending = uploader(faulty(bucket, plan), tmp_path, HASTY, clock=HastyClock())
    data = b"small" if operation == "put" else DATA
    stream = sending.stream(KEY)
    if operation == "complete" and kind is FaultKind.LOST_REPLY:
        stream.write(data)
        assert stream.finish().proof == "etag"  # it was found by looking
    else:
        with pytest.raises((Unavailable, OutcomeUnknown)):
            sent(stream, data)
        stream.abort()
    sending.close()
    assert not journals_left(tmp_path)
    assert operation == "multipart" or not uploads_left(bucket)
    if bucket.list_page().keys:
        assert kind is FaultKind.LOST_REPLY
        assert bucket.get(KEY) == data


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_green_means_the_right_object(tmp_path: Path, seed: int, sealed: bool) -> None:
    bucket = MemoryBucket()
    kinds = (*FAULTS, FaultKind.SLOW_DOWN, FaultKind.LATE)
    plan = FaultPlan(rates=FaultPlan.even(0.35, *kinds), hang_s=0.01, slow_down_s=0.01)
    wrapped = FaultyBucket(bucket, plan, random.Random(seed), SystemClock())
    sending = uploader(wrapped, tmp_path, PATIENT, KEYRING if sealed else None, clock=HastyClock())
    stream = sending.stream(KEY)
    try:
        stream.write(DATA)
        stream.finish()
    except StoreError:
        stream.abort()
    else:
        assert (opened(bucket) if sealed else bucket).get(KEY) == DATA
    sending.close()


def test_a_refusal_is_heard_at_once_by_the_writer(tmp_path: Path) -> None:
    class Refusing(MemoryBucket):
        def upload_part(self, *args: object, **options: object) -> str:
            raise Denied("no s3:PutObject", key=KEY)

    bucket = Refusing()
    sending = uploader(bucket, tmp_path)
    stream = sending.stream(KEY)
    with pytest.raises(Denied, match="PutObject"):
        sent(stream, bytes(100 * PART))
    with pytest.raises(Denied):
        stream.finish()
    stream.abort()
    sending.close()
    assert sending.spooled == (0, 0)
    assert not uploads_left(bucket)


class Bent(MemoryBucket):
    """What HEAD tells is bent by `how`."""

    def __init__(self) -> None:
        super().__init__()
        self.how = "as it is"

    def head(self, key: str, **options: object) -> ObjectFacts:
        facts = super().head(key, **options)  # type: ignore[arg-type]  # handed on
        if self.how == "etag":
            return replace(facts, etag=f"{'0' * 32}-4")
        if self.how == "size":
            return replace(facts, size=facts.size - 1)
        if self.how == "token":
            return replace(facts, attributes=Attributes({}, {TOKEN: "another"}))
        return facts


@pytest.mark.parametrize("data", [b"small", DATA], ids=["put", "parts"])
def test_an_object_that_is_not_ours_is_no_success(tmp_path: Path, data: bytes) -> None:
    bucket = Bent()
    for how, error in (("etag", Corrupt), ("size", Corrupt), ("token", PreconditionFailed)):
        bucket.how = how
        sending = uploader(bucket, tmp_path)
        stream = sending.stream(KEY)
        stream.write(data)
        with pytest.raises(error):
            stream.finish()
        stream.abort()
        sending.close()
        bucket.how = "as it is"
        if error is Corrupt:
            with pytest.raises(NotFound):
                bucket.head(KEY)
        else:
            assert bucket.get(KEY) == data
        assert not journals_left(tmp_path)


class Opaque(MemoryBucket):
    """ETags of objects as under a key service: no MD5s."""

    def put(self, key: str, *args: object, **options: object) -> Written:
        return replace(super().put(key, *args, **options), etag="f" * 32)  # type: ignore[arg-type]  # handed on

    def head(self, key: str, **options: object) -> ObjectFacts:
        return replace(super().head(key, **options), etag="f" * 32)  # type: ignore[arg-type]  # handed on


@pytest.mark.parametrize("data", [b"small", DATA], ids=["put", "parts"])
def test_where_etags_say_nothing_a_checksum_or_the_size_is_what_there_is(tmp_path: Path, data: bytes) -> None:
    bucket = Opaque()
    options = WriteOptions(customer_key=CustomerKey(bytes(32)))
    sending = uploader(bucket, tmp_path, options=options)
    stream = sending.stream(KEY)
    stream.write(data)
    assert stream.finish().proof == ("checksum" if bucket.properties.checksums else "size")
    sending.close()
