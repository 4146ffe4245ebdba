"""What goes wrong at the command line and around it: a clear message, the right exit code, and nothing lost.

Exit codes are those of docs/exit-codes.md. Every message says what happened, to what; none is a traceback.
"""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3core.exit_codes import ExitCode
from tests.servers.radosgw import Radosgw
from tests.system.conftest import Place, make_bucket, write_endpoint
from tests.system.machine import MIB, Answer, Server, ServerEnded, create, qemu_io, read_back, read_part, s3block, tool

pytestmark = [pytest.mark.slow]

FRAME = 65536
NEVER = ("--commit-interval", "1h", "--commit-bytes", "1G")
"""Commits nothing by itself: what is written stays in the journal alone."""


def refused(answer: Answer, code: ExitCode, *words: str) -> None:
    assert answer.code == code, answer
    assert "Traceback" not in answer.err
    assert answer.err.startswith("error: ") or "\nerror: " in answer.err, answer.err
    for word in words:
        assert word in answer.err, answer.err


def refused_serve(server: Server, code: ExitCode, *words: str) -> str:
    """What it said on standard error."""
    with pytest.raises(ServerEnded) as ended:
        server.start()
    refused(ended.value.answer, code, *words)
    assert ended.value.answer.out == ""
    return ended.value.answer.err


# --- the command line ------------------------------------------------------------------------------------------------


def test_an_unknown_option(file_place: Place) -> None:
    refused(s3block("create", file_place.volume, "--sise", "1G"), ExitCode.USAGE, "--sise", "--size")


@pytest.mark.parametrize("size", ["10Q", "1000", "0", "-1M", "4097", "", "1.5.5G"])
def test_a_bad_size(file_place: Place, size: str, tmp_path: Path) -> None:
    refused(s3block("create", file_place.volume, f"--size={size}"), ExitCode.USAGE)
    assert not list(tmp_path.glob("store/objects/v1/vm/*"))


def test_no_size(file_place: Place) -> None:
    refused(s3block("create", file_place.volume), ExitCode.USAGE, "--size 10G")


def test_a_bad_place() -> None:
    refused(s3block("create", "http://server/bucket/vm", "--size", "1G"), ExitCode.USAGE, "http://server/bucket/vm")


def test_a_volume_that_is_not_there(file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume)
    server = Server(tmp_path, file_place.volume.replace("/vm", "/vn"))
    refused_serve(server, ExitCode.NOT_FOUND, "there is no volume vn", "s3block list")


def test_a_volume_that_is_there_already(file_place: Place) -> None:
    create(file_place.volume)
    before = s3block("info", file_place.volume, "--json").out
    refused(s3block("create", file_place.volume, "--size", "1G"), ExitCode.REFUSED, "vm")
    assert s3block("info", file_place.volume, "--json").out == before


# --- the bucket ------------------------------------------------------------------------------------------------------


