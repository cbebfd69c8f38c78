"""The cut does not matter: attention over any mesh equals dense attention in float64, gradients included."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from parallel.attention.attend import attend
from parallel.attention.plan import Plan, Transport, cross_plan, local_plan, plan_for, plan_of
from parallel.errors import InputError
from parallel.kernels.kernel import kernel_for, refuse_heads
from parallel.kernels.launch import Launch, Rows
from parallel.kernels.reference import Reference
from parallel.kernels.varlen_calls import calls_of
from parallel.masks import mask as masks
from parallel.masks import rectangles, video_patterns
from parallel.masks.mask import Mask
from parallel.masks.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL, GRID
from parallel.masks.video_patterns import Tiling
from parallel.mesh import Mesh, join
from parallel.sequence.sharding import Split, balanced, contiguous, zigzag
from tests.support.process_groups import run_world

TILING = Tiling((3, 4, 5), (2, 2, 2))
MASKS = {
    "full": masks.full(61),
    "causal": masks.causal(61),
    "packed": masks.packed([5, 17, 1, 30, 8]),
    "packed causal": masks.packed([5, 17, 1, 30, 8], causal=True),
    "some causal": masks.packed([20, 17, 24], causal=[True, False, True]),
    "fewer than ranks": masks.packed([2, 1]),
    "window": masks.window(61, before=7, after=2, sinks=3),
    "causal window": masks.window(61, before=16, sinks=1),
    "strided": masks.strided(61, 7),
    "itself": masks.diagonal(13),
    "frame causal": video_patterns.frame_causal(7, 9),
    "frame window": video_patterns.frame_window(7, 9, before=2, after=1, sinks=1),
    "neighbourhood": video_patterns.neighbourhood(TILING, (1, 0, 1)),
    "criss-cross": video_patterns.criss_cross(TILING),
    "dilated": video_patterns.dilated(TILING, (1, 2, 2)),
    "shifted windows": video_patterns.shifted_windows(TILING, (2, 1, 2), (1, 0, 1)),
    "text and video": video_patterns.text_video([6, 20, 5, 18, 9], [False, True, False, True, False]),
    "text, video unseen": video_patterns.text_video([6, 20, 5, 18], [False, True, False, True], "itself"),
    "window of two": masks.window(61, 20, 20) & masks.packed([31, 30]) | masks.causal(61) & masks.strided(61, 3),
}
FEW = ("packed causal", "frame window", "fewer than ranks")  # with every head shape
HEADS = {"8/8": (8, 8), "8/2": (8, 2), "6/6": (6, 6), "4/1": (4, 1)}
MESHES = [
    Mesh(1, 1, 1),
    Mesh(1, 2, 1),
    Mesh(1, 1, 2),
    Mesh(1, 3, 1),
    Mesh(1, 2, 2),
    Mesh(1, 4, 1),
    Mesh(1, 1, 4),
    Mesh(2, 2, 1),
    Mesh(1, 3, 2),
]
SPLITS: dict[str, Callable[[Mask, Mesh], Split]] = {
    "contiguous": lambda mask, mesh: contiguous(mask.queries, mesh.sequence_ranks),
    "zigzag": lambda mask, mesh: zigzag(mask.queries, mesh.ring, mesh.ulysses),
    "balanced": lambda mask, mesh: balanced(mask, mesh, chunk=3),
    "one holds nothing": lambda mask, mesh: Split(
        ((), *contiguous(mask.queries, mesh.sequence_ranks - 1).ranges)
        if mesh.sequence_ranks > 1
        else (((0, mask.queries),),)
    ),
}
DIM = 8


def dense_mask(mask: Mask) -> Tensor:
    seen = torch.zeros(mask.queries, mask.keys, dtype=torch.bool)
    q, k = torch.arange(mask.queries)[:, None], torch.arange(mask.keys)
    for q0, q1, k0, k1, low, high in mask.table.tolist():
        seen |= (q0 <= q) & (q < q1) & (k0 <= k) & (k < k1) & (low <= q - k) & (q - k <= high)
    return seen


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def inputs(queries: int, keys: int, heads: int, kv_heads: int, dim: int = DIM) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries + heads)
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)]
    return [torch.randn(*shape, dim, generator=generator, dtype=torch.float64) for shape in shapes]


def expected(mask: Mask, heads: int, kv_heads: int) -> list[Tensor]:
    *qkv, grad = inputs(mask.queries, mask.keys, heads, kv_heads)
    leaves = [x.requires_grad_() for x in qkv]
    out = dense(*leaves, dense_mask(mask))
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def attended(given: list[Tensor], plan: Plan) -> list[Tensor]:
    """Output and gradients of q, k, v."""
    *qkv, grad = given
    leaves = [x.requires_grad_() for x in qkv]
    out = attend(*leaves, plan)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def rows_of(split: Split, rank: int) -> Tensor:
    return torch.cat([torch.arange(0), *(torch.arange(a, b) for a, b in split.ranges[rank])])


Case = tuple[str, str, str, Transport]


def cases(mesh: Mesh) -> list[Case]:
    """Every mask x transport, contiguous and balanced; some of them with every split and head shape."""
    found: list[Case] = []
    for transport in get_args(Transport) if mesh.ring > 1 else ("need",):
        found += [(mask, split, "6/6", transport) for mask in MASKS for split in ("contiguous", "balanced")]
        found += [(mask, split, heads, transport) for mask in FEW for split in SPLITS for heads in HEADS]
    return sorted(set(found))


def the_rest(mesh: Mesh) -> list[Case]:
    """The whole product, without `cases`."""
    transports = get_args(Transport) if mesh.ring > 1 else ("need",)
    product: Any = itertools.product(MASKS, SPLITS, HEADS, transports)
    return sorted(set(product) - set(cases(mesh)))


def every_case(rank: int, mesh: Mesh, chosen: list[Case]) -> dict[Case, list[Tensor]]:
    """This rank's rows of output and gradients."""
    groups = join(mesh, rank)
    found = {}
    for case in chosen:
        mask_name, split_name, heads, transport = case
        mask = MASKS[mask_name]
        split = SPLITS[split_name](mask, mesh)
        rows = rows_of(split, groups.place.sequence)
        given = [x[rows] for x in inputs(mask.queries, mask.keys, *HEADS[heads])]
        found[case] = attended(given, plan_for(mask, split, groups, transport))
    return found


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_mesh_equals_dense(mesh: Mesh) -> None:
    equals_dense(mesh, cases(mesh))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_whole_product_equals_dense(mesh: Mesh) -> None:
    equals_dense(mesh, the_rest(mesh))


