"""Row-wise work in tiles of tokens: what is wide exists for one tile at a time, in forward and in backward.

                      tiled                                      tiled_cross_entropy
    x [tokens, dim]   [tile, 4 dim]   y [tokens, dim]            hidden [tokens, dim]   logits [tile, vocabulary]
    |----|   ------>  |----------|  ------>   |----|             |----|   ------>       |--------------------|
    |----|                                    |----|             |----|                                      |
    |----|                                    |----|             |----|            loss, gradients  <--------+

The tiling of Bekman et al. (ALST, arXiv:2506.13996). With 16,384 tokens a rank and 152,000 words, logits and their
gradient in float32 would be 20 GB; a tile of 2,048 has 1.2 GB of each.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallel.dtypes import accumulator
from parallel.errors import InputError
from parallel.masks.rectangles import Ints
from parallel.sequence.packed import IGNORED

TILE_TOKENS = 2048  # the weight's gradient is read and written once a tile: enough rows to hide that


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tiles: int) -> Tensor:
    """`function(x)`, tile by tile; of each tile only its input and output are kept, the rest is computed again.

    A checkpoint around each call is the way that asks nothing of a module. The graph stays one graph, so autograd sums
    a parameter's gradient over the tiles and hands it on once a backward pass: hooks on it, such as those of ZeRO,
    run once. The module's own hooks run at every call and recomputation, so ZeRO-3 gathers what a tile needs. The price
    is that autograd sums in the dtype of the parameter: in bf16 the error of a weight's gradient was 1.7e-3 with one
    tile, 3.2e-3 with 8 and 7.9e-3 with 64. So take few: with 8, the 4 dim of an MLP take half the room of its input.

    Args:
        function: a module or function of [rows, dim] -> [rows, out] that treats each row alone, draws no random
            numbers and knows its parameters itself.
        x: [tokens, dim].
        tiles: how many; their sizes differ by at most one token. `function` runs exactly so often, on empty tiles too:
            ranks that hold other numbers of tokens, or none, gather the same parameters in the same order.

    Returns:
        [tokens, out].

    Raises:
        InputError: there is no tile.
    """
    return tiled_rows(lambda rows, first: function(rows), x, tiles)


def tiled_rows(function: Callable[[Tensor, int], Tensor], x: Tensor, tiles: int) -> Tensor:
    """`tiled` for a function that is also told the first row of each tile, for what differs from row to row."""
    if tiles < 1:
        raise InputError("work in tiles has at least one tile", f"tiles = {tiles}", "give 1 or more")
    sizes = [(len(x) + i) // tiles for i in range(tiles)]
    firsts = accumulate(sizes, initial=0)
    parts = []
    # split is one node in the graph; a slice for each tile would add up `tiles` whole gradients
    for tile, first in zip(x.split(sizes), firsts, strict=False):
        part = checkpoint(function, tile, first, use_reentrant=False, preserve_rng_state=False)
        assert len(part) == len(tile), f"{len(tile)} rows became {len(part)}: only what treats each row alone is tiled"
        parts.append(part)
    return torch.cat(parts)


def tiled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weight: Tensor | None = None,
    tile_tokens: int = TILE_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of a linear layer over a large vocabulary, summed with weights; the whole logits never exist.

        loss = sum_i w_i (log sum_v exp(h_i . W_v) - h_i . W_label(i))
        d loss / d logits_iv = w_i (softmax(logits_i)_v - [v = label(i)])

    The forward pass computes the gradients too, as the loss is a scalar whose own gradient only scales them (Hsu et
    al., Liger Kernel, arXiv:2410.10989, on fused linear cross entropy): 3 products of the size of the logits, where
    recomputation needs 4. Backward touches neither weight nor logits. The price is the gradient of the weight in
    float32 from forward to backward. A loss that needs no gradient costs none of it.

    The products are in the dtype of `hidden`, all else and all sums over tiles in float32 (float64 for float64).
    Divide the sum by the sum of weights over *all* ranks and micro-steps. A rank without tokens gets 0 and gradients
    of 0. Under ZeRO-3 call it in the forward of the module that owns `weight`, where it is whole.

    Args:
        hidden: [tokens, dim].
        weight: [vocabulary, dim], like `hidden` in dtype and device.
        labels: [tokens] int64; -100 counts for nothing.
        token_weight: [tokens], weight of each token, which gets no gradient; 1 if not given.
        tile_tokens: rows of a tile.

    Returns:
        The sum of weighted losses, and the sum of weights of the tokens that count, both [] in float32 or float64.

    Raises:
        InputError: sizes do not fit. Labels are looked at by whoever makes them, on the host (`refuse_labels`): here
            the host would wait for them, and the kernel that looks up a wrong one stops the program itself.
    """
    _refuse_sizes(hidden, weight, labels, token_weight, tile_tokens)
    counts = labels != IGNORED
    exact = accumulator(hidden.dtype)
    factor = counts.to(exact) if token_weight is None else token_weight.detach().to(exact).masked_fill(~counts, 0)
    labels = labels.masked_fill(~counts, 0)
    wanted = torch.is_grad_enabled() and hidden.requires_grad, torch.is_grad_enabled() and weight.requires_grad
    loss: Tensor = _CrossEntropy.apply(hidden, weight, labels, factor, tile_tokens, wanted)  # type: ignore[no-untyped-call]
    return loss, factor.sum()


