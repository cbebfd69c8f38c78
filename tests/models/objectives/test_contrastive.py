"""The loss of all documents of a pack and its gradients, whoever holds which part of them; and the sum below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.language.contrastive_head import LARGEST_SCALE, Contrast
from parallel.errors import InputError
from parallel.mesh import Groups, Mesh, join
from parallel.optimizers.adamw import AdamWConfig
from parallel.sequence.gather import total
from parallel.sequence.packed import TEXT, VIDEO
from parallel.sequence.sharding import zigzag
from parallel.zero.stages import engine_for
from tests.support.process_groups import run_world

ALONE = Groups(Mesh(), Mesh().place(0))
DIM, WIDTH = 6, 5
# of each document: tokens of video, tokens of words; the last has weight 0 in its words
DOCUMENTS = [(9, 4), (5, 0), (0, 3), (12, 2), (1, 7), (6, 1), (3, 5)]
WEIGHTLESS = 6
TAKE_PART = [0, 3, 4, 5]
MESHES = [Mesh(), Mesh(1, 2, 1), Mesh(1, 2, 2), Mesh(1, 1, 3)]
Answer = dict[str, Any]


def tokens_of(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden rows, kinds and weights of a document; words come before and after the video."""
    video, words = DOCUMENTS[number]
    generator = torch.Generator().manual_seed(number)
    kind = torch.tensor([TEXT] * (words // 2) + [VIDEO] * video + [TEXT] * (words - words // 2), dtype=torch.int64)
    weight = torch.rand(len(kind), generator=generator, dtype=torch.float64) + 0.1
    weight[2::5] = 0
    if number == WEIGHTLESS:
        weight[kind == TEXT] = 0
    return torch.randn(len(kind), DIM, generator=generator, dtype=torch.float64), kind, weight


def contrast() -> Contrast:
    torch.manual_seed(3)
    return Contrast(DIM, WIDTH, dtype=torch.float64)


def selfish(x: Tensor, groups: Groups) -> Tensor:
    """Planted: gradients of other ranks' parts are lost."""
    return x + (total(x.detach(), groups) - x.detach())


def apart(x: Tensor, groups: Groups) -> Tensor:
    """Planted: what other ranks hold of a document is not added."""
    return x


def part(rank: int, mesh: Mesh, how: Callable[[Tensor, Groups], Tensor] = total) -> Answer:
    """What one rank computes, and which rows of which documents it held."""
    groups, model = join(mesh, rank), contrast()
    hidden, kind, weight, document, of, at = (
        torch.cat(r) for r in zip(*map(rows_of, range(len(DOCUMENTS))), strict=True)
    )
    ranges = zigzag(len(hidden), mesh.ring, mesh.ulysses).ranges[groups.place.sequence]
    held = torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in ranges]))
    leaf = hidden[held].requires_grad_()
    loss, count = model(
        leaf, document[held], kind[held], weight[held], len(DOCUMENTS), partial(how, groups=groups),
        (groups.place.sequence, mesh.sequence_ranks),
    )  # fmt: skip
    loss.backward()
    assert leaf.grad is not None
    return {
        "loss": loss.detach(), "count": count, "grad": leaf.grad, "of": of[held], "at": at[held],
        "parameters": {n: p.grad for n, p in model.named_parameters()},
    }  # fmt: skip


def rows_of(number: int) -> tuple[Tensor, ...]:
    """Of a document: rows, kinds and weights, its number and which row of it each is."""
    hidden, kind, weight = tokens_of(number)
    size = len(hidden)
    return hidden, kind, weight, torch.full((size,), number), torch.full((size,), number), torch.arange(size)


def wanted() -> tuple[Tensor, dict[int, Tensor], dict[str, Tensor]]:
    """Loss and gradients by the definition, one document after the other."""
    model = contrast()
    hidden = {n: tokens_of(n)[0].requires_grad_() for n in range(len(DOCUMENTS))}
    video: list[Tensor] = []
    words: list[Tensor] = []
    for number in TAKE_PART:
        _, kind, weight = tokens_of(number)
        for found, which, projection in ((video, VIDEO, model.video), (words, TEXT, model.words)):
            share = weight * (kind == which)
            mean = (share[:, None] * hidden[number]).sum(0) / share.sum()
            projected = projection @ mean
            found.append(projected / projected.norm())
    logits = model.log_scale.exp() * torch.stack(video) @ torch.stack(words).T
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(len(TAKE_PART)):
        loss = loss - (logits[i].log_softmax(0)[i] + logits[:, i].log_softmax(0)[i]) / 2
    loss.backward()
    grads = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in hidden.items()}
    return loss.detach(), grads, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def errors(answers: Sequence[Answer]) -> dict[str, float]:
    """Of what all ranks found together, as shares of the largest number."""
    loss, hidden, parameters = wanted()
    found = {n: torch.zeros_like(x) for n, x in hidden.items()}
    for answer in answers:
        for number, row, grad in zip(answer["of"].tolist(), answer["at"], answer["grad"], strict=True):
            found[number][row] += grad
    pairs = {
        "loss": (sum(a["loss"] for a in answers), loss),
        "count": (sum(a["count"] for a in answers), torch.tensor(float(len(TAKE_PART)))),
        "hidden": (torch.cat(list(found.values())), torch.cat(list(hidden.values()))),
        **{n: (sum(a["parameters"][n] for a in answers), grad) for n, grad in parameters.items()},
    }
    return {n: float((mine - want).abs().max() / want.abs().max()) for n, (mine, want) in pairs.items()}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_cut_does_not_matter(mesh: Mesh) -> None:
    found = errors(run_world(mesh.ranks, part, mesh))
    assert set(found) == {"loss", "count", "hidden", "video", "words", "log_scale"}
    assert max(found.values()) < 1e-12, found


