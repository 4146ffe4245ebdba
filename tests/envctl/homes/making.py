"""Homes made without a machine: files as a dictionary become packs and trees by the agent's own writers.

One rule: nothing here looks at what the console does with them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envctl.agent import pack as packs
from envctl.agent.tree import DIRECTORY, FILE, SYMLINK, Chunk, Row, TreeReader, TreeWriter, hole, sort_key
from envctl.homes import keys
from envctl.homes.documents import Commit, Kind, Snapshot, Stats
from envctl.homes.presigning import ConsolePresigner
from envctl.homes.store import HomeStore
from s3core.memory import MemoryObjects, MemoryStore
from s3core.store import ObjectStore
from tests.s3core.fakes import FakeClock

ENVIRONMENT = "01hzy0000000000000000000aa"
OTHER = "01hzy0000000000000000000bb"
SECRET = bytes(32)
CHUNK = 40
"""Bytes of a chunk here: a few letters are a file of several."""


@dataclass
class Bucket:
    """What stores share that stand for the processes of a console."""

    clock: FakeClock = field(default_factory=FakeClock)
    contents: MemoryObjects = field(default_factory=MemoryObjects)

    @property
    def objects(self) -> ObjectStore:
        return MemoryStore(clock=self.clock, bucket=self.contents)

    def store(self, objects: ObjectStore | None = None) -> HomeStore:
        drawn = iter(range(1, 1_000_000))
        return HomeStore(
            objects or self.objects,
            ConsolePresigner(SECRET),
            self.clock,
            random=lambda count: next(drawn).to_bytes(count, "big"),
            threads=1,
        )

    def keys(self, folder: str = "") -> list[str]:
        return [entry.key for entry in self.objects.list(folder)]

    def damage(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)


@dataclass(frozen=True)
class Made:
    """A home as objects. `trees` in order; `packs` those that are new."""

    trees: tuple[str, ...]
    packs: tuple[str, ...]
    objects: Mapping[str, bytes]
    """By name, such as `packs/<sha256>`."""
    rows: Sequence[Row]


def file_row(path: bytes, chunks: Sequence[Chunk], **columns: object) -> Row:
    row = Row(
        path, FILE, 0o644, 1000, 1000, b"ann", b"ann", 10**18, sum(one.raw for one in chunks), chunks=tuple(chunks)
    )
    return row._replace(**columns)  # type: ignore[arg-type]  # columns are fields of a row


def directory_row(path: bytes, **columns: object) -> Row:
    row = Row(path, DIRECTORY, 0o755, 1000, 1000, b"ann", b"ann", 10**18, 0)
    return row._replace(**columns)  # type: ignore[arg-type]  # columns are fields of a row


def link_row(path: bytes, target: bytes) -> Row:
    return Row(path, SYMLINK, 0o777, 1000, 1000, b"ann", b"ann", 10**18, 0, target=target)


def make(
    files: Mapping[str, bytes],
    *,
    extra: Sequence[Row] = (),
    salt: bytes = b"",
    segment_rows: int = 4,
    packs_of: int = 3,
) -> Made:
    """Each file's content in chunks of CHUNK bytes, a run of zeros of that length as a hole; `packs_of` files share a pack.
    `salt` makes packs of the same files other ones."""
    rows: list[Row] = list(extra)
    objects: dict[str, bytes] = {}
    writer, held = packs.PackWriter(), list[tuple[str, list[packs.Packed | int]]]()
    folders: set[bytes] = set()

    def close() -> None:
        nonlocal writer, held
        if salt:
            writer.add(salt, hashlib.sha256(salt).digest())
        data = writer.finish()
        name = hashlib.sha256(data)
        for path, parts in held:
            chunks = [
                hole(part)
                if isinstance(part, int)
                else Chunk(name.digest(), part.sha256, part.offset, part.stored, part.raw)
                for part in parts
            ]
            rows.append(file_row(path.encode("utf-8", "surrogateescape"), chunks))
        if len(writer) > len(packs.MAGIC) and any(not isinstance(part, int) for _, parts in held for part in parts):
            objects[f"packs/{name.hexdigest()}"] = data
        writer, held = packs.PackWriter(), []

    for path, content in sorted(files.items()):
        raw = path.encode("utf-8", "surrogateescape")
        above = raw.split(b"/")[:-1]
        folders.update(b"/".join(above[:count]) for count in range(1, len(above) + 1))
        parts: list[packs.Packed | int] = []
        for at in range(0, len(content), CHUNK):
            piece = content[at : at + CHUNK]
            parts.append(len(piece) if not any(piece) else writer.add(piece, hashlib.sha256(piece).digest()))
        held.append((path, parts))
        if len(held) == packs_of:
            close()
    if held:
        close()
    present = {row.path for row in rows}
    rows += [directory_row(path) for path in folders - present]
    rows.sort(key=lambda row: sort_key(row.path))
    trees = []
    for at in range(0, len(rows), segment_rows):
        segment = TreeWriter()
        for row in rows[at : at + segment_rows]:
            segment.add(row)
        data = segment.finish()
        name = hashlib.sha256(data).hexdigest()
        objects[f"trees/{name}"] = data
        trees.append(name)
    names = tuple(name.partition("/")[2] for name in objects if name.startswith("packs/"))
    return Made(tuple(trees), names, objects, rows)


def upload(store: HomeStore, made: Made, environment_id: str = ENVIRONMENT) -> int:
    """What is not there yet; how many."""
    wanted = [(name, len(data), name.partition("/")[2]) for name, data in made.objects.items()]
    urls = store.upload_urls(environment_id, wanted)
    absent = [name for name, url in urls.items() if url is not None]
    for name in absent:
        store.objects.put_if_absent(keys.content(environment_id, keys.object_name(name)), made.objects[name])
    return len(absent)


def commit_of(
    made: Made, parent: int | None, *, at: float = 1.0, kind: Kind = "timer", stats: Stats | None = None
) -> Commit:
    files = [row for row in made.rows if row.type == FILE]
    counted = Stats(files=len(files), bytes=sum(row.size for row in files))
    return Commit(parent, made.trees, made.packs, kind, at, stats or counted)


def save(
    store: HomeStore, made: Made, *, environment_id: str = ENVIRONMENT, generation: int = 1, **more: object
) -> Snapshot:
    """What an agent does: objects first, then the commit on top of what is there."""
    head = store.head(environment_id)
    upload(store, made, environment_id)
    parent = head.number if head and head.number else None
    return store.commit(environment_id, generation, commit_of(made, parent, **more))  # type: ignore[arg-type]  # commit_of's


def contents(store: HomeStore, number: int, environment_id: str = ENVIRONMENT) -> dict[str, bytes]:
    """Every file of a snapshot, read back."""
    found: dict[str, bytes] = {}
    snapshot = store.snapshot(environment_id, number)
    for tree in snapshot.trees:
        data = store.objects.get(keys.content(environment_id, keys.tree(tree))).data
        for row in TreeReader(data).rows():
            if row.type == FILE:
                opened = store.open_file(environment_id, number, row.path)
                found[row.path.decode("utf-8", "surrogateescape")] = b"".join(opened.pieces)
    return found
