"""Tiles change nothing but memory: values and gradients in float64, and what exists at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.errors import InputError
from parallel.memory.activation_checkpointing import recompute
from parallel.memory.tiled import refuse_labels, tiled, tiled_cross_entropy
from parallel.optimizers.adamw import AdamWConfig
from parallel.sequence.packed import IGNORED
from parallel.zero.stages import engine_for
from tests.support.process_groups import run_world

DIM, HIDDEN = 6, 48


class Memory(TorchDispatchMode):
    """Elements of the largest tensor that operators make meanwhile, and the most that is alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.largest = max(self.largest, tensor.numel())
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes() // tensor.itemsize
        self.alive = {k: (ref, size) for k, (ref, size) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM)).double()


def gradients(run: Callable[[Tensor], Tensor], module: nn.Module, tokens: int) -> list[Tensor]:
    """Output, and gradients of input and parameters."""
    x = torch.randn(tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    out = run(x)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])]


@given(st.integers(0, 40), st.integers(1, 12))
@settings(max_examples=30)
def test_tiles_equal_the_whole(tokens: int, tiles: int) -> None:
    module = mlp()
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    wanted = gradients(module, module, tokens)
    calls.clear()
    got = gradients(lambda x: tiled(module, x, tiles), module, tokens)
    for mine, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-12)
    assert len(calls) >= tiles, "ranks that hold fewer tokens must call as often"


def test_tiles_inside_of_recomputation_equal_the_whole() -> None:
    module = mlp()
    got = gradients(lambda x: recompute(lambda y: tiled(module, y, 3), x), module, 11)
    for mine, want in zip(got, gradients(module, module, 11), strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-12)


def test_hooks_of_a_parameter_run_once() -> None:
    module, ran = mlp(), []
    for name, parameter in module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: ran.append(name))
    tiled(module, torch.ones(8, DIM, dtype=torch.float64), 4).sum().backward()
    assert sorted(ran) == sorted(name for name, _ in module.named_parameters())


def test_one_tile_exists_at_a_time() -> None:
    tokens, tiles = 1024, 8
    module = mlp()
    whole, parts = Memory(), Memory()
    for memory, run in ((whole, module), (parts, lambda x: tiled(module, x, tiles))):
        x = torch.ones(tokens, DIM, dtype=torch.float64).requires_grad_()
        with memory:
            run(x).sum().backward()
    assert parts.largest <= tokens * max(DIM, HIDDEN // tiles) < whole.largest
    assert parts.peak < tokens * HIDDEN < whole.peak


class Head(nn.Linear):
    """Logits and their loss, where the weight is whole."""

    def forward(self, x: Tensor, labels: Tensor, tiles: int) -> Tensor:
        if tiles:
            return tiled_cross_entropy(x, self.weight, labels, tile_tokens=2)[0]
        return F.cross_entropy(super().forward(x), labels, reduction="sum")


class Model(nn.Module):
    """An MLP and a head, in tiles or not."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tiles = tiles
        self.embed, self.mlp, self.head = nn.Linear(DIM, DIM), mlp(), Head(DIM, 40, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + (tiled(self.mlp, x, self.tiles) if self.tiles else self.mlp(x))
        return self.head(x, labels, self.tiles)


def train(rank: int, world: int, stage: int, tiles: int, dtype: torch.dtype) -> list[tuple[float, float]]:
    """Losses and gradient norms of a few steps; the last of several ranks holds no token."""
    engine = engine_for(Model(tiles).to(dtype), AdamWConfig(), stage, micro_steps=2)
    curve, holders = [], max(1, world - 1)
    for step in range(4):
        generator, total = torch.Generator().manual_seed(step), torch.zeros((), dtype=torch.float64)
        for _ in range(2):
            x = torch.randn(12, DIM, generator=generator, dtype=torch.float64).to(dtype)
            labels = torch.randint(40, (12,), generator=generator)
            mine = slice(rank, 12 if rank < holders else rank, holders)
            loss = engine.forward(x[mine], labels[mine]) / 24
            engine.backward(loss)
            total += loss.detach()
        torch.distributed.all_reduce(total)
        curve.append((float(total), engine.step(1e-2)))
    return curve


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_trains_the_same_in_tiles(stage: int) -> None:
    """One rank with 12 tokens, or two with 6, and one with none, in 4 tiles."""
    world, dtype, error = (3, torch.float64, 1e-12) if stage == 0 else (2, torch.float32, 1e-5)
    (wanted,) = run_world(1, train, 1, 0, 0, torch.float64)
    for curve in run_world(world, train, world, stage, 4, dtype):
        for got, want in zip(curve, wanted, strict=True):
            assert got == pytest.approx(want, rel=error)


def case(tokens: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, labels (a third ignored), token weights."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, DIM, generator=generator, dtype=torch.float64) for n in (tokens, vocabulary))
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 1 / 3] = IGNORED
    return hidden, weight, labels, torch.rand(tokens, generator=generator, dtype=torch.float64)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    factor = torch.ones_like(hidden[:, 0]) if token_weight is None else token_weight
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=IGNORED)
    return (losses * factor).sum(), factor[labels != IGNORED].sum()


Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def loss_and_gradients(function: Loss, given_case: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> list[Tensor]:
    """Loss, sum of weights, gradients of hidden and weight under a factor on the loss."""
    hidden, weight, *rest = given_case
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss, total = function(*leaves, *rest)
    assert not total.requires_grad
    return [loss.detach(), total, *torch.autograd.grad(-0.3 * loss, leaves)]


@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 50), st.booleans())
@settings(max_examples=50)
def test_cross_entropy_equals_the_plain_one(tokens: int, vocabulary: int, tile: int, weighted: bool) -> None:
    hidden, weight, labels, token_weight = case(tokens, vocabulary)
    one = hidden, weight, labels, token_weight if weighted else None
    got = loss_and_gradients(lambda *args: tiled_cross_entropy(*args, tile_tokens=tile), one)
    for mine, want in zip(got, loss_and_gradients(plain, one), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_of_the_gradients(frozen: int) -> None:
    hidden, weight, labels, _ = case(9, 12)
    leaf = [hidden, weight][1 - frozen].requires_grad_()
    (got,) = torch.autograd.grad(tiled_cross_entropy(hidden, weight, labels, tile_tokens=4)[0], leaf)
    (want,) = torch.autograd.grad(plain(hidden, weight, labels, None)[0], leaf)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_large_logits_stay_finite() -> None:
    hidden, weight, labels, token_weight = case(20, 30)
    one = 300 * hidden, 300 * weight, labels, token_weight
    got = loss_and_gradients(tiled_cross_entropy, one)
    assert all(bool(x.isfinite().all()) for x in got)
    torch.testing.assert_close(got, loss_and_gradients(plain, one), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("tile", [4, 512])
def test_bf16_is_as_good_as_the_plain_one(tile: int) -> None:
    """Many tiles, too: their sum is in float32."""
    hidden, weight, labels, token_weight = case(512, 64)
    low = hidden.bfloat16(), weight.bfloat16()
    wanted = loss_and_gradients(plain, (low[0].double(), low[1].double(), labels, token_weight))
    errors = []
    for function in (plain_bf16, lambda *args: tiled_cross_entropy(*args, tile_tokens=tile)):
        got = loss_and_gradients(function, (*low, labels, token_weight))
        errors.append([float((x.double() - y).norm() / y.norm()) for x, y in zip(got, wanted, strict=True)])
    assert all(mine <= 1.5 * whole + 1e-6 for whole, mine in zip(*errors, strict=True)), errors


def plain_bf16(hidden: Tensor, weight: Tensor, labels: Tensor, token_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits in bf16, the loss in float32, as it is usually done."""
    assert token_weight is not None
    losses = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="none", ignore_index=IGNORED)
    return (losses * token_weight.float()).sum(), token_weight.float()[labels != IGNORED].sum()


