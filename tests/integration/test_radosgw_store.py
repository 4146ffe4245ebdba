"""The store on a real server that is killed, hung and started again while it is used.

One rule: what was acknowledged is there afterwards, what was refused is not, and what was unknown is one of both.
"""

import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3core.build import stack
from s3core.clock import SystemClock
from s3core.errors import NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable
from s3core.probe import race_conditional_put
from s3core.retry import RetryPolicy
from s3core.s3 import S3Store, open_s3_store
from s3core.s3_control import S3Control
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw

WRITERS = 8


@pytest.fixture(params=["http", "tls"])
def store(radosgw: Radosgw, request: pytest.FixtureRequest) -> Iterator[S3Store]:
    opened = new_store(radosgw, tls=request.param == "tls")
    yield opened
    opened.close()


def new_store(server: Radosgw, *, tls: bool, versioned: bool = False, read_timeout_s: float = 5.0) -> S3Store:
    bucket = f"faults-{uuid.uuid4().hex[:8]}"
    control = S3Control(server.endpoint())
    control.create_bucket(bucket)
    if versioned:
        control.set_versioning(bucket, True)
    control.close()
    return open_s3_store(server.endpoint(tls=tls, read_timeout_s=read_timeout_s, connect_timeout_s=2.0), bucket, "")


class Traffic:
    """Threads that create objects until told to stop; `outcome` is what each key's writer was told."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._stop = threading.Event()
        self.outcome: dict[str, type[StoreError] | None] = {}  # None: acknowledged; each key written by one thread
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, writer: int) -> None:
        for number in range(100_000):
            if self._stop.is_set():
                return
            key = f"{writer}/{number:06}"
            try:
                self._store.put_if_absent(key, content(key))
            except StoreError as error:
                self.outcome[key] = type(error)
                time.sleep(0.01)
            else:
                self.outcome[key] = None

    def wait_for(self, more: int) -> None:
        """Until so many further objects were acknowledged."""
        goal = self.acknowledged() + more
        give_up = time.monotonic() + 60
        while self.acknowledged() < goal:
            assert time.monotonic() < give_up, "the server does not come back"
            time.sleep(0.01)

    def acknowledged(self) -> int:
        return sum(told is None for told in list(self.outcome.values()))

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def content(key: str) -> bytes:
    return key.encode() * 500


def check_truth(store: S3Store, outcome: dict[str, type[StoreError] | None]) -> None:
    """Compares the bucket with what the writers were told."""
    there = {item.key for item in store.list()}
    for key, told in outcome.items():
        if told is None:
            assert key in there, f"{key} was acknowledged and is gone"
        elif told is Unavailable:
            assert key not in there, f"{key} was reported as not written and is there"
    for key in sorted(there):
        assert store.get(key).data == content(key)


def test_the_gateway_is_killed_in_the_middle_of_traffic(radosgw: Radosgw, store: S3Store) -> None:
    traffic = Traffic(store)
    try:
        traffic.wait_for(200)
        radosgw.kill_gateway()
        time.sleep(0.2)
        radosgw.start_gateway()
        traffic.wait_for(200)
    finally:
        traffic.stop()
    told = set(traffic.outcome.values())
    assert told <= {None, Unavailable, OutcomeUnknown}
    assert Unavailable in told
    check_truth(store, traffic.outcome)


def test_retries_carry_a_writer_over_a_restart_of_the_gateway(radosgw: Radosgw, store: S3Store) -> None:
    policy = RetryPolicy(attempts_max=1000, delay_max_s=0.2, deadline_s=60)
    patient = stack(store, SystemClock(), random.Random(7), policy)
    patient.put("before", b"1")
    radosgw.kill_gateway()
    trying = threading.Event()
    results: list[str] = []

    def write() -> None:
        trying.set()
        results.append(patient.put("during", b"2"))

    writer = threading.Thread(target=write)
    writer.start()
    assert trying.wait(5)
    time.sleep(0.3)
    radosgw.start_gateway()
    writer.join(60)
    assert patient.get("during").etag == results[0]
    assert patient.get("before").data == b"1"


PATIENCE_S = 8.0
"""Longer than a healthy server takes on a busy machine, since the requests before the pause have to pass too."""


@pytest.mark.slow
def test_a_server_that_hangs_is_given_up_after_the_timeout(radosgw: Radosgw) -> None:
    store = new_store(radosgw, tls=True, read_timeout_s=PATIENCE_S)
    store.put("key", b"1")
    radosgw.pause_gateway()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            store.get("key")
        with pytest.raises(StoreError) as lost:
            store.put_if_absent("new", b"2")
        assert time.monotonic() - began < 10 + 2 * PATIENCE_S
    finally:
        radosgw.resume_gateway()
    # Over the connection that is still open the request is sent and its fate unknown; a new one is not even had.
    assert isinstance(lost.value, OutcomeUnknown | Unavailable)
    try:
        store.put_if_absent("new", b"2")
    except PreconditionFailed:
        assert isinstance(lost.value, OutcomeUnknown)
    assert store.get("new").data == b"2"
    store.close()


def test_a_hung_server_leaves_a_sent_creation_open(radosgw: Radosgw) -> None:
    """The case where silence must not be taken for failure: the request is applied after we gave up."""
    store = new_store(radosgw, tls=False, read_timeout_s=PATIENCE_S)
    store.put("warm", b"")  # opens the connection that the creation will be sent over
    radosgw.pause_gateway()
    try:
        with pytest.raises(OutcomeUnknown):
            store.put_if_absent("key", b"first")
    finally:
        radosgw.resume_gateway()
    give_up = time.monotonic() + 10
    while True:
        try:
            assert store.get("key").data == b"first"
        except NotFound:
            assert time.monotonic() < give_up, "the request was never applied"
            time.sleep(0.05)
        else:
            break
    store.close()


def test_the_race_probe_trusts_a_plain_bucket_and_not_a_versioned_one(radosgw: Radosgw) -> None:
    """Why every store is probed before it may fence: this server takes the header and ignores it there."""
    plain = new_store(radosgw, tls=True)
    passed = race_conditional_put(plain, "probe/", random.Random(1))
    assert passed.ok, passed.detail
    assert list(plain.list()) == []
    plain.close()
    versioned = new_store(radosgw, tls=True, versioned=True)
    failed = race_conditional_put(versioned, "probe/", random.Random(1))
    assert not failed.ok
    assert failed.conclusive, failed.detail
    assert failed.hint
    etag = versioned.put("key", b"first")
    with pytest.raises(PreconditionFailed):
        versioned.put_if_match("key", b"second", etag)
    versioned.close()


@pytest.mark.slow
def test_objects_outlive_a_kill_of_the_whole_cluster(radosgw: Radosgw, tmp_path: Path) -> None:
    assert radosgw.http_port  # the shared one is only asked for so that a missing package skips this test too
    server = Radosgw(tmp_path, durable=True)
    try:
        store = new_store(server, tls=True, read_timeout_s=30)
        traffic = Traffic(store)
        try:
            traffic.wait_for(150)
            server.kill()
            server.restart()
            traffic.wait_for(50)
        finally:
            traffic.stop()
        assert set(traffic.outcome.values()) <= {None, Unavailable, OutcomeUnknown}
        check_truth(store, traffic.outcome)
        store.close()
    finally:
        server.stop()