class _CrossEntropy(torch.autograd.Function):
    """Saves the gradients; `factor` [tokens] is the weight of each token's loss, `wanted` tells which gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, factor: Tensor, tile: int, wanted: tuple[bool, bool]
    ) -> Tensor:
        exact = factor.dtype
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if wanted[1] else None
        for start in range(0, len(hidden), tile):
            rows = slice(start, start + tile)
            part, grad = _loss_of_tile(hidden[rows], weight, labels[rows, None], factor[rows, None], any(wanted))
            loss += part
            if grad is not None and grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad is not None and grad_weight is not None:
                if grad.dtype == exact:
                    grad_weight.addmm_(grad.T, hidden[rows])
                else:
                    grad_weight += grad.T @ hidden[rows]
            del grad  # before the next tile is made: one exists at a time
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad,
            None if grad_weight is None else (grad_weight * grad).to(ctx.dtype),
            *(None, None, None, None),
        )


def _loss_of_tile(
    hidden: Tensor, weight: Tensor, label: Tensor, scale: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of a tile, and if it is wanted the gradient of its logits, in the dtype of `hidden`.

    One tensor of [tile, vocabulary], which is logits, then their exponentials, then the gradient: `logsumexp` would
    make others as large, and compute the exponentials twice.
    """
    logits = (hidden @ weight.T).to(scale.dtype)
    logits.sub_(logits.amax(1, keepdim=True))
    own = logits.gather(1, label)
    total = logits.exp_().sum(1, keepdim=True)
    loss = ((total.log() - own) * scale).sum()
    if not wanted:
        return loss, None
    return loss, logits.mul_(scale / total).scatter_add_(1, label, -scale).to(hidden.dtype)


def _refuse_sizes(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None, tile_tokens: int
) -> None:
    found = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, labels {list(labels.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        rule = "hidden is [tokens, dim] and weight [vocabulary, dim]"
        raise InputError(rule, found, "flatten hidden to rows of tokens; give the weight of a linear layer")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        rule = "labels are one int64 for each token"
        raise InputError(rule, f"{found} {labels.dtype}", "give the labels of the tokens that this rank holds")
    if token_weight is not None and token_weight.shape != labels.shape:
        found = f"{list(token_weight.shape)} for {len(labels)} tokens"
        raise InputError("token_weight is one number for each token", found, "give it as [tokens]")
    if tile_tokens < 1:
        raise InputError("a tile has at least one token", f"tile_tokens = {tile_tokens}", "give 1 or more")


def refuse_labels(labels: Ints, vocabulary: int) -> None:
    """Labels that a vocabulary has.

    Raises:
        InputError: one is no number of it, and not -100 either.
    """
    wrong = ((labels < 0) | (labels >= vocabulary)) & (labels != IGNORED)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        found = f"label {int(labels[at])} at token {at}, vocabulary {vocabulary}"
        remedy = f"use the tokenizer of this model; {IGNORED} leaves a token out"
        raise InputError("a label is a number of the vocabulary", found, remedy)
