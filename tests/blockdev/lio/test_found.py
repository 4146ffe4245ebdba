"""Reading configfs, from a copy of what a real kernel had: two volumes, one of them with ACLs and mutual CHAP."""

from pathlib import Path

import pytest

from blockdev.lio import plan
from blockdev.lio.condition import condition
from blockdev.lio.found import Found, Session, Uio, look
from blockdev.lio.wanted import Chap, Portal, Wanted

COPY = Path(__file__).with_name("configfs.txt")
PREFIX = "iqn.2025-01.internal.bucketworks"
HOST = "iqn.2024-01.test.guest:one"
CHAP = Chap("joe", "secretsecret1", "tgt", "mutualmutual1")
VM1 = Wanted(
    volume="vm1",
    serial="f5ea6a80-1030-43d9-bc17-876b72c7124f",
    size_bytes=64 << 20,
    sector_bytes=512,
    iqn=f"{PREFIX}:vm1",
    lun=0,
    portals=(Portal("127.0.0.1", 3260),),
)
VM2 = Wanted(
    volume="vm2",
    serial="53c1ea45-4b18-4e62-9617-e2a469399d37",
    size_bytes=64 << 20,
    sector_bytes=4096,
    iqn=f"{PREFIX}:vm2",
    lun=0,
    portals=(Portal("127.0.0.1", 3260), Portal("::1", 3261)),
    initiators=(HOST, "iqn.2024-01.test.guest:two"),
    chap=CHAP,
)


@pytest.fixture
def configfs(tmp_path: Path) -> Path:
    root = tmp_path / "config"
    target = root / "target"
    for line in COPY.read_text().splitlines()[1:]:
        if line.endswith("/"):
            (target / line).mkdir(parents=True)
            continue
        name, mark, value = line.partition(" -> ")
        if not mark:
            name, _, value = line.partition(" = ")
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mark:
            path.symlink_to(value)
        else:
            path.write_text(value + "\n")
    (target / "dbroot").write_text("/etc/target\n")
    return root


@pytest.fixture
def uio(tmp_path: Path) -> Path:
    for number, name in enumerate(["tcm-user/0/vm1/bucketworks/vm1", "tcm-user/5/other/rbd/other"]):
        folder = tmp_path / "uio" / f"uio{number}"
        (folder / "maps/map0").mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
        (folder / "maps/map0/size").write_text("0x0000000008800000\n")
    return tmp_path / "uio"


def test_all_of_it_is_found(configfs: Path, uio: Path) -> None:
    found = look(configfs, uio)
    assert [device.name for device in found.devices] == ["vm1", "vm2"]
    assert found.database == "/etc/target"
    assert found.uio == (Uio("uio0", "vm1", 0x8800000),)
    group = found.targets[1].groups[0]
    assert group.luns == {0: "user_1/vm2"}
    assert group.portals == (Portal("127.0.0.1", 3260), Portal("::1", 3261))
    assert [(acl.initiator, acl.mapped, acl.chap) for acl in group.acls] == [
        (initiator, {0: 0}, CHAP) for initiator in VM2.initiators
    ]
    assert not found.targets[0].sessions


@pytest.mark.parametrize("wanted", [VM1, VM2], ids=lambda wanted: wanted.volume)
def test_what_attach_made_is_what_attach_wants(wanted: Wanted, configfs: Path, uio: Path) -> None:
    found = look(configfs, uio)
    assert plan.differences(wanted, found) == []
    assert plan.attach_steps(wanted, found) == [plan.Save(wanted.volume, (wanted.iqn,))]


def test_sessions_are_found_with_and_without_an_acl(configfs: Path, uio: Path) -> None:
    groups = configfs / "target/iscsi"
    (groups / f"{PREFIX}:vm1/tpgt_1/dynamic_sessions").write_bytes(b"iqn.2024-01.test:a\niqn.2024-01.test:b\n\0")
    # As Linux prints it (lio_target_nacl_info_show).
    (groups / f"{PREFIX}:vm2/tpgt_1/acls/{HOST}/info").write_text(
        f"InitiatorName: {HOST}\nInitiatorAlias: \nLIO Session ID: 3   ISID: 0x00 02 3d 00 00 00  TSIH: 3  "
        "SessionType: Normal\nSession State: TARG_SESS_STATE_LOGGED_IN\n---------------------[iSCSI Session "
        "Values]-----------------------\n  CmdSN/WR  :  CmdSN/WC  :  ExpCmdSN  :  MaxCmdSN  :     ITT    :     TTT\n"
        " 0x00000010   0x00000010   0x1b   0x2a   0x19   0x05\n----------------------[iSCSI Connections]"
        "-------------------------\nCID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN\n"
        "   Address 10.0.2.2 TCP  StatSN: 0x5d2e3b1a\n"
    )
    found = look(configfs, uio)
    assert found.targets[0].sessions == (Session("iqn.2024-01.test:a"), Session("iqn.2024-01.test:b"))
    assert found.targets[1].sessions == (Session(HOST, "10.0.2.2"),)


def test_a_kernel_without_lio_has_nothing(tmp_path: Path) -> None:
    assert look(tmp_path, tmp_path / "uio") == Found(loaded=False)


# --- status ----------------------------------------------------------------------------------------------------------

READY = {"state": "ready", "size_bytes": 64 << 20, "door": "lio", "failure": "", "lio": {"problem": "", "commands": 7}}
SAVED = {"storage_objects": [{"plugin": "user", "name": "vm1"}, {"plugin": "user", "name": "vm2"}]}


def test_a_volume_in_order_has_no_problem(configfs: Path, uio: Path) -> None:
    told = condition("vm1", look(configfs, uio), READY, SAVED)
    assert told["problems"] == []
    assert told["saved"]
    assert told["targets"][0]["portals"] == ["127.0.0.1:3260"]
    assert told["targets"][0]["chap"] == "none"
    assert condition("vm2", look(configfs, uio), READY, SAVED)["targets"][0]["chap"] == "mutual"


def test_every_problem_says_what_cures_it(configfs: Path, uio: Path) -> None:
    attach, serve = "s3block lio attach vm1", "s3block serve vm1"
    found = look(configfs, uio)

    def problems(daemon: object = READY, saved: object = SAVED, found: Found = found) -> list[str]:
        return list(condition("vm1", found, daemon, saved)["problems"])  # type: ignore[arg-type]

    assert serve in problems(None)[0]
    assert "stopping" in problems(READY | {"state": "stopping"})[0]
    assert "portal" in problems(READY | {"door": "portal"})[0]
    assert "128 MiB" in problems(READY | {"size_bytes": 128 << 20})[0]
    assert "EBUSY" in problems(READY | {"lio": {"problem": "EBUSY"}})[0]
    assert "boot" in problems(saved={})[0]
    assert "not loaded" in problems(found=Found(loaded=False))[0]
    assert "not attached" in problems(found=Found())[0]
    device = configfs / "target/core/user_0/vm1"
    group = configfs / f"target/iscsi/{PREFIX}:vm1/tpgt_1"
    for path, value, word in (
        (device / "enable", "0", "not enabled"),
        (device / "action/block_dev", "blocked", "BUSY"),
        (device / "attrib/nl_reply_supported", "0", "wait"),
        (group / "enable", "0", "closed"),
    ):
        before = path.read_text()
        path.write_text(value)
        (one,) = problems(found=look(configfs, uio))
        assert word in one
        assert attach in one
        path.write_text(before)
    (group / "np/127.0.0.1:3260").rmdir()
    assert "nowhere" in problems(found=look(configfs, uio))[0]
