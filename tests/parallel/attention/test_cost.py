"""What a plan says it sends is what is sent, byte for byte and link by link; and what need-only and balance save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from parallel.attention.attend import attend
from parallel.attention.cost import Heads, explain
from parallel.attention.plan import Transport, plan_for, plan_of
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.masks.rectangles import Ints
from parallel.mesh import Mesh, join
from parallel.sequence.sharding import balanced, contiguous, zigzag
from tests.parallel.attention.test_attend import DIM, inputs, rows_of
from tests.support.process_groups import run_world

MESHES = [Mesh(1, 4, 1), Mesh(1, 2, 2), Mesh(1, 1, 4)]
HEADS = [(6, 6), (8, 2), (4, 1)]
MASKS = {
    "full": masks.full(61),
    "packed causal": masks.packed([5, 17, 1, 30, 8], causal=True),
    "frame window": video_patterns.frame_window(7, 9, before=2),
}


@contextmanager
def counted(rank: int) -> Iterator[Ints]:
    """[ranks] bytes that this rank sends to each other one meanwhile."""
    sent = np.zeros(dist.get_world_size(), np.int64)
    sending, all_to_all = dist.batch_isend_irecv, dist.all_to_all_single

    def batch(ops: list[Any]) -> Any:
        for op in ops:
            if op.op is dist.isend:
                sent[op.peer] += op.tensor.numel() * op.tensor.element_size()
        return sending(ops)

    def exchange(output: Any, given: Any, outs: Any, ins: list[int], group: Any = None) -> Any:
        for peer, count in zip(dist.get_process_group_ranks(group), ins, strict=True):
            sent[peer] += count * given.element_size() * (peer != rank)
        return all_to_all(output, given, outs, ins, group=group)

    with patch.object(dist, "batch_isend_irecv", batch), patch.object(dist, "all_to_all_single", exchange):
        yield sent


def measured(rank: int, mesh: Mesh) -> dict[tuple[str, tuple[int, int], str, str], tuple[Ints, Ints]]:
    groups = join(mesh, rank)
    found = {}
    for name, mask in MASKS.items():
        for heads in HEADS:
            for transport, keep in (("need", "exchanged"), ("ring", "exchanged"), ("need", "output")):
                split = zigzag(mask.queries, 4)
                plan = plan_for(mask, split, groups, transport, keep=keep)
                q, k, v, grad = (x[rows_of(split, rank)].bfloat16() for x in inputs(mask.queries, mask.keys, *heads))
                leaves = [x.requires_grad_() for x in (q, k, v)]
                with counted(rank) as forward:
                    out = attend(*leaves, plan)
                with counted(rank) as backward:
                    torch.autograd.grad(out, leaves, grad)
                found[name, heads, transport, keep] = forward, backward
    return found


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_bytes_are_as_explained(mesh: Mesh) -> None:
    answers = run_world(4, measured, mesh)
    for name, heads, transport, keep in answers[0]:
        said = explain(MASKS[name], zigzag(MASKS[name].queries, 4), mesh, Heads(*heads, DIM), transport, keep)
        sent = [np.stack([a[name, heads, transport, keep][i] for a in answers]) for i in (0, 1)]
        assert np.array_equal(sent[0], said.forward_bytes), (name, heads, transport)
        assert np.array_equal(sent[1], said.backward_bytes), (name, heads, transport)


@pytest.mark.parametrize(("ring", "ulysses"), [(4, 1), (2, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 4)])
def test_the_formulas_of_the_page(ring: int, ulysses: int, heads: int, kv_heads: int) -> None:
    """S divides, so that what each rank sends is the textbook's."""
    length, dim, b, a = 64 * ring * ulysses, 16, 2, 4
    mesh = Mesh(1, ring, ulysses)
    split = contiguous(length, mesh.sequence_ranks)
    n = length // mesh.sequence_ranks * heads * dim
    g = kv_heads / heads
    exchanged = (2 + 2 * g) * (ulysses - 1) / ulysses * n * b
    for transport in get_args(Transport):
        said = explain(masks.full(length), split, mesh, Heads(heads, kv_heads, dim, b, a), transport)
        keys = 2 * g * (ring - 1) * n * b
        home = 2 * g * n * a * (ring if transport == "ring" and ring > 1 else ring - 1)
        assert said.forward_bytes.sum(axis=1).tolist() == [exchanged + keys] * mesh.sequence_ranks
        assert said.backward_bytes.sum(axis=1).tolist() == [exchanged + keys + home] * mesh.sequence_ranks


def lengths_of(documents: int, total: int, seed: int = 0) -> list[int]:
    """Log-normal."""
    shares = np.random.default_rng(seed).lognormal(0, 1, documents)
    sizes = np.maximum(1, (shares / shares.sum() * total).astype(int))
    sizes[sizes.argmax()] += total - sizes.sum()
    found: list[int] = sizes.tolist()
    return found


def moved(mask: Mask, split: Any, mesh: Mesh, transport: Transport) -> int:
    said = explain(mask, split, mesh, Heads(8, 8, 64), transport)
    return int(said.forward_bytes.sum() + said.backward_bytes.sum())


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5])  # of 3, one document is three eighths of all tokens
def test_need_only_moves_little_where_masks_let_it(seed: int) -> None:
    mesh = Mesh(1, 4, 1)
    documents = masks.packed(lengths_of(32, 8192, seed), causal=True)
    for split in (contiguous(8192, 4), balanced(documents, mesh)):
        assert moved(documents, split, mesh, "need") <= moved(documents, split, mesh, "ring") / 5
    frames, split = video_patterns.frame_window(16, 512, before=2), contiguous(8192, 4)
    assert moved(frames, split, mesh, "need") <= moved(frames, split, mesh, "ring") / 4


@pytest.mark.parametrize("ring", [8, 64])
def test_balanced_splits_are_even(ring: int) -> None:
    total, mesh = 2**17, Mesh(1, ring, 1)
    cases = {"causal": masks.causal(total), "block-causal": video_patterns.frame_causal(64, total // 64)}
    for seed in range(4):
        cases[f"packed {seed}"] = masks.packed(lengths_of(40 * 2**seed, total, seed), causal=True)
        cases[f"packed video {seed}"] = masks.packed(lengths_of(40 * 2**seed, total, seed))
    for name, mask in cases.items():
        said = explain(mask, balanced(mask, mesh), mesh, Heads(8, 8, 64))
        assert said.uneven <= 1.05, (name, said.uneven)
        assert said.tokens.max() <= 1.15 * said.tokens.mean(), (name, said.tokens)


def test_a_place_is_shared_out_evenly_among_its_ulysses_ranks() -> None:
    mask, mesh = masks.packed(lengths_of(20, 4097), causal=True), Mesh(1, 4, 3)
    said = explain(mask, balanced(mask, mesh), mesh, Heads(6, 6, 8))
    assert said.rank_tokens.sum() == 4097
    assert (np.ptp(said.rank_tokens.reshape(4, 3), axis=1) <= 1).all()
    assert said.flops.sum() == 4 * mask.area * 6 * 8


def test_keys_in_flight_are_those_of_two_hops() -> None:
    mesh = Mesh(1, 4, 1)
    said = explain(masks.full(64), contiguous(64, 4), mesh, Heads(2, 1, 8))
    assert said.keys_held.tolist() == [2 * 16 * 2 * 8 * 2] * 4
    plan = plan_of(masks.full(64), contiguous(64, 4), mesh, mesh.place(1))
    assert [hop.keys for hop in plan.hops] == [16] * 4
