"""Many records of a log, each read and hashed once: the work of full verification that processes share.

A `Stretch` is a run of bundles. Its answer has the hashes over each bundle, from which whoever put it out makes the tree, and
what it came across: records that name checkpoints and keys, intents and outcomes, and whatever does not fit.

One rule: a stretch judges only what it can see: that a bundle and the tile over it hash alike, and that each record names the
one before it. Which of two objects is the false one is decided under the signed root, by `full`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from integrity.errors import Malformed
from integrity.layout import kept_checkpoint_key, tile_key
from integrity.log_reader import LANES, Altered, LogReader, read_object
from integrity.record import INTEGER_MAX, START, after_of, decode
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint
from integrity.tlog.note import NoteRejected, open_note, parse_vkey
from integrity.tlog.tiles import ENTRIES, WIDTH, ChainBroken, chained_entries, split_bundle, tile_at
from integrity.tlog.tree import complete_root, cover, leaf_hash
from s3core.errors import NotFound
from s3core.store import ObjectStore

STRETCH_BUNDLES = 64
HASH_BYTES = 32
DIGITS_MAX = len(str(INTEGER_MAX))
BUNDLES_READ = 4
"""Read by one thread after another: handing each over would cost as much as hashing a part of it."""
_OF_THE_LOG = b'"source":"ledger"'
_INTENT = b'intent"'
_UNKNOWN = b'"phase":"unknown"'
"""What bundles are searched for, before anything of them is read as JSON: checkpoints and keys have the first, intents and
their outcomes the second (a text in a record has no quotation mark without a backslash). Of a record with none of them only the
hash matters; one that has one elsewhere is read and left alone."""
_PHASE = b'"phase":"'
_MEMBER = b',"'
_NESTED = b":{"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bundles `first` up to and without `last` of a log of `size` records. Of every `parse_every`th bundle all records are read
    as JSON (0: of none). `keys` are the vkeys that may have signed its checkpoints, by epoch."""

    writer: str
    origin: str
    size: int
    first: int
    last: int
    keys: tuple[str, ...]
    parse_every: int = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A record that names a checkpoint or a key: its number, its members, and the hashes of `cover` over its bundle's leaves up
    to and with it, from which the root at that size follows. For a checkpoint record, what the note that it names says, and the
    epoch whose key signed it."""

    number: int
    record: dict[str, object]
    hashes: tuple[bytes, ...]
    note: Checkpoint | None = None
    epoch: int = 0
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that does not fit, about records `first` to `last`. `certain`: it is tampering whichever object is right.
    `conflict`: bundle and tile differ, with the hashes over each."""

    what: str
    where: str
    first: int
    last: int
    certain: bool = True
    conflict: tuple[bytes, bytes] | None = None


@dataclass(slots=True)
class Walked:
    """What became of a stretch. `rows` has 32 bytes for each full bundle, `tail` the leaf hashes of a partial one."""

    first: int
    records: int = 0
    parsed: int = 0
    size: int = 0
    """Bytes of bundles that were hashed."""
    rows: bytearray = field(default_factory=bytearray)
    tail: list[bytes] = field(default_factory=list)
    after: bytes = START
    """What its first record names, and the hash of its last one; empty where that cannot be known."""
    last: bytes = START
    marks: list[Mark] = field(default_factory=list)
    open: dict[int, bytes] = field(default_factory=dict)
    """Intents without an outcome within the stretch."""
    unknown: dict[int, bytes] = field(default_factory=dict)
    """Records that say that nobody knows what became of an intent; what a feed does not know belongs to none."""
    incidents: list[tuple[int, dict[str, object]]] = field(default_factory=list)
    """Records that tell of something that should not be in the store (`trust.is_incident`)."""
    closed: list[int] = field(default_factory=list)
    """Intents before the stretch that have their outcome in it."""
    troubles: list[Trouble] = field(default_factory=list)