def equals_dense(mesh: Mesh, chosen: list[Case]) -> None:
    answers = run_world(mesh.ranks, every_case, mesh, chosen)
    wanted: dict[tuple[str, str], list[Tensor]] = {}
    for mask_name, split_name, heads, transport in chosen:
        mask = MASKS[mask_name]
        split = SPLITS[split_name](mask, mesh)
        key = mask_name, heads
        wanted[key] = wanted.get(key) or expected(mask, *HEADS[heads])
        for rank, answer in enumerate(answers):
            rows = rows_of(split, mesh.place(rank).sequence)
            got = answer[mask_name, split_name, heads, transport]
            for name, mine, want in zip(("out", "dq", "dk", "dv"), got, wanted[key], strict=True):
                error = (
                    (mine - want[rows]).abs().max() / want.abs().max().clamp_min(1.0)
                    if len(rows)
                    else torch.tensor(0.0)
                )
                where = f"{mask_name}, {split_name}, {heads}, {transport} on {mesh}, rank {rank}"
                assert error < 1e-12, f"{name} of {where}: {error}"


def uneven(rank: int) -> list[list[Tensor]]:
    """509 tokens on 4 ranks, a prime number."""
    found = []
    for mesh in (Mesh(1, 4, 1), Mesh(1, 2, 2), Mesh(1, 1, 4)):
        groups, mask = join(mesh, rank), masks.packed([200, 1, 308], causal=True)
        split = contiguous(509, 4)
        given = [x[rows_of(split, rank)] for x in inputs(509, 509, 6, 6)]
        found.append(attended(given, plan_for(mask, split, groups)))
    return found


