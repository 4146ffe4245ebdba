"""Merkle trees of RFC 6962 section 2.1 with SHA-256: roots, inclusion and consistency proofs.

A tree of any size is named by its *complete subtrees*: `(level, index)` is the one over the 2^level leaves from
index * 2^level on. Everything that is asked of a tree comes down to a few of those, which the caller hands in as `nodes`.

One rule: nothing but `verify_inclusion` and `verify_consistency` decides whether a proof holds, and both refuse by raising
`ProofRejected`; there is no answer that can be overlooked.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from integrity.errors import Rejected

EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves."""

Nodes = Callable[[Sequence[tuple[int, int]]], list[bytes]]
"""The hashes of complete subtrees, given as (level, index), in their order. It may raise what reading them raises."""


class ProofRejected(Rejected):
    """A proof is not one of what it is shown for."""


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def row_above(row: Sequence[bytes]) -> list[bytes]:
    """The hashes over the pairs of `row`, which has an even number of them. This is the hot loop of every tree here."""
    one_by_one = iter(row)
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(one_by_one, one_by_one, strict=True)]


def complete_root(row: Sequence[bytes]) -> bytes:
    """The root over `row`, whose length is a power of two."""
    while len(row) > 1:
        row = row_above(row)
    return row[0]


def cover(begin: int, end: int) -> list[tuple[int, int]]:
    """The complete subtrees that make up leaves `begin` to `end`, from left to right. `begin` is a multiple of the largest
    power of two below `end - begin`, as it is in every subtree of RFC 6962; there is none when the range is empty."""
    found = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        found.append((level, begin >> level))
        begin += 1 << level
    return found


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees as `cover` names them: the smallest, which are last, first."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


class Frontier:
    """A tree that grows at its right end, kept as the hashes of `cover(0, size)`: at most 64, whatever its size.

    Not for several threads. `hashes` may be kept and given to `from_hashes` later; they tell all that the root depends on."""

    __slots__ = ("_hashes", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._hashes: list[bytes] = []

    @classmethod
    def from_hashes(cls, size: int, hashes: Sequence[bytes]) -> "Frontier":
        """The frontier whose `size` and `hashes` those are. ValueError where there cannot be so many."""
        if size < 0 or len(hashes) != size.bit_count() or any(len(one) != 32 for one in hashes):
            raise ValueError(f"a tree of {size:,} leaves has not {len(hashes)} subtrees of 32 bytes")
        frontier = cls()
        frontier._size, frontier._hashes = size, list(hashes)
        return frontier

    @property
    def size(self) -> int:
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """One more leaf, by its `leaf_hash`."""
        size, hashes = self._size, self._hashes
        while size & 1:
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)
        self._size += 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """More leaves, by their `leaf_hash`: one hash a leaf and hardly anything beside it."""
        row = list(leaves)
        left = self._hashes
        peaks: list[bytes] = []
        below = self._size
        while row:
            if below & 1:
                row.insert(0, left.pop())
            if len(row) & 1:
                peaks.append(row.pop())
            row = row_above(row)
            below >>= 1
        left.extend(reversed(peaks))
        self._size += len(leaves)

    def root(self) -> bytes:
        return fold(self._hashes)


def root_at(size: int, nodes: Nodes) -> bytes:
    """The root over the first `size` leaves."""
    return fold(nodes(cover(0, size))) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 section 2.1.1, from the leaf's sibling up. One call of `nodes`."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index:,} in a tree of {size:,}")
    return _gathered(inclusion_ranges(index, size), nodes)


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """PROOF(old, D[new]) of RFC 6962 section 2.1.2; empty where `old` is 0 or `new`. One call of `nodes`."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new:,} leaves never had {old:,}")
    return _gathered(consistency_ranges(old, new), nodes)


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """The leaves (from, to) under each hash of an inclusion proof."""
    begin, end = 0, size
    found = []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """The leaves (from, to) under each hash of a consistency proof."""
    if old in (0, new):
        return []
    begin, end = 0, new
    found = []
    while end > old:
        middle = begin + _split(end - begin)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((begin, middle))
            begin = middle
    if begin:
        found.append((begin, end))
    return found[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Returns where `leaf` (its `leaf_hash`) is number `index` of the `size` under `root` (RFC 9162 section 2.1.3.2).
    ProofRejected otherwise."""
    if not 0 <= index < size:
        raise ProofRejected(f"there is no leaf {index:,} in a tree of {size:,}")
    _all_hashes(proof)
    at, last = index, size - 1
    for hash_ in proof:
        if last == 0:
            raise ProofRejected("the inclusion proof is too long")
        if at & 1 or at == last:
            leaf = node_hash(hash_, leaf)
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            leaf = node_hash(leaf, hash_)
        at >>= 1
        last >>= 1
    if last:
        raise ProofRejected("the inclusion proof is too short")
    if leaf != root:
        raise ProofRejected(
            f"record {index:,} is not in the tree of {size:,}: the inclusion proof leads to another root"
        )


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Returns where the first `old` leaves of the tree (`new`, `new_root`) are the tree (`old`, `old_root`) (RFC 9162 section
    2.1.4.2). ProofRejected otherwise: shorter, other leaves, or a proof of something else."""
    if not 0 <= old <= new:
        raise ProofRejected(f"a tree of {new:,} leaves does not follow one of {old:,}")
    _all_hashes(proof)
    if old in (0, new):
        if proof:
            raise ProofRejected("the consistency proof is too long")
        if old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise ProofRejected(f"two roots for one tree of {old:,} leaves")
        if new == 0 and new_root != EMPTY_ROOT:
            raise ProofRejected("an empty tree has another root than this")
        return
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not path:
        raise ProofRejected("the consistency proof is too short")
    at, last = old - 1, new - 1
    while at & 1:
        at >>= 1
        last >>= 1
    of_old = of_new = path[0]
    for hash_ in path[1:]:
        if last == 0:
            raise ProofRejected("the consistency proof is too long")
        if at & 1 or at == last:
            of_old = node_hash(hash_, of_old)
            of_new = node_hash(hash_, of_new)
            while not at & 1 and at:
                at >>= 1
                last >>= 1
        else:
            of_new = node_hash(of_new, hash_)
        at >>= 1
        last >>= 1
    if last:
        raise ProofRejected("the consistency proof is too short")
    if of_old != old_root:
        raise ProofRejected(f"the consistency proof does not begin at the tree of {old:,} leaves")
    if of_new != new_root:
        raise ProofRejected(f"the tree of {new:,} leaves does not hold the first {old:,} as they were")


def _all_hashes(proof: Sequence[bytes]) -> None:
    if any(len(one) != 32 for one in proof):
        raise ProofRejected("a proof consists of hashes of 32 bytes")


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def _gathered(ranges: Sequence[tuple[int, int]], nodes: Nodes) -> list[bytes]:
    covers = [cover(begin, end) for begin, end in ranges]
    if not covers:
        return []
    found = iter(nodes([one for many in covers for one in many]))
    return [fold([next(found) for _ in many]) for many in covers]
