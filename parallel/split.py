"""`Split`: who of a replica's ranks holds which token ranges. Any sizes, any order; a rank may hold nothing."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.packed import Ranges


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