@pytest.mark.rgw
class TestBucket:
    def test_wrong_credentials(self, radosgw: Radosgw, rgw_place: Place, tmp_path: Path) -> None:
        create(rgw_place.volume, config=rgw_place.config)
        config = write_endpoint(radosgw, tmp_path, secret="not the secret")
        refused(s3block("info", rgw_place.volume, config=config), ExitCode.DENIED)
        refused_serve(Server(tmp_path, rgw_place.volume, config=config), ExitCode.DENIED, str(tmp_path / "keys"))
        other = rgw_place.volume.replace("/vm", "/other")
        refused(s3block("create", other, "--size", "1G", config=config), ExitCode.DENIED)

    def test_no_credentials(self, rgw_place: Place, tmp_path: Path) -> None:
        (tmp_path / "keys").unlink()
        answer = s3block("create", rgw_place.volume, "--size", "1G", config=rgw_place.config)
        refused(answer, ExitCode.CONFIGURATION, str(tmp_path / "keys"))

    def test_another_certificate(self, radosgw: Radosgw, rgw_place: Place, tmp_path: Path) -> None:
        config = write_endpoint(radosgw, tmp_path, fingerprint="AB:" * 31 + "AB")
        answer = s3block("create", rgw_place.volume, "--size", "1G", config=config)
        refused(answer, ExitCode.CONFIGURATION, "fingerprint", radosgw.certificate.fingerprint)

    def test_a_missing_bucket(self, rgw_place: Place, tmp_path: Path) -> None:
        volume = "s3://rgw/no-such-bucket/disks/vm"
        answer = s3block("create", volume, "--size", "1G", config=rgw_place.config)
        refused(answer, ExitCode.NOT_FOUND, "no-such-bucket")
        server = Server(tmp_path, volume, config=rgw_place.config)
        refused_serve(server, ExitCode.NOT_FOUND, "no-such-bucket")

    def test_a_bucket_that_cannot_fence(self, radosgw: Radosgw, rgw_place: Place, tmp_path: Path) -> None:
        """Ceph's conditional PUTs let two writers win where versioning is on."""
        volume = f"s3://rgw/{make_bucket(radosgw, versioned=True)}/disks/vm"
        answer = s3block("create", volume, "--size", "1G", config=rgw_place.config)
        refused(answer, ExitCode.REFUSED, "cannot keep two hosts from writing", "version")
        assert "no volumes" in s3block("list", volume.rpartition("/")[0], config=rgw_place.config).err
        made = s3block("create", volume, "--size", "16M", "--unfenced", config=rgw_place.config)
        assert made.code == 0, made.err
        assert "UNFENCED" in made.err
        server = Server(tmp_path, volume, config=rgw_place.config)
        refused_serve(server, ExitCode.REFUSED, "cannot fence", "version")


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.initiator
class TestDamage:
    def test_in_flushed_data_of_the_journal(self, file_place: Place, tmp_path: Path) -> None:
        """Cutting the journal there would lose what was flushed after it: the volume stays as it is."""
        create(file_place.volume)
        with Server(tmp_path, file_place.volume, *NEVER) as server:
            server.start()
            commands = [f"write -P {number} {number}M 64k" for number in range(1, 40)]
            qemu_io(server.url, *commands, "flush")
            # In a quiet moment the journal leaves word of how far it was flushed; damage before that is no lost tail.
            time.sleep(0.5)
            server.kill()
            journal = server.state_dir / "journal"
            offset = journal.read_bytes().index(bytes([20]) * 65536) + 777
            flip(journal, offset)
            damaged = journal.read_bytes()
            refused_serve(server, ExitCode.CORRUPT, str(journal))
            assert journal.read_bytes()[MIB:] == damaged[MIB:], "the journal was changed"
            flip(journal, offset)
            server.start()
            qemu_io(server.url, *(f"read -P {number} {number}M 64k" for number in range(1, 40)))
            assert server.stop() == 0

    def test_in_an_object(self, file_place: Place, tmp_path: Path) -> None:
        """Its data cannot be read; it is never read wrong; everything else can be read."""
        extents = 8
        content = random.Random(5).randbytes(extents * MIB)
        source = tmp_path / "source.raw"
        source.write_bytes(content)
        create(file_place.volume, size=f"{extents}M")
        with Server(tmp_path, file_place.volume) as server:
            server.start()
            qemu_io(server.url, f"write -s {source} 0 {extents}M")
            assert server.stop() == 0
            for path in sorted(server.state_dir.rglob("*"), reverse=True):
                if path.is_file():
                    path.unlink()
            # Incompressible data is kept as it is: the object that holds this place can be found by its content.
            needle = content[3 * MIB + 300_000 :][:64]
            holders = {path: path.read_bytes().find(needle) for path in tmp_path.glob("store/objects/v1/vm/**/*=")}
            ((holder, offset),) = [(path, at) for path, at in holders.items() if at >= 0]
            flip(holder, offset)
            server.start()
            for number in range(extents):
                begin, want = number * MIB, content[number * MIB : (number + 1) * MIB]
                if begin <= content.index(needle) < begin + MIB:
                    assert read_part(server.url, begin, MIB, tmp_path / "part") is None
                else:
                    assert read_part(server.url, begin, MIB, tmp_path / "part") == want
            frame = content.index(needle) // FRAME * FRAME
            assert read_part(server.url, frame, FRAME, tmp_path / "part") is None
            for other in (frame - FRAME, frame + FRAME):
                assert read_part(server.url, other, FRAME, tmp_path / "part") == content[other : other + FRAME]
            key = str(holder.relative_to(tmp_path / "store/objects")).rstrip("=")
            assert key.removeprefix("v1/vm/") in server.log(), server.log()
            # Writing it again cures it.
            replacement = bytes([7]) * FRAME
            qemu_io(server.url, f"write -P 7 {frame} {FRAME}", f"read -P 7 {frame} {FRAME}")
            assert server.stop() == 0
            server.start()
            expected = content[:frame] + replacement + content[frame + FRAME :]
            assert read_back(server.url, tmp_path / "back.raw") == expected

    def test_in_the_checkpoint_and_in_the_log(self, file_place: Place, tmp_path: Path) -> None:
        """A damaged head or root costs time: the log tells the same. A damaged log record on top of it stops the attachment,
        named; with the record restored nothing is lost."""
        create(file_place.volume)
        with Server(tmp_path, file_place.volume) as server:
            server.start()
            qemu_io(server.url, "write -P 5 5M 64k", "flush")
            assert server.stop() == 0
            shutil.rmtree(server.state)
            own = tmp_path / "store/objects/v1/vm"
            for root in own.glob("root/*"):
                flip(root, 40)
            os.truncate(own / "head=", 20)
            server.start()
            assert "head does not parse" in server.log()
            assert "trying an older one" in server.log()
            qemu_io(server.url, "read -P 5 5M 64k")
            assert server.stop() == 0
            shutil.rmtree(server.state)
            for root in own.glob("root/*"):
                os.truncate(root, 60)
            server.start()
            assert "roots cannot be listed" in server.log()
            qemu_io(server.url, "read -P 5 5M 64k")
            assert server.stop() == 0
            shutil.rmtree(server.state)
            for root in own.glob("root/*"):
                root.unlink()
            record = sorted(own.glob("log/*"))[1]
            flip(record, 40)
            refused_serve(server, ExitCode.CORRUPT, f"log/{record.name.rstrip('=')}")
            shutil.rmtree(server.state)
            flip(record, 40)
            server.start()
            qemu_io(server.url, "read -P 5 5M 64k")


