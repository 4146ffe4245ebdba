"""The expectation itself: lines as tools print them, and lines that a node passes over."""

from uuid import UUID

import pytest

from blockdev.scsi import inquiry
from blockdev.scsi.limits import Limits
from blockdev.scsi.ports import Port
from tests.protocol import proxmox

A, B = "iqn.2025-01.internal.bucketworks:vm1", "iqn.2025-01.internal.bucketworks:vm2"


def test_discovery() -> None:
    output = f"""10.0.0.1:3260,1 {A}
10.0.1.1:3260,2 {A}
[2001:db8::5]:3260,1 {B}
disk.example.com:13260,1 {B}
10.0.0.1,1 {A}
iscsiadm: No portals found
"""
    assert proxmox.discovered(output) == {
        A: ["10.0.0.1:3260", "10.0.1.1:3260"],
        B: ["[2001:db8::5]:3260", "disk.example.com:13260"],
    }


def test_sessions() -> None:
    output = f"""tcp: [1] 10.0.0.1:3260,1 {A} (non-flash)
tcp: [12] 10.0.1.1:3260,2 {A} (non-flash)
iser: [3] 10.0.1.1:3260,2 {B} (non-flash)
tcp: [4] 10.0.1.1:3260,2 {B}
"""
    logged_in = proxmox.sessions(output)
    assert logged_in == {A: [("1", "10.0.0.1:3260"), ("12", "10.0.1.1:3260")]}
    portals = ["10.0.0.1:3260", "10.0.1.1:3260", "127.0.0.1:3260"]
    assert proxmox.logs_in_again(portals, logged_in[A]) == ["127.0.0.1:3260"]


def test_links_and_names() -> None:
    names = ["scsi-3600", "scsi-3600-part1", "wwn-0x600", "dm-uuid-mpath-3600", "ata-x"]
    assert proxmox.stable_links(names) == ["dm-uuid-mpath-3600", "scsi-3600"]
    assert proxmox.volume_name(0, 0, 5, "scsi-3600") == "0.0.5.scsi-3600"
    with pytest.raises(ValueError, match="not a volume name"):
        proxmox.volume_name(0, 0, 5, "scsi-1BUCKETWK x")


def test_direct() -> None:
    output = f"""Target:{A} Portal:10.0.0.1:3260,1
Lun:0    Type:DIRECT_ACCESS (Size:99G)
Lun:7    Type:DIRECT_ACCESS (Size:255M)
Lun:1    Type:DIRECT_ACCESS (No media loaded)
Target:{B} Portal:10.0.0.1:3260,1
Lun:0    Type:DIRECT_ACCESS (Size:1T)
"""
    assert proxmox.direct_units(output) == {"lun0": 1 << 40, "lun7": 255 << 20}


def unit(identity: UUID) -> inquiry.Unit:
    return inquiry.Unit(identity, "BUCKETWK", "S3 BLOCK VOLUME", "0.1", 512, Limits(), (Port(),), Port())


def test_udev_names_the_unit_by_its_naa_name() -> None:
    identity = UUID("6a1f3c52-90d4-4b6e-8f17-2d0c5b9e7a41")
    page = inquiry.page(0x83, unit(identity))
    assert page is not None
    name = proxmox.scsi_id(page)
    assert name == "3" + inquiry.naa(identity).hex()
    assert proxmox.stable_links([f"scsi-{name}"]) == [f"scsi-{name}"]
    assert proxmox.volume_name(0, 0, 0, f"scsi-{name}")
    other = inquiry.page(0x83, unit(UUID("6a1f3c52-90d4-4b6e-8f17-2d0c5b9e7a42")))
    assert other is not None
    assert proxmox.scsi_id(other) != name


@pytest.mark.parametrize(
    ("designators", "name"),
    [
        ("01030008 5000c50012345678 01030010 60000000000000000000000000000001", "360000000000000000000000000000001"),
        ("02010004 41424344 01020008 0123456789abcdef", "20123456789abcdef"),
        ("0201000b 4241522020206f6e652031", "1BAR_one_1"),
        ("01140004 00000001 02010004 41424344", "1ABCD"),
    ],
)
def test_which_designator_udev_takes(designators: str, name: str) -> None:
    body = bytes.fromhex(designators)
    assert proxmox.scsi_id(bytes((0, 0x83)) + len(body).to_bytes(2, "big") + body) == name


@pytest.mark.parametrize("page", [b"", bytes((0, 0x80, 0, 0)), bytes((0, 0x83, 0, 0))])
def test_no_name(page: bytes) -> None:
    with pytest.raises(ValueError, match="83h"):
        proxmox.scsi_id(page)
