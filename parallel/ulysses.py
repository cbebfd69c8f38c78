"""Ulysses: one all-to-all turns "my tokens, all heads" into "all tokens of the group, my heads", and one turns it back.

Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509. Heads need not divide: rank j of u owns query heads
[j h / u, (j + 1) h / u), and the key heads that these need; a key head that several ranks need goes to each of them,
and its gradient comes back from each. q, k and v travel in one message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.plan import Plan


@dataclass(frozen=True)
class Heads:
    """Which heads each rank of a ulysses group computes."""

    queries: tuple[range, ...]
    keys: tuple[range, ...]

    def kv_of_head(self, rank: int, device: torch.device) -> Tensor | None:
        """The local key head of each local query head; None where the kernel's own even grouping says the same."""
        heads, keys = self.queries[rank], self.keys[rank]
        per_key = self.queries[-1].stop // self.keys[-1].stop
        index = [head // per_key - keys.start for head in heads]
        even = len(keys) > 0 and len(heads) % len(keys) == 0
        if not heads or (even and index == [i // (len(heads) // len(keys)) for i in range(len(heads))]):
            return None
        return torch.tensor(index, device=device)


def share_heads(heads: int, kv_heads: int, ranks: int) -> Heads:
    """Query heads in `ranks` stretches as equal as can be, and the key heads that each of them needs."""
    assert heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads} key heads"
    per_key = heads // kv_heads
    queries = tuple(range(j * heads // ranks, (j + 1) * heads // ranks) for j in range(ranks))
    keys = tuple(range(q.start // per_key, -(-q.stop // per_key) if q else q.start // per_key) for q in queries)
    return Heads(queries, keys)


def to_heads(q: Tensor, k: Tensor, v: Tensor, plan: Plan, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of my tokens and all heads -> of all the group's tokens and my heads."""
    me = _me(plan)
    sends = [
        (q[:, r.start : r.stop], k[:, s.start : s.stop], v[:, s.start : s.stop])
        for r, s in zip(heads.queries, heads.keys, strict=True)
    ]
    mine = len(heads.queries[me]), len(heads.keys[me]), len(heads.keys[me])
    received = _all_to_all(sends, [[(t, h, q.shape[2]) for h in mine] for t in plan.ulysses_tokens], plan)
    q_all, k_all, v_all = (torch.cat(parts) for parts in zip(*received, strict=True))
    return q_all, k_all, v_all


def from_heads(dq: Tensor, dk: Tensor, dv: Tensor, plan: Plan, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """The way back, for gradients; those of a key head that went to several ranks are summed in at least float32."""
    me = _me(plan)
    sends = list(zip(*(x.split(plan.ulysses_tokens) for x in (dq, dk, dv)), strict=True))
    tokens, dim = plan.ulysses_tokens[me], dq.shape[2]
    counts = [(len(q), len(k), len(k)) for q, k in zip(heads.queries, heads.keys, strict=True)]
    received = _all_to_all(sends, [[(tokens, h, dim) for h in count] for count in counts], plan)
    dq_mine = torch.cat([parts[0] for parts in received], dim=1)
    exact = torch.promote_types(dq.dtype, torch.float32)
    dk_mine, dv_mine = (dq.new_zeros(tokens, heads.keys[-1].stop, dim, dtype=exact) for _ in range(2))
    for keys, (_, dk_part, dv_part) in zip(heads.keys, received, strict=True):
        dk_mine[:, keys.start : keys.stop] += dk_part
        dv_mine[:, keys.start : keys.stop] += dv_part
    return dq_mine, dk_mine.to(dq.dtype), dv_mine.to(dq.dtype)


def to_tokens(out: Tensor, plan: Plan, heads: Heads) -> Tensor:
    """The attention output of all the group's tokens and my heads -> of my tokens and all heads."""
    tokens = plan.ulysses_tokens[_me(plan)]
    shapes = [[(tokens, len(q), out.shape[2])] for q in heads.queries]
    received = _all_to_all([(part,) for part in out.split(plan.ulysses_tokens)], shapes, plan)
    return torch.cat([part for (part,) in received], dim=1)


def from_tokens(grad: Tensor, plan: Plan, heads: Heads) -> Tensor:
    """The way back, for its gradient."""
    shapes = [[(t, len(heads.queries[_me(plan)]), grad.shape[2])] for t in plan.ulysses_tokens]
    received = _all_to_all([(grad[:, q.start : q.stop],) for q in heads.queries], shapes, plan)
    return torch.cat([part for (part,) in received])


def _me(plan: Plan) -> int:
    assert plan.groups is not None, "ulysses needs groups"
    return plan.groups.place.ulysses


def _all_to_all(
    sends: Sequence[tuple[Tensor, ...]], shapes: list[list[tuple[int, int, int]]], plan: Plan
) -> list[tuple[Tensor, ...]]:
    """Send sends[j] to rank j of the ulysses group; receive tensors of shapes[i] from rank i, in one message each."""
    assert plan.groups is not None, "ulysses needs groups"
    outgoing = torch.cat([x.reshape(-1) for parts in sends for x in parts])
    sizes = [[torch.Size(shape).numel() for shape in parts] for parts in shapes]
    incoming = outgoing.new_empty(sum(sum(s) for s in sizes))
    dist.all_to_all_single(
        incoming,
        outgoing,
        [sum(s) for s in sizes],
        [sum(x.numel() for x in parts) for parts in sends],
        group=plan.groups.ulysses,
    )
    received = []
    for size, parts, chunk in zip(sizes, shapes, incoming.split([sum(s) for s in sizes]), strict=True):
        received.append(tuple(x.view(shape) for x, shape in zip(chunk.split(size), parts, strict=True)))
    return received
