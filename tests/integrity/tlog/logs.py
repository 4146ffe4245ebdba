"""Logs for the tests: trees of made-up leaves, their tiles as a dict, and RFC 6962 as its definitions read.

One rule: `mth`, `path` and `proof` are the RFC's recursions, word for word and slow; what is tested is compared with them.
"""

from collections.abc import Sequence

from integrity.tlog.tiles import Edge
from integrity.tlog.tree import leaf_hash, node_hash
from s3core.errors import NotFound


def leaves(count: int, salt: str = "") -> list[bytes]:
    return [leaf_hash(f"{salt}{number}".encode()) for number in range(count)]


def _below(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def mth(hashes: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, over leaf hashes."""
    if len(hashes) == 1:
        return hashes[0]
    k = _below(len(hashes))
    return node_hash(mth(hashes[:k]), mth(hashes[k:]))


def path(m: int, hashes: Sequence[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(hashes) == 1:
        return []
    k = _below(len(hashes))
    if m < k:
        return [*path(m, hashes[:k]), mth(hashes[k:])]
    return [*path(m - k, hashes[k:]), mth(hashes[:k])]


def proof(m: int, hashes: Sequence[bytes]) -> list[bytes]:
    """PROOF of section 2.1.2."""
    return _subproof(m, hashes, True)


def _subproof(m: int, hashes: Sequence[bytes], whole: bool) -> list[bytes]:
    if m == len(hashes):
        return [] if whole else [mth(hashes)]
    k = _below(len(hashes))
    if m <= k:
        return [*_subproof(m, hashes[:k], whole), mth(hashes[k:])]
    return [*_subproof(m - k, hashes[k:], False), mth(hashes[:k])]


class Tiles(dict[str, bytes]):
    """The tiles of a log by name, as a writer puts them; `gets` are the names that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = Edge()
        self.gets: list[str] = []

    def grow(self, hashes: Sequence[bytes]) -> "Tiles":
        self.update({tile.path: data for tile, data in [*self.edge.extend(hashes), *self.edge.partial()]})
        return self

    def fetch(self, path: str) -> bytes:
        self.gets.append(path)
        if path not in self:
            raise NotFound(path)
        return self[path]
