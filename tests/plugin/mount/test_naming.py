"""Names on the mount, against what vzdump, download-url and OCI pull really use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.mount.naming import DIRECTORY_PATHS, Kind, place_of, predict

BASE = "dump/vzdump-qemu-100-2026_01_31-02_00_00"
LXC = "dump/vzdump-lxc-101-2026_01_31-02_00_00"
ZSTD, GZIP, LZOP = b"\x28\xb5\x2f\xfd....", b"\x1f\x8b\x08....", b"\x89LZO\x00\r\n\x1a\n...."
VMA = b"VMA\x00\x00\x00\x00\x01"
TAR = b"./".ljust(257, b"\x00") + b"ustar\x0000"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", Kind.DIRECTORY),
        ("/template", Kind.DIRECTORY),
        ("/template/iso", Kind.DIRECTORY),
        ("/dump", Kind.DIRECTORY),
        (f"/{BASE}.vma.zst", Kind.FINAL),
        (f"/{BASE}.vma.zst.notes", Kind.FINAL),
        (f"/{BASE}.vma.zst.protected", Kind.FINAL),
        (f"/{BASE}.log", Kind.FINAL),
        (f"/{BASE}.vma.dat", Kind.ON_ITS_WAY),
        (f"/{LXC}.tar.dat", Kind.ON_ITS_WAY),
        (f"/{BASE}.dat", Kind.ON_ITS_WAY),
        (f"/{BASE}.tmp", Kind.SCRATCH),
        (f"/{BASE}.tmp/qemu-server.conf", Kind.SCRATCH),
        ("/dump/vzdumptmp4711_101/etc/vzdump/pct.conf", Kind.SCRATCH),
        (f"/{BASE}.vma.zst.tmp", Kind.ON_ITS_WAY),
        ("/template/iso/debian.iso", Kind.FINAL),
        ("/template/iso/debian.iso.tmp_dwnl.4711", Kind.READ_AGAIN),
        ("/template/iso/debian.iso.tmp_dcom.4711", Kind.READ_AGAIN),
        ("/template/cache/alpine.tar.tmp.4711", Kind.ON_ITS_WAY),
        ("/template/iso/.debian.iso.Ab3dE6", Kind.ON_ITS_WAY),
        ("/template/iso/a.dat", Kind.FINAL),
        ("/snippets/hook.pl", Kind.FINAL),
        ("/import/vm.ova", Kind.FINAL),
        ("/x", Kind.NONE),
        ("/template/x", Kind.NONE),
        ("/.bucketworks", Kind.NONE),
        ("/.bucketworks/identity", Kind.NONE),
        ("/dump/sub/file", Kind.NONE),
        ("/dump/a\x01b", Kind.NONE),
        ("/dump/\udcff", Kind.NONE),
        ("/dump/" + "x" * 256, Kind.NONE),
        (f"/{BASE}.tmp/../x", Kind.NONE),
    ],
)
def test_what_a_path_is(path: str, kind: Kind) -> None:
    assert place_of(path).kind is kind


@pytest.mark.parametrize(
    ("path", "head", "final"),
    [
        (f"{BASE}.vma.dat", ZSTD, f"{BASE}.vma.zst"),
        (f"{BASE}.vma.dat", GZIP, f"{BASE}.vma.gz"),
        (f"{BASE}.vma.dat", LZOP, f"{BASE}.vma.lzo"),
        (f"{BASE}.dat", VMA, f"{BASE}.vma"),
        (f"{BASE}.dat", b"", f"{BASE}.vma"),
        (f"{LXC}.tar.dat", ZSTD, f"{LXC}.tar.zst"),
        (f"{LXC}.dat", TAR, f"{LXC}.tar"),
        (f"{LXC}.dat", b"?" * 512, f"{LXC}.tar"),
        ("template/iso/a.iso.tmp_dwnl.12", b"", "template/iso/a.iso"),
        ("template/iso/a.iso.tmp_dcom.12", GZIP, "template/iso/a.iso"),
        ("template/cache/a.tar.tmp.12", TAR, "template/cache/a.tar"),
        (f"{BASE}.vma.zst.notes.tmp.12", b"note", f"{BASE}.vma.zst.notes"),
        ("template/iso/.a.iso.Ab3dE6", b"", "template/iso/a.iso"),
        ("template/iso/a.iso", GZIP, "template/iso/a.iso"),
    ],
)
def test_what_it_will_be_called(path: str, head: bytes, final: str) -> None:
    assert predict(path, head) == final


@given(st.text(min_size=1, max_size=40), st.binary(max_size=600))
def test_any_name_has_one_kind_and_a_prediction_in_its_own_directory(name: str, head: bytes) -> None:
    for directory in DIRECTORY_PATHS:
        place = place_of(f"/{directory}/{name}")
        if place.kind in (Kind.FINAL, Kind.ON_ITS_WAY, Kind.READ_AGAIN):
            assert predict(place.path, head).rpartition("/")[0] == place.directory
