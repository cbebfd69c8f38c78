"""Modulation: one row of scale and shift for each stretch of tokens that share a document and a noise level.

    document     a a a a b b b b b        rows of the table
    noise level  0 0 7 7 4 4 4 4 4        (a, 0)  (a, 7)  (b, 4)
    stretches    |---|---|-------|

A million tokens of one clip under plain flow need one row; a noise level for each frame needs one row a frame. Neither
direction builds a [tokens, dim] table: the forward pass writes stretch by stretch, the backward pass sums stretch by
stretch, in the order of the tokens (deterministic, unlike atomic adds). The price is about five small kernels for each
stretch, so levels that alternate from token to token are right but slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from parallel.rectangles import Ints
from parallel.stream import Send, here


@dataclass(frozen=True, eq=False)
class Stretches:
    """Runs of neighbouring local tokens with the same document and noise level; none if no token is held.

    Attributes:
        spans: rows [start, stop) of each.
        document: [stretches] int64, index of the document.
        level: [stretches] float64, the noise level.
    """

    spans: tuple[tuple[int, int], ...]
    document: Tensor
    level: Tensor

    @classmethod
    def of(cls, document: Ints, level: npt.NDArray[np.float64], send: Send = here) -> Stretches:
        """The stretches of tokens with `document` [tokens] and `level` [tokens], both on the host: nothing waits."""
        if not len(document):
            return cls((), send(torch.from_numpy(document)), send(torch.from_numpy(level)))
        changes = np.flatnonzero((document[1:] != document[:-1]) | (level[1:] != level[:-1])) + 1
        first = np.append(0, changes)
        spans = tuple(zip(first.tolist(), [*changes.tolist(), len(document)], strict=True))
        return cls(spans, send(torch.from_numpy(document[first])), send(torch.from_numpy(level[first])))


def modulate(x: Tensor, shift: Tensor, scale: Tensor, stretches: Stretches) -> Tensor:
    """x (1 + scale) + shift (Peebles and Xie, DiT, arXiv:2212.09748, sec. 3.2, fig. 3).

    Args:
        x: [tokens, dim].
        shift: [stretches, dim].
        scale: [stretches, dim].
        stretches: which row each token takes.
    """
    out: Tensor = _Affine.apply(x, 1 + scale, shift, stretches.spans)  # type: ignore[no-untyped-call]
    return out


def gate(x: Tensor, scale: Tensor, stretches: Stretches) -> Tensor:
    """x scale: how much of a branch is added; `x` is [tokens, dim], `scale` [stretches, dim]."""
    out: Tensor = _Affine.apply(x, scale, None, stretches.spans)  # type: ignore[no-untyped-call]
    return out


class _Affine(torch.autograd.Function):
    """out = x * scale + shift with the row of its stretch; saves `x` and the small tables."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, spans: tuple[tuple[int, int], ...]) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.spans, ctx.shifted = spans, shift is not None
        out = torch.empty_like(x)
        for row, (start, stop) in enumerate(spans):
            if shift is None:
                torch.mul(x[start:stop], scale[row], out=out[start:stop])
            else:
                torch.addcmul(shift[row], x[start:stop], scale[row], out=out[start:stop])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        grad = grads[0]
        x, scale = ctx.saved_tensors
        grad_x, grad_scale, grad_shift = torch.empty_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
        for row, (start, stop) in enumerate(ctx.spans):
            piece = grad[start:stop]
            torch.mul(piece, scale[row], out=grad_x[start:stop])
            torch.sum(piece * x[start:stop], dim=0, out=grad_scale[row])
            if ctx.shifted:
                torch.sum(piece, dim=0, out=grad_shift[row])
        return grad_x, grad_scale, grad_shift if ctx.shifted else None, None