def test_lengths_that_do_not_divide() -> None:
    answers = run_world(4, uneven)
    wanted = expected(masks.packed([200, 1, 308], causal=True), 6, 6)
    for meshes in zip(*answers, strict=True):
        for parts, want in zip(zip(*meshes, strict=True), wanted, strict=True):
            assert (torch.cat(parts) - want).abs().max() / want.abs().max() < 1e-12


def bf16_case(rank: int, mesh: Mesh, name: str) -> list[Tensor]:
    groups, mask = join(mesh, rank), MASKS[name]
    split = contiguous(mask.queries, mesh.sequence_ranks)
    given = [x[rows_of(split, groups.place.sequence)].bfloat16() for x in inputs(mask.queries, mask.keys, 4, 4)]
    return attended(given, plan_for(mask, split, groups))


def relative_errors(parts: list[list[Tensor]], wanted: list[Tensor]) -> list[float]:
    whole = [torch.cat(pieces).double() for pieces in zip(*parts, strict=True)]
    return [float((got - want).norm() / want.norm()) for got, want in zip(whole, wanted, strict=True)]


@pytest.mark.parametrize("name", ["full", "packed causal", "frame window"])
def test_bf16_is_as_good_as_one_kernel(name: str) -> None:
    mask = MASKS[name]
    wanted = expected(mask, 4, 4)
    given = [x.bfloat16() for x in inputs(mask.queries, mask.keys, 4, 4)]
    one_plan = local_plan(mask)
    one = relative_errors([attended(given, one_plan)], wanted)
    for mesh in (Mesh(1, 2, 2), Mesh(1, 4, 1)):
        many = relative_errors(run_world(4, bf16_case, mesh, name), wanted)
        assert all(m <= 1.5 * o for m, o in zip(many, one, strict=True)), (many, one)


def test_many_blocks_merge_without_loss() -> None:
    """32 x 32 blocks that cannot be joined: merging output or gradients in bf16 would lose a digit and more."""
    units, size = 64, 4
    even = [(q, q + 1, k, k + 1) for q in range(0, units, 2) for k in range(0, units, 2)]
    alone = [(q, q + 1, q, q + 1) for q in range(1, units, 2)]
    mask = masks.blocks(Mask(rectangles.table(even + alone), units, units), [size] * units)
    plan = local_plan(mask)
    assert len(plan.hops[0].launches) == 32
    seen = torch.arange(units * size) // size % 2 == 0
    given = inputs(mask.queries, mask.keys, 4, 4)
    wanted = [x[seen] for x in expected(mask, 4, 4)]
    many = [x[seen] for x in attended([x.bfloat16() for x in given], plan)]
    one = attended([x[seen].bfloat16() for x in given], local_plan(masks.full(int(seen.sum()))))
    for ours, theirs in zip(relative_errors([many], wanted), relative_errors([one], wanted), strict=True):
        assert ours <= 1.5 * theirs


def test_cross_attention_to_keys_that_every_rank_holds() -> None:
    lengths, keys = [5, 17, 1], [3, 1, 7]
    wanted = expected(masks.cross(lengths, keys), 4, 4)
    q, k, v, grad = inputs(23, 11, 4, 4)
    got_k = torch.zeros_like(k)
    for ranges in (((0, 9),), ((20, 23), (9, 15)), ((15, 20),)):  # three ranks, one after the other
        rows = rows_of(Split((ranges,)), 0)
        out, dq, dk, _ = attended([q[rows], k.clone(), v.clone(), grad[rows]], cross_plan(lengths, ranges, keys))
        torch.testing.assert_close(out, wanted[0][rows], rtol=0, atol=1e-13)
        torch.testing.assert_close(dq, wanted[1][rows], rtol=0, atol=1e-13)
        got_k += dk
    torch.testing.assert_close(got_k, wanted[2], rtol=0, atol=1e-12)


