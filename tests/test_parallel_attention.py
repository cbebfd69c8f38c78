"""The cut does not matter: attention over any mesh equals dense attention in float64, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.attention import attend
from parallel.mask import Mask, cross, full, packed
from parallel.mesh import Mesh, join
from parallel.plan import cross_plan, cut, local_plan, plan_for
from parallel.split import Split, contiguous, zigzag
from tests.worlds import run_world

MASKS = {
    "full": full(61),
    "packed": packed([5, 17, 1, 30, 8]),
    "packed-causal": packed([5, 17, 1, 30, 8], causal=True),
    "causal": packed([61], causal=True),
    "shorter-than-ranks": packed([2, 1]),
}
HEADS = {"4/4": (4, 4), "6/2": (6, 2), "4/1": (4, 1), "6/6": (6, 6)}
MESHES = [Mesh(1, 1, 1), Mesh(1, 2, 1), Mesh(1, 1, 2), Mesh(1, 3, 1), Mesh(1, 2, 2), Mesh(1, 1, 4), Mesh(2, 2, 1)]
SPLITS = {"contiguous": contiguous, "zigzag": zigzag}


def dense_mask(mask: Mask) -> Tensor:
    seen = torch.zeros(mask.queries, mask.keys, dtype=torch.bool)
    for r in mask.rectangles:
        block = torch.ones(r.q1 - r.q0, r.k1 - r.k0, dtype=torch.bool)
        seen[r.q0 : r.q1, r.k0 : r.k1] |= block.tril() if r.causal else block
    return seen


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    scores = scores.masked_fill(~dense_mask(mask), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def inputs(mask: Mask, heads: int, kv_heads: int, dim: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(mask.queries + heads)
    shapes = [(mask.queries, heads), (mask.keys, kv_heads), (mask.keys, kv_heads), (mask.queries, heads)]
    return [torch.randn(*shape, dim, generator=generator, dtype=torch.float64) for shape in shapes]


def expected(mask: Mask, heads: int, kv_heads: int) -> list[Tensor]:
    q, k, v, grad = inputs(mask, heads, kv_heads)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = dense(*leaves, mask)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def every_case(rank: int, mesh: Mesh) -> dict[tuple[str, str, str], list[list[Tensor]]]:
    """This rank's rows of output and gradients, for every mask, split and head shape."""
    groups = join(mesh, rank)
    found = {}
    for mask_name, mask in MASKS.items():
        for split_name, make in SPLITS.items():
            split = make(mask.queries, mesh.sequence_ranks)
            for heads_name, (heads, kv_heads) in HEADS.items():
                rows = rows_of(split, groups.place.sequence)
                plan = plan_for(mask, split, groups)
                q, k, v, grad = (x[rows] for x in inputs(mask, heads, kv_heads))
                leaves = [x.requires_grad_() for x in (q, k, v)]
                out = attend(*leaves, plan)
                found[mask_name, split_name, heads_name] = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    return found


def rows_of(split: Split, rank: int) -> Tensor:
    return torch.cat([torch.arange(0), *(torch.arange(a, b) for a, b in split.ranges[rank])])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_mesh_equals_dense(mesh: Mesh) -> None:
    answers = run_world(mesh.ranks, every_case, mesh)
    for mask_name, split_name, heads_name in answers[0]:
        mask = MASKS[mask_name]
        split = SPLITS[split_name](mask.queries, mesh.sequence_ranks)
        wanted = expected(mask, *HEADS[heads_name])
        for rank, answer in enumerate(answers):
            rows = rows_of(split, mesh.place(rank).sequence)
            for name, got, want in zip(
                ("out", "dq", "dk", "dv"), answer[mask_name, split_name, heads_name], wanted, strict=True
            ):
                error = (got - want[rows]).abs().max() / want.abs().max() if len(rows) else torch.tensor(0.0)
                assert error < 1e-12, (
                    f"{name} of {mask_name}, {split_name}, {heads_name} on {mesh}, rank {rank}: {error}"
                )


def bf16_case(rank: int, mesh: Mesh) -> list[Tensor]:
    mask = MASKS["packed"]
    groups = join(mesh, rank)
    split = contiguous(mask.queries, mesh.sequence_ranks)
    q, k, v, grad = (x[rows_of(split, groups.place.sequence)].bfloat16() for x in inputs(mask, 4, 4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, plan_for(mask, split, groups))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def relative_errors(parts: list[list[Tensor]], wanted: list[Tensor]) -> list[float]:
    whole = [torch.cat(pieces).double() for pieces in zip(*parts, strict=True)]
    return [float((got - want).norm() / want.norm()) for got, want in zip(whole, wanted, strict=True)]


def test_bf16_is_as_good_as_one_kernel() -> None:
    wanted = expected(MASKS["packed"], 4, 4)
    one = relative_errors(run_world(1, bf16_case, Mesh()), wanted)
    many = relative_errors(run_world(4, bf16_case, Mesh(1, 2, 2)), wanted)
    assert all(m <= 1.5 * o for m, o in zip(many, one, strict=True)), (many, one)


def test_cross_attention_to_keys_that_every_rank_holds() -> None:
    lengths, keys = [5, 17, 1], [3, 1, 7]
    mask = cross(lengths, keys)
    wanted = expected(mask, 4, 4)
    q, k, v, grad = inputs(mask, 4, 4)
    got_k = torch.zeros_like(k)
    for ranges in (((0, 9),), ((9, 20),), ((20, 23),)):  # three ranks, one after the other
        (a, b) = ranges[0]
        leaves = [q[a:b].requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()]
        out = attend(*leaves, cross_plan(lengths, ranges, keys))
        torch.testing.assert_close(out, wanted[0][a:b], rtol=0, atol=1e-13)
        dq, dk, _ = torch.autograd.grad(out, leaves, grad[a:b])
        torch.testing.assert_close(dq, wanted[1][a:b], rtol=0, atol=1e-13)
        got_k += dk
    torch.testing.assert_close(got_k, wanted[2], rtol=0, atol=1e-12)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], bool, list[int]]:
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    borders = draw(st.lists(st.integers(0, sum(lengths)), max_size=4))
    return lengths, draw(st.booleans()), sorted(borders)


@given(cuts())
@settings(max_examples=200, deadline=None)
def test_cutting_a_mask_loses_and_doubles_nothing(case: tuple[list[int], bool, list[int]]) -> None:
    lengths, causal, borders = case
    mask = packed(lengths, causal)
    stops = [0, *borders, mask.queries]
    ranges = [((a, b),) for a, b in itertools.pairwise(stops)]
    seen = torch.zeros(mask.queries, mask.keys, dtype=torch.int64)
    for queries in ranges:
        for keys in ranges:
            for r in cut(mask, queries, keys):
                assert not r.causal or r.q1 - r.q0 == r.k1 - r.k0, f"{r} is causal and no square"
                block = torch.ones(r.q1 - r.q0, r.k1 - r.k0, dtype=torch.int64)
                q, k = queries[0][0], keys[0][0]
                seen[q + r.q0 : q + r.q1, k + r.k0 : k + r.k1] += block.tril() if r.causal else block
    assert torch.equal(seen, dense_mask(mask).long())


def test_area_is_the_number_of_pairs() -> None:
    mask = packed([4, 3], causal=True)
    assert local_plan(mask).area == mask.area == int(dense_mask(mask).sum()) == 16
