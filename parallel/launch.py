"""`Launch`: pieces of a mask that one kernel computes together, in rows of the local queries and of a block of keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from parallel.rectangles import DIAGONAL, FULL, Ints

Piece = tuple[slice, slice]  # rows of the queries, rows of the keys


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a tensor, as ranges in order; taken as one slice where they are one, else by index."""

    starts: Ints
    stops: Ints

    @property
    def count(self) -> int:
        """How many rows."""
        return int((self.stops - self.starts).sum())

    def stretches(self) -> list[slice]:
        """The ranges, those that touch joined."""
        if len(self.starts) == 0:
            return []
        breaks = np.flatnonzero(self.starts[1:] != self.stops[:-1])
        first, last = np.concatenate(([0], breaks + 1)), np.concatenate((breaks, [len(self.starts) - 1]))
        return [slice(a, b) for a, b in zip(self.starts[first].tolist(), self.stops[last].tolist(), strict=True)]

    def take(self, x: Tensor, dim: int = 0) -> Tensor:
        """These rows of `x`: a view where they are one range."""
        found = self.stretches()
        if len(found) == 1:
            return x.narrow(dim, found[0].start, found[0].stop - found[0].start)
        return torch.cat([x.narrow(dim, s.start, s.stop - s.start) for s in found] or [x.narrow(dim, 0, 0)], dim)


@dataclass(frozen=True, eq=False)
class Launch:
    """Pieces of one kind whose query rows are disjoint, for one call of a kernel.

    Attributes:
        kind: FULL, CAUSAL, ANTICAUSAL or DIAGONAL; all but FULL are squares.
        queries, keys: rows of the local queries and of the keys of the hop; range i of both makes piece i.
        fresh: no earlier launch of the plan touched these query rows, so that there is nothing to merge with.
    """

    kind: int
    queries: Rows
    keys: Rows
    fresh: bool

    @property
    def area(self) -> int:
        """Pairs of one query and one key."""
        rows, columns = self.queries.stops - self.queries.starts, self.keys.stops - self.keys.starts
        if self.kind == FULL:
            return int((rows * columns).sum())
        return int(rows.sum()) if self.kind == DIAGONAL else int((rows * (rows + 1) // 2).sum())

    @cached_property
    def pieces(self) -> list[Piece]:
        """Rows of the queries and of the keys of each piece."""
        columns = (self.queries.starts, self.queries.stops, self.keys.starts, self.keys.stops)
        return [(slice(a, b), slice(c, d)) for a, b, c, d in zip(*(x.tolist() for x in columns), strict=True)]

    @cached_property
    def runs(self) -> list[tuple[int, slice, slice]]:
        """Pieces of one shape that lie next to each other, in queries and in keys, as one: how many, and their rows."""
        found: list[tuple[int, slice, slice]] = []
        shape = (0, 0)
        for rows, columns in self.pieces:
            before, shape = shape, (rows.stop - rows.start, columns.stop - columns.start)
            if found and before == shape and (found[-1][1].stop, found[-1][2].stop) == (rows.start, columns.start):
                count, first, other = found.pop()
                found.append((count + 1, slice(first.start, rows.stop), slice(other.start, columns.stop)))
            else:
                found.append((1, rows, columns))
        return found
