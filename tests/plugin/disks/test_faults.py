"""What becomes of disks when the store hangs, and when whoever carries out a verb is killed in its middle."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from plugin.disks import serving
from plugin.disks.verbs import Disks
from plugin.errors import PluginError
from s3core.errors import StoreError
from s3core.s3_control import S3Control
from s3core.settings import Config, EndpointSettings
from tests.architecture.tree import ROOT
from tests.plugin.disks import nodes
from tests.plugin.disks.nodes import qemu_io, soon
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

MIB = 1 << 20
HUNG_S = 1.5
GRACE_S = 20.0
"""Beyond a verb's time, on a busy machine."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("qemu-io") is None, reason="qemu-io (qemu-utils, qemu-block-extra) is not installed"
    ),
]


@pytest.fixture
def disks(radosgw: Radosgw, tmp_path: Path) -> Iterator[Disks]:
    bucket = f"disks-{uuid.uuid4().hex[:8]}"
    with closing(S3Control(radosgw.endpoint())) as control:
        control.create_bucket(bucket)
    endpoint = EndpointSettings(
        preset="ceph",
        url=f"http://127.0.0.1:{radosgw.http_port}",
        region="us-east-1",
        addressing="path",
        access_key=ACCESS_KEY,
        secret_key=SecretStr(SECRET_KEY),
    )
    config = Config.model_validate({"endpoint": {"rgw": endpoint}})
    with nodes.node(tmp_path, 1, f"s3://rgw/{bucket}/pve/disks", nodes.free_port(), config) as made:
        yield made


@pytest.mark.rgw
def test_a_store_that_hangs(disks: Disks, radosgw: Radosgw) -> None:
    name = disks.alloc(100, "", 8 * MIB, "raw", until=soon())
    idle = disks.alloc(101, "", 8 * MIB, "raw", until=soon())
    url = disks.activate(name, "", kernel_device=False, until=soon())["url"]
    qemu_io(url, "write -P 1 0 4M", "flush")
    verbs: list[Callable[[float], object]] = [
        lambda until: disks.alloc(100, "", MIB, "raw", until=until),
        lambda until: disks.listing(None, until=until),
        lambda until: disks.size(idle, until=until),
        lambda until: disks.snapshot(name, "one", until=until),
        lambda until: disks.rename(idle, 102, "", until=until),
        lambda until: disks.activate(idle, "", kernel_device=False, until=until),
        lambda until: disks.deactivate(name, until=until),
        lambda until: disks.free(idle, until=until),
    ]
    radosgw.pause_gateway()
    try:
        for verb in verbs:
            began = time.monotonic()
            with pytest.raises((PluginError, StoreError)) as raised:
                verb(began + HUNG_S)
            assert time.monotonic() - began < HUNG_S + GRACE_S
            code = getattr(raised.value, "code", "unavailable")
            assert code in ("deadline", "unavailable", "busy"), raised.value
        began = time.monotonic()
        disks.status()
        assert time.monotonic() - began < 10
        # What is served goes on being served.
        qemu_io(url, "write -P 2 0 1M", "read -P 2 0 1M")
    finally:
        radosgw.resume_gateway()
    disks.deactivate(name, until=soon())
    disks.activate(name, "", kernel_device=False, until=soon())
    qemu_io(url, "read -P 2 0 1M", "read -P 1 1M 3M")
    assert {item["volname"] for item in disks.listing(None, until=soon())} >= {name, idle}


CUT_OFF = """
import sys, time
from pathlib import Path
from plugin.disks.verbs import Disks
from tests.plugin.disks.nodes import place
disks = Disks(place(Path(sys.argv[1]), 1, sys.argv[2], int(sys.argv[3])))
until = time.monotonic() + 60
print("begun", flush=True)
"""


def cut_off(disks: Disks, root: Path, order: str, seconds: float) -> None:
    """Carry out `order` in a process that is killed after so many seconds."""
    words = [str(root), disks.place.store_url, str(disks.place.port)]
    process = subprocess.Popen(
        [sys.executable, "-c", CUT_OFF + order, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in children.read_text().split() if children.exists() else []:
        os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("seconds", [0.7])
def test_verbs_that_are_killed_in_their_middle(tmp_path: Path, seconds: float) -> None:
    with nodes.node(tmp_path, 1, f"file://{tmp_path}/store", nodes.free_port()) as disks:
        name = disks.alloc(100, "", 8 * MIB, "raw", until=soon())
        cut_off(disks, tmp_path, "disks.alloc(100, 'vm-100-disk-7', 1 << 20, 'raw', until=until)", seconds)
        cut_off(disks, tmp_path, f"disks.base({name!r}, until=until)", seconds)
        listed = {item["volname"] for item in disks.listing(None, until=soon())}
        assert listed - {"vm-100-disk-7"} in ({name}, {"base-100-disk-0"})
        if name in listed:
            assert disks.base(name, until=soon()) == "base-100-disk-0"
        clone = disks.clone("base-100-disk-0", "", 101, until=soon())
        cut_off(disks, tmp_path, f"disks.rename({clone!r}, 102, '', until=until)", seconds)
        if {item["vmid"] for item in disks.listing(101, until=soon())}:
            clone = disks.rename(clone, 102, "", until=soon())
        else:
            clone = "base-100-disk-0/vm-102-disk-0"
        cut_off(disks, tmp_path, f"disks.activate({clone!r}, '', kernel_device=False, until=until)", seconds)
        qemu_io(
            disks.activate(clone, "", kernel_device=False, until=soon())["url"], "write -P 6 0 1M", "read -P 6 0 1M"
        )
        cut_off(disks, tmp_path, f"disks.deactivate({clone!r}, until=until)", seconds)
        disks.deactivate(clone, until=soon())
        assert list(serving.activations(disks.place.run_dir.parent)) == []
        cut_off(disks, tmp_path, f"disks.free({clone!r}, until=until)", seconds)
        if disks.listing(102, until=soon()):
            disks.free(clone, until=soon())
        disks.sweep()
        for left in disks.listing(None, until=soon()):
            disks.free(left["volname"], until=soon())
        disks.sweep()
        # At most the volume of the creation that was stopped.
        assert [one.partition(".")[0] for one in disks.unnamed(until=soon())] in ([], ["vm-100-disk-7"])
