"""`Plan`: mask x split for one batch on this rank: the kernel launches, and whose keys each of them needs.

Cutting a mask at the borders of what ranks hold leaves rectangles with bands, and these leave only full rectangles and
triangles of squares (`rectangles.py`). So any stock flash kernel computes any mask, no row of a launch is ever fully
masked, and it is known exactly which key columns each rank needs from which other:

    causal, queries [a, b) against keys [c, d), a < c < b < d        full block    square
                 c     d                                              (none)       [c, b) x [c, b)
    a  . . . . . . . . .
       . . . . . . . . .
       . . . # . . . . .
    b  . . . # # . . . .

Plans are made once per batch, from integers alone, without a loop over rectangles; every layer uses the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
import torch
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase

from parallel.errors import InputError
from parallel.kernels.diagonals import grids
from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.kernel import Kernel
from parallel.kernels.launch import Launch, Rows, prepare
from parallel.kernels.varlen_calls import calls_of
from parallel.masks import rectangles
from parallel.masks.mask import Mask, cross
from parallel.masks.rectangles import DIAGONAL, FULL, GRID, K0, Q0, Q1, Ints
from parallel.mesh import Groups, Mesh, Place
from parallel.sequence.ownership import Holding, held_by, needed
from parallel.sequence.packed import Ranges
from parallel.sequence.sharding import Split

Transport = Literal["ring", "need"]
Keep = Literal["exchanged", "output", "nothing"]
ORDER = np.array([2, 0, 1, 3])  # of kinds: triangles first, they often cover all rows, which then need no merging


@dataclass(frozen=True, eq=False)
class Hop:
    """What is computed with the keys of one place of the ring.

    Attributes:
        keys: rows of the block of keys that arrives; of hop 0, this rank's own.
        send: rows of the own keys that leave for the place which is as far down the ring as these come from up it.
        launches: on that block.
    """

    keys: int
    send: Rows
    launches: tuple[Launch, ...]


@dataclass(frozen=True, eq=False)
class Plan(OpaqueBase):
    """What one rank computes.

    Attributes:
        queries: rows of this rank's queries once its ulysses group has exchanged heads for tokens.
        keys: rows of its own keys.
        hops: hops[d] is about the keys that come from d places up the ring; hops[0] the own keys.
        ulysses_tokens: tokens that each rank of the ulysses group holds, in order; (queries,) without ulysses.
        transport: "ring" passes whole blocks on from neighbour to neighbour; "need" fetches the columns that are
            needed, and no others, from whoever holds them.
        digest: of all that the ranks of a replica must agree on.
        groups: the process groups to talk through; None for a plan with no communication.
        kernel: that computes it; None for the one that every torch has.
        keep: what of attention waits for the backward pass (`attend.py`).
    """

    queries: int
    keys: int
    hops: tuple[Hop, ...]
    ulysses_tokens: tuple[int, ...]
    transport: Transport
    digest: int
    groups: Groups | None = None
    kernel: Kernel | None = None
    keep: Keep = "exchanged"

    def prepare(self, device: torch.device) -> None:
        """Send ahead what kernels are told on the device: no layer then waits for it. CPU kernels are told nothing."""
        if device.type != "cpu" or self.kernel is not None:
            padded = isinstance(self.kernel, FlashCUDA) and self.kernel.padded
            every = (calls_of(launch, hop.keys, padded=padded) for hop in self.hops for launch in hop.launches)
            prepare([call for groups in every for calls in groups for call in calls], device)

    @cached_property
    def alone(self) -> bool:
        """Whether one launch meets each query and each key once: then nothing is merged, summed or sent."""
        launches = [launch for hop in self.hops for launch in hop.launches]
        whole = (slice(0, self.queries), slice(0, self.keys))
        return len(self.hops) == 1 and len(launches) == 1 and launches[0].whole == whole

    @property
    def area(self) -> int:
        """Pairs of one query and one key that this rank's ulysses group computes, for all heads."""
        return sum(launch.area for hop in self.hops for launch in hop.launches)


register_opaque_type(Plan, typ="reference")


def plan_for(
    mask: Mask,
    split: Split,
    groups: Groups,
    transport: Transport | None = None,
    kernel: Kernel | None = None,
    keep: Keep = "exchanged",
) -> Plan:
    """The plan of one rank for self attention: keys are held like queries.

    Args:
        mask: over the whole packed sequence.
        split: over the sequence ranks of the replica.
        groups: of this rank.
        transport: of keys along the ring. "need" if not given: with N columns needed of the S (r - 1) that a ring of r
            passes on, it moves (2 + a) N, a being the bytes of a gradient to those of a key, and the ring
            2 S (r - 1) + a S r, which is always more.
        kernel: see `Plan`.
        keep: see `Plan`.

    Raises:
        InputError: a query sees no key, or the split is for another length or number of ranks.
    """
    return plan_of(mask, split, groups.mesh, groups.place, transport, groups, kernel, keep)


