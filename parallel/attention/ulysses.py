"""Ulysses: one all-to-all turns "my tokens, all heads" into "all tokens of the group, my heads", and one turns it back.

What goes the same way goes together: q, k and v are one message to each rank, [tokens, heads of q + of k + of v,
head_dim], and are views of what arrived, a token's heads side by side. So each number is copied once, before it leaves.

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

from parallel.attention.plan import Plan


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


def to_heads(xs: Sequence[Tensor], shares: Sequence[Sequence[range]], plan: Plan) -> Tensor:
    """My tokens, all heads -> all the group's tokens, my heads: [tokens, heads of all xs, head_dim]; see `parts_of`.

    Args:
        xs: of this rank, of one head_dim.
        shares: of each, the heads of each rank.
        plan: of this rank.
    """
    tokens, dim, me = len(xs[0]), xs[0].shape[2], _me(plan)
    widths = [sum(len(of[rank]) for of in shares) for rank in range(len(plan.ulysses_tokens))]
    leaving = xs[0].new_empty(tokens * sum(widths) * dim)
    for rank, block in enumerate(leaving.split([tokens * width * dim for width in widths])):
        parts = block.view(tokens, widths[rank], dim).split([len(of[rank]) for of in shares], dim=1)
        for part, x, of in zip(parts, xs, shares, strict=True):
            part.copy_(x[:, of[rank].start : of[rank].stop])
    arriving = leaving.new_empty(sum(plan.ulysses_tokens), widths[me], dim)  # rank after rank: in place as it comes
    _all_to_all(
        arriving, leaving, [t * widths[me] * dim for t in plan.ulysses_tokens], [tokens * w * dim for w in widths], plan
    )
    return arriving


def parts_of(block: Tensor, shares: Sequence[Sequence[range]], plan: Plan) -> tuple[Tensor, ...]:
    """What `to_heads` was given, each [tokens, heads, head_dim]: views."""
    found: tuple[Tensor, ...] = block.split([len(of[_me(plan)]) for of in shares], dim=1)
    return found


def to_tokens(xs: Sequence[Tensor], shares: Sequence[Sequence[range]], plan: Plan) -> list[Tensor]:
    """The way back: all the group's tokens, my heads -> my tokens, all heads.

    A head that several ranks have, as key heads may be, is the sum of what they have, in at least float32.
    """
    tokens, dim, me = plan.ulysses_tokens[_me(plan)], xs[0].shape[2], _me(plan)
    widths = [sum(len(of[rank]) for of in shares) for rank in range(len(plan.ulysses_tokens))]
    leaving = torch.cat([*xs], dim=1).contiguous() if len(xs) > 1 else xs[0].contiguous()
    arriving = leaving.new_empty(tokens * sum(widths) * dim)
    sizes = [tokens * width * dim for width in widths]
    _all_to_all(arriving, leaving, sizes, [t * widths[me] * dim for t in plan.ulysses_tokens], plan)
    blocks = [
        block.view(tokens, width, dim).split([len(of[rank]) for of in shares], dim=1)
        for rank, (block, width) in enumerate(zip(arriving.split(sizes), widths, strict=True))
    ]
    return [_joined(parts, of) for parts, of in zip(zip(*blocks, strict=True), shares, strict=True)]


def _joined(parts: Sequence[Tensor], shares: Sequence[range]) -> Tensor:
    """Heads of all ranks side by side, those that several have added up."""
    if sum(len(share) for share in shares) == shares[-1].stop:
        return torch.cat([*parts], dim=1)
    tokens, _, dim = parts[0].shape
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].new_zeros(tokens, shares[-1].stop, dim, dtype=wide)
    for part, share in zip(parts, shares, strict=True):
        total[:, share.start : share.stop] += part
    return total.to(parts[0].dtype)


def _me(plan: Plan) -> int:
    assert plan.groups is not None, "ulysses needs groups"
    return plan.groups.place.ulysses


def _all_to_all(arriving: Tensor, leaving: Tensor, sizes: list[int], counts: list[int], plan: Plan) -> None:
    """Numbers of each rank: `sizes` arrive, `counts` leave."""
    assert plan.groups is not None, "ulysses needs groups"
    dist.all_to_all_single(arriving.view(-1), leaving.view(-1), sizes, counts, group=plan.groups.ulysses)
