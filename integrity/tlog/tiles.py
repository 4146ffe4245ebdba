"""The objects of a log: tiles of hashes and bundles of entries (C2SP tlog-tiles), and what may be believed of them.

Tile (L, N) holds the hashes of the complete subtrees of level 8 L with numbers 256 N to 256 N + 255. A tree's rightmost tile
of a level may be partial, and such tiles stay where they are when the tree has grown. A bundle is the entries below a tile of
level 0, each with its length before it. `Edge` is what a writer grows, `TileNodes` what a reader believes.

The *edge* of a tree is its partial tiles, one after another from level 0 on, without anything between: the tree's size tells
how long each is. It is not of C2SP. As one small object beside each checkpoint it saves a reader of a large log one GET a
level, and a writer that starts again likewise; a log without it is read just as well.

One rule: all names follow from a tree's size, and no hash that was read is handed on before it is shown to be under the root
that was signed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from integrity.errors import Malformed, Tampered
from integrity.tlog.tree import Frontier, complete_root, row_above
from s3core.errors import NotFound

WIDTH = 256
HEIGHT = 8
"""Levels of the tree in a level of tiles: 2^8 is `WIDTH`."""
HASH_BYTES = 32
TILE_BYTES = WIDTH * HASH_BYTES
ENTRY_BYTES_MAX = 65_535
BUNDLE_BYTES_MAX = WIDTH * (2 + ENTRY_BYTES_MAX)
EDGE_BYTES_MAX = HEIGHT * 255 * HASH_BYTES
"""Of an edge: a tree of 2^64 leaves has eight levels of tiles."""
HELD_TILES_MAX = 1024
"""Tiles that a `TileNodes` keeps in memory: about 20 MiB."""
ENTRIES = -1
"""The level of a bundle, where tiles and bundles are told alike."""

_AFTER = slice(10, 74)
"""Where a record holds the hash of the one before it, in hex (`integrity.record`)."""


class ChainBroken(Tampered):
    """A record does not name the hash of the one before it. `position` is its number in the bundle."""

    def __init__(self, message: str, *, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile, or with `level` ENTRIES a bundle. `width` is how many hashes or entries it has: below 256, a partial one."""

    level: int
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        return tile_path(self.level, self.index, self.width)

    @property
    def whole(self) -> "Tile":
        return Tile(self.level, self.index)


def tile_path(level: int, index: int, width: int = WIDTH) -> str:
    """Its name behind the log's prefix: `tile/2/x001/x234/067`, `tile/0/000.p/17`."""
    if not -1 <= level <= 63 or index < 0 or not 1 <= width <= WIDTH:
        raise ValueError(f"there is no tile of level {level}, index {index} and width {width}")
    digits = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        digits = f"x{index % 1000:03d}/{digits}"
    name = f"tile/{'entries' if level == ENTRIES else level}/{digits}"
    return name if width == WIDTH else f"{name}.p/{width}"


def entries_path(index: int, width: int = WIDTH) -> str:
    """The name of a bundle."""
    return tile_path(ENTRIES, index, width)


def widths(size: int, level: int) -> tuple[int, int]:
    """For a tree of that size: how many full tiles the level has, and how wide its partial one is (0: there is none).
    For bundles `level` is ENTRIES."""
    hashes = size >> HEIGHT * max(level, 0)
    return hashes // WIDTH, hashes % WIDTH


def levels(size: int) -> int:
    """How many levels of tiles a tree of that size has: none when it is empty."""
    return (max(0, size.bit_length() - 1)) // HEIGHT + 1 if size else 0


def tile_at(size: int, level: int, index: int) -> Tile:
    """The tile with that index in a tree of that size, as wide as it is there. ValueError where there is none."""
    full, partial = widths(size, level)
    if index < full:
        return Tile(level, index)
    if index == full and partial:
        return Tile(level, index, partial)
    raise ValueError(f"a tree of {size:,} leaves has no tile {index:,} of level {level}")


