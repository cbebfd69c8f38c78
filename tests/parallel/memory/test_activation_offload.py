"""What is saved for backward goes through the hooks, to the CPU or not, and gradients are the same bit for bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from parallel.attention.attend import attend
from parallel.attention.plan import local_plan
from parallel.masks import mask as masks
from parallel.memory import activation_offload as offloading
from parallel.memory.activation_checkpointing import recompute
from parallel.memory.activation_offload import PLACES, HostStore, Places, Traffic, moves, offload
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.stages import engine_for
from tests.support.process_groups import run_world

ROWS, DIM, WIDE = 64, 8, 32
NARROW_BYTES, WIDE_BYTES = 8 * ROWS * DIM, 8 * ROWS * WIDE


@contextmanager
def cpu_moves() -> Iterator[None]:
    """The CPU stands in for a GPU: copies are made for real."""
    token = PLACES.set(Places(("cuda", "cpu")))
    try:
        yield
    finally:
        PLACES.reset(token)


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
    with cpu_moves():
        got, traffic = run(limit_bytes)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    sizes = [n for n in (NARROW_BYTES, WIDE_BYTES, WIDE_BYTES, NARROW_BYTES) if n >= limit_bytes]
    assert traffic == Traffic(saved=6, moved=len(sizes), moved_bytes=sum(sizes), fetched=6)


def test_with_recomputation_the_input_alone_moves() -> None:
    wanted, _ = run(None)
    with cpu_moves():
        got, traffic = run(0, again=True)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    assert (traffic.moved, traffic.moved_bytes) == (1, NARROW_BYTES)


def attended(offloaded: bool) -> tuple[list[Tensor], Traffic]:
    """Output and gradients of two recomputed blocks that attend."""
    torch.manual_seed(0)
    maps = [nn.Linear(DIM, 3 * DIM).double() for _ in range(2)]
    x = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    plan = local_plan(masks.causal(ROWS))

    def block(x: Tensor, map_: nn.Module) -> Tensor:
        q, k, v = map_(x).unflatten(1, (3, 2, -1)).unbind(1)
        return x + attend(q, k, v, plan).flatten(1).tanh()

    with cpu_moves() if offloaded else nullcontext(), offload(0) as traffic:
        h = x
        for map_ in maps:
            h = recompute(block, h, map_)
    parameters = [p for map_ in maps for p in map_.parameters()]
    return [h.detach(), *torch.autograd.grad(h.sin().sum(), [x, *parameters])], traffic


def test_with_recomputation_attention_moves_too() -> None:
    """Of each block its input, and what attention gave: all that is kept, but for the x of the last sum."""
    wanted, stayed = attended(False)
    got, traffic = attended(True)
    assert all(torch.equal(mine, want) for mine, want in zip(got, wanted, strict=True))
    assert stayed.moved == 0
    results = NARROW_BYTES + 8 * 2 * ROWS  # the output, and a log-sum-exp for each of two heads
    assert traffic.moved_bytes == 2 * (NARROW_BYTES + results)


def test_what_is_asked_for_next_comes_ahead() -> None:
    """When a tensor is taken, the one kept before it is on its way; one that nobody waits for any more is not."""
    came: list[int] = []

    class Lanes(offloading._Lanes):
        def homeward(self, host: Tensor, device: torch.device, left: object) -> tuple[Tensor, object]:
            came.append(int(host[0]))
            return super().homeward(host, device, left)

    store = HostStore(0, Places(("cpu",)))
    store.lanes[torch.device("cpu")] = Lanes()
    handles = [store.put(torch.full((4,), float(n))) for n in range(4)]
    assert torch.equal(handles[3].tensor(), torch.full((4,), 3.0))
    assert came == [3, 2]
    del handles[1]
    assert torch.equal(handles[1].tensor(), torch.full((4,), 2.0))
    assert came == [3, 2, 0]


def test_a_transposed_tensor_keeps_its_strides() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    leaf = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    with cpu_moves(), offload(0):
        out = leaf * x.T
    (saved,) = {out.grad_fn._saved_self, out.grad_fn._saved_other} - {None}
    assert torch.equal(saved, x.T)
    assert saved.stride() == x.T.stride()
    assert saved.data_ptr() != x.data_ptr(), "no copy was made"


def test_what_stays() -> None:
    parameter, x = nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)
    assert not moves(x, 0), "it is on a CPU"
    assert moves(x, 64, ("cpu",))
    assert not moves(x, 65, ("cpu",))
    assert not any(moves(view, 0, ("cpu",)) for view in (parameter, parameter.T, parameter[1:].flatten()))


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
    engine, losses, moved = engine_for(mlp(torch.float32), AdamWConfig(), stage, micro_steps=1), [], 0
    for step in range(3):
        x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(2 * step + rank))
        if offloaded:
            with cpu_moves(), offload(0) as traffic:
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
