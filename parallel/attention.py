"""`attend`: the one door to attention, exact on any mesh, forward and backward.

Ulysses inside a node exchanges tokens for heads, the ring across nodes moves keys; a degree of 1 leaves a step out.
Everything that depends on the mask or the mesh was decided in the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor

from parallel.plan import Plan
from parallel.ring import RingAttention
from parallel.ulysses import Heads, HeadsToTokens, TokensToHeads, share_heads

_ring = cast(Callable[[Tensor, Tensor, Tensor, Plan, Tensor | None, float], Tensor], RingAttention.apply)
_to_heads = cast(Callable[[Tensor, Tensor, Tensor, Plan, Heads], tuple[Tensor, Tensor, Tensor]], TokensToHeads.apply)
_to_tokens = cast(Callable[[Tensor, Plan, Heads], Tensor], HeadsToTokens.apply)


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float | None = None) -> Tensor:
    """Attention output [tokens, heads, head_dim] of this rank's queries.

    Args:
        q: [tokens, heads, head_dim], rows as this rank holds them.
        k: [keys, kv_heads, head_dim]; kv_heads divides heads.
        v: like k.
        plan: of this batch.
        scale: of the scores; 1 / sqrt(head_dim) if not given.
    """
    scale = q.shape[2] ** -0.5 if scale is None else scale
    ulysses = len(plan.ulysses_tokens)
    heads = share_heads(q.shape[1], k.shape[1], ulysses)
    if ulysses == 1:
        return _ring(q, k, v, plan, None, scale)
    assert plan.groups is not None, "ulysses needs groups"
    kv_of_head = heads.kv_of_head(plan.groups.place.ulysses, q.device)
    q, k, v = _to_heads(q, k, v, plan, heads)
    return _to_tokens(_ring(q, k, v, plan, kv_of_head, scale), plan, heads)