# --- this host -------------------------------------------------------------------------------------------------------


@pytest.mark.initiator
class TestTwoServers:
    def test_on_one_state_directory(self, file_place: Place, tmp_path: Path) -> None:
        create(file_place.volume)
        with Server(tmp_path, file_place.volume) as first:
            first.start()
            refused_serve(
                Server(tmp_path, file_place.volume), ExitCode.REFUSED, "is in use by process", str(first.state)
            )
            qemu_io(first.url, "write -P 1 0 64k", "flush", "read -P 1 0 64k")
            assert first.stop() == 0

    def test_on_two_state_directories(self, file_place: Place, tmp_path: Path) -> None:
        """As on two hosts: the second is refused; forced, it fences the first, which acknowledges nothing more."""
        create(file_place.volume)
        with (
            Server(tmp_path, file_place.volume, "--commit-interval", "300ms") as first,
            Server(tmp_path, file_place.volume, state="other") as second,
        ):
            first.start()
            qemu_io(first.url, "write -P 1 0 64k", "flush")
            refused_serve(second, ExitCode.REFUSED, "not here", "--accept-loss")
            qemu_io(first.url, "write -P 2 1M 64k", "flush", "read -P 1 0 64k")
            first.carry()
            second.start("--accept-loss")
            qemu_io(second.url, "read -P 1 0 64k", "read -P 2 1M 64k", "write -P 3 2M 64k", "flush")
            # The first learns of it with its next commit.
            qemu_io_until_refused(first)
            assert first.wait() == ExitCode.REFUSED
            refused(Answer(ExitCode.REFUSED, "", first.log()), ExitCode.REFUSED, "written by epoch")
            qemu_io(second.url, "read -P 1 0 64k", "read -P 3 2M 64k")
            assert second.stop() == 0


