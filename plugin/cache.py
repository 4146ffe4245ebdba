"""Local copies of ISOs, templates, snippets and imports: real files in PVE's layout, for QEMU and LXC to open.

One rule: a file under its name is whole, and of one version of its object, which is noted beside it. A file that is replaced
keeps its inode for whoever has it open.

    cache/template/iso/x.iso          the file, put there by one rename
    cache/.versions/template/iso/x.iso    its ETag and size, the inode they are of, when it was used, until when it is leased
    cache/.fetching/template/iso/x.iso    a download under way, which goes on after a crash

The note is written before the rename and names the inode, so a crash between the two leaves an old file with a note that is not
its own: such a file counts as one of an unknown version, which is used only while the store does not answer. Nothing outside
this directory is needed to read the cache, so an ISO that is here starts with the service dead.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from s3core.quantities import shown_size

LEASE_S = 900.0
"""From a fetch until QEMU has surely opened the file or never will."""
DISK_RESERVE = 512 << 20
"""Bytes of the file system that fetches leave free."""
MODE = 0o644
EXECUTABLE = 0o755
"""Of snippets: S3 has no mode bits, and PVE runs hook scripts."""
NAME_BYTES_MAX = 255
"""Of a file's name on this host."""
_VERSIONS, _FETCHING = ".versions", ".fetching"


class NoRoom(OSError):
    """The file does not fit beside what is in use. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a file. `used`, `leased` in Unix seconds."""

    etag: str
    size: int
    inode: int
    mtime_ns: int
    used: float
    leased: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """A file of the cache. `etag` is "" where its version is not known."""

    name: str
    path: Path
    size: int
    etag: str
    used: float
    leased: float