def tiles_to_publish(old_size: int, new_size: int) -> list[Tile]:
    """What a log that grew from `old_size` (published) to `new_size` has to put before the new checkpoint: bundles first, then
    tiles, a level after another, each from left to right; every partial one that the new size has is among them."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a log of {new_size:,} entries never had {old_size:,}")
    found = []
    for level in range(ENTRIES, levels(new_size)):
        before, _ = widths(old_size, level)
        full, partial = widths(new_size, level)
        found += [Tile(level, index) for index in range(before, full)]
        # One that is as wide as before was put with the old size.
        if partial and (full, partial) != widths(old_size, level):
            found.append(Tile(level, full, partial))
    return found


def encode_bundle(records: Sequence[bytes]) -> bytes:
    """Entries as a bundle. ValueError for one that is too long, or too many."""
    if len(records) > WIDTH:
        raise ValueError(f"a bundle holds {WIDTH} entries, not {len(records)}")
    for record in records:
        if len(record) > ENTRY_BYTES_MAX:
            raise ValueError(f"an entry has at most {ENTRY_BYTES_MAX:,} bytes, this one {len(record):,}")
    return b"".join([part for record in records for part in (len(record).to_bytes(2, "big"), record)])


def split_bundle(data: bytes) -> list[bytes]:
    """The entries of a bundle. Malformed where it ends within one or holds more than 256."""
    found: list[bytes] = []
    keep = found.append
    at, end = 0, len(data)
    while at + 2 <= end:
        begin = at + 2
        at = begin + (data[at] << 8 | data[at + 1])
        keep(data[begin:at])
    if at != end:
        raise Malformed(f"the bundle of {end:,} bytes ends within an entry")
    if len(found) > WIDTH:
        raise Malformed(f"the bundle holds {len(found):,} entries; {WIDTH} is the most")
    return found


def chained_bundle(data: bytes, after: bytes) -> tuple[list[bytes], bytes]:
    """The leaf hashes of a bundle of records, and the last one, each of whose records names the hash before it; `after` is
    the one before the first.

    ChainBroken where a record names another; Malformed as of `split_bundle`."""
    _, hashes = chained_entries(data, after)
    return hashes, hashes[-1] if hashes else after


def chained_entries(data: bytes, after: bytes) -> tuple[list[bytes], list[bytes]]:
    """The records of a bundle and their leaf hashes; else as `chained_bundle`. The hot loop of full verification: it reads
    nothing of a record but the hash it names."""
    entries = split_bundle(data)
    # Loops of one thing each: together, or with the place of each record kept in place of its bytes, they took a quarter more.
    hashes = [sha256(b"\x00" + entry).digest() for entry in entries]
    # One comparison for all: a hex text for each would cost as much as half of the hashing.
    if b"".join([entry[_AFTER] for entry in entries]) != b"".join([after, *hashes[:-1]]).hex().encode() and entries:
        _tell_break(entries, [after, *hashes])
    return entries, hashes


def split_tile(data: bytes, width: int) -> list[bytes]:
    """The first `width` hashes of a tile, which may be a wider one. Malformed where it is narrower or no tile."""
    if len(data) % HASH_BYTES or not width * HASH_BYTES <= len(data) <= TILE_BYTES:
        raise Malformed(f"{len(data):,} bytes are no tile of {width} hashes")
    return [data[at : at + HASH_BYTES] for at in range(0, width * HASH_BYTES, HASH_BYTES)]


class Edge:
    """The right edge of a tree that grows: what its partial tiles hold. Not for several threads.

    A writer extends it by leaf hashes, puts the full tiles that this gives, then `partial()`, then its checkpoint."""

    __slots__ = ("_rows", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._rows: list[list[bytes]] = []

    @classmethod
    def from_tiles(cls, size: int, rows: Sequence[Sequence[bytes]]) -> "Edge":
        """The edge of a tree of that size, given the hashes of its partial tile at every level, empty where there is none.
        ValueError where they are not as many as the size says. Whoever got them elsewhere compares `root()`."""
        if len(rows) != levels(size):
            raise ValueError(f"a tree of {size:,} leaves has {levels(size)} levels of tiles, not {len(rows)}")
        for level, row in enumerate(rows):
            if len(row) != widths(size, level)[1] or any(len(one) != HASH_BYTES for one in row):
                raise ValueError(f"the partial tile of level {level} of {size:,} leaves has not {len(row)} hashes")
        edge = cls()
        edge._size, edge._rows = size, [list(row) for row in rows]
        return edge

    @classmethod
    def decode(cls, size: int, data: bytes) -> "Edge":
        """The edge of a tree of that size from `encode`. Malformed where it has another length."""
        wide = [widths(size, level)[1] for level in range(levels(size))]
        if len(data) != sum(wide) * HASH_BYTES:
            raise Malformed(f"{len(data):,} bytes are not the edge of a tree of {size:,} leaves")
        rows, at = [], 0
        for count in wide:
            rows.append([data[at + n * HASH_BYTES : at + (n + 1) * HASH_BYTES] for n in range(count)])
            at += count * HASH_BYTES
        return cls.from_tiles(size, rows)

    def encode(self) -> bytes:
        """All partial tiles, one after another from level 0 on."""
        return b"".join([one for row in self._rows for one in row])

    @property
    def size(self) -> int:
        return self._size

    @property
    def rows(self) -> tuple[tuple[bytes, ...], ...]:
        return tuple(tuple(row) for row in self._rows)

    def copy(self) -> "Edge":
        return Edge.from_tiles(self._size, self._rows)

    def extend(self, leaves: Iterable[bytes]) -> list[tuple[Tile, bytes]]:
        """More leaves, by their `leaf_hash`. The tiles that this fills, with their bytes, level after level."""
        found = []
        more = list(leaves)
        before = self._size
        self._size += len(more)
        level = 0
        while more:
            if level == len(self._rows):
                self._rows.append([])
            row = self._rows[level]
            row += more
            number = before >> HEIGHT * (level + 1)
            more = []
            for at in range(0, len(row) - WIDTH + 1, WIDTH):
                full = row[at : at + WIDTH]
                found.append((Tile(level, number), b"".join(full)))
                more.append(complete_root(full))
                number += 1
            if more:
                del row[: len(more) * WIDTH]
            level += 1
        return found

    def partial(self) -> list[tuple[Tile, bytes]]:
        """The partial tiles that the tree has now, with their bytes, level after level."""
        return [
            (Tile(level, widths(self._size, level)[0], len(row)), b"".join(row))
            for level, row in enumerate(self._rows)
            if row
        ]

    def frontier(self) -> Frontier:
        """The same tree as a `Frontier`."""
        peaks = []
        for row in reversed(self._rows):
            at = 0
            while at < len(row):
                wide = 1 << (len(row) - at).bit_length() - 1
                peaks.append(complete_root(row[at : at + wide]))
                at += wide
        return Frontier.from_hashes(self._size, peaks)

    def root(self) -> bytes:
        return self.frontier().root()


def _tell_break(records: Sequence[bytes], before: Sequence[bytes]) -> None:
    for position, (record, hash_) in enumerate(zip(records, before, strict=False)):
        if record[_AFTER] != hash_.hex().encode():
            raise ChainBroken(
                f"record {position} of the bundle follows {record[_AFTER]!r}, and the one before it is {hash_.hex()}",
                position=position,
            )
    raise AssertionError("hashes that differ together are all alike one by one")


Fetch = Callable[[str], bytes]
"""The object behind the log's prefix with that path. NotFound where there is none; what else it raises goes through."""


