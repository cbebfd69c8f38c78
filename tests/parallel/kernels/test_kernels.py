"""Kernels of CUDA without one: what they do around their calls, with calls that are computed densely in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.attention.plan import Plan, local_plan, plan_for, plan_of
from parallel.errors import InputError
from parallel.kernels import flash_cuda, reference
from parallel.kernels import varlen_calls as calls_module
from parallel.kernels.cudnn import CuDNN, suits
from parallel.kernels.diagonals import grids
from parallel.kernels.efficient_cuda import EfficientCUDA
from parallel.kernels.flash_cuda import FlashCUDA, most_rows
from parallel.kernels.kernel import Kernel, kernel_for
from parallel.kernels.launch import Call, Launch, Rows
from parallel.kernels.pieces import part
from parallel.kernels.reference import Reference
from parallel.kernels.varlen_calls import calls_of
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.rectangles import CAUSAL, DIAGONAL, FULL, GRID
from parallel.mesh import Mesh, join
from parallel.sequence.sharding import balanced, contiguous
from tests.parallel.attention.test_attend import DIM, MASKS, attended, expected, inputs, rows_of
from tests.support.process_groups import run_world


class StandIn(FlashCUDA):
    """Calls as dense float64, piece by piece in the taken rows; refuses what a kernel of CUDA cannot count."""

    def __init__(self, padded: bool = False) -> None:
        self.padded, self.calls = padded, 0

    def _call(self, q: Tensor, k: Tensor, v: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        parts = list(Reference().forward(q, k, v, self._launch(q, k, call), scale))
        return torch.cat([out for _, out, _ in parts]), torch.cat([lse for _, _, lse in parts], dim=1)

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        launch = self._launch(q, k, call)
        parts = list(Reference().backward(grad, q, k, v, out, lse, launch, scale))
        dq, dk, dv = (torch.cat([part[i] for part in parts]) for i in (1, 3, 4))
        return dq, dk, dv

    def _launch(self, q: Tensor, k: Tensor, call: Call) -> Launch:
        self.calls += 1
        rows, keys = (Rows(ends[:-1].numpy(), ends[1:].numpy()) for ends in map(Tensor.long, call.bounds(q.device)))
        assert (rows.count, keys.count) == (len(q), len(k))
        padded = max(len(q), len(k)) + calls_module.PADDING * len(call.pieces)
        assert padded * q.shape[1] * 32 < flash_cuda.ELEMENTS, "a kernel of CUDA counts in 32 bits"
        waste = len(call.pieces) * call.longest[0]
        assert not self.padded or waste <= calls_module.WASTE * len(q) or len(call.pieces) == 1
        return Launch(CAUSAL if call.causal else FULL, rows, keys, fresh=True)


def small_calls(monkeypatch: pytest.MonkeyPatch, rows: int, heads: int) -> None:
    """Calls of at most so many rows of so many heads, and stairs of any size in levels."""
    monkeypatch.setattr(calls_module, "PADDING", 1)
    monkeypatch.setattr(flash_cuda, "ELEMENTS", rows * heads * 32 + 1)
    monkeypatch.setattr(calls_module, "FEW", 1)


def agree(got: list[Tensor], wanted: list[Tensor]) -> None:
    for name, mine, want in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("name", MASKS)
def test_calls_cut_small_and_stairs_in_levels_are_exact(
    name: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = MASKS[name]
    small_calls(monkeypatch, 17, 4)
    kernel = StandIn(padded)
    agree(attended(inputs(mask.queries, mask.keys, 4, 2), local_plan(mask, kernel)), expected(mask, 4, 2))
    assert kernel.calls or name == "itself"


ON_MESHES = ("full", "packed causal", "window", "strided", "frame causal", "frame window", "text and video")


def on_a_mesh(rank: int, mesh: Mesh) -> dict[str, list[Tensor]]:
    """Masks with the stand-in, balanced."""
    groups, found = join(mesh, rank), {}
    patch = pytest.MonkeyPatch()
    small_calls(patch, 17, 6)
    for name in ON_MESHES:
        mask = MASKS[name]
        split = balanced(mask, mesh, chunk=3)
        given = [x[rows_of(split, groups.place.sequence)] for x in inputs(mask.queries, mask.keys, 6, 6)]
        found[name] = attended(given, plan_for(mask, split, groups, kernel=StandIn()))
    patch.undo()
    return found


@pytest.mark.parametrize("mesh", [Mesh(1, 2, 2), Mesh(1, 3, 1), Mesh(1, 1, 4)], ids=str)
def test_they_are_on_any_mesh(mesh: Mesh) -> None:
    answers = run_world(mesh.ranks, on_a_mesh, mesh)
    for name in ON_MESHES:
        mask = MASKS[name]
        split = balanced(mask, mesh, chunk=3)
        for rank, answer in enumerate(answers):
            rows = rows_of(split, mesh.place(rank).sequence)
            agree(answer[name], [want[rows] for want in expected(mask, 6, 6)])


@pytest.mark.parametrize("name", ["full", "causal", "packed causal", "packed"])
def test_sequences_above_the_limit_are_cut_and_come_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a plan that merges nothing: long documents among short ones, which are cut too."""
    made = {
        "full": masks.full(61),
        "causal": masks.causal(61),
        "packed causal": masks.packed([3, 20, 2, 30, 7], True),
        "packed": masks.packed([3, 20, 2, 30, 7]),
    }
    mask = made[name]
    plan = local_plan(mask, kernel := StandIn())
    small_calls(monkeypatch, 16, 4)
    assert plan.alone
    agree(attended(inputs(mask.queries, mask.keys, 4, 4), plan), expected(mask, 4, 4))
    assert kernel.calls > 2