@st.composite
def packs(draw: st.DrawFn) -> tuple[Mask, Split, Mesh]:
    """A random mask that lets everyone see itself, in random ranges over a random mesh."""
    length = draw(st.integers(2, 30))
    mask = masks.diagonal(length)
    for _ in range(draw(st.integers(0, 4))):
        q0, q1 = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        k0, k1 = sorted((draw(st.integers(0, length)), draw(st.integers(0, length))))
        low, high = sorted((draw(st.integers(-length, length)), draw(st.integers(-length, length))))
        mask = mask | Mask(rectangles.table([(q0, q1, k0, k1, low, high)]), length, length)
    mesh = Mesh(1, draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    borders = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=8))})
    ranges = draw(st.permutations(list(itertools.pairwise(borders))))
    owners = [draw(st.integers(0, mesh.sequence_ranks - 1)) for _ in ranges]
    held = [tuple(r for r, o in zip(ranges, owners, strict=True) if o == i) for i in range(mesh.sequence_ranks)]
    return mask, Split(tuple(held)), mesh


@given(packs(), st.sampled_from(get_args(Transport)))
@settings(max_examples=200)
def test_plans_of_random_masks_compute_each_pair_once(pack: tuple[Mask, Split, Mesh], transport: Transport) -> None:
    """Every plan walked through by hand: rows that are sent are rows that arrive, and pairs are those of the mask."""
    mask, split, mesh = pack
    plans = [plan_of(mask, split, mesh, mesh.place(i * mesh.ulysses), transport) for i in range(mesh.ring)]
    held = [
        torch.cat([rows_of(split, i * mesh.ulysses + j) for j in range(mesh.ulysses)]).tolist()
        for i in range(mesh.ring)
    ]
    seen = torch.zeros(mask.queries, mask.keys, dtype=torch.int64)
    for me, plan in enumerate(plans):
        assert plan.queries == len(held[me])
        covered: set[int] = set()
        for d, hop in enumerate(plan.hops):
            source = (me - d) % mesh.ring
            sent = plans[source].hops[d].send
            keys = held[source] if transport == "ring" or d == 0 else [held[source][r] for r in indices(sent)]
            assert len(keys) == hop.keys
            for launch in hop.launches:
                rows = indices(launch.queries)
                assert len(set(rows)) == len(rows), "a launch computes a row twice"
                assert launch.fresh == covered.isdisjoint(rows)
                covered |= set(rows)
                for q, k in pairs_of(launch):
                    block = torch.ones(len(q), len(k), dtype=torch.int64)
                    assert launch.kind == FULL or len(q) == len(k) > 0
                    block = block.tril() if launch.kind in (CAUSAL, DIAGONAL, GRID) else block
                    block = block.triu() if launch.kind in (ANTICAUSAL, DIAGONAL, GRID) else block
                    seen[torch.tensor([held[me][r] for r in q])[:, None], torch.tensor([keys[r] for r in k])] += block
    assert torch.equal(seen, dense_mask(mask).long())
    assert sum(plan.area for plan in plans) == mask.area
    assert len({plan.digest for plan in plans}) == 1


@given(packs(), st.sampled_from([None, 1, 5]))
@settings(max_examples=200)
def test_balanced_splits_of_random_masks_hold_every_position(pack: tuple[Mask, Split, Mesh], chunk: int | None) -> None:
    mask, _, mesh = pack
    split = balanced(mask, mesh, chunk)
    assert sorted(torch.cat([rows_of(split, r) for r in range(mesh.sequence_ranks)]).tolist()) == list(
        range(mask.queries)
    )


