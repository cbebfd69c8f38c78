"""`FlashCUDA`: torch's aten flash op for CUDA, FlashAttention 2, with variable lengths; and what its relatives share.

Many small pieces are one call (`varlen_calls.py`). A call of one piece goes without bounds, the way that everybody's
attention goes. torch.nn.attention.activate_flash_attention_impl re-routes the op to FlashAttention 3 or 4
(`kernel_benchmark.py`).

Backward adds up the gradients of queries by atomics, in any order, unless torch is told to be deterministic: then each
multiprocessor has a sum of its own, and calls are cut so that all of these hold no more than one call of 2^31 elements.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parallel.kernels import grid
from parallel.kernels.launch import Call, Calls, GradientPart, Launch, Part
from parallel.kernels.pieces import dense, diagonal, diagonal_backward, merged, part, put, stretches, taken, turned
from parallel.kernels.varlen_calls import calls_of
from parallel.masks.rectangles import DIAGONAL, GRID

aten = torch.ops.aten
ELEMENTS = 1 << 31  # that CUDA kernels cannot count: rows x heads x head_dim of a call stay below
PROCESSORS = 132  # of an H100 or H200, where the device cannot be asked


class FlashCUDA:
    """bf16 and fp16; takes fewer key heads than query heads.

    Relatives give another `_call` and `_call_backward`; what they are given is taken rows, end to end, and causal
    pieces in the order of time.
    """

    padded = False  # whether there are as many rows for each piece of a call as for the longest

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        if launch.kind == GRID:
            yield from grid.forward(self, q, k, v, launch, scale)
            return
        groups = self._calls(q, k, launch)
        for calls in groups:
            yield from self._merged(q, k, v, calls, scale)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        if launch.kind == GRID:
            yield from grid.backward(self, grad, q, k, v, out, lse, launch, scale)
            return
        groups = self._calls(q, k, launch)
        parts = (one for calls in groups for call in calls for one in self._of(grad, q, k, v, out, lse, call, scale))
        if launch.whole and sum(len(call.pieces) for calls in groups for call in calls) > len(launch.pieces):
            yield _summed(parts, *launch.whole, q.shape[1:], k.shape[1:])  # it was cut
            return
        yield from parts

    def _calls(self, q: Tensor, k: Tensor, launch: Launch) -> Calls:
        return calls_of(launch, len(k), most_rows(q), self.padded)

    def _merged(self, q: Tensor, k: Tensor, v: Tensor, calls: tuple[Call, ...], scale: float) -> Iterator[Part]:
        """What a group of calls gives, each row once."""
        if len(calls) == 1:
            out, lse = self._forward(q, k, v, calls[0], scale)
            yield from _parts(calls[0].rows, out, lse)
            return
        every = _union([r for call in calls for r in call.rows])
        first, last = every[0].start, every[-1].stop
        exact = torch.promote_types(q.dtype, torch.float32)
        total = q.new_zeros(last - first, *q.shape[1:], dtype=exact)
        sums = total.new_full((last - first, q.shape[1]), -torch.inf)
        for call in calls:
            rows = [slice(r.start - first, r.stop - first) for r in call.rows]
            out, lse = self._forward(q, k, v, call, scale)
            new, new_lse = merged(taken(total, rows), taken(sums, rows), out, lse.T)
            put(total, rows, new)
            put(sums, rows, new_lse)
        for r in every:
            at = slice(r.start - first, r.stop - first)
            yield r, part(total, at), part(sums, at).T

    def _forward(self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of the taken rows of a call."""
        rows, columns = call.rows, call.columns
        q1, k1, v1 = taken(q, rows), taken(k, columns), taken(v, columns)
        if call.kind == DIAGONAL:
            return diagonal(q1, k1, v1, scale)
        q1, k1, v1 = (turned(x, n, call.kind) for x, n in ((q1, rows), (k1, columns), (v1, columns)))
        out, lse = self._call(q1, k1, v1, call, scale)
        return turned(out, rows, call.kind), turned(lse.T, rows, call.kind).T

    def _of(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: Call, scale: float
    ) -> Iterator[GradientPart]:
        """Gradients of a call, piece by piece."""
        rows, columns = call.rows, call.columns
        grad1, q1, out1, lse1 = (taken(x, rows) for x in (grad, q, out, lse.T))
        k1, v1 = taken(k, columns), taken(v, columns)
        if call.kind == DIAGONAL:
            dq, dk, dv = diagonal_backward(grad1, q1, k1, v1, out1, lse1.T, scale)
        else:
            grad1, q1, out1, lse1 = (turned(x, rows, call.kind) for x in (grad1, q1, out1, lse1))
            k1, v1 = (turned(x, columns, call.kind) for x in (k1, v1))
            grads = self._call_backward(
                dense(grad1), q1, k1, v1, dense(out1), dense(lse1.T),
                call, scale,
            )  # fmt: skip
            dq, dk, dv = (turned(x, n, call.kind) for x, n in zip(grads, (rows, columns, columns), strict=True))
        whole = stretches(rows), stretches(columns)
        if len(whole[0]) == len(whole[1]) == 1:
            yield whole[0][0][1], dq, whole[1][0][1], dk, dv
            return
        row = column = 0
        for r, c in call.pieces:  # one by one: pieces may share keys, and the order of a sum is part of a result
            row, column = row + r.stop - r.start, column + c.stop - c.start
            at, of = slice(row - (r.stop - r.start), row), slice(column - (c.stop - c.start), column)
            yield r, part(dq, at), c, part(dk, of), part(dv, of)

    def _call(
        self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output [rows, heads, head_dim] and log-sum-exp [heads, rows]."""
        if len(call.pieces) == 1:
            out, lse, *_ = aten._flash_attention_forward(
                *(x.unsqueeze(0) for x in (q, k, v)), None, None, *call.longest, 0.0, call.causal, False, scale=scale
            )
            return out.squeeze(0), lse.squeeze(0)
        out, lse, *_ = aten._flash_attention_forward(
            q, k, v, *call.bounds(q.device), *call.longest, 0.0, call.causal, False, scale=scale
        )
        return out, lse

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of q, k and v of a call, given the global output and log-sum-exp of its rows."""
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a drop-out that is 0
        if len(call.pieces) == 1:
            grads = aten._flash_attention_backward(
                *(x.unsqueeze(0) for x in (grad, q, k, v, out, lse)), None, None, *call.longest,
                0.0, call.causal, unused, unused, scale=scale,
            )  # fmt: skip
            dq, dk, dv = (x.squeeze(0) for x in grads)
            return dq, dk, dv
        dq, dk, dv = aten._flash_attention_backward(
            grad, q, k, v, out, lse, *call.bounds(q.device), *call.longest,
            0.0, call.causal, unused, unused, scale=scale,
        )  # fmt: skip
        return dq, dk, dv


def most_rows(q: Tensor) -> int:
    """Rows of queries or keys [rows, heads, head_dim] that a call may have, padding included."""
    heads, dim = q.shape[1], -(-q.shape[2] // 32) * 32
    sums = 1
    if torch.are_deterministic_algorithms_enabled():
        real = q.device.type == "cuda" and torch.cuda.is_available()
        count = torch.cuda.get_device_properties(q.device).multi_processor_count if real else PROCESSORS
        sums = -(-count // heads)
    return max(1, (ELEMENTS - 1) // (heads * dim * sums))


def _parts(rows: list[slice], out: Tensor, lse: Tensor) -> Iterator[Part]:
    at = 0
    for stretch in _joined(rows):
        size = stretch.stop - stretch.start
        yield stretch, out.narrow(0, at, size), lse.narrow(1, at, size)
        at += size


def _joined(rows: list[slice]) -> list[slice]:
    """Ranges that touch as one, in their order."""
    found: list[slice] = []
    for r in rows:
        if found and found[-1].stop == r.start:
            found[-1] = slice(found[-1].start, r.stop)
        else:
            found.append(r)
    return found


def _union(rows: list[slice]) -> list[slice]:
    """What any of the ranges holds, in rising order."""
    found: list[slice] = []
    for r in sorted(rows, key=lambda r: r.start):
        if found and r.start <= found[-1].stop:
            found[-1] = slice(found[-1].start, max(found[-1].stop, r.stop))
        else:
            found.append(r)
    return found


def _summed(
    parts: Iterator[GradientPart], rows: slice, columns: slice, of_q: torch.Size, of_k: torch.Size
) -> GradientPart:
    """Gradients of parts of rows and columns, as one: sums in at least float32, in the dtype of the parts."""
    total: list[Tensor] = []
    for at, dq, of, dk, dv in parts:
        if not total:
            dtype, exact = dq.dtype, torch.promote_types(dq.dtype, torch.float32)
            queries, keys = (rows.stop - rows.start, *of_q), (columns.stop - columns.start, *of_k)
            total = [dq.new_zeros(shape, dtype=exact) for shape in (queries, keys, keys)]
        here = slice(at.start - rows.start, at.stop - rows.start)
        there = slice(of.start - columns.start, of.stop - columns.start)
        for sum_, where, new in zip(total, (here, there, there), (dq, dk, dv), strict=True):
            part(sum_, where).add_(new)
    dq, dk, dv = (sum_.to(dtype) for sum_ in total)
    return rows, dq, columns, dk, dv
