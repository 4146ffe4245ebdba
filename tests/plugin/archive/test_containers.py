"""Backups of containers: what GNU tar writes with vzdump's options."""

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from plugin.archive import tar
from plugin.archive.errors import BadArchive, NoIndex, NotInArchive
from plugin.archive.indexer import name_of
from plugin.archive.streams import BytesRanges
from plugin.archive.view import ArchiveView
from tests.plugin.archive import writers
from tests.plugin.archive.test_machines import Counting, index_of, seekable

CONFIG = "arch: amd64\nhostname: c1\nrootfs: local-lvm:vm-101-disk-0,size=8G\n"
LONG = f"{'d' * 90}/{'e' * 90}/{'f' * 120} \xe9"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration in `c`, a root in `r`."""
    at = tmp_path_factory.mktemp("guest")
    (at / "c/etc/vzdump").mkdir(parents=True)
    (at / "c/etc/vzdump/pct.conf").write_text(CONFIG)
    root = at / "r"
    (root / "etc/apt").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0\n" * 3000)
    (root / "etc/hard").hardlink_to(root / "etc/passwd")
    (root / "etc/link").symlink_to("passwd")
    (root / "etc/apt/sources").write_text("deb\n")
    (root / "empty").touch()
    os.mkfifo(root / "pipe")
    (root / LONG).parent.mkdir(parents=True)
    (root / LONG).write_text("long")
    dice = random.Random(1)
    with (root / "sparse").open("wb") as out:
        for number in range(30):
            out.seek(number << 20)
            out.write(dice.randbytes(5000))
        out.truncate(40 << 20)
    (root / "z").write_bytes(dice.randbytes(3 << 20))
    return at


def vzdump(guest: Path, *options: str) -> bytes:
    return writers.tool(
        *("tar", "cf", "-", "--one-file-system", "-p", "--numeric-owner", *options),
        *(f"--directory={guest}/c", "./etc/vzdump/pct.conf", f"--directory={guest}/r", "--sort=name", "./"),
    )


FORMS = {
    "vzdump": ("--format=posix", "--sparse", "--acls", "--xattrs", "--xattrs-include=user.*"),
    "gnu": ("--format=gnu", "--sparse"),
    "pax-0.0": ("--format=posix", "--sparse", "--sparse-version=0.0"),
    "pax-0.1": ("--format=posix", "--sparse", "--sparse-version=0.1"),
    "dense": ("--format=gnu",),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [511, 1 << 20])
def test_an_index_gives_list_and_files(guest: Path, form: str, step: int) -> None:
    data = vzdump(guest, *FORMS[form])
    index = index_of(data, step)
    assert (index.facts.kind, index.facts.complete, index.facts.note) == ("tar", True, "")
    view = ArchiveView(BytesRanges(data), index)
    assert view.guest_config() == CONFIG
    with tarfile.open(fileobj=io.BytesIO(data)) as known:
        expected = {name_of(each.name): each for each in known}
    found = {name_of(member.path): member for member in view.members()}
    assert list(found) == list(expected)
    for name, member in found.items():
        its = expected[name]
        assert (member.mode, member.uid, member.gid, member.mtime) == (its.mode, its.uid, its.gid, int(its.mtime))
        assert (member.kind, member.link) == (_kind(its), its.linkname)
        assert member.size == (its.size if its.isreg() else 0)
        if member.kind == "file":
            out = bytearray(member.size)
            for offset, piece in view.extract(member):
                out[offset : offset + len(piece)] = piece
            held = guest / "r" / name
            assert out == (held.read_bytes() if held.exists() else CONFIG.encode())
    assert {name_of(each.path) for each in view.ls("etc")} >= {"etc/hard", "etc/link", "etc/passwd", "etc/apt"}
    assert {name_of(each.path) for each in view.ls("/etc/apt/", deep=True)} == {"etc/apt/sources"}
    assert [name_of(each.path) for each in view.ls("empty")] == ["empty"]


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {tarfile.LNKTYPE: "hardlink", tarfile.SYMTYPE: "symlink", tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo"}
    return kinds.get(info.type, "file")


def test_a_file_costs_about_itself_where_that_can_be(guest: Path) -> None:
    plain = vzdump(guest, "--format=posix", "--sparse")
    for data, most in ((plain, 300_000), (seekable(plain), 2_300_000)):
        ranges = Counting(data)
        view = ArchiveView(ranges, index_of(data))
        member = view.member("/etc/hard")
        assert b"".join(piece for _, piece in view.extract(member)) == (guest / "r/etc/passwd").read_bytes()
        assert ranges.fetched < most
        part = b"".join(piece for _, piece in view.extract(view.member("z"), 3_000_000))
        assert part == (guest / "r/z").read_bytes()[3_000_000:]


@pytest.mark.parametrize("tool", [("zstd", "-c"), ("gzip", "-c"), ("lzop", "-c")])
def test_compressed_ones_too(guest: Path, tool: tuple[str, ...]) -> None:
    data = writers.tool(*tool, data=vzdump(guest, "--format=posix", "--sparse"))
    assert ArchiveView(BytesRanges(data)).guest_config() == CONFIG
    view = ArchiveView(BytesRanges(data), index_of(data, deep=True))
    assert b"".join(piece for _, piece in view.extract(view.member("z"))) == (guest / "r/z").read_bytes()
    assert view.plain.cost(0, 1) > 0


def test_a_subtree_is_a_tar_archive(guest: Path, tmp_path: Path) -> None:
    data = vzdump(guest, *FORMS["vzdump"])
    view = ArchiveView(BytesRanges(data), index_of(data))
    for path in ("etc", ""):
        with tarfile.open(fileobj=io.BytesIO(b"".join(view.subtree(path)))) as cut:
            names = [name_of(each.name) for each in cut]
        assert names == [
            name
            for name in (name_of(each.path) for each in view.members())
            if not path or f"{name}/".startswith(f"{path}/")
        ]
    with pytest.raises(NotInArchive):
        list(view.subtree("et"))


def test_attributes_are_seen(guest: Path) -> None:
    file = guest / "r/etc/passwd"
    try:
        os.setxattr(file, "user.note", b"a\n\0b")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    members = list(tar.Scanner().feed(vzdump(guest, *FORMS["vzdump"])))
    held = [each.attributes for each in members if each.attributes]
    assert {"SCHILY.xattr.user.note": b"a\n\0b"} in held


def test_what_is_no_file_is_not_extracted(guest: Path) -> None:
    data = vzdump(guest, *FORMS["vzdump"])
    view = ArchiveView(BytesRanges(data), index_of(data))
    with pytest.raises(NotInArchive, match="symbolic link to passwd"):
        list(view.extract(view.member("etc/link")))
    with pytest.raises(NotInArchive, match="a dir"):
        list(view.extract(view.member("etc")))
    with pytest.raises(NotInArchive, match="no such file"):
        view.member("etc/shadow")
    with pytest.raises(NotInArchive):
        list(view.ls("nowhere"))
    with pytest.raises(NoIndex):
        next(ArchiveView(BytesRanges(data)).ls())


def test_a_cut_or_damaged_archive_is_told(guest: Path) -> None:
    data = vzdump(guest, "--format=gnu")
    assert index_of(data[:30_000]).facts.note == "the archive is cut short"
    damaged = bytearray(data)
    damaged[1024 + 20] ^= 1
    index = index_of(bytes(damaged))
    assert "checksum" in index.facts.note
    assert index.facts.configs == (("etc/vzdump/pct.conf", CONFIG.encode()),)


def entry(flag: bytes, size: int, name: bytes = b"f", **fields: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size
    block[156:157] = flag
    block[257:265] = b"ustar\x0000"
    for at, value in fields.items():
        place = int(at[2:])
        block[place : place + len(value)] = value
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (entry(b"x", 5 << 20), "more than is believed"),
        (entry(b"L", 8 << 30), "more than is believed"),
        (entry(b"0", 0, at124=b"notanumber\0 "), "is none"),
        (entry(b"x", 10) + b"99 a=b\n".ljust(512, b"\0"), "PAX record"),
        (entry(b"x", 12) + b"12 size=-5\n\n".ljust(512, b"\0") + entry(b"0", 0), "none"),
        (entry(b"S", 512, at386=b"%011o\0%011o\0" % (0, 1 << 30), at483=b"00000001000\0"), "sparse map"),
        (entry(b"S", 512, at386=b"%011o\0%011o\0" % (9, 9) * 2, at483=b"00000001000\0"), "out of order"),
        (
            entry(b"x", 47)
            + b"22 GNU.sparse.major=1\n25 GNU.sparse.realsize=9\n".ljust(512, b"\0")
            + entry(b"0", 1024)
            + b"9999999999999\n".ljust(512, b"0"),
            "more than is believed",
        ),
        (
            entry(b"x", 47)
            + b"22 GNU.sparse.major=1\n25 GNU.sparse.realsize=9\n".ljust(512, b"\0")
            + entry(b"0", 512)
            + b"900\n0\n1\n".ljust(512, b"\n"),
            "none",
        ),
    ],
)
def test_headers_that_lie_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadArchive, match=said):
        list(tar.Scanner().feed(data + bytes(2048)))


def test_an_endless_old_sparse_map_is_refused() -> None:
    scanner = tar.Scanner()
    list(scanner.feed(entry(b"S", 512, at386=b"%011o\0%011o\0" % (0, 1) * 4, at482=b"\1", at483=b"77777777777\0")))
    block = (b"%011o\0%011o\0" % (1, 1) * 21).ljust(504) + b"\1" + bytes(7)
    with pytest.raises(BadArchive, match="does not end"):
        list(scanner.feed(block * 50_000))
