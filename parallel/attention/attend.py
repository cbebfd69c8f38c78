"""`attend`: the one door to attention, exact on any mesh, forward and backward.

Ulysses inside a node exchanges tokens for heads, the ring across nodes moves keys; a degree of 1 leaves a step out.
Everything that depends on the mask or the mesh was decided in the plan, also what waits for the backward pass:

    keep         kept of a token and layer, in widths of q     sent again in backward
    "exchanged"  q, k, v and output by heads; output           nothing
    "output"     output                                        q, k, v and output (ulysses alone sends them at all)
    "nothing"    under recompute nothing: it is computed again; for short keys that are all here

Both passes are operators of torch, `longreel::attention` and `longreel::attention_backward`, messages included, so that
profilers, dispatch modes and `torch.utils.flop_counter` see attention as one thing. `activation_checkpointing.py` keeps
their results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from parallel.attention import ring, ulysses
from parallel.attention.plan import Plan
from parallel.attention.ulysses import Heads, share_heads
from parallel.dtypes import accumulator
from parallel.errors import InputError
from parallel.kernels.kernel import kernel_for, refuse_heads
from parallel.memory.activation_checkpointing import Kept


@torch._disable_dynamo  # type: ignore[attr-defined]  # opaque to torch.compile; torch.compiler.disable would import the compiler at once
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
    out: Tensor = _Attention.apply(q, k, v, plan, q.shape[2] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
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


def _forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and log-sum-exp; q, k, v in one and output by heads, where ulysses exchanged them and they are kept."""
    kernel = plan.kernel or kernel_for(q.device, q.dtype)
    if not _exchanges(plan):
        out, lse = ring.forward(kernel, q, k, v, plan, None, scale)
        return out, lse, q.new_empty(0), q.new_empty(0)
    heads = share_heads(q.shape[1], k.shape[1], len(plan.ulysses_tokens))
    shares = (heads.queries, heads.keys, heads.keys)
    block = ulysses.to_heads((q, k, v), shares, plan)
    q, k, v = ulysses.parts_of(block, shares, plan)
    out, lse = ring.forward(kernel, q, k, v, plan, _kv_of_head(plan, heads, q.device), scale)
    (whole,) = ulysses.to_tokens((out,), (heads.queries,), plan)
    if not _keeps_exchanged(plan):
        return whole, lse, q.new_empty(0), q.new_empty(0)
    return whole, lse, block, out


def _backward(
    grad: Tensor, kept: Sequence[Tensor], lse: Tensor, plan: Plan, scale: float, heads: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Args:
        grad: of the output.
        kept: q, k, v and output; or by heads, q, k, v in one and output, where they were kept so.
        lse: log-sum-exp.
        plan: of the batch.
        scale: of the scores.
        heads: of queries and of keys before ulysses shared them out.
    """
    kernel = plan.kernel or kernel_for(grad.device, grad.dtype)
    if not _exchanges(plan):
        q, k, v, out = kept
        return ring.backward(kernel, grad, q, k, v, out, lse, plan, None, scale)
    shared = share_heads(heads[0], heads[1], len(plan.ulysses_tokens))
    own, keys = shared.queries, shared.keys
    if _keeps_exchanged(plan):
        q, k, v = ulysses.parts_of(kept[0], (own, keys, keys), plan)
        out, grad = kept[1], ulysses.to_heads((grad,), (own,), plan)
    else:
        shares = (own, keys, keys, own, own)
        block = ulysses.to_heads((*kept, grad), shares, plan)
        q, k, v, out, grad = ulysses.parts_of(block, shares, plan)
    grads = ring.backward(kernel, grad, q, k, v, out, lse, plan, _kv_of_head(plan, shared, q.device), scale)
    dq, dk, dv = ulysses.to_tokens(grads, (own, keys, keys), plan)
    return dq, dk, dv


def _shapes(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    queries, keys = _own_heads(plan, q.shape[1], k.shape[1])
    lse = q.new_empty(queries, plan.queries, dtype=accumulator(q.dtype))
    sizes = [(plan.queries, n, q.shape[2]) for n in (queries + 2 * keys, queries)]
    block, out = (q.new_empty(size if _keeps_exchanged(plan) else 0) for size in sizes)
    return q.new_empty(q.shape), lse, block, out


def _gradient_shapes(
    grad: Tensor, kept: Sequence[Tensor], lse: Tensor, plan: Plan, scale: float, heads: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (len(grad), len(grad), len(grad)) if _exchanges(plan) else (len(grad), len(kept[1]), len(kept[1]))
    of = zip(rows, (heads[0], heads[1], heads[1]), strict=True)
    dq, dk, dv = (grad.new_empty(n, count, grad.shape[2]) for n, count in of)
    return dq, dk, dv


def _flops(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, **_: Any) -> int:
    """Two products of [queries, keys] for each pair, as `torch.utils.flop_counter` counts them."""
    return 4 * plan.area * _own_heads(plan, q.shape[1], k.shape[1])[0] * q.shape[2]


def _gradient_flops(
    grad: Tensor, kept: Sequence[Tensor], lse: Tensor, plan: Plan, scale: float, heads: Sequence[int], **_: Any
) -> int:
    """Five: the scores again, and the gradients of probabilities, q, k and v."""
    return 10 * plan.area * _own_heads(plan, heads[0], heads[1])[0] * grad.shape[2]


for _name, _function, _fake, _formula in (
    ("attention", _forward, _shapes, _flops),
    ("attention_backward", _backward, _gradient_shapes, _gradient_flops),
):
    torch.library.custom_op(f"longreel::{_name}", _function, mutates_args=()).register_fake(_fake)
    register_flop_formula(getattr(torch.ops.longreel, _name), get_raw=True)(_formula)
OPERATORS: dict[Any, Callable[..., tuple[Tensor, ...]]] = {  # what runs inside of each, for those who count it
    torch.ops.longreel.attention.default: _forward,
    torch.ops.longreel.attention_backward.default: _backward,
}


class _Attention(torch.autograd.Function):
    """Under recompute the results of the first forward pass are kept, and given again in place of a second one."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
        kept = Kept.current() if plan.keep != "nothing" else None
        results = kept.take() if kept is not None else None
        if results is None:
            results = torch.ops.longreel.attention(q, k, v, plan, scale)
            if kept is not None:
                kept.put(results)
        out, lse, *own = results
        ctx.plan, ctx.scale, ctx.heads = plan, scale, [q.shape[1], k.shape[1]]
        ctx.save_for_backward(lse, *(own if _keeps_exchanged(plan) else (q, k, v, out)))
        return out.detach()  # what is saved is not what is given: an output that holds its own graph is never freed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        lse, *kept = ctx.saved_tensors
        backward = torch.ops.longreel.attention_backward
        return *backward(_dense(grads[0]), kept, lse, ctx.plan, ctx.scale, ctx.heads), None, None


def _exchanges(plan: Plan) -> bool:
    return len(plan.ulysses_tokens) > 1


def _keeps_exchanged(plan: Plan) -> bool:
    return _exchanges(plan) and plan.keep == "exchanged"


def _own_heads(plan: Plan, queries: int, keys: int) -> tuple[int, int]:
    """Heads of queries and of keys that this rank computes."""
    heads = share_heads(queries, keys, len(plan.ulysses_tokens))
    me = plan.groups.place.ulysses if plan.groups is not None else 0
    return len(heads.queries[me]), len(heads.keys[me])


def _kv_of_head(plan: Plan, heads: Heads, device: torch.device) -> Tensor | None:
    assert plan.groups is not None, "ulysses needs groups"
    return heads.kv_of_head(plan.groups.place.ulysses, device)
