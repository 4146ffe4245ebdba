"""`s3block import|export` with raw and qcow2 images: what they answer, refuse and leave behind."""

import contextlib
import io
import os
import threading
import uuid
from pathlib import Path

import pytest

from blockdev.qcow2.format import Compression
from blockdev.units import GIB, MIB
from s3core.build import build_store
from s3core.exit_codes import ExitCode
from tests.blockdev.command import Command, command
from tests.blockdev.qcow2.images import MemoryImage, content, flat, qemu_img, raw_file, whole, written
from tests.blockdev.stored_volume import SIZE_BYTES, Stored, store_volume

SIZE = 5 * MIB
RUNS = content(7, SIZE)
DISK = flat(RUNS, SIZE)


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


@pytest.fixture
def vm(tmp_path: Path) -> str:
    return f"memory:{uuid.uuid4().hex}/vm"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_file(tmp_path / "disk.img", RUNS, SIZE)


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(written(RUNS, SIZE, compression=Compression.ZSTD).data)
    return path


def pipe(data: bytes) -> io.TextIOWrapper:
    """Standard input with bytes below."""
    ours, theirs = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(theirs, "wb") as file:
            file.write(data)

    threading.Thread(target=feed).start()
    return io.TextIOWrapper(open(ours, "rb"))


def exported(s3block: Command, vm: str, tmp_path: Path) -> bytes:
    image = tmp_path / f"{uuid.uuid4().hex}.img"
    assert s3block("export", vm, image).code == 0
    return image.read_bytes()


# --- import ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_import(s3block: Command, vm: str, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    image: Path = request.getfixturevalue(kind)
    said = s3block("import", image, vm)
    assert said.code == 0, said.err
    assert "volume vm of 5 MiB imported to memory:" in said.out
    assert "/s)" in said.out
    assert "importing vm: done" in said.err
    assert exported(s3block, vm, tmp_path) == DISK
    assert s3block("check", "--deep", vm).code == 0
    assert "detached: the bucket holds everything" in s3block("info", vm).out


def test_import_with_json_and_another_geometry(s3block: Command, vm: str, raw: Path, tmp_path: Path) -> None:
    options = ("--extent-size", "128K", "--frame-size", "16K", "--sector-size", "4096", "--compression", "none")
    told = s3block("import", raw, vm, *options, "--json").answer
    assert (told["image_bytes"], told["size_bytes"], told["fenced"]) == (SIZE, SIZE, True)
    assert told["mapped_bytes"] == told["mapped_extents"] * 128 * 1024
    assert told["puts"] == told["mapped_extents"] + 7
    info = s3block("info", vm, "--json").answer
    assert (info["extent_bytes"], info["sector_bytes"], info["compression"]) == (128 * 1024, 4096, "none")
    assert exported(s3block, vm, tmp_path) == DISK


