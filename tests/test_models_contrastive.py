"""The loss of all documents and its gradients, whoever holds which part of them; and the gather below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.contrastive import LARGEST_SCALE, Contrast
from parallel.errors import InputError
from parallel.gathering import Gathered, gather, numbers
from parallel.mesh import Groups, Mesh, join
from parallel.packed import TEXT, VIDEO
from parallel.split import zigzag
from parallel.zero import AdamW, engine_for
from tests.worlds import run_world

ALONE = Groups(Mesh(), Mesh().place(0))
DIM, WIDTH = 6, 5
# of each document: tokens of video, tokens of words; the last has weight 0 in its words
DOCUMENTS = [(9, 4), (5, 0), (0, 3), (12, 2), (1, 7), (6, 1), (3, 5)]
WEIGHTLESS = 6
TAKE_PART = [0, 3, 4, 5]
REPLICAS = {
    1: [[0, 1, 2, 3, 4, 5, 6]],
    2: [[4, 0, 1], [2, 3, 5, 6]],
    4: [[0, 3], [1], [], [2, 4, 5, 6]],
}
MESHES = [Mesh(), Mesh(1, 2, 1), Mesh(2, 1, 1), Mesh(1, 2, 2), Mesh(2, 2, 1), Mesh(4, 1, 1)]
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


def selfish(x: Tensor, groups: Groups) -> Gathered:
    """Planted: gradients of other ranks' parts are lost."""
    found, mine = gather(x.detach(), groups)
    rows = found.clone()
    return Gathered(torch.cat([rows[: mine.start], x, rows[mine.stop :]]), mine)


def apart(documents: int, groups: Groups) -> Tensor:
    """Planted: parts of a document on several ranks are documents of their own."""
    return numbers(documents, groups) + (groups.place.sequence << 16)


def part(
    rank: int,
    mesh: Mesh,
    how: Callable[..., Gathered] = gather,
    name: Callable[[int, Groups], Tensor] = numbers,
) -> Answer:
    """What one rank computes, and which rows of which documents it held."""
    groups, model = join(mesh, rank), contrast()
    pack = REPLICAS[mesh.replica][groups.place.replica]
    hidden, kind, weight, document, of, at = (
        torch.cat([empty, *rows])
        for empty, rows in zip(
            (torch.zeros(0, DIM, dtype=torch.float64), *(torch.zeros(0, dtype=t) for t in DTYPES_OF_TOKENS)),
            zip(*(rows_of(i, n) for i, n in enumerate(pack)), strict=True) if pack else [()] * 6,
            strict=True,
        )
    )
    ranges = zigzag(len(hidden), mesh.sequence_ranks).ranges[groups.place.sequence]
    held = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in ranges)]))
    leaf = hidden[held].requires_grad_(len(held) > 0)  # a rank without tokens has nothing that wants gradients
    loss, count = model(
        leaf, document[held], kind[held], weight[held], name(len(pack), groups), partial(how, groups=groups)
    )
    loss.backward()
    grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return {
        "loss": loss.detach(), "count": count, "grad": grad, "of": of[held], "at": at[held],
        "parameters": {n: p.grad for n, p in model.named_parameters()},
    }  # fmt: skip


DTYPES_OF_TOKENS = (torch.int64, torch.float64, torch.int64, torch.int64, torch.int64)


def rows_of(index: int, number: int) -> tuple[Tensor, ...]:
    """Of a document that is the `index`-th of its pack."""
    hidden, kind, weight = tokens_of(number)
    size = len(hidden)
    return hidden, kind, weight, torch.full((size,), index), torch.full((size,), number), torch.arange(size)


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
    groups = join(Mesh(2, 1, 1), rank)
    torch.manual_seed(3)
    engine = engine_for(Contrast(DIM, WIDTH, dtype=torch.float32), AdamW(clip=0.0), stage, 1)
    pack, losses = REPLICAS[2][rank], []
    rows = zip(*(rows_of(i, n) for i, n in enumerate(pack)), strict=True)
    hidden, kind, weight, document, _, _ = (torch.cat(r) for r in rows)
    given = hidden.float(), document, kind, weight.float(), numbers(len(pack), groups), partial(gather, groups=groups)
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
    """Each answers for those it holds the beginning of; one for all of them would not be shared work."""
    counts = [int(answer["count"]) for answer in run_world(4, part, Mesh(2, 2, 1))]
    assert sum(counts) == len(TAKE_PART)
    assert sum(count > 0 for count in counts) >= 3


