"""Who holds which positions, and which key columns each place of a ring needs of the others.

A place is a ulysses group: its ranks hold their tokens together once they have exchanged heads for tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parallel.masks import rectangles
from parallel.masks.mask import Mask
from parallel.masks.rectangles import K0, K1, Q0, Ints
from parallel.sequence.packed import Ranges


@dataclass(frozen=True, eq=False)
class Holding:
    """Ranges of positions in rising order, and where their rows are.

    Attributes:
        starts, stops: of each range.
        places: the ring place that holds it.
        rows: first row of each range there.
    """

    starts: Ints
    stops: Ints
    places: Ints
    rows: Ints

    @property
    def count(self) -> int:
        """Positions."""
        return int((self.stops - self.starts).sum())

    def of(self, place: int) -> Holding:
        """What one place holds."""
        return self.where(self.places == place)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Holding:
        """Some of the ranges."""
        return Holding(self.starts[chosen], self.stops[chosen], self.places[chosen], self.rows[chosen])


@dataclass(frozen=True, eq=False)
class Needs:
    """Which key columns each place touches: `holding.places` says who holds them, `by` who needs them."""

    holding: Holding
    by: Ints

    def between(self, by: int, held_by: int) -> Holding:
        """The columns of one place that another one needs."""
        return self.holding.where((self.by == by) & (self.holding.places == held_by))

    def arriving(self, place: int, own: Holding) -> Holding:
        """All that a place needs, with the rows that it has when it is here: in a block for each source."""
        found = self.holding.where((self.by == place) & (self.holding.places != place))
        order = np.argsort(found.places, kind="stable")
        sizes = (found.stops - found.starts)[order]
        before = sizes.cumsum() - sizes
        heads = np.searchsorted(found.places[order], found.places[order])  # of each source, its first range
        rows = np.empty_like(before)
        rows[order] = before - before[heads] if len(order) else before
        parts = [(own.starts, own.stops, own.places, own.rows), (found.starts, found.stops, found.places, rows)]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return Holding(*(column[order] for column in columns))

    def columns(self, ring: int) -> Ints:
        """[ring, ring]: how many columns place i needs of place j."""
        found = np.zeros((ring, ring), np.int64)
        np.add.at(found, (self.by, self.holding.places), self.holding.stops - self.holding.starts)
        return found


def held_by(parts: Sequence[Ranges], ulysses: int) -> Holding:
    """What each ulysses group holds together, in the order of its ranks; ranges that touch are joined.

    Args:
        parts: the ranges of each sequence rank.
        ulysses: ranks of a group.
    """
    ranges = [(start, stop, rank // ulysses) for rank, held in enumerate(parts) for start, stop in held]
    starts, stops, places = np.array(ranges, np.int64).reshape(-1, 3).T
    rows = (stops - starts).cumsum() - (stops - starts)
    rows -= rows[np.searchsorted(places, places)]  # counted anew on each place
    joined = (starts[1:] == stops[:-1]) & (places[1:] == places[:-1])
    first, last = np.concatenate(([True], ~joined)), np.concatenate((~joined, [True]))
    found = Holding(starts[first[: len(starts)]], stops[last[: len(stops)]], places[first], rows[first])
    order = np.argsort(found.starts, kind="stable")
    return Holding(found.starts[order], found.stops[order], found.places[order], found.rows[order])


def needed(mask: Mask, held: Holding) -> Needs:
    """Which columns of whom each place needs.

    A rectangle in normal form touches every column of its box, so that this is a union of intervals.
    """
    pieces, which = rectangles.cut_by(mask.table, held.starts, held.stops, Q0)
    apart = held.places[which] * (mask.keys + 1)  # intervals of different places must not meet
    starts, stops = rectangles.merge_ranges(pieces[:, K0] + apart, pieces[:, K1] + apart)
    by = starts // (mask.keys + 1)
    shifted = [x - by * (mask.keys + 1) for x in (starts, stops)]
    free = np.full_like(by, rectangles.FREE)
    boxes = np.stack((by, by + 1, *shifted, -free, free), axis=1)
    cut, range_ = rectangles.cut_by(boxes, held.starts, held.stops, K0)
    rows = held.rows[range_] + cut[:, K0] - held.starts[range_]
    return Needs(Holding(cut[:, K0], cut[:, K1], held.places[range_], rows), cut[:, Q0])
