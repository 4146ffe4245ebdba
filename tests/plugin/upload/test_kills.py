"""kill -9 in the middle of an upload, against radosgw: the next process sends what is missing, or clears up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cowsync.sealing.keys import Keyring
from plugin.range_reader import ReadPool
from plugin.upload.context import MIB
from plugin.upload.uploader import Uploader
from s3core.bucket_stack import ObservedBucket, stack_bucket
from s3core.clock import SystemClock, system_random
from s3core.errors import NotFound
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.plugin.upload.world import KEYRING, PART, PREFIX, SETTINGS, journals_left, noise, opened
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = pytest.mark.rgw
KEY = f"{PREFIX}dump/killed.vma"
SIZE = 6 * PART + 9
CHILD = """
import sys, time
from pathlib import Path
from s3core.endpoint import Credentials, Endpoint
from s3core.s3_bucket import S3Bucket
from plugin.upload.uploader import Uploader
from tests.plugin.upload.world import KEYRING, PREFIX, SETTINGS, noise

url, access, secret, bucket, directory, source, how = sys.argv[1:]

class Slow(S3Bucket):
    def upload_part(self, key, upload_id, number, *args, **options):
        if number > 3:
            time.sleep(600)
        return super().upload_part(key, upload_id, number, *args, **options)

endpoint = Endpoint(
    name="rgw", url=url, region="us-east-1", addressing="path", credentials=Credentials(access, secret), preset="ceph"
)
keyring = KEYRING if "sealed" in how else None
sending = Uploader(Slow(endpoint, bucket), Path(directory), SETTINGS, keyring=keyring, prefix=PREFIX)
if "file" in how:
    sending.file(Path(source), "pve/dump/killed.vma")
else:
    sending.stream("pve/dump/killed.vma").write(Path(source).read_bytes())
"""


@pytest.fixture(scope="module")
def bucket(radosgw: Radosgw) -> str:
    S3Control(radosgw.endpoint()).create_bucket("killed-uploads")
    return "killed-uploads"


class Counting(S3Bucket):
    """How many parts were sent through it."""

    parts = 0

    def upload_part(self, *args: Any, **options: Any) -> str:
        self.parts += 1
        return super().upload_part(*args, **options)


def stacked(adapter: S3Bucket) -> ObservedBucket:
    return stack_bucket(adapter, SystemClock(), system_random())


def killed(radosgw: Radosgw, bucket: str, directory: Path, source: Path, how: str) -> None:
    """A process that had sent three parts and was killed while it sent more."""
    words = [radosgw.endpoint().url, ACCESS_KEY, SECRET_KEY, bucket, str(directory), str(source), how]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *words], cwd=Path(__file__).parents[3])
    try:
        deadline = time.monotonic() + 60
        while sum(path.read_bytes().count(b'"part"') for path in directory.glob("*.journal")) < 3:
            assert child.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("keyring", [None, KEYRING], ids=["plain", "sealed"])
def test_a_file_goes_on(tmp_path: Path, radosgw: Radosgw, bucket: str, keyring: Keyring | None) -> None:
    source, directory = tmp_path / "source", tmp_path / "uploads"
    source.write_bytes(noise(SIZE))
    killed(radosgw, bucket, directory, source, "file sealed" if keyring else "file")
    assert len(journals_left(directory)) == 1, "spool files have no names"
    counting = Counting(radosgw.endpoint(), bucket)
    there = stacked(counting)
    sending = Uploader(there, directory, SETTINGS, keyring=keyring, prefix=PREFIX)
    assert sending.clean_up() == []
    done = sending.file(source, KEY)
    assert (done.proof, done.plain_bytes) == ("etag", SIZE)
    assert counting.parts == 4, "three of seven parts were there"
    pool = ReadPool(opened(there) if keyring else there, cache_bytes=16 * MIB)
    reader = pool.open(KEY)
    assert b"".join(reader.read(at, MIB) for at in range(0, SIZE, MIB)) == noise(SIZE)
    pool.close()
    sending.close()
    assert journals_left(directory) == []
    assert there.list_uploads().uploads == []
    there.delete(KEY)
    there.close()


def test_a_stream_is_cleared_away(tmp_path: Path, radosgw: Radosgw, bucket: str) -> None:
    source, directory = tmp_path / "source", tmp_path / "uploads"
    source.write_bytes(noise(SIZE))
    killed(radosgw, bucket, directory, source, "stream")
    there = stacked(S3Bucket(radosgw.endpoint(), bucket))
    with pytest.raises(NotFound):
        there.head(KEY)
    assert len(there.list_uploads().uploads) == 1
    sending = Uploader(there, directory, SETTINGS)
    assert sending.clean_up() == [KEY]
    sending.close()
    assert journals_left(directory) == []
    assert there.list_uploads().uploads == []
    there.close()


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_gateway_that_comes_back_loses_nothing(tmp_path: Path, radosgw: Radosgw, bucket: str, how: str) -> None:
    there = stacked(S3Bucket(radosgw.endpoint(read_timeout_s=1.0), bucket))
    sending = Uploader(there, tmp_path, SETTINGS)
    stream = sending.stream(KEY)
    stream.write(noise(2 * PART))
    if how == "killed":
        radosgw.kill_gateway()
    else:
        radosgw.pause_gateway()
    try:
        stream.write(noise(2 * PART, 2))
        time.sleep(2 if how == "hung" else 0)
    finally:
        if how == "killed":
            radosgw.start_gateway()
        else:
            radosgw.resume_gateway()
    assert stream.finish().proof == "etag"
    assert there.get(KEY) == noise(2 * PART) + noise(2 * PART, 2)
    sending.close()
    there.delete(KEY)
    there.close()
