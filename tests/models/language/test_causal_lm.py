"""Language models of transformers through our attention: logits, losses and gradients are transformers' own, float64.

The reference runs each document by itself with torch's attention (that of transformers, "eager", is float32 inside), so
packing is compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.language.causal_lm import KINDS, Backbone, make, masks_of
from parallel.attention.plan import plan_for
from parallel.errors import InputError
from parallel.masks import mask
from parallel.mesh import Mesh, join
from parallel.sequence.packed import local_spans
from parallel.sequence.relayout import next_tokens
from parallel.sequence.sharding import balanced
from tests.support.process_groups import run_world

VOCABULARY = 61
LENGTHS = (5, 17, 1, 12, 9)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "rope_theta": 5e5},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"head_dim": 10, "tie_word_embeddings": True},
}
MESHES = (Mesh(1, 1, 1), Mesh(1, 2, 1), Mesh(1, 1, 2), Mesh(1, 2, 2), Mesh(1, 4, 1), Mesh(1, 1, 4))
Found = tuple[Tensor, float, dict[str, Tensor]]


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **{**SIZES, **SHAPES[kind], **changes})


def words(length: int) -> Tensor:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(3))


def weights(length: int) -> Tensor:
    """Of the loss of each token; some count nothing."""
    found = torch.rand(length, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return found * (found > 0.2)


def reference(kind: str, lengths: Sequence[int] = LENGTHS) -> Found:
    """Document by document, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config(kind), attn_implementation="sdpa", dtype=torch.float64)
    model.load_state_dict(make(config(kind), torch.float64, seed=0).model.state_dict())
    total = sum(lengths)
    all_logits, loss = [], torch.zeros((), dtype=torch.float64)
    for tokens, weight in zip(words(total).split(list(lengths)), weights(total).split(list(lengths)), strict=True):
        logits = model(tokens[None]).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        loss = loss + (nll * weight[:-1]).sum()
        all_logits.append(logits.detach())
    loss.backward()
    return (
        torch.cat(all_logits),
        float(loss.detach()),
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    )


def ours(rank: int, kind: str, mesh: Mesh, lengths: Sequence[int] = LENGTHS) -> Found:
    """All documents at once, cut over the ranks; the gradients are summed over them."""
    backbone, groups = make(config(kind), torch.float64, seed=0), join(mesh, rank)
    masks = masks_of(backbone.windows, lengths)
    split = balanced(max(masks.values(), key=lambda of_window: of_window.area), mesh)
    plans = {window: plan_for(of_window, split, groups) for window, of_window in masks.items()}
    ranges = split.ranges[groups.place.sequence]
    mine = torch.cat([torch.arange(start, stop) for start, stop in ranges] or [torch.arange(0)])
    position = torch.cat([torch.arange(0), *(torch.arange(a, b) for _, a, b in local_spans(lengths, ranges))])
    tokens = words(sum(lengths))[mine]
    labels = next_tokens(tokens, lengths, split, groups)
    hidden = backbone.hidden(backbone.embed(tokens), position, plans)
    loss, _ = backbone.loss(hidden, labels, weights(sum(lengths))[mine], tile_tokens=7)
    loss.backward()
    return of_all_ranks(backbone, hidden, mine, sum(lengths), loss)


def of_all_ranks(backbone: Backbone, hidden: Tensor, mine: Tensor, tokens: int, loss: Tensor) -> Found:
    """Logits of the whole pack; loss and gradients summed."""
    logits = torch.zeros(tokens, VOCABULARY, dtype=torch.float64)
    logits[mine] = backbone.logits(hidden.detach()).detach()
    grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in backbone.model.named_parameters()}
    total = loss.detach().clone()
    for tensor in (total, logits, *grads.values()):
        dist.all_reduce(tensor)
    return logits, float(total), grads


def largest(found: Found, expected: Found) -> float:
    """Difference, relative to the largest number of each tensor; that of a gradient that ought to be 0 is rounding."""
    differences = [abs(found[1] - expected[1]) / abs(expected[1])]
    pairs = [(found[0], expected[0]), *((found[2][name], grad) for name, grad in expected[2].items())]
    differences += [float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs]
    return max(differences)


@pytest.fixture(scope="module")
def expected() -> dict[str, Found]:
    return {kind: reference(kind) for kind in KINDS}


def all_kinds(rank: int, mesh: Mesh) -> dict[str, Found]:
    return {kind: ours(rank, kind, mesh) for kind in KINDS}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_equals_transformers_on_every_mesh(expected: dict[str, Found], mesh: Mesh) -> None:
    """Logits, loss and all gradients, on every rank; on one rank packing changes nothing beyond 1e-12."""
    for of_rank in run_world(mesh.ranks, all_kinds, mesh):
        for kind, found in of_rank.items():
            assert found[2].keys() == expected[kind][2].keys()
            assert largest(found, expected[kind]) < (1e-12 if mesh.ranks == 1 else 1e-9), kind


def test_a_leak_between_documents_is_seen(expected: dict[str, Found]) -> None:
    """What the test of parity is worth: one causal mask over all documents does not pass."""
    (found,) = run_world(1, leaking)
    assert largest(found, expected["llama"]) > 1e-3


def leaking(rank: int) -> Found:
    packed = mask.packed
    mask.packed = lambda lengths, causal=False: packed([sum(lengths)], causal)  # in this process alone
    return ours(rank, "llama", Mesh(1, 1, 1))


def test_weights_go_back_to_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for kind in KINDS:
        backbone = make(config(kind), torch.float64, seed=1)
        backbone.model.save_pretrained(tmp_path / kind)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float64)
        for name, tensor in backbone.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
        assert "longreel" not in (tmp_path / kind / "config.json").read_text()


def test_a_seed_decides_the_first_numbers() -> None:
    one, same, other = (make(config("llama"), torch.float32, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_config_is_not_written_into() -> None:
    """A second model of it, in another dtype too, begins with the same numbers."""
    given = config("llama")
    before = given.to_dict()
    one = make(given, torch.float64, seed=0).state_dict()
    assert given.to_dict() == before
    again = make(given, torch.float64, seed=0).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_what_is_not_known_is_refused() -> None:
    from transformers import AutoConfig

    with pytest.raises(InputError, match="model_type: gpt2"):
        make(AutoConfig.for_model("gpt2"), torch.float32, 0)
    with pytest.raises(InputError, match="no dropout"):
        make(config("llama", attention_dropout=0.1), torch.float32, 0)