def test_a_pack_is_neither_merged_nor_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row and key is met once: no sums in float32, one call of a kernel of CUDA and one answer."""
    for mask in (masks.packed([5, 17, 2, 30, 8], True), masks.packed([5, 8]), video_patterns.spatial(4, 6)):
        plan = local_plan(mask, StandIn())
        assert plan.alone
        q, k, v, grad = inputs(mask.queries, mask.keys, 4, 4)
        ((_, out, lse),) = StandIn().forward(q, k, v, plan.hops[0].launches[0], 0.3)
        ((_, dq, _, _, _),) = StandIn().backward(grad, q, k, v, out, lse, plan.hops[0].launches[0], 0.3)
        assert dq.shape == q.shape
    for mask in (masks.packed([5, 17], [True, False]), masks.window(61, 7), video_patterns.frame_causal(3, 4)):
        assert not local_plan(mask).alone


def test_limits_count_padded_rows_heads_and_rounded_head_dims(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.45 million rows of 12 heads of 128 are two stretches; with one sum for each multiprocessor, eleven times."""
    q = torch.empty(8, 12, 128, device="meta")
    most = most_rows(q)
    assert most == (2**31 - 1) // 1536 == 1398101
    assert most_rows(torch.empty(8, 12, 72, device="meta")) == (2**31 - 1) // (12 * 96)
    launch = local_plan(masks.full(1_450_000)).hops[0].launches[0]
    groups = calls_of(launch, 1_450_000, most)
    assert [[(r.stop - r.start, c.stop - c.start) for call in g for r, c in call.pieces] for g in groups] == [
        [(1397888, 1397888), (1397888, 52112)],
        [(52112, 1397888), (52112, 52112)],
    ]
    assert len(calls_of(local_plan(masks.full(1_397_973)).hops[0].launches[0], 1_397_973, most)) == 1
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert most_rows(q) == (2**31 - 1) // (1536 * 11)


def test_a_call_has_no_more_pieces_than_a_grid_of_cuda_has_blocks() -> None:
    launch = local_plan(masks.packed([1] * 70_000, causal=False)).hops[0].launches[0]
    assert [len(call.pieces) for (call,) in calls_of(launch, 70_000)] == [65535, 70_000 - 65535]