def plan_of(
    mask: Mask,
    split: Split,
    mesh: Mesh,
    place: Place,
    transport: Transport | None = None,
    groups: Groups | None = None,
    kernel: Kernel | None = None,
    keep: Keep = "exchanged",
) -> Plan:
    """`plan_for` of any place of a mesh, without process groups: to look at, not to run."""
    refuse_mismatch(mask, split, mesh)
    refuse_transport(transport or "need")
    held, transport = held_by(split.ranges, mesh.ulysses), transport or "need"
    needs, mine = needed(mask, held), held.of(place.ring)
    arriving = held if transport == "ring" else needs.arriving(place.ring, mine)
    sources = [(place.ring - d) % mesh.ring for d in range(mesh.ring)]
    launches = _launches(_local_pieces(mask, mine, arriving, place.ring, mesh.ring), mesh.ring)
    to = [needs.between((place.ring + d) % mesh.ring, place.ring) for d in range(mesh.ring)]
    blocks = [held.of(s) if transport == "ring" or s == place.ring else needs.between(place.ring, s) for s in sources]
    first = place.ring * mesh.ulysses
    return Plan(
        queries=mine.count,
        keys=mine.count,
        hops=tuple(
            Hop(blocks[d].count, Rows(to[d].rows, to[d].rows + to[d].stops - to[d].starts), launches[d])
            for d in range(mesh.ring)
        ),
        ulysses_tokens=tuple(split.tokens(first + i) for i in range(mesh.ulysses)),
        transport=transport,
        digest=_digest(mask, split, mesh, transport),
        groups=groups,
        kernel=kernel,
        keep=keep,
    )


def local_plan(mask: Mask, kernel: Kernel | None = None) -> Plan:
    """A plan with no communication: all queries and all keys are here."""
    return _here(mask, ((0, mask.queries),), kernel)


def cross_plan(
    query_lengths: Sequence[int], ranges: Ranges, key_lengths: Sequence[int], kernel: Kernel | None = None
) -> Plan:
    """Cross attention to short keys that every rank holds in full: document i sees keys of document i.

    Args:
        query_lengths: tokens of each document of the whole packed sequence.
        ranges: the part of it that this rank holds.
        key_lengths: keys of each document.
        kernel: see `Plan`.
    """
    return replace(_here(cross(query_lengths, key_lengths), ranges, kernel), keep="nothing")


def refuse_transport(transport: str) -> None:
    """A way of keys that there is.

    Raises:
        InputError: there is no such way.
    """
    if transport not in get_args(Transport):
        raise InputError("keys travel in one of two ways", f"transport {transport}", " or ".join(get_args(Transport)))


def refuse_mismatch(mask: Mask, split: Split, mesh: Mesh) -> None:
    """A mask that a mesh can compute with a split.

    Raises:
        InputError: a query sees no key, or the split is for another length or number of ranks.
    """
    mask.refuse_blind()
    if len(split.ranges) != mesh.sequence_ranks:
        found = f"{len(split.ranges)} ranks, and {mesh} has {mesh.sequence_ranks}"
        raise InputError("a split has a part for each sequence rank", found, "make the split for this mesh")
    ranges = sorted(r for held in split.ranges for r in held)
    stops = [0, *(stop for _, stop in ranges)]
    if any(start != before for (start, _), before in zip(ranges, stops, strict=False)) or stops[-1] != mask.queries:
        found = f"{mask.queries} positions, and ranges {ranges[:4]}... up to {stops[-1]}"
        raise InputError("a split holds every position of the mask once", found, "make both for the same sequence")
    if mask.queries != mask.keys:
        found = f"{mask.queries} queries, {mask.keys} keys"
        raise InputError("in self attention each query has a key", found, "use cross_plan for keys of their own")


