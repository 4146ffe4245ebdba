"""Names, records, configuration, the gateways' challenge, logins, and the kernel's initiator: without a server."""

import asyncio
import os
import socket
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from plugin.configuration import Storage
from plugin.disks import commands, gateway, kernel, names, peers
from plugin.disks.gateway import Gateway, NoLogin
from plugin.disks.methods import require_idle
from plugin.disks.peers import Asked, NotOurs
from plugin.disks.place import member_address, toml
from plugin.disks.records import Disk, Facts, Records, Serving, settled
from plugin.disks.serving import Activation
from plugin.disks.verbs import within
from plugin.errors import BadVolume, Busy, DeadlineOver, Exists, NoSuchVolume, NotServed, Refused
from s3core.errors import Corrupt
from s3core.memory import MemoryStore
from s3core.settings import Config, PveSettings, VolumeSettings
from tests.plugin.disks import nodes


def test_names() -> None:
    assert names.parse("base-100-disk-0/vm-101-disk-2") == names.DiskName(
        "vm-101-disk-2", 101, False, "base-100-disk-0"
    )
    assert names.parse("vm-100-state-Snap_1").vmid == 100
    for wrong in ("", "disk", "vm-0-x", "vm-1-disk/../x", "vm-1-disk-0/vm-2-disk-0", "vm-1-disk-0\n", "a/vm-1-disk-0"):
        with pytest.raises(BadVolume):
            names.parse(wrong)
    assert names.free_name(7, {"vm-7-disk-0", "base-7-disk-1", "vm-8-disk-2"}) == "vm-7-disk-2"
    with pytest.raises(Refused):
        names.free_name(7, {f"vm-7-disk-{number}" for number in range(1000)})
    assert names.base_name("vm-7-disk-1") == "base-7-disk-1"
    with pytest.raises(BadVolume):
        names.base_name("base-7-disk-1")


@pytest.mark.parametrize("name", ["vm-100-disk-0", "vm-100-state-Snap_1.x", "vm-1-" + "x" * 90])
def test_what_is_made_of_a_name_is_a_name_itself(name: str) -> None:
    target = names.target_name("My_Disks", name, "Snap_2")
    VolumeSettings(url="file:///x", iqn=target)
    born = names.birth_name(name, "0a1b2c3d")
    assert len(names.snapshot_view_name(born, "x" * 40)) <= 63
    assert born == born.lower()


def test_names_of_two_disks_have_two_targets() -> None:
    found = {
        names.target_name("a", "vm-1-state-B"),
        names.target_name("a", "vm-1-state-b"),
        names.target_name("A", "vm-1-b"),
    }
    assert len(found) == 3


def test_a_name_belongs_to_one_disk() -> None:
    records = Records(MemoryStore())
    disk = Disk("vm-1-disk-0", "v", created=1.0)
    records.add(disk)
    records.add(disk)  # an answer that was lost is asked for again
    with pytest.raises(Exists):
        records.add(Disk("vm-1-disk-0", "other"))
    assert records.find("vm-1-disk-0") == disk
    records.doom(disk)
    assert records.doomed() == ["v"]
    with pytest.raises(NoSuchVolume):
        records.find("vm-1-disk-0")
    records.buried("v")
    assert records.doomed() == []


def test_a_disk_that_still_has_its_name_is_not_deleted() -> None:
    store = MemoryStore()
    records = Records(store)
    disk = Disk("vm-1-disk-0", "v")
    records.add(disk)
    records.doom(disk)
    records.add(disk)  # as a crash between the two steps leaves it
    assert records.doomed() == []
    assert records.disks() == [disk]


def test_a_deletion_that_stopped_is_forgotten_with_a_new_name() -> None:
    store = MemoryStore()
    records = Records(store)
    disk = Disk("vm-1-disk-0", "v")
    records.doom(disk)
    records.spare("v")  # between a new name and the old one, a sweep may see neither
    assert records.doomed() == []


def test_a_renaming_that_stopped_in_its_middle() -> None:
    old, new = Disk("vm-1-disk-0", "v"), Disk("vm-2-disk-0", "v", renamed_from="vm-1-disk-0")
    assert settled([old, new]) == settled([new, old]) == [new]
    assert settled([new]) == [new]


def test_hints_are_of_the_node_that_gave_them() -> None:
    records = Records(MemoryStore())
    records.serve("v", Serving("a", "10.0.0.1", 3265))
    records.unserve("v", "b")
    assert records.serving("v") == Serving("a", "10.0.0.1", 3265)
    records.unserve("v", "a")
    assert records.serving("v") is None
    records.note("v", Facts(5, 1))
    assert records.facts(["v", "w"]) == {"v": Facts(5, 1)}