def test_planted_errors_are_seen() -> None:
    lost = errors(run_world(2, part, Mesh(2, 1, 1), selfish))
    assert lost["loss"] < 1e-12
    assert lost["hidden"] > 1e-3
    cut = errors(run_world(2, part, Mesh(1, 2, 1), gather, apart))
    assert cut["loss"] > 1e-3


def test_nobody_and_one_alone() -> None:
    """No tokens, no document with both, and one document: losses of 0 with gradients."""
    model, alone = contrast(), partial(gather, groups=ALONE)
    keys = numbers(1, ALONE)
    for tokens, kinds, wanted_count in ((0, [], 0), (2, [VIDEO, VIDEO], 0), (2, [VIDEO, TEXT], 1)):
        hidden = torch.ones(tokens, DIM, dtype=torch.float64, requires_grad=True)
        document, kind = torch.zeros(tokens, dtype=torch.int64), torch.tensor(kinds, dtype=torch.int64)
        loss, count = model(hidden, document, kind, torch.ones(tokens, dtype=torch.float64), keys, alone)
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
    args = (document, kind, torch.ones(40), numbers(4, ALONE), partial(gather, groups=ALONE))
    loss, count = model(hidden, *args)
    loss.backward()
    assert (loss.dtype, count.dtype) == (torch.float32, torch.float32)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    with torch.no_grad():
        exact, _ = model.double()(hidden.double(), *args)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)


def gathers(rank: int, mesh: Mesh) -> dict[str, Any]:
    """Of rows that differ in number, and of ranks that differ in what they want."""
    groups = join(mesh, rank)
    rows = [3, 0, 2, 1][rank]
    x = (torch.arange(rows * 2).reshape(rows, 2) + 100.0 * rank).double().requires_grad_(rank != 1)
    found, mine = gather(x, groups)
    (found * (rank + 1)).sum().backward()
    nothing, none = gather(torch.zeros(0, 2, requires_grad=True), groups)
    nothing.sum().backward()
    half, _ = gather(torch.full((rank, 3), float(rank), dtype=torch.bfloat16), groups)
    with torch.no_grad():
        silent = gather(x, groups).rows.requires_grad
    try:
        gather(torch.zeros(2, 3 + (rank == 2)), groups)
        told = ""
    except InputError as error:
        told = str(error)
    dist.barrier()
    return {
        "rows": found.detach(), "mine": mine, "grad": x.grad, "nothing": (nothing.shape, none), "half": half,
        "keys": gather(numbers(2, groups), groups).rows, "silent": silent, "told": told,
    }  # fmt: skip


def test_a_gather_and_its_way_back() -> None:
    answers = run_world(4, gathers, Mesh(2, 2, 1))
    whole = torch.cat([(torch.arange(n * 2).reshape(n, 2) + 100.0 * r).double() for r, n in enumerate([3, 0, 2, 1])])
    for rank, answer in enumerate(answers):
        assert torch.equal(answer["rows"], whole)
        assert answer["mine"] == [slice(0, 3), slice(3, 3), slice(3, 5), slice(5, 6)][rank]
        assert rank == 1 or answer["grad"].eq(1 + 2 + 3 + 4).all()
        assert answer["nothing"] == (torch.Size([0, 2]), slice(0, 0))
        assert torch.equal(answer["half"], torch.tensor([1, 2, 2, 3, 3, 3]).bfloat16()[:, None].expand(6, 3))
        assert answer["keys"].tolist() == [0, 1, 0, 1, 2**32, 2**32 + 1, 2**32, 2**32 + 1]
        assert not answer["silent"]
        assert "rank 2 brings rows [4] of torch.float32" in answer["told"]


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
