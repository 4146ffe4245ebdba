"""The structure of a ledger's place: which objects the sizes demand, which are there, which nobody needs.

It asks for no key and reads nothing but the newest checkpoints, so that it runs on a copy, on a bucket that is being restored,
or where nobody has the configuration. It repairs nothing.

One rule: it judges names, not contents: an answer without findings says that a verification will find what it asks for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from integrity.errors import Malformed
from integrity.layout import checkpoint_key, edge_key, kept_checkpoint_key, log_prefix, tile_key
from integrity.tlog.checkpoint import peek_checkpoint
from integrity.tlog.tiles import ENTRIES, WIDTH, Tile, levels, tiles_to_publish, widths
from s3core.errors import NotFound
from s3core.store import ObjectStore

NAMES_MAX = 100
_KNOWN = re.compile(
    r"(checkpoint|checkpoints/\d{16}|edges/\d{16}|epochs/\d{8}|tile/(entries|\d{1,2})/(x\d{3}/)*\d{3}(\.p/\d{1,3})?)\Z"
)

_TILE = re.compile(r"tile/(entries|\d{1,2})/((?:x\d{3}/)*\d{3})(?:\.p/(\d{1,3}))?\Z")


@dataclass(slots=True)
class LogStructure:
    """One log. `missing` are names that its size demands, the first hundred; `beyond` those of a larger size than the newest
    checkpoint shows; `unknown` are no names of a log. `older` counts what earlier sizes needed and this one does not (partial
    tiles, edges, kept checkpoints): it belongs there."""

    log: str
    size: int = 0
    objects: int = 0
    missing: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    older: int = 0
    trouble: str = ""

    @property
    def sound(self) -> bool:
        return not (self.missing or self.beyond or self.unknown or self.trouble)


def fsck(store: ObjectStore) -> list[LogStructure]:
    """Every log that a listing shows. StoreError where it cannot be listed."""
    return [_log(store, prefix.split("/")[1]) for prefix in store.list_prefixes("log/")]


def _log(store: ObjectStore, log: str) -> LogStructure:
    found = LogStructure(log)
    prefix = f"log/{log}/"
    try:
        prefix = log_prefix(log)
        found.size = peek_checkpoint(store.get(checkpoint_key(log)).data).size
    except NotFound:
        found.trouble = "it has no checkpoint"
    except (Malformed, ValueError) as error:
        found.trouble = str(error)
    if found.trouble:
        found.objects = sum(1 for _ in store.list(prefix))
        return found
    highest = _highest(found.size)
    notes = (checkpoint_key(log), kept_checkpoint_key(log, found.size))
    newest = {*notes, edge_key(log, found.size)}
    there = set()
    for one in store.list(prefix):
        found.objects += 1
        name = one.key.removeprefix(prefix)
        if one.key in newest or _is_needed(name, found.size):
            there.add(one.key)
        elif not _KNOWN.match(name):
            _note(found.unknown, one.key)
        elif _is_beyond(name, found.size, highest):
            _note(found.beyond, one.key)
            there.add(one.key)
        else:
            found.older += not name.startswith("epochs/")
    needed = ((tile_key(log, tile.path), tile_key(log, tile.whole.path)) for tile in _tiles(found.size))
    for key, whole in chain(((note, note) for note in notes), needed):
        # A listing may lag behind; and a log may remove a partial tile when the full one is there.
        if key not in there and whole not in there and not _is_there(store, key):
            _note(found.missing, key)
            if len(found.missing) == NAMES_MAX:
                # Nobody signed for this size here: it may be any.
                break
    return found


def _tiles(size: int) -> Iterator[Tile]:
    """Bundles and tiles of a tree of that size, one after another: there may be more of them than memory holds."""
    for level in range(ENTRIES, levels(size)):
        full, partial = widths(size, level)
        for index in range(full):
            yield Tile(level, index)
        if partial:
            yield Tile(level, full, partial)


def _is_needed(name: str, size: int) -> bool:
    found = _TILE.match(name)
    if found is None:
        return False
    level = ENTRIES if found[1] == "entries" else int(found[1])
    index, width = int(found[2].replace("x", "").replace("/", "")), int(found[3] or WIDTH)
    full, partial = widths(size, level)
    if not ((index < full and width == WIDTH) or (index == full and 0 < partial == width)):
        return False
    return Tile(level, index, width).path == name


def _highest(size: int) -> dict[int, int]:
    """The index of the last tile of each level in a tree of that size."""
    found: dict[int, int] = {}
    for tile in tiles_to_publish(max(0, size - 1), size) if size else []:
        found[tile.level] = max(found.get(tile.level, 0), tile.index)
    for level in range(-1, 8):
        hashes = size >> 8 * max(level, 0)
        if hashes:
            found[level] = (hashes - 1) // 256
    return found


def _is_beyond(name: str, size: int, highest: dict[int, int]) -> bool:
    kind, _, rest = name.partition("/")
    if kind in ("checkpoints", "edges"):
        return int(rest) > size
    if kind != "tile":
        return False
    level_text, _, path = rest.partition("/")
    level = -1 if level_text == "entries" else int(level_text)
    path, _, width = path.partition(".p/")
    index = int(path.replace("x", "").replace("/", ""))
    last = highest.get(level, -1)
    hashes = size >> 8 * max(level, 0)
    return index > last or (index == last and (int(width) if width else 256) > hashes - last * 256)


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        store.head(key)
    except NotFound:
        return False
    return True


def _note(names: list[str], key: str) -> None:
    if len(names) < NAMES_MAX:
        names.append(key)