def test_the_whole_logits_never_exist() -> None:
    tokens, vocabulary, tile = 256, 200, 32
    whole, parts, forward_only = Memory(), Memory(), Memory()
    for memory, function in ((whole, plain), (parts, lambda *args: tiled_cross_entropy(*args, tile_tokens=tile))):
        hidden, weight, *rest = case(tokens, vocabulary)
        with memory:
            function(hidden.requires_grad_(), weight.requires_grad_(), *rest)[0].backward()
    with forward_only, torch.no_grad():
        tiled_cross_entropy(hidden, weight, *rest, tile_tokens=tile)
    assert parts.largest == tile * vocabulary
    assert parts.peak < tokens * vocabulary <= whole.largest
    assert forward_only.peak < parts.peak - vocabulary * DIM, "without a gradient to come, none is computed"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda h, w, y, f: tiled(nn.Identity(), h, 0), "at least one tile"),
        (lambda h, w, y, f: tiled_cross_entropy(h, w.T, y, f), "[vocabulary, dim]"),
        (lambda h, w, y, f: tiled_cross_entropy(h[None], w, y, f), "[vocabulary, dim]"),
        (lambda h, w, y, f: tiled_cross_entropy(h, w, y[1:], f), "labels are one int64"),
        (lambda h, w, y, f: tiled_cross_entropy(h, w, y.int(), f), "labels are one int64"),
        (lambda h, w, y, f: tiled_cross_entropy(h, w, y, f[1:]), "one number for each token"),
        (lambda h, w, y, f: tiled_cross_entropy(h, w, y, f, 0), "at least one token"),
        (lambda h, w, y, f: refuse_labels(y.clamp_min(5).numpy(), 5), "number of the vocabulary"),
        (lambda h, w, y, f: refuse_labels(y.clamp_max(-1).numpy(), 10), "number of the vocabulary"),
    ],
)
def test_what_cannot_be_tiled(make: Callable[..., object], rule: str) -> None:
    with pytest.raises(InputError) as error:
        make(*case(8, 10))
    assert rule in str(error.value)