class Cache:
    """Of one storage, below `root`. Names are relative and in PVE's layout (`template/iso/x.iso`). Several processes and
    threads share it. `bytes_max` bounds what `fetch` keeps (0: without limit); names for which `stays` is true are neither
    counted against it nor evicted. `in_use` tells which of some files (by name) a process has open."""

    def __init__(
        self,
        root: Path,
        *,
        bytes_max: int = 0,
        stays: Callable[[str], bool] = lambda name: name.startswith("snippets/"),
        now: Callable[[], float] = time.time,
        in_use: "Callable[[Collection[Path]], set[Path]] | None" = None,
    ) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self._stays = stays
        self._now = now
        self._in_use = in_use or open_files
        self._lock = threading.Lock()
        self._coming: dict[str, int] = {}

    def path(self, name: str) -> Path:
        """Where the file is, or would be. ValueError for a name that leads out of the cache."""
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") or "\0" in part for part in parts) or parts[0].startswith("."):
            raise ValueError(f"not a name of a cached file: {name!r}")
        return self.root / name

    def held(self, name: str) -> Held | None:
        """What is there now, without asking anybody."""
        path = self.path(name)
        try:
            there = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        note = self._note(name)
        if note is None:
            return Held(name, path, there.st_size, "", there.st_mtime, 0.0)
        same = (note.inode, note.size, note.mtime_ns) == (there.st_ino, there.st_size, there.st_mtime_ns)
        return Held(name, path, there.st_size, note.etag if same else "", note.used, note.leased)

    def files(self) -> list[Held]:
        """All that is there."""
        found = []
        for folder, folders, names in os.walk(self.root):
            at = Path(folder)
            if at == self.root:
                folders[:] = [one for one in folders if not one.startswith(".")]
            for one in names:
                held = self.held(str((at / one).relative_to(self.root)))
                if held is not None:
                    found.append(held)
        return found

    def fetch(
        self, name: str, etag: str, size: int, download: Callable[[Path], None], *, lease_s: float = LEASE_S
    ) -> Path:
        """The file with that ETag, leased. Where it is not here, `download` writes it, durable and of `size` bytes, to the path
        it is given; then it replaces what was there. Waits for another fetch of the name. NoRoom, OSError, and what
        `download` raises: then the cache is as it was, and what it had loaded is kept for the next fetch."""
        path = self.path(name)
        with self._one_at_a_time(name):
            held = self.held(name)
            if held is None or held.etag != etag or not etag:
                self._bring(name, path, etag, size, download)
            self._lease(name, lease_s)
        return path

    def use(self, name: str, *, lease_s: float = LEASE_S) -> Path | None:
        """The file as it is, leased; None where there is none. For when the store does not answer."""
        if self.held(name) is None:
            return None
        with self._one_at_a_time(name):
            held = self.held(name)
            if held is None:
                return None
            self._lease(name, lease_s)
            return held.path

    def drop(self, name: str) -> bool:
        """Remove the file; who has it open keeps it. Whether it was there."""
        path = self.path(name)
        with self._one_at_a_time(name):
            there = path.exists()
            path.unlink(missing_ok=True)
            self._beside(_VERSIONS, name).unlink(missing_ok=True)
        return there

    def make_room(self, size: int = 0, *, keep: str = "") -> int:
        """Remove what was not used for the longest time until `size` more bytes fit; never what a process has open, what is
        leased, or `keep`. The bytes freed. NoRoom where that is not enough."""
        with self._lock:
            coming = sum(self._coming.values())
        files = [one for one in self.files() if not self._stays(one.name)]
        total = sum(one.size for one in files if one.name != keep) + coming
        over_bound = total + size - self.bytes_max if self.bytes_max else 0
        need = max(over_bound, size + DISK_RESERVE - self._free() if size else 0)
        if need <= 0:
            return 0
        now, freed = self._now(), 0
        open_now = self._in_use([one.path for one in files])
        for one in sorted(files, key=lambda one: one.used):
            if freed >= need:
                break
            if one.name == keep or one.path in open_now or one.leased > now:
                continue
            if self.drop(one.name):
                freed += one.size
        if freed < need and size:
            if size + DISK_RESERVE > self._free():
                raise NoRoom(
                    f"{keep} has {shown_size(size)}, and the file system of {self.root} has no room for it;"
                    " make room, or set state_dir in [pve] to another one"
                )
            raise NoRoom(
                f"{keep} has {shown_size(size)}, and the cache may hold {shown_size(self.bytes_max)}, of which"
                f" {shown_size(total - freed)} are in use; raise cache_bytes in [pve]"
            )
        return freed

    def keep_only(self, names: Collection[str]) -> list[str]:
        """Remove files that the bucket does not have any more; their names."""
        gone = [one.name for one in self.files() if one.name not in names]
        return [name for name in gone if self.drop(name)]

    # --- inside

    def _bring(self, name: str, path: Path, etag: str, size: int, download: Callable[[Path], None]) -> None:
        coming = self._beside(_FETCHING, name)
        counted = not self._stays(name)
        if counted:
            self.make_room(size, keep=name)
        with self._lock:
            self._coming[name] = size if counted else 0
        try:
            for one in (coming.parent, path.parent):
                one.mkdir(mode=0o755, parents=True, exist_ok=True)
            download(coming)
            os.chmod(coming, EXECUTABLE if self._stays(name) else MODE)
            there = coming.stat()
            if there.st_size != size:
                coming.unlink()
                raise OSError(f"{name}: {there.st_size} bytes came, not {size}")
            self._write(name, Note(etag, size, there.st_ino, there.st_mtime_ns, self._now()))
            coming.replace(path)
            _sync_folder(path.parent)
        finally:
            with self._lock:
                self._coming.pop(name, None)

    def _lease(self, name: str, seconds: float) -> None:
        now, note = self._now(), self._note(name)
        if note is None:
            there = self.path(name).stat()
            note = Note("", there.st_size, there.st_ino, there.st_mtime_ns, now)
        self._write(name, replace(note, used=now, leased=max(note.leased, now + seconds)))

    def _note(self, name: str) -> Note | None:
        try:
            return Note(**json.loads(self._beside(_VERSIONS, name).read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError):
            return None  # torn by a loss of power: the version is not known

    def _write(self, name: str, note: Note) -> None:
        path = self._beside(_VERSIONS, name)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = _near(path, "new")
        fresh.write_text(json.dumps(asdict(note)), encoding="ascii")
        fresh.replace(path)

    def _beside(self, folder: str, name: str) -> Path:
        self.path(name)
        return self.root / folder / name

    def _free(self) -> int:
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        """Across processes; a crash gives the lock back."""
        path = self._beside(_VERSIONS, name)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(_near(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def open_files(paths: Collection[Path], proc: Path = Path("/proc"), block: Path = Path("/sys/block")) -> set[Path]:
    """Which of `paths` any process has open, or the kernel as a loop device. Only links that end in the name of one of them are
    looked at, so that a file on a file system that hangs costs nothing. Processes that we may not look at are passed over."""
    wanted: dict[str, dict[tuple[int, int], Path]] = {}
    for path in paths:
        try:
            there = path.stat()
        except FileNotFoundError:
            continue
        wanted.setdefault(path.name, {})[there.st_dev, there.st_ino] = path
    found: set[Path] = set()
    if not wanted:
        return found
    for process in _listed(proc):
        if not process.isdigit():
            continue
        folder = proc / process / "fd"
        for number in _listed(folder):
            try:
                target = os.readlink(folder / number)
                candidates = wanted.get(target.rpartition("/")[2])
                if candidates is None:
                    continue
                there = (folder / number).stat()
            except OSError:
                continue  # closed since, or the process has ended
            path_found = candidates.get((there.st_dev, there.st_ino))
            if path_found is not None:
                found.add(path_found)
    for device in _listed(block):
        if not device.startswith("loop"):
            continue
        try:
            backing = (block / device / "loop" / "backing_file").read_text().strip()
        except OSError:
            continue  # not in use
        found.update(path for path in paths if str(path) == backing)
    return found


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _near(path: Path, suffix: str) -> Path:
    """A hidden file beside it, whose name fits where the file's own does."""
    name = f".{path.name}.{suffix}"
    if len(os.fsencode(name)) > NAME_BYTES_MAX:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.{suffix}"
    return path.with_name(name)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
