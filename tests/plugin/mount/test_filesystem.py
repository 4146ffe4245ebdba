"""The operations, on a bucket in memory and without FUSE: what Proxmox VE does with files, and what becomes of objects."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.layout import sidecars
from plugin.mount import tree
from plugin.mount.filesystem import ABANDONED_S
from s3core.errors import Denied, OutcomeUnknown, StoreError, Unavailable
from tests.plugin.mount.world import PREFIX, MountWorld

BASE = "dump/vzdump-qemu-100-2026_01_31-02_00_00"
ZSTD = b"\x28\xb5\x2f\xfd"
MIB = 1 << 20


@pytest.fixture
def world(tmp_path: Path) -> Iterator[MountWorld]:
    made = MountWorld(tmp_path)
    yield made
    made.fs.abort()
    made.wait_until_nothing_is_pending()
    made.end()


def size_of(world: MountWorld, path: str) -> int:
    told = world.fs.getattr(path)
    return told.size if isinstance(told, tree.Attributes) else told.st_size


def refused(code: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def test_vzdump_of_a_machine(world: MountWorld) -> None:
    """PVE::VZDump and PVE::VZDump::QemuServer, call by call."""
    data = ZSTD + os.urandom(12 * MIB)
    fs = world.fs
    with refused(errno.ENOENT):
        fs.unlink(f"/{BASE}.vma.dat")
    with refused(errno.ENOENT):
        fs.getattr(f"/{BASE}.tmp")
    fs.mkdir(f"/{BASE}.tmp", 0o755)
    conf = fs.create(f"/{BASE}.tmp/qemu-server.conf", os.O_WRONLY | os.O_CREAT)
    fs.write(conf, b"cores: 2\n", 0)
    world.close(conf)
    assert world.read(f"/{BASE}.tmp/qemu-server.conf") == b"cores: 2\n"

    dat = fs.create(f"/{BASE}.vma.dat", os.O_WRONLY | os.O_CREAT)
    fs.flush(dat)  # the parent's copy of the descriptor is closed
    for at in range(0, len(data), MIB):
        fs.write(dat, data[at : at + MIB], at)
        assert size_of(world, f"/{BASE}.vma.dat") == min(at + MIB, len(data))
    world.close(dat)
    assert world.objects() == []
    assert [one.mode for one in fs.open_files()] == ["waits"]

    fs.rename(f"/{BASE}.vma.dat", f"/{BASE}.vma.zst")
    assert world.object(f"{BASE}.vma.zst") == data
    assert size_of(world, f"/{BASE}.vma.zst") == len(data)
    with refused(errno.ENOENT):
        fs.getattr(f"/{BASE}.vma.dat")
    fs.unlink(f"/{BASE}.tmp/qemu-server.conf")
    fs.rmdir(f"/{BASE}.tmp")
    world.write(f"/{BASE}.log", b"INFO: done\n")
    assert world.objects() == [f"{BASE}.log", f"{BASE}.vma.zst"]
    assert fs.readdir("/dump") == [Path(key).name for key in world.objects()]
    assert fs.open_files() == []


def test_a_failed_backup_leaves_nothing(world: MountWorld) -> None:
    world.write(f"/{BASE}.vma.dat", ZSTD + bytes(12 * MIB))
    world.wait_for_pending(f"{BASE}.vma.zst")
    world.fs.unlink(f"/{BASE}.vma.dat")
    world.wait_until_nothing_is_pending()
    assert world.objects() == []


def test_a_wrong_guess_is_put_right_by_the_rename(world: MountWorld) -> None:
    world.write(f"/{BASE}.vma.dat", ZSTD + bytes(12 * MIB))
    world.fs.rename(f"/{BASE}.vma.dat", "/dump/other.vma.zst")
    assert world.objects() == ["dump/other.vma.zst"]


def test_upload_by_cp(world: MountWorld) -> None:
    data = os.urandom(7 * MIB)
    fh = world.write("/template/iso/a.iso", data, close=False)
    assert world.objects() == []
    world.fs.flush(fh)
    assert world.object("template/iso/a.iso") == data
    world.fs.release(fh)
    assert world.read("/template/iso/a.iso") == data


def test_download_url_reads_what_it_wrote_before_it_renames(world: MountWorld, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    world.write("/template/iso/a.iso.tmp_dwnl.12", data)
    assert world.read("/template/iso/a.iso.tmp_dwnl.12") == data
    assert world.objects() == []
    world.fs.rename("/template/iso/a.iso.tmp_dwnl.12", "/template/iso/a.iso")
    assert world.object("template/iso/a.iso") == data
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_download_with_the_wrong_checksum_leaves_nothing(world: MountWorld, tmp_path: Path) -> None:
    world.write("/template/iso/a.iso.tmp_dwnl.12", b"x" * 100)
    world.fs.unlink("/template/iso/a.iso.tmp_dwnl.12")
    assert (world.objects(), list((tmp_path / "incoming").iterdir())) == ([], [])


def test_notes_by_a_temporary_file_and_the_protected_flag(world: MountWorld) -> None:
    world.put(f"{BASE}.vma.zst", b"backup")
    world.write(f"/{BASE}.vma.zst.notes.tmp.7", "Grüße".encode())
    world.fs.rename(f"/{BASE}.vma.zst.notes.tmp.7", f"/{BASE}.vma.zst.notes")
    assert world.object(f"{BASE}.vma.zst.notes") == "Grüße".encode()
    fh = world.fs.create(f"/{BASE}.vma.zst.protected", os.O_RDONLY | os.O_CREAT)
    world.fs.flush(fh)
    assert world.object(f"{BASE}.vma.zst.protected") == b""
    world.fs.release(fh)


@pytest.mark.parametrize("what", ["unlink", "write", "rename away", "rename over"])
def test_a_protected_backup_stays(world: MountWorld, what: str) -> None:
    world.put(f"{BASE}.vma.zst", b"backup")
    world.put(f"{BASE}.vma.zst.protected", b"")
    world.put("dump/other.vma.zst", b"other")
    with refused(errno.EPERM):
        if what == "unlink":
            world.fs.unlink(f"/{BASE}.vma.zst")
        elif what == "write":
            world.fs.open(f"/{BASE}.vma.zst", os.O_WRONLY | os.O_TRUNC)
        elif what == "rename away":
            world.fs.rename(f"/{BASE}.vma.zst", "/dump/b.vma.zst")
        else:
            world.fs.rename("/dump/other.vma.zst", f"/{BASE}.vma.zst")
    assert world.object(f"{BASE}.vma.zst") == b"backup"


def test_unprotecting_and_deleting(world: MountWorld) -> None:
    world.put(f"{BASE}.vma.zst", b"backup")
    world.put(f"{BASE}.vma.zst.protected", b"")
    world.fs.unlink(f"/{BASE}.vma.zst.protected")
    world.fs.unlink(f"/{BASE}.vma.zst")
    assert world.objects() == []
    assert world.fs.readdir("/dump") == []


def test_replacing_a_file_is_seen_in_the_bucket_when_it_is_whole(world: MountWorld) -> None:
    world.put("template/iso/a.iso", b"old")
    fh = world.fs.open("/template/iso/a.iso", os.O_WRONLY | os.O_TRUNC)
    assert size_of(world, "/template/iso/a.iso") == 0
    world.fs.write(fh, b"newer", 0)
    assert world.object("template/iso/a.iso") == b"old"
    world.close(fh)
    assert world.object("template/iso/a.iso") == b"newer"


def test_an_empty_file_is_put_when_its_last_descriptor_is_closed(world: MountWorld) -> None:
    fh = world.fs.create("/snippets/empty", os.O_WRONLY | os.O_CREAT)
    world.fs.flush(fh)
    assert world.objects() == []
    world.fs.release(fh)
    assert world.object("snippets/empty") == b""


def test_a_shell_that_writes_through_several_processes(world: MountWorld) -> None:
    """`(echo a; echo b) > file`: each closes its copy of the descriptor."""
    fh = world.fs.create("/snippets/a.sh", os.O_WRONLY | os.O_CREAT)
    for at, data in ((0, b"one\n"), (4, b"two\n")):
        world.fs.write(fh, data, at)
        world.fs.flush(fh)
    world.fs.release(fh)
    assert world.object("snippets/a.sh") == b"one\ntwo\n"


def test_writing_on_in_a_large_file_that_was_finished_is_refused(
    world: MountWorld, caplog: pytest.LogCaptureFixture
) -> None:
    fh = world.write("/import/a.raw", bytes(6 * MIB), close=False)
    world.fs.flush(fh)
    with refused(errno.EOPNOTSUPP):
        world.fs.write(fh, b"more", 6 * MIB)
    assert "rename it" in caplog.text
    world.fs.release(fh)
    assert len(world.object("import/a.raw") or b"") == 6 * MIB


def test_small_finished_files_are_changed_and_appended_to(world: MountWorld) -> None:
    world.put("snippets/hook.pl", b"#!/bin/sh\n")
    fh = world.fs.open("/snippets/hook.pl", os.O_WRONLY | os.O_APPEND)
    world.fs.write(fh, b"exit 0\n", 10)
    world.close(fh)
    assert world.object("snippets/hook.pl") == b"#!/bin/sh\nexit 0\n"
    fh = world.fs.open("/snippets/hook.pl", os.O_RDWR)
    world.fs.write(fh, b"X", 0)
    world.fs.truncate("/snippets/hook.pl", 9, fh)
    world.close(fh)
    assert world.object("snippets/hook.pl") == b"X!/bin/sh"
    world.fs.truncate("/snippets/hook.pl", 1)
    assert world.object("snippets/hook.pl") == b"X"
    world.fs.truncate("/snippets/hook.pl", 0)
    assert world.object("snippets/hook.pl") == b""


def test_opening_for_changing_alone_changes_nothing(world: MountWorld) -> None:
    world.put("snippets/a", b"abc")
    before = world.bucket.head("site/snippets/a")
    world.close(world.fs.open("/snippets/a", os.O_RDWR))
    assert world.bucket.head("site/snippets/a") == before


def test_large_finished_files_are_read_only(world: MountWorld) -> None:
    world.put("import/a.raw", bytes(5 * MIB))
    with refused(errno.EROFS):
        world.fs.open("/import/a.raw", os.O_RDWR)
    with refused(errno.EROFS):
        world.fs.truncate("/import/a.raw", 1)


def test_holes_are_zeros_and_rewinding_far_is_refused(world: MountWorld) -> None:
    fh = world.fs.create("/import/a.raw", os.O_WRONLY | os.O_CREAT)
    world.fs.write(fh, b"begin", 0)
    world.fs.write(fh, b"end", 11 * MIB)
    with refused(errno.EOPNOTSUPP):
        world.fs.write(fh, b"again", 0)
    world.fs.truncate("/import/a.raw", 12 * MIB, fh)
    world.close(fh)
    assert world.object("import/a.raw") == b"begin".ljust(11 * MIB, b"\0") + b"end".ljust(MIB, b"\0")


def test_reading_what_is_on_its_way_is_refused_where_it_has_left(world: MountWorld) -> None:
    fh = world.write(f"/{BASE}.vma.dat", ZSTD + bytes(12 * MIB), close=False)
    reading = world.fs.open(f"/{BASE}.vma.dat", os.O_RDONLY)
    assert world.fs.read(reading, 4, 0) == ZSTD
    with refused(errno.EBUSY):
        world.fs.read(reading, MIB, 0)
    world.fs.release(reading)
    world.close(fh)


def test_a_backup_that_another_host_protected_is_not_replaced(world: MountWorld) -> None:
    """This host has not listed the bucket since."""
    world.put(f"{BASE}.vma.zst", b"good")
    world.put("dump/vzdump-qemu-101-2026_01_31-02_00_00.vma.zst", b"other")
    world.bucket.put(f"{PREFIX}{BASE}.vma.zst.protected", b"")
    with refused(errno.EPERM):
        world.write(f"/{BASE}.vma.zst", b"bad")
    world.write(f"/{BASE}.vma.dat", ZSTD)
    for path in (f"/{BASE}.vma.dat", "/dump/vzdump-qemu-101-2026_01_31-02_00_00.vma.zst"):
        with refused(errno.EPERM):
            world.fs.rename(path, f"/{BASE}.vma.zst")
    assert world.object(f"{BASE}.vma.zst") == b"good"


def test_what_another_host_replaced_is_not_read_in_the_size_it_had(world: MountWorld) -> None:
    """The kernel reads up to the size it was shown: after ESTALE it asks again, and opens once more."""
    world.put("snippets/a", b"old")
    for new, flags in ((b"longer than that", os.O_RDONLY), (b"short again", os.O_WRONLY | os.O_APPEND)):
        world.bucket.put(f"{PREFIX}snippets/a", new)
        assert size_of(world, "/snippets/a") != len(new)
        with refused(errno.ESTALE):
            world.fs.open("/snippets/a", flags)
        assert size_of(world, "/snippets/a") == len(new)
        world.close(world.fs.open("/snippets/a", flags))
    assert world.fs.open_files() == []


def test_what_another_host_made_is_not_replaced_unseen(world: MountWorld) -> None:
    world.bucket.put(f"{PREFIX}snippets/a", b"new")
    for flags in (os.O_APPEND, os.O_EXCL):
        world.catalogue.deleted(f"{PREFIX}snippets/a")
        with refused(errno.ESTALE):
            world.fs.create("/snippets/a", os.O_WRONLY | flags)
        assert size_of(world, "/snippets/a") == 3
    with refused(errno.EEXIST):
        world.fs.create("/snippets/a", os.O_WRONLY | os.O_EXCL)
    assert world.object("snippets/a") == b"new"


def test_renaming_objects(world: MountWorld) -> None:
    large = os.urandom(5 * MIB)
    world.put("template/iso/a.iso", large)
    world.put("snippets/a", b"small")
    world.fs.rename("/template/iso/a.iso", "/template/iso/b.iso")
    world.fs.rename("/snippets/a", "/snippets/b")
    assert world.objects() == ["snippets/b", "template/iso/b.iso"]
    assert world.read("/template/iso/b.iso") == large
    with refused(errno.ENOENT):
        world.fs.rename("/snippets/a", "/snippets/c")


def test_what_lies_beside_a_backup_goes_with_its_name(world: MountWorld) -> None:
    """Deleting takes the sidecars, as Proxmox VE does: what people wrote there must not go with a rename."""
    new = BASE.replace("-100-", "-101-")

    def delete(path: str) -> tuple[str, ...]:
        for one in (path, *sidecars(path)):
            world.bucket.delete(f"{PREFIX}{one}")
        return sidecars(path)

    fs = world.again(delete=delete)
    world.put(f"{BASE}.vma.zst", b"backup")
    world.put(f"{BASE}.vma.zst.notes", b"the last good one")
    world.put(f"{BASE}.log", b"INFO: done")
    fs.rename(f"/{BASE}.vma.zst", f"/{new}.vma.zst")
    assert world.objects() == [f"{new}.log", f"{new}.vma.zst", f"{new}.vma.zst.notes"]
    assert world.object(f"{new}.vma.zst.notes") == b"the last good one"


def test_a_file_is_renamed_between_its_close_and_its_release(world: MountWorld) -> None:
    fh = world.write("/template/iso/a.iso", b"data", close=False)
    world.fs.flush(fh)
    world.fs.rename("/template/iso/a.iso", "/template/iso/b.iso")
    world.fs.release(fh)
    assert world.objects() == ["template/iso/b.iso"]
    assert world.fs.readdir("/template/iso") == ["b.iso"]


def test_a_file_is_read_and_written_between_its_close_and_its_release(world: MountWorld) -> None:
    data = os.urandom(3 * MIB)
    first = world.write("/import/a.raw", data, close=False)
    world.fs.flush(first)
    assert world.read("/import/a.raw") == data
    second = world.fs.open("/import/a.raw", os.O_WRONLY | os.O_APPEND)
    world.fs.write(second, b"end", 3 * MIB)
    world.fs.release(first)
    assert size_of(world, "/import/a.raw") == 3 * MIB + 3
    world.close(second)
    assert world.object("import/a.raw") == data + b"end"
    assert world.fs.open_files() == []


def test_temporary_to_temporary_then_final(world: MountWorld) -> None:
    world.write("/template/iso/a.iso.part", b"data")
    world.fs.rename("/template/iso/a.iso.part", "/template/iso/b.iso.part")
    assert world.objects() == []
    world.fs.rename("/template/iso/b.iso.part", "/template/iso/b.iso")
    assert (world.objects(), world.fs.readdir("/template/iso")) == (["template/iso/b.iso"], ["b.iso"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("put: 503", key="k"), errno.EIO),
        (OutcomeUnknown("put: timed out", key="k"), errno.EIO),
        (Denied("put: 403 AccessDenied", key="k"), errno.EACCES),
        (Denied("PUT: 403 QuotaExceeded", key="k", hint="the store or the bucket's quota is full"), errno.EDQUOT),
        (OutcomeUnknown("PUT: 507", key="k", hint="the store or the bucket's quota is full"), errno.ENOSPC),
    ],
)
def test_what_the_store_refuses_fails_the_close_and_the_rename(
    world: MountWorld, error: StoreError, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.hurry()
    world.faults.errors["put"] = error
    with refused(code):
        world.write("/template/iso/a.iso", b"data")
    assert "template/iso/a.iso" in caplog.text
    with refused(errno.ENOENT):
        world.fs.getattr("/template/iso/a.iso")
    world.write(f"/{BASE}.vma.dat", ZSTD)
    for _ in range(2):  # and again: an error is kept
        with refused(code):
            world.fs.rename(f"/{BASE}.vma.dat", f"/{BASE}.vma.zst")
    world.fs.unlink(f"/{BASE}.vma.dat")
    assert (world.objects(), world.fs.open_files()) == ([], [])


def test_a_part_that_fails_fails_every_flush_write_and_rename_after_it(world: MountWorld) -> None:
    world.faults.errors["part"] = Denied("part: 403")
    fh = world.write(f"/{BASE}.vma.dat", ZSTD + bytes(8 * MIB), close=False)
    deadline, known = time.monotonic() + 10, False
    while not known and time.monotonic() < deadline:
        try:
            world.fs.fsync(fh)
        except OSError as error:
            known = error.errno == errno.EACCES
    assert known
    for _ in range(2):
        with refused(errno.EACCES):
            world.fs.flush(fh)
        with refused(errno.EACCES):
            world.fs.write(fh, b"more", 9 * MIB)
    world.fs.release(fh)
    with refused(errno.EACCES):
        world.fs.rename(f"/{BASE}.vma.dat", f"/{BASE}.vma.zst")


def test_a_delete_that_fails_says_so_and_keeps_the_file(world: MountWorld) -> None:
    world.put("template/iso/a.iso", b"x")
    world.faults.errors["delete"] = Denied("delete: 403", key="k")
    with refused(errno.EACCES):
        world.fs.unlink("/template/iso/a.iso")
    assert size_of(world, "/template/iso/a.iso") == 1


def test_an_object_that_was_replaced_while_open_is_never_a_mixture(world: MountWorld) -> None:
    world.put("template/iso/a.iso", b"x" * 40 * MIB)
    fh = world.fs.open("/template/iso/a.iso", os.O_RDONLY)
    assert world.fs.read(fh, 10, 0) == b"x" * 10
    world.put("template/iso/a.iso", b"y" * 40 * MIB)
    with refused(errno.ESTALE):
        world.fs.read(fh, 10, 39 * MIB)
    world.fs.release(fh)


def test_an_object_that_is_gone_is_not_opened_and_not_shown_any_more(world: MountWorld) -> None:
    world.put("template/iso/a.iso", b"x")
    world.bucket.delete("site/template/iso/a.iso")
    with refused(errno.ENOENT):
        world.fs.open("/template/iso/a.iso", os.O_RDONLY)
    assert world.fs.readdir("/template/iso") == []


@pytest.mark.parametrize("path", ["/x", "/dump/sub", "/template/x", "/.bucketworks", "/images"])
def test_other_directories_cannot_be_made(world: MountWorld, path: str) -> None:
    with refused(errno.EPERM):
        world.fs.mkdir(path, 0o755)


@pytest.mark.parametrize("path", ["/dump", "/template", "/template/iso", "/template/cache", "/snippets", "/import"])
def test_the_layout_is_there_and_stays(world: MountWorld, path: str) -> None:
    told = world.fs.getattr(path)
    assert isinstance(told, tree.Attributes)
    assert stat.S_ISDIR(told.mode)
    with refused(errno.EEXIST):
        world.fs.mkdir(path, 0o755)
    with refused(errno.EPERM):
        world.fs.rmdir(path)
    with refused(errno.EPERM):
        world.fs.rename(path, f"{path}x")


def test_what_has_no_meaning_in_a_bucket(world: MountWorld) -> None:
    world.put("dump/a.vma", b"x")
    world.fs.set_mode("/dump/a.vma", 0o600)
    world.fs.set_owner("/dump/a.vma", 1, 1)
    world.fs.set_times("/dump/a.vma", (1, 1))
    with refused(errno.EPERM):
        world.fs.link("/dump/b.vma")
    with refused(errno.EPERM):
        world.fs.create("/readme.txt", os.O_WRONLY | os.O_CREAT)


def test_scratch_directories_are_this_hosts(world: MountWorld, tmp_path: Path) -> None:
    root = f"/{BASE}.tmp"
    world.fs.mkdir(root, 0o700)
    world.fs.mkdir(f"{root}/etc", 0o755)
    fh = world.fs.create(f"{root}/etc/a", os.O_RDWR | os.O_CREAT, 0o640)
    world.fs.write(fh, b"0123456789", 0)
    world.fs.write(fh, b"x", 2)
    world.fs.truncate(f"{root}/etc/a", 5, fh)
    assert world.fs.read(fh, 10, 0) == b"01x34"
    world.close(fh)
    world.fs.rename(f"{root}/etc/a", f"{root}/etc/b")
    assert world.fs.readdir(root) == ["etc"]
    assert Path(f"{BASE}.tmp").name in world.fs.readdir("/dump")
    with refused(errno.EXDEV):
        world.fs.rename(f"{root}/etc/b", "/dump/b.vma")
    with refused(errno.ENOTEMPTY):
        world.fs.rmdir(root)
    assert world.objects() == []


def test_df_is_from_the_catalogue(tmp_path: Path) -> None:
    world = MountWorld(tmp_path, quota=1000)
    world.put("dump/a.vma", b"x" * 300)
    assert world.fs.statfs() == tree.Space(1000, 700)


def test_while_nothing_is_known_nothing_is_said_to_be_empty(world: MountWorld) -> None:
    world.fresh.known = False
    with refused(errno.EIO):
        world.fs.readdir("/dump")
    with refused(errno.EIO):
        world.fs.getattr("/dump/a.vma")
    assert world.fs.readdir("/") == ["dump", "import", "snippets", "template"]
    world.write(f"/{BASE}.vma.dat", ZSTD)


def test_draining_refuses_what_is_new_and_lets_the_rest_end(world: MountWorld) -> None:
    fh = world.write("/template/iso/a.iso", b"data", close=False)
    world.fs.drain()
    with refused(errno.ESHUTDOWN):
        world.fs.create("/template/iso/b.iso", os.O_WRONLY | os.O_CREAT)
    world.fs.write(fh, b"more", 4)
    world.close(fh)
    assert world.object("template/iso/a.iso") == b"datamore"
    assert world.fs.open_files() == []


def test_a_file_whose_writer_died_is_forgotten_after_a_day(world: MountWorld) -> None:
    world.write(f"/{BASE}.vma.dat", ZSTD)
    assert world.fs.forget_abandoned() == []
    world.now += ABANDONED_S + 1
    assert world.fs.forget_abandoned() == [f"{BASE}.vma.dat"]
    assert world.fs.open_files() == []
    with refused(errno.ENOENT):
        world.fs.getattr(f"/{BASE}.vma.dat")
