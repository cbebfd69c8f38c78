"""A grid of diagonals, every place of a clip over all frames: a document for each place, in rows put in that order.

As diagonals, 84 frames are 84 launches for each frame and as many merges of every row; by place they are one launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from parallel.kernels.launch import GradientPart, Launch, Part
from parallel.kernels.pieces import by_place, by_range, dense, part, put, stretches, taken


class Dense(Protocol):
    """A kernel that knows no grids; see `parallel.kernels.kernel.Kernel`."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""


def forward(kernel: Dense, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
    """See `Kernel`."""
    queries, keys = launch.queries.ranges(), launch.keys.ranges()
    q1 = by_place(taken(q, queries), len(queries))
    k1, v1 = (by_place(taken(x, keys), len(keys)) for x in (k, v))
    parts = list(kernel.forward(q1, k1, v1, launch.packed, scale))
    if len(parts) == 1:
        ((_, out, lse),) = parts
    else:
        out, lse = q1.new_empty(q1.shape, dtype=parts[0][1].dtype), parts[0][2].new_empty(q1.shape[1], len(q1))
        for rows, new_out, new_lse in parts:
            put(out, [rows], new_out)
            put(lse.T, [rows], new_lse.T)
    out, lse = by_range(out, len(queries)), by_range(lse.T, len(queries)).T
    for at, stretch in stretches(queries):
        yield stretch, part(out, at), part(lse, at, 1)


def backward(
    kernel: Dense, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
) -> Iterator[GradientPart]:
    """See `Kernel`."""
    queries, keys = launch.queries.ranges(), launch.keys.ranges()
    grad1, q1, out1, lse1 = (by_place(taken(x, queries), len(queries)) for x in (grad, q, out, lse.T))
    k1, v1 = (by_place(taken(x, keys), len(keys)) for x in (k, v))
    parts = list(kernel.backward(grad1, q1, k1, v1, out1, dense(lse1.T), launch.packed, scale))
    if len(parts) == 1:
        ((_, dq, _, dk, dv),) = parts
    else:
        dq, dk, dv = (x.new_zeros(x.shape, dtype=parts[0][1].dtype) for x in (q1, k1, v1))
        for rows, new_dq, columns, new_dk, new_dv in parts:
            for total, where, new in ((dq, rows, new_dq), (dk, columns, new_dk), (dv, columns, new_dv)):
                part(total, where).add_(new)
    dq, dk, dv = by_range(dq, len(queries)), by_range(dk, len(keys)), by_range(dv, len(keys))

    yield from _paired(dq, queries, dk, dv, keys)


def _paired(dq: Tensor, queries: list[slice], dk: Tensor, dv: Tensor, keys: list[slice]) -> Iterator[GradientPart]:
    """Each stretch once: those left over of one side go with no rows of the other."""
    q, k = stretches(queries), stretches(keys)
    none = slice(0, 0)
    q += [(none, none)] * (len(k) - len(q))
    k += [(none, none)] * (len(q) - len(k))
    for (at, rows), (of, columns) in zip(q, k, strict=True):
        yield rows, part(dq, at), columns, part(dk, of), part(dv, of)
