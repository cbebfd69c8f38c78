"""A vision-language model in the shape of LLaVA equals transformers' own, images dealt out and cut anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.language.causal_lm import masks_of
from models.language.vision_tower import Averages, VisualInputs, make, pooled, rows_of
from parallel.attention.plan import plan_for
from parallel.errors import InputError
from parallel.mesh import Mesh, join
from parallel.sequence.packed import local_spans
from parallel.sequence.relayout import next_tokens
from parallel.sequence.row_exchange import RowExchange, row_exchange_for
from parallel.sequence.sharding import balanced
from tests.models.language.test_causal_lm import MESHES, SIZES, Found, largest, of_all_ranks
from tests.support.process_groups import run_world

IMAGE, PATCH, TOKENS = 12, 4, 9
PLACE = 60  # the word that stands for an image
# words before each image, and after the last: three images, none, one
DOCUMENTS = (((3, 2, 0), 4), ((), 11), ((0,), 1))
TEXTS: dict[str, Any] = {"llama": {"num_key_value_heads": 1}, "qwen2": {}}


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": IMAGE, "patch_size": PATCH, "initializer_range": 0.3,
    }  # fmt: skip
    text = {"model_type": kind, **SIZES, **TEXTS[kind]}
    usual = {"vision_config": vision, "text_config": text, "image_token_id": PLACE, "vision_feature_layer": -1}
    return AutoConfig.for_model("llava", **{**usual, **changes})


def pack() -> tuple[list[int], list[tuple[int, int]], Tensor, Tensor, Tensor]:
    """Lengths of documents, places of images, words, pixels, weights."""
    draw = torch.Generator().manual_seed(5)
    lengths: list[int] = []
    images: list[tuple[int, int]] = []
    words: list[int] = []
    for before, after in DOCUMENTS:
        begin = len(words)
        for count in before:
            words += torch.randint(PLACE, (count,), generator=draw).tolist()
            images.append((len(words), len(words) + TOKENS))
            words += [PLACE] * TOKENS
        words += torch.randint(PLACE, (after,), generator=draw).tolist()
        lengths.append(len(words) - begin)
    pixels = torch.randn(len(images), 3, IMAGE, IMAGE, generator=draw, dtype=torch.float64)
    return lengths, images, torch.tensor(words), pixels, torch.rand(len(words), generator=draw, dtype=torch.float64)


def reference(kind: str) -> Found:
    """Document by document, by transformers alone."""
    from transformers import LlavaForConditionalGeneration

    made: Any = LlavaForConditionalGeneration
    model = made._from_config(config(kind), attn_implementation="sdpa", dtype=torch.float64)
    model.load_state_dict(make(config(kind), torch.float64, seed=0).model.state_dict())
    lengths, _, words, pixels, weights = pack()
    every, loss, seen = [], torch.zeros((), dtype=torch.float64), 0
    for (before, _), tokens, weight in zip(DOCUMENTS, words.split(lengths), weights.split(lengths), strict=True):
        mine = pixels[seen : seen + len(before)] if before else None
        logits = model(input_ids=tokens[None], pixel_values=mine).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        loss, seen = loss + (nll * weight[:-1]).sum(), seen + len(before)
        every.append(logits.detach())
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat(every), float(loss.detach()), grads


def ours(rank: int, kind: str, mesh: Mesh) -> Found:
    model, groups = make(config(kind), torch.float64, seed=0), join(mesh, rank)
    assert model.image_tokens == TOKENS
    lengths, images, words, pixels, weights = pack()
    masks = masks_of(model.windows, lengths)
    split = balanced(max(masks.values(), key=lambda of_window: of_window.area), mesh)
    plans = {window: plan_for(of_window, split, groups) for window, of_window in masks.items()}
    ranges = split.ranges[groups.place.sequence]
    mine = torch.cat([torch.arange(0), *(torch.arange(start, stop) for start, stop in ranges)])
    position = torch.cat([torch.arange(0), *(torch.arange(a, b) for _, a, b in local_spans(lengths, ranges))])
    exchange = row_exchange_for(tuple(images), split, groups)
    seen = model.encode_visuals(words[mine], frames(pixels[slice(*exchange.views)], len(images), exchange))
    hidden = model.hidden(seen, position, plans)
    loss, _ = model.loss(hidden, next_tokens(words[mine], lengths, split, groups), weights[mine], tile_tokens=7)
    loss.backward()
    return of_all_ranks(model, hidden, mine, len(words), loss)


@pytest.fixture(scope="module")
def expected() -> dict[str, Found]:
    return {kind: reference(kind) for kind in TEXTS}


def all_texts(rank: int, mesh: Mesh) -> dict[str, Found]:
    return {kind: ours(rank, kind, mesh) for kind in TEXTS}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_equals_transformers_on_every_mesh(expected: dict[str, Found], mesh: Mesh) -> None:
    for of_rank in run_world(mesh.ranks, all_texts, mesh):
        for kind, found in of_rank.items():
            assert largest(found, expected[kind]) < 1e-9, kind


def empty_pack(rank: int, mesh: Mesh) -> tuple[bool, set[str]]:
    """Words alone: the tower sees nothing, and every parameter gets a gradient all the same."""
    model, groups = make(config("llama"), torch.float64, seed=0), join(mesh, rank)
    masks = masks_of(model.windows, [10])
    split = balanced(masks[None], mesh)
    ranges = split.ranges[groups.place.sequence]
    mine = torch.cat([torch.arange(start, stop) for start, stop in ranges])
    nothing = torch.zeros(0, 3, IMAGE, IMAGE, dtype=torch.float64)
    seen = model.encode_visuals(mine, frames(nothing, 0, row_exchange_for((), split, groups)))
    model.hidden(seen, mine, {None: plan_for(masks[None], split, groups)}).sum().backward()
    return torch.equal(seen, model.embed(mine)), {n for n, p in model.model.named_parameters() if p.grad is None}


def test_a_pack_without_images() -> None:
    for same, without in run_world(2, empty_pack, Mesh(1, 2, 1)):
        assert same
        assert without == {
            "lm_head.weight",
            "model.vision_tower.post_layernorm.weight",
            "model.vision_tower.post_layernorm.bias",
        }


def test_weights_go_back_to_transformers(tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = make(config("qwen2"), torch.float64, seed=1)
    model.model.save_pretrained(tmp_path)
    back = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float64).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.model.state_dict().items())


def test_a_config_is_not_written_into() -> None:
    given = config("qwen2")
    before = given.to_dict()
    one, again = (make(given, torch.float64, seed=0).state_dict() for _ in range(2))
    assert given.to_dict() == before
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_rows_of_views() -> None:
    """Whole views and views of one row, of one frame and of several, against the plain loop."""
    features = torch.randn(6, 4, 3, dtype=torch.float64)
    counts, rows = np.array([2, 1, 2, 1]), np.array([4, 1, 1, 4])
    expected = []
    for view, of_view in zip(features.split(counts.tolist()), rows.tolist(), strict=True):
        mean = view.mean(dim=0)
        expected.append(mean if of_view == 4 else mean.mean(dim=0, keepdim=True))
    torch.testing.assert_close(rows_of(features, Averages.of(counts, rows, 4)), torch.cat(expected))
    grid = torch.arange(16, dtype=torch.float64).reshape(1, 16, 1)
    assert pooled(grid, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    with pytest.raises(InputError, match="3 places for 4 tokens"):
        Averages.of(np.ones(6, np.int64), np.full(6, 3), 4)
    with pytest.raises(InputError, match="4 tokens a frame, 5 by the config"):
        rows_of(features, Averages.of(np.ones(6, np.int64), np.full(6, 5), 5))
    with pytest.raises(InputError, match="4 tokens a frame, pool 3"):
        pooled(features, 3)


def frames(pixels: Tensor, most: int, exchange: RowExchange) -> VisualInputs:
    """One a view, all rows of each."""
    each = np.ones(len(pixels), np.int64)
    return VisualInputs(pixels, Averages.of(each, each * TOKENS, TOKENS), most, exchange)