def pairs_of(launch: Launch) -> list[tuple[range, range]]:
    """Rows of queries and of keys of each piece; of a grid, each range with each."""
    queries, keys = ranges(launch.queries), ranges(launch.keys)
    return list(itertools.product(queries, keys)) if launch.kind == GRID else list(zip(queries, keys, strict=True))


def ranges(rows: Any) -> list[range]:
    return [range(a, b) for a, b in zip(rows.starts.tolist(), rows.stops.tolist(), strict=True)]


def indices(rows: Any) -> list[int]:
    return [i for r in ranges(rows) for i in r]


KINDS = {"full": FULL, "causal": CAUSAL, "anticausal": ANTICAUSAL, "itself": DIAGONAL}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
def test_kernels_agree(kind: str, heads: tuple[int, int]) -> None:
    """Pieces of equal and of other shapes in one launch, of the fast kernel and of the plain one."""
    queries = (3, 3, 7, 1)
    keys = (2, 2, 5, 4) if kind == "full" else queries
    rows, columns = (
        Rows(np.cumsum([0, *n[:-1]]) + gaps, np.cumsum(n) + gaps)
        for n, gaps in ((queries, [0, 0, 1, 1]), (keys, [0, 0, 0, 2]))
    )
    launch = Launch(KINDS[kind], rows, columns, fresh=True)
    q, k, v, grad = inputs(int(rows.stops[-1]), int(columns.stops[-1]), *heads)
    found = []
    for kernel in (kernel_for(torch.device("cpu"), torch.float64), Reference()):
        out, lse, dq, dk, dv = (torch.zeros_like(x) for x in (q, q[..., 0].T, q, k, v))
        for at, new_out, new_lse in kernel.forward(q, k, v, launch, 0.3):
            out[at], lse[:, at] = new_out, new_lse
        for at, new_dq, of, new_dk, new_dv in kernel.backward(grad, q, k, v, out, lse, launch, 0.3):
            for total, where, new in ((dq, at, new_dq), (dk, of, new_dk), (dv, of, new_dv)):
                total[where] += new
        found.append([out, lse, dq, dk, dv])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)


def test_pieces_share_a_call_without_copying_keys_twice() -> None:
    plan = plan_of(video_patterns.frame_causal(32, 64), contiguous(2048, 2), Mesh(1, 2, 1), Mesh(1, 2, 1).place(1))
    for hop in plan.hops:
        for launch in hop.launches:
            for call in (call for calls in calls_of(launch, hop.keys) for call in calls):
                assert len(call.pieces) == 1 or sum(c.stop - c.start for c in call.columns) <= hop.keys
    packed = plan_of(masks.packed([64] * 32), contiguous(2048, 2), Mesh(1, 2, 1), Mesh(1, 2, 1).place(0))
    assert len(calls_of(packed.hops[0].launches[0], packed.hops[0].keys)) == 1


