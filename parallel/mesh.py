"""`Mesh`: the grid of ranks, replica x ring x ulysses, ulysses innermost so that its all-to-all stays inside a node.

    Mesh(replica=2, ring=2, ulysses=2)

                    ring 0         ring 1
    replica 0     [ 0   1 ]  ->  [ 2   3 ]      [ ] a ulysses group: shares out the heads
    replica 1     [ 4   5 ]  ->  [ 6   7 ]      ->  a ring: keys and values travel

The ranks of a replica hold parts of the same packed sequence; sequence rank = ring x ulysses degree + ulysses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from parallel.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where one rank stands in the mesh."""

    replica: int
    ring: int
    ulysses: int
    sequence: int


@dataclass(frozen=True)
class Mesh:
    """Degrees of the three axes; their product is the number of ranks."""

    replica: int = 1
    ring: int = 1
    ulysses: int = 1

    def __post_init__(self) -> None:
        if not all(isinstance(degree, int) and degree >= 1 for degree in (self.replica, self.ring, self.ulysses)):
            raise InputError(
                "degrees of a mesh are whole numbers from 1 on", str(self), "1 for an axis that is not cut"
            )

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.replica * self.ring * self.ulysses

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share one packed sequence."""
        return self.ring * self.ulysses

    def place(self, rank: int) -> Place:
        """The coordinates of `rank`."""
        assert 0 <= rank < self.ranks, f"rank {rank} outside of {self}"
        replica, sequence = divmod(rank, self.sequence_ranks)
        return Place(replica, sequence // self.ulysses, sequence % self.ulysses, sequence)

    def rings(self) -> list[list[int]]:
        """Ranks of each ring, in the order in which keys travel."""
        heads = [first + j for first in range(0, self.ranks, self.sequence_ranks) for j in range(self.ulysses)]
        return [[head + i * self.ulysses for i in range(self.ring)] for head in heads]

    def ulysses_groups(self) -> list[list[int]]:
        """Ranks of each ulysses group."""
        return [list(range(first, first + self.ulysses)) for first in range(0, self.ranks, self.ulysses)]

    def replicas(self) -> list[list[int]]:
        """Ranks of each replica, in the order of the sequence."""
        return [list(range(first, first + self.sequence_ranks)) for first in range(0, self.ranks, self.sequence_ranks)]

    def __str__(self) -> str:
        return f"replica {self.replica} x ring {self.ring} x ulysses {self.ulysses}"


@dataclass(frozen=True)
class Groups:
    """One rank's process groups; an axis of degree 1 has none.

    Attributes:
        mesh: the whole grid.
        place: of this rank.
        ring: group of this rank's ring, `ring_ranks` its global ranks in travelling order.
        ulysses: group of this rank's ulysses neighbours.
        sequence: group of all ranks of this replica, `sequence_ranks` their global ranks.
        host: of all ranks, for what they tell each other from host to host: no device waits for it, and none is waited
            for. None where the world itself is one.
    """

    mesh: Mesh
    place: Place
    ring: dist.ProcessGroup | None = None
    ring_ranks: tuple[int, ...] = (0,)
    ulysses: dist.ProcessGroup | None = None
    sequence: dist.ProcessGroup | None = None
    sequence_ranks: tuple[int, ...] = (0,)
    host: dist.ProcessGroup | None = None


def join(mesh: Mesh, rank: int, timeout: timedelta | None = None) -> Groups:
    """Make this rank's groups. Collective: every rank of the world calls it, after `init_process_group`.

    Args:
        mesh: over the whole world.
        rank: of this process.
        timeout: how long ranks wait for each other; torch's half hour if not given, whatever the world itself has.

    Raises:
        InputError: the world has another number of ranks than the mesh.
    """
    if dist.is_initialized() and dist.get_world_size() != mesh.ranks:
        found = f"{mesh} = {mesh.ranks} ranks, {dist.get_world_size()} are running"
        raise InputError("a mesh has as many ranks as are running", found, "change replica, ring or ulysses")
    ring, ring_ranks = _own_group(mesh.rings(), rank, timeout)
    ulysses, ulysses_ranks = _own_group(mesh.ulysses_groups(), rank, timeout)
    if mesh.ulysses == 1:
        sequence, sequence_ranks = ring, ring_ranks
    elif mesh.ring == 1:
        sequence, sequence_ranks = ulysses, ulysses_ranks
    else:
        sequence, sequence_ranks = _own_group(mesh.replicas(), rank, timeout)
    for group in dict.fromkeys(own for own in (ring, ulysses, sequence) if own is not None):
        if dist.get_backend(group) == "nccl":
            dist.barrier(group)  # its first message must be one of all members: later some have nothing to send
    on_device = dist.is_initialized() and dist.get_backend() == "nccl"
    host = dist.new_group(backend="gloo", timeout=timeout) if on_device else None
    return Groups(mesh, mesh.place(rank), ring, ring_ranks, ulysses, sequence, sequence_ranks, host)


def _own_group(
    groups: list[list[int]], rank: int, timeout: timedelta | None
) -> tuple[dist.ProcessGroup | None, tuple[int, ...]]:
    """Create all `groups` of an axis in the same order everywhere, as torch demands; gives the one that holds `rank`.

    No message goes through them yet: a first one of each group in turn would make the start-ups of all communicators
    a queue, of a second or so each. Where the world's communicator can be split, an axis is one split of it.
    """
    mine = next(members for members in groups if rank in members)
    if len(mine) == 1:
        return None, (rank,)
    if _splits():
        return dist.split_group(split_ranks=groups, timeout=timeout), tuple(mine)
    made = [dist.new_group(members, timeout=timeout) for members in groups]
    return made[groups.index(mine)], tuple(mine)


def _splits() -> bool:
    """Whether the communicator of all ranks is up, and smaller ones can be split from it."""
    world = dist.group.WORLD
    device = world.bound_device_id if world is not None else None
    if world is None or device is None or device.type != "cuda":
        return False
    return bool(world._get_backend(device).supports_splitting)
