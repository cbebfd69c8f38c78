"""Ulysses: one all-to-all turns "my tokens, all heads" into "all tokens of the group, my heads", and one turns it back.

Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509. Heads need not divide: rank j of u owns query heads
[j h / u, (j + 1) h / u), and the key heads that these need; a key head that several ranks need goes to each of them,
and its gradient comes back from each.
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


def to_heads(x: Tensor, shares: Sequence[range], plan: Plan) -> Tensor:
    """My tokens, all heads -> all the group's tokens, my heads: [tokens, heads, head_dim].

    Args:
        x: of this rank.
        shares: heads of each rank.
        plan: of this rank.
    """
    mine, dim = len(shares[_me(plan)]), x.shape[2]
    leaving = torch.cat([x[:, share.start : share.stop].reshape(-1) for share in shares])
    arriving = x.new_empty(sum(plan.ulysses_tokens), mine, dim)  # rank after rank: in place as it comes
    _all_to_all(
        arriving, leaving, [t * mine * dim for t in plan.ulysses_tokens], [len(x) * len(s) * dim for s in shares], plan
    )
    return arriving


def to_tokens(x: Tensor, shares: Sequence[range], plan: Plan) -> Tensor:
    """The way back: all the group's tokens, my heads -> my tokens, all heads.

    A head that several ranks have, as key heads may be, is the sum of what they have, in at least float32.
    """
    tokens, dim = plan.ulysses_tokens[_me(plan)], x.shape[2]
    arriving = x.new_empty(tokens * sum(len(share) for share in shares) * dim)
    sizes = [tokens * len(share) * dim for share in shares]
    _all_to_all(arriving, x.contiguous(), sizes, [t * x.shape[1] * dim for t in plan.ulysses_tokens], plan)
    parts = [part.view(tokens, len(s), dim) for part, s in zip(arriving.split(sizes), shares, strict=True)]
    if sum(len(share) for share in shares) == shares[-1].stop:
        return torch.cat(parts, dim=1)
    total = x.new_zeros(tokens, shares[-1].stop, dim, dtype=torch.promote_types(x.dtype, torch.float32))
    for part, share in zip(parts, shares, strict=True):
        total[:, share.start : share.stop] += part
    return total.to(x.dtype)


def _me(plan: Plan) -> int:
    assert plan.groups is not None, "ulysses needs groups"
    return plan.groups.place.ulysses


def _all_to_all(arriving: Tensor, leaving: Tensor, sizes: list[int], counts: list[int], plan: Plan) -> None:
    """Numbers of each rank: `sizes` arrive, `counts` leave."""
    assert plan.groups is not None, "ulysses needs groups"
    dist.all_to_all_single(arriving.view(-1), leaving.view(-1), sizes, counts, group=plan.groups.ulysses)