def qemu_io_until_refused(server: Server) -> None:
    """Writes until the server has noticed that it may not. An initiator whose portal has gone connects again for ever,
    so one that is still at it when the server has ended is stopped here."""
    for _ in range(100):
        writing = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 9 3M 4k", "-c", "flush", server.url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 30
        while writing.poll() is None and not server.ended and time.monotonic() < deadline:
            time.sleep(0.05)
        hung = writing.poll() is None
        writing.kill()
        said, _ = writing.communicate()
        assert server.ended or not hung, f"neither answered nor ended: {said!r}"
        if server.ended or b"wrote" not in said:
            return
        time.sleep(0.1)
    pytest.fail("a fenced server goes on acknowledging")


def test_a_port_in_use(file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused_serve(Server(tmp_path, file_place.volume, listen=address), ExitCode.REFUSED, address, "in use")
        assert "unexpectedly" not in said
    with Server(tmp_path, file_place.volume, listen=address) as server:
        server.start()
        assert server.stop() == 0


def test_addresses_to_advertise_that_do_not_fit(tmp_path: Path) -> None:
    """Said before a volume is attached."""
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
s3block.state_dir = "{tmp_path}/state"
s3block.listen = "127.0.0.1:0"
[volume.vm1]
url = "file://{tmp_path}/store"
advertise = "192.0.2.1:3260"
[volume.vm2]
url = "file://{tmp_path}/store"
"""
    )
    for name in ("vm1", "vm2"):
        create(name, size="64M", config=config)
    said = s3block("serve", "vm1", "vm2", config=config)
    refused(said, ExitCode.CONFIGURATION, "vm1 and vm2 listen on 127.0.0.1:0", "192.0.2.1:3260 and nothing else")
    two = ("--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0")
    said = s3block("serve", "vm1", *two, "--advertise", "192.0.2.1:3260", config=config)
    refused(said, ExitCode.REFUSED, "2 addresses to listen on and 1 to advertise", "one for each")
    assert not (tmp_path / "state" / "vm1").exists()


def test_a_kernel_without_its_part(file_place: Place, tmp_path: Path) -> None:
    """Said before the volume is attached: no state directory, no epoch spent."""
    if (
        shutil.which("modprobe")
        and subprocess.run(["modprobe", "-n", "target_core_user"], capture_output=True).returncode == 0
    ):
        pytest.skip("this kernel has target_core_user")
    create(file_place.volume)
    server = Server(tmp_path, file_place.volume, "--door", "lio")
    refused_serve(server, ExitCode.REFUSED, "target_core_user", "--door portal")
    assert not server.state_dir.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24M", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs root, to mount a small tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_room_for_the_journal(small_disk: Path, file_place: Place, tmp_path: Path) -> None:
    create(file_place.volume)
    server = Server(tmp_path, file_place.volume, state="small/state")
    refused_serve(server, ExitCode.LOCAL, str(server.state_dir / "journal"), "no room")
    assert not (server.state_dir / "journal").exists()
    subprocess.run(["mount", "-o", "remount,size=256M", str(small_disk)], check=True)
    with server:
        server.start()
        assert server.stop() == 0


@pytest.mark.initiator
def test_no_room_in_the_store(small_disk: Path, tmp_path: Path) -> None:
    """The journal takes what the store cannot, and the initiator notices nothing; with room again all goes on."""
    volume = f"file://{small_disk}/store/vm"
    content = random.Random(6).randbytes(40 * MIB)
    source = tmp_path / "source.raw"
    source.write_bytes(content)
    create(volume, size="40M")
    with Server(tmp_path, volume, "--commit-bytes", "4M") as server:
        server.start()
        tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), server.url)
        give_up = time.monotonic() + 20
        while "No space left" not in server.log():
            assert time.monotonic() < give_up, server.log()
            time.sleep(0.1)
        assert read_back(server.url, tmp_path / "back.raw") == content
        server.kill()
        subprocess.run(["mount", "-o", "remount,size=256M", str(small_disk)], check=True)
        server.start()
        assert read_back(server.url, tmp_path / "back.raw") == content
        assert server.stop() == 0
        shutil.rmtree(server.state)
        server.start()
        assert read_back(server.url, tmp_path / "back.raw") == content
