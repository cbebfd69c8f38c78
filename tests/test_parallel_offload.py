"""What is saved for backward goes through the hooks, to the CPU or not, and gradients are the same bit for bit."""

from __future__ import annotations

import gc
import weakref
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from parallel.offload import Traffic, moves, offload
from parallel.recompute import recompute
from parallel.zero import AdamW, engine_for
from tests.worlds import run_world

ROWS, DIM, WIDE = 64, 8, 32
NARROW_BYTES, WIDE_BYTES = 8 * ROWS * DIM, 8 * ROWS * WIDE
CPU_MOVES = patch("parallel.offload.DEVICES", ("cuda", "cpu"))  # the CPU stands in for a GPU: copies are made for real


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, WIDE), nn.GELU(), nn.Linear(WIDE, DIM), nn.Tanh()).to(dtype)


def run(limit_bytes: int | None, again: bool = False) -> tuple[list[Tensor], Traffic]:
    """Output and gradients of an MLP on transposed input, with or without offload; backward runs outside of it."""
    module, traffic = mlp(), Traffic()
    x = torch.randn(DIM, ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    if limit_bytes is None:
        out = module(x.T)
    else:
        with offload(limit_bytes) as traffic:
            out = recompute(module, x.T) if again else module(x.T)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])], traffic


def test_on_a_cpu_nothing_moves() -> None:
    wanted, _ = run(None)
    got, traffic = run(0)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    # two linear layers save input and weight, GELU its input, tanh its output
    assert traffic == Traffic(saved=6, moved=0, moved_bytes=0, fetched=6)


@pytest.mark.parametrize("limit_bytes", [0, NARROW_BYTES + 1])
def test_what_moved_comes_back(limit_bytes: int) -> None:
    """Everything but the two weights; above the limit, what is wide."""
    wanted, _ = run(None)
    with CPU_MOVES:
        got, traffic = run(limit_bytes)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    sizes = [n for n in (NARROW_BYTES, WIDE_BYTES, WIDE_BYTES, NARROW_BYTES) if n >= limit_bytes]
    assert traffic == Traffic(saved=6, moved=len(sizes), moved_bytes=sum(sizes), fetched=6)


def test_with_recomputation_the_input_alone_moves() -> None:
    wanted, _ = run(None)
    with CPU_MOVES:
        got, traffic = run(0, again=True)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    assert (traffic.moved, traffic.moved_bytes) == (1, NARROW_BYTES)


def test_a_transposed_tensor_keeps_its_strides() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    leaf = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    with CPU_MOVES, offload(0):
        out = leaf * x.T
    (saved,) = {out.grad_fn._saved_self, out.grad_fn._saved_other} - {None}
    assert torch.equal(saved, x.T)
    assert saved.stride() == x.T.stride()
    assert saved.data_ptr() != x.data_ptr(), "no copy was made"


def test_what_stays() -> None:
    parameter, x = nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)
    assert not moves(x, 0), "it is on a CPU"
    with CPU_MOVES:
        assert moves(x, 64)
        assert not moves(x, 65)
        assert not any(moves(view, 0) for view in (parameter, parameter.T, parameter[1:].flatten()))


def test_a_change_in_place_is_refused() -> None:
    """As without hooks, where torch itself looks."""
    x = torch.ones(4, requires_grad=True)
    with offload():
        y = x * 2
        out = y.square()
    y.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.sum().backward()


def test_a_graph_without_backward_is_freed() -> None:
    """exp saves its own output: to hold that would be a circle."""
    x = torch.ones(4, requires_grad=True)
    gc.disable()
    try:
        with offload():
            y = x.exp()
        gone = weakref.ref(y)
        del y
        assert gone() is None
    finally:
        gc.enable()


def train(rank: int, stage: int, offloaded: bool) -> tuple[list[float], int]:
    """Losses of three steps, and how many tensors moved."""
    engine, losses, moved = engine_for(mlp(torch.float32), AdamW(), stage, micro_steps=1), [], 0
    for step in range(3):
        x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(2 * step + rank))
        if offloaded:
            with CPU_MOVES, offload(0) as traffic:
                loss = engine.forward(x).square().sum()
            moved += traffic.moved
        else:
            loss = engine.forward(x).square().sum()
        engine.backward(loss)
        engine.step(1e-2)
        losses.append(float(loss.detach()))
    return losses, moved


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_the_same_bit_for_bit(stage: int) -> None:
    wanted = run_world(2, train, stage, False)
    for (losses, moved), (want, _) in zip(run_world(2, train, stage, True), wanted, strict=True):
        assert losses == want
        assert moved >= 3 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_activations_wait_on_the_cpu() -> None:
    module = mlp(torch.float32).cuda()
    x = torch.randn(1 << 16, DIM, device="cuda", requires_grad=True)
    wanted = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    before = torch.cuda.memory_allocated()
    with offload() as traffic:
        loss = module(x).square().sum()
    assert traffic.moved >= 4
    assert torch.cuda.memory_allocated() - before < x.nbytes
    got = torch.autograd.grad(loss, [x, *module.parameters()])
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
