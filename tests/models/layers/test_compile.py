"""`model.compile: blocks` equals eager to the last digits, gradients included, for any number of rows, on any mesh."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.layers import fused
from models.layers.fused import EAGER, Kernels, Spans, gated, kernels_of, modulated, turned
from tests.promises.test_train_mesh import first_gradient
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import config

AOT = "aot_eager"  # what inductor is given to make kernels of, run as it is: no compiler, seconds


def steps(kernels: Kernels, tokens: int) -> list[Tensor]:
    """Results and gradients of each kernel, over two stretches."""
    torch.manual_seed(tokens)
    x, y, a, b, weight = (torch.randn(*n, dtype=torch.float64, requires_grad=True)
                          for n in ((tokens, 16), (tokens, 16), (2, 16), (2, 16), (8,)))  # fmt: skip
    angle = torch.randn(tokens, 1, 4, dtype=torch.float64)
    spans: Spans = ((0, 0, tokens // 3), (1, tokens // 3, tokens))
    out = gated(modulated(x, a, b, spans, kernels), y, b, spans, kernels).view(tokens, 2, 8)
    out = turned(turned(out, weight, angle.cos(), angle.sin(), kernels), weight, None, None, kernels)
    (out * torch.randn_like(out)).sum().backward()
    return [out.detach(), *(t.grad for t in (x, y, a, b, weight) if t.grad is not None)]


def largest_difference(backend: str, rows: tuple[int, ...]) -> tuple[float, int]:
    """Of all kernels to eager, and the graphs that were compiled."""
    from torch._dynamo.utils import counters

    fused.BACKEND = backend
    kernels, worst = kernels_of("blocks"), 0.0
    for tokens in rows:
        for found, want in zip(steps(kernels, tokens), steps(EAGER, tokens), strict=True):
            worst = max(worst, float((found - want).abs().max() / want.abs().max()))
    return worst, counters["stats"]["unique_graphs"]


def kernels_in_a_world(rank: int, backend: str, rows: tuple[int, ...]) -> tuple[float, int]:
    return largest_difference(backend, rows)


def test_kernels_equal_eager_and_are_compiled_once() -> None:
    """Of six functions, two with and without a turn: 8 graphs, whatever the number of rows."""
    ((worst, graphs),) = run_world(1, kernels_in_a_world, AOT, (40, 31, 55, 100, 17))
    assert worst < 1e-12
    assert graphs == 8


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor makes kernels for a CPU by a C++ compiler")
@pytest.mark.slow
def test_kernels_of_inductor_equal_eager() -> None:
    ((worst, graphs),) = run_world(1, kernels_in_a_world, "inductor", (40, 31))
    assert worst < 1e-12
    assert graphs == 8


def compiled_gradient(rank: int, settings: Any) -> tuple[dict[str, Tensor], int]:
    from torch._dynamo.utils import counters

    fused.BACKEND = AOT
    return first_gradient(rank, settings), counters["stats"]["unique_graphs"]


def settings_of(family: str, dataset: Path, tmp_path: Path, mesh: tuple[int, int, int], **changes: Any) -> Any:
    where = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    if family == "draws":
        return config(Path("unused"), dataset, mesh=where, **{f"model__{name}": x for name, x in changes.items()})
    made = tmp_path / "chats"
    made = made if made.exists() else conversations.make(made, dataset)
    return config(
        Path("unused"), made, mesh=where, **conversations.settings(made, model={**conversations.MODEL, **changes})
    )


@pytest.mark.parametrize("family", ["draws", "speaks"])
@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        pytest.param((1, 1, 1), {}, marks=pytest.mark.slow),
        ((1, 2, 1), {"recompute": True, "mlp_tiles": 3}),
        pytest.param((1, 1, 2), {"recompute": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_model_equals_eager(
    tmp_path: Path, dataset: Path, family: str, mesh: tuple[int, int, int], more: dict[str, Any]
) -> None:
    (want,) = run_world(1, first_gradient, settings_of(family, dataset, tmp_path, (1, 1, 1)))
    settings = settings_of(family, dataset, tmp_path, mesh, compile="blocks", **more)
    most = max(float(gradient.abs().max()) for gradient in want.values())
    for got, graphs in run_world(settings.mesh.mesh().ranks, compiled_gradient, settings):
        assert graphs > 0
        for name, gradient in want.items():
            assert (got[name] - gradient).abs().max() <= 1e-12 * most, name
