"""Sums over the ranks that share a pack: each gets the sum of what all bring, and gradients go back to all of them.

    rank 0   a  b  .                                            backward: what the losses of all ranks say of each
    rank 1   .  b' c      ---->    a  b+b'  c+c'  on each rank  sum is added up, and is each rank's gradient
    rank 2   .  .  c'

For losses that compare each document with all others of its pack, such as `models.language.contrastive_head`. Each rank
computes a part of the loss, and gradients of all parts are summed, so the gradient of the sum of all parts is exact. (A
sum whose backward keeps what this rank's own part says is right only where all ranks compute all.)

The rows are those of the pack, which every rank knows, so that nobody has to be asked how many there are: on a GPU the
host does not wait. Backward is collective: every rank goes through it, also one that brings zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dtypes import accumulator
from parallel.mesh import Groups


def total(x: Tensor, groups: Groups) -> Tensor:
    """The sum over the ranks that share this rank's pack. Collective, and so is its backward.

    Sums are in float32 (float64 for float64), in the order of the ranks: always the same bits, on all of them.

    Args:
        x: of one shape and dtype on all ranks of the replica; must want gradients on all of them or on none.
        groups: of this rank.
    """
    if groups.mesh.sequence_ranks == 1:
        return x
    found: Tensor = _Total.apply(x, groups.mesh.sequence_ranks, groups.sequence)  # type: ignore[no-untyped-call]
    return found


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int, group: Any) -> Tensor:
        ctx.ranks, ctx.group = ranks, group
        return _added(x, ranks, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _added(grad, ctx.ranks, ctx.group), None, None


def _added(x: Tensor, ranks: int, group: Any) -> Tensor:
    found = x.new_empty(ranks, *x.shape)
    if x.numel():
        dist.all_gather(list(found), x.contiguous(), group)
    return found.to(accumulator(x.dtype)).sum(0).to(x.dtype)