def test_a_record_that_is_none() -> None:
    store = MemoryStore()
    store.put("pve/name/vm-1-disk-0", b'{"format":9}')
    with pytest.raises(Corrupt):
        Records(store).find("vm-1-disk-0")


def test_a_configuration_as_toml_reads_back() -> None:
    told = {
        "endpoint": {"a.b": {"url": 'h"\\é\n\x7f', "secret_key": SecretStr("s"), "n": 1.5, "b": True, "l": ("x",)}},
        "e": {},
    }
    read = tomllib.loads(toml(told))
    assert read == {"endpoint": {"a.b": {"url": 'h"\\é\n\x7f', "secret_key": "s", "n": 1.5, "b": True, "l": ["x"]}}}


def test_the_address_of_a_node_in_its_cluster(tmp_path: Path) -> None:
    assert member_address(tmp_path, "a") == ""
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/pve/.members").write_text('{"nodelist":{"a":{"id":1,"online":1,"ip":"10.1.2.3"}}}')
    assert member_address(tmp_path, "a") == "10.1.2.3"
    assert member_address(tmp_path, "b") == ""


# --- gateways --------------------------------------------------------------------------------------------------------


def test_two_gateways_that_hold_the_secret() -> None:
    secret, asked = bytes(range(32)), Asked("open", "iqn.x:y")
    ours, theirs = peers.new_nonce(), peers.new_nonce()
    greeted = peers.greeting(ours)
    request = peers.request(secret, greeted, theirs, asked)
    assert peers.asked_of(secret, ours, request) == (asked, theirs)
    answered = peers.answer(secret, ours, theirs, asked, "busy")
    assert peers.answer_of(secret, greeted, theirs, asked, answered) == "busy"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.replace(b"iqn.x:y", b"iqn.x:z"),
        lambda line: line.replace(b'"open"', b'"probe"'),
        lambda line: b"{}",
        lambda line: b"\x00\xff",
        lambda line: b"[]",
        lambda line: b"[" * 100_000,
        lambda line: line.replace(b'"mac":"', b'"mac":"\\u00e9\\ud800'),
        lambda line: b"",
    ],
)
def test_a_request_that_was_changed_or_is_none(spoil: Callable[[bytes], bytes]) -> None:
    secret, nonce = bytes(range(32)), peers.new_nonce()
    line = peers.request(secret, peers.greeting(nonce), peers.new_nonce(), Asked("open", "iqn.x:y"))
    with pytest.raises(NotOurs):
        peers.asked_of(secret, nonce, spoil(line))
    with pytest.raises(NotOurs):
        peers.asked_of(secret, peers.new_nonce(), line)  # an old one, sent again
    with pytest.raises(NotOurs):
        peers.asked_of(bytes(32), nonce, line)


def test_an_answer_of_somebody_else() -> None:
    secret, asked, nonce = bytes(range(32)), Asked("probe", "iqn.x:y"), peers.new_nonce()
    greeted = peers.greeting(peers.new_nonce())
    forged = peers.answer(bytes(32), peers.new_nonce(), nonce, asked, "serving")
    with pytest.raises(NotOurs):
        peers.answer_of(secret, greeted, nonce, asked, forged)


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "priv" / "gateway.key"
    secret = peers.read_secret(path)
    assert len(secret) == 32
    assert peers.read_secret(path) == secret
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    with pytest.raises(NotOurs):
        peers.read_secret(path)


def test_a_flood_of_other_nodes_leaves_initiators_their_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "CONNECTIONS_MAX", 3)
    failures: list[dict[str, Any]] = []

    async def flood() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: failures.append(told))
        made = Gateway(tmp_path, lambda: bytes(32), local=[("127.0.0.1", 0)], peer=[("127.0.0.1", 0)])
        await made.start()
        local, peer = made.addresses
        silent = [await asyncio.open_connection(*peer) for _ in range(5)]
        for _, writer in silent[:2]:
            writer.write(b"x" * 200_000)
        reader, writer = await asyncio.open_connection(*local)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)
        writer.write(b"".join(login(b"TargetName=iqn.a:b\0")))
        assert await asyncio.wait_for(reader.read(1), 60) == b""
        for _, other in [*silent, (reader, writer)]:
            other.close()
        await made.stop()

    asyncio.run(flood())
    assert failures == []


def test_a_gateway_that_takes_no_connection_is_not_a_stranger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(NotServed):
            peers.ask("127.0.0.1", listener.getsockname()[1], bytes(32), "iqn.x:y")
        thread.join()