def stretches(
    writer: str, origin: str, size: int, keys: Sequence[str], *, parse_every: int = 1, bundles: int = STRETCH_BUNDLES
) -> Iterator[Stretch]:
    """A whole log as stretches, in order."""
    end = -(-size // WIDTH)
    for first in range(0, end, bundles):
        yield Stretch(writer, origin, size, first, min(end, first + bundles), tuple(keys), parse_every)


def walk(store: ObjectStore, stretch: Stretch, threads: ThreadPoolExecutor | None = None) -> Walked:
    """Read and hash it. What the store says beside NotFound is raised: nothing was found out then."""
    if threads is None:
        with readers(store) as own:
            return _Walk(store, stretch, own).run()
    return _Walk(store, stretch, threads).run()


def readers(store: ObjectStore) -> ThreadPoolExecutor:
    """Threads that read ahead: one of them keeps up with a local disk, and more would only take turns with the hashing."""
    lanes = LANES if store.properties.scheme == "s3" else 1
    return ThreadPoolExecutor(lanes, thread_name_prefix="walk")


_Read = tuple[int, bytes | Altered, bytes | None]
"""A bundle's number, its bytes or that they are missing, and the tile's bytes, None where it is missing."""


class _Walk:
    def __init__(self, store: ObjectStore, stretch: Stretch, threads: ThreadPoolExecutor) -> None:
        self._store = store
        self._stretch = stretch
        self._threads = threads
        self._reader = LogReader(
            store, stretch.writer, stretch.origin, [], trusted=Checkpoint(stretch.origin, stretch.size, START)
        )
        self._keys = [parse_vkey(key) for key in stretch.keys]
        self._found = Walked(stretch.first)

    def run(self) -> Walked:
        stretch = self._stretch
        starts = iter(range(stretch.first, stretch.last, BUNDLES_READ))
        waiting: deque[Future[list[_Read]]] = deque()
        try:
            for start in starts:
                waiting.append(self._threads.submit(self._read, start))
                if len(waiting) == LANES:
                    break
            while waiting:
                read = waiting.popleft().result()
                following = next(starts, None)
                if following is not None:
                    waiting.append(self._threads.submit(self._read, following))
                for one in read:
                    self._bundle(*one)
        finally:
            for future in waiting:
                future.cancel()
        return self._found

    def _read(self, first: int) -> list[_Read]:
        """Bundles from `first` on, with the tiles over them."""
        found: list[_Read] = []
        for index in range(first, min(self._stretch.last, first + BUNDLES_READ)):
            data: bytes | Altered
            try:
                data = self._reader.bundle(index)
            except Altered as error:
                data = error
            found.append((index, data, self._tile(index)))
        return found

    def _tile(self, index: int) -> bytes | None:
        tile = tile_at(self._stretch.size, 0, index)
        for one in (tile, tile.whole):
            try:
                data = self._reader.object(one.path)
            except NotFound:
                continue
            except Altered:
                return b""
            return data[: tile.width * HASH_BYTES] if one != tile else data
        return None

    def _bundle(self, index: int, data: bytes | Altered, tile: bytes | None) -> None:
        found = self._found
        width = tile_at(self._stretch.size, ENTRIES, index).width
        begin = index * WIDTH
        first = index == self._stretch.first
        where = tile_key(self._stretch.writer, tile_at(self._stretch.size, ENTRIES, index).path)
        tile_where = tile_key(self._stretch.writer, tile_at(self._stretch.size, 0, index).path)
        end = begin + width - 1
        named: bytes | None = None
        hashes: list[bytes] = []
        entries: list[bytes] = []
        if isinstance(data, Altered):
            self._trouble(str(data).removeprefix(f"{self._stretch.writer}: "), data.where, begin, end)
        else:
            try:
                entries, hashes, named = self._hashed(data, begin, width, where, first)
            except Malformed as error:
                self._trouble(f"not a bundle of {width} records: {error}", where, begin, end)
        whole = bool(hashes)
        if tile is None:
            self._trouble(f"the tile of the hashes of {width} records is missing", tile_where, begin, end)
        elif len(tile) != width * HASH_BYTES:
            self._trouble(f"the tile has {len(tile)} bytes, not {width * HASH_BYTES}", tile_where, begin, end)
        elif not whole:
            # What the records were, if the tile is right: the rest of the log can still be told good or bad.
            hashes = [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]
        elif tile != b"".join(hashes):
            other = [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]
            wrong = [begin + at for at in range(width) if hashes[at] != other[at]]
            conflict = (_over(hashes), _over(other))
            found.troubles.append(
                Trouble(
                    "the records do not have the hashes of the tile over them",
                    where,
                    wrong[0],
                    wrong[-1],
                    False,
                    conflict,
                )
            )
        known = bool(hashes)
        if not known:
            hashes = [START] * width
        if first:
            found.after = named if named is not None else b""
        if whole and isinstance(data, bytes):
            found.records += width
            found.size += len(data)
            self._look(index, data, entries, hashes)
        found.last = hashes[-1] if known else b""
        if width == WIDTH:
            found.rows += complete_root(hashes)
        else:
            found.tail = hashes

    def _hashed(
        self, data: bytes, begin: int, width: int, where: str, first: bool
    ) -> tuple[list[bytes], list[bytes], bytes]:
        """A bundle's records, their hashes, and what its first names."""
        named = after_of(data[2:90])
        before = named if first or not self._found.last else self._found.last
        try:
            entries, hashes = chained_entries(data, before)
        except ChainBroken as error:
            number = begin + error.position
            self._trouble("its `after` is not the hash of the record before it", where, number, number)
            entries = split_bundle(data)
            hashes = [leaf_hash(entry) for entry in entries]
        if len(hashes) != width:
            raise Malformed(f"it holds {len(hashes)}")
        return entries, hashes, named

    def _look(self, index: int, data: bytes, entries: list[bytes], hashes: list[bytes]) -> None:
        """Take from the records what is asked of them beside their hashes: intents and outcomes, checkpoints, keys."""
        every = self._stretch.parse_every
        begin = index * WIDTH
        if every and index % every == 0:
            for at, entry in enumerate(entries):
                self._read_record(begin + at, entry, hashes, at)
            return
        of_the_log, intents = _OF_THE_LOG in data, _INTENT in data
        if not intents:
            if of_the_log:
                for at, entry in enumerate(entries):
                    if _OF_THE_LOG in entry:
                        self._read_record(begin + at, entry, hashes, at)
            return
        unknown = _UNKNOWN in data
        intents_open = self._found.open
        for at, entry in enumerate(entries):
            place = entry.find(_INTENT)
            if of_the_log and _OF_THE_LOG in entry:
                self._read_record(begin + at, entry, hashes, at)
                continue
            if place < 0:
                continue
            # Members are in order, so before this one only `detail` and `error` can be objects with a member of that name.
            if entry.find(_INTENT, place + len(_INTENT)) < 0 and entry.find(_NESTED, 0, place) < 0:
                if entry[place - len(_PHASE) : place] == _PHASE:
                    intents_open[begin + at] = entry
                    continue
                number = place + len(_INTENT) + 1
                digits = entry[number : entry.find(b",", number)]
                if (
                    entry[place - len(_MEMBER) : place] == _MEMBER
                    and digits.isdigit()
                    and len(digits) <= DIGITS_MAX
                    and not (unknown and _UNKNOWN in entry)
                ):
                    self._close(begin + at, int(digits))
                    continue
            self._read_record(begin + at, entry, hashes, at)

    def _read_record(self, number: int, entry: bytes, hashes: list[bytes], at: int) -> None:
        try:
            record = decode(entry)
        except Malformed as error:
            self._trouble(f"what was signed is not a record: {error}", self._bundle_key(number), number, number)
            return
        self._found.parsed += 1
        if record.get("n") != number or record.get("writer") != self._stretch.writer:
            told = f"{record.get('writer')!r} {record.get('n')!r}"
            self._trouble(f"the record calls itself {told}", self._bundle_key(number), number, number)
        self._sort(number, record, entry, hashes, at)

    def _bundle_key(self, number: int) -> str:
        return tile_key(self._stretch.writer, tile_at(self._stretch.size, ENTRIES, number // WIDTH).path)

    def _close(self, number: int, intent: int) -> None:
        """Record `number` is the outcome of `intent`."""
        if intent < number and self._found.open.pop(intent, None) is None:
            self._found.closed.append(intent)

    def _sort(self, number: int, record: dict[str, object], entry: bytes, hashes: list[bytes], at: int) -> None:
        found = self._found
        if record.get("phase") == "intent":
            found.open[number] = entry
        elif record.get("phase") == "unknown" and "intent" in record:
            found.unknown[number] = entry
        if record.get("op") == "error" and record.get("source") == "ledger":
            found.incidents.append((number, record))
        intent = record.get("intent")
        if isinstance(intent, int):
            self._close(number, intent)
        if record.get("op") in ("checkpoint", "key"):
            covered = tuple(
                complete_root(hashes[place << level : place + 1 << level]) for level, place in cover(0, at + 1)
            )
            found.marks.append(self._mark(number, record, covered))

    def _mark(self, number: int, record: dict[str, object], covered: tuple[bytes, ...]) -> Mark:
        if record["op"] != "checkpoint":
            return Mark(number, record, covered)
        named = named_checkpoint(record)
        if named is None:
            return Mark(number, record, covered)
        size, _ = named
        key = kept_checkpoint_key(self._stretch.writer, size)
        try:
            data = read_object(self._store, key, self._stretch.writer)
        except NotFound:
            return Mark(number, record, covered, trouble="is missing")
        except Altered as error:
            return Mark(number, record, covered, trouble=f"is none: {error}")
        try:
            checkpoint = open_checkpoint(data, self._stretch.origin, self._keys)
        except (Malformed, NoteRejected) as error:
            return Mark(number, record, covered, trouble=f"does not hold: {error}")
        return Mark(number, record, covered, checkpoint, signing_epoch(data, self._stretch.keys))

    def _trouble(self, what: str, where: str, first: int, last: int) -> None:
        self._found.troubles.append(Trouble(what, where, first, last))


def named_checkpoint(record: dict[str, object]) -> tuple[int, bytes] | None:
    """Size and root of the checkpoint before, as a checkpoint record names it; None where it is the first."""
    detail = record.get("detail")
    if not isinstance(detail, dict):
        return None
    size, root = detail.get("size"), detail.get("root")
    if not isinstance(size, int) or not isinstance(root, str) or size <= 0:
        return None
    try:
        return size, bytes.fromhex(root)
    except ValueError:
        return None


def signing_epoch(note: bytes, keys: Sequence[str]) -> int:
    """The newest epoch, among `keys` by epoch, whose key signed the note. NoteRejected where none did."""
    for epoch in reversed(range(len(keys))):
        verifier = parse_vkey(keys[epoch])
        try:
            open_note(note, [verifier])
        except NoteRejected as error:
            if "does not hold" in str(error):
                raise
            continue
        return epoch
    raise NoteRejected("no epoch's key signed it")


def _over(hashes: list[bytes]) -> bytes:
    return complete_root(hashes) if len(hashes) == WIDTH else b"".join(hashes)