FRAMES, TOKENS = 672, 1560  # a million tokens
MILLION = {
    "frame_causal": (video_patterns.frame_causal(FRAMES, TOKENS), 11),
    "frame_window": (video_patterns.frame_window(FRAMES, TOKENS, 4, 4, 1), 16),
    "wide window": (video_patterns.frame_window(FRAMES, TOKENS, 60, 3, 2), 24),
    "temporal": (video_patterns.temporal(FRAMES, TOKENS), 1),
    "spatial": (video_patterns.spatial(FRAMES, TOKENS), 1),
    "full": (masks.full(FRAMES * TOKENS), 1),
}


def calls_in(plan: Plan) -> int:
    """Of a layer and pass; what is DIAGONAL is none."""
    every = [calls_of(launch, hop.keys) for hop in plan.hops for launch in hop.launches]
    return sum(call.kind != DIAGONAL for groups in every for calls in groups for call in calls)


@pytest.mark.parametrize("name", MILLION)
def test_a_million_tokens_of_frames_are_a_few_calls(name: str) -> None:
    mask, most = MILLION[name]
    plan = local_plan(mask)
    assert calls_in(plan) <= most
    pieces = [
        (r, c)
        for launch in plan.hops[0].launches
        for calls in calls_of(launch, mask.keys)
        for call in calls
        for r, c in call.pieces
    ]
    if name != "temporal":
        assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in pieces) == mask.area
    assert plan.area == mask.area


@pytest.mark.parametrize("mesh", [Mesh(1, 8, 1), Mesh(1, 2, 4)], ids=str)
@pytest.mark.parametrize("name", ["frame_causal", "frame_window", "temporal"])
def test_so_they_are_on_rings(name: str, mesh: Mesh) -> None:
    """As few over all hops as on one rank, whichever rank has most."""
    mask, _ = MILLION[name]
    for split in (balanced(mask, mesh), contiguous(mask.queries, mesh.sequence_ranks)):
        plans = [plan_of(mask, split, mesh, mesh.place(i * mesh.ulysses)) for i in range(mesh.ring)]
        assert max(map(calls_in, plans)) <= 24
        assert sum(plan.area for plan in plans) == mask.area


def test_calls_of_a_level_share_neither_rows_nor_keys() -> None:
    for name in ("frame_causal", "frame_window", "wide window"):
        mask, _ = MILLION[name]
        for launch in local_plan(mask).hops[0].launches:
            for call in (call for calls in calls_of(launch, mask.keys) for call in calls):
                for side in (call.rows, call.columns):
                    ordered = sorted(side, key=lambda r: r.start)
                    assert all(a.stop <= b.start for a, b in itertools.pairwise(ordered))


def test_few_frames_stay_as_they_are() -> None:
    """Levels merge rows; up to eight calls are not worth it, nor are pieces that fill a GPU."""
    (groups,) = [calls_of(la, 8 * 1560) for la in local_plan(video_patterns.frame_causal(8, 1560)).hops[0].launches]
    assert [len(calls) for calls in groups] == [1] * len(groups)
    wide = local_plan(video_patterns.frame_causal(20, 1 << 14)).hops[0].launches
    assert all(len(calls) == 1 for launch in wide for calls in calls_of(launch, 20 << 14))


