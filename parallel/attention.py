"""`attend`: the one door to attention, exact on any mesh, forward and backward.

Ulysses inside a node exchanges tokens for heads, the ring across nodes moves keys; a degree of 1 leaves a step out.
Everything that depends on the mask or the mesh was decided in the plan.

All of it, messages included, is one operator of torch, `longreel::attention`: selective activation checkpointing can
keep what it gave, and then neither computes nor sends anything twice (`recompute.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallel import ring, ulysses
from parallel.errors import InputError
from parallel.kernel import kernel_for, refuse_heads
from parallel.plan import Plan
from parallel.ulysses import Heads, share_heads


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float | None = None) -> Tensor:
    """Attention output [tokens, heads, head_dim] of this rank's queries.

    Args:
        q: [tokens, heads, head_dim], rows as this rank holds them.
        k: [keys, kv_heads, head_dim]; kv_heads divides heads.
        v: like k.
        plan: of this batch.
        scale: of the scores; 1 / sqrt(head_dim) if not given.

    Raises:
        InputError: no kernel takes these heads, there are other rows than the plan was made for, or the scale is not
            positive.
    """
    refuse_heads(q, k, v)
    refuse_rows(q, k, plan)
    if scale is not None and not 0 < scale < float("inf"):
        raise InputError("the scale of scores is positive", str(scale), "scale=head_dim ** -0.5, or None for that")
    q, k, v = (_dense(x) for x in (q, k, v))
    out: Tensor = torch.ops.longreel.attention(q, k, v, plan, q.shape[2] ** -0.5 if scale is None else scale)[0]
    return out


def _dense(x: Tensor) -> Tensor:
    """With a last dimension of stride 1: torch's flash op for CPU takes it for granted and reads elsewhere."""
    return x if x.stride(-1) == 1 else x.contiguous()


def refuse_rows(q: Tensor, k: Tensor, plan: Plan) -> None:
    """Rows that a plan was made for.

    Raises:
        InputError: there are more or fewer.
    """
    alone = len(plan.ulysses_tokens) == 1
    own = plan.ulysses_tokens[0 if plan.groups is None else plan.groups.place.ulysses]
    if len(q) != own or len(k) != (plan.keys if alone else own):
        found = f"{len(q)} queries and {len(k)} keys; the plan has {own} and {plan.keys if alone else own}"
        raise InputError(
            "attention is given as many rows as its plan was made for", found, "make a plan for this batch"
        )


@torch.library.custom_op("longreel::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output and log-sum-exp; with ulysses also q, k, v and output as this rank computed them (else empty)."""
    heads = share_heads(q.shape[1], k.shape[1], len(plan.ulysses_tokens))
    kernel = plan.kernel or kernel_for(q.device, q.dtype)
    if len(plan.ulysses_tokens) == 1:
        out, lse = ring.forward(kernel, q, k, v, plan, None, scale)
        return out, lse, q.new_empty(0), q.new_empty(0), q.new_empty(0), q.new_empty(0)
    q = ulysses.to_heads(q, heads.queries, plan)
    k, v = (ulysses.to_heads(x, heads.keys, plan) for x in (k, v))
    out, lse = ring.forward(kernel, q, k, v, plan, _kv_of_head(plan, heads, q.device), scale)
    return ulysses.to_tokens(out, heads.queries, plan), lse, q, k, v, out


@torch.library.custom_op("longreel::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: Plan, scale: float, heads: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `heads` are those of queries and of keys before ulysses shared them out."""
    kernel = plan.kernel or kernel_for(q.device, q.dtype)
    if len(plan.ulysses_tokens) == 1:
        return ring.backward(kernel, grad, q, k, v, out, lse, plan, None, scale)
    shared = share_heads(heads[0], heads[1], len(plan.ulysses_tokens))
    grad = ulysses.to_heads(grad, shared.queries, plan)
    kv_of_head = _kv_of_head(plan, shared, q.device)
    dq, dk, dv = ring.backward(kernel, grad, q, k, v, out, lse, plan, kv_of_head, scale)
    dk, dv = (ulysses.to_tokens(x, shared.keys, plan) for x in (dk, dv))
    return ulysses.to_tokens(dq, shared.queries, plan), dk, dv


@_attention.register_fake
def _shapes(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    heads = share_heads(q.shape[1], k.shape[1], len(plan.ulysses_tokens))
    me = plan.groups.place.ulysses if plan.groups is not None else 0
    mine, keys, dim = len(heads.queries[me]), len(heads.keys[me]), q.shape[2]
    lse = q.new_empty(mine, plan.queries, dtype=ring.accumulator(q.dtype))
    if len(plan.ulysses_tokens) == 1:
        return torch.empty_like(q), lse, q.new_empty(0), q.new_empty(0), q.new_empty(0), q.new_empty(0)
    a, b, c, d = (q.new_empty(plan.queries, n, dim) for n in (mine, keys, keys, mine))
    return torch.empty_like(q), lse, a, b, c, d


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.plan, ctx.scale = inputs
    out, lse, *own = output
    ctx.heads = [q.shape[1], k.shape[1]]
    q, k, v, out = (q, k, v, out) if len(ctx.plan.ulysses_tokens) == 1 else own
    ctx.save_for_backward(q, k, v, out, lse)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.longreel.attention_backward(_dense(grad), *ctx.saved_tensors, ctx.plan, ctx.scale, ctx.heads)
    return *grads, None, None


_attention.register_autograd(_gradient, setup_context=_save)


def _kv_of_head(plan: Plan, heads: Heads, device: torch.device) -> Tensor | None:
    assert plan.groups is not None, "ulysses needs groups"
    return heads.kv_of_head(plan.groups.place.ulysses, device)
