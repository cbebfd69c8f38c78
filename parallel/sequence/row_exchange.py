"""Row exchange: rows that one part of a model makes on some rank, brought to the ranks that hold their positions.

    visuals of the pack      0      1      2      3        dealt evenly: each rank encodes some
    rank 0  encodes 0, 1     rows of 0, 1 ---+--> positions of this rank that are rows of visuals, in order
    rank 1  encodes 2, 3     rows of 2, 3 ---+--> ...

The cut of a pack may go through the middle of a frame, and the frames of a long document may all lie in the part of one
rank; what is encoded where has nothing to do with either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from parallel.device_stream import Send
from parallel.masks.rectangles import Ints
from parallel.mesh import Groups
from parallel.sequence.packed import Ranges
from parallel.sequence.relayout import Move, move_for, relayout
from parallel.sequence.sharding import Split, contiguous


@dataclass(frozen=True, eq=False)
class RowExchange:
    """The plan of one pack on one rank; to be called with the rows that were made here.

    Attributes:
        views: of the pack that this rank encodes, [first, stop).
        move: of their rows to the ranks that hold their positions.
        rows: int64 [rows], which of this rank's tokens are rows of visuals, in order.
        most: views that any rank encodes.
        groups: of this rank.
    """

    views: tuple[int, int]
    move: Move
    rows: Tensor
    most: int
    groups: Groups

    def to(self, send: Send) -> RowExchange:
        """The same on a device; `send` puts a tensor of the host there."""
        return replace(self, move=self.move.to(send), rows=send(self.rows))

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [made, dim] of the views encoded here -> [rows, dim] of this rank's tokens. Collective."""
        return relayout(rows, self.move, self.groups)


def row_exchange_for(views: Ranges, split: Split, groups: Groups) -> RowExchange:
    """Deal the views of a pack to the ranks of the replica.

    Args:
        views: the rows of each in the pack, [start, stop), in order.
        split: of the pack.
        groups: of this rank.
    """
    ranks, rank = len(split.ranges), groups.place.sequence
    dealt = [ranges[0] if ranges else (0, 0) for ranges in contiguous(len(views), ranks).ranges]
    starts, stops = np.array(views, dtype=np.int64).reshape(-1, 2).T
    before = np.append(0, (stops - starts).cumsum())
    have = [((int(before[first]), int(before[stop])),) if first < stop else () for first, stop in dealt]
    wanted, rows = zip(*(_held(starts, stops, before, ranges) for ranges in split.ranges), strict=True)
    want = [tuple((int(at), int(at) + 1) for at in of_rank) for of_rank in wanted]
    most = max(stop - first for first, stop in dealt)
    return RowExchange(dealt[rank], move_for(have, want, rank), torch.from_numpy(rows[rank]), most, groups)


def _held(starts: Ints, stops: Ints, before: Ints, ranges: Ranges) -> tuple[Ints, Ints]:
    """Rows of all views, end to end, that lie in these positions; and which of the rows of the rank they are."""
    positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
    if not len(starts):
        return positions[:0], positions[:0]
    view = np.maximum(np.searchsorted(starts, positions, side="right") - 1, 0)
    inside = (positions >= starts[view]) & (positions < stops[view])
    return (before[view] + positions - starts[view])[inside], np.flatnonzero(inside)