def test_places_of_frames_cut_by_ranks_are_grids() -> None:
    """Over two ranks that meet between frames, and over three that meet inside of them, in classes of places."""
    mesh = Mesh(1, 2, 1)
    plan = plan_of(video_patterns.temporal(4, 6), contiguous(24, 2), mesh, mesh.place(1))
    assert [launch.kind for hop in plan.hops for launch in hop.launches] == [GRID, GRID]  # whole frames: one a hop
    uneven = plan_of(video_patterns.temporal(8, 5), contiguous(40, 3), Mesh(1, 3), Mesh(1, 3).place(0))
    assert [
        [(launch.kind, len(launch.queries.starts), len(launch.keys.starts), launch.area) for launch in hop.launches]
        for hop in uneven.hops
    ] == [
        [(GRID, 3, 3, 4 * 9), (GRID, 2, 2, 4)],
        [(GRID, 3, 3, 2 * 9), (GRID, 2, 3, 6), (GRID, 3, 2, 2 * 6)],
        [(GRID, 2, 3, 6), (GRID, 3, 3, 2 * 9), (GRID, 3, 2, 2 * 6)],
    ]
    (launch,) = local_plan(video_patterns.temporal(4, 6)).hops[0].launches
    assert (launch.kind, launch.queries.starts.tolist(), launch.area) == (GRID, [0, 6, 12, 18], 96)
    assert local_plan(video_patterns.temporal(4, 6)).alone


def test_what_is_no_complete_grid_stays_diagonal() -> None:
    causal = masks.strided(24, 6) & masks.causal(24)  # a stair of diagonals
    assert {la.kind for la in local_plan(causal).hops[0].launches} == {DIAGONAL}
    table = np.array([[0, 9, 0, 9, DIAGONAL, 0], [0, 4, 12, 16, DIAGONAL, 0], [4, 9, 2, 7, DIAGONAL, 0]])
    assert grids(table)[0] == []


