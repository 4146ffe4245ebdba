"""What a volume keeps on this host, and who may use it.

lock             held by daemon and worker; two processes never share a journal
control          socket of the daemon that serves the volume, for commands on this host (`blockdev.control`)
journal          acknowledged writes that the bucket may not have: losing it loses data
journal.*.aside  journals that another attachment replaced; never deleted by the program
cache/           read cache (content and table): may be lost
map/             extent map on LMDB: may be lost
objects/         copies of own objects: may be lost
"""

import fcntl
import logging
import os
import time
from pathlib import Path
from uuid import UUID, uuid4

from blockdev.engine.destager import Records
from blockdev.errors import AttachRefused, LocalDiskFailed
from blockdev.journal.file import PosixFile, publish
from blockdev.journal.journal import Journal, create_journal, open_journal
from blockdev.journal.reader import JournalReader, read_superblock

log = logging.getLogger(__name__)

LOCK_PATIENCE_S = 10.0
"""How long to wait for a predecessor's worker to notice that its daemon is gone."""


class StateDirectory:
    """Opened by the daemon (which holds the lock and passes it on to the worker) and by the worker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path / "journal"
        self.cache_path = path / "cache"
        self.map_path = path / "map"
        self.objects_path = path / "objects"

    def prepare(self) -> None:
        """Make the directories. Raises LocalDiskFailed."""
        try:
            for directory in (self.path, self.cache_path, self.objects_path):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LocalDiskFailed(
                f"cannot make the state directory {self.path}: {error.strerror or error}",
                hint="name another with --state-dir, or fix its permissions",
            ) from error

    def lock(self) -> int:
        """A descriptor that holds the lock; closing every copy of it releases it. Raises AttachRefused."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                alive = owner.isdigit() and Path(f"/proc/{owner}").exists()
                if alive or time.monotonic() > deadline:
                    os.close(descriptor)
                    raise AttachRefused(
                        f"{self.path} is in use" + (f" by process {owner}" if owner else ""),
                        hint="the volume is being served on this host already; stop that first",
                    ) from None
                time.sleep(0.05)
            else:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor


class DirectoryJournal:
    """`LocalJournal` of the worker: the journal file in the state directory."""

    def __init__(self, directory: StateDirectory, volume: UUID, ring_bytes: int, sector_bytes: int) -> None:
        self._path = directory.journal_path
        self._note = directory.path / "journal.epoch"
        self._volume = volume
        self._ring_bytes = ring_bytes
        self._sector_bytes = sector_bytes

    def identity(self) -> UUID | None:
        """Raises CorruptJournal for a file that is no journal, AttachRefused for another volume's."""
        if not self._path.exists():
            return None
        file = PosixFile(self._path, writable=False)
        try:
            superblock = read_superblock(file)
        finally:
            file.close()
        if superblock.volume != self._volume:
            raise AttachRefused(
                f"{self._path} is the journal of another volume ({superblock.volume})",
                hint="give each volume a state directory of its own",
            )
        return superblock.journal

    def create(self, position: int) -> UUID:
        """A new journal; one that is there is kept aside under its own name, since it may hold the only copy of writes."""
        old = self.identity()
        if old is not None:
            aside = self._path.with_name(f"journal.{old}.aside")
            os.replace(self._path, aside)
            log.warning("the old journal does not continue the volume; it is kept as %s", aside)
        log.info("making a journal of %d MiB in %s", self._ring_bytes >> 20, self._path)
        made = create_journal(
            self._path,
            journal=uuid4(),
            volume=self._volume,
            ring_bytes=self._ring_bytes,
            sector_bytes=self._sector_bytes,
            start=position,
        )
        made.close()
        return made.superblock.journal

    def remove(self) -> None:
        """Forget the journal of a volume that is detached: the bucket has all that is in it. Crash within: a journal
        without its note, which does not count any more."""
        self._note.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def fits(self) -> bool:
        file = PosixFile(self._path, writable=False)
        try:
            return read_superblock(file).ring_bytes == self._ring_bytes
        finally:
            file.close()

    def note_epoch(self, epoch: int) -> None:
        """Crash within: the note is the old one or the new one."""
        temporary = self._note.with_name(f"{self._note.name}.new")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"{self.identity()} {epoch}\n")
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, self._note)

    def noted_epoch(self) -> int:
        try:
            journal, epoch = self._note.read_text(encoding="ascii").split()
        except (FileNotFoundError, ValueError):
            return 0  # none, or damaged: then as if the journal were an older copy
        return int(epoch) if journal == str(self.identity()) and epoch.isdigit() else 0

    def records(self) -> Records:
        return JournalReader(PosixFile(self._path, writable=False)).records

    def open(self) -> Journal:
        return open_journal(self._path)
