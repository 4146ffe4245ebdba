"""Folders of machines on disk, and who runs in them.

    <state_dir>/env-<environment id>.<generation>/   machine.json   what it is (`envctl.drivers.qemu.machine`)
                                                     disk.qcow2     the disk
                                                     disk.new       a copy under way
                                                     copy           locked by what makes that copy; copy.log what it says
                                                     pid, qmp, vnc, serial   QEMU's

One rule: whether a machine runs is asked of the kernel. QEMU holds a POSIX lock on its pid file, so the lock's owner *is* the
process, whatever number stands in the file; a number that was given to somebody else meanwhile has no lock. The same lock keeps
two QEMUs from one machine: the second ends before it touches the sockets of the first. To end a process: open it (pidfd), look
again that it still has the lock, then signal.

A folder is made under another name (`.new-...`) and appears by a rename: with its record, and with its disk or with a copy
under way that goes on by itself. Killed anywhere:
    before that rename               nothing is there; what was begun is removed when it is an hour old
    while a copy is under way        found, `locked` by `clone` until the copy ends
    QEMU started, nobody heard it    found running by its lock
    removing the folder half-way     found by its name; `destroy` goes on
"""

import errno
import fcntl
import os
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from envctl.drivers.port import MachineRef
from envctl.drivers.qemu.command import Places
from envctl.drivers.qemu.machine import Machine, decode, encode, parse_ref

NEW: Final = ".new-"
_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class MachineFolder:
    """One machine's folder, which need not exist. OSError gets out of what fails."""

    def __init__(self, root: Path, ref: MachineRef) -> None:
        if parse_ref(ref) is None:
            raise ValueError(f"{ref!r} is not a machine of this host")
        self.ref = ref
        self.path = root / ref
        self.places = Places(str(self.path))

    def new(self) -> "MachineFolder":
        """An empty one under a name that no inventory shows; `appear` gives it this one's."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = MachineFolder(self.path.parent, self.ref)
        made.path = Path(tempfile.mkdtemp(prefix=NEW, dir=self.path.parent))
        made.places = Places(str(made.path))
        return made

    def appear(self) -> bool:
        """Durable when it returns. False: there is one already, by another worker; this one is removed."""
        try:
            self.path.rename(self.path.with_name(self.ref))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(self.path)
            return False
        _sync_folder(self.path.parent)
        return True

    def exists(self) -> bool:
        return self.path.is_dir()

    def whole(self) -> bool:
        """Is there a disk?"""
        return os.path.exists(self.places.disk)

    def read(self) -> Machine | None:
        """None where nothing was written yet. ValueError for a file that is damaged."""
        try:
            text = (self.path / "machine.json").read_bytes()
        except FileNotFoundError:
            return None
        return decode(text)

    def write(self, machine: Machine) -> None:
        """Durable when it returns; a crash leaves the old or the new."""
        with open(self.path / "machine.json.new", "wb") as file:
            file.write(encode(machine))
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path / "machine.json.new", self.path / "machine.json")
        _sync_folder(self.path)

    def sync_disk(self) -> None:
        """The disk is durable when it returns."""
        descriptor = os.open(self.places.disk, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync_folder(self.path)

    def remove(self) -> None:
        """What a kill leaves of it is found by its name, and removed by the next call."""
        with suppress(FileNotFoundError):  # another worker did it
            shutil.rmtree(self.path)
        _sync_folder(self.path.parent)

    # --- processes

    def holder(self) -> int:
        """Process number of the QEMU that runs here; 0: none."""
        try:
            descriptor = os.open(self.places.pid_file, os.O_RDWR)
        except FileNotFoundError:
            return 0
        try:
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        finally:
            os.close(descriptor)
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    def kill(self) -> bool:
        """SIGKILL to the QEMU that runs here; False if there is none."""
        pid = self.holder()
        if not pid:
            return False
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if self.holder() != pid:
                return False  # it ended, and the number may be somebody else's now
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(process)
        return True

    def wait_until_ended(self, seconds: float) -> bool:
        """Has the QEMU that runs here ended within that time? Where it never started: True at once."""
        give_up = time.monotonic() + seconds
        while self.holder():
            if time.monotonic() > give_up:
                return False
            time.sleep(0.05)
        return True


def sweep(root: Path, before: float, busy: Callable[[Path], bool]) -> None:
    """Remove what was begun before that moment (Unix seconds) and never appeared, unless it is `busy`."""
    for name in os.listdir(root):
        path = root / name
        if name.startswith(NEW) and path.stat().st_mtime < before and not busy(path):
            shutil.rmtree(path)


def machine_folders(root: Path) -> Iterator[MachineFolder]:
    """All folders of machines below `root`, in order of their names. OSError where it cannot be read."""
    for name in sorted(os.listdir(root)):
        if parse_ref(name) is not None and (root / name).is_dir():
            yield MachineFolder(root, MachineRef(name))


def process_fields(pid: int) -> list[str]:
    """`/proc/PID/stat` from field 3 (state) on; empty if there is none. The name before may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
