"""The mesh for fewer machines: which grid of ranks goes on when nodes are lost. Pure arithmetic on free places.

    mesh 2 x 2 x 2 on 4 nodes of 2               one node lost: 3 groups left         two more lost: 1 group left

    replica 0  [0 1] -> [2 3]                    replica 0  [0 1] -> [2 3]            replica 0  [0 1]
    replica 1  [4 5] -> [6 7]                    (the third node is a spare)

A replica's ranks share one packed sequence, so fewer of them hold more tokens each and may not have the memory:
replicas go first, which costs only speed. Then rings get shorter. A ulysses group lies on one node; while any node has
room for one, its size stays, and else ring takes over what it can, so that a sequence keeps as many ranks as before.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel.mesh import Mesh


def mesh_for(mesh: Mesh, heads: int, ranks: int, bundle_sizes: Sequence[int]) -> Mesh | None:
    """The largest mesh that fits, no axis of it above that of the wanted one, but ring where ulysses shrinks.

    Args:
        mesh: what was asked for.
        heads: of the model, which a ulysses group shares out: at least one each.
        ranks: at most so many.
        bundle_sizes: ranks that each node has room for.

    Returns:
        none if there is no room for a single rank. The wanted mesh itself if it fits.
    """
    largest = min(max(bundle_sizes, default=0), ranks, heads)
    if largest < 1:
        return None
    if largest >= mesh.ulysses:
        return _of_groups(mesh.replica, mesh.ring, mesh.ulysses, ranks, bundle_sizes)
    found = [
        _of_groups(mesh.replica, mesh.sequence_ranks // ulysses, ulysses, ranks, bundle_sizes)
        for ulysses in range(1, largest + 1)
    ]
    # first the memory of a rank, then the speed, then as little on the slow links between nodes as can be
    return max(found, key=lambda m: (m.sequence_ranks, m.ranks, m.ulysses))


def _of_groups(replica: int, ring: int, ulysses: int, ranks: int, bundle_sizes: Sequence[int]) -> Mesh:
    """The largest of groups of this size: all of the ring before a second replica."""
    groups = min(sum(size // ulysses for size in bundle_sizes), ranks // ulysses)
    ring = min(ring, groups)
    return Mesh(min(replica, groups // ring), ring, ulysses)
