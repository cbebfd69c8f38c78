"""A linear recurrence along a sequence that is split over ranks, as the state of recurrent mixers.

    h_t = a_t h_(t-1) + b_t        of each channel; h starts from 0 at each document

Two steps in a row are one step of the same kind, (a2, b2) after (a1, b1) = (a1 a2, a2 b1 + b2), and so is a rank's
whole stretch. Up the tree, neighbours become one step, until one is left (A, B); that goes to all ranks; down the tree,
the state that came in turns into the state after each token.

    tokens    1   2   3   4   5            up: (1 2) (3 4) 5, then (1 2 3 4) 5, then (1 2 3 4 5) = (A, B)
    states    h1  h2  h3  h4  h5           down: each odd place from its left neighbour, the even ones are there
                                           ranks: state that comes in = B_(r-1) + A_(r-1) (B_(r-2) + A_(r-2) (...))

Blelloch, Prefix Sums and Their Applications, CMU-CS-90-190, sec. 1.4; for recurrent networks Martin and Cundy,
arXiv:1709.04057, sec. 2, also the gradient. Work is 3 steps a token in 2 log2(tokens) rounds, memory that of a and b
twice more; in each direction a rank sends 2 x channels numbers. There is no division, so |a| <= 1 (a = 0
too) is safe: products can only underflow to the 0 that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.dtypes import accumulator
from parallel.errors import InputError
from parallel.mesh import Groups
from parallel.sequence.sharding import Split


def scan(decay: Tensor, inputs: Tensor, document: Tensor, groups: Groups) -> Tensor:
    """State after each token, h_t = decay_t h_(t-1) + inputs_t, from 0 at the start of each document.

    Collective over the ranks of the replica, forward and backward, also for ranks that hold nothing. Sequence rank i
    holds the stretch before that of rank i + 1 (`refuse_order` tells). In float32 inside (float64 for float64).

    Args:
        decay: [tokens, channels], with |decay| <= 1.
        inputs: like decay.
        document: [tokens] integers; a document is a run of equal ones, also over the border of two ranks.
        groups: of this rank.

    Returns:
        [tokens, channels] in the dtype of `inputs`.

    Raises:
        InputError: sizes do not fit.
    """
    if decay.ndim != 2 or decay.shape != inputs.shape or document.shape != decay.shape[:1]:
        found = f"decay {list(decay.shape)}, inputs {list(inputs.shape)}, document {list(document.shape)}"
        raise InputError("decay and inputs are [tokens, channels], document [tokens]", found, "give the same tokens")
    h: Tensor = _Scan.apply(decay, inputs, document, groups)  # type: ignore[no-untyped-call]
    return h


def refuse_order(split: Split) -> None:
    """A recurrence runs from rank to rank, so each rank holds one stretch, in the order of the ranks; or nothing.

    Raises:
        InputError: the split is another one.
    """
    at = 0
    for rank, ranges in enumerate(split.ranges):
        for start, stop in ranges:
            if start != at:
                found = f"rank {rank} holds {start} to {stop} where {at} would be next"
                raise InputError("a scan goes over stretches in the order of the ranks", found, "split: contiguous")
            at = stop


class _Scan(torch.autograd.Function):
    """Backward is a scan too, from the end, of u_t = a_t dh_t, which flows from token t to the state before it.

    dh_t = grad_t + u_(t+1),  u_t = a_t u_(t+1) + a_t grad_t,  db_t = dh_t,  da_t = dh_t h_(t-1)
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, document: Tensor, groups: Groups) -> Tensor:
        exact = accumulator(inputs.dtype)
        starts = _starts(document, groups)
        levels = _up(_cut(decay, starts, exact), inputs.to(exact))
        me = groups.place.sequence
        state = _state_after(_everyones(levels, groups)[:me], inputs.new_zeros(inputs.shape[1], dtype=exact))
        h = _down(levels, state).to(inputs.dtype)
        ctx.save_for_backward(decay, starts, state, h)
        ctx.groups = groups
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        decay, starts, state, h = ctx.saved_tensors
        a, grad = _cut(decay, starts, state.dtype), grad.to(state.dtype)
        levels = _up(a.flip(0), (a * grad).flip(0))
        me = ctx.groups.place.sequence
        later = _state_after(_everyones(levels, ctx.groups)[me + 1 :].flip(0), torch.zeros_like(state))
        u = _down(levels, later).flip(0)
        dh = grad + torch.cat((u, later[None]))[1:]
        before = torch.cat((state[None], h))[:-1]
        return (dh * before).masked_fill(starts[:, None], 0).to(decay.dtype), dh.to(h.dtype), None, None


def _cut(decay: Tensor, starts: Tensor, exact: torch.dtype) -> Tensor:
    """`decay` with 0 where a document starts: nothing of the state before it is left."""
    return decay.to(exact).masked_fill(starts[:, None], 0)


def _starts(document: Tensor, groups: Groups) -> Tensor:
    """[tokens] bool: the first token of its document; the first one here asks the nearest rank before that has any."""
    same = torch.zeros((1,), dtype=torch.bool, device=document.device)
    end = torch.cat((document.new_ones(1), document[-1:])) if len(document) else document.new_zeros(2)
    for holds, last in _gather(end, groups)[: groups.place.sequence]:
        same = torch.where(holds > 0, last == document[:1], same)
    return ~torch.cat((same[: len(document)], document[1:] == document[:-1]))


def _up(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Steps, pairs of them, pairs of pairs ..., down to a single one; a last one without a partner goes along."""
    levels = [(a, b)]
    while len(a) > 1:
        even = len(a) // 2 * 2
        b = torch.cat((torch.addcmul(b[1:even:2], a[1:even:2], b[:even:2]), b[even:]))
        a = torch.cat((a[:even:2] * a[1:even:2], a[even:]))
        levels.append((a, b))
    return levels


def _down(levels: list[tuple[Tensor, Tensor]], state: Tensor) -> Tensor:
    """The state after each step of the first level, given the one before all of them."""
    a, b = levels[-1]
    h = torch.addcmul(b, a, state)  # one row, or none
    for a, b in reversed(levels[:-1]):
        before = torch.cat((state[None], h))[: (len(a) + 1) // 2]
        wide = torch.empty_like(b)
        wide[::2] = torch.addcmul(b[::2], a[::2], before)
        wide[1::2] = h[: len(a) // 2]
        h = wide
    return h


def _everyones(levels: list[tuple[Tensor, Tensor]], groups: Groups) -> Tensor:
    """[ranks, 2, channels]: each rank's whole stretch as one step; a rank without tokens changes nothing."""
    a, b = levels[-1]
    return _gather(torch.stack((a.prod(0), b.sum(0))), groups)  # of one row; of none they are 1 and 0


def _state_after(steps: Iterable[Tensor], state: Tensor) -> Tensor:
    """The state after `steps`, each [2, channels]."""
    for a, b in steps:
        state = torch.addcmul(b, a, state)
    return state


def _gather(x: Tensor, groups: Groups) -> Tensor:
    """[ranks, ...]: `x` of each rank of the sequence."""
    if groups.sequence is None:
        return x[None]
    found = x.new_empty(groups.mesh.sequence_ranks, *x.shape)
    dist.all_gather(list(found), x, group=groups.sequence)
    return found