def _local_pieces(mask: Mask, mine: Holding, arriving: Holding, me: int, ring: int) -> Ints:
    """Kernel pieces (q0, q1, k0, k1, kind, hop) in rows of the local queries and of each hop's keys, in order."""
    pieces, own = rectangles.cut_by(mask.table, mine.starts, mine.stops, Q0)
    pieces = rectangles.shift(pieces, (mine.rows - mine.starts)[own], 0)
    pieces, from_ = rectangles.cut_by(pieces, arriving.starts, arriving.stops, K0)
    pieces = rectangles.shift(pieces, 0, (arriving.rows - arriving.starts)[from_])
    hop = (me - arriving.places[from_]) % ring
    cut = rectangles.kernel_pieces(pieces)
    cut[:, 5] = hop[cut[:, 5]]
    whole = cut[:, 4] == FULL
    apart = 1 << 40  # rows of different hops must not meet
    full = rectangles.table()
    if whole.any():
        free = np.full(int(whole.sum()), rectangles.FREE)
        q0, q1, k0, k1, _, at = cut[whole].T
        full = rectangles.merge_rows(np.stack((q0, q1, k0 + at * apart, k1 + at * apart, -free, free), axis=1))
    at = full[:, K0] // apart
    merged = np.stack((*full[:, :2].T, *(full[:, 2:4] - at[:, None] * apart).T, np.full_like(at, FULL), at), axis=1)
    cut = np.concatenate((cut[~whole], merged))
    return cut[np.lexsort((cut[:, K0], cut[:, Q0], ORDER[cut[:, 4]], cut[:, 5]))]


def _launches(pieces: Ints, ring: int) -> list[tuple[Launch, ...]]:
    """Pieces in as few launches as their kinds and rows allow, for each hop; grids of diagonals first."""
    found: list[tuple[Launch, ...]] = []
    covered = np.zeros((2, 0), np.int64)
    for hop in range(ring):
        here = pieces[pieces[:, 5] == hop]
        line = here[:, 4] == DIAGONAL
        whole, rest = grids(here[line])
        made = [(GRID, *grid) for grid in whole]
        here = np.concatenate((here[~line], rest))
        for group in np.split(here, np.flatnonzero(np.diff(here[:, 4])) + 1) if len(here) else []:
            layer = _layers(group[:, Q0], group[:, Q1])
            parts = (group[layer == number].T for number in range(int(layer.max()) + 1))
            made += [(int(part[4, 0]), Rows(*part[:2]), Rows(*part[2:4])) for part in parts]
        launches = []
        for kind, queries, keys in made:
            at = np.searchsorted(covered[1], queries.starts, side="right")
            fresh = bool((at == np.searchsorted(covered[0], queries.stops, side="left")).all())
            launches.append(Launch(kind, queries, keys, fresh))
            both = zip(covered, (queries.starts, queries.stops), strict=True)
            covered = np.stack(rectangles.merge_ranges(*(np.concatenate(pair) for pair in both)))
        found.append(tuple(launches))
    return found


def _layers(starts: Ints, stops: Ints) -> Ints:
    """A number for each range, in rising order of starts, so that ranges of one number do not overlap."""
    layer = np.zeros(len(starts), np.int64)
    if (starts[1:] >= stops[:-1]).all():
        return layer
    reach: list[int] = []
    for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        free = next((n for n, end in enumerate(reach) if end <= start), len(reach))
        reach[free : free + 1] = [stop]
        layer[i] = free
    return layer


def _here(mask: Mask, ranges: Ranges, kernel: Kernel | None) -> Plan:
    """Queries of these ranges against keys that are all here."""
    mask.refuse_blind()
    starts, stops = np.array(sorted(ranges), np.int64).reshape(-1, 2).T
    if (starts >= stops).any() or (starts[1:] < stops[:-1]).any() or (stops > mask.queries).any():
        found = f"{list(ranges)[:4]} of {mask.queries} positions"
        raise InputError("ranges hold positions of the sequence, each once", found, "mend the ranges")
    rows = {start: row for (start, _), row in zip(ranges, _heads(ranges), strict=True)}
    zeros = np.zeros(len(starts), np.int64)
    mine = Holding(starts, stops, zeros, np.array([rows[start] for start in starts.tolist()], np.int64))
    keys = Holding(np.array([0]), np.array([mask.keys]), np.array([0]), np.array([0]))
    launches = _launches(_local_pieces(mask, mine, keys, 0, 1), 1)
    nothing = Rows(zeros[:0], zeros[:0])
    hops = (Hop(mask.keys, nothing, launches[0]),)
    return Plan(mine.count, mask.keys, hops, (mine.count,), "need", 0, kernel=kernel)


def _heads(ranges: Ranges) -> list[int]:
    """First row of each range."""
    return [0, *accumulate(stop - start for start, stop in ranges)][:-1]


def _digest(mask: Mask, split: Split, mesh: Mesh, transport: Transport) -> int:
    """63 bits of all that decides who sends what to whom."""
    text = f"{mesh} {transport} {mask.queries} {split.ranges}"
    found = blake2b(text.encode() + np.ascontiguousarray(mask.table).tobytes(), digest_size=8).digest()
    return int.from_bytes(found, "little") >> 1
