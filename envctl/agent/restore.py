"""A snapshot → staging on the same volume → place.

One rule: nothing of the home is touched before all of it is here, checked and durable; and only when every file is in place
does the sentinel say so (`envctl.agent.memory`). One file that this machine's file system cannot hold keeps nobody from a home
at boot: it is left out and told, and the console pins the snapshot that has it. One that somebody asked for fails instead.

A restore goes on where it was: what it does is written down before it is done.

Staging is `.envctl-staging` (of root, closed to others) in the root of each directory: `new/` with the tree below the path
it will have, `old/` with what was in its place.

| crash while | leaves | repaired by |
| --- | --- | --- |
| staging, for somebody who asked | the same | the same; when it fails it is forgotten, and the home stays as it is |
| staging | part of `new/`, durable up to the path in `restoring` | the same restore goes on behind that path |
| putting in place | some names exchanged | names that are still in `new/` are exchanged; the others were |
| before the sentinel | a whole home, not said to be | putting in place finds nothing to do, and says so |
| after the sentinel, before the console knows | a home that backs up nothing yet: the console refuses | `restored` again |
| removing staging | part of it, never saved | `sweep`, at the start of each backup and restore |
"""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from envctl.agent import attributes, memory
from envctl.agent.backup import Settings, cache_digest
from envctl.agent.client import OBJECTS_MAX, Console, Url, World
from envctl.agent.errors import AgentError, Corrupt, Refused, Unavailable
from envctl.agent.memory import Memory
from envctl.agent.pack import read_chunk
from envctl.agent.places import Places, sync_directory
from envctl.agent.scan import STAGING, CacheWriter, Excludes, Scan
from envctl.agent.segments import Segments
from envctl.agent.tree import DIRECTORY, FIFO, FILE, SYMLINK, Chunk, Row, Tree, sort_key, subtree_end

WORKERS: Final = 4
WINDOW_BYTES: Final = 32 * 1024 * 1024
WINDOW_FILES: Final = 512
GAP_BYTES: Final = 64 * 1024
RANGE_BYTES_MAX: Final = 16 * 1024 * 1024
DURABLE_BYTES: Final = 512 * 1024 * 1024
DURABLE_ROWS: Final = 20_000
URL_SECONDS: Final = 120.0
PLACE: Final = "place"


LEFT_OUT_TOLD_MAX: Final = 10
_OF_ONE_FILE: Final = frozenset(
    {
        errno.EFBIG,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ENAMETOOLONG,
        errno.EMLINK,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
    }
)
"""What a file system answers that cannot hold this one file: it will answer the same the next time. A disk that is full or
broken is none of it."""


class Unit(NamedTuple):
    """A subtree that is restored: `path` in the snapshot, `volume` the directory in whose root it is gathered, `final` where
    it will be (paths relative to the base). `whole`: `final` shall hold nothing else, and itself stays."""

    path: bytes
    volume: bytes
    final: bytes
    whole: bool


class Restored(NamedTuple):
    files: int
    bytes: int
    seconds: float
    problems: list[str]


