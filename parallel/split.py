"""`Split`: who of a replica's ranks holds which token ranges. Any sizes, any order; a rank may hold nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallel import rectangles
from parallel.holding import Holding, held_by, needed
from parallel.mask import Mask
from parallel.mesh import Mesh
from parallel.packed import Ranges
from parallel.rectangles import K0, K1, Q0, Ints

CHUNKS = 16  # of a place, in a balanced split
ALIGNED = 128  # tokens that a chunk is a multiple of, where chunks are large
EVEN = 1.05  # the most area of a place, as a multiple of the mean, that counts as balanced
SLACK = 0.04  # of the mean area: places that are so near to the lightest one count as light too


@dataclass(frozen=True)
class Split:
    """`ranges[i]` are the global positions of sequence rank i, in the order of its rows."""

    ranges: tuple[Ranges, ...]

    def tokens(self, rank: int) -> int:
        """How many tokens sequence rank `rank` holds."""
        return sum(stop - start for start, stop in self.ranges[rank])


def contiguous(length: int, ranks: int) -> Split:
    """`length` tokens in `ranks` stretches whose sizes differ by at most one: 10 over 4 are 3, 3, 2, 2."""
    base, extra = divmod(length, ranks)
    stops = [base * (i + 1) + min(i + 1, extra) for i in range(ranks)]
    starts = [0, *stops[:-1]]
    return Split(tuple(((a, b),) if b > a else () for a, b in zip(starts, stops, strict=True)))


def zigzag(length: int, ranks: int) -> Split:
    """Stretch i and stretch 2 x ranks - 1 - i of 2 x ranks: an equal share of a causal triangle for each rank."""
    stretches = contiguous(length, 2 * ranks).ranges
    return Split(tuple(stretches[i] + stretches[2 * ranks - 1 - i] for i in range(ranks)))


def balanced(mask: Mask, mesh: Mesh, chunk: int | None = None) -> Split:
    """Equal tokens and equal area of the mask for each place of the ring, and few keys to fetch.

    Of contiguous stretches, a zigzag, and chunks dealt out by area: the one that fetches least of those whose busiest
    place has at most 5 % more than the mean, else the most even one.

    Args:
        mask: over the whole packed sequence.
        mesh: of the replica's ranks.
        chunk: tokens of a chunk that is dealt out; a sixteenth of what a place holds if not given.
    """
    ranks = mesh.sequence_ranks
    if mesh.ring == 1:
        return contiguous(mask.queries, ranks)
    candidates = [contiguous(mask.queries, ranks), zigzag(mask.queries, ranks)]
    for together in (True, False):
        candidates.append(_dealt(mask, mesh, chunk or _chunk(mask.queries, mesh.ring), together))
    areas = [areas_of(mask, held_by(split.ranges, mesh.ulysses), mesh.ring) for split in candidates]
    uneven = [float(area.max() / max(1.0, area.mean())) for area in areas]
    if min(uneven) > EVEN:
        return candidates[int(np.argmin(uneven))]
    even = [split for split, ratio in zip(candidates, uneven, strict=True) if ratio <= EVEN]
    return min(even, key=lambda split: fetched(mask, held_by(split.ranges, mesh.ulysses), mesh.ring))


def areas_of(mask: Mask, held: Holding, ring: int) -> Ints:
    """[ring]: pairs that each place computes."""
    pieces, which = rectangles.cut_by(mask.table, held.starts, held.stops, Q0)
    areas = np.zeros(ring, np.int64)
    np.add.at(areas, held.places[which], rectangles.area(pieces))
    return areas


def fetched(mask: Mask, held: Holding, ring: int) -> int:
    """Key columns that places need and do not hold, over all of them."""
    columns = needed(mask, held).columns(ring)
    return int(columns.sum() - columns.trace())


def _chunk(length: int, ring: int) -> int:
    """A size that kernels like, where there is enough of it."""
    size = -(-length // (ring * CHUNKS))
    return -(-size // ALIGNED) * ALIGNED if size >= 4 * ALIGNED else size


def _dealt(mask: Mask, mesh: Mesh, chunk: int, together: bool) -> Split:
    """Chunks, the heaviest first, each to the place with the least area that has room for one.

    `together`: of the places that are nearly as light, to the one that holds most of the chunks which it sees.
    """
    starts = np.arange(0, mask.queries, chunk)
    stops = np.minimum(starts + chunk, mask.queries)
    pieces, which = rectangles.cut_by(mask.table, starts, stops, Q0)
    areas, first, last = np.zeros((3, len(starts)), np.int64)
    np.add.at(areas, which, rectangles.area(pieces))
    first += len(starts)
    np.minimum.at(first, which, pieces[:, K0] // chunk)
    np.maximum.at(last, which, -(-pieces[:, K1] // chunk))
    owner = np.full(len(starts), mesh.ring)
    load, room = np.zeros(mesh.ring), np.full(mesh.ring, -(-len(starts) // mesh.ring))
    slack = SLACK * areas.sum() / mesh.ring if together else 0.0
    for c in np.argsort(-areas, kind="stable").tolist():
        open_load = np.where(room > 0, load, np.inf)
        near = open_load <= open_load.min() + slack
        company = np.bincount(owner[first[c] : last[c]], minlength=mesh.ring + 1)[: mesh.ring]
        place = int(np.lexsort((open_load, -company * near, ~near))[0])
        owner[c], load[place], room[place] = place, load[place] + areas[c], room[place] - 1
    held = [[(int(starts[c]), int(stops[c])) for c in np.flatnonzero(owner == p)] for p in range(mesh.ring)]
    return Split(tuple(part for ranges in held for part in _shared(ranges, mesh.ulysses)))


def _shared(ranges: list[tuple[int, int]], ranks: int) -> list[Ranges]:
    """Ranges as they come, cut into parts of as equal tokens as can be."""
    length = sum(stop - start for start, stop in ranges)
    parts: list[Ranges] = []
    for part in contiguous(length, ranks).ranges:
        found, at = [], 0
        for start, stop in ranges:
            for low, high in part:
                a, b = max(low, at), min(high, at + stop - start)
                if a < b:
                    found.append((start + a - at, start + b - at))
            at += stop - start
        parts.append(tuple(found))
    return parts