def test_configurations_are_written_by_many_at_once(tmp_path: Path) -> None:
    place = nodes.place(tmp_path, 1, "file:///x", 1)
    with ThreadPoolExecutor(16) as pool:
        written = [pool.submit(place.write_config) for _ in range(400)]
        assert {one.result() for one in written} == {place.config_path}
    assert [one.name for one in place.state_dir.iterdir()] == ["s3block.toml"]


def login(text: bytes, opcode: int = 0x43) -> tuple[bytes, bytes]:
    header = bytearray(48)
    header[0] = opcode
    header[5:8] = len(text).to_bytes(3, "big")
    return bytes(header), text + bytes(-len(text) % 4)


def test_the_target_of_a_login() -> None:
    header, following = login(b"InitiatorName=iqn.a\0SessionType=Normal\0TargetName=iqn.b:c\0")
    assert gateway.login_bytes(header) == len(following)
    assert gateway.login_target(header, following) == "iqn.b:c"


@pytest.mark.parametrize(
    "text", [b"InitiatorName=iqn.a\0SessionType=Discovery\0", b"InitiatorName=iqn.a\0", b"", b"\0\0=\0TargetName"]
)
def test_a_login_that_leads_nowhere(text: bytes) -> None:
    with pytest.raises(NoLogin):
        gateway.login_target(*login(text))


def test_what_is_no_login() -> None:
    with pytest.raises(NoLogin):
        gateway.login_bytes(login(b"", opcode=0x01)[0])
    with pytest.raises(NoLogin):
        gateway.login_bytes(login(bytes(20_000))[0])


# --- processes -------------------------------------------------------------------------------------------------------


def test_work_that_hangs_ends_in_time() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(DeadlineOver):
        within(began + 0.2, never.wait)
    assert time.monotonic() - began < 5
    never.set()
    assert within(time.monotonic() + 60, lambda: 5) == 5


def test_a_command_says_what_went_wrong(tmp_path: Path) -> None:
    config = tmp_path / "s3block.toml"
    config.write_text("")
    with pytest.raises(commands.CommandFailed) as raised:
        commands.run(config, ["info", f"file://{tmp_path}/none"], until=time.monotonic() + 60)
    assert raised.value.code == "not-found"


ISCSIADM = """#!/bin/sh
echo "$*" >> "$0.log"
case "$*" in
*--login*) touch "{device}";;
*--logout*) [ -e "{device}" ] || exit 21; rm "{device}";;
esac
"""


@pytest.fixture
def initiator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for iscsiadm; returns its log."""
    monkeypatch.setattr(kernel, "BY_PATH", tmp_path)
    tool = tmp_path / "bin" / "iscsiadm"
    tool.parent.mkdir()
    tool.write_text(ISCSIADM.format(device=kernel.device("127.0.0.1:3265", "iqn.b:c")))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return tool.with_name("iscsiadm.log")


def test_the_kernel_logs_in_and_out(initiator: Path) -> None:
    until = time.monotonic() + 60
    device = kernel.login("127.0.0.1:3265", "iqn.b:c", until=until)
    assert device.name == "ip-127.0.0.1:3265-iscsi-iqn.b:c-lun-0"
    kernel.logout("127.0.0.1:3265", "iqn.b:c", until=until)
    kernel.logout("127.0.0.1:3265", "iqn.b:c", until=until)
    said = initiator.read_text()
    assert "node.startup -v manual" in said
    assert said.count("-o delete") == 2


def test_without_open_iscsi_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kernel.KernelRefused, match="open-iscsi"):
        kernel.login("127.0.0.1:3265", "iqn.b:c", until=time.monotonic() + 60)


def test_a_storage_is_not_taken_away_below_an_active_disk(tmp_path: Path) -> None:
    storage = Storage(id="s3", type="bucketdisks", bucket="b", prefix="")
    config = Config(pve=PveSettings(run_dir=str(tmp_path)))
    require_idle(storage, config)
    fields = dict.fromkeys(
        (
            "storage",
            "name",
            "volume",
            "target",
            "store_url",
            "config",
            "store_config",
            "state_dir",
            "log",
            "node",
            "peer_host",
        ),
        "x",
    )
    told = fields | {"storage": "other", "name": "vm-100-disk-0", "port": 1, "secret": ""}
    Activation(**told).write(tmp_path / "disks/other/x.json")  # type: ignore[arg-type]  # texts and a number by name
    require_idle(storage, config)
    Activation(**told | {"storage": "s3"}).write(tmp_path / "disks/s3/x.json")  # type: ignore[arg-type]  # as above
    with pytest.raises(Busy, match="1 disks of storage s3 are active on this node: vm-100-disk-0"):
        require_idle(storage, config)
