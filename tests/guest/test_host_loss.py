"""A whole machine dies, with its daemon, its initiator and its journal; another host takes the volumes over from the bucket.

One rule: the judge knows what the dead machine's initiator had been told, and nothing else.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from blockdev.segments import paths
from s3core.s3 import open_s3_store
from tests.guest.doors import MIB, GuestDoor, Volume
from tests.guest.guest import HOST, Guest, Hardware
from tests.guest.inside import stamping
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw
from tests.system.conftest import make_bucket, write_endpoint
from tests.system.machine import Server, ServerEnded, read_back
from tests.system.stamps import UNIT, Judge

pytestmark = [pytest.mark.rgw, pytest.mark.initiator]

SIZE_MIB = 32
UNITS = SIZE_MIB * MIB // UNIT
WRITES = 5000
QUICK = 'commit_interval_s = "300ms"'


def judge(output: str, seed: int) -> tuple[Judge, int]:
    """Who knows every write, those whose answer was never heard of included; and how many had been flushed."""
    acknowledged = max((int(number) for number in re.findall(r"^acknowledged (\d+)$", output, re.MULTILINE)), default=0)
    flushed = max((int(number) for number in re.findall(r"^flushed (\d+)$", output, re.MULTILINE)), default=0)
    knows = Judge(SIZE_MIB * MIB)
    # The last words of the dead may not have arrived.
    for number, (first, units) in enumerate(stamping.plan(seed, UNITS, acknowledged + 16), start=1):
        sent = knows.sent(first, units)
        if number <= acknowledged:
            knows.acked(sent)
    return knows, flushed


@pytest.mark.parametrize("door", ["portal", "lio"])
def test_another_host_goes_on_with_a_prefix(
    boot: Callable[[Hardware], Guest], radosgw: Radosgw, tmp_path: Path, door: Literal["portal", "lio"]
) -> None:
    """`flush = "s3"`: everything flushed is there, and nothing had to be accepted. `local`: a prefix of the answered writes,
    once that loss was accepted."""
    bucket = make_bucket(radosgw)
    endpoint = (
        f'[endpoint.rgw]\npreset = "ceph"\nurl = "http://{HOST}:{radosgw.http_port}"\nregion = "us-east-1"\n'
        f'addressing = "path"\naccess_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET_KEY}"\n'
    )
    volumes = [
        Volume("safe", SIZE_MIB, "safe", settings=['flush = "s3"', QUICK]),
        Volume("local", SIZE_MIB, "local", settings=['flush = "local"', QUICK]),
    ]
    guest = boot(Hardware(memory_mib=1024))
    served = GuestDoor(guest, volumes, door=door, store=f"s3://rgw/{bucket}", endpoint=endpoint)
    objects = open_s3_store(radosgw.endpoint(), bucket)
    log = paths.volume_prefix("local") + paths.log_prefix()
    before = len(list(objects.list(log)))
    assert before, "the volume is attached, so its log has a record"
    writers = {
        name: guest.begin(stamping.write, device=served.log_in(name), seed=seed, units=UNITS, writes=WRITES)
        for seed, name in enumerate(served.volumes)
    }
    writers["local"].wait_for("flushed 100\n", 120)
    writers["safe"].wait_for("flushed 24\n", 120)
    # The worker has the lowest priority, and one emulated processor to share: its first commit may come late.
    until = time.monotonic() + 120
    while len(list(objects.list(log))) <= before + 1:
        assert time.monotonic() < until, "no commit of the volume has reached the bucket"
        time.sleep(0.2)
    objects.close()
    assert not any(writer.ended() for writer in writers.values())
    guest.kill()

    config = write_endpoint(radosgw, tmp_path)
    for seed, (name, writer) in enumerate(writers.items()):
        knows, flushed = judge(writer.output, seed)
        with Server(tmp_path, f"s3://rgw/{bucket}/{name}", "--host-is-off", state=name, config=config) as other:
            if name == "local":
                with pytest.raises(ServerEnded, match="accept-loss"):
                    other.start()
                other.start("--accept-loss")
            else:
                other.start()
            verdict = knows.check(read_back(other.url, tmp_path / f"{name}.raw"), flushed if name == "safe" else 0)
            assert verdict.acknowledged >= flushed >= 24
            assert verdict.lost < verdict.acknowledged, "nothing at all had reached the bucket"
            if name == "safe":
                assert verdict.lost <= verdict.acknowledged - flushed
            assert other.stop() == 0
