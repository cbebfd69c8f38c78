"""Capacity on a cluster for one more run: does it share the machines with other runs, wait for them, or never fit?

    3 nodes of 4 CPUs and GPUs, 2 ranks placed on one, 4 on another:
        4 groups of 1 rank     starts at once: room for 6
        2 groups of 4 ranks    waits: room for one group
        4 groups of 4 ranks    never fits: three at most

What is placed is told by Ray. A run that was just submitted has not placed its ranks yet, so what runs have asked for
counts too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallel.errors import InputError

if TYPE_CHECKING:
    from parallel.mesh import Mesh


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        total: of each kind of resource.
        placed: of each kind, what is held by ranks.
    """

    total: Mapping[str, float]
    placed: Mapping[str, float]

    def slots(self, kinds: Sequence[str], free: bool) -> int:
        """Ranks that there is room for, in total or now."""
        left = (self.total.get(k, 0) - (self.placed.get(k, 0) if free else 0) for k in kinds)
        return max(0, int(min(left)))


@dataclass(frozen=True)
class Capacity:
    """Of a cluster, for a run.

    Attributes:
        kinds: of resources that a rank takes one of each: CPU, or CPU and GPU.
        takes: ranks of the run.
        free: ranks that there is room for now.
        total: ranks that there is room for when nobody else is there.
        now: whether the run starts at once.
        ever: whether it fits at all.
    """

    kinds: tuple[str, ...]
    takes: int
    free: int
    total: int
    now: bool
    ever: bool

    def __str__(self) -> str:
        kind = " and ".join(self.kinds)
        free = f"{self.free} of {self.total} {'is' if self.free == 1 else 'are'} free"
        if self.now:
            return f"starts at once: takes {self.takes} {kind}, {free}"
        return f"waits for room: takes {self.takes} {kind}, {free}; starts by itself"


def capacity_for(mesh: Mesh, nodes: Sequence[Node], asked: int) -> Capacity:
    """Whether a cluster has capacity for a mesh.

    Args:
        mesh: of the run.
        nodes: of the cluster that are alive.
        asked: ranks that other runs have asked for, placed or not.
    """
    from launcher.preflight.elastic_mesh import mesh_for  # it loads torch

    kinds = ("CPU", "GPU") if any(n.total.get("GPU", 0) > 0 for n in nodes) else ("CPU",)
    in_all, now = ([n.slots(kinds, free) for n in nodes] for free in (False, True))
    coming = max(0, asked - (sum(in_all) - sum(now)))  # of those who have asked, ranks that are still to be placed
    free = max(0, sum(now) - coming)
    fits_now = free >= mesh.ranks and mesh_for(mesh, mesh.ulysses, mesh.ranks, now) == mesh
    ever = mesh_for(mesh, mesh.ulysses, mesh.ranks, in_all) == mesh
    return Capacity(kinds, mesh.ranks, free, sum(in_all), fits_now, ever)


def refuse_too_large(mesh: Mesh, capacity: Capacity) -> None:
    """A run fits on the nodes that are there, if nobody else is.

    Raises:
        InputError: it does not.
    """
    if not capacity.ever:
        kind = " and ".join(capacity.kinds)
        found = f"{mesh} takes {capacity.takes} {kind}, the cluster has {capacity.total}"
        if capacity.total >= capacity.takes:
            found += f", and no room for groups of {mesh.ulysses} on one node each"
        remedy = "a smaller mesh, or more nodes; longreel status --address URL shows those that are there"
        raise InputError("a mesh fits on the nodes of the cluster, a ulysses group on one of them", found, remedy)