def trained(rank: int, stage: int) -> list[float]:
    """Losses of this rank in a few steps."""
    mesh = Mesh(1, 2, 1)
    groups = join(mesh, rank)
    torch.manual_seed(3)
    engine = engine_for(Contrast(DIM, WIDTH, dtype=torch.float32), AdamWConfig(max_grad_norm=0.0), stage, 1)
    losses = []
    hidden, kind, weight, document, _, _ = (torch.cat(r) for r in zip(*map(rows_of, range(rank, 7, 2)), strict=True))
    given = hidden.float(), document, kind, weight.float(), len(DOCUMENTS), partial(total, groups=groups), (rank, 2)
    for _ in range(3):
        loss, _ = engine.forward(*given)
        engine.backward(loss / len(TAKE_PART))
        engine.step(1e-2)
        losses.append(float(loss.detach()))
    return losses


def test_parameters_may_be_in_parts() -> None:
    """ZeRO-3 gathers them for the forward of this module."""
    assert np.allclose(run_world(2, trained, 3), run_world(2, trained, 0), rtol=1e-5)


def test_documents_are_dealt_to_ranks() -> None:
    """One rank for all of them would not be shared work."""
    counts = [int(answer["count"]) for answer in run_world(4, part, Mesh(1, 2, 2))]
    assert counts == [2, 1, 0, 1]  # of documents 0, 3, 4 and 5 of 7


def test_planted_errors_are_seen() -> None:
    lost = errors(run_world(2, part, Mesh(1, 2, 1), selfish))
    assert lost["loss"] < 1e-12
    assert lost["hidden"] > 1e-3
    cut = errors(run_world(2, part, Mesh(1, 2, 1), apart))
    assert cut["loss"] > 1e-3


def test_nobody_and_one_alone() -> None:
    """No tokens, no document with both, and one document: losses of 0 with gradients."""
    model, alone = contrast(), partial(total, groups=ALONE)
    for tokens, kinds, wanted_count in ((0, [], 0), (2, [VIDEO, VIDEO], 0), (2, [VIDEO, TEXT], 1)):
        hidden = torch.ones(tokens, DIM, dtype=torch.float64, requires_grad=True)
        document, kind = torch.zeros(tokens, dtype=torch.int64), torch.tensor(kinds, dtype=torch.int64)
        loss, count = model(hidden, document, kind, torch.ones(tokens, dtype=torch.float64), 1, alone)
        loss.backward()
        assert abs(float(loss.detach())) < 1e-12
        assert float(count) == wanted_count
        assert hidden.grad is not None
        assert hidden.grad.abs().max() < 1e-12 if tokens else True
        assert all(p.grad is not None and p.grad.abs().max() < 1e-12 for p in model.parameters())


def test_the_scale_has_a_limit_and_comes_back() -> None:
    model = contrast()
    assert float(model.scale.detach()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_scale.add_(10)
    assert float(model.scale.detach()) == pytest.approx(LARGEST_SCALE)
    model.scale.backward()
    assert model.log_scale.grad is not None
    assert float(model.log_scale.grad) == pytest.approx(LARGEST_SCALE)


def test_half_precision_is_summed_in_float32() -> None:
    torch.manual_seed(0)
    model = Contrast(DIM, WIDTH, dtype=torch.bfloat16)
    hidden = torch.randn(40, DIM, dtype=torch.bfloat16, requires_grad=True)
    document, kind = torch.arange(40) // 10, torch.arange(40) % 2
    args = (document, kind, torch.ones(40), 4, partial(total, groups=ALONE))
    loss, count = model(hidden, *args)
    loss.backward()
    assert (loss.dtype, count.dtype) == (torch.float32, torch.float32)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    with torch.no_grad():
        exact, _ = model.double()(hidden.double(), *args)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)


def sums(rank: int, mesh: Mesh) -> dict[str, Any]:
    """Of what each rank of two replicas brings, and what each part of the loss says of the sum."""
    groups = join(mesh, rank)
    x = torch.full((2, 3), 10.0**rank, dtype=torch.float64, requires_grad=True)
    found = total(x, groups)
    (found * (rank + 1)).sum().backward()
    nothing = total(torch.zeros(0, 2, requires_grad=True), groups)
    nothing.sum().backward()
    half = total(torch.tensor([1.0, 2.0**-9]).to(torch.bfloat16)[rank % 2][None], groups)
    return {"sum": found.detach(), "grad": x.grad, "nothing": nothing.shape, "half": half}


def test_a_sum_and_its_way_back() -> None:
    """Only over those that share a pack."""
    answers = run_world(4, sums, Mesh(2, 2, 1))
    for rank, answer in enumerate(answers):
        assert answer["sum"].eq([11.0, 11.0, 1100.0, 1100.0][rank]).all()
        assert answer["grad"].eq([3.0, 3.0, 7.0, 7.0][rank]).all()
        assert answer["nothing"] == (0, 2)
        assert answer["half"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Contrast(0, 4), "embeddings have a width"),
        (lambda: Contrast(4, 4, temperature=0.0), "temperature 0.0"),
        (lambda: Contrast(4, 4, temperature=float("nan")), "temperature nan"),
        (
            lambda: contrast()(*torch.zeros(2, 3, 2), torch.zeros(3), torch.zeros(3), torch.zeros(1), lambda x: x),
            r"hidden is \[tokens, 6\]",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        make()
