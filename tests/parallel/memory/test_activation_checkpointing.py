"""Under recompute attention's forward runs once a step, and sends once or, keeping less, once more; counted."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.attention import ring
from parallel.attention.attend import attend
from parallel.attention.plan import Keep, Plan, plan_for
from parallel.masks import mask as masks
from parallel.memory.activation_checkpointing import recompute
from parallel.mesh import Mesh, join
from parallel.sequence.sharding import contiguous
from tests.parallel.attention.test_attend import rows_of
from tests.parallel.attention.test_cost import counted
from tests.support.process_groups import run_world

DIM, HEADS, TOKENS = 24, 4, 26


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, dtype=torch.float64)
        self.out = nn.Linear(DIM, DIM, dtype=torch.float64)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (3 * HEADS, -1)).chunk(3, dim=1)
        return x + self.out(attend(q, k, v, plan).flatten(1)).tanh()


def plain(block: Any, *inputs: Any) -> Any:
    return block(*inputs)


def everything_again(block: Any, *inputs: Any) -> Any:
    return checkpoint(block, *inputs, use_reentrant=False)


def step(rank: int, mesh: Mesh, keep: Keep) -> dict[str, tuple[list[Tensor], int, int]]:
    """For each way of recomputing: gradients, forward passes of attention, bytes sent."""
    groups, mask = join(mesh, rank), masks.packed([11, 15])
    split = contiguous(TOKENS, mesh.ranks)
    found = {}
    for way in (plain, recompute, everything_again):
        torch.manual_seed(0)
        blocks = nn.ModuleList(Block() for _ in range(3))
        x = torch.randn(TOKENS, DIM, dtype=torch.float64)[rows_of(split, rank)].requires_grad_()
        plan, calls = plan_for(mask, split, groups, keep=keep), Counter[str]()
        forward = ring.forward

        def count(*args: Any, calls: Counter[str] = calls, forward: Any = forward) -> Any:
            calls["forward"] += 1
            return forward(*args)

        with patch.object(ring, "forward", count), counted(rank) as sent:
            h = x
            for block in blocks:
                h = way(block, h, plan)
            h.square().sum().backward()
        grads = [g for g in (x.grad, *(p.grad for p in blocks.parameters())) if g is not None]
        found[way.__name__] = grads, calls["forward"], int(sent.sum())
    return found


@pytest.mark.parametrize("mesh", [Mesh(1, 1, 1), Mesh(1, 2, 1), Mesh(1, 1, 2)], ids=str)
def test_attention_runs_once(mesh: Mesh) -> None:
    for answer in run_world(mesh.ranks, step, mesh, "exchanged"):
        grads, forwards, sent = answer["plain"]
        assert forwards == 3
        assert (sent > 0) == (mesh.ranks > 1)
        kept, kept_forwards, kept_sent = answer["recompute"]
        assert (kept_forwards, kept_sent) == (forwards, sent)
        again, again_forwards, again_sent = answer["everything_again"]
        assert again_forwards == 2 * forwards, "the counter sees a forward pass that is done again"
        assert again_sent > sent or mesh.ranks == 1
        for want, one, other in zip(grads, kept, again, strict=True):
            assert torch.equal(want, one)
            assert torch.equal(want, other)


def test_less_is_kept_where_ulysses_sends_again() -> None:
    """Keeping the output alone: q, k, v and output are sent once more in backward, and no more; attention runs once."""
    mesh = Mesh(1, 1, 2)
    sends_once = run_world(mesh.ranks, step, mesh, "exchanged")
    for rank, answer in enumerate(run_world(mesh.ranks, step, mesh, "output")):
        grads, _, sent = sends_once[rank]["plain"]
        kept, forwards, kept_sent = answer["recompute"]
        assert forwards == 3
        unit = 8 * (TOKENS // 2) * DIM // 2  # of a tensor: half of the own rows' heads
        assert (sent, kept_sent) == (3 * 8 * unit, 3 * 12 * unit)
        for want, one in zip(grads, kept, strict=True):
            assert torch.equal(want, one)