class TileNodes:
    """The hashes of a tree out of its tiles: `Nodes` for `integrity.tlog.tree`. Not for several threads.

    `root` is the tree's, from a checkpoint whose signature holds: nothing is handed on that is not shown to be under it.
    A partial tile that is not there is taken out of the full one (a log may remove it then). `each` calls `fetch` for several
    paths that are needed at once, in their order: `map`, or that of a pool of threads.

    `edge` is the tree's edge as `Edge.encode` gives it, if somebody has it: a wrong one is not believed, and told by
    `edge_held` staying False; the partial tiles are read instead.

    Tampered when a tile that must be there is not, or holds other hashes than the root was made of."""

    def __init__(
        self,
        size: int,
        root: bytes,
        fetch: Fetch,
        *,
        edge: bytes | None = None,
        each: Callable[[Fetch, Sequence[str]], Iterable[bytes]] = map,
    ) -> None:
        self.size = size
        self.root = root
        self.edge_held = False
        self._fetch = fetch
        self._each = each
        self._held: dict[tuple[int, int], Sequence[bytes]] = {}
        self._rows_above: dict[tuple[int, int], list[Sequence[bytes]]] = {}
        self._offered: dict[tuple[int, int], Sequence[bytes]] = {}
        self._edge: Edge | None = None
        if edge is not None:
            self._try_edge(edge)

    def offer(self, level: int, index: int, hashes: Sequence[bytes]) -> None:
        """What the tile holds according to somebody else (its bundle, a cache): used instead of a GET, if it proves right."""
        if len(hashes) == tile_at(self.size, level, index).width:
            self._offered[level, index] = hashes

    def __call__(self, wanted: Sequence[tuple[int, int]]) -> list[bytes]:
        places = [self._place(level, index) for level, index in wanted]
        self._hold({place for place, _, _ in places})
        return [self._within(place, level, position) for place, level, position in places]

    def leaf_hashes(self, index: int) -> Sequence[bytes]:
        """All hashes of a tile of level 0, as wide as it is in this tree."""
        self._hold({(0, index)})
        return self._held[0, index]

    def whole_edge(self) -> Edge:
        """The tree's right edge: what a writer goes on from."""
        self._hold(set())
        assert self._edge is not None
        return self._edge.copy()

    def _place(self, level: int, index: int) -> tuple[tuple[int, int], int, int]:
        """Which tile holds a complete subtree: the tile, the level within it, the position in that level."""
        if level < 0 or index < 0 or (index + 1) << level > self.size:
            raise ValueError(f"a tree of {self.size:,} leaves has no complete subtree {index:,} of level {level}")
        tile_level, within = divmod(level, HEIGHT)
        position = index & (WIDTH >> within) - 1
        return (tile_level, index >> HEIGHT - within), within, position

    def _within(self, place: tuple[int, int], level: int, position: int) -> bytes:
        rows = self._rows_above.setdefault(place, [self._held[place]])
        while len(rows) <= level:
            rows.append(row_above(rows[-1][: len(rows[-1]) & ~1]))
        return rows[level][position]

    def _hold(self, places: set[tuple[int, int]]) -> None:
        """Have these tiles, shown to be under the root: with all that are needed for that, fetched together."""
        self._trim()
        needed = set()
        for level, index in places:
            while (level, index) not in self._held and (level, index) not in needed:
                needed.add((level, index))
                if tile_at(self.size, level, index).width < WIDTH:
                    break
                level, index = level + 1, index // WIDTH
        if self._edge is None:
            for level in range(levels(self.size)):
                full, partial = widths(self.size, level)
                if partial:
                    needed.add((level, full))
        read = self._read(sorted(needed))
        if self._edge is None:
            rows = [read.get((level, widths(self.size, level)[0]), []) for level in range(levels(self.size))]
            self._hold_edge(Edge.from_tiles(self.size, rows))
        for (level, index), hashes in sorted(read.items(), reverse=True):
            if (level, index) in self._held:
                continue
            above = self._held[level + 1, index // WIDTH]
            if complete_root(hashes) != above[index % WIDTH]:
                if (level, index) in self._offered:
                    del self._offered[level, index]
                    self._hold({(level, index)})
                    continue
                path = tile_path(level, index)
                raise Tampered(f"{path} holds other hashes than the signed root was made of", where=path)
            self._held[level, index] = hashes

    def _hold_edge(self, edge: Edge) -> None:
        if edge.root() != self.root:
            offered = [place for place in self._offered if tile_at(self.size, *place).width < WIDTH]
            if offered:
                for place in offered:
                    del self._offered[place]
                self._hold(set())
                return
            paths = ", ".join(tile.path for tile, _ in edge.partial())
            raise Tampered(
                f"the partial tiles of the tree of {self.size:,} do not make up the signed root", where=paths
            )
        self._edge = edge
        for level, row in enumerate(edge.rows):
            if row:
                self._held[level, widths(self.size, level)[0]] = row

    def _try_edge(self, data: bytes) -> None:
        try:
            edge = Edge.decode(self.size, data)
        except Malformed:
            return
        if edge.root() == self.root:
            self.edge_held = True
            self._hold_edge(edge)

    def _read(self, places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Sequence[bytes]]:
        found = {place: self._offered[place] for place in places if place in self._offered}
        tiles = [tile_at(self.size, *place) for place in places if place not in found]
        for tile, data in zip(tiles, self._each(self._fetched, [tile.path for tile in tiles]), strict=True):
            try:
                found[tile.level, tile.index] = split_tile(data, tile.width)
            except Malformed as error:
                raise Tampered(f"{tile.path}: {error}", where=tile.path) from error
        return found

    def _fetched(self, path: str) -> bytes:
        whole, partial, _ = path.rpartition(".p/")
        try:
            return self._fetch(path)
        except NotFound as error:
            if partial:
                try:
                    return self._fetch(whole)
                except NotFound:
                    pass
            raise Tampered(f"{path} is not there, and a log of {self.size:,} records has it", where=path) from error

    def _trim(self) -> None:
        """Forget old tiles, so that one that reads a whole log does not keep it. What is at the edge stays."""
        surplus = len(self._held) - HELD_TILES_MAX
        if surplus > 0:
            full = [place for place in self._held if tile_at(self.size, *place).width == WIDTH]
            for place in full[: surplus + HELD_TILES_MAX // 2]:
                del self._held[place]
                self._rows_above.pop(place, None)
