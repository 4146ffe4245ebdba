"""Trees: against the RFC's definitions, against pymerkle, and against proofs that were changed."""

import hashlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from integrity.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    Nodes,
    ProofRejected,
    consistency_proof,
    cover,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from tests.integrity.tlog.logs import leaves, mth, path, proof

LEAVES = leaves(600)
TREES = st.integers(1, 300).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def nodes_of(hashes: list[bytes]) -> Nodes:
    return lambda wanted: [mth(hashes[index << level : index + 1 << level]) for level, index in wanted]


NODES = nodes_of(LEAVES)


def test_the_hashes_are_those_of_rfc_6962() -> None:
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT
    # The leaf of an empty entry, as the RFC's own test log has it.
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"


@pytest.mark.parametrize("size", [*range(70), 127, 128, 129, 255, 256, 257, 511, 512, 513])
def test_roots_and_inclusion_proofs_are_those_of_another_implementation(size: int) -> None:
    tree = InmemoryTree(algorithm="sha256")
    frontier = Frontier()
    for number in range(size):
        tree.append_entry(str(number).encode())
        frontier.append(LEAVES[number])
    root = tree.get_root()
    assert frontier.root() == root == root_at(size, NODES)
    for index in random.Random(size).sample(range(size), min(size, 12)):
        theirs = tree.prove_inclusion(index + 1, size)
        ours = inclusion_proof(index, size, NODES)
        assert theirs.path == [LEAVES[index], *ours] == [LEAVES[index], *path(index, LEAVES[:size])]
        verify_inclusion(LEAVES[index], index, size, ours, root)


def test_consistency_holds_between_states_of_another_implementation() -> None:
    tree = InmemoryTree(algorithm="sha256")
    for number in range(130):
        tree.append_entry(str(number).encode())
    for old in range(131):
        for new in range(old, 131, 7):
            found = consistency_proof(old, new, NODES)
            assert found == (proof(old, LEAVES[:new]) if old else [])
            verify_consistency(old, tree.get_root(old), new, tree.get_root(new), found)


@given(TREES)
@settings(deadline=None)
def test_an_inclusion_proof_holds_for_nothing_but_its_leaf(tree: tuple[int, int]) -> None:
    size, index = tree
    root = mth(LEAVES[:size])
    found = inclusion_proof(index, size, NODES)
    assert found == path(index, LEAVES[:size])
    verify_inclusion(LEAVES[index], index, size, found, root)
    refused(verify_inclusion, leaf_hash(b"other"), index, size, found, root)
    refused(verify_inclusion, LEAVES[index], index, size, [*found, bytes(32)], root)
    refused(verify_inclusion, LEAVES[index], index, size, found, bytes(32))
    refused(verify_inclusion, LEAVES[index], size, size, found, root)
    if size > 1:
        refused(verify_inclusion, LEAVES[index], (index + 1) % size, size, found, root)
    for number in range(len(found)):
        changed = [*found[:number], bytes(32), *found[number + 1 :]]
        refused(verify_inclusion, LEAVES[index], index, size, changed, root)
        cut = [*found[:number], *found[number + 1 :]]
        refused(verify_inclusion, LEAVES[index], index, size, cut, root)
        short = [*found[:number], found[number][:31], *found[number + 1 :]]
        refused(verify_inclusion, LEAVES[index], index, size, short, root)


@given(st.integers(1, 300).flatmap(lambda new: st.tuples(st.integers(1, new), st.just(new))))
@settings(deadline=None)
def test_a_consistency_proof_holds_for_nothing_but_its_trees(trees: tuple[int, int]) -> None:
    old, new = trees
    old_root, new_root = mth(LEAVES[:old]), mth(LEAVES[:new])
    found = consistency_proof(old, new, NODES)
    assert found == proof(old, LEAVES[:new])
    verify_consistency(old, old_root, new, new_root, found)
    forked = mth([*LEAVES[: old - 1], leaf_hash(b"forked")])
    refused(verify_consistency, old, forked, new, new_root, found)
    refused(verify_consistency, old, old_root, new, bytes(32), found)
    refused(verify_consistency, old, old_root, new, new_root, [*found, bytes(32)])
    refused(verify_consistency, new + 1, old_root, new, new_root, found)
    for number in range(len(found)):
        changed = [*found[:number], bytes(32), *found[number + 1 :]]
        refused(verify_consistency, old, old_root, new, new_root, changed)
        cut = [*found[:number], *found[number + 1 :]]
        refused(verify_consistency, old, old_root, new, new_root, cut)


def test_every_tree_follows_the_empty_one_and_none_another_of_its_size() -> None:
    root = mth(LEAVES[:5])
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    verify_consistency(0, EMPTY_ROOT, 5, root, [])
    verify_consistency(5, root, 5, root, [])
    refused(verify_consistency, 0, root, 5, root, [])
    refused(verify_consistency, 0, EMPTY_ROOT, 5, root, [root])
    refused(verify_consistency, 0, EMPTY_ROOT, 0, root, [])
    refused(verify_consistency, 5, root, 5, bytes(32), [])


@given(st.lists(st.integers(0, 300), max_size=6))
@settings(deadline=None)
def test_a_frontier_is_the_same_however_it_grew(steps: list[int]) -> None:
    frontier = Frontier()
    for step in steps:
        at = frontier.size
        if at + step > len(LEAVES):
            break
        frontier = Frontier.from_hashes(at, frontier.hashes)
        frontier.extend(LEAVES[at : at + step])
    size = frontier.size
    assert frontier.root() == (mth(LEAVES[:size]) if size else EMPTY_ROOT)
    assert list(frontier.hashes) == NODES(cover(0, size))


def test_questions_about_leaves_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="there is no leaf 5 in a tree of 5"):
        inclusion_proof(5, 5, NODES)
    with pytest.raises(ValueError, match="a tree of 5 leaves never had 6"):
        consistency_proof(6, 5, NODES)
    with pytest.raises(ValueError, match="a tree of 3 leaves has not 1 subtrees"):
        Frontier.from_hashes(3, [bytes(32)])


def refused(verify: Callable[..., None], *arguments: object) -> None:
    with pytest.raises(ProofRejected):
        verify(*arguments)
