"""`Launch`: pieces of a mask that one kernel computes together, in rows of the local queries and of a block of keys.

Kernels of variable length take several pieces in one `Call`, and want to be told on the device where each begins. That
is made once for a plan, not in each layer: `prepare` sends it for all calls of a plan in one message.
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

from parallel.rectangles import DIAGONAL, FULL, Ints

Piece = tuple[slice, slice]  # rows of the queries, rows of the keys
Part = tuple[slice, Tensor, Tensor]  # rows of the queries, their output, their log-sum-exp
GradientPart = tuple[slice, Tensor, slice, Tensor, Tensor]  # rows of the queries, dq, rows of the keys, dk, dv
LARGE = 1 << 22  # pairs, from which on a piece is a call of its own: it then is a view, and the call is worth it


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
class Call:
    """Pieces that a kernel of variable lengths computes in one call.

    Attributes:
        pieces: rows of the queries and of the keys of each.
    """

    pieces: list[Piece]
    _bounds: dict[object, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

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


def prepare(calls: Sequence[Call], device: torch.device) -> None:
    """Send the bounds of all these calls that are not there yet to a device, in one message that nobody waits for."""
    missing = [call for call in calls if _where(device) not in call._bounds]
    if not missing:
        return
    sides = [side for call in missing for side in (call.rows, call.columns)]
    ends = [[0, *accumulate(r.stop - r.start for r in side)] for side in sides]
    numbers = torch.tensor([end for side in ends for end in side], dtype=torch.int32)
    if device.type == "cuda" and torch.cuda.is_available() and detect_fake_mode() is None:
        numbers = numbers.pin_memory()  # else the copy waits for all that the device has to do
    bounds = numbers.to(device, non_blocking=True).split([len(side) for side in ends])
    for call, first in zip(missing, range(0, len(bounds), 2), strict=True):
        call._bounds[_where(device)] = bounds[first], bounds[first + 1]


def _where(device: torch.device) -> object:
    """Fake tensors of one mode are of no use to another, nor to a run."""
    return device, detect_fake_mode()


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
    _calls: dict[int, list[Call]] = field(default_factory=dict, repr=False)

    def calls(self, keys: int) -> list[Call]:
        """Pieces that are worth one call: small ones, as long as their keys are not copied more than once in all.

        Args:
            keys: rows of the block of keys.
        """
        if keys not in self._calls:
            self._calls[keys] = [Call(pieces) for pieces in _together(self.pieces, keys)]
        return self._calls[keys]

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


def _together(pieces: list[Piece], keys: int) -> list[list[Piece]]:
    found: list[list[Piece]] = []
    columns = 0
    for rows, cols in pieces:
        size = cols.stop - cols.start
        large = (rows.stop - rows.start) * size >= LARGE
        touch = bool(found) and found[-1][-1][0].stop == rows.start and found[-1][-1][1].stop == cols.start
        if not found or (not touch and (large or columns + size > keys)):
            found.append([])
            columns = 0
        found[-1].append((rows, cols))
        columns += size
    return found
