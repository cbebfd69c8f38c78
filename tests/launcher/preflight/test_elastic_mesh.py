"""The mesh that goes on when nodes are lost: by examples, and by what must hold of every one."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.preflight.elastic_mesh import mesh_for
from parallel.mesh import Mesh

MANY = 1000

EXAMPLES = [
    # wanted, nodes, what goes on
    (Mesh(1, 1, 1), [1], Mesh(1, 1, 1)),
    (Mesh(1, 3, 1), [1, 1, 1], Mesh(1, 3, 1)),
    (Mesh(1, 3, 1), [1, 1], Mesh(1, 2, 1)),
    (Mesh(3, 1, 1), [1, 1], Mesh(2, 1, 1)),
    (Mesh(2, 2, 2), [2, 2, 2, 2], Mesh(2, 2, 2)),
    (Mesh(2, 2, 2), [2, 2, 2], Mesh(1, 2, 2)),  # replicas first: the third node is a spare
    (Mesh(2, 2, 2), [2], Mesh(1, 1, 2)),
    (Mesh(4, 1, 8), [8, 8, 8], Mesh(3, 1, 8)),
    (Mesh(4, 1, 8), [8, 8, 8, 7], Mesh(3, 1, 8)),  # seven of eight GPUs make no group
    (Mesh(1, 4, 8), [8, 8, 8], Mesh(1, 3, 8)),
    (Mesh(1, 2, 8), [16], Mesh(1, 2, 8)),  # two groups on one node
    (Mesh(1, 1, 4), [2, 2], Mesh(1, 2, 2)),  # no room for a group: ring takes over, as many ranks a sequence
    (Mesh(1, 1, 4), [3, 3], Mesh(1, 2, 2)),  # 2 x 2 rather than 3 alone
    (Mesh(1, 1, 4), [3], Mesh(1, 1, 3)),
    (Mesh(2, 1, 4), [3, 3, 3], Mesh(2, 4, 1)),
    (Mesh(1, 1, 4), [1, 1, 1], Mesh(1, 3, 1)),
    (Mesh(1, 1, 4), [4, 0, 0], Mesh(1, 1, 4)),
]


@pytest.mark.parametrize(("wanted", "nodes", "found"), EXAMPLES)
def test_examples(wanted: Mesh, nodes: list[int], found: Mesh) -> None:
    assert mesh_for(wanted, wanted.ulysses, MANY, nodes) == found


def test_no_room_at_all() -> None:
    assert mesh_for(Mesh(1, 2, 2), 8, MANY, []) is None
    assert mesh_for(Mesh(1, 2, 2), 8, MANY, [0, 0]) is None
    assert mesh_for(Mesh(1, 2, 2), 8, 0, [4]) is None


def test_no_more_ranks_than_allowed() -> None:
    assert mesh_for(Mesh(2, 2, 2), 8, 7, [8]) == Mesh(1, 2, 2)
    assert mesh_for(Mesh(2, 2, 2), 8, 1, [8]) == Mesh(1, 1, 1)


degrees = st.integers(1, 6)
meshes = st.builds(Mesh, degrees, degrees, degrees)
clusters = st.lists(st.integers(0, 9), max_size=6)


def fits(mesh: Mesh, ranks: int, nodes: list[int]) -> bool:
    return mesh.ranks <= ranks and sum(n // mesh.ulysses for n in nodes) >= mesh.replica * mesh.ring


@settings(max_examples=500)
@given(meshes, st.integers(1, 6), st.integers(0, 60), clusters)
def test_what_holds_of_every_mesh(wanted: Mesh, more_heads: int, ranks: int, nodes: list[int]) -> None:
    heads = wanted.ulysses + more_heads - 1
    found = mesh_for(wanted, heads, ranks, nodes)
    assert (found is None) == (min(ranks, max(nodes, default=0)) < 1)
    if found is None:
        return
    assert fits(found, ranks, nodes)
    assert found.ulysses <= min(wanted.ulysses, heads)
    assert found.replica <= wanted.replica
    assert found.sequence_ranks <= wanted.sequence_ranks
    if fits(wanted, ranks, nodes):
        assert found == wanted
    if min(ranks, max(nodes)) >= wanted.ulysses:
        assert found.ulysses == wanted.ulysses
        assert found.replica == 1 or found.ring == wanted.ring, "replicas go before rings"
    # none that keeps the promises is larger
    ulysses = [wanted.ulysses] if found.ulysses == wanted.ulysses else range(1, wanted.ulysses)
    for u, ring in product(ulysses, range(1, wanted.sequence_ranks + 1)):
        if ring * u <= wanted.sequence_ranks and fits(Mesh(1, ring, u), ranks, nodes):
            assert ring * u <= found.sequence_ranks
    assert not fits(Mesh(found.replica + 1, found.ring, found.ulysses), ranks, nodes) or found.replica == wanted.replica


@given(meshes, clusters, st.integers(0, 9))
def test_another_node_never_makes_a_sequence_narrower(wanted: Mesh, nodes: list[int], more: int) -> None:
    """But the ulysses group that it has room for may be one that the smaller nodes had none for."""
    before = mesh_for(wanted, wanted.ulysses, MANY, nodes)
    after = mesh_for(wanted, wanted.ulysses, MANY, [*nodes, more])
    if before is not None:
        assert after is not None
        if after.ulysses == before.ulysses:
            assert (after.sequence_ranks, after.ranks) >= (before.sequence_ranks, before.ranks)