class Restore:
    """Owned by whoever holds the lock."""

    def __init__(
        self,
        places: Places,
        console: Console,
        known: Memory,
        world: World,
        *,
        reached: Callable[[str], None] = lambda point: None,
        progress: Callable[[str, float], None] = lambda message, part: None,
    ) -> None:
        """`reached(point)` is told of each durable step, for whoever tests what a crash there leaves."""
        self._places = places
        self._console = console
        self._known = known
        self._world = world
        self._reached = reached
        self._progress = progress
        self._names = attributes.Names()
        self._problems: list[str] = []
        self._open: dict[bytes, int] = {}
        self._apart: set[bytes] = set()
        """Directories that are volumes of their own within another one: each is a unit."""
        self._total = self._staged_bytes = 0
        self._left_out: dict[bytes, bool] = {}
        """By path: whether it is there at all."""

    # What is asked for

    def home(
        self, number: int | None, trees: Sequence[str], source: str | None, head: dict[str, Any] | None
    ) -> Restored:
        """The whole home, as the first thing a machine does, or again. `head`: the newest snapshot of this home (number,
        trees). Once this returns, the home is in place and durable, and backups may begin."""
        return self._whole(number, trees, source, head, asked=False)

    def _whole(
        self, number: int | None, trees: Sequence[str], source: str | None, head: dict[str, Any] | None, *, asked: bool
    ) -> Restored:
        roots = Settings.of(self._known.settings).roots() if number is not None else []
        outer = _outermost(roots)
        mounted = [root for root in roots if root not in outer and os.path.ismount(self._places.base + root)]
        units = [Unit(root, root, root, True) for root in sorted(outer + mounted, key=sort_key)]
        return self._begin(number, trees, source, units, head, everything=True, asked=asked)

    def chosen(
        self, number: int, trees: Sequence[str], source: str | None, paths: Sequence[bytes] | None, into: str
    ) -> Restored:
        """Chosen files and directories: in place, or into a directory. What was in their place is gone afterwards; whoever
        calls this has saved it in a snapshot before. Refused if a path cannot be put where it shall be."""
        roots = _outermost(Settings.of(self._known.settings).roots())
        head = {"number": self._known.number, "trees": self._known.trees}
        if paths is None and into == PLACE:
            return self._whole(number, trees, source, head, asked=True)
        units = []
        for path in _outermost(paths if paths is not None else roots):
            if into == PLACE:
                volume = next((root for root in roots if path.startswith(root + b"/")), None)
                if path in roots:
                    units.append(Unit(path, path, path, True))
                elif volume is None:
                    raise _no(f"/{os.fsdecode(path)} is in none of the directories of this home: restore it into one")
                else:
                    units.append(Unit(path, volume, path, False))
            else:
                folder = os.fsencode(into).strip(b"/")
                volume = next((root for root in roots if folder == root or folder.startswith(root + b"/")), None)
                if volume is None:
                    raise _no(
                        f"/{os.fsdecode(folder)} is in none of the directories of this home: restore into one of them"
                    )
                final = _joined(folder, os.path.basename(path))
                while any(unit.final == final for unit in units):
                    final += b".again"
                units.append(Unit(path, volume, final, False))
        return self._begin(number, trees, source, units, head, everything=False, asked=True)

    def resume(self) -> Restored | None:
        """Go on with a restore that a crash or a reboot ended. None if there is none."""
        if not self._known.restoring:
            return None
        return self._go_on()

    def _begin(
        self,
        number: int | None,
        trees: Sequence[str],
        source: str | None,
        units: list[Unit],
        head: dict[str, Any] | None,
        *,
        everything: bool,
        asked: bool,
    ) -> Restored:
        self._known.restoring = {
            "number": number,
            "trees": list(trees),
            "source": source,
            "units": [[os.fsdecode(u.path), os.fsdecode(u.volume), os.fsdecode(u.final), u.whole] for u in units],
            "head": head,
            "everything": everything,
            "asked": asked,
            "was_restored": self._known.restored,
            "phase": "staging",
            "done": {},
            "began": self._world.time(),
        }
        if everything:
            self._known.restored = False
        sweep(self._places, {unit.volume for unit in units})
        memory.save(self._places, self._known)
        self._reached("begun")
        return self._go_on()

    # The steps, in order

    def _go_on(self) -> Restored:
        try:
            return self._run()
        except Exception:
            if self._known.restoring.get("asked") and self._known.restoring["phase"] == "staging":
                self._give_up()
            raise
        finally:
            while self._open:
                os.close(self._open.popitem()[1])

    def _give_up(self) -> None:
        """Forget a restore that somebody asked for and that failed before anything of the home was touched: the home is what
        it was, and is to be saved on. Staging goes first, as it may hold the space that the state needs; without `new`
        a crash in between begins from the start."""
        what = self._known.restoring
        volumes = {os.fsencode(volume) for _, volume, _, _ in what["units"]}
        for volume in volumes:
            new = _joined(self._places.base + volume, STAGING) + b"/new"
            if os.path.lexists(new):
                os.rename(new, new + b".void")
        sweep(self._places, volumes)
        if what["everything"]:
            self._known.restored = what["was_restored"]
        self._known.restoring = {}
        memory.save(self._places, self._known)

    def _run(self) -> Restored:
        what = self._known.restoring
        units = [Unit(os.fsencode(u[0]), os.fsencode(u[1]), os.fsencode(u[2]), u[3]) for u in what["units"]]
        segments = Segments(self._places.trees, self._console, what["source"])
        segments.fetch(what["trees"])
        tree = segments.tree(what["trees"])
        self._left_out = {os.fsencode(path): is_there for path, is_there in what.get("left_out", [])}
        self._apart = {unit.path for unit in units if any(unit.path.startswith(u.path + b"/") for u in units)}
        self._total = sum(segments.open(name).bytes for name in what["trees"])
        self._staged_bytes = 0
        if what["phase"] == "staging":
            for unit in units:
                self._stage(tree, unit)
            for unit in units:
                self._link(tree, unit, units)
                self._dress(tree, unit)
            os.sync()
            if what["everything"]:
                self._prime(units)
            what["phase"] = "placing"
            what["left_out"] = self._told_left_out()
            memory.save(self._places, self._known)
            self._reached("staged")
        for unit in units:
            if unit.whole:
                self._place_whole(tree, unit)
            else:
                self._place_one(tree, unit)
        os.sync()
        self._reached("placed")
        files, size = self._count(tree, units)
        self._dress_roots(tree, units)
        self._finish(what)
        self._reached("sentinel")
        sweep(self._places, {unit.volume for unit in units})
        seconds = max(0.0, self._world.time() - float(what["began"]))
        return Restored(files, size, seconds, self._problems)

    def _count(self, tree: Tree, units: Sequence[Unit]) -> tuple[int, int]:
        files = size = 0
        for unit in units:
            for row in self._rows(tree, unit):
                if row.type == FILE and not self._is_left_out(row.path):
                    files += 1
                    size += 0 if row.link else row.size
        return files, size

    def _finish(self, what: dict[str, Any]) -> None:
        """The sentinel."""
        known = self._known
        if what["everything"]:
            head = what["head"] or {}
            known.number = head.get("number")
            # The bucket of another home has its packs under another name: the first backup of this one saves everything anew.
            known.trees = [] if what["source"] else list(what["trees"])
            known.committed = bool(head) and not what["source"] and list(head.get("trees", [])) == known.trees
            known.restored = True
            known.restored_number = what["number"]
            known.left_out = [os.fsdecode(path) for path in list(self._left_out)[:LEFT_OUT_TOLD_MAX]]
            known.left_out_count = len(self._left_out)
        known.restoring = {}
        memory.save(self._places, known)

    # Staging

    def _staging(self, unit: Unit) -> bytes:
        """The staging of a volume, made where it is missing, as a path through its descriptor: the owner of the directory
        may rename what is in it, and put a link there, but cannot reach what this process has open."""
        descriptor = self._open.get(unit.volume)
        if descriptor is None:
            volume = self._places.base + unit.volume
            os.makedirs(volume, exist_ok=True)
            path = _joined(volume, STAGING)
            if not os.path.lexists(path):
                os.mkdir(path, 0o700)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                os.close(descriptor)
                raise _no(f"{os.fsdecode(path)} is not the agent's own: remove it")
            self._open[unit.volume] = descriptor
        return b"/proc/self/fd/%d" % descriptor

    def _new(self, unit: Unit, path: bytes) -> bytes:
        """Where the row of `path` is gathered."""
        return self._staging(unit) + b"/new/" + path

    def _stage(self, tree: Tree, unit: Unit) -> None:
        """Directories, files, symbolic links and FIFOs of `unit`, files with their content and attributes."""
        done = self._known.restoring["done"].get(os.fsdecode(unit.path))
        if not os.path.lexists(self._new(unit, unit.path)):
            done = None
        os.makedirs(os.path.dirname(self._new(unit, unit.path)), mode=0o700, exist_ok=True)
        start = sort_key(os.fsencode(done)) + b"\0" if done is not None else sort_key(unit.path)
        rows = since_bytes = 0
        source = self._known.restoring["source"]
        with _Content(self._console, source, self._world, self._leave_out) as content:
            for row in self._rows(tree, unit, start):
                if row.link or self._is_left_out(row.path):
                    continue
                where = self._new(unit, row.path)
                try:
                    self._make(row, where, content)
                except OSError as error:
                    self._leave_out(row, where, error)
                rows += 1
                since_bytes += row.size
                self._staged_bytes += row.size
                if rows % 64 == 0:
                    self._progress(f"/{os.fsdecode(row.path)}", self._staged_bytes / max(1, self._total))
                if rows >= DURABLE_ROWS or since_bytes >= DURABLE_BYTES:
                    content.flush()
                    os.sync()
                    self._known.restoring["done"][os.fsdecode(unit.path)] = os.fsdecode(row.path)
                    self._known.restoring["left_out"] = self._told_left_out()
                    memory.save(self._places, self._known)
                    self._reached("durable")
                    rows = since_bytes = 0
            content.flush()

    def _rows(self, tree: Tree, unit: Unit, start: bytes | None = None) -> Iterator[Row]:
        """The rows of `unit`, without those that another unit brings."""
        apart = [other for other in self._apart if other.startswith(unit.path + b"/")]
        for row in tree.rows(sort_key(unit.path) if start is None else start, subtree_end(unit.path)):
            if not any(row.path.startswith(other + b"/") for other in apart):
                yield row

    def _make(self, row: Row, where: bytes, content: _Content) -> None:
        if row.type == DIRECTORY:
            os.makedirs(where, mode=0o700, exist_ok=True)
            return
        if os.path.lexists(where):
            os.unlink(where)
        if row.type == SYMLINK:
            os.symlink(row.target, where)
        elif row.type == FIFO:
            os.mkfifo(where, 0o600)
        else:
            content.add(row, where, self._apply)
            return
        self._apply(row, where)

    def _apply(self, row: Row, where: bytes) -> None:
        folder, name = os.path.split(where)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._problems += attributes.apply(row, descriptor, name, self._names)
        except OSError as error:
            # It is there, and root's own: who may see it is not guessed.
            self._leave_out(row, None, error)
        finally:
            os.close(descriptor)

    def _leave_out(self, row: Row, where: bytes | None, error: OSError) -> None:
        """Go on without `row`, of which nothing stays at `where`. Raises `error` where it is not of this one file, or where
        somebody waits for a restore that can be asked for again."""
        what = self._known.restoring
        if error.errno not in _OF_ONE_FILE or what["asked"] or not what["everything"]:
            raise error
        if where is not None:
            try:
                os.unlink(where)
            except OSError as gone:
                if gone.errno not in (errno.ENOENT, *_OF_ONE_FILE):
                    raise
        if row.path not in self._left_out:
            self._left_out[row.path] = where is None
            self._problems.append(f"/{os.fsdecode(row.path)} was not restored: {error.strerror}")

    def _told_left_out(self) -> list[list[Any]]:
        return [[os.fsdecode(path), is_there] for path, is_there in self._left_out.items()]

    def _is_left_out(self, path: bytes) -> bool:
        """Whether `path`, or a directory above it, could not be made."""
        if not self._left_out:
            return False
        while path:
            if not self._left_out.get(path, True):
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _link(self, tree: Tree, unit: Unit, units: Sequence[Unit]) -> None:
        """Further hard links. Where the row with the content is not restored as well, the first link gets it."""
        stand_ins: dict[bytes, bytes] = {}
        source = self._known.restoring["source"]
        with _Content(self._console, source, self._world, self._leave_out) as content:
            for row in self._rows(tree, unit):
                if not row.link or self._is_left_out(row.path):
                    continue
                where = self._new(unit, row.path)
                leader = stand_ins.get(row.link) or self._staged(row.link, units)
                if os.path.lexists(where):
                    os.unlink(where)
                if leader is not None:
                    try:
                        os.link(leader, where, follow_symlinks=False)
                        continue
                    except OSError as error:
                        self._problems.append(f"/{os.fsdecode(row.path)} is a copy, not a link: {error.strerror}")
                found = tree.find(row.link)
                if found is None or found.link or found.type != row.type:
                    self._problems.append(
                        f"/{os.fsdecode(row.path)} was not restored: the file it is a link to is not there"
                    )
                    continue
                try:
                    self._make(found._replace(path=row.path), where, content)
                    content.flush()
                except OSError as error:
                    self._leave_out(row, where, error)
                if os.path.lexists(where):
                    stand_ins[row.link] = where

    def _staged(self, path: bytes, units: Sequence[Unit]) -> bytes | None:
        for unit in units:
            if path == unit.path or path.startswith(unit.path + b"/"):
                where = self._new(unit, path)
                return where if os.path.lexists(where) else None
        return None

    def _dress(self, tree: Tree, unit: Unit) -> None:
        """Attributes of directories, once nothing is put into them any more."""
        for row in self._rows(tree, unit):
            if row.type == DIRECTORY and not self._is_left_out(row.path):
                self._apply(row, self._new(unit, row.path))

    def _prime(self, units: Sequence[Unit]) -> None:
        """A cache for the first backup, from what only root can have touched. Without it every file would be read once more."""
        what, settings = self._known.restoring, Settings.of(self._known.settings)
        if what["source"] or len(settings.roots()) != len(units):
            return

        def at(path: bytes) -> bytes:
            owner = next((u for u in units if path == u.path or path.startswith(u.path + b"/")), None)
            return self._new(owner, path) if owner is not None else self._places.base + path

        writer = CacheWriter(self._places.cache, None)
        scan = Scan(
            self._places.base,
            [unit.path for unit in units],
            Excludes(settings.excludes),
            None,
            writer,
            now_ns=0,
            trusted=True,
            at=at,
        )
        for _ in scan.edits():
            pass
        writer.finish({"of": cache_digest(settings, what["trees"])})

    # Putting in place

    def _place_whole(self, tree: Tree, unit: Unit) -> None:
        """Exchange what is in a directory for what was gathered. Names that backups leave out stay where they are."""
        excludes = Excludes(Settings.of(self._known.settings).excludes)
        if tree.find(unit.path) is not None:
            self._exchange_in(tree, unit, unit.path, excludes)

    def _exchange_in(self, tree: Tree, unit: Unit, directory: bytes, excludes: Excludes) -> None:
        place = self._places.base + directory
        gathered = self._new(unit, directory)
        left_out = excludes.within(directory)
        wanted = {os.path.basename(row.path) for row in tree.children(directory)}
        for name in sorted(set(os.listdir(place)) | wanted):
            path = directory + b"/" + name
            if left_out(name):
                continue
            if path in self._apart or os.path.ismount(place + b"/" + name):
                continue
            if any(other.startswith(path + b"/") for other in self._apart):
                os.makedirs(place + b"/" + name, exist_ok=True)
                self._exchange_in(tree, unit, path, excludes)
                row = tree.find(path)
                if row is not None:
                    self._apply(row, self._places.base + path)
            elif name not in wanted:
                self._retire(unit, place + b"/" + name, path)
            elif os.path.lexists(gathered + b"/" + name):
                if os.path.lexists(place + b"/" + name):
                    self._retire(unit, place + b"/" + name, path)
                os.rename(gathered + b"/" + name, place + b"/" + name)
                self._reached("exchanged")

    def _retire(self, unit: Unit, place: bytes, path: bytes) -> None:
        """Move what is in place out of the way."""
        old = self._staging(unit) + b"/old"
        os.makedirs(old, mode=0o700, exist_ok=True)
        number = len(os.listdir(old))
        os.rename(place, old + b"/%d" % number)

    def _place_one(self, tree: Tree, unit: Unit) -> None:
        """Exchange one file or directory. Directories above it that are gone come back with their attributes."""
        gathered = self._new(unit, unit.path)
        if not os.path.lexists(gathered):
            return
        folder, name = os.path.split(unit.final)
        base = os.open(self._places.base, os.O_RDONLY | os.O_DIRECTORY)
        try:
            parent = self._folder(base, folder, tree)
        finally:
            os.close(base)
        try:
            if _is_in(parent, name):
                old = self._staging(unit) + b"/old"
                os.makedirs(old, mode=0o700, exist_ok=True)
                os.rename(name, old + b"/%d" % len(os.listdir(old)), src_dir_fd=parent)
            os.rename(gathered, name, dst_dir_fd=parent)
            os.fsync(parent)
            self._reached("exchanged")
        finally:
            os.close(parent)

    def _folder(self, base: int, folder: bytes, tree: Tree) -> int:
        """A descriptor of `folder`, made where it is missing."""
        descriptor = os.dup(base)
        path = b""
        for part in folder.split(b"/") if folder else ():
            path = _joined(path, part)
            if not _is_in(descriptor, part):
                os.mkdir(part, 0o755, dir_fd=descriptor)
                row = tree.find(path)
                if row is not None and row.type == DIRECTORY:
                    self._problems += attributes.apply(row, descriptor, part, self._names)
                else:
                    around = os.fstat(descriptor)
                    os.chown(part, around.st_uid, around.st_gid, dir_fd=descriptor, follow_symlinks=False)
            below = attributes.open_below(descriptor, part)
            os.close(descriptor)
            descriptor = below
        return descriptor

    def _dress_roots(self, tree: Tree, units: Sequence[Unit]) -> None:
        for unit in units:
            row = tree.find(unit.path) if unit.whole else None
            if row is not None:
                self._apply(row, self._places.base + unit.path)
                sync_directory(os.fsdecode(self._places.base + unit.path))


