"""What kernels do to rows around their calls: take pieces, turn them, put places together, merge, and diagonals.

Without indexing: that asks torch for the device, so that fake tensors of a GPU would need one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parallel.masks.rectangles import ANTICAUSAL


def part(x: Tensor, rows: slice, dim: int = 0) -> Tensor:
    """A range of rows."""
    return x.narrow(dim, rows.start, rows.stop - rows.start)


def taken(x: Tensor, ranges: Sequence[slice]) -> Tensor:
    """Rows of ranges, one after the other: a view where they are one stretch."""
    found = [part(x, stretch) for _, stretch in stretches(ranges)]
    return found[0] if len(found) == 1 else torch.cat(found)


def put(total: Tensor, ranges: Sequence[slice], rows: Tensor) -> None:
    """The way back: `rows` replace these ranges of `total`."""
    places = stretches(ranges)
    torch._foreach_copy_([part(total, there) for _, there in places], [part(rows, here) for here, _ in places])


def dense(x: Tensor) -> Tensor:
    """Contiguous."""
    return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)


def stretches(ranges: Sequence[slice]) -> list[tuple[slice, slice]]:
    """Ranges that touch as one: where it is among the taken rows, and where in the block."""
    found: list[tuple[slice, slice]] = []
    at = 0
    for r in ranges:
        size = r.stop - r.start
        if found and found[-1][1].stop == r.start:
            here, there = found[-1]
            found[-1] = slice(here.start, at + size), slice(there.start, r.stop)
        else:
            found.append((slice(at, at + size), r))
        at += size
    return found


def turned(x: Tensor, ranges: Sequence[slice], kind: int) -> Tensor:
    """Each piece backwards in time if it is anticausal: it then is causal."""
    if kind != ANTICAUSAL:
        return x
    return torch.cat([one.flip(0) for one in x.split([r.stop - r.start for r in ranges])])


def by_place(x: Tensor, ranges: int) -> Tensor:
    """[ranges x places, ...] -> [places x ranges, ...]: the same place of all ranges together."""
    found: Tensor = x.unflatten(0, (ranges, -1)).transpose(0, 1).flatten(0, 1)
    return found


def by_range(x: Tensor, ranges: int) -> Tensor:
    """The way back."""
    found: Tensor = x.unflatten(0, (-1, ranges)).transpose(0, 1).flatten(0, 1)
    return found


def merged(before: Tensor, lse: Tensor, new: Tensor, new_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [rows, heads, head_dim] and log-sum-exp [rows, heads] of two sets of keys, as of both together."""
    total = torch.logaddexp(lse, new_lse.to(lse.dtype))
    out = before * (lse - total).exp().unsqueeze(-1) + new * (new_lse - total).exp().unsqueeze(-1)
    return out, total


def diagonal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Each query sees one key: the output is its value."""
    groups = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    lse = (q.to(exact) * repeated(k, groups)).sum(dim=2).T * scale
    return v.clone() if groups == 1 else repeated(v, groups), lse


def diagonal_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given the global output and log-sum-exp of the rows."""
    groups = q.shape[1] // k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    q_, grad_ = q.to(exact), grad.to(exact)
    k_, v_ = repeated(k, groups).to(exact), repeated(v, groups).to(exact)
    p = ((q_ * k_).sum(dim=2) * scale - lse.T).exp().unsqueeze(-1)
    ds = p * (grad_ * (v_ - out)).sum(dim=2, keepdim=True) * scale
    dk, dv = (folded(x, groups).to(k.dtype) for x in (ds * q_, p * grad_))
    return (ds * k_).to(q.dtype), dk, dv


def repeated(x: Tensor, groups: int) -> Tensor:
    """A key head for each query head."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def folded(x: Tensor, groups: int) -> Tensor:
    """The way back of gradients: query heads of one key head summed."""
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(dim=2)
