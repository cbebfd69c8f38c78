"""A recurrence over any split equals the plain loop in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.errors import InputError
from parallel.mesh import Groups, Mesh, join
from parallel.sequence.scan import refuse_order, scan
from parallel.sequence.sharding import Split, contiguous, zigzag
from tests.support.process_groups import run_world

ALONE = Groups(Mesh(), Mesh().place(0))
CHANNELS = 3
LENGTHS = {
    "one document": (17,),
    "borders inside": (5, 1, 11),
    "borders at those of ranks": (6, 6, 5),
    "one token each": (1,) * 17,
    "one over all ranks": (1, 15, 1),
}
PARTS = {
    1: [(17,), (0,)],
    2: [(9, 8), (1, 16), (0, 17), (17, 0), (6, 11)],
    3: [(6, 6, 5), (0, 16, 1), (6, 0, 11), (12, 5, 0), (0, 0, 17), (0, 0, 0)],
}
MESHES = [Mesh(), Mesh(1, 2, 1), Mesh(1, 1, 3)]


def given_for(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """decay, inputs, gradient of the output, document; documents have large ids that come again after another one."""
    generator = torch.Generator().manual_seed(sum(lengths) + len(lengths))
    document = torch.cat([torch.full((n,), 2**60 + i % 2) for i, n in enumerate(lengths)])
    decay, inputs, grad = torch.randn(3, len(document), CHANNELS, generator=generator, dtype=torch.float64)
    decay = (2 * decay).clamp(-1, 1)  # exactly 1 and -1 among them
    decay[3::7] = 0
    return decay.to(dtype), inputs.to(dtype), grad.to(dtype), document


def loop(decay: Tensor, inputs: Tensor, document: Tensor) -> Tensor:
    """The definition."""
    h = [torch.zeros_like(inputs[0])]
    for t in range(len(inputs)):
        old = h[-1] if t and document[t] == document[t - 1] else torch.zeros_like(h[-1])
        h.append(decay[t] * old + inputs[t])
    return torch.stack(h[1:])


def found(function: Callable[..., Tensor], decay: Tensor, inputs: Tensor, grad: Tensor, *rest: object) -> list[Tensor]:
    """States, and gradients of decay and inputs."""
    leaves = [decay.clone().requires_grad_(), inputs.clone().requires_grad_()]
    h = function(*leaves, *rest)
    return [h.detach(), *torch.autograd.grad(h, leaves, grad)]


def every_case(rank: int, mesh: Mesh) -> dict[tuple[str, tuple[int, ...]], list[Tensor]]:
    """This rank's part of states and gradients."""
    groups = join(mesh, rank)
    answers = {}
    for name, lengths in LENGTHS.items():
        for parts in PARTS[mesh.ranks]:
            start, stop = list(pairwise(accumulate(parts, initial=0)))[groups.place.sequence]
            decay, inputs, grad, document = (x[start:stop] for x in given_for(lengths))
            answers[name, parts] = found(scan, decay, inputs, grad, document, groups)
    return answers


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_split_equals_the_loop(mesh: Mesh) -> None:
    answers = run_world(mesh.ranks, every_case, mesh)
    for name, parts in answers[0]:
        decay, inputs, grad, document = given_for(LENGTHS[name])
        wanted = found(loop, decay, inputs, grad, document)
        for what, pieces, want in zip(
            ("h", "d decay", "d inputs"), zip(*(a[name, parts] for a in answers), strict=True), wanted, strict=True
        ):
            error = (torch.cat(pieces) - want[: sum(parts)]).abs().max() if sum(parts) else torch.tensor(0.0)
            assert error < 1e-12, f"{what} of {name}, {parts}: {error}"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([0.0, 1.0, -1.0, 1e-300, None]))
@settings(max_examples=50)
def test_one_rank_equals_the_loop(lengths: list[int], decay_of_all: float | None) -> None:
    """Any lengths; decays whose products underflow, alternate or stay 1."""
    decay, inputs, grad, document = given_for(tuple(lengths))
    if decay_of_all is not None:
        decay = torch.full_like(decay, decay_of_all)
    got = found(scan, decay, inputs, grad, document, ALONE)
    for mine, want in zip(got, found(loop, decay, inputs, grad, document), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-12, atol=1e-12)


def test_long_sums_do_not_lose_digits() -> None:
    """|a| = 1 over 20,000 tokens: in float32 the tree is nearer to the truth than a running sum."""
    ones = torch.ones(20_000, 1)
    h = scan(ones, 0.1 * ones, torch.zeros(20_000, dtype=torch.int64), ALONE)
    assert abs(float(h[-1]) / (20_000 * float(torch.tensor(0.1))) - 1) < 1e-6


def test_bf16_is_float32_inside() -> None:
    decay, inputs, grad, document = given_for((100, 60), torch.bfloat16)
    wanted = found(loop, decay.double(), inputs.double(), grad.double(), document)
    got = found(scan, decay, inputs, grad, document, ALONE)
    assert {x.dtype for x in got} == {torch.bfloat16}
    for mine, want in zip(got, wanted, strict=True):
        assert float((mine.double() - want).norm() / want.norm()) < 4e-3  # rounding the result alone is 1.7e-3


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: scan(torch.ones(4, 2), torch.ones(4, 3), torch.zeros(4), ALONE), "[tokens, channels]"),
        (lambda: scan(torch.ones(4, 2), torch.ones(4, 2), torch.zeros(5), ALONE), "[tokens, channels]"),
        (lambda: refuse_order(zigzag(16, 2)), "order of the ranks"),
        (lambda: refuse_order(Split((((8, 16),), ((0, 8),)))), "order of the ranks"),
    ],
)
def test_what_cannot_be_scanned(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert rule in str(error.value)


def test_stretches_in_order_are_welcome() -> None:
    refuse_order(contiguous(3, 5))
    refuse_order(Split(((), ((0, 4), (4, 6)), (), ((6, 7),))))
