"""Names for archives that vzdump did not make: PVE's own form, and the same each time."""

import os
import time

import pytest

from plugin.backup_name import backup_name
from plugin.layout import parse_volname

NOON = time.mktime((2026, 1, 31, 12, 5, 6, 0, 0, -1))


@pytest.mark.parametrize(
    ("kind", "compression", "name"),
    [
        ("vma", "zstd", "vzdump-qemu-100-2026_01_31-12_05_06.vma.zst"),
        ("vma", "", "vzdump-qemu-100-2026_01_31-12_05_06.vma"),
        ("vma", "lzo", "vzdump-qemu-100-2026_01_31-12_05_06.vma.lzo"),
        ("tar", "gzip", "vzdump-lxc-100-2026_01_31-12_05_06.tar.gz"),
    ],
)
def test_the_first_bytes_tell_the_name(kind: str, compression: str, name: str) -> None:
    made = backup_name("whatever.bin", 100, kind, compression, NOON)
    assert made == name
    volume = parse_volname(f"backup/{made}")
    assert (volume.vmid, volume.made) == (100, (2026, 1, 31, 12, 5, 6))
    assert backup_name(made, 100, "", "", 0.0) == made


def test_a_name_of_vzdump_stays_and_must_be_of_that_guest() -> None:
    name = "vzdump-lxc-205-2025_12_01-00_00_00.tar.zst"
    assert backup_name(name, 205, "tar", "zstd", NOON) == name
    with pytest.raises(ValueError, match="of guest 205 by its name, not of 206"):
        backup_name(name, 206, "tar", "zstd", NOON)


def test_what_proxmox_cannot_restore_is_no_backup() -> None:
    with pytest.raises(ValueError, match="neither a VMA nor a tar archive"):
        backup_name("disk.qcow2", 100, "", "", NOON)


def test_the_time_is_the_nodes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vzdump writes it, so that both sort together."""
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert "1970_01_01-09_00_00" in backup_name("x", 100, "vma", "", 0.0)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert os.environ.get("TZ") != "Asia/Tokyo"
