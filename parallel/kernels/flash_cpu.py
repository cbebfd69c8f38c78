"""`FlashCPU`: torch's aten flash op for CPU. Neighbouring pieces of one shape are one call, as a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parallel.kernels import grid
from parallel.kernels.launch import GradientPart, Launch, Part
from parallel.kernels.pieces import diagonal, diagonal_backward
from parallel.masks.rectangles import ANTICAUSAL, DIAGONAL, FULL, GRID

aten = torch.ops.aten


class FlashCPU:
    """float64, float32 and bf16; takes fewer key heads than query heads. Always deterministic."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        if launch.kind == GRID:
            yield from grid.forward(self, q, k, v, launch, scale)
            return
        for count, rows, columns in launch.runs:
            if launch.kind == DIAGONAL:
                yield rows, *diagonal(q[rows], k[columns], v[columns], scale)
                continue
            q4, k4, v4 = (_batched(x, count, launch.kind) for x in (q[rows], k[columns], v[columns]))
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                q4, k4, v4, 0.0, launch.kind != FULL, attn_mask=None, scale=scale
            )
            yield rows, _flat(out, launch.kind), _lse_flat(lse, launch.kind)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        if launch.kind == GRID:
            yield from grid.backward(self, grad, q, k, v, out, lse, launch, scale)
            return
        for count, rows, columns in launch.runs:
            if launch.kind == DIAGONAL:
                dq, dk, dv = diagonal_backward(
                    grad[rows], q[rows], k[columns], v[columns], out[rows], lse[:, rows], scale
                )
                yield rows, dq, columns, dk, dv
                continue
            grad4, q4, out4 = (_batched(x[rows], count, launch.kind) for x in (grad, q, out))
            k4, v4 = (_batched(x[columns], count, launch.kind) for x in (k, v))
            grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad4, q4, k4, v4, out4, _lse_batched(lse[:, rows], count, launch.kind),
                0.0, launch.kind != FULL, attn_mask=None, scale=scale,
            )  # fmt: skip
            dq, dk, dv = (_flat(x, launch.kind) for x in grads)
            yield rows, dq, columns, dk, dv


def _batched(x: Tensor, count: int, kind: int) -> Tensor:
    """[count x rows, heads, head_dim] -> [count, heads, rows, head_dim]; backwards in time for an anticausal square."""
    x = x.unflatten(0, (count, -1))
    return (x.flip(1) if kind == ANTICAUSAL else x).transpose(1, 2)


def _flat(x: Tensor, kind: int) -> Tensor:
    """The way back."""
    x = x.transpose(1, 2)
    return (x.flip(1) if kind == ANTICAUSAL else x).flatten(0, 1)


def _lse_flat(lse: Tensor, kind: int) -> Tensor:
    """[count, heads, rows] -> [heads, count x rows]."""
    return (lse.flip(2) if kind == ANTICAUSAL else lse).transpose(0, 1).flatten(1)


def _lse_batched(lse: Tensor, count: int, kind: int) -> Tensor:
    """[heads, count x rows] -> [count, heads, rows]."""
    lse = lse.unflatten(1, (count, -1)).transpose(0, 1)
    return (lse.flip(2) if kind == ANTICAUSAL else lse).contiguous()
