"""`Launch`: pieces of a mask that one kernel computes together, in rows of the local queries and of a block of keys.

Kernels of variable length take several pieces in one `Call`, and want to be told on the device where each begins. That
is made once for a plan, not in each layer: `prepare` sends it for all calls of a plan in one message. Which pieces make
a call is decided in `varlen_calls.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from parallel.masks.rectangles import DIAGONAL, FULL, GRID, Ints

Piece = tuple[slice, slice]  # rows of the queries, rows of the keys
Part = tuple[slice, Tensor, Tensor]  # rows of the queries, their output, their log-sum-exp
GradientPart = tuple[slice, Tensor, slice, Tensor, Tensor]  # rows of the queries, dq, rows of the keys, dk, dv


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a tensor, as ranges in order; taken as one slice where they are one, else by index."""

    starts: Ints
    stops: Ints

    @property
    def count(self) -> int:
        """How many rows."""
        return int((self.stops - self.starts).sum())

    def ranges(self) -> list[slice]:
        """As they are."""
        return [slice(a, b) for a, b in zip(self.starts.tolist(), self.stops.tolist(), strict=True)]

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
class Call:
    """Pieces of one kind that a kernel of variable lengths computes in one call.

    Attributes:
        kind: FULL, CAUSAL, ANTICAUSAL or DIAGONAL.
        pieces: rows of the queries and of the keys of each.
    """

    kind: int
    pieces: list[Piece]
    _bounds: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def causal(self) -> bool:
        """Whether a row sees no later key of its piece; of anticausal pieces, once they are turned in time."""
        return self.kind != FULL

    @cached_property
    def rows(self) -> list[slice]:
        """Of the queries, of each piece."""
        return [rows for rows, _ in self.pieces]

    @cached_property
    def columns(self) -> list[slice]:
        """Rows of the keys, of each piece."""
        return [columns for _, columns in self.pieces]

    @cached_property
    def longest(self) -> tuple[int, int]:
        """The most rows of the queries, and of the keys, of one piece."""
        return max(r.stop - r.start for r in self.rows), max(c.stop - c.start for c in self.columns)

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where pieces begin and end among the taken rows of queries, and of keys: [pieces + 1] int32 each."""
        if _where(device) not in self._bounds:
            prepare([self], device)
        return self._bounds[_where(device)]


Calls = tuple[tuple[Call, ...], ...]  # those of one group are about the same rows, and what they give is merged


def prepare(calls: Sequence[Call], device: torch.device) -> None:
    """Send the bounds of all these calls that are not there yet to a device, in one message that nobody waits for."""
    missing = [call for call in calls if _where(device) not in call._bounds]
    if not missing:
        return
    sides = [side for call in missing for side in (call.rows, call.columns)]
    ends = [[0, *accumulate(r.stop - r.start for r in side)] for side in sides]
    numbers = torch.tensor([end for side in ends for end in side], dtype=torch.int32)
    if detect_fake_mode() is not None:
        sent = numbers.new_empty(len(numbers), device=device)
    elif device.type == "cuda":
        sent = numbers.pin_memory().to(device, non_blocking=True)  # from other memory it waits for the device
    else:
        sent = numbers.to(device)
    bounds = sent.split([len(side) for side in ends])
    for call, first in zip(missing, range(0, len(bounds), 2), strict=True):
        call._bounds[_where(device)] = bounds[first], bounds[first + 1]


def _where(device: torch.device) -> object:
    """Fake tensors of one mode are of no use to another, nor to a run."""
    return device, detect_fake_mode()


@dataclass(frozen=True, eq=False)
class Launch:
    """Pieces of one kind whose query rows are disjoint, for one call of a kernel or a few.

    Attributes:
        kind: FULL, CAUSAL, ANTICAUSAL or DIAGONAL; all but FULL are squares. Or GRID.
        queries, keys: rows of the local queries and of the keys of the hop; range i of both makes piece i. Of a GRID
            all ranges have one length, and row p of each range of queries sees row p of each range of keys, however
            many there are of each: the same place in all frames.
        fresh: no earlier launch of the plan touched these query rows, so that there is nothing to merge with.
    """

    kind: int
    queries: Rows
    keys: Rows
    fresh: bool
    made: dict[object, Calls] = field(default_factory=dict, repr=False)

    @property
    def area(self) -> int:
        """Pairs of one query and one key."""
        rows, columns = self.queries.stops - self.queries.starts, self.keys.stops - self.keys.starts
        if self.kind == GRID:
            return int(rows.sum()) * len(columns)
        if self.kind == FULL:
            return int((rows * columns).sum())
        return int(rows.sum()) if self.kind == DIAGONAL else int((rows * (rows + 1) // 2).sum())

    @cached_property
    def whole(self) -> tuple[slice, slice] | None:
        """Its rows of queries and of keys, if both are one stretch in the order of pieces; each is then met once."""
        queries, keys = self.queries.stretches(), self.keys.stretches()
        return (queries[0], keys[0]) if len(queries) == len(keys) == 1 else None

    @cached_property
    def packed(self) -> Launch:
        """Of a GRID: the same place after place, in rows that were put into that order. A place is a document."""
        assert self.kind == GRID, "only a grid has places"
        places = np.arange(int(self.queries.stops[0] - self.queries.starts[0]) + 1)
        sizes = (len(self.queries.starts), len(self.keys.starts))
        queries, keys = (Rows(places[:-1] * n, places[1:] * n) for n in sizes)
        return Launch(FULL, queries, keys, fresh=True)

    @cached_property
    def pieces(self) -> list[Piece]:
        """Rows of the queries and of the keys of each piece."""
        return list(zip(self.queries.ranges(), self.keys.ranges(), strict=True))

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
