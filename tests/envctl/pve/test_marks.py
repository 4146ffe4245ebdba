"""What machines carry: marks, tags, SMBIOS. And what Proxmox VE's words mean."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envctl.drivers.port import NodeHeadroom
from envctl.drivers.pve import marks, rights
from envctl.drivers.pve.driver import address_of
from envctl.drivers.pve.placement import choose
from envctl.drivers.pve.words import failure, reason
from envctl.errors import DriverBusy
from envctl.identifiers import new_id, tag_of

ENVIRONMENT = new_id(1.0, bytes(10))
UUID = "0b4f4f9e-29cf-4c7b-8f0c-6f1c6a1d9a11"


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=150), st.booleans())
def test_a_serial_number_comes_back_whatever_is_in_it(serial: str, encoded: bool) -> None:
    before = "uuid=aaaaaaaa-29cf-4c7b-8f0c-6f1c6a1d9a11,manufacturer=" + ("QWNtZQ==,base64=1" if encoded else "Acme")
    option = marks.smbios_with(before, UUID, serial)
    assert marks.smbios_of(option) == (UUID, serial)
    assert marks.fields_of(option)["manufacturer"] == "QWNtZQ=="
    assert marks.smbios_of(marks.smbios_with(option, UUID, "")) == (UUID, "")


def test_a_serial_number_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="512"):
        marks.smbios_with("", UUID, "x" * 400)


def test_the_mark_is_the_last_line_alone() -> None:
    mark = marks.mark_of(f"whose it is\nenvctl:{ENVIRONMENT}:12\n")
    assert mark == marks.Mark(ENVIRONMENT, 12)
    assert mark.tag == tag_of(ENVIRONMENT)
    for text in (
        "",
        f"envctl:{ENVIRONMENT}:12\nmore",
        "envctl:short:1",
        f"see envctl:{ENVIRONMENT}:1",
        f"envctl:{ENVIRONMENT}:-1",
    ):
        assert marks.mark_of(text) is None, text


def test_only_our_own_tags_are_taken_away() -> None:
    other = tag_of(new_id(2.0, bytes(10)))
    assert marks.with_tag(f"linux;{other},env-staging", tag_of(ENVIRONMENT)) == ";".join(
        sorted(["linux", "env-staging", tag_of(ENVIRONMENT)])
    )
    assert marks.our_tag("env-staging;linux") == "", "a tag of others that begins alike is not ours"


def test_the_disk_that_a_machine_boots_from() -> None:
    disks = {"scsi0": "ceph:vm-1-disk-0,size=8G", "ide2": "none,media=cdrom", "virtio1": "ceph:vm-1-disk-1,size=512M"}
    assert marks.boot_disk({**disks, "boot": "order=ide2;virtio1;net0"}) == "virtio1"
    assert marks.boot_disk(disks) == "scsi0"
    assert marks.boot_disk({"ide2": "none,media=cdrom"}) == ""
    assert marks.size_bytes(disks["virtio1"]) == 512 << 20
    assert marks.storage_of(disks["scsi0"]) == "ceph"
    assert [
        marks.is_cloud_init(each)
        for each in ("local-lvm:vm-9000-cloudinit,media=cdrom", "ceph:cloudinit", "ceph:vm-1-disk-0")
    ] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("status", "message", "errors", "word"),
    [
        (401, "No ticket", {}, "token"),
        (403, "Permission check failed (/vms/1, VM.Audit)", {}, "denied"),
        (400, "Parameter verification failed.", {"vmid": "VM 90000 already exists"}, "exists"),
        (400, "Parameter verification failed.", {"name": "invalid format\n"}, "invalid"),
        (500, "unable to create VM 90000: config file already exists", {}, "exists"),
        (500, "Configuration file 'nodes/pve1/qemu-server/9.conf' does not exist", {}, "gone"),
        (500, "something else", {}, "refused"),
        (501, "Method 'GET /x' not implemented", {}, "unsupported"),
        (500, "can't lock file '/var/lock/qemu-server/lock-9000.conf' - got timeout", {}, "busy"),
        (500, "VM is locked (clone)", {}, "busy"),
        (500, "clone failed: cfs-lock 'storage-nfs' error: got lock request timeout", {}, "busy"),
        (595, "No route to host", {}, "busy"),
        (596, "Connection timed out", {}, "unknown"),
        (599, "Too many redirections", {}, "unknown"),
        (504, "", {}, "unknown"),
    ],
)
def test_what_an_answer_means(status: int, message: str, errors: dict[str, str], word: str) -> None:
    error = failure("pve: GET /x", status, message, errors)
    if isinstance(error, DriverBusy):
        assert word == ("busy" if error.nothing_done else "unknown")
    else:
        assert reason(error) == word
    for text in (message.strip("."), *(value.strip() for value in errors.values())):
        assert text in str(error)


def test_a_guest_is_reached_where_others_can_reach_it() -> None:
    def card(*addresses: str) -> dict[str, object]:
        kinds = [("ipv6" if ":" in each else "ipv4") for each in addresses]
        return {
            "ip-addresses": [{"ip-address": a, "ip-address-type": k} for a, k in zip(addresses, kinds, strict=True)]
        }

    assert (
        address_of({"result": [card("127.0.0.1", "::1"), card("fe80::1", "2001:db8::5", "192.0.2.7")]}) == "192.0.2.7"
    )
    assert address_of({"result": [card("fe80::1", "2001:db8::5", "169.254.1.1")]}) == "2001:db8::5"
    assert address_of({"result": []}) == ""


def test_a_clone_goes_where_room_is() -> None:
    nodes = [NodeHeadroom(f"pve{n}", n != 3, 8, 32 << 30, used << 30) for n, used in ((1, 20), (2, 8), (3, 0), (4, 12))]
    assert choose("pve1", nodes, shared=True, given_bytes={}) == "pve2"
    assert choose("pve1", nodes, shared=False, given_bytes={}) == "pve1"
    assert choose("pve1", nodes, shared=True, given_bytes={}, allowed=("pve4", "pve3")) == "pve4"
    assert choose("pve1", nodes, shared=True, given_bytes={"pve2": 30 << 30}) == "pve4"
    assert choose("pve1", nodes, shared=True, given_bytes={}, wished="pve3") == "pve3"
    blind = [NodeHeadroom(f"pve{n}", True, 0, 0, 0) for n in (1, 2)]
    assert choose("pve1", blind, shared=True, given_bytes={}) == "pve1"
    assert choose("pve1", blind, shared=True, given_bytes={"pve1": 1}) == "pve2"


def test_the_page_for_admins_has_every_right_and_its_commands_give_just_these() -> None:
    page = Path("docs/envctl/pve.md").read_text(encoding="utf-8")
    tables = {
        "/pool/POOL": rights.POOL,
        "/vms/TEMPLATE": rights.TEMPLATE,
        "/storage/STORAGE": rights.STORAGE,
        "/sdn/zones/ZONE/VNET": rights.NETWORK,
    }
    rows = [f"| `{path}` | `{right}` | {why} |" for path, held in tables.items() for right, why in held.items()]
    assert [
        line for line in page.splitlines() if line.startswith(("| `/pool", "| `/vms", "| `/storage", "| `/sdn"))
    ] == rows
    roles = dict(re.findall(r'^pveum role add (\w+) --privs "([^"]+)"$', page, re.MULTILINE))
    wanted = {
        "EnvctlPool": rights.POOL,
        "EnvctlTemplate": rights.TEMPLATE,
        "EnvctlStorage": rights.STORAGE,
        "EnvctlNetwork": rights.NETWORK,
    }
    assert {role: set(privileges.split()) for role, privileges in roles.items()} == {
        role: set(held) for role, held in wanted.items()
    }
