"""Gathering: every rank of the whole mesh gets the rows of all, and gradients go back to whom the rows came from.

    rank 0   a a              a a b c c c                      backward: rank 1 sends what its loss says of a a to
    rank 1   b        ---->   a a b c c c   on every rank      rank 0, of b to itself, of c c c to rank 2; everyone
    rank 2   c c c            a a b c c c                      adds up what came for its own rows

For losses that compare each sample with all others, such as `models.contrastive`. Every rank computes a part of the
loss, that of its own rows; gradients of all parts are summed, so the gradient of the sum of all parts is exact. (A
gather whose backward keeps what this rank's loss says of its own rows is right only where all ranks compute all.)

Backward is collective: every rank goes through it, also one with no rows, whose part of the loss is 0. So the result
asks for gradients on all ranks if the rows of any rank do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.errors import InputError
from parallel.mesh import Groups
from parallel.ring import accumulator

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)


class Gathered(NamedTuple):
    """Rows of all ranks.

    Attributes:
        rows: [all rows, ...] in the order of the ranks.
        mine: which of them came from this rank.
    """

    rows: Tensor
    mine: slice


def gather(x: Tensor, groups: Groups, replica: bool = False) -> Gathered:
    """The rows of all ranks of the mesh, or of the replica. Collective, and so is its backward.

    The messages are as long as if every rank had as many rows as the one with most. Gradients travel in the dtype of
    the rows and are summed in float32 (float64 for float64), in the order of the ranks: always the same bits.

    Args:
        x: [rows, ...], any number of rows, or none; beyond that of one shape and dtype on all ranks.
        groups: of this rank.
        replica: of the ranks that share this rank's packs alone.

    Raises:
        InputError: on every rank, if shapes or dtypes differ, or the dtype is not one of `DTYPES`.
    """
    place, ranks = groups.place, groups.mesh.sequence_ranks if replica else groups.mesh.ranks
    if ranks == 1:
        return Gathered(x, slice(0, len(x)))
    rank = place.sequence if replica else place.replica * groups.mesh.sequence_ranks + place.sequence
    group = groups.sequence if replica else None
    told = _everyones(x, ranks, group)
    _refuse_differences(told)
    counts = [rows for rows, *_ in told]
    if any(wants for _, wants, *_ in told) and torch.is_grad_enabled() and not x.requires_grad:
        x = x.detach().requires_grad_()  # else this rank would stay away from the backward of the others
    stops = list(accumulate(counts, initial=0))
    rows: Tensor = _Gather.apply(x, counts, rank, group)  # type: ignore[no-untyped-call]
    return Gathered(rows, slice(stops[rank], stops[rank + 1]))


def numbers(documents: int, groups: Groups) -> Tensor:
    """[documents] int64: of each document of this replica's pack a number that no document of another replica has."""
    return torch.arange(documents) + (groups.place.replica << 32)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int], rank: int, group: Any) -> Tensor:
        ctx.counts, ctx.rank, ctx.group = counts, rank, group
        padded = x.new_zeros(max(counts), *x.shape[1:])
        padded[: len(x)] = x
        found = x.new_empty(len(counts), *padded.shape)
        if padded.numel():
            dist.all_gather(list(found), padded, group)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        ranks, mine = len(ctx.counts), ctx.counts[ctx.rank]
        arrived = grad.new_empty(ranks * mine, *grad.shape[1:])
        if grad.numel():
            dist.all_to_all_single(arrived, grad.contiguous(), [mine] * ranks, list(ctx.counts), ctx.group)
        each = arrived.reshape(ranks, mine, *grad.shape[1:])
        return each.to(accumulator(grad.dtype)).sum(0).to(grad.dtype), None, None, None


def _everyones(x: Tensor, ranks: int, group: Any) -> list[list[int]]:
    """Of each rank: rows, whether they want gradients, number of its dtype, and the shape of a row."""
    wants = x.requires_grad and torch.is_grad_enabled()
    dtype = DTYPES.index(x.dtype) if x.dtype in DTYPES else -1
    shape = [*x.shape[1:], 0, 0, 0][:3]
    mine = torch.tensor([len(x), wants, dtype, x.ndim, *shape], device=x.device)
    everyone = mine.new_empty(ranks, len(mine))
    dist.all_gather(list(everyone), mine, group)
    told: list[list[int]] = everyone.tolist()
    return told


def _refuse_differences(told: Sequence[Sequence[int]]) -> None:
    others = [rank for rank, (*_, dtype, ndim, a, b, c) in enumerate(told) if [dtype, ndim, a, b, c] != told[0][2:]]
    if others or told[0][2] < 0:
        (_, _, dtype, ndim, *shape), rank = told[others[0] if others else 0], others[0] if others else 0
        of = DTYPES[dtype] if dtype >= 0 else "another dtype"
        raise InputError(
            f"ranks gather rows of one shape and dtype, one of {', '.join(map(str, DTYPES))}",
            f"rank {rank} brings rows {shape[: ndim - 1]} of {of}",
            "give the same on every rank; a rank without rows gives x.new_zeros(0, dim)",
        )
