"""`explain`: what a plan costs, counted and not measured: area, FLOPs, bytes on each link, unevenness, keys in flight.

The formulas, with S tokens on P = u x r ranks, n = S x hidden / P elements, g key heads for each query head (g' on a
rank, where the ulysses degree u exceeds the key heads), b bytes of a number and a of a travelling gradient:

    ulysses   forward = backward = (2 + 2 g') (u - 1) / u  n b, backward twice that where little is kept
    ring      forward 2 g (r - 1) n b      backward 2 g (r - 1) n b + 2 g r n a
    need      forward 2 kv_heads head_dim b x (columns fetched)      backward the same, with b + a
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from parallel.attention.plan import Keep, Transport, refuse_mismatch, refuse_transport
from parallel.attention.ulysses import Heads as SharedHeads
from parallel.attention.ulysses import share_heads
from parallel.kernels.kernel import refuse_head_counts
from parallel.masks.mask import Mask
from parallel.masks.rectangles import Ints
from parallel.mesh import Mesh
from parallel.sequence.ownership import held_by, needed
from parallel.sequence.sharding import Split, areas_of


@dataclass(frozen=True)
class Heads:
    """Shape of attention.

    Attributes:
        queries, keys: heads.
        dim: of a head.
        bytes: of a number.
        gradient_bytes: of a number of a gradient on its way home: what sums are kept in.
    """

    queries: int
    keys: int
    dim: int
    bytes: int = 2
    gradient_bytes: int = 4


@dataclass(frozen=True, eq=False)
class Explanation:
    """Of one replica; a place is a ulysses group.

    Attributes:
        mesh: of the replica.
        transport: of keys.
        heads: shape of attention.
        keep: what waits for the backward pass (`Plan.keep`); what does not is sent again.
        area: [places] pairs of a query and a key that each computes.
        tokens: [places] that each holds.
        columns: [places, places] key columns that place i needs of place j.
        rank_tokens: [sequence ranks] that each holds.
    """

    mesh: Mesh
    transport: Transport
    heads: Heads
    area: Ints
    tokens: Ints
    columns: Ints
    rank_tokens: Ints
    keep: Keep = "exchanged"

    @property
    def uneven(self) -> float:
        """FLOPs of the busiest rank as a multiple of the mean: how much longer attention takes than it must."""
        return float(self.flops.max() / self.flops.mean())

    @property
    def flops(self) -> npt.NDArray[np.float64]:
        """[sequence ranks] of the forward pass; the backward pass takes 2.5 times as many."""
        per_head = 4.0 * self.area * self.heads.dim
        shares = [len(share) for share in self._shares.queries]
        return np.concatenate([[area * count for count in shares] for area in per_head])

    @cached_property
    def forward_bytes(self) -> Ints:
        """[sequence ranks, sequence ranks] from rank i to rank j."""
        return self._exchanged() + self._keys()

    @cached_property
    def backward_bytes(self) -> Ints:
        """[sequence ranks, sequence ranks] from rank i to rank j."""
        again = self._exchanged_again() if self.keep != "exchanged" else self._nothing()
        return self._exchanged().T + again + self._keys() + self._gradients()

    @property
    def keys_held(self) -> Ints:
        """[sequence ranks] the most bytes of keys and values held beside the own: one block in use, one on its way."""
        ring = self.mesh.ring
        blocks = [[self._block(p, (p - d) % ring) for d in range(1, ring)] for p in range(ring)]
        most = [max((a + b for a, b in zip(row, [*row, 0][1:], strict=True)), default=0) for row in blocks]
        widths = [2 * len(k) * self.heads.dim * self.heads.bytes for k in self._shares.keys]
        return np.array([rows * width for rows in most for width in widths], np.int64)

    @cached_property
    def _shares(self) -> SharedHeads:
        return share_heads(self.heads.queries, self.heads.keys, self.mesh.ulysses)

    def _block(self, place: int, source: int) -> int:
        """Keys of `source` that `place` is sent."""
        return int(self.tokens[source] if self.transport == "ring" else self.columns[place, source])

    def _exchanged(self) -> Ints:
        """Heads for tokens and back: q, k, v out and the output home; the backward pass goes the other way round."""
        found, degree = self._nothing(), self.mesh.ulysses
        width = self.heads.dim * self.heads.bytes
        for first in range(0, len(self.rank_tokens), degree):
            for i in range(degree):
                for j in range(degree):
                    if i != j:
                        out = len(self._shares.queries[j]) + 2 * len(self._shares.keys[j])
                        home = len(self._shares.queries[i])
                        tokens = self.rank_tokens[first + i], self.rank_tokens[first + j]
                        found[first + i, first + j] = (tokens[0] * out + tokens[1] * home) * width
        return found

    def _exchanged_again(self) -> Ints:
        """Tokens for heads once more in the backward pass: q, k, v and the output."""
        found, degree = self._nothing(), self.mesh.ulysses
        width = self.heads.dim * self.heads.bytes
        for first in range(0, len(self.rank_tokens), degree):
            for j in range(degree):
                leaving = 2 * (len(self._shares.queries[j]) + len(self._shares.keys[j])) * width
                for i in range(degree):
                    if i != j:
                        found[first + i, first + j] = self.rank_tokens[first + i] * leaving
        return found

    def _keys(self) -> Ints:
        """Keys and values on their way to the places that need them."""
        ring, found = self.mesh.ring, np.zeros((self.mesh.ring, self.mesh.ring), np.int64)
        for place in range(ring):
            for hop in range(1, ring):
                if self.transport == "need":
                    found[(place - hop) % ring, place] += self.columns[place, (place - hop) % ring]
                else:  # what arrives in hop `hop` comes from the neighbour
                    found[place - 1, place] += self.tokens[(place - hop) % ring]
        return self._over_links(found, self.heads.bytes)

    def _gradients(self) -> Ints:
        """Gradients of keys and values on their way home."""
        ring, found = self.mesh.ring, np.zeros((self.mesh.ring, self.mesh.ring), np.int64)
        for place in range(ring):
            for hop in range(ring):
                source = (place - hop) % ring
                if self.transport == "need":
                    found[place, source] += self.columns[place, source] if hop else 0
                elif ring > 1:
                    found[place, (place + 1) % ring] += self.tokens[source]
        return self._over_links(found, self.heads.gradient_bytes)

    def _over_links(self, rows: Ints, size: int) -> Ints:
        """Rows of keys and values between places, as bytes between the ranks that hold the same heads of them."""
        found, degree = self._nothing(), self.mesh.ulysses
        for j in range(degree):
            found[j::degree, j::degree] = rows * 2 * len(self._shares.keys[j]) * self.heads.dim * size
        return found

    def _nothing(self) -> Ints:
        ranks = self.mesh.sequence_ranks
        return np.zeros((ranks, ranks), np.int64)


def explain(
    mask: Mask,
    split: Split,
    mesh: Mesh,
    heads: Heads,
    transport: Transport = "need",
    keep: Keep = "exchanged",
) -> Explanation:
    """What attention with this mask costs on this mesh.

    Raises:
        InputError: a query sees no key, the split is for another length or number of ranks, or heads do not divide.
    """
    refuse_mismatch(mask, split, mesh)
    refuse_transport(transport)
    refuse_head_counts(heads.queries, heads.keys)
    held = held_by(split.ranges, mesh.ulysses)
    return Explanation(
        mesh=mesh,
        transport=transport,
        heads=heads,
        area=areas_of(mask, held, mesh.ring),
        tokens=np.array([held.of(place).count for place in range(mesh.ring)]),
        columns=needed(mask, held).columns(mesh.ring),
        rank_tokens=np.array([split.tokens(rank) for rank in range(mesh.sequence_ranks)]),
        keep=keep,
    )