def test_float64_on_cuda_is_tiled_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor does not grow with the rows, and is no mask where all is seen."""
    monkeypatch.setattr(reference, "SCORES", 4 * 61 * 5)
    for name in ("full", "causal", "window", "strided", "packed"):
        mask = MASKS[name]
        agree(attended(inputs(mask.queries, mask.keys, 4, 2), local_plan(mask, Reference())), expected(mask, 4, 2))
    sizes: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor))
            return out

    q, k, v, grad = inputs(610, 61, 4, 4)
    launch = Launch(FULL, Rows(np.array([0]), np.array([610])), Rows(np.array([0]), np.array([61])), True)
    with Sizes():
        ((_, out, lse),) = Reference().forward(q, k, v, launch, 0.3)
        list(Reference().backward(grad, q, k, v, out, lse, launch, 0.3))
    assert max(sizes) <= max(610 * 4 * DIM, 4 * 61 * 5)


def test_float64_above_a_size_is_refused_with_the_dtype_that_is_not() -> None:
    with pytest.raises(InputError, match="dtype=bf16, or dtype=float32"):
        reference.refuse_size(2**38 + 1, torch.float64)
    reference.refuse_size(2**38, torch.float64)


CUDA: dict[str, tuple[Callable[[], Kernel], torch.dtype]] = {
    "aten": (FlashCUDA, torch.bfloat16),
    "efficient": (EfficientCUDA, torch.float32),
    "cudnn": (CuDNN, torch.bfloat16),
    "reference": (Reference, torch.float64),
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", CUDA)
def test_kernels_of_cuda_run_on_fake_tensors(name: str, device: str) -> None:
    """Shapes and dtypes are those of a device, whatever torch was built for."""
    make, dtype = CUDA[name]
    plans = [
        local_plan(mask, make())
        for mask in (masks.causal(2048), masks.packed([5, 3], [True, False]), video_patterns.temporal(4, 6))
    ]
    for plan in (
        *plans,
        local_plan(masks.band(9, 3, 2), make()),
        local_plan(video_patterns.frame_causal(20, 8), make()),
    ):
        with FakeTensorMode():
            n = plan.queries
            q, k, v = (torch.empty(n, heads, 64, dtype=dtype, device=device) for heads in (8, 2, 2))
            plan.prepare(q.device)
            kernel = plan.kernel or kernel_for(q.device, dtype)
            for launch in plan.hops[0].launches:
                lse = torch.empty(8, n, dtype=torch.promote_types(dtype, torch.float32), device=device)
                for rows, out, new in kernel.forward(q, k, v, launch, 0.125):
                    assert (out.shape, new.shape) == (part(q, rows).shape, part(lse, rows, 1).shape)
                    assert out.device == q.device == new.device
                for rows, dq, columns, dk, dv in kernel.backward(q, q, k, v, q, lse, launch, 0.125):
                    assert dq.shape == part(q, rows).shape
                    assert dk.shape == dv.shape == part(k, columns).shape
                    assert dq.device == dk.device == q.device


def test_the_log_sum_exp_of_float32_is_padded_with_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's memory-efficient op wants it: [pieces, heads, longest up to 32], and zero weight beyond a piece."""
    mask = masks.packed([5, 40, 3], causal=True)

    class Seen(StandIn, EfficientCUDA):
        pass

    given = inputs(48, 48, 4, 2)

    def forward(q: Tensor, k: Tensor, v: Tensor, bias: None, *rest: Any) -> tuple[Any, ...]:
        begin, stop, long, _, _, causal, wanted = rest
        assert (q.shape, k.shape, bias, long, causal, wanted) == ((1, 48, 4, 8), (1, 48, 4, 8), None, 40, 1, True)
        assert begin.tolist() == stop.tolist() == [0, 5, 45, 48]
        call = Call(CAUSAL, [(slice(a, b), slice(a, b)) for a, b in itertools.pairwise(begin.tolist())])
        out, lse = StandIn()._call(q[0], k[0], v[0], call, DIM**-0.5)
        padded = torch.full((3, 4, 64), torch.nan, dtype=lse.dtype)
        for i, (a, b) in enumerate(itertools.pairwise(begin.tolist())):
            padded[i, :, : b - a] = lse[:, a:b]
        return out[None], padded, None, None, 40, 40

    def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: None, out: Tensor, *rest: Any) -> Any:
        begin, _, _, _, lse = rest[:5]
        assert lse.shape == (3, 4, 64)
        ends = begin.tolist()
        assert all(torch.isposinf(lse[i, :, b - a :]).all() for i, (a, b) in enumerate(itertools.pairwise(ends)))
        flat = torch.cat([lse[i, :, : b - a] for i, (a, b) in enumerate(itertools.pairwise(ends))], dim=1)
        call = Call(CAUSAL, [(slice(a, b), slice(a, b)) for a, b in itertools.pairwise(ends)])
        grads = StandIn()._call_backward(grad[0], q[0], k[0], v[0], out[0], flat, call, DIM**-0.5)
        return *(x[None] for x in grads), None

    class Ops:
        _efficient_attention_forward = staticmethod(forward)
        _efficient_attention_backward = staticmethod(backward)

    monkeypatch.setattr("parallel.kernels.efficient_cuda.aten", Ops)
    agree(attended(given, local_plan(mask, EfficientCUDA())), expected(mask, 4, 2))


def test_cudnn_takes_large_single_pieces_alone() -> None:
    q = torch.empty(1, 4, 128, device="meta")

    def call(rows: int, keys: int, pieces: int = 1) -> Call:
        return Call(FULL, [(slice(i * rows, (i + 1) * rows), slice(i * keys, (i + 1) * keys)) for i in range(pieces)])

    assert suits(q, call(4096, 4096))
    assert suits(q, call(4097, 32761))
    assert not suits(q, call(4096, 4096, 2))
    assert not suits(q, call(1000, 1000))
    assert not suits(q, call(1, 1 << 22))
    assert not suits(torch.empty(1, 4, 256, device="meta"), call(4096, 4096))


def test_what_every_torch_has() -> None:
    found = {
        (device, dtype): type(kernel_for(torch.device(device), getattr(torch, dtype))).__name__
        for device in ("cpu", "cuda")
        for dtype in ("bfloat16", "float16", "float32", "float64")
    }
    assert {kernel for (device, _), kernel in found.items() if device == "cpu"} == {"FlashCPU"}
    assert [found["cuda", name] for name in ("bfloat16", "float16", "float32", "float64")] == [
        "FlashCUDA",
        "FlashCUDA",
        "EfficientCUDA",
        "Reference",
    ]