def test_import_of_a_stream(s3block: Command, vm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", pipe(DISK))
    assert s3block("import", "-", vm, "--size", SIZE).code == 0
    assert exported(s3block, vm, tmp_path) == DISK


@pytest.mark.parametrize(("size", "said"), [(SIZE - 4096, "goes on after"), (SIZE + 4096, f"ended after {SIZE} of")])
def test_a_stream_of_another_size_makes_no_volume(
    s3block: Command, vm: str, monkeypatch: pytest.MonkeyPatch, size: int, said: str
) -> None:
    monkeypatch.setattr("sys.stdin", pipe(DISK))
    answer = s3block("import", "-", vm, "--size", size)
    assert answer.code == ExitCode.REFUSED
    assert said in answer.err
    assert "`s3block delete` removes what was sent" in answer.err
    assert s3block("info", vm).code == ExitCode.NOT_FOUND
    again = s3block("import", "-", vm, "--size", SIZE)
    assert again.code == ExitCode.REFUSED
    assert "remove them with `s3block delete`" in again.err
    assert s3block("delete", vm, "--yes").code == 0
    monkeypatch.setattr("sys.stdin", pipe(DISK))
    assert s3block("import", "-", vm, "--size", SIZE).code == 0


def test_sizes(s3block: Command, vm: str, tmp_path: Path, raw: Path) -> None:
    """A volume may be larger than the image, and is where the image is no multiple of 4 KiB; it is never smaller."""
    assert s3block("import", raw, vm, "--size", 4 * MIB).code == ExitCode.USAGE
    said = s3block("import", raw, vm, "--size", "8M")
    assert "with zeros behind the image" in said.err
    assert exported(s3block, vm, tmp_path) == DISK + bytes(3 * MIB)
    odd = tmp_path / "odd"
    odd.write_bytes(DISK[: 3 * MIB + 700])
    assert s3block("import", odd, f"{vm}-odd", "--json").answer["size_bytes"] == 3 * MIB + 4096
    assert exported(s3block, f"{vm}-odd", tmp_path) == DISK[: 3 * MIB + 700] + bytes(4096 - 700)
    (tmp_path / "small").write_bytes(b"x")
    assert s3block("import", tmp_path / "small", f"{vm}-small").code == ExitCode.USAGE


def test_holes_and_zeros_cost_nothing(s3block: Command, vm: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(bytes(4 * MIB))
        file.seek(700 * GIB)
        file.write(b"something")
        file.truncate(2048 * GIB)
    told = s3block("import", image, vm, "--json").answer
    assert (told["mapped_extents"], told["puts"]) == (1, 8)
    assert told["stored_bytes"] < 10_000


@pytest.mark.parametrize(
    ("at", "magic", "kind", "cure"),
    [
        (0, b"KDMV", "a VMDK image", "qemu-img convert"),
        (0, b"# Disk DescriptorFile\n", "description of a VMDK image", "qemu-img convert"),
        (0, b"vhdxfile", "a VHDX image", "qemu-img convert"),
        (0, b"conectix", "a VHD image", "qemu-img convert"),
        (SIZE - 512, b"conectix", "a VHD image", "qemu-img convert"),
        (64, b"\x7f\x10\xda\xbe", "a VDI image", "qemu-img convert"),
        (0, b"\x1f\x8b\x08", "packed with gzip", "unpack it first"),
    ],
)
def test_other_formats_are_named(
    s3block: Command, vm: str, tmp_path: Path, at: int, magic: bytes, kind: str, cure: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(at) + magic + bytes(SIZE - at - len(magic)))
    said = s3block("import", image, vm)
    assert said.code == ExitCode.REFUSED
    assert kind in said.err
    assert cure in said.err
    assert s3block("info", vm).code == ExitCode.NOT_FOUND
    assert s3block("import", image, vm, "--format", "raw").code == 0


def test_files_that_cannot_be_imported(s3block: Command, vm: str, tmp_path: Path, raw: Path) -> None:
    assert s3block("import", tmp_path / "none", vm).code == ExitCode.NOT_FOUND
    assert s3block("import", tmp_path, vm).code == ExitCode.REFUSED
    os.mkfifo(tmp_path / "pipe")
    said = s3block("import", tmp_path / "pipe", vm)
    assert said.code == ExitCode.REFUSED
    assert "imported as -, with --size" in said.err
    assert s3block("import", raw, vm, "--format", "vmdk").code == ExitCode.USAGE
    assert s3block("import", raw, vm, "--compression", "lz4").code == ExitCode.USAGE
    assert s3block("import", "-", vm).code == ExitCode.USAGE
    assert s3block("import", "-", vm, "--size", "5M", "--format", "qcow2").code == ExitCode.USAGE
    said = s3block("import", raw, vm, "--format", "qcow2")
    assert said.code == ExitCode.CORRUPT
    assert "not a qcow2 image" in said.err
    assert s3block("import", raw, vm).code == 0
    said = s3block("import", raw, vm)
    assert said.code == ExitCode.REFUSED
    assert "exists already" in said.err


def test_damaged_tables_are_found_before_anything_is_sent(s3block: Command, vm: str, qcow2: Path) -> None:
    qcow2.write_bytes(qcow2.read_bytes()[: qcow2.stat().st_size // 2])
    said = s3block("import", qcow2, vm)
    assert said.code == ExitCode.CORRUPT
    assert "outside the file; is the image whole?" in said.err
    assert list(build_store(vm.removesuffix("/vm")).list()) == []


def test_an_image_that_changes_meanwhile_makes_no_volume(
    s3block: Command, vm: str, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread

    def changing(file: int, length: int, offset: int) -> bytes:
        os.utime(raw, ns=(offset, offset))
        return pread(file, length, offset)

    monkeypatch.setattr("os.pread", changing)
    said = s3block("import", raw, vm)
    assert said.code == ExitCode.REFUSED
    assert "changed while it was imported" in said.err
    assert s3block("info", vm).code == ExitCode.NOT_FOUND


def test_what_is_left_is_said(s3block: Command, vm: str, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(file: int, length: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("blockdev.image_source._LOOK_BYTES", 0)
    monkeypatch.setattr("os.pread", damaged)
    said = s3block("import", raw, vm, "--format", "raw")
    assert said.code == ExitCode.LOCAL
    assert "cannot be read at 0: Input/output error" in said.err
    assert "vm is no volume yet; `s3block delete` removes what was sent" in said.err


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(vm: str, tmp_path: Path) -> Stored:
    return store_volume(build_store(vm.removesuffix("/vm")), tmp_path / "host", name="vm", rounds=5)


@pytest.mark.initiator
@pytest.mark.parametrize("options", [(), ("--compress", "zlib"), ("--compress", "zstd")])
def test_export_to_qcow2(s3block: Command, vm: str, stored: Stored, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "out.qcow2"
    told = s3block("export", vm, image, *options, "--json").answer
    assert (told["format"], told["size_bytes"]) == ("qcow2", SIZE_BYTES)
    assert "No errors were found" in qemu_img("check", "-f", "qcow2", image)
    (tmp_path / "plain").write_bytes(stored.content)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", tmp_path / "plain", image)
    assert s3block("import", image, f"{vm}2").code == 0
    assert exported(s3block, f"{vm}2", tmp_path) == stored.content


def test_export_format_goes_by_name_or_option(s3block: Command, vm: str, stored: Stored, tmp_path: Path) -> None:
    assert s3block("export", vm, tmp_path / "a.img", "--format", "qcow2").code == 0
    assert whole(MemoryImage((tmp_path / "a.img").read_bytes()).reader()) == stored.content
    assert s3block("export", vm, tmp_path / "a.qcow2", "--format", "raw").code == 0
    assert (tmp_path / "a.qcow2").read_bytes() == stored.content
    assert s3block("export", vm, tmp_path / "b", "--format", "vmdk").code == ExitCode.USAGE
    assert s3block("export", vm, "-", "--format", "qcow2").code == ExitCode.USAGE
    assert s3block("export", vm, tmp_path / "b", "--compress", "zstd").code == ExitCode.USAGE
    assert s3block("export", vm, tmp_path / "b.qcow2", "--compress", "lzma").code == ExitCode.USAGE


def test_a_qcow2_export_that_stops_leaves_no_image(
    s3block: Command, vm: str, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, part = tmp_path / "out.qcow2", tmp_path / "out.qcow2.part"
    pwrite, room = os.pwrite, 1_000_000

    def full(file: int, data: bytes, offset: int) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(28, "No space left on device")
        return pwrite(file, data, offset)

    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", full)
        assert s3block("export", vm, image).code == ExitCode.LOCAL
    assert not image.exists()
    assert part.read_bytes()[:4] == bytes(4)
    assert s3block("export", vm, image).code == 0
    assert whole(MemoryImage(image.read_bytes()).reader()) == stored.content
    assert not part.exists()


def test_a_note_of_one_export_is_not_believed_after_another(
    s3block: Command, vm: str, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raw export stops, a qcow2 export to the same name stops, and the raw one is asked for again."""
    image = tmp_path / "image"
    monkeypatch.setattr("blockdev.image.NOTE_BYTES", 1)
    monkeypatch.setattr("blockdev.offline.WINDOW_BYTES", 1)
    replace = os.replace

    def stopped(source: object, target: object) -> None:
        if target == image:
            raise OSError(28, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", stopped)
        assert s3block("export", vm, image).code == ExitCode.LOCAL
        assert (tmp_path / "image.part.json").exists()
        assert s3block("export", vm, image, "--format", "qcow2").code == ExitCode.LOCAL
    assert not (tmp_path / "image.part.json").exists()
    assert s3block("export", vm, image).code == 0
    assert image.read_bytes() == stored.content