def sweep(places: Places, volumes: Iterable[bytes]) -> None:
    """Remove what a restore that is over, or not begun, left in staging. The directory's own time stays what it was."""
    for volume in volumes:
        root = places.base + volume
        if os.path.lexists(_joined(root, STAGING)):
            status = os.lstat(root)
            if os.path.isdir(_joined(root, STAGING)) and not os.path.islink(_joined(root, STAGING)):
                _remove(_joined(root, STAGING))
            else:
                os.unlink(_joined(root, STAGING))
            os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))


def _remove(folder: bytes) -> None:
    """Remove a directory and all below it. What lies deeper is moved up first: a home may be deeper than Python's stack, and
    than a process may have descriptors."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(folder, flags)
    try:
        while names := os.listdir(top):
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                below = os.open(name, flags, dir_fd=top)
                try:
                    for each in os.listdir(below):
                        if stat.S_ISDIR(os.stat(each, dir_fd=below, follow_symlinks=False).st_mode):
                            os.rename(each, os.urandom(8).hex(), src_dir_fd=below, dst_dir_fd=top)
                        else:
                            os.unlink(each, dir_fd=below)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


class _Content:
    """Fetches chunks of many files together and writes them. At most WINDOW_BYTES of content and WINDOW_FILES files wait."""

    def __init__(
        self,
        console: Console,
        source: str | None,
        world: World,
        leave_out: Callable[[Row, bytes, OSError], None],
    ) -> None:
        """`leave_out` is told of a file that cannot be written, and raises if that is no reason to go on."""
        self._leave_out = leave_out
        self._console = console
        self._source = source
        self._world = world
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="download")
        self._urls: dict[bytes, tuple[Url, float]] = {}
        self._waiting: list[tuple[bytes, int, Chunk]] = []
        self._complete: dict[bytes, tuple[Row, Callable[[Row, bytes], None]]] = {}
        self._bytes = 0

    def __enter__(self) -> _Content:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)

    def add(self, row: Row, where: bytes, apply: Callable[[Row, bytes], None]) -> None:
        """Create the file; it has its content and attributes after the next `flush`, at the latest."""
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, row.size)
        finally:
            os.close(descriptor)
        self._complete[where] = (row, apply)
        place = 0
        for chunk in row.chunks:
            if where not in self._complete:
                return
            if not chunk.is_hole:
                self._waiting.append((where, place, chunk))
                self._bytes += chunk.raw
                if self._bytes >= WINDOW_BYTES:
                    self._fetch()
            place += chunk.raw
        if len(self._complete) >= WINDOW_FILES:
            self.flush()

    def flush(self) -> None:
        """All that was added is in its file. Not yet durable."""
        self._fetch()
        for where, (row, apply) in self._complete.items():
            apply(row, where)
        self._complete = {}

    def _fetch(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        packs = {chunk.pack for _, _, chunk in waiting}
        self._ask(packs)
        ranges = list(_ranges(waiting))
        fetched = self._pool.map(self._download, ((pack, begin, end) for pack, begin, end, _ in ranges))
        for data, (_, begin, _, parts) in zip(fetched, ranges):  # noqa: B905 - `strict` is of Python 3.10
            for where, place, chunk in parts:
                frame = memoryview(data)[chunk.offset - begin : chunk.offset - begin + chunk.stored]
                raw = read_chunk(frame, chunk.sha256)
                if len(raw) != chunk.raw:
                    raise Corrupt(f"a chunk of {os.fsdecode(where)} has {len(raw)} bytes, not {chunk.raw}")
                if where not in self._complete:
                    continue
                try:
                    _write(where, raw, place)
                except OSError as error:
                    self._leave_out(self._complete.pop(where)[0], where, error)

    def _ask(self, packs: set[bytes]) -> None:
        now = self._world.time()
        missing = [pack for pack in packs if pack not in self._urls or now - self._urls[pack][1] > URL_SECONDS]
        if len(self._urls) > 10 * OBJECTS_MAX:
            self._urls = {pack: entry for pack, entry in self._urls.items() if pack in packs}
        for place in range(0, len(missing), OBJECTS_MAX):
            request: dict[str, Any] = {
                "objects": [f"packs/{pack.hex()}" for pack in missing[place : place + OBJECTS_MAX]]
            }
            if self._source:
                request["from"] = self._source
            for name, url in self._console.urls("/guest/v1/downloads", request).items():
                if url is None:
                    raise Unavailable(f"the console gives no address for {name}")
                self._urls[bytes.fromhex(name.split("/")[1])] = (url, now)

    def _download(self, span: tuple[bytes, int, int]) -> bytes:
        pack, begin, end = span
        return self._console.download(self._urls[pack][0], begin, end - begin)


def _ranges(
    waiting: Sequence[tuple[bytes, int, Chunk]],
) -> Iterator[tuple[bytes, int, int, list[tuple[bytes, int, Chunk]]]]:
    """(pack, begin, end, what is in it) for each read, neighbours together."""
    pack, begin, end, parts = b"", 0, 0, list[tuple[bytes, int, Chunk]]()
    for entry in sorted(waiting, key=lambda each: (each[2].pack, each[2].offset)):
        chunk = entry[2]
        after = chunk.offset + chunk.stored
        if parts and (chunk.pack != pack or chunk.offset - end > GAP_BYTES or after - begin > RANGE_BYTES_MAX):
            yield pack, begin, end, parts
            parts = []
        if not parts:
            pack, begin, end = chunk.pack, chunk.offset, after
        parts.append(entry)
        end = max(end, after)
    if parts:
        yield pack, begin, end, parts


def _write(where: bytes, data: bytes, place: int) -> None:
    descriptor = os.open(where, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, place)
            view, place = view[written:], place + written
    finally:
        os.close(descriptor)


def _is_in(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _outermost(paths: Sequence[bytes]) -> list[bytes]:
    """Without those that are below another one."""
    every = sorted(set(paths), key=sort_key)
    return [path for path in every if not any(path.startswith(other + b"/") for other in every)]


def _no(message: str) -> AgentError:
    return Refused(message, "invalid", 422, {})


def path_of(text: str) -> bytes:
    """A path as commands carry it: base64 of its bytes, relative to `/`. ValueError for one that leads elsewhere."""
    path = base64.b64decode(text, validate=True).strip(b"/")
    if not path or any(part in (b"", b".", b"..") for part in path.split(b"/")) or b"\0" in path:
        raise ValueError(f"{path!r} is not a path in a home")
    return path
