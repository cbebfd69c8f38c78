"""`Reference`: softmax written out, in the dtype of its input: what other kernels are compared with.

It is what float64 on CUDA gets, since no kernel there takes it. Rows are taken a few at a time, so that memory does not
grow with their number: 2^27 scores of all heads at once, 1 GiB in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.kernels import grid
from parallel.kernels.launch import GradientPart, Launch, Part
from parallel.kernels.pieces import folded, part, repeated
from parallel.masks.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL, GRID

SCORES = 1 << 27  # of a tile
MOST_SCORES = 1 << 38  # of a launch on CUDA: 12 heads of 150,000 x 150,000; seconds, where a flash kernel needs a tenth


def refuse_size(scores: float, dtype: torch.dtype) -> None:
    """Attention on CUDA that is small enough for the plain kernel.

    Args:
        scores: pairs of a query and a key, times heads.
        dtype: of the tensors.

    Raises:
        InputError: it is not.
    """
    if scores > MOST_SCORES:
        raise InputError(
            f"attention in {str(dtype).removeprefix('torch.')} on CUDA has no fast kernel: at most 2^38 scores",
            f"{scores:.2g} pairs x heads",
            "dtype=bf16, or dtype=float32",
        )


class Reference:
    """Dense, tile by tile of rows."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """See `Kernel`."""
        self._refuse(q, launch)
        if launch.kind == GRID:
            yield from grid.forward(self, q, k, v, launch, scale)
            return
        groups = q.shape[1] // k.shape[1]
        for rows, columns in launch.pieces:
            k_all, v_all = (repeated(part(x, columns), groups) for x in (k, v))
            outs, lses = [], []
            for tile, offset in _tiles(rows, columns, q.shape[1]):
                scores = _scores(part(q, tile), k_all, launch.kind, offset, scale)
                lse = torch.logsumexp(scores, dim=-1)
                p = scores.sub_(lse.unsqueeze(-1)).exp_()
                outs.append(torch.einsum("hqk,khd->qhd", p, v_all))
                lses.append(lse)
            yield rows, torch.cat(outs), torch.cat(lses, dim=1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """See `Kernel`."""
        if launch.kind == GRID:
            yield from grid.backward(self, grad, q, k, v, out, lse, launch, scale)
            return
        groups = q.shape[1] // k.shape[1]
        for rows, columns in launch.pieces:
            k_all, v_all = (repeated(part(x, columns), groups) for x in (k, v))
            dk, dv, dqs = torch.zeros_like(k_all), torch.zeros_like(v_all), []
            for tile, offset in _tiles(rows, columns, q.shape[1]):
                p = _scores(part(q, tile), k_all, launch.kind, offset, scale)
                p = p.sub_(part(lse, tile, 1).unsqueeze(-1)).exp_()
                here, delta = part(grad, tile), (part(grad, tile) * part(out, tile)).sum(dim=-1).T
                ds = torch.einsum("qhd,khd->hqk", here, v_all)  # [heads, rows, keys]
                ds = ds.sub_(delta.unsqueeze(-1)).mul_(p).mul_(scale)
                dk += torch.einsum("hqk,qhd->khd", ds, part(q, tile))
                dv += torch.einsum("hqk,qhd->khd", p, here)
                dqs.append(torch.einsum("hqk,khd->qhd", ds, k_all))
            yield rows, torch.cat(dqs), columns, folded(dk, groups), folded(dv, groups)

    def _refuse(self, q: Tensor, launch: Launch) -> None:
        if q.device.type == "cuda":
            refuse_size(float(launch.area) * q.shape[1], q.dtype)


def _tiles(rows: slice, columns: slice, heads: int) -> Iterator[tuple[slice, int]]:
    """Stretches of rows, and how far each is from the first."""
    size = max(1, SCORES // (heads * max(1, columns.stop - columns.start)))
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop)), start - rows.start


def _scores(q: Tensor, k: Tensor, kind: int, offset: int, scale: float) -> Tensor:
    """[heads, rows, keys]; -inf where a square is not seen. The first query is `offset` rows below the first key."""
    scores = torch.einsum("qhd,khd->hqk", q, k).mul_(scale)
    if kind == FULL:
        return scores
    at, of = torch.arange(offset, offset + len(q), device=q.device), torch.arange(len(k), device=q.device)
    back = at.unsqueeze(1) - of
    if kind in (CAUSAL, DIAGONAL):
        scores = scores.masked_fill_(back < 0, -torch.inf)
    if kind in (ANTICAUSAL, DIAGONAL):
        scores = scores.masked_fill_(back > 0, -torch.inf)
    return scores