def test_bounds_are_made_once_and_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers ask for what `prepare` sent; fake tensors of a dry run are not left to a run."""
    device, mask = torch.device("cpu"), masks.packed([3, 4, 5], causal=True)
    plan = local_plan(mask, Reference())
    plan.prepare(device)
    launch = plan.hops[0].launches[0]
    monkeypatch.setattr(torch, "tensor", None)  # nothing more is made
    ((call,),) = calls_of(launch, 12)
    assert [b.tolist() for b in call.bounds(device)] == [[0, 3, 7, 12]] * 2
    assert call.bounds(device)[0].dtype == torch.int32
    assert call.longest == (5, 5)
    assert calls_of(launch, 12)[0][0] is call
    monkeypatch.undo()
    with FakeTensorMode():
        assert isinstance(call.bounds(device)[0], FakeTensor)
    assert not isinstance(call.bounds(device)[0], FakeTensor)


def test_a_plan_names_its_kernel() -> None:
    class Seen(Reference):
        asked = 0

        def forward(self, *given: Any) -> Any:
            self.asked += 1
            return super().forward(*given)

    mesh = Mesh(1, 1, 1)
    q, k, v, _ = inputs(6, 6, 4, 4)
    makers: list[Callable[[Any], Plan]] = [
        lambda kernel: local_plan(masks.causal(6), kernel),
        lambda kernel: cross_plan([6], ((0, 6),), [6], kernel),
        lambda kernel: plan_of(masks.full(6), contiguous(6, 1), mesh, mesh.place(0), kernel=kernel),
    ]
    for make in makers:
        attend(q, k, v, make(seen := Seen()))
        assert seen.asked == 1


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: plan_of(masks.band(8, -1, 2), contiguous(8, 2), Mesh(1, 2), Mesh(1, 2).place(0)), "at least one key"),
        (lambda: plan_of(masks.full(8), contiguous(8, 3), Mesh(1, 2), Mesh(1, 2).place(0)), "part for each sequence"),
        (lambda: plan_of(masks.full(8), contiguous(9, 2), Mesh(1, 2), Mesh(1, 2).place(0)), "every position of the"),
        (lambda: plan_of(masks.cross([4], [3]), contiguous(4, 2), Mesh(1, 2), Mesh(1, 2).place(0)), "has a key"),
        (lambda: attend(*inputs(8, 8, 4, 3)[:3], local_plan(masks.full(8))), "multiple of key heads"),
        (lambda: attend(*inputs(8, 9, 4, 4)[:3], local_plan(masks.full(8))), "as many rows as its plan"),
        (lambda: attend(*inputs(8, 8, 4, 4, dim=0)[:3], local_plan(masks.full(8))), "[tokens, heads, head_dim]"),
        (lambda: attend(*(x[0] for x in inputs(8, 8, 4, 4)[:3]), local_plan(masks.full(8))), "[tokens, heads, head_"),
        (lambda: attend(*inputs(8, 8, 4, 4)[:3], local_plan(masks.full(8)), scale=-1.0), "scale of scores is positive"),
        (lambda: attend(*inputs(8, 8, 4, 4)[:3], local_plan(masks.full(8)), math.nan), "scale of scores is positive"),
        (lambda: cross_plan([5], ((0, 10),), [2]), "each once"),
        (lambda: cross_plan([5], ((0, 4), (2, 5)), [2]), "each once"),
        (lambda: cross_plan([5, 1], ((0, 5),), [2]), "queries and keys"),
        (lambda: plan_of(masks.full(8), contiguous(8, 1), Mesh(), Mesh().place(0), "pigeon"), "two ways"),
        (lambda: Mesh(0, 1, 1), "whole numbers from 1 on"),
        (lambda: contiguous(10, 0), "split over ranks"),
        (lambda: balanced(masks.full(8), Mesh(1, 2), chunk=-3), "a chunk holds tokens"),
        (lambda: masks.full(2**32), "at most"),
        (lambda: masks.packed([1, 2, 3], [True, False]), "of all documents, or of each"),
        (lambda: attend(*(x.long() for x in inputs(8, 8, 4, 4)[:3]), local_plan(masks.full(8))), "one floating dtype"),
        (lambda: refuse_heads(*[torch.empty(8, 4, 7, device="meta").bfloat16()] * 3, flash=True), "a multiple of 8"),
    ],
)
def test_what_cannot_be_attended(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert rule in str(error.value)


@pytest.mark.parametrize("name", ["full", "causal", "window", "frame window"])
def test_views_of_any_strides(name: str) -> None:
    """torch's flash op for CPU reads elsewhere where the last dimension is not dense."""
    mask = MASKS[name]
    given = inputs(mask.queries, mask.keys, 6, 6)
    wanted = attended(given, local_plan(mask))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in given]
    assert turned[0].stride(-1) != 1
    for got, want in zip(attended(turned, local_plan(mask)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_area_is_the_number_of_pairs() -> None:
    mask = masks.packed([4, 3], causal=True)
    assert local_plan(mask).area == mask.area == int(dense_mask(mask).sum()) == 16
    assert math.isclose(float(dense_mask(masks.window(61, 7, 2, 3)).sum()), masks.window(61, 7, 2, 3).area)
