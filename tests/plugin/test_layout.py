"""Names of volumes are those of Proxmox VE's own directory storage (PVE::Storage::Plugin, get_subdir and parse_volname)."""

import pytest

from plugin import layout


@pytest.mark.parametrize(
    ("volname", "key", "format", "vmid", "subtype"),
    [
        ("backup/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst", "dump/", "vma.zst", 100, "qemu"),
        ("backup/vzdump-lxc-101-2026_01_02-03_04_05.tar.gz", "dump/", "tar.gz", 101, "lxc"),
        ("backup/vzdump-openvz-102-2026_01_02-03_04_05.tgz", "dump/", "tgz", 102, "lxc"),
        ("backup/mine.vma", "dump/", "vma", 0, ""),
        ("iso/debian 12.ISO", "template/iso/", "iso", 0, ""),
        ("iso/disk.img", "template/iso/", "img", 0, ""),
        ("vztmpl/debian-12.tar.zst", "template/cache/", "tzst", 0, ""),
        ("vztmpl/plain.tar", "template/cache/", "tar", 0, ""),
        ("snippets/hook.pl", "snippets/", "snippet", 0, ""),
        ("import/appliance.ova", "import/", "ova", 0, ""),
    ],
)
def test_a_volume_is_an_object_and_back(volname: str, key: str, format: str, vmid: int, subtype: str) -> None:
    volume = layout.parse_volname(volname)
    assert volume.key == key + volname.partition("/")[2]
    assert (volume.format, volume.vmid, volume.subtype) == (format, vmid, subtype)
    assert layout.volume_of_key(volume.key) == volume
    assert volume.volname == volname


@pytest.mark.parametrize(
    "volname",
    ["", "iso", "iso/", "iso/../x.iso", "iso/a\n.iso", "iso/a.txt", "backup/x.zip", "images/100/a.raw", "iso/.."],
)
def test_what_is_no_volume_is_refused(volname: str) -> None:
    with pytest.raises(ValueError, match=r"volume|name"):
        layout.parse_volname(volname)


def test_sidecars_belong_to_their_backup_and_are_no_volumes() -> None:
    key = "dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
    own = layout.sidecars(key)
    assert layout.log_key(key) == "dump/vzdump-qemu-100-2026_01_02-03_04_05.log" in own
    assert {layout.owner_of(one) for one in own if not one.endswith(".log")} == {key}
    assert all(layout.volume_of_key(one) is None for one in own)
    assert layout.owner_of(layout.index_key("template/iso/a.iso")) == "template/iso/a.iso"
    assert layout.owner_of(key) is None
